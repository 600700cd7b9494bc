"""`podway agent` runs a node's agent; `podway status` asks one how it is."""

import json
from pathlib import Path
from typing import Any

import click

from podway.agent.client import call
from podway.cli.agents import sockets
from podway.cli.options import GlobalOptions
from podway.cli.output import age


@click.command()
@click.option("--node", required=True, metavar="NAME", help="This node's name in the cluster.")
@click.option("--store", "url", required=True, metavar="URL", envvar="PODWAY_STORE", help="The cluster's store.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/podway"),
    show_default=True,
    help="Where its sockets and BIRD's files are.",
)
@click.option("--interface", default="", metavar="DEVICE", help="The uplink, if it is not to be found out.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def agent(*, node: str, url: str, run_dir: Path, interface: str, log_level: str) -> None:
    """Run the agent of a node, until SIGTERM. Pods, routes and BIRD outlive it."""
    from podway.agent.agent import run
    from podway.agent.logs import configure
    from podway.agent.options import AgentOptions

    configure(log_level)
    run(AgentOptions(node=node, store=url, run_dir=run_dir, interface=interface))


@click.command()
@click.argument("node", required=False)
@click.option("-o", "--output", type=click.Choice(["json"]), help="Another form than text.")
@click.pass_obj
def status(options: GlobalOptions, *, node: str | None, output: str | None) -> None:
    """Show how a node's agent is: store, BIRD's sessions, blocks and leases, drift.

    Without NODE: every node of the lab, or this host.
    """
    answers = {name: call(path, "status") for name, path in sockets(options, node).items()}
    if output == "json":
        click.echo(json.dumps(answers if node is None else next(iter(answers.values())), indent=2))
        return
    for position, answer in enumerate(answers.values()):
        if position:
            click.echo()
        _show(answer)


def _show(answer: dict[str, Any]) -> None:
    import time

    uplink, blocks, drift = answer["uplink"], answer["blocks"], answer["drift"]
    peers = answer["routing"]["peers"]
    established = sum(peer["state"] == "Established" for peer in peers)
    leased = f"{answer['leases']} pods"
    rows = [
        (
            "agent",
            f"{answer['version']}, pid {answer['pid']}, up {age(time.time() - answer['started'])}, "
            f"{answer['memory'] >> 20} MiB",
        ),
        ("uplink", f"{uplink['device']} {' '.join(uplink['addresses'])}, MTU {uplink['mtu']}"),
        ("store", answer["store"]["problem"] or f"{answer['store']['url']}, in touch"),
        (
            "BIRD",
            answer["routing"]["problem"]
            or f"pid {answer['routing']['bird']}, {established} of {len(peers)} sessions established",
        ),
        *((f"  {peer['name']}", _peer(peer)) for peer in peers if peer["state"] != "Established"),
        ("leases", leased),
        *(
            (f"  {use['block']}", f"{use['leased']} leased, {use['cooling']} cooling, {use['free']} free")
            for use in blocks
        ),
        ("drift", "none" if not drift["now"] else f"{len(drift['now'])} differences from the plan"),
        *(("  now", line) for line in drift["now"]),
        *(("  refused", line) for line in drift["refused"]),
        *((f"  {age(time.time() - repair['at'])} ago", repair["what"]) for repair in drift["repaired"]),
    ]
    click.echo(f"node {answer['node']}")
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        click.echo(f"  {label.ljust(width)}  {text}")


def _peer(peer: dict[str, Any]) -> str:
    reason = f": {peer['last_error']}" if peer.get("last_error") else ""
    return f"{peer['state']} {peer['address']}{reason}"
