"""`podway agent` runs a node's agent; `podway status` asks one how it is."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from podway import memory
from podway.agent.options import DEFAULT_RUN_DIR
from podway.api.columns import age
from podway.api.encode import to_list
from podway.cli.agents import agents, ask_all
from podway.cli.complete import complete_nodes
from podway.cli.help import examples
from podway.cli.options import GlobalOptions, cluster_options, log_level_option, metrics_option, store_option
from podway.cli.output import fold
from podway.errors import AgentError
from podway.store.open import check_url

# Where it is installed structlog would draw tracebacks with it, which an agent logs in one line: 5 MiB.
memory.do_without("rich")


@click.command(
    epilog=examples(
        "podway agent --node node1 --store sqlite:///var/lib/podway/store.db",
        "podway agent --node node1 --store sqlite:///var/lib/podway/store.db --interface eth1 --log-level debug",
        "podway agent --node node1 --store etcd://192.0.2.10:2379/podway",
    )
)
@click.option("--node", required=True, metavar="NAME", help="This node's name in the cluster.")
@store_option(help="The cluster's store, such as sqlite:///var/lib/podway/store.db or etcd://HOST:2379.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_RUN_DIR,
    show_default=True,
    help="Where its sockets and BIRD's files are.",
)
@click.option(
    "--interface",
    default="",
    metavar="DEVICE",
    help="The uplink.  [default: the device with the default route, or the only usable one]",
)
@metrics_option
@click.option(
    "--metrics-export",
    metavar="URL",
    help="Send metrics every minute to an OpenTelemetry collector, too: otlp+http://HOST:4318.",
)
@click.option(
    "--cni-dirs",
    nargs=2,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PLUGINS CONFIGURATIONS",
    help="Keep the CNI plugin and its configuration there, the latter once pods can be attached.",
)
@click.option(
    "--default-pool",
    "default_pools",
    multiple=True,
    metavar="CIDR",
    help="Make a pool of it where the cluster has none of its family; repeat for more.",
)
@log_level_option
@click.option(
    "--flow-history",
    metavar="MIB",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="How much room the history of flows may take (0: keep none).",
)
@click.option(
    "--flow-export",
    "flow_exports",
    multiple=True,
    metavar="URL",
    help="Send records of flows there, too: file:///…, otlp+http://…, ipfix+udp://…; repeat for more.",
)
@click.pass_obj
def agent(
    options: GlobalOptions,
    *,
    node: str,
    run_dir: Path,
    interface: str,
    metrics: str,
    metrics_export: str | None,
    cni_dirs: tuple[Path, Path] | None,
    default_pools: tuple[str, ...],
    log_level: str,
    flow_history: int,
    flow_exports: tuple[str, ...],
) -> None:
    """Run the agent of a node, until SIGTERM. Pods, routes and BIRD outlive it. Needs root."""
    if options.store is None:
        raise click.UsageError("name the cluster's store: --store URL, or PODWAY_STORE")
    check_url(options.store)
    from podway.agent.agent import run
    from podway.agent.first_pools import pool_of
    from podway.agent.logs import configure
    from podway.agent.options import AgentOptions
    from podway.export.target import Target

    pools = tuple(filter(None, (cidr.strip() for told in default_pools for cidr in told.split(","))))
    for cidr in pools:
        pool_of(cidr)
    configure(log_level)
    plugins, configurations = cni_dirs or (None, None)
    run(
        AgentOptions(
            node=node,
            store=options.store,
            run_dir=run_dir,
            interface=interface,
            metrics=metrics,
            metrics_export=Target.of_metrics(metrics_export) if metrics_export is not None else None,
            flow_history=flow_history << 20,
            flow_exports=tuple(map(Target.parse, flow_exports)),
            plugin_dir=plugins,
            conf_dir=configurations,
            default_pools=pools,
        )
    )


@click.command(epilog=examples("podway status", "podway status node1 -o json"))
@click.argument("node", required=False, shell_complete=complete_nodes)
@click.option("-o", "--output", type=click.Choice(["json"]), help="Another form than text.")
@click.option("--remote", is_flag=True, help="Ask over the network, also an agent on this machine.")
@cluster_options
@click.pass_obj
def status(options: GlobalOptions, *, node: str | None, output: str | None, remote: bool) -> None:
    """Show how a node's agent is: store, BIRD's sessions, blocks and leases, drift, certificate.

    Without NODE: every node of the lab; of the cluster, if its store is named; else this host.
    With -o json always a List of AgentStatus. Exit status 1 if an agent did not answer.
    """
    answers = ask_all(agents(options, (node,) if node else (), remote=remote), "status")
    silent = [answer for answer in answers.values() if isinstance(answer, AgentError)]
    if len(silent) == len(answers) == 1 and output is None:
        raise silent[0]
    if output == "json":
        click.echo(json.dumps(to_list([shape_of(name, answer) for name, answer in answers.items()]), indent=2))
    else:
        for position, (name, answer) in enumerate(answers.items()):
            if position:
                click.echo()
            if answer in silent:
                click.echo(f"node {name}\n  {answer}")
            else:
                _show(answer)
    click.get_current_context().exit(1 if silent else 0)


def shape_of(node: str, answer: dict[str, Any] | AgentError) -> dict[str, Any]:
    """Return what a node's agent answered of its status, or that it did not, in the shape of the JSON form."""
    head = {"apiVersion": "podway.io/v1", "kind": "AgentStatus", "node": node}
    if isinstance(answer, AgentError):
        return {**head, "error": answer.message, "hint": answer.hint}
    return {**head, **answer}


