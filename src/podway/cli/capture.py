"""`podway capture`: packets of one pod on all nodes that they cross, as one file for Wireshark."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from podway.cli.complete import complete_nodes, complete_pods
from podway.cli.help import examples
from podway.cli.options import GlobalOptions, cluster_options, read_all
from podway.errors import InvalidArgument, InvalidInput

if TYPE_CHECKING:
    from podway.api.addresses import Address
    from podway.api.resource import Resource
    from podway.capture.collect import Ask, Collection, Limits
    from podway.trace.names import Subject

LONGEST = 3600
"""Seconds that a capture takes at most."""


@click.command(
    epilog=examples(
        "podway capture web -o - | wireshark -k -i -   # live",
        "podway capture web -o - | tshark -r -",
        "podway capture web --duration 3 -o web.pcapng",
        "podway capture shop/web --filter 'tcp port 80 and host shop/client' -c 100",
    )
)
@click.argument("pod", metavar="POD", shell_complete=complete_pods)
@click.option(
    "--filter", "expression", metavar="EXPR", help="Of its packets these only, as for tcpdump: 'tcp port 80'."
)
@click.option(
    "--duration",
    metavar="SECONDS",
    type=click.FloatRange(0, LONGEST, min_open=True),
    default=60.0,
    show_default=True,
    help="How long.",
)
@click.option("-c", "--count", metavar="N", type=click.IntRange(1), help="After so many packets it is enough.")
@click.option(
    "--size",
    metavar="MIB",
    type=click.IntRange(1, 1 << 20),
    default=100,
    show_default=True,
    help="So much at most.",
)
@click.option(
    "--snaplen",
    metavar="BYTES",
    type=click.IntRange(1, 65535),
    default=65535,
    show_default=True,
    help="Of each packet its beginning.",
)
@click.option(
    "-o", "--output", metavar="FILE", help="Where to; - for standard output.  [default: podway-….pcapng]"
)
@click.option(
    "--node", "nodes", metavar="NODE", multiple=True, shell_complete=complete_nodes, help="On these nodes only."
)
@click.option("--remote", is_flag=True, help="Ask over the network, also an agent on this machine.")
@cluster_options
@click.pass_obj
def capture(
    options: GlobalOptions,
    *,
    pod: str,
    expression: str | None,
    duration: float,
    count: int | None,
    size: int,
    snaplen: int,
    output: str | None,
    nodes: tuple[str, ...],
    remote: bool,
) -> None:
    """Capture the packets of one POD on all nodes that they cross, bare and encapsulated, into one pcapng file.

    Wireshark and tshark show of each packet where it was seen (the node, the device), and as a comment what the
    node decided of its flow, and by which rule. After --duration, --count, --size or ^C it ends.

    Exit status 1: a node did not do its part; what the others captured is there.
    """
    from podway.capture.collect import Collection, Limits
    from podway.cli.agents import agents
    from podway.probe.expression import Either, compiled, of_addresses, parse

    known = agents(options, nodes, remote=remote, relayed=False)
    resources = options.run(read_all).items
    subject = _subject(pod, resources)
    wanted = of_addresses(subject.addresses)
    if expression is not None:
        wanted = Either(wanted, parse(expression, _resolver(resources)), both=True)
    compiled(wanted, snaplen)
    asked = _crossed(known, subject, wanted, resources, stated=bool(nodes))
    path = output or f"podway-{subject.pod.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.pcapng"
    collection = Collection(
        asked,
        str(wanted),
        pod=subject.pod,
        addresses=[str(address) for address in subject.addresses],
        snap=snaplen,
        tell=_tell,
    )
    began = time.monotonic()
    with _opened(path) as file:
        if path != "-":
            _tell(f"capturing {subject.pod} on {', '.join(asked)} for {duration:g} s; ^C ends it")
        _write(collection, Limits(duration, count or 0, size << 20), file)
    for node, lost in sorted(collection.lost.items()):
        _tell(f"{node} lost {lost} packets: more came than its buffer holds; --filter or --snaplen make it less")
    _tell(
        f"{collection.packets} packets in {time.monotonic() - began:.1f} s" + (f": {path}" if path != "-" else "")
    )
    click.get_current_context().exit(1 if collection.failed else 0)


def _subject(text: str, resources: "Iterable[Resource]") -> "Subject":
    """Return the pod that is meant. Raises InvalidInput."""
    from podway.trace.names import resolve

    subject = resolve(text, resources)
    if not subject.pod:
        raise InvalidArgument(
            f"{subject.label} has no network of a pod's own", hint="name a pod: `podway get pods -A` lists them"
        )
    return subject


def _resolver(resources: "Sequence[Resource]") -> "Callable[[str], Iterable[Address]]":
    from podway.trace.names import resolve

    return lambda text: resolve(text, resources).addresses


def _crossed(
    asked: "Mapping[str, Ask]",
    subject: "Subject",
    wanted: Any,
    resources: "Iterable[Resource]",
    *,
    stated: bool,
) -> "Mapping[str, Ask]":
    """Return the agents to ask: all; of very many those of the pod's node and of nodes in the filter."""
    from podway.api.kinds.address_block import AddressBlock
    from podway.api.kinds.node import Node
    from podway.capture.collect import MOST_NODES
    from podway.probe.expression import nets

    if len(asked) <= MOST_NODES:
        return asked
    if stated:
        raise InvalidArgument(f"--node: {len(asked)} nodes are too many", hint=f"name at most {MOST_NODES}")
    named = [net for net in nets(wanted) if net.prefixlen == net.max_prefixlen]
    found = {subject.node}
    for one in resources:
        if isinstance(one, AddressBlock) and any(
            net.network_address in one.network for net in named if net.version == one.network.version
        ):
            found.add(one.spec.node)
        if isinstance(one, Node) and any(net.network_address in one.internal_addresses for net in named):
            found.add(one.metadata.name)
    chosen = {name: ask for name, ask in asked.items() if name in sorted(found)[:MOST_NODES]}
    if not chosen:
        raise InvalidInput(f"no agent of node {subject.node} can be asked", hint="see `podway status`")
    _tell(f"of {len(asked)} nodes only {', '.join(chosen)} are asked: --node, or `host` in --filter, adds others")
    return chosen


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        if sys.stdout.isatty():
            raise InvalidArgument(
                "packets are nothing for a terminal",
                hint="pipe them: … -o - | tshark -r -, or name a file with -o",
            )
        yield sys.stdout.buffer
        return
    try:
        descriptor = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidArgument(
            f"{path}: {error.strerror}", hint="name a file that can be written: -o FILE"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        yield file


def _write(collection: "Collection", limits: "Limits", file: BinaryIO) -> None:
    """Write what is captured until that ends, by itself or by ^C, or until nobody reads it any more."""

    def stop(number: int, _frame: object) -> None:
        collection.stop()
        signal.signal(number, before[number])  # whoever asks twice does not want to wait

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.closing(collection.run(limits)) as pieces:
            for piece in pieces:
                file.write(piece)
                if not piece:
                    file.flush()
        file.flush()
    except BrokenPipeError:
        # Python would try to write the rest when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    except OSError as error:
        raise InvalidArgument(f"packets cannot be written: {error.strerror}", hint="is the disk full?") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(text: str) -> None:
    from podway.cli.flows import plain

    click.echo(f"podway: {plain(text)}", err=True)
