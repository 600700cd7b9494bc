"""Did a probe prove what it was sent for? If not: what is wrong, and where does that first show?

Pure: it reads what the sockets and captures of one conversation say. Why something is wrong is asked
elsewhere (podway.prove.diagnose).
"""

import enum
from collections.abc import Mapping, Sequence

import msgspec

from podway.api.addresses import Address, with_port
from podway.probe.build import Protocol
from podway.probe.capture import Sighting
from podway.probe.packet import Packet, Tcp, Udp
from podway.prove.encapsulation import ExpectedEncapsulation, expected_of
from podway.prove.path import Leg, Refusal, Stage, planned_path
from podway.prove.probe import STEPS, Probe, Result, Step
from podway.prove.world import NodePoint, Point, World


class Code(enum.StrEnum):
    """What is wrong with a conversation. The values are part of the report's schema."""

    NOT_SENT = "not-sent"
    LOST = "lost"
    NOT_TAKEN = "not-taken"
    NAT = "address-translated"
    TUNNEL = "encapsulated"
    ENCAPSULATION = "wrong-encapsulation"
    OFF_WIRE = "not-on-wire"
    FRAGMENTED = "fragmented"
    MAY_FRAGMENT = "dont-fragment-cleared"
    RESIZED = "resized"
    CHECKSUM = "bad-checksum"
    DAMAGED = "damaged"
    UNSEEN = "not-captured"


