"""`verify`: prove the three rules of the Kubernetes network model by sending packets and watching them.

The rules: https://kubernetes.io/docs/concepts/services-networking/#the-kubernetes-network-model
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

import msgspec

from podway.api.addresses import Family
from podway.errors import InvalidInput
from podway.health.groups import between, names
from podway.probe.build import Protocol
from podway.prove.cause import Cause
from podway.prove.diagnose import diagnose
from podway.prove.encapsulation import ObservedEncapsulation
from podway.prove.inspector import LocalInspector, neighbour_overflows
from podway.prove.judge import Code, Fault
from podway.prove.path import Hop, hops
from podway.prove.path_mtu import node_path_of
from podway.prove.probe import Pair, Probe, Step, node_pairs, plan_probes, pod_pairs, sample
from podway.prove.world import Point, World
from podway.verify import services
from podway.verify.addressing import AddressFault, address_faults
from podway.verify.policy import Denials
from podway.verify.prober import Prober, Trial, enter, link_mtus
from podway.verify.report import (
    DENIALS,
    RULES,
    RULES_OF_POLICY,
    FailedPair,
    Finding,
    NodePairEncapsulation,
    Report,
    RuleReport,
    Sample,
    Verdict,
)

ALL_PAIRS_UP_TO = 2000
"""Pairs of one rule and family above which verify takes a sample unless told otherwise."""

_WAVE = 384
"""Conversations held before their captures are read and judged: bounds memory."""

_AGAIN = frozenset((Code.LOST, Code.NOT_SENT, Code.NOT_TAKEN, Code.UNSEEN))
"""What a single lost packet can look like: such a probe is sent once more."""

Progress = Callable[[int, int], None]


class _Outcome(msgspec.Struct):
    """What came of all conversations."""

    faults: list[Fault] = msgspec.field(default_factory=list)
    probes: int = 0
    retried: int = 0
    observed: set[ObservedEncapsulation] = msgspec.field(default_factory=set)


def verify(
    world: World,
    *,
    sample_size: int | None = None,
    timeout: float = 1.0,
    seed: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Prove the three rules for a cluster, as far as its points can be entered from here, and its Services.

    `sample_size` is how many pairs of each rule and family to try (0: all; None: all, up to
    ALL_PAIRS_UP_TO). `timeout` is how long an answer may take, in seconds. The same `seed` chooses the same
    pairs. `progress` is called with the number of conversations held and planned. Raises KernelError,
    InvalidInput (a namespace vanished meanwhile), PortTaken, OSError.
    """
    started = time.monotonic()
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    limit = ALL_PAIRS_UP_TO if sample_size is None else sample_size
    world, kernel_states = enter(world, LocalInspector())
    wrong = address_faults(
        world, {pod.label: kernel_states[pod.label].addresses_of(pod.ifname) for pod in world.pods}
    )
    every = {
        (rule, family): pairs(world, family)
        for family in world.families
        for rule, pairs in ((2, pod_pairs), (3, node_pairs))
    }
    overflows = neighbour_overflows()
    chosen: list[Pair] = []
    unusable: list[Pair] = []
    with Prober(world, timeout) as prober:
        for pairs in every.values():
            usable = [pair for pair in pairs if prober.usable(pair)]
            unusable += [pair for pair in pairs if not prober.usable(pair)]
            chosen += sample(usable, limit or len(usable), seed)
        planned = plan_probes(chosen, link_mtus(world, kernel_states))
        denials = Denials(world, prober.port)
        denied = {probe: reason for probe in planned if (reason := denials.reason(probe))}
        planned = [probe for probe in planned if probe not in denied]
        outcome = _hold_all(prober, planned, progress)
        passed = [trial.probe for trial in _held_in_waves(prober, denied) if trial.arrived]
        # The kernel is asked while the endpoints still stand: nothing has been tidied up yet.
        causes = _causes(world, outcome.faults, overflowed=neighbour_overflows() > overflows)
        absent = world.absent + prober.unusable
        left = set(map(ends_of, planned))
        silent = [pair for pair in chosen if ends_of(pair) not in left]
        chosen = [pair for pair in chosen if ends_of(pair) in left]
        packets, missed = prober.packets, prober.missed
    most = services.MOST if sample_size is None else sample_size
    served = tuple(
        services.prove(world, services.plan_calls(world, denials), timeout=timeout, limit=most, seed=seed)
    )
    return Report(
        nodes=len(world.nodes),
        pods=len(world.pods),
        families=tuple(family.label for family in world.families),
        rules=(
            address_rule(world, wrong),
            *pair_rules(
                world, every, chosen, {ends_of(fault.probe) for fault in outcome.faults}, silent, unusable
            ),
            *denials_rule(len(denied), len(passed)),
            *(one for one in served if isinstance(one, RuleReport)),
        ),
        findings=(
            *map(address_finding, wrong),
            *_findings(causes),
            *_passed_findings(passed, denied),
            *(one for one in served if isinstance(one, Finding)),
        ),
        unproved=(*absent, *denials.unheld),
        sample=Sample(limit, seed) if limit and any(len(pairs) > limit for pairs in every.values()) else None,
        probes=outcome.probes + len(denied),
        retried=outcome.retried,
        packets=packets,
        packets_missed=missed,
        duration=round(time.monotonic() - started, 3),
        encapsulations=_encapsulations(outcome.observed),
    )


