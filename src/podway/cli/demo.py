"""`podway lab demo`: a cluster built, shown, proved and removed, told so that a newcomer follows it."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import click

from podway.api.addresses import Family
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import DEFAULT_POOL
from podway.api.kinds.network_config import DEFAULT_ASN
from podway.api.kinds.pod import Pod
from podway.cli.agents import RouteRow, routes
from podway.cli.options import GlobalOptions
from podway.cli.output import format_table
from podway.cli.verify import page_width, paint, world_of
from podway.lab import cluster, facts, pods, state
from podway.prove.path import Hop
from podway.verify.report import Report, Verdict
from podway.verify.verify import path_of, verify

NODES = 3
PODS_PER_NODE = 2
WANTED = {"pod-a": "10.244.1.10", "pod-b": "10.244.2.20"}
"""Addresses that pods ask for: those of the textbook. The others get what their nodes choose."""
INDENT = "   "
TITLE = "Podway: a Kubernetes pod network, built and proved on this machine"
FAREWELL = "Everything was removed again: no namespace, process, route or file is left."


def run(*, keep: bool) -> int:
    """Run the demo; return the exit status. `keep` leaves the cluster standing."""
    name = f"demo{os.getpid()}"
    options = GlobalOptions(None, name)
    click.secho(click.wrap_text(TITLE, width=_width()), bold=True)
    with _lab(name, keep=keep):
        _show_nodes(name)
        running = _run_pods(name)
        _show_routes(options)
        _show_path(options, running)
        report = _prove(options)
    return 0 if report.holds else 1


@contextmanager
def _lab(name: str, *, keep: bool) -> Iterator[None]:
    _chapter(1, f"{NODES} nodes")
    _say(
        "Each is a network namespace with its own agent and its own BIRD (a BGP daemon), on one Ethernet segment."
    )
    began = time.monotonic()
    cluster.up(name, nodes=NODES, pools=[DEFAULT_POOL], block_sizes=[], asn=DEFAULT_ASN, report=_progress)
    try:
        _done(f"built in {time.monotonic() - began:.1f} s")
        yield
    finally:
        if keep:
            click.echo(f"\nThe cluster still stands: podway get pods --lab {name}; podway lab down {name}")
        else:
            cluster.down(name)
            click.echo()
            click.echo(click.wrap_text(FAREWELL, width=_width()))


def _show_nodes(name: str) -> None:
    current = state.load(name)
    blocks = facts.ask(name, lambda store: store.list(AddressBlock)).items
    rows = [
        (
            node,
            " ".join(str(address.ip) for address in current.addresses(node)),
            " ".join(block.spec.cidr for block in blocks if block.spec.node == node),
        )
        for node in current.nodes
    ]
    _say(f"Each node claimed a range of its own out of {DEFAULT_POOL} for its pods.")
    _table(("NODE", "ADDRESS", "RANGE FOR ITS PODS"), rows)


def _run_pods(name: str) -> list[Pod]:
    _chapter(2, f"{NODES * PODS_PER_NODE} pods, {PODS_PER_NODE} on each node")
    _say(
        "The CNI plugin attaches each one, executed just as a container runtime executes it. "
        f"{' and '.join(WANTED)} ask for an address, the others take what their node gives."
    )
    running = []
    for number in range(NODES * PODS_PER_NODE):
        pod = f"pod-{'abcdefghijkl'[number]}"
        wanted = [WANTED[pod]] if pod in WANTED else []
        running.append(pods.run(name, pod, node=f"node{number % NODES + 1}", addresses=wanted))
        _progress(f"{pod} runs")
    _table(
        ("POD", "NODE", "ITS OWN ADDRESS"),
        [(pod.metadata.name, pod.spec.node_name, " ".join(map(str, pod.addresses))) for pod in running],
    )
    return running


def _show_routes(options: GlobalOptions) -> None:
    _chapter(3, "How each node knows the way")
    _say(
        "Every node tells the others its range by BGP, and BIRD writes what it hears into the Linux routing table."
    )
    _table(("ON", "TO", "NEXT HOP", "PROTOCOL"), [_route(row) for row in routes(options, ()) if row.next_hops])


def _route(row: RouteRow) -> tuple[str, str, str, str]:
    hops = ", ".join(f"{hop.gateway} dev {hop.device}" for hop in row.next_hops)
    return row.on, row.network, hops, row.session.partition(".")[0]


def _show_path(options: GlobalOptions, running: list[Pod]) -> None:
    sender, receiver = running[0], running[1]
    _chapter(4, f"The path of one packet: {sender.metadata.name} → {receiver.metadata.name}")
    _say("A real packet, as large as the path allows, captured at every device that it passed.")
    hops = path_of(world_of(options), _label(sender), _label(receiver), Family.IPV4)
    click.echo()
    for line in _path(hops):
        click.echo(f"{INDENT}{line}")
    last = hops[-1] if hops else None
    if last is not None:
        kept = all((hop.source, hop.destination) == (last.source, last.destination) for hop in hops)
        bare = not any(hop.encapsulated for hop in hops)
        address = "the sender's own address at each of them" if kept else "the ADDRESS CHANGED on the way"
        _done(f"{len(hops)} places, {address}, {'no encapsulation' if bare else 'ENCAPSULATED'}")


def _path(hops: Iterable[Hop]) -> Iterator[str]:
    known = list(hops)
    width = max((len(hop.interface) for hop in known), default=0)
    lines = [(f"  {_VERBS[hop.direction]} {hop.interface.ljust(width)}", _seen(hop)) for hop in known]
    fits = all(len(INDENT) + len(place) + 2 + len(seen) <= _width() for place, seen in lines)
    previous = ""
    for (hop, following), (place, seen) in zip(pairwise([*known, None]), lines, strict=True):
        assert hop is not None
        if hop.point != previous:
            yield click.style(hop.point, bold=True)
        if fits:
            yield f"{place}  {seen}"
        else:
            yield place.rstrip()
            yield f"      {seen}"
        if following is not None and following.point != hop.point:
            yield "  │"
        previous = hop.point


_VERBS = {"in": "enters", "out": "leaves"}


def _seen(hop: Hop) -> str:
    since = hop.since_last / 1000
    return f"{hop.source} → {hop.destination}  TTL {hop.hop_limit}, {hop.length} B, +{since:.0f} µs"


def _prove(options: GlobalOptions) -> Report:
    _chapter(5, "The proof")
    _say(
        "Packets between all pairs, by TCP, UDP and ICMP, captured where they are sent, on the wire, and received."
    )
    report = verify(
        world_of(options), progress=lambda done, total: _progress(f"{done} of {total}", last=done == total)
    )
    click.echo()
    for rule in report.rules:
        good = rule.verdict in (Verdict.PROVED, Verdict.VACUOUS)
        mark = click.style("✓", fg="green") if good else click.style("✗", fg="red")
        click.echo(f"{INDENT}{mark} {_wrapped(rule.statement)}")
    if not report.holds:
        from podway.verify.report import to_text

        click.echo(to_text(report, width=page_width(), paint=paint))
    verdict = "All three rules of the Kubernetes network model hold." if report.holds else "The rules do not hold."
    click.secho(f"\n{INDENT}{verdict}", bold=True, fg="green" if report.holds else "red")
    click.echo(
        f"{INDENT}{report.probes} conversations, {report.packets} packets captured, {report.duration:.1f} s"
    )
    return report


def _label(pod: Pod) -> str:
    return f"pod {pod.metadata.namespace}/{pod.metadata.name}"


def _chapter(number: int, title: str) -> None:
    click.echo()
    click.secho(f"{number}. {title}", bold=True, fg="cyan")


def _say(text: str) -> None:
    click.echo(click.wrap_text(text, width=_width(), initial_indent=INDENT, subsequent_indent=INDENT))


def _done(text: str) -> None:
    _progress("", last=True)
    click.echo(f"{INDENT}{click.style('✓', fg='green')} {_wrapped(text)}")


def _wrapped(text: str) -> str:
    """Fold a text that stands behind a mark."""
    hanging = " " * (len(INDENT) + 2)
    return click.wrap_text(text, width=_width(), initial_indent=hanging, subsequent_indent=hanging).lstrip()


def _progress(text: str, *, last: bool = False) -> None:
    """Show what is happening, on a line that the next one overwrites; in a file, on none at all."""
    if os.isatty(1):
        click.echo(f"\r\x1b[2K{INDENT}{text}" if not last else "\r\x1b[2K", nl=False)


def _table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    _progress("", last=True)
    click.echo()
    for line in format_table(headers, rows, width=_width()).splitlines():
        click.echo(f"{INDENT}{line}")


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
