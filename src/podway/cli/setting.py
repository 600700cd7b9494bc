"""`podway set`: changes fields of one object, and waits until the cluster has applied them."""

import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import click

from podway.api.assign import assign, differences, fields
from podway.api.kinds import KINDS
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.resource import Key, Resource, key, subject
from podway.api.rules import check_change
from podway.api.validate import validate
from podway.cli.agents import agents, ask_all, fallbacks_of
from podway.cli.help import examples
from podway.cli.kinds import complete_keys, namespace_option, nearest_key, read_key
from podway.cli.mistakes import in_arguments
from podway.cli.options import GlobalOptions, cluster_options, read_all
from podway.cli.views import VIEW_BY_NAME
from podway.cluster.view import JUDGING, PLANNED
from podway.errors import AgentError, Conflict, NotFound
from podway.preview.interruptions import interruptions
from podway.store.base import Store, list_all

SETTINGS: tuple[type[Resource], ...] = (IPPool, NetworkConfig, BGPPeer)
"""The kinds by which a whole cluster is set."""

LOOK = 0.1
"""Seconds between looks at nodes that have not applied it yet."""


def complete_fields(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete FIELD=, and the value where only a few are possible."""
    target = str(ctx.params.get("target") or "")
    view = VIEW_BY_NAME.get(target.partition("/")[0].lower())
    if view is None or view.kind is None:
        return []
    if "/" not in target and not view.kind.ONLY and not ctx.params.get("assignments"):
        return [found.partition("/")[2] for found in complete_keys(ctx, param, f"{target}/{incomplete}")]
    known = fields(view.kind)
    name, equals, _ = incomplete.partition("=")
    words = [f"{name}={value}" for value in known.get(name, ())] if equals else [f"{each}=" for each in known]
    return [word for word in words if word.startswith(incomplete)]


@click.command(
    "set",
    epilog=examples(
        "podway set pool/ipv4 encapsulation=vxlan when=cross-subnet --wait",
        "podway set config vxlan.port=8472",
        "podway set node/node1 asn=64601              # asn= : the cluster's again",
    ),
)
@click.argument("target", metavar="KIND/NAME", shell_complete=complete_keys)
@click.argument("assignments", metavar="FIELD=VALUE...", nargs=-1, required=True, shell_complete=complete_fields)
@namespace_option
@click.option("--wait", is_flag=True, help="Until every node has applied it.")
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@cluster_options
@click.pass_obj
def set_fields(
    options: GlobalOptions,
    *,
    target: str,
    assignments: Sequence[str],
    namespace: str | None,
    wait: bool,
    timeout: float,
) -> None:
    """Change fields of an object. They are named as in its manifest, without `spec`; labels as labels.KEY.

    The cluster switches while it runs; a change that cannot be right is refused, and nothing is changed.
    `podway plan -f` tells what a manifest with the same change would do.
    """
    if "/" not in target and "=" not in assignments[0]:  # KIND NAME, as other commands take it
        target, assignments = f"{target}/{assignments[0]}", assignments[1:]
        if not assignments:
            raise click.UsageError(f"what of {target}? write FIELD=VALUE")
    wanted = read_key(target, namespace)

    async def work(store: Store) -> None:
        while True:
            listing = await read_all(store)
            others = listing.items
            old = next((obj for obj in others if key(obj) == wanted), None)
            unfit = next((one for one in listing.rejected if one.key == wanted), None)
            if unfit is not None and unfit.found is None:
                raise unfit.error
            if unfit is not None:
                old = unfit.found  # what is wrong with it may be the very field that is to be set
            if old is None:
                raise NotFound(f"{subject(wanted)} does not exist", hint=nearest_key(wanted, map(key, others)))
            with in_arguments():
                new = assign(old, assignments)
                validate(new)
            told = ", ".join(differences(old, new))
            if not told:
                click.echo(f"{subject(wanted)}: unchanged")
                return
            check_change(new, others, old=None if unfit else old)
            for interruption in interruptions(None if unfit else old, new):
                click.echo(f"note: {interruption}", err=True)
            try:
                await store.update(new)
            except Conflict:
                continue  # somebody was quicker: look again
            click.echo(f"{subject(wanted)}: {told}")
            return

    options.run(work)
    if wait:
        # Whether a pool's routes are distributed by BGP, and have come, is part of what is pending of the
        # encapsulation.
        _wait(options, wanted, timeout, sessions=wanted[0] != IPPool.KIND)


def _wait(options: GlobalOptions, changed: Key, timeout: float, *, sessions: bool) -> None:
    """Wait until all nodes have heard of what `changed`, and have gone over; with their `sessions`, if asked.

    So do they of the cluster's other settings, which may have been changed just before.

    Raises AgentError if one has not.
    """
    begun = time.monotonic()
    while True:
        waiting = {}
        versions = options.run(partial(_versions, changed=changed))
        asked = agents(options)
        heard = ask_all(asked, "heard", objects=list(versions))
        answers = ask_all(asked, "status")
        reached = {node for node, answer in answers.items() if not isinstance(answer, AgentError)}
        for node, answer in answers.items():
            if isinstance(answer, AgentError):
                waiting[node] = answer.message
            elif heard[node] != list(versions.values()):
                waiting[node] = "has not heard of the change yet"
            elif answer["data_path"]["pending"]:
                waiting[node] = answer["data_path"]["problem"] or "is about to judge connections by the change"
            elif answer["encapsulation"]["pending"]:
                waiting[node] = "; ".join(answer["encapsulation"]["pending"])
            elif unrouted := _unrouted(answer["routing"], reached if sessions else ()):
                waiting[node] = unrouted
        took = time.monotonic() - begun
        if not waiting:
            click.echo(f"all nodes have applied it after {took:.1f} s")
            for node, reason in fallbacks_of(answers).items() if changed[0] == NetworkConfig.KIND else ():
                click.echo(f"note: {node} does without the flow engine: {reason}", err=True)
            return
        if took > timeout:
            node, reason = next(iter(waiting.items()))
            raise AgentError(
                f"{len(waiting)} nodes have not applied it after {took:.0f} s; {node}: {reason}",
                hint="the change stands, and they go on; see `podway status`",
            )
        time.sleep(LOOK)


def _unrouted(routing: dict[str, Any], reached: Collection[str]) -> str:
    """Return what a node's BGP still waits for, as far as nodes do whose agents answer; else nothing."""
    if routing["problem"] or routing["pending"]:
        return str(routing["problem"] or routing["pending"])
    if routing["waits_for"]:
        return f"keeps what the former topology needed: {', '.join(routing['waits_for'][:3])} not ready yet"
    down = [peer for peer in routing["peers"] if peer["node"] in reached and peer["state"] != "Established"]
    return f"no BGP session with {down[0]['node']} yet ({down[0]['state']})" if down else ""


async def _versions(store: Store, changed: Key) -> dict[Key, str]:
    """Return the versions of the cluster's settings, and of the object that changed."""
    kind = KINDS[changed[0]]
    listed = list((await list_all(store, {*SETTINGS, kind} if kind in PLANNED else SETTINGS)).items)
    if kind in JUDGING and any(
        isinstance(one, NetworkConfig) and one.spec.data_path != "kernel" for one in listed
    ):
        listed += (await list_all(store, [kind])).items
    return {
        key(obj): obj.metadata.resource_version
        for obj in listed
        if isinstance(obj, SETTINGS) or key(obj) == changed
    }
