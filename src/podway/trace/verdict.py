"""How one direction of a trace ended, and why: captures are judged as in `verify`, kernels asked for the cause."""

from collections.abc import Sequence

import msgspec

from podway.api.addresses import Family
from podway.errors import PodwayError
from podway.kernel.network import Lookup
from podway.probe.build import HOP_LIMIT, Protocol
from podway.probe.capture import Sighting
from podway.probe.packet import Packet, Udp
from podway.prove.advice import ConflictingRoute, against_route
from podway.prove.cause import Cause
from podway.prove.diagnose import diagnose
from podway.prove.encapsulation import ExpectedEncapsulation, observed_encapsulation
from podway.prove.inspector import Inspector
from podway.prove.judge import Code, Fault, loss, off_the_way, translation
from podway.prove.path import Leg, Stage
from podway.prove.probe import Probe, Result, Step
from podway.prove.world import ExternalPoint, HostPoint, PodPoint, Point, World, is_beyond
from podway.trace.evidence import Sent
from podway.trace.forwarding import ForwardingHop
from podway.trace.report import Basis, Outcome, Verdict


class Case(msgspec.Struct, frozen=True):
    """One direction to be judged. `taken` tells whether the receiver is known to have taken the packet.

    `answer` says that the packet is the answer to the conversation that `sender` began: it goes from
    `receiver` to `sender`.
    """

    sender: Point
    receiver: Point
    family: Family
    hops: tuple[ForwardingHop, ...]
    stages: tuple[Stage, ...]
    leg: Leg
    sent: Sent
    answer: bool
    taken: bool
    basis: Basis
    blind: str = ""
    """Why a part of the way could not be watched; empty if all could."""
    translated: bool = False
    """An answer to a packet whose addresses were translated: they are translated back on its way."""
    one_clock: bool = True
    small_pass: bool = False
    """A smaller packet than this one was answered."""
    answered_by: str = ""
    expected: ExpectedEncapsulation = ExpectedEncapsulation()
    """The encapsulation in which the packet should cross."""

    @property
    def step(self) -> Step:
        """The step of a conversation that the packet is."""
        if self.sent.protocol is Protocol.TCP:
            return Step.SYN_ACK if self.answer else Step.SYN
        return Step.REPLY if self.answer else Step.REQUEST

    @property
    def result(self) -> Result:
        """The conversation as the sender's sockets know it. An ICMP error that answers has no ports."""
        ports = any(isinstance(seen.packet.transport, Udp) for seen in self.leg.sightings)
        port = self.sent.source_port if self.sent.protocol is Protocol.TCP or ports else 0
        probe = Probe(1, self.sender, self.receiver, self.family, self.sent.protocol, self.sent.size)
        return Result(probe, port=port, errno=self.sent.errno)

    @property
    def translation(self) -> str:
        """What should become of the packet's source where it leaves the cluster, in nft's words."""
        if self.answer:
            return ""
        return next((hop.planned.translation for hop in self.hops if hop.planned and hop.planned.translation), "")

    @property
    def translated_to(self) -> str:
        """The source that it had in the end, where it was translated as it should be; empty if it was not."""
        seen = self.leg.sightings
        if not self.translation or not seen or seen[-1].packet.source == self.sender.address(self.family):
            return ""
        return str(seen[-1].packet.source)

    @property
    def target(self) -> Point:
        """Whom the packet is for."""
        return self.sender if self.answer else self.receiver


def judge(case: Case, world: World, inspector: Inspector) -> Verdict:
    """Return how a packet fared that was sent, or that was to be sent."""
    return _arrived(case, world, inspector) if case.taken else _not_arrived(case, world, inspector)


def _arrived(case: Case, world: World, inspector: Inspector) -> Verdict:
    if (untranslated := _untranslated(case)) is not None:
        return untranslated
    fault = translation_of(case)
    if fault is None and case.leg.sightings:
        fault = off_the_way(case.result, case.step, case.leg, case.stages, case.expected)
    if fault is None:
        return _detour(case, world) or _bare_verdict(case, "delivered", case.basis)
    return _described(case, "delivered", fault, _cause(world, fault, inspector))


