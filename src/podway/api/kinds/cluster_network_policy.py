"""ClusterNetworkPolicy (policy.networking.k8s.io): what an administrator decides, before and after NetworkPolicy.

v1beta1 and v1alpha2 have the same fields. What a newer API may add is passed over when an object is read: the
specification wants rules with an unknown peer to fail closed, and `ClusterPolicyPeer.known` says which those are.
"""

import re
from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

import msgspec

from podway.api.audit import SETTABLE, is_audited
from podway.api.columns import AGE, LABELS, NAME, Column
from podway.api.fields import Problem, check_port, check_port_name, check_ranges, check_selector, parse_block
from podway.api.meta import LabelSelector, Record, selector_text
from podway.api.resource import Names, Resource

ClusterPolicyVersion: TypeAlias = Literal["policy.networking.k8s.io/v1beta1", "policy.networking.k8s.io/v1alpha2"]

Tier: TypeAlias = Literal["Admin", "Baseline"]
"""Before NetworkPolicy, or after it for pods that it does not select."""

MOST_PRIORITY = 1000
MOST_ENTRIES = 25
"""Rules of a direction, peers, protocols, networks."""
MOST_NAME = 100
"""Characters of a rule's name."""

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN_NAME = re.compile(rf"(?=.{{1,253}}$)(\*\.)?({_LABEL}\.)*{_LABEL}\.?")
"""A name of DNS (RFC 1035 section 2.3.1), or all names in a domain."""

ACTIONS = ("Accept", "Deny", "Pass")
"""What a rule does; `Pass` leaves the decision to the next tier."""


class NamespacedPod(Record, frozen=True, kw_only=True):
    """Pods that one selector matches, in namespaces that the other one does."""

    namespace_selector: LabelSelector = LabelSelector()
    pod_selector: LabelSelector = LabelSelector()


class ClusterPolicySubject(Record, frozen=True, kw_only=True):
    """The pods that a policy is for: all of some namespaces, or some of them. One field is set."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None


class ClusterPolicyPeer(Record, frozen=True, kw_only=True):
    """The other end of a connection. One field is set; the last three exist for egress only."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None
    nodes: LabelSelector | None = None
    networks: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether any field is set: if not, a newer API has fields that this Podway does not know."""
        return bool(self.networks or self.domain_names) or any(
            selector is not None for selector in (self.namespaces, self.pods, self.nodes)
        )


class PortRange(Record, frozen=True, kw_only=True):
    """Ports from `start` to `end`, both included."""

    start: int
    end: int


class ClusterPolicyPort(Record, frozen=True, kw_only=True):
    """One port or a range. One field is set."""

    number: int | None = None
    range: PortRange | None = None


class TransportMatch(Record, frozen=True, kw_only=True):
    """What must hold of a transport protocol's header."""

    destination_port: ClusterPolicyPort | None = None


class ClusterPolicyProtocol(Record, frozen=True, kw_only=True):
    """A protocol and its ports, or the destination pod's port of a name. One field is set."""

    tcp: TransportMatch | None = None
    udp: TransportMatch | None = None
    sctp: TransportMatch | None = None
    destination_named_port: str = ""

    @property
    def known(self) -> bool:
        """Whether any field is set: if not, a newer API has fields that this Podway does not know."""
        return bool(self.destination_named_port) or any(
            match is not None for match in (self.tcp, self.udp, self.sctp)
        )


class ClusterPolicyIngressRule(Record, frozen=True, kw_only=True):
    """What becomes of connections from some peers. Without protocols, of all their connections."""

    name: str = ""
    action: str
    sources: tuple[ClusterPolicyPeer, ...] = msgspec.field(default=(), name="from")
    protocols: tuple[ClusterPolicyProtocol, ...] = ()

    @property
    def peers(self) -> tuple[ClusterPolicyPeer, ...]:
        """The other ends."""
        return self.sources


class ClusterPolicyEgressRule(Record, frozen=True, kw_only=True):
    """What becomes of connections to some peers. Without protocols, of all connections to them."""

    name: str = ""
    action: str
    destinations: tuple[ClusterPolicyPeer, ...] = msgspec.field(default=(), name="to")
    protocols: tuple[ClusterPolicyProtocol, ...] = ()

    @property
    def peers(self) -> tuple[ClusterPolicyPeer, ...]:
        """The other ends."""
        return self.destinations


ClusterPolicyRule: TypeAlias = ClusterPolicyIngressRule | ClusterPolicyEgressRule


class ClusterNetworkPolicySpec(Record, frozen=True, kw_only=True):
    """Where a policy stands, for whom, and its rules: the first that matches a connection decides."""

    tier: Tier
    priority: int
    subject: ClusterPolicySubject
    ingress: tuple[ClusterPolicyIngressRule, ...] = ()
    egress: tuple[ClusterPolicyEgressRule, ...] = ()

    @property
    def directions(self) -> tuple[tuple[str, str, tuple[ClusterPolicyRule, ...]], ...]:
        """The fields of the two directions: their names, the names of their peers, and the rules."""
        return (("ingress", "from", self.ingress), ("egress", "to", self.egress))


