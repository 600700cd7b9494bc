"""`podway trace`: follow a packet from one place to another: as planned, as the kernels say, and as it went."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from podway.cli.help import examples
from podway.cli.options import GlobalOptions, cluster_options, read_network
from podway.errors import InvalidInput

if TYPE_CHECKING:
    from podway.api.addresses import Address
    from podway.api.kinds.service import Service
    from podway.api.resource import Resource
    from podway.trace.names import Hosts
    from podway.trace.report import TraceReport


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a pod, with its namespace unless that is `default`, of a node, or of a Service."""
    from podway.api.kinds.node import Node
    from podway.api.kinds.pod import Pod
    from podway.api.kinds.service import Service
    from podway.cli.complete import objects

    pods = [f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in objects(ctx, Pod)]
    names = [
        *(f"service/{one.metadata.namespace}/{one.metadata.name}" for one in objects(ctx, Service)),
        *(name.removeprefix("default/") for name in pods),
        *(node.metadata.name for node in objects(ctx, Node)),
    ]
    return [name for name in names if name.startswith(incomplete)]


@click.command(
    epilog=examples(
        "podway trace web client",
        "podway trace shop/client 10.244.2.7 --port 80",
        "podway trace node1 web --proto udp -o json",
        "podway trace shop/client web --full           # all that plan, kernel and probe say",
        "podway trace web 192.0.2.1 --dry-run",
        "podway trace client service/web               # to the backend that its node chooses",
        "podway trace web outside --port 80            # in a lab that has the host: podway lab outside",
    )
)
@click.argument("source", metavar="FROM", shell_complete=_complete)
@click.argument("target", metavar="TO", shell_complete=_complete)
@click.option(
    "--port",
    metavar="P",
    type=click.IntRange(1, 65535),
    help="TO's port. Without it: one on which hardly anybody listens.",
)
@click.option(
    "--proto",
    type=click.Choice(["tcp", "udp", "icmp"], case_sensitive=False),
    help="By what the probe is sent.  [default: tcp with --port, else icmp]",
)
@click.option("-4", "only", flag_value="4", help="IPv4 only.")
@click.option("-6", "only", flag_value="6", help="IPv6 only.")
@click.option("--dry-run", is_flag=True, help="Send nothing: plan and kernels only.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True, max=4),
    default=1.0,
    show_default=True,
    help="How long to wait for an answer.",
)
@click.option("--full", is_flag=True, help="All that plan, kernel and probe say, where they agree, too.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the report.")
@cluster_options
@click.pass_obj
def trace(
    options: GlobalOptions,
    *,
    source: str,
    target: str,
    port: int | None,
    proto: str | None,
    only: str | None,
    dry_run: bool,
    timeout: float,
    full: bool,
    output: Literal["text", "json"],
) -> None:
    """Show the way of a packet FROM one place TO another, and back.

    FROM and TO are pods (web, shop/web), nodes or addresses, or a lab's host `outside`. TO may be a Service, by
    name or address: then one of its backends is followed. At each hop: what Podway
    planned there, what the kernel says, and what a real probe showed; in one line where all three agree.

    Exit status 0: delivered both ways (with --dry-run: as far as the kernels say). 1: not.
    """
    from podway.trace.page import to_text
    from podway.trace.report import to_json

    report = follow(
        options,
        source,
        target,
        protocol=proto or "",
        port=port or 0,
        families=(int(only),) if only else (),
        dry_run=dry_run,
        timeout=timeout,
    )
    click.echo(to_json(report) if output == "json" else to_text(report, width=_width(), full=full, paint=_paint))
    click.get_current_context().exit(0 if report.delivered else 1)


def follow(
    options: GlobalOptions,
    source: str,
    target: str,
    *,
    protocol: str,
    port: int,
    families: Collection[int] = (),
    dry_run: bool,
    timeout: float,
) -> "TraceReport":
    """Return the report of a trace between two places as people name them; all else as the command's options.

    Raises UsageError for a port where the protocol has none.
    """
    from podway.api.addresses import Family
    from podway.cli.agents import asker
    from podway.probe.build import Protocol
    from podway.trace.names import resolve
    from podway.trace.services import way
    from podway.trace.trace import trace as run

    wanted = Protocol((protocol or ("tcp" if port else "icmp")).upper())
    if port and wanted is Protocol.ICMP:
        raise click.UsageError("--port means nothing to ICMP: leave it out, or choose --proto tcp or udp")
    resources = options.run(read_network).items
    beside = _beside(options)
    hosts = {name: addresses for name, (addresses, _) in beside.items()}
    chosen = [Family(number) for number in families]
    origin, service = resolve(source, resources, hosts), _service(target, resources, hosts)
    through: Mapping[Family, Any] = {}
    if service is not None:
        asked = Protocol(protocol.upper()) if protocol else None
        found = way(service, target, origin, resources, protocol=asked, port=port, families=chosen)
        towards, wanted, port, through = found.target, found.protocol, found.port, found.through
    else:
        towards = resolve(target, resources, hosts)
    return run(
        resources,
        asker(options, {name: ask for name, (_, ask) in beside.items()}),
        origin,
        towards,
        protocol=wanted,
        port=port,
        families=chosen,
        through=through,
        dry_run=dry_run,
        timeout=timeout,
        hosts=hosts,
    )


def _service(text: str, resources: Sequence["Resource"], hosts: "Hosts") -> "Service | None":
    """Return the Service that a text names: nobody's pod, node or host of that name is meant before it."""
    from ipaddress import ip_address

    from podway.trace.names import resolve
    from podway.trace.services import find_service

    try:
        ip_address(text)
    except ValueError:
        try:
            resolve(text, resources, hosts)
        except InvalidInput:
            return find_service(text, resources)
        return None
    return find_service(text, resources)


def _beside(options: GlobalOptions) -> dict[str, tuple[Sequence["Address"], Callable[..., Any]]]:
    """Return the hosts beside the cluster that can be asked: of a lab, its `outside`."""
    from podway.lab.paths import lab_dir

    if options.store is not None or not lab_dir(options.lab).exists():
        return {}
    from podway.lab.outside_tracing import beside

    return beside(options.lab)


_COLOURS: dict[str, dict[str, Any]] = {
    "title": {"bold": True},
    "hop": {"bold": True},
    "link": {"dim": True},
    "good": {"fg": "green"},
    "bad": {"fg": "red"},
}


def _paint(line: str, kind: str) -> str:
    return click.style(line, **_COLOURS.get(kind, {}))


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
