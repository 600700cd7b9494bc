"""What an agent does for a trace: it tells what its kernel says, captures, and sends the probe.

It answers for its own node and that node's pods; whoever traces joins the answers. A pod's namespace is
named by its link, the node's own by an empty text. What a trace holds open ends by itself.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec
import structlog

from podway.agent.identity import kernel_instance
from podway.api.addresses import Address
from podway.api.lease import Lease, LeaseRecord
from podway.bgp.probe import path_mtu
from podway.bgp.speaker import BgpSpeaker
from podway.channel.admin import Method
from podway.errors import AgentError, InvalidInput, RoutingError
from podway.kernel.network import RTPROT_BIRD, Lookup, RouteRecord
from podway.probe.build import MARK_BYTES, Protocol
from podway.probe.facts import (
    ECHO_SECONDS,
    RouteLookup,
    ask_rejecting,
    ask_route,
    ask_setting,
    connection,
    dump_kernel_state,
)
from podway.probe.plain import plain, plain_kernel_state, plain_lookup
from podway.probe.session import Session
from podway.reconcile.enforcement import Enforcement
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

LIFETIME = 10.0
"""Seconds after which what a trace holds open is closed, whether it was told to or not."""

MOST_SESSIONS = 16

LARGEST_MTU = 65535

_PROBES_PORTS = range(1024, 65536)
"""Whoever may trace may not listen to services by the way."""

_SETTINGS = re.compile(r"net/ipv[46]/conf/[^/]+/(forwarding|rp_filter)")


class Tracing:
    """Answers the `trace.` methods of the agent's socket."""

    def __init__(self, state: NodeState, speaker: BgpSpeaker, enforcement: Enforcement) -> None:
        self._state = state
        self._speaker = speaker
        self._enforcement = enforcement
        self._sessions: dict[str, tuple[Session, asyncio.TimerHandle]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name."""
        calls: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "site": self.site,
            "ground": self.kernel_state,
            "way": self.lookup,
            "rejecting": self.rejecting,
            "setting": self.setting,
            "path_mtu": self.path_mtu,
            "prepare": self.prepare,
            "capture": self.capture,
            "send": self.send,
            "collect": self.collect,
            "end": self.end,
        }
        # These names are what agents of other versions ask for: they stay, whatever the functions are called.
        return {f"trace.{name}": Method(call, remote=True) for name, call in calls.items()}

    async def site(self, addresses: Iterable[str] = (), links: Iterable[str] = ()) -> dict[str, Any]:
        """Return the node's name, kernel and uplink, and the leases that hold these addresses or links.

        With why it does without the flow engine, where that is left to it (podway.reconcile.enforcement).
        """
        uplink, wanted, named = self._state.uplink, set(addresses), set(links)
        return {
            "node": self._state.node,
            "kernel": kernel_instance().partition("/")[0],
            "uplink": plain(uplink),
            "fallback": self._enforcement.fallback,
            "leases": [
                msgspec.structs.asdict(LeaseRecord.of(lease))
                for lease in self._state.leases.values()
                if wanted.intersection(map(str, lease.addresses)) or lease.attachment.link in named
            ],
        }

    async def kernel_state(self, link: str = "") -> dict[str, Any]:
        """Return the devices, addresses and neighbours of a namespace."""
        return await asyncio.to_thread(_kernel_state, self._path(link))

    async def lookup(self, destination: str, source: str = "", iif: str = "", link: str = "") -> dict[str, Any]:
        """Return which way a packet would go, and which of BIRD's sessions told the route."""
        origin = _address(source) if source else None
        lookup = await asyncio.to_thread(_lookup, self._path(link), _address(destination), origin, iif)
        session = "" if link or not isinstance(lookup, Lookup) else await self._session_of(lookup)
        return {"way": plain_lookup(lookup), "session": session}

    async def rejecting(self, destination: str, link: str = "") -> dict[str, Any] | None:
        """Return the narrowest route to an address if it is one that leads nowhere."""
        route = await asyncio.to_thread(_rejecting, self._path(link), _address(destination))
        return plain(route) if route else None

    async def setting(self, name: str, link: str = "") -> str | None:
        """Return a setting of forwarding or rp_filter by its path below /proc/sys."""
        if not _SETTINGS.fullmatch(name):
            raise InvalidInput(f"setting {name!r}: traces ask for forwarding and rp_filter only")
        return await asyncio.to_thread(ask_setting, self._path(link), name)

    async def path_mtu(self, address: str, largest: int, link: str = "") -> dict[str, Any] | None:
        """Measure how large packets pass from the node to another one's address; None if it answers none."""
        nodes = self._state.view.nodes.values()
        if link or not any(_address(address) in node.internal_addresses for node in nodes):
            raise InvalidInput(f"address {address}: paths are measured from node to node")
        if not 0 < largest <= LARGEST_MTU:
            raise InvalidInput(f"size {largest}: no packet is of that size")
        found = await path_mtu(_address(address), largest=largest, window=ECHO_SECONDS)
        return plain(found) if found else None

    async def prepare(
        self, trace: str, mark: str, protocol: str, destination: str, port: int = 0, link: str = ""
    ) -> dict[str, Any]:
        """Open the sender's end of a trace; return its address and port, or the `errno` that forbids it."""
        session, path = self._session(trace, mark), self._path(link)
        try:
            prepared = await asyncio.to_thread(
                session.prepare, path, _protocol(protocol), _address(destination), port
            )
        except OSError as error:
            return {"errno": error.errno}
        return plain(prepared)

    async def capture(self, trace: str, mark: str, port: int, links: Iterable[str]) -> None:
        """Begin to capture a trace's packets in these namespaces; `port` is the probe's own, 0 if it has none."""
        if port and port not in _PROBES_PORTS:
            raise InvalidInput(f"port {port}: no probe is sent from a port that services have")
        session = self._session(trace, mark)
        for link in links:
            path = self._path(link)
            try:
                await asyncio.to_thread(session.capture, path, link, port, whole=bool(link))
            except OSError as error:
                raise AgentError(f"cannot capture at {link or self._state.node}: {error.strerror}") from error

    async def send(self, trace: str, size: int) -> dict[str, Any]:
        """Send the prepared probe of so many bytes; return the `errno` of what forbade it, or 0."""
        try:
            self._known(trace).send(size)
        except OSError as error:
            return {"errno": error.errno}
        return {"errno": 0}

    async def collect(self, trace: str) -> dict[str, Any]:
        """Return the frames captured since the last call, by link."""
        return {link: [plain(frame) for frame in frames] for link, frames in self._known(trace).collect().items()}

    async def end(self, trace: str) -> None:
        """Close what a trace holds open."""
        session, timer = self._sessions.pop(trace, (None, None))
        if session and timer:
            timer.cancel()
            await asyncio.to_thread(session.close)

    def _session(self, trace: str, mark: str) -> Session:
        if trace in self._sessions:
            return self._sessions[trace][0]
        if len(self._sessions) >= MOST_SESSIONS:
            raise AgentError(f"{MOST_SESSIONS} traces run on this node already", hint="try again in a few seconds")
        try:
            raw = bytes.fromhex(mark)
        except ValueError:
            raw = b""
        if len(raw) != MARK_BYTES:
            raise InvalidInput(f"mark {mark!r}: is not {MARK_BYTES} bytes in hexadecimal")
        session = Session(raw)
        timer = asyncio.get_running_loop().call_later(LIFETIME, self._expire, trace)
        self._sessions[trace] = session, timer
        return session

    def _known(self, trace: str) -> Session:
        if trace not in self._sessions:
            raise AgentError(f"trace {trace} has ended", hint=f"a trace takes at most {LIFETIME:g} s")
        return self._sessions[trace][0]

    def _expire(self, trace: str) -> None:
        log.warning("a trace was not ended by who began it", trace=trace)
        task = asyncio.ensure_future(self.end(trace))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _path(self, link: str) -> str:
        """Return the path of a pod's namespace; empty for the node's own."""
        return self._lease(link).netns if link else ""

    def _lease(self, link: str) -> Lease:
        for attachment, lease in self._state.leases.items():
            if attachment.link == link:
                return lease
        raise AgentError(f"no pod of node {self._state.node} has the link {link}", hint="is the pod still there?")

    async def _session_of(self, lookup: Lookup) -> str:
        if lookup.protocol != RTPROT_BIRD:
            return ""
        try:
            routes = await self._speaker.routes()
        except RoutingError:
            return ""  # the route stands, whoever told it; `status` says what BIRD's trouble is
        return next((route.protocol for route in routes if route.best and route.network == lookup.matched), "")


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise InvalidInput(f"address {text!r}: {error}") from None


def _protocol(text: str) -> Protocol:
    if text not in tuple(Protocol):
        raise InvalidInput(f"protocol {text!r}: is none of {', '.join(Protocol)}")
    return Protocol(text)


def _kernel_state(path: str) -> dict[str, Any]:
    with connection(path) as there:
        return plain_kernel_state(dump_kernel_state(there))


def _lookup(path: str, destination: Address, source: Address | None, iif: str) -> RouteLookup:
    with connection(path) as there:
        return ask_route(there, destination, source, iif)


def _rejecting(path: str, destination: Address) -> RouteRecord | None:
    with connection(path) as there:
        return ask_rejecting(there, destination)
