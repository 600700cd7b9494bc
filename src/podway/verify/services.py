"""Services, proven by packets: pods call them, and where the calls arrive is watched in every pod and node.

A call is a TCP connection that is opened and reset, or an empty UDP datagram (RFC 768): what listens behind the
Service hears no more than that. That it arrived is seen by raw sockets (man 7 raw), whether or not anybody
listens. SCTP is not tried.
"""

import contextlib
import errno
import math
import os
import random
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Self

import msgspec

from podway.api.addresses import Address, Family
from podway.api.kinds.service import Service
from podway.kernel import netns
from podway.plan.wiring import GATEWAY
from podway.prove.world import PodPoint, Point, World
from podway.services.explain import Explainer, Frontend
from podway.verify.policy import Denials
from podway.verify.report import FailedPair, Finding, RuleReport, Verdict

SERVICES = 5
"""The number, in a report, of what is proved where Services are served."""
RULES_OF_SERVICES = "every Service leads to each of its ready backends and to nobody else, and the source is kept"

MOST = 120
"""Of how many frontends, each called from each node, a sample is taken unless all are asked for."""

_PROTOCOLS = {"TCP": (6, socket.SOCK_STREAM), "UDP": (17, socket.SOCK_DGRAM)}
_ROUNDS = 3
_MOST_CALLS = 400
_MORE = 7
"""How sure n backends are all hit by n (ln n + this) calls: but for one in e to this."""
_PORTS = struct.Struct("!HH")
_BUFFER = 1 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_End = tuple[str, int]
"""The label of a point, and a port."""


class Call(msgspec.Struct, frozen=True):
    """A frontend that is called by a pod, and where calls may arrive.

    `denied` are backends that policies keep from the pod, `others` tells whether there are some that cannot be
    watched here.
    """

    client: PodPoint
    service: str
    frontend: Frontend
    expected: frozenset[_End]
    denied: frozenset[_End]
    others: bool

    @property
    def address(self) -> Address:
        """The frontend's address."""
        return ip_address(self.frontend.address)

    @property
    def pair(self) -> FailedPair:
        """Who calls what."""
        where = f"Service {self.service} ({self.frontend.address} port {self.frontend.port})"
        return FailedPair(
            self.client.label, where, Family.of(self.address).label, (self.frontend.protocol.lower(),)
        )

    def enough(self, came: "Came") -> bool:
        """Tell whether calls came wherever they should."""
        if not self.expected:
            return came.refused or bool(self.frontend.backends) or self.frontend.protocol != "TCP"
        return bool(came.at & self.expected) if self.frontend.affinity else came.at >= self.expected


class Came(msgspec.Struct):
    """What became of the calls: where they arrived, from which other sources, and how connections ended."""

    at: set[_End] = msgspec.field(default_factory=set)
    sources: set[str] = msgspec.field(default_factory=set)
    refused: bool = False


def plan_calls(world: World, denials: Denials) -> tuple[Call, ...]:
    """Return which frontends are to be called by whom: by one pod of each node that serves Services."""
    view = world.view
    if view.config.services == "off" or view.config.data_path == "kernel":
        return ()
    explainer = Explainer(obj for table in view.tables.values() for obj in table.values())
    points = {address: point for point in world.points.values() for address in point.addresses}
    clients = {pod.node: pod for pod in reversed(world.pods) if pod.node not in world.fallbacks}
    return tuple(
        call
        for service in explainer.services
        for client in clients.values()
        for frontend in explainer.explain(service, [client.node]).frontends
        if (call := _call(points, denials, client, service, frontend)) is not None
    )


def _call(
    points: Mapping[Address, Point], denials: Denials, client: PodPoint, service: Service, frontend: Frontend
) -> Call | None:
    source = client.address(Family.of(ip_address(frontend.address)))
    if source is None or frontend.protocol not in _PROTOCOLS or frontend.taken_by:
        return None
    expected: set[_End] = set()
    denied: set[_End] = set()
    others = False
    for backend in frontend.backends:
        point = points.get(address := ip_address(backend.address))
        if not backend.used_on:
            continue
        if point is None:
            others = True
            continue
        number = _PROTOCOLS[frontend.protocol][0]
        reason = denials.of(client, point, (source, address), number, backend.port)
        (denied if reason else expected).add((point.label, backend.port))
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    return Call(client, name, frontend, frozenset(expected), frozenset(denied), others)


def prove(
    world: World, calls: Sequence[Call], *, timeout: float, limit: int, seed: int
) -> Iterator[RuleReport | Finding]:
    """Call them; yield the rule and what is wrong. `limit` is how many are tried (0: all). Raises OSError."""
    if not calls:
        return
    chosen = random.Random(seed).sample(calls, min(limit or len(calls), len(calls)))
    wrong: dict[tuple[str, str], list[FailedPair]] = {}
    with _Watch(world) as watch:
        for call in chosen:
            if problem := _wrong(call, watch.hold(call, timeout)):
                wrong.setdefault(problem, []).append(call.pair)
    failed = sum(map(len, wrong.values()))
    verdict = Verdict.FAILED if wrong else Verdict.PROVED
    tried = len(chosen)
    yield RuleReport(SERVICES, RULES_OF_SERVICES, verdict, "frontends", tried - failed, tried, len(calls))
    for (found, advice), pairs in sorted(wrong.items(), key=lambda one: -len(one[1])):
        yield Finding((SERVICES,), "service", found, advice, pairs=tuple(pairs))


