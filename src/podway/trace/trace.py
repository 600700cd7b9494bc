"""`trace`: the way of one packet, and of its answer, through a cluster."""

import errno
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import msgspec

from podway.api.addresses import Address, Family
from podway.api.resource import Resource
from podway.errors import InvalidInput
from podway.plan.nat import is_translated
from podway.plan.path import End, PlannedHop, Site, plan_path
from podway.probe.build import Protocol
from podway.probe.capture import Sighting
from podway.prove.encapsulation import ExpectedEncapsulation, expected_encapsulation
from podway.prove.path import Leg
from podway.prove.world import ExternalPoint, NodePoint, Place, PodPoint, Point, is_beyond
from podway.trace.agents import Agents, Ask, RemoteInspector
from podway.trace.evidence import Evidence, Sent, send
from podway.trace.forwarding import ForwardingHop, forwarding_path, look, stages_of
from podway.trace.names import NO_HOSTS, Hosts, Subject
from podway.trace.points import PointIndex
from podway.trace.policy import PolicyJudge, with_policy
from podway.trace.report import Direction, FamilyTrace, Silent, ThroughService, TraceReport
from podway.trace.services import served_by
from podway.trace.shown import show
from podway.trace.verdict import Case, judge, predict, translation_of

NO_SERVICE: Mapping[Family, ThroughService] = MappingProxyType({})

AGAIN = 0.3
"""Seconds to wait for an answer where a smaller packet's came at once."""


def trace(
    resources: Iterable[Resource],
    ask: Ask,
    source: Subject,
    target: Subject,
    *,
    protocol: Protocol,
    port: int = 0,
    families: Sequence[Family] = (),
    dry_run: bool = False,
    timeout: float = 1.0,
    hosts: Hosts = NO_HOSTS,
    through: Mapping[Family, ThroughService] = NO_SERVICE,
) -> TraceReport:
    """Trace a packet from `source` to `target`, and the answer, in each family that both have (or in those named).

    `port` is the target's, 0 for one on which hardly anybody listens. With `dry_run` nothing is sent: plan
    and kernels alone are told. `timeout` is how long an answer may take, in seconds. `hosts` are beside the
    cluster, and asked as agents are. `through` is the Service, of each family, of which the target is a backend.
    An agent that does not answer leaves a gap and is named in the report. Raises InvalidInput if the two have no
    family in common or neither is in the cluster.
    """
    started = time.monotonic()
    if not any(one.ours and not one.host for one in (source, target)):
        raise InvalidInput(
            f"neither {source.label} nor {target.label} is a pod or node: nothing can be sent or seen there",
            hint="name a pod or a node for one of the two",
        )
    common = [one for one in families or tuple(Family) if source.end(one) and target.end(one)]
    if not common:
        wanted = " or ".join(family.label for family in families or tuple(Family))
        raise InvalidInput(f"{source.label} and {target.label} have no {wanted} addresses in common")
    agents = Agents(ask)
    points = PointIndex(resources, agents, hosts)
    for subject in (source, target):
        agents.learn(subject.asked, addresses=(*source.addresses, *target.addresses))
    policies = PolicyJudge(points.view, agents.fallbacks)
    conversations = [
        _Conversation(points, policies, source, target, family, protocol, port, timeout) for family in common
    ]
    with ThreadPoolExecutor(len(conversations)) as threads:
        traces = tuple(threads.map(lambda one: one.hold(dry_run=dry_run), conversations))
    traces = tuple(
        msgspec.structs.replace(one, service=served_by(source.node, through.get(family), agents.fallbacks))
        for family, one in zip(common, traces, strict=True)
    )
    silent = tuple(Silent(node, reason) for node, reason in agents.silent.items())
    return TraceReport(
        source.label,
        target.label,
        protocol,
        dry_run,
        traces,
        silent,
        round(time.monotonic() - started, 3),
    )


