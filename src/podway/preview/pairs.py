"""Which pods a change of policies lets talk to each other, or not any more: by workloads, and by ports. Pure.

All pods are compiled as if one node had them. What its entries have one number for no rule tells apart: so pods
with the same labels and numbers, before and after, are judged once for all of them, and nothing is left to
samples.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from podway.api.addresses import Address
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.pod import Pod
from podway.api.resource import Key, Resource, of_kind
from podway.policy.explain import compile_node
from podway.policy.holders import FINISHED
from podway.policy.lookup import PolicyMaps
from podway.policy.maps import ANY_PROTOCOL, ANYBODY, Direction, EndpointRules, PodName, Prefix
from podway.policy.rules import MOST_PORT, PROTOCOLS
from podway.preview.flows import own_labels

MOST_PAIRS = 1_000_000
"""Pairs of groups that are compared at most; a change in more than these is told as far as it goes."""

KINDS = frozenset(kind.KIND for kind in (NetworkPolicy, ClusterNetworkPolicy, Namespace, Pod))
"""Kinds on which depends who may talk to whom."""

_ONE_NODE = "node"
_OTHERS = 253
"""A protocol that no rule names (RFC 3692)."""

Range = tuple[int, int]
Spans = Mapping[str, tuple[Range, ...]]
"""Ports by protocol, as ranges with both ends; what is not TCP, UDP or SCTP has none."""


class Workload(NamedTuple):
    """Pods of a namespace that have the same labels, but for those that controllers give to each apart."""

    namespace: str
    labels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        labels = ",".join(f"{name}={value}" for name, value in self.labels)
        return f"{self.namespace}[{labels}]" if labels else self.namespace


class PairChange(msgspec.Struct, frozen=True):
    """How many pairs of pods, from a workload to a workload, may do otherwise than before, and at which ports."""

    change: Literal["allowed", "denied"]
    source: str
    target: str
    ports: str
    pairs: int


class PairChanges(NamedTuple):
    """What changes, most pairs first, and whether all pairs were compared."""

    changes: tuple[PairChange, ...] = ()
    complete: bool = True


class _Seen(NamedTuple):
    """What the entries of a cluster know of an address: its numbers."""

    identity: int
    egress: int
    ingress: int


class _Group(NamedTuple):
    """Addresses of pods that no policy tells apart, before or after."""

    workload: Workload
    version: int
    before: _Seen
    after: _Seen


def changed_pairs(before: Sequence[Resource], after: Sequence[Resource]) -> PairChanges:
    """Compare who may talk to whom, of the pods that are there before and after, by each family that both have."""
    former, later = _Cluster(before), _Cluster(after)
    groups: dict[_Group, set[PodName]] = defaultdict(set)
    for name, pod in later.pods.items():
        if name in former.pods:
            for address in pod.addresses:
                if address in former.pods[name].addresses:
                    seen = former.seen(name, address), later.seen(name, address)
                    workload = Workload(name[0], own_labels(pod))
                    groups[_Group(workload, address.version, *seen)].add(name)
    counted: Counter[tuple[str, str, str, str, int]] = Counter()
    compared = 0
    for source, callers in groups.items():
        for target, called in groups.items():
            if source.version != target.version:
                continue
            compared += 1
            if compared > MOST_PAIRS:
                return PairChanges(_told(counted), complete=False)
            pairs = len(callers) * len(called) - len(callers & called)  # a pod always reaches itself
            if pairs:
                for change, ports in _compare(former, later, source, target):
                    counted[change, str(source.workload), str(target.workload), ports, source.version] += pairs
    return PairChanges(_told(counted))


def _told(counted: Mapping[tuple[str, str, str, str, int], int]) -> tuple[PairChange, ...]:
    """Both families alike are one line, of the pairs of pods that the larger of them has."""
    most: dict[tuple[str, str, str, str], int] = {}
    for (change, source, target, ports, _), pairs in counted.items():
        place = (change, source, target, ports)
        most[place] = max(most.get(place, 0), pairs)
    ordered = sorted(most.items(), key=lambda one: (-one[1], one[0]))
    return tuple(
        PairChange("allowed" if change == "allowed" else "denied", source, target, ports, pairs)
        for (change, source, target, ports), pairs in ordered
    )


def _compare(former: "_Cluster", later: "_Cluster", source: _Group, target: _Group) -> Iterator[tuple[str, str]]:
    was = (
        former.spans(source.before.egress, target.before.identity),
        former.spans(target.before.ingress, source.before.identity),
    )
    will = (
        later.spans(source.after.egress, target.after.identity),
        later.spans(target.after.ingress, source.after.identity),
    )
    if was == will:
        return
    had, has = _both(*was), _both(*will)
    if gained := _words(has, had):
        yield "allowed", gained
    if lost := _words(had, has):
        yield "denied", lost


class _Cluster:
    """The entries of a cluster whose pods are all on one node."""

    def __init__(self, objects: Iterable[Resource]) -> None:
        known = [_placed(obj) if isinstance(obj, Pod) else obj for obj in objects]
        self.pods: Mapping[PodName, Pod] = {
            (pod.metadata.namespace, pod.metadata.name): pod
            for pod in of_kind(Pod, known)
            if not pod.spec.host_network and pod.status.phase not in FINISHED
        }
        _, self._maps = compile_node(known, _ONE_NODE)
        self._ports = _boundaries(self._maps)
        self._known: dict[tuple[int, int], Spans] = {}

    def seen(self, name: PodName, address: Address) -> _Seen:
        """Return the numbers that a pod's address has."""
        rules = self._maps.endpoints.get(name, EndpointRules())
        identity = self._maps.identity(Prefix.host_of(address))
        return _Seen(identity, rules.of(Direction.EGRESS), rules.of(Direction.INGRESS))

    def spans(self, rule_set: int, identity: int) -> Spans:
        """Return the ports that a set allows for an identity."""
        found = self._known.get((rule_set, identity))
        if found is None:
            found = self._known[rule_set, identity] = {
                name: tuple(self._allowed(rule_set, identity, protocol))
                for name, protocol in (*PROTOCOLS.items(), ("other protocols", _OTHERS))
            }
        return found

    def _allowed(self, rule_set: int, identity: int, protocol: int) -> Iterator[Range]:
        starts = {0} | {
            start
            for who in (identity, ANYBODY)
            for one in (protocol, ANY_PROTOCOL)
            for start in self._ports.get((rule_set, who, one), ())
        }
        first: int | None = None
        for start in sorted(starts):
            allowed = self._maps.decide_for(rule_set, identity, protocol, start).allowed
            if allowed and first is None:
                first = start
            elif not allowed and first is not None:
                yield first, start - 1
                first = None
        if first is not None:
            yield first, MOST_PORT