def _wrong(call: Call, came: Came) -> tuple[str, str] | None:
    look = "podway doctor; `podway status -o json` has `services`: whether it is in force on the caller's node"
    if strangers := came.at - call.expected:
        denied = strangers & call.denied
        what = "whom policies deny it" if denied else "which is none of its ready backends"
        return f"calls are led to {_names(denied or strangers)}, {what}", look
    if came.sources:
        return f"calls arrive from {', '.join(sorted(came.sources))}, not from the caller's own address", look
    if not call.frontend.backends and call.frontend.protocol == "TCP" and not came.refused:
        return "it has no backend, and connections are not refused at once", look
    if call.enough(came) or (call.others and came.at):
        return None
    return f"no call is led to {_names(call.expected - came.at)}", look


def _names(ends: Iterable[_End]) -> str:
    return ", ".join(f"{label} port {port}" for label, port in sorted(ends))


class _Watch:
    """Raw sockets in all points, which see what arrives there. Raises OSError and InvalidInput."""

    def __init__(self, world: World) -> None:
        self._stack = contextlib.ExitStack()
        self._sockets: list[tuple[Point, Family, int, socket.socket]] = []
        self._own: dict[str, int] = {}
        try:
            for point in world.points.values():
                fd = netns.open_path(point.netns) if point.netns else netns.current()
                self._stack.callback(os.close, fd)
                self._own[point.label] = fd
                for address in point.addresses:
                    netns.run(fd, partial(self._open, point, Family.of(address)))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, point: Point, family: Family) -> None:
        for number, _ in _PROTOCOLS.values():
            sock = self._stack.enter_context(
                socket.socket(family.af, socket.SOCK_RAW | socket.SOCK_NONBLOCK, number)
            )
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._sockets.append((point, family, number, sock))

    def hold(self, call: Call, timeout: float) -> Came:
        """Call a frontend until all that are expected were reached, or were not for long enough."""
        came = Came()
        ends = max(len(call.expected) + len(call.denied), 1)
        number = min(math.ceil(ends * (math.log(ends) + _MORE)), _MOST_CALLS)
        for _ in range(_ROUNDS):
            self._round(call, came, 4 if call.frontend.affinity else number, timeout)
            if call.enough(came):
                break
        return came

    def _round(self, call: Call, came: Came, number: int, timeout: float) -> None:
        family = Family.of(call.address)
        protocol, kind = _PROTOCOLS[call.frontend.protocol]
        watched = [one for one in self._sockets if one[1:3] == (family, protocol)]
        for *_, sock in watched:
            _drain(sock)
        with contextlib.ExitStack() as stack:

            def open_all() -> list[socket.socket]:
                return [
                    stack.enter_context(socket.socket(family.af, kind | socket.SOCK_NONBLOCK))
                    for _ in range(number)
                ]

            callers = netns.run(self._own[call.client.label], open_all)
            ports: set[int] = set()
            for sock in callers:
                if kind == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                code = sock.connect_ex((str(call.address), call.frontend.port))
                came.refused |= code == errno.ECONNREFUSED
                ports.add(sock.getsockname()[1])
                if kind == socket.SOCK_DGRAM:
                    with contextlib.suppress(ConnectionError):
                        sock.send(b"")
            with selectors.DefaultSelector() as selector:
                for point, _, _, sock in watched:
                    selector.register(sock, selectors.EVENT_READ, point)
                for sock in callers if kind == socket.SOCK_STREAM else ():
                    selector.register(sock, selectors.EVENT_WRITE)
                deadline = time.monotonic() + timeout
                while not call.enough(came) and (left := deadline - time.monotonic()) > 0:
                    for key, _ in selector.select(left):
                        caller = key.fileobj
                        assert isinstance(caller, socket.socket)
                        if key.data is not None:
                            self._note(call, key.data, family, caller, ports, came)
                            continue
                        selector.unregister(caller)
                        error = caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                        came.refused |= error == errno.ECONNREFUSED
            for point, _, _, sock in watched:  # whom the last of them reached
                self._note(call, point, family, sock, ports, came)

    def _note(
        self, call: Call, point: Point, family: Family, sock: socket.socket, ports: set[int], came: Came
    ) -> None:
        own = {str(call.client.address(family))}
        # Who is led to itself is called by its gateway (docs/services.md).
        own |= {str(GATEWAY[family])} if point == call.client else set()
        for source, data in _drain(sock):
            header = 4 * (data[0] & 15) if family is Family.IPV4 else 0
            near, far = _PORTS.unpack_from(data, header)
            if near in ports:  # so it is a call, and no answer
                came.at.add((point.label, far))
                came.sources |= {source} - own


def _drain(sock: socket.socket) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    while True:
        try:
            data, peer = sock.recvfrom(2048)
        except BlockingIOError:
            return found
        found.append((peer[0].partition("%")[0], data))