def _not_arrived(case: Case, world: World, inspector: Inspector) -> Verdict:
    if not case.answer and (discarding := _discarding(case)):
        return _discarded(case, discarding)
    if (verdict := _untranslated(case) or _no_way_in(case)) is not None:
        return verdict
    fault = translation_of(case) or loss(case.result, case.step, case.leg, case.stages)
    seen = fault.last
    if isinstance(case.target, HostPoint) and seen is not None and seen.point == case.target.label:
        return _left_the_cluster(case, seen)
    if fault.code is Code.NOT_TAKEN and fault.last is not None and fault.last.point != case.target.label:
        if isinstance(case.target, ExternalPoint) and fault.last.outgoing:
            return _left_the_cluster(case, fault.last)
        if case.blind and (told := _conflict_before(case, fault.last)) is not None:
            fault = told
        elif case.blind and fault.last is not None:
            problem = f"the packet was seen last {fault.last.words}; what follows cannot be watched: {case.blind}"
            return _bare_verdict(case, "unknown", case.basis, problem=problem)
    if fault.code is Code.LOST:
        fault = _by_the_kernel(case, fault)
    fault = msgspec.structs.replace(fault, expected=case.expected)
    cause = _cause(world, fault, inspector)
    if case.small_pass and not cause.root:
        cause = Cause(
            f"packets of {case.sent.size} bytes get lost, small ones do not: {cause.problem}",
            "find the device there whose MTU is smaller (`ip link`), and raise it, or lower that of the pods' "
            "links (NetworkConfig spec.mtu)",
            cause.detail,
        )
    described = _described(case, "lost", fault, cause)
    return msgspec.structs.replace(described, last_seen=seen.words) if seen else described


def _no_way_in(case: Case) -> Verdict | None:
    """Judge a packet that a host beside the cluster cannot send, since it knows no way to pods: few of them do."""
    first = case.hops[0] if case.hops else None
    unroutable = first is not None and isinstance(first.lookup, Lookup) and first.lookup.type != "unicast"
    if case.answer or not isinstance(case.sender, HostPoint) or not unroutable:
        return None
    address = case.receiver.address(case.family)
    return msgspec.structs.replace(
        _bare_verdict(case, "lost", case.basis),
        hop=1,
        code="no-way",
        problem=f"{case.sender.label} knows no way to {address}: it can answer pods, but not begin",
        advice="have it, or its router, learn pods' routes (BGPPeer), if it shall",
        last_seen=f"it did not leave {case.sender.label}",
    )


def translation_of(case: Case) -> Fault | None:
    """Return where addresses were translated that should not be.

    Beyond the cluster addresses are commonly translated, by Podway or others, and nothing is wrong with it.
    """
    if case.translated or is_beyond(case.sender) or is_beyond(case.receiver):
        return None
    return translation(case.result, case.step, case.leg)


def _untranslated(case: Case) -> Verdict | None:
    """Judge a packet that should have left the cluster from an address of the node, and left from the pod's."""
    if not case.translation:
        return None
    (hop,) = (hop for hop in case.hops if hop.planned and hop.planned.translation)
    own = case.sender.address(case.family)
    leaving = [seen for seen in case.leg.sightings if seen.point == hop.label and seen.interface == hop.exit]
    if not leaving or leaving[-1].packet.source != own:
        return None
    family = "ip" if case.family is Family.IPV4 else "ip6"
    return msgspec.structs.replace(
        _bare_verdict(case, "delivered" if case.taken else "unknown", case.basis),
        hop=_number(case, hop.label),
        code="not-translated",
        problem=f"{hop.label} sends it out of the cluster from the pod's own address {own}, though the pod's pool "
        "has natOutgoing",
        advice=f"see `podway doctor {hop.node}`, and there `nft list table {family} podway-nat`; what rules of "
        "others exempt from tracking (notrack) is not translated",
        last_seen=case.leg.sightings[-1].words,
    )


def predict(case: Case, world: World, inspector: Inspector) -> Verdict:
    """Return how a packet would fare by what the kernels say, where none was sent."""
    if not case.hops:
        return _bare_verdict(case, "unknown", "none", problem="there is nobody to answer")
    for hop in case.hops:
        if hop.planned is None:
            continue
        if hop.planned.disposition == "discarded":
            return _discarded(case, hop)
        if hop.problem:
            return _bare_verdict(case, "unknown", "none", problem=hop.problem)
        if hop.lookup is None:
            break
        if as_planned(hop) or _goes_on(hop, case):
            continue
        if (verdict := _no_way_in(case)) is not None:
            return msgspec.structs.replace(verdict, basis="kernel")
        fault = msgspec.structs.replace(_predicted_fault(case, hop), expected=case.expected)
        described = _described(case, "lost", fault, _cause(world, fault, inspector))
        return msgspec.structs.replace(described, basis="kernel", last_seen="", took=None)
    if detour := _detour(case, world):
        return msgspec.structs.replace(detour, basis="kernel")
    return _bare_verdict(case, "delivered", "kernel")


