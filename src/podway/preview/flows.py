"""What other policies would have made of connections that were seen, and the least policies that allow them. Pure.

Judged is what was seen, by the pods that there are now: a connection of a pod that is gone says nothing any more.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from ipaddress import ip_address
from typing import Literal, NamedTuple

import msgspec

from podway.api.addresses import Address
from podway.api.kinds.network_policy import (
    IPBlock,
    NetworkPolicy,
    NetworkPolicyEgressRule,
    NetworkPolicyIngressRule,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
)
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.meta import LabelSelector, Metadata
from podway.api.resource import Resource, key, of_kind, subject
from podway.flows.query import Row, Sums
from podway.flows.record import PROTOCOLS
from podway.policy.explain import End, Judge
from podway.policy.matching import NAMESPACE_NAME
from podway.policy.rules import PROTOCOLS as JUDGED

RARE = 3
"""Connections that were seen less often may be accidents: whoever reads a suggestion is told of them."""

MANY = 8
"""Outside addresses that a rule names; of more it names everybody outside."""

_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
_PER_POD = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "job-name",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
    }
)
"""Labels that controllers give to each pod, or to each of their own makes: no policy is to go by them."""


class Connection(msgspec.Struct, frozen=True):
    """Who called whom, by which protocol at which port (0: none), how often, and how many packets were denied.

    An end is `NAMESPACE/POD`, `node/NAME`, or nothing, and an address.
    """

    source: tuple[str, str]
    destination: tuple[str, str]
    protocol: str
    port: int
    flows: int
    denied: int
    last: float

    def __str__(self) -> str:
        ends = (label or address for label, address in (self.source, self.destination))
        return f"{' -> '.join(ends)} {self.protocol}{f' port {self.port}' if self.port else ''}"


def connections(answers: Iterable[Sums]) -> tuple[Connection, ...]:
    """Return the connections in sums by connection, most frequent first; what both nodes count is one."""
    found: dict[str, Row] = {}
    for answer in answers:
        for row in answer.rows:
            known = found.get(row.key, row)
            found[row.key] = Row(
                row.key,
                max(known.flows, row.flows),
                max(known.denied, row.denied),
                last=max(known.last, row.last),
            )
    rows = sorted(found.values(), key=lambda row: (-row.flows - row.denied, row.key))
    return tuple(_read(row) for row in rows)


def _read(row: Row) -> Connection:
    source, _, destination, what = row.key.split(" ")
    protocol, _, port = what.partition("/")
    ends = []
    for end in (source, destination):
        label, _, address = end.rpartition("@")
        ends.append((label, address))
    return Connection(ends[0], ends[1], protocol, int(port or 0), row.flows, row.denied, row.last)


class Outcome(NamedTuple):
    """What would become of a connection, and why: what the end says that decides."""

    connection: Connection
    change: Literal["denied", "allowed"]
    why: str


class Judged(NamedTuple):
    """What would be otherwise, and how many connections are judged as before, or cannot be judged any more."""

    outcomes: tuple[Outcome, ...]
    same: int
    gone: int


def compare(before: Sequence[Resource], after: Sequence[Resource], seen: Iterable[Connection]) -> Judged:
    """Return which of the connections that were seen other policies judge otherwise than today's."""
    today, then = _Cluster(before), _Cluster(after)
    outcomes, same, gone = [], 0, 0
    for connection in seen:
        former, later = today.verdict(connection), then.verdict(connection)
        if former is None or later is None:
            gone += 1
        elif former[0] == later[0]:
            same += 1
        else:
            outcomes.append(Outcome(connection, "allowed" if later[0] else "denied", later[1]))
    return Judged(tuple(outcomes), same, gone)


