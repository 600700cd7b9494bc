"""`podway plan` and `podway snapshot`: what would be, and the file to ask it of anywhere."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import click

from podway.api.kinds.node import Node
from podway.api.kinds.secret import Secret
from podway.api.resource import Resource, key
from podway.cli.agents import agents, ask_all
from podway.cli.change import check_deletions, checked_change, files_option
from podway.cli.flows import plain
from podway.cli.help import examples
from podway.cli.kinds import complete_keys, namespace_option, read_key
from podway.cli.manifests import check_each, read_manifests
from podway.cli.options import SNAPSHOT, GlobalOptions, cluster_options, read_all
from podway.cluster.view import ClusterView
from podway.errors import AgentError, InvalidArgument, LabError, StoreForbidden
from podway.plan.path import Site
from podway.preview.paths import changed_paths
from podway.preview.preview import Comparison
from podway.preview.snapshot import Snapshot, encode, read, site_of
from podway.store.base import Everything, Store

WOULD_CHANGE = 3
"""Exit status of `plan --exit-code`; 1 and 2 are errors."""


@click.command(
    epilog=examples(
        "podway plan -f pools.yaml",
        "podway plan --delete pool/databases --all",
        "podway snapshot -o cluster.json             # later, elsewhere, without privileges:",
        "podway plan --snapshot cluster.json -f pools.yaml",
        "podway plan -f pools.yaml --exit-code       # 3 if something would change",
        "podway plan -f policy.yaml --flows 24h      # which connections of the last day that denies or allows",
    )
)
@files_option
@namespace_option
@click.option(
    "--delete",
    "deletions",
    metavar="KIND/NAME",
    multiple=True,
    help="Without this object. Repeatable.",
    shell_complete=complete_keys,
)
@click.option(
    "--snapshot",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Of this cluster, not the live one.",
)
@click.option("--all", "everything", is_flag=True, help="Every node and object, not the first few.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer.")
@click.option(
    "--flows",
    metavar="AGO",
    help="What policies would have made of the connections seen since then: 90s, 10m, 2h, 1d.",
)
@click.option("--exit-code", is_flag=True, help=f"Exit with {WOULD_CHANGE} if something would change.")
@cluster_options
@click.pass_obj
def plan(
    options: GlobalOptions,
    *,
    filenames: tuple[str, ...],
    namespace: str | None,
    deletions: tuple[str, ...],
    file: Path | None,
    everything: bool,
    output: str,
    flows: str | None,
    exit_code: bool,
) -> None:
    """Show what `podway apply -f` (and `delete`) would do to every node, and do nothing.

    For each node: the kernel objects, learned routes and BGP sessions that would be added (+), changed (~) or
    removed (-), what the agents do by themselves afterwards included; between which pods packets would take
    another way; and which pods policies would let talk to each other, or not any more. With --flows instead: which
    connections that nodes have recorded (`podway flows`) would have been denied, or newly allowed.
    """
    if flows is not None and file:
        raise click.UsageError("--flows asks the nodes, and a snapshot has none: leave out --snapshot")
    if not filenames and not deletions:
        raise click.UsageError("name a change: -f FILE, or --delete KIND/NAME")
    manifests = read_manifests(filenames, namespace) if filenames else []
    check_each(manifests)
    unwanted = [read_key(text, namespace) for text in deletions]
    today = read(file) if file else take(options)
    stored = {key(obj): obj for obj in today.objects}
    check_deletions(stored, unwanted)
    staying = {known: obj for known, obj in stored.items() if known not in unwanted}
    wanted = {
        known: obj
        for known, obj in checked_change(staying, manifests, allocates=options.allocates).items()
        if obj != staying.get(known)
    }
    before, then = tuple(stored.values()), tuple({**staying, **wanted}.values())
    if flows is not None:
        _plan_flows(options, flows, before, then, output, exit_code)
    after = ClusterView.of(then)
    comparison = Comparison(today.view, after, today.sites)
    actions = {known: "configured" if known in staying else "created" for known in wanted}
    actions |= dict.fromkeys(unwanted, "deleted")

    from podway.cli import preview_output
    from podway.preview.pairs import PairChanges, changed_pairs, decides

    nodes = (change for node in comparison.nodes if (change := comparison.of(node)))
    pairs = changed_pairs(before, then) if decides(actions) else PairChanges()
    answer = preview_output.Answer(comparison, actions, today.silent, nodes, changed_paths(comparison), pairs)
    if output == "json":
        click.echo(preview_output.to_json(answer))
    else:
        for line in preview_output.lines(answer, everything=everything):
            click.echo(line)
    click.get_current_context().exit(WOULD_CHANGE if exit_code and actions else 0)


def _plan_flows(
    options: GlobalOptions,
    since: str,
    before: tuple[Resource, ...],
    after: tuple[Resource, ...],
    output: str,
    exit_code: bool,
) -> NoReturn:
    """Show which connections policies would have judged otherwise, and exit."""
    from podway.cli.seen import seen
    from podway.preview.flows import compare

    known = seen(options, "--flows", since)
    found = compare(before, after, known)
    if output == "json":
        import msgspec

        from podway.api.encode import to_json, to_list

        shapes = [
            {
                "apiVersion": "podway.io/v1",
                "kind": "FlowOutcome",
                "would": one.change,
                "why": one.why,
                **msgspec.to_builtins(one.connection),
            }
            for one in found.outcomes
        ]
        click.echo(to_json(to_list(shapes)), nl=False)
    else:
        for one in found.outcomes:
            sign, colour = ("-", "red") if one.change == "denied" else ("+", "green")
            seen_so = f"{one.connection.flows} connections, {one.connection.denied} packets denied"
            click.echo(click.style(f"{sign} would be {one.change}: {plain(str(one.connection))}", fg=colour))
            click.echo(f"    seen: {seen_so}; {plain(one.why)}")
        kept = f"{found.same} of {len(known)} connections are judged as before"
        gone = f"; {found.gone} cannot be judged: their pods are gone" if found.gone else ""
        click.echo(f"{len(found.outcomes)} would be otherwise, {kept}{gone}")
    click.get_current_context().exit(WOULD_CHANGE if exit_code and found.outcomes else 0)


@click.command(
    epilog=examples(
        "podway snapshot -o cluster.json",
        "podway plan --snapshot cluster.json -f change.yaml",
        "podway --store snapshot:cluster.json get pods -A",
    )
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to; else standard output."
)
@cluster_options
@click.pass_obj
def snapshot(options: GlobalOptions, output: Path | None) -> None:
    """Write the whole cluster into one JSON file: its objects, and every node's uplink and leases.

    Secrets are left out. Other commands read it without privileges: plan --snapshot FILE, and
    --store snapshot:FILE.
    """
    taken = take(options)
    for node, problem in taken.silent.items():
        click.echo(f"podway: node {node}: its pods are not in the snapshot: {problem}", err=True)
    data = encode(taken)
    if output is None:
        sys.stdout.buffer.write(data)
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise InvalidArgument(f"{output}: {error.strerror}", hint="name a file that can be written") from error
    click.echo(f"{output}: {len(taken.objects)} objects, {len(taken.sites)} nodes with their pods", err=True)


def take(options: GlobalOptions) -> Snapshot:
    """Return the cluster as it is now; as it was, if the store is a snapshot. Raises PodwayError."""
    url = options.store_url()
    if url.startswith(SNAPSHOT):
        return read(Path(url.removeprefix(SNAPSHOT)))
    listing = options.run(_read)
    nodes = [obj.metadata.name for obj in listing.items if isinstance(obj, Node)]
    sites, silent = _sites(options, nodes)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Snapshot(now, listing.items, sites, silent)


async def _read(store: Store) -> Everything:
    try:
        return await read_all(store)
    except StoreForbidden as error:
        found = await read_all(store, without=(Secret,))
        click.echo(f"podway: passwords of BGP peers are not looked at: {error.message}", err=True)
        return found


def _sites(options: GlobalOptions, nodes: Iterable[str]) -> tuple[dict[str, Site], dict[str, str]]:
    """Ask the agents for uplinks and leases; return what they told, and why others told nothing."""
    silent = dict.fromkeys(nodes, "no agent of it is known here")
    try:
        asked = agents(options)
    except (AgentError, LabError):
        return {}, silent
    statuses, leases = ask_all(asked, "status"), ask_all(asked, "leases")
    sites: dict[str, Site] = {}
    for name, status in statuses.items():
        problem = next((answer for answer in (status, leases[name]) if isinstance(answer, AgentError)), None)
        if problem is not None:
            silent |= {name: problem.message} if name in silent else {}
        elif status["node"] in silent:
            del silent[status["node"]]
            sites[status["node"]] = site_of(status["uplink"], leases[name])
    return sites, silent