class _Conversation:
    """Both directions in one family."""

    def __init__(
        self,
        points: PointIndex,
        policies: PolicyJudge,
        source: Subject,
        target: Subject,
        family: Family,
        protocol: Protocol,
        port: int,
        timeout: float,
    ) -> None:
        self._points = points
        self._policies = policies
        self._ends = source, target
        self._family = family
        self._protocol = protocol
        self._port = port
        self._timeout = timeout
        self._source, self._target = _must(source.end(family)), _must(target.end(family))
        self._sender, self._receiver = self._point(source), self._point(target)
        self._free = target.free
        self._source_host, self._target_host = source.host, target.host
        self._hides = (
            is_translated(points.view, self._source.address, self._target.address) if source.pod else False
        )
        self._answered: Address | None = None
        """Where the target's answer goes, if that is not the source's own address, as far as it is known."""
        if self._hides:
            self._answered = self._predicted(source.node)

    def hold(self, *, dry_run: bool) -> FamilyTrace:
        there, back = self._forwarding_paths(RemoteInspector(self._points.agents))
        evidence = echo = None
        if not dry_run:
            evidence = self._probe(self._sender, self._receiver, self._target, self._protocol, there + back)
            if evidence is None or not evidence.answer.sightings:
                echo = self._probe(self._receiver, self._sender, self._source, Protocol.ICMP, there + back)
        if self._hides and evidence and evidence.request.sightings:
            self._answered = evidence.request.sightings[-1].packet.source
        # Asked once more: what the kernels have learned by now, say of neighbours, is part of the answer.
        inspector = RemoteInspector(self._points.agents)
        there, back = self._forwarding_paths(inspector) if evidence or echo else (there, back)
        ways = self._there(there, evidence, echo), self._back(back, evidence, echo)
        sent = evidence.sent if evidence else Sent(self._protocol, port=self._port)
        addresses = self._source.address, self._target.address
        policy = self._policies.said(*self._ends, addresses, self._protocol, sent.port)
        forth, home = (self._direction(case, inspector, sure=sure) for case, sure in ways)
        verdict = with_policy(forth.verdict, policy, sent=evidence is not None)
        forth = msgspec.structs.replace(forth, verdict=verdict)
        return FamilyTrace(
            self._family.label,
            str(self._source.address),
            str(self._target.address),
            0 if self._protocol is Protocol.ICMP else sent.source_port,
            sent.port,
            forth,
            home,
            policy,
            not any(one.unenforced for one in policy),
        )

    def _there(
        self, hops: tuple[ForwardingHop, ...], evidence: Evidence | None, echo: Evidence | None
    ) -> tuple[Case, bool]:
        """Return the case of the way there, and whether a packet was sent on it."""
        if evidence is None and echo and echo.answer.sightings:
            # From outside nothing can be sent, but an answer came from there.
            taken = _entered(echo.answer.sightings, self._receiver)
            return self._case(hops, echo, echo.answer, answer=True, taken=taken, turned=True), True
        found = evidence or self._unsent(hops)
        arrived = self._protocol is Protocol.UDP and _entered(found.request.sightings, self._receiver)
        taken = bool(found.answer.sightings) or arrived
        case = self._case(hops, found, found.request, taken=taken, answered_by=_answered_by(found))
        return case, evidence is not None and not found.sent.problem

    def _back(
        self, hops: tuple[ForwardingHop, ...], evidence: Evidence | None, echo: Evidence | None
    ) -> tuple[Case, bool]:
        """Return the case of the way back, and whether a packet was sent on it."""
        if evidence and evidence.answer.sightings:
            taken = _entered(evidence.answer.sightings, self._sender)
            request = self._case(hops, evidence, evidence.request)
            translated = translation_of(request) is not None
            case = self._case(hops, evidence, evidence.answer, answer=True, taken=taken, translated=translated)
            if self._hides and self._protocol is Protocol.UDP and not evidence.refused:
                # To which port it goes outside only the translation knows: no capture there tells it from others'.
                inside = tuple(stage for stage in case.stages if stage.role != "uplink")
                case = msgspec.structs.replace(case, stages=inside)
            return case, True
        if echo and not echo.sent.problem:
            taken = bool(echo.answer.sightings) or _entered(echo.request.sightings, self._sender)
            return self._case(hops, echo, echo.request, taken=taken, turned=True), True
        return self._case(hops, self._unsent(hops), Leg(), answer=True), False

    def _unsent(self, hops: Sequence[ForwardingHop]) -> Evidence:
        return Evidence(Sent(self._protocol), Leg(), Leg(), watched=frozenset(hop.label for hop in hops))

    def _case(
        self,
        hops: tuple[ForwardingHop, ...],
        evidence: Evidence,
        leg: Leg,
        *,
        answer: bool = False,
        taken: bool = False,
        turned: bool = False,
        translated: bool = False,
        answered_by: str = "",
    ) -> Case:
        ends = (self._receiver, self._sender) if turned else (self._sender, self._receiver)
        watched = evidence.watched
        unwatched = [hop for hop in hops if hop.planned and hop.label not in watched]
        clocks = {self._points.agents.kernels.get(hop.node) for hop in hops if hop.label in watched}
        if len(clocks) > 1:
            leg = _in_order(leg, hops)
        return Case(
            *ends,
            self._family,
            hops,
            stages_of(hops, watched),
            leg,
            evidence.sent,
            answer,
            taken,
            "answer" if answer else "echo" if turned else "probe",
            unwatched[0].problem or f"nothing captures at {unwatched[0].label}" if unwatched else "",
            translated,
            len(clocks) < 2,
            evidence.small_pass,
            answered_by,
            self._expected(to_sender=answer != turned),
        )

    def _expected(self, *, to_sender: bool) -> ExpectedEncapsulation:
        """Return the encapsulation in which packets should cross to one of the two ends."""
        ends = self._source, self._target
        origin, target = reversed(ends) if to_sender else ends
        return expected_encapsulation(self._points.view, origin.node, target.node, target.address)

    def _direction(self, case: Case, inspector: RemoteInspector, *, sure: bool) -> Direction:
        verdict = (judge if sure else predict)(case, self._points.world(), inspector)
        origin, target = case.sender, case.receiver
        if case.answer:
            origin, target = target, origin
        hops = show(self._points.view, case.hops, case.leg.sightings, self._points.agents.kernels)
        return Direction(origin.label, target.label, hops, verdict)

    def _forwarding_paths(
        self, inspector: RemoteInspector
    ) -> tuple[tuple[ForwardingHop, ...], tuple[ForwardingHop, ...]]:
        there = self._forwarding_path(inspector, self._source, self._target)
        if self._source_host:
            ends = self._source.address, self._target.address
            there = (self._out_of_host(inspector, self._source_host, *ends), *there)
        back = () if self._free else self._forwarding_path(inspector, self._target, self._source)
        if self._target_host:
            to = self._answered or self._source.address
            back = (self._out_of_host(inspector, self._target_host, self._target.address, to), *back)
        return there, back

    def _predicted(self, node: str) -> Address | None:
        """Return the source that a pod's packet most likely has outside: the node's chosen address, or its own."""
        known = self._points.view.nodes.get(node)
        if known is None:
            return None
        return known.nat_address(self._family) or known.internal_address(self._family)

    def _out_of_host(self, inspector: RemoteInspector, host: str, own: Address, to: Address) -> ForwardingHop:
        """Return how a host beside the cluster sends a packet from its own address to another."""
        uplink = self._points.agents.sites.get(host, Site()).uplink
        device = uplink.device if uplink else ""
        planned = PlannedHop(host, "", "", device, "forwarded", "host")
        return look(self._points, inspector, planned, own, to)

    def _forwarding_path(self, inspector: RemoteInspector, source: End, target: End) -> tuple[ForwardingHop, ...]:
        planned = plan_path(self._points.view, self._points.agents.sites, source, target)
        host = self._target_host if target is self._target else self._source_host
        if planned and host:
            uplink = self._points.agents.sites.get(host, Site()).uplink
            arrives = PlannedHop(host, "", uplink.device if uplink else "", "", "delivered", "kernel")
            planned = (*planned, arrives)
        return forwarding_path(self._points, inspector, source, target, planned)

    def _probe(
        self, sender: Point, receiver: Point, target: End, protocol: Protocol, hops: Sequence[ForwardingHop]
    ) -> Evidence | None:
        """Send a probe; None if it would have to come from outside.

        One packet may be lost anywhere: if nothing comes of it, another one is sent, first a small one.
        """
        if isinstance(sender, ExternalPoint):
            return None
        places = [hop.point for hop in hops if hop.point and self._points.agents.answers(hop.node)]
        port = self._port if receiver is self._receiver else 0
        ends = sender, receiver
        size = 0 if port or is_beyond(receiver) else min(self._mtu(end, hops) for end in ends)

        def once(size: int, timeout: float = self._timeout) -> Evidence:
            return send(
                self._points.agents,
                places,
                sender,
                target,
                protocol=protocol,
                port=port,
                size=size,
                timeout=timeout,
            )

        evidence = once(size)
        if evidence.sent.errno == errno.EMSGSIZE:
            # The sender knows of a narrower way already, or its MTU has become smaller since it was asked.
            evidence = once(size := 0)
        # A UDP server need not answer, and an echo's answer goes the way that is broken already.
        one_way = protocol is Protocol.UDP or receiver is self._sender
        if _settled(evidence) or (one_way and _entered(evidence.request.sightings, receiver)):
            return evidence
        if size and once(0).answer.sightings:
            again = once(size, min(self._timeout, AGAIN))
            return again if _settled(again) else msgspec.structs.replace(again, small_pass=True)
        return evidence if size else once(size)

    def _mtu(self, point: Point, hops: Sequence[ForwardingHop]) -> int:
        """Return the MTU of one end, in bytes; 0 if it is not known.

        A pod's is the planned one, or what its link has in the kernel where that is less: while a pool's
        encapsulation changes, pods get their new MTU one after the other, and the kernels tell each other.
        """
        if isinstance(point, PodPoint):
            links = [hop.kernel_state.links for hop in hops if hop.kernel_state and hop.node == point.node]
            names = (point.ifname, point.host_link)
            held = [found.mtu for one in links for name in names if (found := one.get(name)) is not None]
            return min([point.mtu, *held])
        site = self._points.agents.sites.get(point.node)
        return site.uplink.mtu if site and site.uplink else 0

    def _point(self, subject: Subject) -> Point:
        if not subject.ours:
            return ExternalPoint(subject.label, subject.addresses)
        if subject.host:
            host = self._points.node(subject.host)
            assert host is not None
            return host
        known: Place | None = self._points.point(subject.node, subject.pod)
        if known is not None:
            return known
        if subject.pod:
            return PodPoint(subject.pod, subject.node, "", subject.addresses)
        return NodePoint(subject.node, "", subject.addresses, "")


