"""Sending one probe and watching it: captures on every node of the way, the probe, and what was seen of it."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

import msgspec

from podway.api.addresses import Address
from podway.errors import PodwayError
from podway.plan.path import End
from podway.probe.build import MARK_BYTES, Protocol, sequence_of
from podway.probe.capture import Sighting, sighting
from podway.probe.packet import TCP_ACK, TCP_RST, TCP_SYN, Echo, IcmpError, Packet, Tcp, Udp
from podway.probe.plain import read_frames
from podway.prove.path import Leg, Refusal
from podway.prove.world import Place, PodPoint
from podway.trace.agents import Agents

_LOOK_EVERY = 0.03
"""Seconds between looks for the answer."""

_STRAGGLERS = 0.02
"""Seconds to wait after the answer: the last devices' captures are a little behind."""

_NOBODY_LISTENS = frozenset(("port unreachable", "protocol unreachable"))


class Sent(msgspec.Struct, frozen=True):
    """A probe that was sent, or was to be sent: `errno` says what forbade it, `problem` why nobody tried."""

    protocol: Protocol
    source: Address | None = None
    source_port: int = 0
    port: int = 0
    size: int = 0
    errno: int = 0
    problem: str = ""


class Evidence(msgspec.Struct, frozen=True):
    """What a probe showed. `refused` says how it was answered that nobody listens, empty if somebody does.

    `watched` are the labels of the points where it was captured; `small_pass` says that a smaller packet,
    sent after this one, was answered.
    """

    sent: Sent
    request: Leg
    answer: Leg
    refused: str = ""
    watched: frozenset[str] = frozenset()
    small_pass: bool = False


def send(
    agents: Agents,
    places: Iterable[Place],
    sender: Place,
    target: End,
    *,
    protocol: Protocol,
    port: int,
    size: int,
    timeout: float,
) -> Evidence:
    """Send one probe and capture it at all these places; `timeout` is how long an answer may take, in seconds.

    Agents that do not answer, and places that cannot be captured, are left out.
    """
    mark = os.urandom(MARK_BYTES)
    trial = _Trial(agents, mark, sender, target.address, protocol)
    places = tuple(places)
    try:
        sent = trial.prepare(port)
        if sent.errno or sent.problem:
            # It never left, wherever anybody may have looked.
            return Evidence(sent, Leg(), Leg(), watched=frozenset(place.label for place in places))
        for node, points in _by_node(places).items():
            trial.capture(node, points, sent.source_port if protocol is not Protocol.ICMP else 0)
        return trial.hold(msgspec.structs.replace(sent, size=size), timeout)
    finally:
        trial.end()


class _Trial:
    """One probe in the making."""

    def __init__(
        self, agents: Agents, mark: bytes, sender: Place, destination: Address, protocol: Protocol
    ) -> None:
        self._agents = agents
        self._mark = mark
        self._sender = sender
        self._destination = destination
        self._protocol = protocol
        self._name = secrets.token_hex(8)
        self._points: dict[str, dict[str, Place]] = {sender.node: {}}
        """Where it is captured, by node and link."""
        self._seen: list[Sighting] = []

    def prepare(self, port: int) -> Sent:
        try:
            told = self._agents.call(
                self._sender.node,
                "trace.prepare",
                trace=self._name,
                mark=self._mark.hex(),
                protocol=self._protocol,
                destination=str(self._destination),
                port=port,
                link=_link(self._sender),
            )
        except PodwayError as error:
            return Sent(self._protocol, problem=error.message)
        if "errno" in told:
            return Sent(self._protocol, port=port, errno=told["errno"])
        shown = 0 if self._protocol is Protocol.ICMP else told["port"]
        return Sent(self._protocol, ip_address(told["source"]), told["source_port"], shown)

    def capture(self, node: str, points: Sequence[Place], port: int) -> None:
        for point in points:
            with contextlib.suppress(PodwayError):  # a place without captures: the trace shows it as not seen
                self._agents.call(
                    node, "trace.capture", trace=self._name, mark=self._mark.hex(), port=port, links=[_link(point)]
                )
                self._points.setdefault(node, {})[_link(point)] = point

    def hold(self, sent: Sent, timeout: float) -> Evidence:
        try:
            told = self._agents.call(self._sender.node, "trace.send", trace=self._name, size=sent.size)
        except PodwayError as error:
            return Evidence(msgspec.structs.replace(sent, problem=error.message), Leg(), Leg())
        if told["errno"]:
            sent = msgspec.structs.replace(sent, errno=told["errno"])
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not sent.errno:
            self._collect(self._sender.node)
            if _came_back(self._sorted(sent), self._sender):
                time.sleep(_STRAGGLERS)
                break
            time.sleep(_LOOK_EVERY)
        for node in self._points:
            self._collect(node)
        return self._sorted(sent)

    def end(self) -> None:
        for node in self._points:
            with contextlib.suppress(PodwayError):  # it ends by itself, a little later
                self._agents.call(node, "trace.end", trace=self._name)

    def _collect(self, node: str) -> None:
        try:
            told = self._agents.call(node, "trace.collect", trace=self._name)
        except PodwayError:
            return  # what this node saw is not known: the trace shows it as not seen
        for link, frames in told.items():
            label = self._points[node][link].label
            self._seen += [one for frame in read_frames(frames) if (one := sighting(frame, label))]

    def _sorted(self, sent: Sent) -> Evidence:
        found = sort(self._mark, sent, self._destination, sorted(self._seen, key=lambda one: one.time))
        watched = frozenset(point.label for points in self._points.values() for point in points.values())
        return msgspec.structs.replace(found, watched=watched)