class _Cluster:
    """Objects, and what they say of connections."""

    def __init__(self, objects: Sequence[Resource]) -> None:
        self._objects = objects
        self._judge = Judge(objects)

    @cached_property
    def pods(self) -> Mapping[str, Pod]:
        return {f"{pod.metadata.namespace}/{pod.metadata.name}": pod for pod in of_kind(Pod, self._objects)}

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        return {node.metadata.name: node for node in of_kind(Node, self._objects)}

    def verdict(self, connection: Connection) -> tuple[bool, str] | None:
        """Return whether a connection is allowed, and by what; None if one of its pods is gone."""
        version = ip_address(connection.source[1]).version
        ends = [self._end(*end, version) for end in (connection.source, connection.destination)]
        source, destination = ends
        number = _NUMBERS.get(connection.protocol)
        if source is None or destination is None:
            return None
        protocol = int(connection.protocol) if number is None else number
        addresses = source.addresses[0], destination.addresses[0]
        reasons = self._judge.reasons(source, destination, addresses, protocol, connection.port)
        denials = [reason for reason in reasons if not reason.allowed]
        told = denials or [reason for reason in reasons if reason.selected] or reasons
        return not denials, "; ".join(f"{one.direction} of {one.pod}: {one.reason}" for one in told)

    def _end(self, label: str, address: str, version: int) -> End | None:
        if label.startswith("node/"):
            name = label.removeprefix("node/")
            return End(f"Node/{name}", (ip_address(address),), None, name)
        if not label:
            return End(address, (ip_address(address),))
        pod = self.pods.get(label)
        found: list[Address] = [one for one in pod.addresses if one.version == version] if pod else []
        if pod is None or not found:
            return None
        return End(subject(key(pod)), (found[0],), pod, pod.spec.node_name)


class Suggestion(NamedTuple):
    """Policies for a namespace, and what a person should know of them."""

    policies: tuple[NetworkPolicy, ...]
    notes: tuple[str, ...]


def suggest(objects: Sequence[Resource], namespace: str, seen: Iterable[Connection]) -> Suggestion:
    """Return the least policies that allow what was seen of a namespace's pods, one for all of the same labels.

    What was denied stays so.
    """
    cluster = _Cluster(objects)
    groups: dict[tuple[tuple[str, str], ...], _Group] = {}
    bare: set[str] = set()
    notes: list[str] = []
    for pod in cluster.pods.values():
        if pod.metadata.namespace == namespace and not pod.spec.host_network:
            labels = own_labels(pod)
            if labels:
                groups.setdefault(labels, _Group())
            else:
                bare.add(pod.metadata.name)
    for one in seen:
        if one.flows:
            notes += _take(cluster, groups, namespace, one)
    if bare:
        notes.append(f"no policy can tell pods without labels apart: {', '.join(sorted(bare))}")
    policies = tuple(_policy(namespace, labels, group) for labels, group in sorted(groups.items()))
    return Suggestion(policies, tuple(dict.fromkeys(notes)))


def _take(
    cluster: "_Cluster", groups: Mapping[tuple[tuple[str, str], ...], "_Group"], namespace: str, one: Connection
) -> Iterator[str]:
    """Put a connection to the pods of a namespace that it is of; yield what is to be said of it."""
    caller, called = (cluster.pods.get(label) for label, _ in (one.source, one.destination))
    ends = ((called, caller, one.source, True), (caller, called, one.destination, False))
    mine = [end for end in ends if end[0] is not None and end[0].metadata.namespace == namespace]
    gone = [label for (label, _), pod in ((one.source, caller), (one.destination, called)) if _is_gone(label, pod)]
    if gone and (mine or any(label.startswith(f"{namespace}/") for label in gone)):
        yield f"left out, for {' and '.join(gone)} is gone: {one}"
    elif mine and one.protocol.upper() not in JUDGED:
        yield f"left out, for NetworkPolicy does not speak of {one.protocol}: {one}"
    elif mine:
        if one.flows < RARE:
            yield f"seen {one.flows} times only: {one}"
        for pod, other, peer, ingress in mine:
            group = groups.get(own_labels(pod)) if pod else None
            # A node always reaches its own pods.
            if group is None or pod is None or (ingress and peer[0] == f"node/{pod.spec.node_name}"):
                continue
            if other is not None and not other.spec.host_network and not own_labels(other):
                # A selector without labels is every pod of the namespace.
                way = "ingress" if ingress else "egress"
                yield f"left out of {way}, for {peer[0]} has no labels by which a policy can name it: {one}"
            else:
                group.add(_peer(other, peer), one, ingress=ingress)