def _topology(routing: dict[str, Any]) -> str:
    nodes = routing["waits_for"]
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"switching to {routing['topology']}, former sessions stay: waits for {', '.join(nodes[:3])}{more}"


def _full(peer: dict[str, Any]) -> bool:
    return peer["state"] == "Established" and bool(peer.get("limit"))


def _reflectors(routing: dict[str, Any]) -> str:
    lost = routing["lost"]
    working = [name for name in routing["reflectors"] if name not in lost]
    return f"{', '.join(lost)} lost; {', '.join(working) or 'none'} left"


def _encapsulation(encapsulation: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows about encapsulation; none where there is nothing to say."""
    accepts, sends = encapsulation["accepts"], encapsulation["sends"]
    told = f"accepts {', '.join(accepts) or 'bare packets only'}; sends {', '.join(sends) or 'bare packets only'}"
    rows = [("encapsulation", told)] if accepts or sends else []
    return [
        *rows,
        *(("  pending", line) for line in encapsulation["pending"]),
        *(("  problem", line) for line in encapsulation["problems"]),
    ]


def _data_path(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows about the data path; none where the kernel's own is all that is wanted."""
    if told["wanted"] == "kernel":
        return []
    counts = f"{told['rules']} rules in {told['rule_sets']} sets"
    said = (
        f"eBPF, policies are enforced: {counts}" if told["in_force"] == "ebpf" else "the kernel's, without policy"
    )
    return [
        ("data path", said),
        *((("  problem", told["problem"]),) if told["problem"] else ()),
        *(("  cut off", f"pod {pod}: nothing is known of it") for pod in told["shut"]),
        *(
            ("  nearly full", f"table {name}: {{used}} of {{room}} entries".format(**told["tables"][name]))
            for name in told.get("nearly_full", ())
        ),
    ]


def _show(answer: dict[str, Any]) -> None:
    import time

    uplink, blocks, drift, channel = answer["uplink"], answer["blocks"], answer["drift"], answer["channel"]
    peers, failures = answer["routing"]["peers"], answer["failures"]
    established = sum(peer["state"] == "Established" for peer in peers)
    leased = f"{answer['leases']} pod{'' if answer['leases'] == 1 else 's'}"
    rows = [
        (
            "agent",
            f"{answer['version']}, pid {answer['pid']}, up {age(time.time() - answer['started'])}, "
            f"{answer['memory'] >> 20} MiB",
        ),
        ("uplink", f"{uplink['device']} {' '.join(uplink['addresses'])}, MTU {uplink['mtu']}"),
        *((("  problem", uplink["problem"]),) if uplink["problem"] else ()),
        ("store", answer["store"]["problem"] or f"{answer['store']['url']}, in touch"),
        *(("  rejected", f"{name}: {problem}") for name, problem in answer["store"]["rejected"].items()),
        (
            "BIRD",
            answer["routing"]["problem"]
            or f"pid {answer['routing']['bird']}, {established} of {len(peers)} sessions established",
        ),
        *((f"  {peer['name']}", _peer(peer)) for peer in peers if peer["state"] != "Established"),
        *((("  topology", _topology(answer["routing"])),) if answer["routing"]["waits_for"] else ()),
        *((f"  {peer['name']}", _peer(peer)) for peer in peers if _full(peer)),
        *((f"  peer:{name}", f"left out: {why}") for name, why in answer["routing"].get("left_out", {}).items()),
        *((("  reflectors", _reflectors(answer["routing"])),) if answer["routing"].get("lost") else ()),
        *(("offload", one["problem"]) for one in answer["offloads"].values() if one["problem"]),
        *_encapsulation(answer["encapsulation"]),
        *_data_path(answer["data_path"]),
        ("channel", channel["problem"] or _channel(channel)),
        *((("  refused", f"{channel['refused']}, last {channel['last_refusal']}"),) if channel["refused"] else ()),
        *(("  failure", f"{one['task']}, {age(time.time() - one['at'])} ago: {one['error']}") for one in failures),
        ("leases", leased),
        *((("  problem", f"no pod can be attached: {told}"),) if (told := answer["pods"]["problem"]) else ()),
        *(
            (f"  {use['block']}", f"{use['leased']} leased, {use['cooling']} cooling, {use['free']} free")
            for use in blocks
        ),
        ("drift", _drift(drift)),
        *(("  now", line) for line in drift["now"]),
        *(("  refused", line) for line in drift["refused"]),
        *((f"  {age(time.time() - repair['at'])} ago", repair["what"]) for repair in drift["repaired"]),
    ]
    click.echo(click.style(f"node {answer['node']}", bold=True))
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        folded = fold(f"  {label.ljust(width)}  {text}", " " * (width + 4), stream=sys.stdout)
        click.echo(click.style(folded, fg="red") if label.strip() in _WRONG else folded)


_WRONG = {"problem", "rejected", "reflectors", "offload", "failure", "now", "refused", "cut off"}
"""Rows that tell what is wrong."""


def _drift(drift: dict[str, Any]) -> str:
    differences = len(drift["now"]) + len(drift["refused"])
    return f"{differences} differences from the plan" if differences else "none"


def _channel(channel: dict[str, Any]) -> str:
    until = channel["certificate"][:16].replace("T", " ")
    return f"{' '.join(channel['addresses'])}, certificate until {until} UTC" if until else "no certificate yet"


def _peer(peer: dict[str, Any]) -> str:
    reason = f": {peer['last_error']}" if peer.get("last_error") else ""
    return f"{peer['state']} {peer['address']}{reason}"