def path_of(world: World, sender: str, receiver: str, family: Family, *, timeout: float = 1.0) -> tuple[Hop, ...]:
    """Send one UDP datagram, as large as the path should allow, and return every place where it was seen.

    `sender` and `receiver` are labels of points: `pod NAMESPACE/NAME` or `node NAME`. Where the packet is
    lost, the path ends. Raises InvalidInput if there is no such point or it has no such address.
    """
    world, kernel_states = enter(world, LocalInspector())
    ends = [_end(world, label, family) for label in (sender, receiver)]
    pods = tuple(pod for pod in world.pods if pod in ends)
    world = msgspec.structs.replace(world, pods=pods)
    pair = Pair(ends[0], ends[1], family)
    with Prober(world, timeout) as prober:
        if not prober.usable(pair):
            raise InvalidInput(f"{prober.unusable[0].subject}: {prober.unusable[0].reason}")
        [trial] = prober.hold(plan_probes([pair], link_mtus(world, kernel_states), (Protocol.UDP,)))
    request = trial.legs.get(Step.REQUEST)
    return hops(world, request.sightings if request else ())


def _end(world: World, label: str, family: Family) -> Point:
    point = world.points.get(label)
    if point is None or point.address(family) is None:
        raise InvalidInput(
            f"no {label} with an {family.label} address is running here", hint="see `podway get pods -o wide`"
        )
    return point


def _hold_all(prober: Prober, probes: Sequence[Probe], progress: Progress) -> _Outcome:
    outcome = _Outcome(probes=len(probes))
    number = len(probes)
    for start in range(0, len(probes), _WAVE):
        wave = probes[start : start + _WAVE]
        again: dict[int, Fault] = {}
        for fault in (trial.fault for trial in _held(prober, wave, outcome)):
            if fault is not None and fault.code in _AGAIN:
                number += 1
                again[number] = fault
            elif fault is not None:
                outcome.faults.append(fault)
        retries = [msgspec.structs.replace(fault.probe, number=new, attempt=2) for new, fault in again.items()]
        for trial in _held(prober, retries, outcome):
            if trial.fault is None:
                outcome.retried += 1
            else:
                # Kernels ration their ICMP errors: the first try may be the one that was told why.
                first = again[trial.probe.number]
                outcome.faults.append(first if first.refusal and not trial.fault.refusal else trial.fault)
        progress(start + len(wave), len(probes))
    return outcome


def _held_in_waves(prober: Prober, probes: Iterable[Probe]) -> Iterator[Trial]:
    every = tuple(probes)
    for start in range(0, len(every), _WAVE):
        yield from prober.hold(every[start : start + _WAVE])


def _held(prober: Prober, probes: Sequence[Probe], outcome: _Outcome) -> list[Trial]:
    trials = prober.hold(probes)
    for trial in trials:
        outcome.observed |= trial.observed
    return trials


def _encapsulations(observed: Iterable[ObservedEncapsulation]) -> tuple[NodePairEncapsulation, ...]:
    found: dict[tuple[str, str, Family], list[ObservedEncapsulation]] = {}
    for one in sorted(observed):
        found.setdefault((one.sender, one.receiver, one.family), []).append(one)
    return tuple(
        NodePairEncapsulation(
            sender,
            receiver,
            family.label,
            tuple(dict.fromkeys(one.encapsulation for one in observations)),
            tuple(dict.fromkeys(one.expected for one in observations)),
        )
        for (sender, receiver, family), observations in found.items()
    )


def _causes(world: World, faults: Iterable[Fault], *, overflowed: bool) -> list[tuple[Fault, Cause]]:
    inspector = LocalInspector(overflowed=overflowed)
    faults = tuple(faults)
    node_paths = (node_path_of(world, fault) for fault in faults)
    inspector.measure({(each.here, each.address, each.length) for each in node_paths if each})
    return [(fault, diagnose(world, fault, inspector)) for fault in faults]


