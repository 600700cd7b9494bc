"""From packets seen to journeys: which probe a packet belongs to, and where it should have passed."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from podway.api.addresses import Address
from podway.probe.build import Protocol
from podway.probe.capture import Sighting
from podway.probe.packet import TCP_ACK, TCP_RST, TCP_SYN, Echo, IcmpError, Packet, Tcp
from podway.prove.probe import Result, Step, read_tag
from podway.prove.world import PodPoint, Point, World


class Stage(msgspec.Struct, frozen=True):
    """One device that a packet passes on its way: into it (`outgoing` false) or out of it."""

    point: str
    interface: str
    outgoing: bool
    role: Literal["pod", "host link", "overlay", "uplink"]
    """`overlay` is a device above the one that carries the packet: an overlay device, or a bridge."""

    def matches(self, sighting: Sighting) -> bool:
        """Tell whether a packet was seen just here."""
        place = (sighting.point, sighting.interface, sighting.outgoing)
        return place == (self.point, self.interface, self.outgoing)

    @property
    def words(self) -> str:
        """Where and which way, for people."""
        return f"{'leaving' if self.outgoing else 'entering'} by {self.interface} of {self.point}"


class Refusal(msgspec.Struct, frozen=True):
    """Somebody answered that a packet cannot be delivered: an ICMP error or a TCP reset."""

    meaning: str
    by: Address
    mtu: int
    sighting: Sighting
    """Where the refusal was first seen."""


class Leg(msgspec.Struct):
    """One step of one probe: every place where its packet was seen, in the order of time."""

    sightings: list[Sighting] = msgspec.field(default_factory=list)
    refusal: Refusal | None = None


def planned_path(world: World, sender: Point, receiver: Point, overlay: str = "") -> tuple[Stage, ...]:
    """Return the devices that a packet from one point to another passes if all is as planned.

    `overlay` is the VXLAN device that wraps packets between nodes, if one does.

    What the sender's or receiver's own namespace does beyond its first device is not listed, so that the
    path between a node and its own pod has two stages.
    """
    stages: list[Stage] = []
    if isinstance(sender, PodPoint):
        stages.append(Stage(sender.label, sender.ifname, outgoing=True, role="pod"))
        stages.append(Stage(f"node {sender.node}", sender.host_link, outgoing=False, role="host link"))
    if sender.node != receiver.node:
        for name, outgoing in ((sender.node, True), (receiver.node, False)):
            node = world.node(name)
            if node is not None:
                wire = Stage(node.label, node.uplink, outgoing, "uplink")
                above = [Stage(node.label, overlay, outgoing, "overlay")] if overlay else []
                stages += [*above, wire] if outgoing else [wire, *above]
    if isinstance(receiver, PodPoint):
        stages.append(Stage(f"node {receiver.node}", receiver.host_link, outgoing=True, role="host link"))
        stages.append(Stage(receiver.label, receiver.ifname, outgoing=False, role="pod"))
    return tuple(stages)


def legs_of(magic: bytes, results: Iterable[Result], seen: Sequence[Sighting]) -> dict[int, dict[Step, Leg]]:
    """Sort what was seen by probe number and step; `seen` is in the order of time."""
    tracer = _Tracer(magic, results, seen)
    legs: dict[int, dict[Step, Leg]] = {number: {} for number in tracer.numbers}
    for sighting in seen:
        packet = sighting.packet
        transport = packet.transport
        refused = isinstance(transport, IcmpError) or (isinstance(transport, Tcp) and transport.flags & TCP_RST)
        identity = tracer.refused(packet) if refused else tracer.identify(packet)
        if identity is None or identity[0] not in legs:
            continue
        leg = legs[identity[0]].setdefault(identity[1], Leg())
        if not refused:
            leg.sightings.append(sighting)
        elif leg.refusal is None:
            meaning, mtu = ("connection refused (TCP RST)", 0)
            if isinstance(transport, IcmpError):
                meaning, mtu = f"{transport.meaning} (ICMP)", transport.mtu
            leg.refusal = Refusal(meaning, packet.source, mtu, sighting)
    return legs


class _Tracer:
    """Knows a probe's packets by their tag, and those of TCP that have no payload by sequence number.

    Neither is changed by rewriting addresses and ports: the initial sequence number is learned where the
    sender's own SYN is seen, as it left the socket.
    """

    def __init__(self, magic: bytes, results: Iterable[Result], seen: Iterable[Sighting]) -> None:
        self._magic = magic
        flows: dict[tuple[str, int, Address], int] = {}
        self.numbers: list[int] = []
        for result in results:
            probe = result.probe
            self.numbers.append(probe.number)
            if probe.protocol is Protocol.TCP:
                flows[probe.sender.label, result.port, probe.destination] = probe.number
        self._initial: dict[int, int] = {}
        for sighting in seen:
            packet, transport = sighting.packet, sighting.packet.transport
            if isinstance(transport, Tcp) and transport.flags & (TCP_SYN | TCP_ACK) == TCP_SYN:
                flow = sighting.point, transport.source_port, packet.destination
                if sighting.outgoing and flow in flows:
                    self._initial.setdefault(transport.sequence, flows[flow])

    def identify(self, packet: Packet) -> tuple[int, Step] | None:
        transport = packet.transport
        if isinstance(transport, Tcp) and transport.flags & TCP_SYN:
            if transport.flags & TCP_ACK:
                number = self._initial.get((transport.acknowledgement - 1) & 0xFFFFFFFF)
                return None if number is None else (number, Step.SYN_ACK)
            number = self._initial.get(transport.sequence)
            return None if number is None else (number, Step.SYN)
        tag = read_tag(self._magic, packet.payload)
        if tag is None:
            return None
        if isinstance(transport, Echo):
            return tag.number, Step.REQUEST if transport.request else Step.REPLY
        return tag.number, tag.step

    def refused(self, packet: Packet) -> tuple[int, Step] | None:
        """Return what an ICMP error or a reset is about."""
        transport = packet.transport
        if isinstance(transport, IcmpError):
            return self.identify(transport.quoted) if transport.quoted else None
        if isinstance(transport, Tcp):
            number = self._initial.get((transport.acknowledgement - 1) & 0xFFFFFFFF)
            return None if number is None else (number, Step.SYN)
        return None


class Hop(msgspec.Struct, frozen=True, rename="camel"):
    """One place on the way of one packet. `since_last` is in nanoseconds."""

    point: str
    netns: str
    node: str
    interface: str
    direction: Literal["in", "out"]
    source: Address
    destination: Address
    hop_limit: int
    length: int
    since_last: int
    encapsulated: bool = False


def hops(world: World, sightings: Sequence[Sighting]) -> tuple[Hop, ...]:
    """Return the way of one packet, as it was seen."""
    points = world.points
    times = [sightings[0].time] + [s.time for s in sightings] if sightings else []
    return tuple(
        Hop(
            sighting.point,
            points[sighting.point].netns,
            points[sighting.point].node,
            sighting.interface,
            "out" if sighting.outgoing else "in",
            sighting.packet.source,
            sighting.packet.destination,
            sighting.packet.hop_limit,
            sighting.packet.length,
            now - before,
            bool(sighting.packet.tunnels),
        )
        for sighting, (before, now) in zip(sightings, pairwise(times), strict=True)
    )