def _settled(evidence: Evidence) -> bool:
    """Tell whether a probe told all it can: it was answered, or refused, or could not be sent.

    One that is too big somewhere did not: how smaller ones fare has to be seen.
    """
    sent, refusal = evidence.sent, evidence.request.refusal
    refused = refusal is not None and not refusal.mtu
    return bool(evidence.answer.sightings or refused or sent.errno or sent.problem)


def _answered_by(evidence: Evidence) -> str:
    """Say who answered a probe: that nobody listens is an answer, too."""
    if evidence.refused:
        return f"answered: nobody listens there, {evidence.refused}"
    if not evidence.answer.sightings or evidence.sent.protocol is Protocol.ICMP:
        return ""
    return "a server answered (SYN-ACK)" if evidence.sent.protocol is Protocol.TCP else "a server answered"


def _in_order(leg: Leg, hops: Sequence[ForwardingHop]) -> Leg:
    """Return what was seen in the order of the way: the clocks of several machines tell none."""
    order = {hop.label: number for number, hop in enumerate(hops)}
    return Leg(sorted(leg.sightings, key=lambda one: (order.get(one.point, len(order)), one.time)), leg.refusal)


def _entered(seen: Sequence[Sighting], point: Point) -> bool:
    return any(one.point == point.label and not one.outgoing for one in seen)


def _must(end: End | None) -> End:
    if end is None:
        raise ValueError("a conversation is held in a family that both ends have")
    return end