def _findings(causes: Iterable[tuple[Fault, Cause]]) -> list[Finding]:
    """Put failures of the same cause together, the cause of most failures first."""
    groups: dict[tuple[str, str], list[tuple[Fault, Cause]]] = {}
    for fault, cause in causes:
        common = (cause.root or cause.problem, "" if cause.root else cause.advice)
        groups.setdefault(common, []).append((fault, cause))
    findings: list[Finding] = []
    for members in groups.values():
        # The example is one of which somebody said something, if there is any: kernels ration their answers.
        fault, cause = next((member for member in members if member[1].detail), members[0])
        problem, advice = _told_once([cause for _, cause in members]), cause.advice
        pairs: dict[tuple[str, str, str], list[str]] = {}
        for probe in (fault.probe for fault, _ in members):
            key = probe.sender.label, probe.receiver.label, probe.family.label
            pairs.setdefault(key, []).append(probe.protocol)
        seen = f"the {fault.step.words} of {fault.probe.words}: "
        findings.append(
            Finding(
                tuple(sorted({fault.probe.rule for fault, _ in members})),
                fault.code,
                problem,
                advice,
                seen + (fault.last.words if fault.last else f"not at all: it did not leave {fault.origin.label}"),
                cause.detail,
                tuple(FailedPair(*key, tuple(protocols)) for key, protocols in pairs.items()),
            )
        )
    return sorted(findings, key=lambda finding: -len(finding.pairs))


def _told_once(causes: Sequence[Cause]) -> str:
    """Return the problem that these have in common, and among whom."""
    if len({cause.problem for cause in causes}) == 1 or not causes[0].root:
        return causes[0].problem
    among = dict.fromkeys(cause.among for cause in causes)
    pairs = [(each[0], each[1]) for each in among if len(each) == 2]
    return causes[0].root.format(between(pairs) if pairs else names([each[0] for each in among]))


def address_finding(fault: AddressFault) -> Finding:
    """Return what is wrong with an address as a report has it."""
    return Finding((1,), fault.code, fault.problem, fault.advice, fault.last_seen, points=fault.subjects)


def address_rule(world: World, faults: Sequence[AddressFault]) -> RuleReport:
    """Count addresses."""
    hit = {label for fault in faults for label in fault.subjects}
    total = sum(len(pod.addresses) for pod in world.pods)
    proved = sum(len(pod.addresses) for pod in world.pods if pod.label not in hit)
    verdict = Verdict.FAILED if faults else Verdict.PROVED if total else Verdict.UNPROVED
    return RuleReport(1, RULES[1], verdict, "addresses", proved, total, total)


def ends_of(pair: Pair | Probe) -> tuple[str, str, Family]:
    """Return what tells a pair from others: who sends, who receives, in which family."""
    return (pair.sender.label, pair.receiver.label, pair.family)


def denials_rule(denied: int, passed: int) -> Iterator[RuleReport]:
    """Yield what became of conversations that policies deny, where there are any."""
    if denied:
        verdict = Verdict.FAILED if passed else Verdict.PROVED
        yield RuleReport(DENIALS, RULES_OF_POLICY, verdict, "conversations", denied - passed, denied, denied)


def _passed_findings(passed: Iterable[Probe], reasons: Mapping[Probe, str]) -> Iterator[Finding]:
    """Yield what arrived though a policy denies it, by what denies it."""
    found: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for probe in passed:
        pairs = found.setdefault(reasons[probe], {})
        key = probe.sender.label, probe.receiver.label, probe.family.label
        pairs.setdefault(key, []).append(probe.protocol)
    for reason, pairs in found.items():
        yield Finding(
            (DENIALS,),
            "policy-not-held",
            f"it arrives, though policies deny it: {reason}",
            "look at the data path of the nodes at both ends: podway status, podway doctor",
            pairs=tuple(FailedPair(*key, tuple(protocols)) for key, protocols in pairs.items()),
        )


def pair_rules(
    world: World,
    every: Mapping[tuple[int, Family], Sequence[Pair]],
    chosen: Sequence[Pair],
    failed: Set[tuple[str, str, Family]],
    silent: Sequence[Pair],
    untried: Sequence[Pair],
) -> Iterator[RuleReport]:
    """Count the pairs of the second and the third rule; of `every` one, by rule and family, these are `chosen`.

    `failed` are those (`ends_of`) that do not hold, `silent` those of which policies deny all, and `untried` those
    that could not be tried.
    """
    for rule in (2, 3):
        yield _pair_rule(
            rule,
            chosen,
            failed,
            total=sum(len(pairs) for (number, _), pairs in every.items() if number == rule)
            - sum(pair.rule == rule for pair in silent),
            complete=all(pair.rule != rule for pair in untried),
            vacuous=(rule == 2 and len(world.pods) == 1) or any(pair.rule == rule for pair in silent),
        )


def _pair_rule(
    rule: int,
    chosen: Iterable[Pair],
    failed: Set[tuple[str, str, Family]],
    *,
    total: int,
    complete: bool,
    vacuous: bool,
) -> RuleReport:
    """Count pairs. `failed` are those (`ends_of`) of any rule that do not hold.

    `complete`: none was impossible to try; `vacuous`: the rule speaks of nothing here.
    """
    tried = {ends_of(pair) for pair in chosen if pair.rule == rule}
    broken = tried & failed
    if broken:
        verdict = Verdict.FAILED
    elif tried and complete:
        verdict = Verdict.PROVED
    else:
        verdict = Verdict.VACUOUS if vacuous and complete else Verdict.UNPROVED
    return RuleReport(rule, RULES[rule], verdict, "pairs", len(tried - broken), len(tried), total)