def _placed(pod: Pod) -> Pod:
    return msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, node_name=_ONE_NODE))


def _boundaries(maps: PolicyMaps) -> Mapping[tuple[int, int, int], set[int]]:
    """Return the ports at which the verdict may change, by rule set, identity and protocol."""
    found: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    for key in maps.rules:
        end = key.port + (1 << 16 - key.port_length)
        found[key.rule_set, key.identity, key.protocol] |= {key.port} | ({end} if end <= MOST_PORT else set())
    return found


def _both(one: Spans, other: Spans) -> Spans:
    return {name: tuple(_common(ranges, other[name])) for name, ranges in one.items()}


def _common(one: Sequence[Range], other: Sequence[Range]) -> Iterator[Range]:
    for first, last in one:
        for start, end in other:
            if max(first, start) <= min(last, end):
                yield max(first, start), min(last, end)


def _words(has: Spans, had: Spans) -> str:
    """Return in words which ports are in `has` and not in `had`: `TCP 80, 443; UDP`; empty if there are none."""
    parts = []
    for name, ranges in has.items():
        new = list(ranges)
        for first, last in had[name]:
            new = [
                part
                for start, end in new
                for part in ((start, min(end, first - 1)), (max(start, last + 1), end))
                if part[0] <= part[1]
            ]
        if name not in PROTOCOLS:
            parts += [name] if new else []
        elif new == [(0, MOST_PORT)]:
            parts.append(name)
        elif new:
            ports = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in new)
            parts.append(f"{name} {ports}")
    return "; ".join(parts)


def decides(keys: Iterable[Key]) -> bool:
    """Tell whether a change of these objects may be one of who may talk to whom."""
    return any(key[0] in KINDS for key in keys)
