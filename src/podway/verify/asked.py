"""The rules proved by agents: each conversation is a trace, which agents send, capture and tell of.

For whoever can ask agents and enter no namespace: every agent looks at its own node and that node's pods. It takes
some twenty questions for each conversation, so a sample is the rule here.
"""

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import msgspec

from podway.api.addresses import Address
from podway.api.resource import Resource
from podway.errors import AgentError, InvalidInput
from podway.policy.maps import Direction
from podway.probe.build import Protocol
from podway.prove.probe import Pair, node_pairs, pod_pairs, sample
from podway.prove.world import Absent, PodPoint, Point, World
from podway.trace.agents import Agents, Ask, RemoteInspector
from podway.trace.names import Subject
from podway.trace.points import PointIndex
from podway.trace.report import FamilyTrace, TraceReport
from podway.trace.report import Verdict as Way
from podway.trace.trace import trace
from podway.verify.addressing import address_faults
from podway.verify.policy import unheld
from podway.verify.report import DENIALS, FailedPair, Finding, Report, Sample
from podway.verify.verify import address_finding, address_rule, denials_rule, ends_of, pair_rules

PAIRS = 10
"""Pairs of each rule and family that are tried unless told otherwise."""

AT_ONCE = 4
"""Conversations held at the same time; an agent keeps 16 traces apart, and others may trace, too."""


class _Held(msgspec.Struct, frozen=True):
    """A conversation that was held, or why it could not be."""

    pair: Pair
    protocol: Protocol
    told: TraceReport | None
    problem: str = ""

    @property
    def family(self) -> FamilyTrace | None:
        return self.told.families[0] if self.told else None

    @property
    def denied(self) -> str:
        """What denies it, in words; empty if nothing does that is enforced."""
        said = self.family.policy if self.family else ()
        return next((f"{one.direction} of {one.pod}: {one.reason}" for one in said if one.denies), "")

    @property
    def unheld(self) -> Iterator[str]:
        """The nodes that should have stopped it, and where nobody sees to that."""
        for one in self.family.policy if self.family else ():
            if not one.allowed and one.unenforced:
                yield (self.pair.receiver if one.direction == Direction.INGRESS else self.pair.sender).node

    @property
    def wrong(self) -> Way | None:
        """The way that is not as the rules demand; None if both are."""
        ways = (self.family.there.verdict, self.family.back.verdict) if self.family else ()
        return next((way for way in ways if way.outcome != "delivered" or way.code), None)

    @property
    def failed(self) -> FailedPair:
        sender, receiver, family = self.pair.sender.label, self.pair.receiver.label, self.pair.family.label
        return FailedPair(sender, receiver, family, (self.protocol,))


def verify_by_agents(
    resources: Iterable[Resource],
    ask: Ask,
    *,
    sample_size: int | None = None,
    timeout: float = 1.0,
    seed: int | None = None,
) -> Report:
    """Prove the three rules for all nodes whose agents answer, and their pods.

    The parameters are those of podway.verify.verify.verify; without `sample_size` PAIRS are tried. Services are
    not called. What cannot be asked is listed as not proved.
    """
    started = time.monotonic()
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    limit = PAIRS if sample_size is None else sample_size
    resources = tuple(resources)
    agents = Agents(ask)
    world, real = _look(PointIndex(resources, agents), agents)
    wrong = address_faults(world, real)
    every = {
        (rule, family): pairs(world, family)
        for family in world.families
        for rule, pairs in ((2, pod_pairs), (3, node_pairs))
    }
    chosen = [pair for pairs in every.values() for pair in sample(pairs, limit or len(pairs), seed)]

    def hold(one: tuple[Pair, Protocol]) -> _Held:
        return _hold(resources, ask, *one, timeout)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        held = list(threads.map(hold, product(chosen, Protocol)))
    untold = [one for one in held if one.told is None]
    denied = [one for one in held if one.denied]
    passed = [one for one in denied if one.wrong and one.wrong.code == "policy-not-held"]
    failed = [one for one in held if one.told and not one.denied and one.wrong]
    loose = {node for one in held for node in one.unheld if node in agents.fallbacks}
    unasked = {ends_of(one.pair) for one in untold}
    silent = {ends_of(pair) for pair in chosen} - {ends_of(one.pair) for one in held if not one.denied}
    return Report(
        nodes=len(world.nodes),
        pods=len(world.pods),
        families=tuple(family.label for family in world.families),
        rules=(
            address_rule(world, wrong),
            *pair_rules(
                world,
                every,
                [pair for pair in chosen if ends_of(pair) not in unasked | silent],
                {ends_of(one.pair) for one in failed},
                [pair for pair in chosen if ends_of(pair) in silent],
                [one.pair for one in untold],
            ),
            *denials_rule(len(denied), len(passed)),
        ),
        findings=(*map(address_finding, wrong), *_findings(failed, passed)),
        unproved=(*world.absent, *_unasked(untold), *unheld(loose, agents.fallbacks)),
        sample=Sample(limit, seed) if limit and any(len(pairs) > limit for pairs in every.values()) else None,
        probes=len(held) - len(untold),
        retried=0,
        packets=sum(map(_packets, held)),
        packets_missed=0,
        duration=round(time.monotonic() - started, 3),
    )