def _discarded(case: Case, hop: ForwardingHop) -> Verdict:
    """Return the verdict on a packet that a route of ours ends: to a block without that pod, or without a way."""
    address = case.receiver.address(case.family)
    planned = hop.planned.route if hop.planned else None
    if planned is not None and planned.type == "unreachable":
        return msgspec.structs.replace(
            _bare_verdict(case, "lost", case.basis),
            hop=_number(case, hop.label),
            code="no-way",
            problem=f"no way leads from {hop.label} to the node whose block {address} is in",
            advice=f"see the problems in `podway status {hop.node}`: the nodes may share no address family",
            last_seen=case.leg.sightings[-1].words if case.leg.sightings else "",
        )
    return msgspec.structs.replace(
        _bare_verdict(case, "lost", case.basis),
        hop=_number(case, hop.label),
        code="no-such-pod",
        problem=f"no pod has the address {address}: {hop.label}, whose block it is in, discards packets for it",
        advice="see `podway get pods -A -o wide` for the address that is meant",
        last_seen=case.leg.sightings[-1].words if case.leg.sightings else "",
    )


def _largest(hops: Sequence[ForwardingHop]) -> int:
    """Return the largest MTU that all devices on the way allow, in bytes; 0 if it is not known."""
    mtus = [
        link.mtu
        for hop in hops
        if hop.kernel_state is not None
        for device in (hop.entry, hop.exit)
        if (link := hop.kernel_state.links.get(device)) is not None
    ]
    return min(mtus, default=0)


def _by_the_kernel(case: Case, fault: Fault) -> Fault:
    """Where a kernel sends a packet astray, what it does instead tells more than where the stray was seen."""
    hop = next((hop for hop in case.hops if fault.last and hop.label == fault.last.point), None)
    if hop is None or hop.planned is None or hop.lookup is None or as_planned(hop):
        return fault
    conflicting_route = _predicted_fault(case, hop)
    return msgspec.structs.replace(conflicting_route, errno=fault.errno, refusal=fault.refusal)


def _conflict_before(case: Case, last: Sighting) -> Fault | None:
    """Return the fault of the hop where a packet was seen last if its kernel sends it another way than planned."""
    hop = next((hop for hop in case.hops if hop.label == last.point), None)
    if hop is None or hop.planned is None or hop.lookup is None or as_planned(hop):
        return None
    return _predicted_fault(case, hop)


def _discarding(case: Case) -> ForwardingHop | None:
    return next((hop for hop in case.hops if hop.planned and hop.planned.disposition == "discarded"), None)


def _left_the_cluster(case: Case, last: Sighting) -> Verdict:
    """Judge a packet without an answer that went where our nodes see no further."""
    refusal = case.leg.refusal
    said = f"{refusal.by} answered: {refusal.meaning}" if refusal else "and nobody answered"
    back = case.translated_to or "pods' addresses"
    unless = ", or let the pod's pool have natOutgoing" if isinstance(case.sender, PodPoint) else ""
    return msgspec.structs.replace(
        _bare_verdict(case, "unknown", case.basis),
        code="beyond",
        problem=f"the packet left the cluster, {last.words}; {said}",
        advice=f"look at the routers beyond, and whether they know the way back to {back}"
        + ("" if case.translated_to else unless),
        last_seen=last.words,
    )


def _cause(world: World, fault: Fault, inspector: Inspector) -> Cause:
    try:
        return diagnose(world, fault, inspector)
    except PodwayError as error:
        return Cause(f"the cause cannot be told: {error.message}", "see that the node's agent runs, and try again")


def _described(case: Case, outcome: Outcome, fault: Fault, cause: Cause) -> Verdict:
    at = fault.here or fault.last
    return msgspec.structs.replace(
        _bare_verdict(case, outcome, case.basis),
        hop=_number(case, at.point if at else fault.origin.label),
        code=str(fault.code),
        problem=cause.problem,
        advice=cause.advice,
        detail=cause.detail,
        last_seen=fault.last.words if fault.last else f"it did not leave {fault.origin.label}",
    )