class ClusterNetworkPolicy(Resource, frozen=True, kw_only=True):
    """What holds for pods of the whole cluster: policies of lower `priority` are asked first."""

    KIND: ClassVar = "ClusterNetworkPolicy"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("clusternetworkpolicies", short=("cnp",))
    COLUMNS: ClassVar = (
        NAME,
        Column("TIER", lambda policy, _: policy.spec.tier),
        Column("PRIORITY", lambda policy, _: str(policy.spec.priority)),
        Column("PODS", lambda policy, _: _subject_text(policy.spec.subject)),
        Column("INGRESS", lambda policy, _: f"{len(policy.spec.ingress)} rules", wide=True),
        Column("EGRESS", lambda policy, _: f"{len(policy.spec.egress)} rules", wide=True),
        Column("AUDITED", lambda policy, _: "yes" if is_audited(policy) else "no", wide=True),
        AGE,
        LABELS,
    )
    COMPLETE: ClassVar = True
    IN_VIEW: ClassVar = True
    SETTABLE: ClassVar = SETTABLE

    api_version: ClusterPolicyVersion = "policy.networking.k8s.io/v1beta1"
    kind: Literal["ClusterNetworkPolicy"] = "ClusterNetworkPolicy"
    spec: ClusterNetworkPolicySpec

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the subject and the rules, as the API's schema has it."""
        spec = self.spec
        yield from check_ranges(("spec.priority", spec.priority, 0, MOST_PRIORITY))
        yield from _one_of("spec.subject", _set_fields(spec.subject))
        yield from _pods("spec.subject", spec.subject.namespaces, spec.subject.pods)
        for direction, field, rules in spec.directions:
            yield from _few(f"spec.{direction}", len(rules))
            for index, rule in enumerate(rules):
                where = f"spec.{direction}[{index}]"
                if len(rule.name) > MOST_NAME:
                    yield f"{where}.name", f"has {len(rule.name)} characters", f"write {MOST_NAME} at most"
                yield from _few(f"{where}.{field}", len(rule.peers))
                yield from _few(f"{where}.protocols", len(rule.protocols))
                for number, peer in enumerate(rule.peers):
                    yield from _peer(f"{where}.{field}[{number}]", peer)
                for number, protocol in enumerate(rule.protocols):
                    yield from _protocol(f"{where}.protocols[{number}]", protocol)


def _set_fields(record: Record) -> list[str]:
    """Return the names of the fields that are not as they are by default."""
    return list(msgspec.to_builtins(record))


def _one_of(where: str, names: list[str], *, least: int = 1) -> Iterator[Problem]:
    if len(names) > 1:
        yield where, f"has {' and '.join(names)}", "keep one of them"
    elif len(names) < least:
        yield where, "is empty", "name whom the policy is for; {} as a selector is everything"


def _few(where: str, count: int) -> Iterator[Problem]:
    if count > MOST_ENTRIES:
        yield where, f"has {count} entries", f"write {MOST_ENTRIES} at most"


def _pods(where: str, namespaces: LabelSelector | None, pods: NamespacedPod | None) -> Iterator[Problem]:
    yield from check_selector(f"{where}.namespaces", namespaces)
    if pods is not None:
        yield from check_selector(f"{where}.pods.namespaceSelector", pods.namespace_selector)
        yield from check_selector(f"{where}.pods.podSelector", pods.pod_selector)


def _peer(where: str, peer: ClusterPolicyPeer) -> Iterator[Problem]:
    yield from _one_of(where, _set_fields(peer), least=0)
    yield from _pods(where, peer.namespaces, peer.pods)
    yield from check_selector(f"{where}.nodes", peer.nodes)
    yield from _few(f"{where}.networks", len(peer.networks))
    yield from _few(f"{where}.domainNames", len(peer.domain_names))
    for number, text in enumerate(peer.networks):
        try:
            parse_block(text)
        except ValueError as error:
            hint = "write a network such as 10.0.0.0/8 or 2001:db8::/32"
            yield f"{where}.networks[{number}]", str(error), hint
    for number, text in enumerate(peer.domain_names):
        if not _DOMAIN_NAME.fullmatch(text):
            hint = "write a name such as www.example.com, or *.example.com for all that is in a domain"
            yield f"{where}.domainNames[{number}]", f"{text!r} is no name of a domain", hint


def _protocol(where: str, protocol: ClusterPolicyProtocol) -> Iterator[Problem]:
    yield from _one_of(where, _set_fields(protocol), least=0)
    if protocol.destination_named_port:
        yield from check_port_name(f"{where}.destinationNamedPort", protocol.destination_named_port)
    for name, match in (("tcp", protocol.tcp), ("udp", protocol.udp), ("sctp", protocol.sctp)):
        port = match.destination_port if match is not None else None
        if port is None:
            continue
        field = f"{where}.{name}.destinationPort"
        yield from _one_of(field, _set_fields(port), least=0)
        if port.number is not None:
            yield from check_port(f"{field}.number", port.number)
        if port.range is not None:
            yield from check_port(f"{field}.range.start", port.range.start)
            yield from check_port(f"{field}.range.end", port.range.end)
            if port.range.start >= port.range.end:
                problem = f"{port.range.start} is not less than the end, {port.range.end}"
                yield f"{field}.range.start", problem, "exchange them, or write one number"


def _subject_text(subject: ClusterPolicySubject) -> str:
    if subject.pods is None:
        return f"all in namespaces {selector_text(subject.namespaces or LabelSelector())}"
    spaces, pods = subject.pods.namespace_selector, subject.pods.pod_selector
    return f"{selector_text(pods)} in namespaces {selector_text(spaces)}"
