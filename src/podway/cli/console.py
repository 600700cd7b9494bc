"""`podway console`: the cluster in a browser, from the sources that the other commands ask."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from podway.cli.help import examples
from podway.cli.options import GlobalOptions, cluster_options
from podway.console.limits import AT_ONCE, AT_ONCE_EACH, STREAMS, STREAMS_EACH
from podway.errors import AgentError, InvalidArgument

if TYPE_CHECKING:
    from podway.console.sources import Question
    from podway.flows.heard import Heard, Summed
    from podway.store.base import Everything

LISTEN = "127.0.0.1:8470"

AGENTS_KEPT = 10.0
"""Seconds for which it is remembered how agents are asked: that may need a look into the store."""


@click.command(
    epilog=examples(
        "podway console",
        "podway console --lab demo --listen 127.0.0.1:9000",
        "podway --store kubernetes: console",
        "podway console --listen 192.0.2.7:8470 --anyone   # whoever reaches that port sees the cluster",
        "podway console --requests-each 64 --streams-each 64   # all browsers come by way of one proxy",
    )
)
@click.option(
    "--listen", metavar="ADDRESS:PORT", default=LISTEN, show_default=True, help="Where (port 0: any that is free)."
)
@click.option(
    "--anyone", is_flag=True, help="Listen at an address that other machines reach: they need no password."
)
@click.option(
    "--host", "hosts", metavar="NAME", multiple=True, help="A name by which browsers may ask it; repeat."
)
@click.option(
    "--requests-each",
    metavar="N",
    type=click.IntRange(1, AT_ONCE),
    default=AT_ONCE_EACH,
    show_default=True,
    help=f"How many of the {AT_ONCE} requests that are worked at may be one address's.",
)
@click.option(
    "--streams-each",
    metavar="N",
    type=click.IntRange(1, STREAMS),
    default=STREAMS_EACH,
    show_default=True,
    help=f"How many of the {STREAMS} browsers that follow flows may be at one address.",
)
@cluster_options
@click.pass_obj
def console(
    options: GlobalOptions,
    *,
    listen: str,
    anyone: bool,
    hosts: tuple[str, ...],
    requests_each: int,
    streams_each: int,
) -> None:
    """Show the cluster in a browser: map, flows, traces, policies, Services, findings. It only reads.

    It goes on until ^C. It asks what the other commands ask, with the rights of whoever started it; who can open
    its port sees the same. So it listens on this machine alone, unless told otherwise.
    """
    from podway.metrics.server import parse_endpoint

    host, port = parse_endpoint(listen, any_port=True)
    if not anyone and not (host and ip_address(host).is_loopback):
        raise InvalidArgument(
            f"--listen: other machines may reach {host or 'all addresses'}, and the console asks for no password",
            hint=f"leave it at {LISTEN} and forward the port (ssh -L), or say --anyone",
        )
    from podway.console.server import Console, serve

    sources = CommandSources(options)
    if options.store is None:
        options.store_url()  # a lab that does not stand is told now, not in the browser
    shown = f"[{host}]" if ":" in host else host or "127.0.0.1"

    def told(number: int) -> None:
        click.echo(f"console of {sources.cluster}: http://{shown}:{number}/")

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        site = Console(sources, hosts=hosts, requests_each=requests_each, streams_each=streams_each)
        await serve(site, host, port, told, stop)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


class CommandSources:
    """The sources of a console (podway.console.sources.Sources): what the other commands find out."""

    def __init__(self, options: GlobalOptions) -> None:
        from podway.api.redaction import Redactor

        self._options = options
        self._redactor = Redactor()
        self._agents: tuple[float, dict[str, Any]] | None = None

    @property
    def cluster(self) -> str:
        """What the cluster is called."""
        if self._options.store is not None:
            return self._redactor.text(self._options.store)
        return f"lab {self._options.lab}"

    def objects(self) -> "Everything":
        """See Sources. Kinds that hold secrets are not read at all."""
        from podway.api.kinds.address_block import AddressBlock
        from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
        from podway.api.kinds.endpoint_slice import EndpointSlice
        from podway.api.kinds.ip_pool import IPPool
        from podway.api.kinds.namespace import Namespace
        from podway.api.kinds.network_config import NetworkConfig
        from podway.api.kinds.network_policy import NetworkPolicy
        from podway.api.kinds.node import Node
        from podway.api.kinds.node_lease import NodeLease
        from podway.api.kinds.pod import Pod
        from podway.api.kinds.service import Service
        from podway.store.base import list_all

        kinds = (
            AddressBlock,
            ClusterNetworkPolicy,
            EndpointSlice,
            IPPool,
            Namespace,
            NetworkConfig,
            NetworkPolicy,
            Node,
            NodeLease,
            Pod,
            Service,
        )
        return self._options.run(lambda store: list_all(store, kinds))

    def doubts(self) -> Mapping[str, str]:
        """See Sources."""
        from podway.cli.agents import doubts

        return doubts(self._options)

    def status(self) -> Mapping[str, Any]:
        """See Sources."""
        from podway.cli.agent import shape_of
        from podway.cli.agents import ask_all

        answers = ask_all(self._asked(()), "status")
        shapes = {node: shape_of(node, answer) for node, answer in answers.items()}
        # This host's agent alone knows which node it is.
        return {str(shape.get("node", node)): shape for node, shape in shapes.items()}

    def routes(self, nodes: Collection[str]) -> Mapping[str, Any]:
        """See Sources."""
        from podway.cli.agents import ask_all

        return ask_all(self._asked(nodes), "routes")

    def diagnosis(self) -> Mapping[str, Any]:
        """See Sources."""
        from podway.cli.doctor import shape_of
        from podway.health.cluster import examine

        return shape_of(examine(self._asked(()), whole=True))

    def question(self, filters: Mapping[str, Sequence[str]], now: float) -> "Question":
        """See Sources."""
        from podway.cli.flows import question
        from podway.console.sources import Question

        asked: dict[str, Any] = {}
        for name, values in filters.items():
            match name:
                case "since" | "until" | "selector":
                    asked[name] = values[-1]
                case "from" | "to" | "policy" | "dns":
                    asked[_FIELDS[name]] = values
                case "port":
                    asked["ports"] = [_port(text) for text in values]
                case "node":
                    continue
                case _:
                    asked[f"{name}s"] = values
        return Question(question(now, **asked), tuple(filters.get("node", ())))

    def flows(self, question: "Question", after: Mapping[str, int] | None = None, since: float = 0.0) -> "Heard":
        """See Sources."""
        from podway.cli.flows import hear

        return hear(self._asked(question.nodes), question.params, after, since)

    def sums(self, question: "Question", by: str) -> "Summed":
        """See Sources."""
        from podway.cli.flows import HOUR, SUMS, sum_up

        if by not in SUMS:
            raise InvalidArgument(f"by: {by!r} is none", hint=f"there are {', '.join(SUMS)}")
        return sum_up(self._asked(question.nodes), by, {"since": time.time() - HOUR, **question.params})

    def trace(
        self, source: str, target: str, *, protocol: str, port: int, families: Sequence[int], dry_run: bool
    ) -> bytes:
        """See Sources."""
        from podway.cli.trace import follow
        from podway.trace.report import to_json

        try:
            report = follow(
                self._options,
                source,
                target,
                protocol=protocol,
                port=port,
                families=families,
                dry_run=dry_run,
                timeout=1.0,
            )
        except click.UsageError as error:
            raise InvalidArgument(error.message) from error
        return to_json(report).encode()

    def _asked(self, nodes: Collection[str]) -> dict[str, Any]:
        """Return how to ask the agents of the nodes named, of all if none are."""
        from podway.cli.agents import agents

        now = time.monotonic()
        if self._agents is None or now - self._agents[0] > AGENTS_KEPT:
            self._agents = now, agents(self._options)
        known = self._agents[1]
        if missing := [name for name in nodes if name not in known]:
            raise AgentError(f"no agent of node {missing[0]} can be asked from here", hint="see `podway status`")
        return {name: known[name] for name in nodes or known}


_FIELDS = {"from": "sources", "to": "destinations", "policy": "policies", "dns": "names"}


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6):
        raise InvalidArgument(f"port: {text[:40]!r} is no number", hint="from 1 to 65535")
    return int(text)