class Flow(msgspec.Struct, frozen=True):
    """What address translation changes. Ports are 0 where there are none."""

    source: Address
    source_port: int
    destination: Address
    destination_port: int

    @property
    def words(self) -> str:
        """`SOURCE:PORT to DESTINATION:PORT`."""
        return (
            f"{_endpoint(self.source, self.source_port)} to {_endpoint(self.destination, self.destination_port)}"
        )


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with one step of a conversation.

    `last` is where its packet was last seen (with a fault other than a loss: last seen in order), `here`
    where it was first seen wrong, `next` where it should have been seen next. `before` and `after` are the
    two sides of a translation, `expected` is the encapsulation in which the packet should cross.
    """

    code: Code
    probe: Probe
    step: Step
    last: Sighting | None = None
    here: Sighting | None = None
    next: Stage | None = None
    errno: int = 0
    refusal: Refusal | None = None
    before: Flow | None = None
    after: Flow | None = None
    expected: ExpectedEncapsulation = ExpectedEncapsulation()

    @property
    def origin(self) -> Point:
        """Who sent the packet of this step."""
        return self.probe.sender if self.step.forward else self.probe.receiver

    @property
    def target(self) -> Point:
        """Whom the packet of this step was for."""
        return self.probe.receiver if self.step.forward else self.probe.sender


def judge(world: World, result: Result, legs: Mapping[Step, Leg]) -> Fault | None:
    """Return the first thing that is wrong with a conversation, None if it proves its rule."""
    probe = result.probe
    for step in STEPS[probe.protocol]:
        ends = (probe.sender, probe.receiver) if step.forward else (probe.receiver, probe.sender)
        expected = expected_of(world, probe, step)
        path = planned_path(world, *ends, overlay=expected.seen_above)
        leg = without_flooding(legs.get(step, Leg()), path)
        fault = translation(result, step, leg)
        if fault is None and (not _reached(result, step, legs) or _resent(probe, step, leg, path)):
            fault = loss(result, step, leg, path)
        fault = fault or _altered(result, step, leg, path, expected)
        if fault is not None:
            return msgspec.structs.replace(fault, expected=expected)
    return Fault(Code.DAMAGED, probe, Step.REPLY) if result.damaged else None


def without_flooding(leg: Leg, path: Sequence[Stage]) -> Leg:
    """Leave out what a device saw but passed over, being addressed to another device's hardware address.

    Only the port of a bridge takes such frames: a pod link of bridge attach.
    """
    ports = {(stage.point, stage.interface) for stage in path if stage.role == "host link"}
    kept = [seen for seen in leg.sightings if not seen.stray_mac or (seen.point, seen.interface) in ports]
    return Leg(kept, leg.refusal)


def _reached(result: Result, step: Step, legs: Mapping[Step, Leg]) -> bool:
    if result.answered or step in result.reached:
        return True
    # The receiver's kernel, not a socket of ours, takes SYNs and echo requests: its answer shows that it did.
    answer = legs.get(Step.SYN_ACK if step is Step.SYN else Step.REPLY)
    if answer is None or step not in (Step.SYN, Step.REQUEST) or result.probe.protocol is Protocol.UDP:
        return False
    if step is Step.REQUEST and result.probe.protocol is Protocol.TCP:
        return False
    receiver = result.probe.receiver.label
    return any(sighting.point == receiver and sighting.outgoing for sighting in answer.sightings)


def _resent(probe: Probe, step: Step, leg: Leg, path: Sequence[Stage]) -> bool:
    """Tell whether a segment was lost on its way, though TCP got its bytes there later, in others.

    A segment that is too large is cut before it is sent again (tcp_retransmit_skb, net/ipv4/tcp_output.c). Its
    head has no PSH any more, and is not captured.
    """
    if probe.protocol is not Protocol.TCP or step not in (Step.REQUEST, Step.REPLY):
        return False
    return bool(leg.sightings) and not any(path[-1].matches(seen) for seen in leg.sightings)


def loss(result: Result, step: Step, leg: Leg, path: Sequence[Stage]) -> Fault:
    """Say where the packet of a step, which did not arrive, was seen last and should have been seen next."""
    probe = result.probe
    if not leg.sightings:
        first = path[0] if path else None
        return Fault(Code.NOT_SENT, probe, step, next=first, errno=result.errno, refusal=leg.refusal)
    passed = [
        index for index, stage in enumerate(path) if any(stage.matches(sighting) for sighting in leg.sightings)
    ]
    furthest = max(passed, default=-1)
    # A retransmission may just have begun its way when the captures ended.
    begun = path[: max(furthest, 0)]
    last = next(seen for seen in reversed(leg.sightings) if not any(stage.matches(seen) for stage in begun))
    code = Code.NOT_TAKEN if furthest == len(path) - 1 else Code.LOST
    return Fault(
        Code.DAMAGED if result.damaged and code is Code.NOT_TAKEN else code,
        probe,
        step,
        last=last,
        next=None if code is Code.NOT_TAKEN else path[furthest + 1],
        errno=result.errno,
        refusal=leg.refusal,
    )


def translation(result: Result, step: Step, leg: Leg) -> Fault | None:
    """Look for addresses and ports that are not the sender's or not the receiver's own."""
    probe = result.probe
    if not leg.sightings:
        return None
    first = _flow(leg.sightings[0].packet)
    original = _original(result, step, first)
    last: Sighting | None = None
    for sighting in leg.sightings:
        flow = _flow(sighting.packet)
        if flow != original:
            return Fault(Code.NAT, probe, step, last=last, here=sighting, before=original, after=flow)
        last = sighting
    if step is Step.REQUEST and result.peer is not None:
        heard = Flow(result.peer[0], result.peer[1], first.destination, first.destination_port)
        if heard != first:
            return Fault(Code.NAT, probe, step, last=last, before=first, after=heard)
    return None


def _original(result: Result, step: Step, first: Flow) -> Flow:
    """Return the flow as it should be, given the first sight of it (which tells the ports)."""
    probe = result.probe
    origin, target = (probe.sender, probe.receiver) if step.forward else (probe.receiver, probe.sender)
    own = first.source if isinstance(origin, NodePoint) and first.source in origin.addresses else None
    to = first.destination if isinstance(target, NodePoint) and first.destination in target.addresses else None
    source = own or origin.address(probe.family) or first.source
    destination = to or target.address(probe.family) or first.destination
    source_port, destination_port = first.source_port, first.destination_port
    if result.port and step.forward:
        source_port = result.port
    elif result.port:
        destination_port = result.port
    return Flow(source, source_port, destination, destination_port)


def off_the_way(
    result: Result, step: Step, leg: Leg, path: Sequence[Stage], expected: ExpectedEncapsulation
) -> Fault | None:
    """Look at a packet that arrived: was it encapsulated as expected, and seen wherever it should pass?"""
    probe = result.probe
    wires = {(stage.point, stage.interface) for stage in path if stage.role == "uplink"}

    def fault(code: Code, here: Sighting | None, stage: Stage | None = None) -> Fault:
        return Fault(code, probe, step, last=_before(leg, here), here=here, next=stage, expected=expected)

    for sighting in leg.sightings:
        tunnels = sighting.packet.tunnels
        # Above the wire, on an overlay device, nothing is wrapped yet.
        judged = tunnels or (sighting.point, sighting.interface) in wires
        if judged and not expected.matches(tunnels):
            return fault(Code.TUNNEL if expected.name == "none" else Code.ENCAPSULATION, sighting)
    for stage in path:
        # Devices inside a node are not part of any rule: a faster path may pass them by.
        inside = stage.role in {"host link", "overlay"}
        if not inside and not any(stage.matches(sighting) for sighting in leg.sightings):
            return fault(Code.OFF_WIRE if stage.role == "uplink" else Code.UNSEEN, None, stage)
    return None


def _altered(
    result: Result, step: Step, leg: Leg, path: Sequence[Stage], expected: ExpectedEncapsulation
) -> Fault | None:
    """Look at a packet that arrived: was it as asked for, whole and unchanged all the way?"""
    probe = result.probe

    def fault(code: Code, here: Sighting) -> Fault:
        return Fault(code, probe, step, last=_before(leg, here), here=here)

    if (seen := off_the_way(result, step, leg, path, expected)) is not None:
        return seen
    whole = step in (Step.REQUEST, Step.REPLY) and probe.protocol is not Protocol.TCP
    length = probe.size if whole else leg.sightings[0].packet.length
    # Echo replies are the receiver's kernel's own: it leaves DF out of IPv4's (icmp_reply, net/ipv4/icmp.c).
    ours = not (probe.protocol is Protocol.ICMP and step is Step.REPLY)
    for sighting in leg.sightings:
        packet = sighting.packet
        if packet.fragment or any(tunnel.fragment for tunnel in packet.tunnels):
            return fault(Code.FRAGMENTED, sighting)
        if packet.length != length:
            return fault(Code.RESIZED, sighting)
        if ours and not packet.dont_fragment:
            return fault(Code.MAY_FRAGMENT, sighting)
        if sighting.checksum_fault and sighting.point == path[-1].point:
            return fault(Code.CHECKSUM, sighting)
    return None


def _before(leg: Leg, here: Sighting | None) -> Sighting | None:
    if here is None:
        return leg.sightings[-1] if leg.sightings else None
    index = leg.sightings.index(here)
    return leg.sightings[index - 1] if index else None


def _flow(packet: Packet) -> Flow:
    transport = packet.transport
    if isinstance(transport, Udp | Tcp):
        return Flow(packet.source, transport.source_port, packet.destination, transport.destination_port)
    return Flow(packet.source, 0, packet.destination, 0)


def _endpoint(address: Address, port: int) -> str:
    return with_port(address, port) if port else str(address)