_Peer = tuple[str, tuple[tuple[str, str], ...], str]
"""Namespace and labels of a pod, or an address."""


class _Group:
    """What pods of the same labels were seen to do: by direction peers, and by peer ports."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[bool, _Peer, str, int]] = Counter()

    def add(self, peer: _Peer, connection: Connection, *, ingress: bool) -> None:
        self.seen[ingress, peer, connection.protocol.upper(), connection.port] += connection.flows

    def rules(
        self, *, ingress: bool
    ) -> Iterator[tuple[tuple[NetworkPolicyPeer, ...], tuple[NetworkPolicyPort, ...]]]:
        """Yield peers with their ports; peers of the same ports are together."""
        ports: dict[_Peer, set[tuple[str, int]]] = {}
        for way, peer, protocol, port in self.seen:
            if way == ingress:
                ports.setdefault(peer, set()).add((protocol, port))
        peers: dict[tuple[tuple[str, int], ...], list[_Peer]] = {}
        for peer, used in sorted(ports.items()):
            peers.setdefault(tuple(sorted(used)), []).append(peer)
        for used_by_all, all_peers in sorted(peers.items()):
            yield (
                tuple(_selecting(all_peers)),
                tuple(NetworkPolicyPort(protocol=protocol, port=port) for protocol, port in used_by_all),
            )


def _is_gone(label: str, pod: Pod | None) -> bool:
    return bool(label) and not label.startswith("node/") and pod is None


def own_labels(pod: Pod) -> tuple[tuple[str, str], ...]:
    """Return a pod's labels in order, but for those that controllers give to each pod apart."""
    return tuple(sorted(item for item in pod.metadata.labels.items() if item[0] not in _PER_POD))


def _peer(pod: Pod | None, end: tuple[str, str]) -> _Peer:
    if pod is None or pod.spec.host_network:
        return "", (), end[1]
    return pod.metadata.namespace, own_labels(pod), ""


def _selecting(peers: Sequence[_Peer]) -> Iterator[NetworkPolicyPeer]:
    outside = [address for _, _, address in peers if address]
    for namespace, labels, address in peers:
        if not address:
            yield NetworkPolicyPeer(
                namespace_selector=LabelSelector(match_labels={NAMESPACE_NAME: namespace}),
                pod_selector=LabelSelector(match_labels=dict(labels)),
            )
    for version in (4, 6):
        found = [one for one in map(ip_address, outside) if one.version == version]
        if len(found) > MANY:
            yield NetworkPolicyPeer(ip_block=IPBlock(cidr="0.0.0.0/0" if version == 4 else "::/0"))
        else:
            for one in found:
                yield NetworkPolicyPeer(ip_block=IPBlock(cidr=f"{one}/{one.max_prefixlen}"))


def _policy(namespace: str, labels: tuple[tuple[str, str], ...], group: _Group) -> NetworkPolicy:
    ingress = tuple(
        NetworkPolicyIngressRule(sources=peers, ports=ports) for peers, ports in group.rules(ingress=True)
    )
    egress = tuple(
        NetworkPolicyEgressRule(destinations=peers, ports=ports) for peers, ports in group.rules(ingress=False)
    )
    return NetworkPolicy(
        metadata=Metadata(name=_name(labels), namespace=namespace),
        spec=NetworkPolicySpec(
            pod_selector=LabelSelector(match_labels=dict(labels)),
            ingress=ingress,
            egress=egress,
            policy_types=("Ingress", "Egress"),
        ),
    )


def _name(labels: tuple[tuple[str, str], ...]) -> str:
    """Return a name that tells whose policy it is, and that no other labels give."""
    known = dict(labels)
    main = known.get("app.kubernetes.io/name") or known.get("app") or labels[0][1]
    readable = re.sub(r"[^a-z0-9-]+", "-", main.lower()).strip("-")[:40] or "pods"
    return f"seen-{readable}-{hashlib.sha256(repr(labels).encode()).hexdigest()[:6]}".replace("--", "-")