def _bare_verdict(case: Case, outcome: Outcome, basis: Basis, *, problem: str = "", detail: str = "") -> Verdict:
    seen = case.leg.sightings
    return Verdict(
        outcome,
        basis,
        source_kept=len({one.packet.source for one in seen}) == 1 if seen else None,
        encapsulated=any(one.packet.tunnels for one in seen) if seen else None,
        encapsulation=next((observed_encapsulation(one.packet) for one in seen if one.packet.tunnels), "none")
        if seen
        else "",
        largest=_largest(case.hops),
        took=seen[-1].time - seen[0].time if len(seen) > 1 and case.one_clock else None,
        answered_by=case.answered_by,
        problem=problem,
        detail=detail,
        translated=case.translated_to,
    )


def as_planned(hop: ForwardingHop) -> bool:
    """Tell whether the kernel of a planned hop sends the packet the way that was planned."""
    if hop.planned is None or not isinstance(hop.lookup, Lookup):
        return False
    match hop.planned.disposition:
        case "delivered":
            return hop.lookup.type == "local"
        case "outside":
            return hop.lookup.type == "unicast"
        case _:
            route, lookup = hop.planned.route, hop.lookup
            same_gateway = route is None or route.gateway is None or route.gateway == lookup.gateway
            wider = (
                route is not None
                and lookup.matched is not None
                and lookup.matched.prefixlen < route.destination.prefixlen
            )
            leaves = hop.underlay is None or not hop.underlay.broken
            return (
                lookup.type == "unicast"
                and hop.planned.exit in {"", lookup.device}
                and same_gateway
                and leaves
                and not wider
            )


def _goes_on(hop: ForwardingHop, case: Case) -> bool:
    """Tell whether a hop sends the packet another way than planned, but one on which it arrives."""
    arrives = any(
        one.planned
        and one.planned.disposition == "delivered"
        and isinstance(one.lookup, Lookup)
        and one.lookup.type == "local"
        for one in case.hops
    )
    return arrives and isinstance(hop.lookup, Lookup) and hop.lookup.type == "unicast"


def _detour(case: Case, world: World) -> Verdict | None:
    """Judge a packet that arrived, though a kernel sent it another way than planned."""
    for hop in case.hops:
        if (
            hop.planned is None
            or hop.planned.route is None
            or as_planned(hop)
            or not isinstance(hop.lookup, Lookup)
        ):
            continue
        route, matched = hop.planned.route, hop.lookup.matched
        leads = (
            f"via {hop.lookup.gateway} dev {hop.lookup.device}"
            if hop.lookup.gateway
            else f"dev {hop.lookup.device}"
        )
        wrong = ConflictingRoute(
            matched or route.destination,
            device=hop.lookup.device,
            gateway=hop.lookup.gateway,
            protocol=hop.lookup.protocol,
            table=hop.lookup.table,
            metric=hop.lookup.metric,
        )
        by = "the default route" if matched and not matched.prefixlen else f"the route to {matched}"
        return msgspec.structs.replace(
            _bare_verdict(case, "delivered", case.basis),
            hop=_number(case, hop.label),
            code="detour",
            problem=f"{hop.label} sends it {leads} by {by}; planned is: {str(route).removeprefix('route ')}",
            advice=against_route(world, hop.point, wrong, route.destination)
            if hop.point
            else f"see `podway get routes {hop.node}`",
        )
    return None


def _predicted_fault(case: Case, hop: ForwardingHop) -> Fault:
    """Make up the fault of a packet that comes as far as this hop, and is not sent on as planned."""
    probe = case.result.probe
    after = next((stage for stage in case.stages if stage.point == hop.label and stage.outgoing), None)
    if not hop.entry:
        return Fault(Code.NOT_SENT, probe, case.step, next=after)
    ends = case.receiver.address(case.family), case.sender.address(case.family)
    source, destination = ends if case.answer else reversed(ends)
    if source is None or destination is None:
        raise ValueError("a trace has ends of one family")
    packet = Packet(source, destination, HOP_LIMIT, 0, True, False, Udp(0, 0), b"")
    came = Sighting(0, hop.label, hop.entry, False, False, packet, None)
    return Fault(Code.LOST if after else Code.NOT_TAKEN, probe, case.step, last=came, next=after)


def _number(case: Case, label: str) -> int | None:
    return next((number for number, hop in enumerate(case.hops, 1) if hop.label == label), None)