def _look(points: PointIndex, agents: Agents) -> tuple[World, dict[str, tuple[Address, ...]]]:
    """Return what agents know of themselves and their pods, and the addresses that these pods have, by label."""
    stored = points.world()
    homes: dict[str, list[Address]] = {node.name: [] for node in stored.nodes}
    for pod in stored.pods:
        homes.setdefault(pod.node, []).extend(pod.addresses)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda node: agents.learn(node, addresses=homes[node]), homes))
    inspector = RemoteInspector(agents)
    absent = [Absent(f"node {node}", reason) for node, reason in agents.silent.items()]
    pods: list[PodPoint] = []
    real: dict[str, tuple[Address, ...]] = {}
    for pod in stored.pods:
        leased = points.pod(pod.node, pod.name)
        if leased is None:
            why = (
                "its node's agent does not answer" if pod.node in agents.silent else "its node has no lease of it"
            )
            absent.append(Absent(pod.label, why))
            continue
        try:
            real[pod.label] = inspector.kernel_state(leased).addresses_of(leased.ifname)
        except AgentError as error:
            absent.append(Absent(pod.label, f"cannot be looked into: {error.message}"))
            continue
        pods.append(msgspec.structs.replace(leased, addresses=pod.addresses))
    nodes = tuple(node for node in points.world().nodes if agents.answers(node.name))
    return World(nodes, tuple(pods), stored.blocks, tuple(absent), stored.view), real


def _hold(resources: Sequence[Resource], ask: Ask, pair: Pair, protocol: Protocol, timeout: float) -> _Held:
    try:
        told = trace(
            resources,
            ask,
            _subject(pair.sender),
            _subject(pair.receiver),
            protocol=protocol,
            families=(pair.family,),
            timeout=timeout,
        )
    except (AgentError, InvalidInput) as error:  # the pod has gone meanwhile
        return _Held(pair, protocol, None, error.message)
    if told.silent:
        return _Held(
            pair, protocol, None, f"the agent of {told.silent[0].node} does not answer: {told.silent[0].reason}"
        )
    return _Held(pair, protocol, told)


def _subject(point: Point) -> Subject:
    pod = point.name if isinstance(point, PodPoint) else ""
    return Subject(point.label, point.node, pod, point.addresses)


def _findings(failed: Iterable[_Held], passed: Iterable[_Held]) -> list[Finding]:
    """Put failures of the same cause together, the cause of most failures first."""
    groups: dict[tuple[str, str, str], list[_Held]] = {}
    for one in (*failed, *passed):
        way = one.wrong
        if way is not None:
            groups.setdefault((way.code, way.problem, way.advice), []).append(one)
    findings = []
    for (code, problem, advice), members in groups.items():
        example = members[0].wrong
        merged: dict[tuple[str, str, str], list[str]] = {}
        for one in members:
            failed_pair = one.failed
            merged.setdefault((failed_pair.sender, failed_pair.receiver, failed_pair.family), []).append(
                one.protocol
            )
        findings.append(
            Finding(
                tuple(sorted({DENIALS if one.denied else one.pair.rule for one in members})),
                code or "unknown",
                problem or "it is not known what became of it",
                advice,
                example.last_seen if example else "",
                example.detail if example else "",
                tuple(FailedPair(*key, tuple(protocols)) for key, protocols in merged.items()),
            )
        )
    return sorted(findings, key=lambda finding: -len(finding.pairs))


def _unasked(untold: Iterable[_Held]) -> list[Absent]:
    found: Mapping[tuple[str, str], Absent] = {
        (label, one.problem): Absent(label, one.problem)
        for one in untold
        for label in (f"{one.pair.sender.label} to {one.pair.receiver.label}",)
    }
    return list(found.values())


def _packets(held: _Held) -> int:
    if held.family is None:
        return 0
    return sum(len(hop.seen) for way in (held.family.there, held.family.back) for hop in way.hops)