def sort(mark: bytes, sent: Sent, destination: Address, seen: Sequence[Sighting]) -> Evidence:
    """Tell what each packet is: the request, its answer, or a refusal of either. Pure."""
    request, answer, refused = Leg(), Leg(), ""
    for one in seen:
        packet, transport = one.packet, one.packet.transport
        if isinstance(transport, IcmpError):
            quoted = _kind(mark, sent, transport.quoted) if transport.quoted else ""
            if quoted == "request" and packet.source == destination and transport.meaning in _NOBODY_LISTENS:
                refused = f"{transport.meaning} (ICMP)"
                answer.sightings.append(one)
            elif quoted:
                leg = request if quoted == "request" else answer
                leg.refusal = leg.refusal or Refusal(
                    f"{transport.meaning} (ICMP)", packet.source, transport.mtu, one
                )
            continue
        match _kind(mark, sent, packet):
            case "request":
                request.sightings.append(one)
            case "answer":
                answer.sightings.append(one)
                if isinstance(transport, Tcp) and transport.flags & TCP_RST:
                    refused = "connection refused (TCP RST)"
    return Evidence(sent, request, answer, refused)


def _kind(mark: bytes, sent: Sent, packet: Packet | None) -> str:
    """Return `request`, `answer`, or nothing for a packet that is neither."""
    if packet is None:
        return ""
    transport = packet.transport
    if isinstance(transport, Tcp):
        sequence = sequence_of(mark)
        if transport.sequence == sequence and transport.flags & (TCP_SYN | TCP_ACK) in (TCP_SYN, 0):
            return "request"
        acknowledges = transport.acknowledgement == (sequence + 1) & 0xFFFFFFFF
        return "answer" if acknowledges and transport.flags & (TCP_SYN | TCP_RST) else ""
    marked = packet.payload.startswith(mark[:4])
    if isinstance(transport, Echo):
        return "" if not marked else "request" if transport.request else "answer"
    if isinstance(transport, Udp):
        if transport.destination_port == sent.source_port:
            return "answer"
        return "request" if marked or transport.source_port == sent.source_port else ""
    return ""


def _came_back(evidence: Evidence, sender: Place) -> bool:
    return any(one.point == sender.label and not one.outgoing for one in evidence.answer.sightings) or (
        evidence.request.refusal is not None
    )


def _by_node(places: Iterable[Place]) -> Mapping[str, list[Place]]:
    grouped: dict[str, list[Place]] = {}
    for point in {point.label: point for point in places}.values():
        grouped.setdefault(point.node, []).append(point)
    return grouped


def _link(point: Place) -> str:
    return point.host_link if isinstance(point, PodPoint) else ""
