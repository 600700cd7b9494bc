"""Policies as rules that can be compared: peers, ports as prefixes, precedence. Pure.

What a policy says that cannot be understood fails closed: a NetworkPolicy's peer or port then matches nothing;
a ClusterNetworkPolicy's rule matches nothing if it accepts, and denies everything if not, as its API wants it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_network
from typing import NamedTuple, TypeAlias

from podway.api.audit import is_audited
from podway.api.kinds.cluster_network_policy import (
    ACTIONS,
    ClusterNetworkPolicy,
    ClusterPolicyPeer,
    ClusterPolicyPort,
    ClusterPolicyProtocol,
    ClusterPolicyRule,
    NamespacedPod,
)
from podway.api.kinds.network_policy import (
    IPBlock,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicyRule,
)
from podway.api.meta import LabelSelector
from podway.api.resource import Key, key
from podway.policy.maps import ANY_PROTOCOL, Direction, Prefix, RuleName, Tier, Verdict
from podway.policy.matching import NODES, Selection
from podway.policy.names import plain
from podway.policy.selectors import EVERYTHING, selector_of

PROTOCOLS: Mapping[str, int] = {"TCP": 6, "UDP": 17, "SCTP": 132}
"""The protocols that policies speak of, by their numbers (IANA)."""

ISOLATED = 0
"""The precedence of a denial by isolation, below that of every rule of a NetworkPolicy."""

MOST_PORT = 65535
_MOST_PRIORITY = 1000
_MOST_RANK = (1 << 15) - 1
_MOST_INDEX = (1 << 5) - 1


class Block(NamedTuple):
    """A network without parts of it."""

    network: Prefix
    excepted: frozenset[Prefix] = frozenset()


class DomainName(NamedTuple):
    """The addresses that bear a name, as DNS told pods; `*.` before a domain stands for one or more labels."""

    pattern: str


Peers: TypeAlias = frozenset[Selection | Block | DomainName]
"""Other ends of connections: those that any of these matches."""


class PortPrefix(NamedTuple):
    """Ports of a protocol that share their leading bits."""

    protocol: int = ANY_PROTOCOL
    port: int = 0
    length: int = 0


EVERY_PORT = PortPrefix()


class NamedPort(NamedTuple):
    """The port that the destination pod serves under a name; of any protocol if it is 0."""

    name: str
    protocol: int = ANY_PROTOCOL


class PolicyRule(NamedTuple):
    """One rule of a policy. `peers` None is everybody, whatever their address."""

    name: RuleName
    tier: Tier
    verdict: Verdict
    precedence: int
    peers: Peers | None
    ports: tuple[PortPrefix, ...]
    named: tuple[NamedPort, ...] = ()


class PolicyRules(NamedTuple):
    """A policy: its subjects (None: nobody), and for each direction that it affects the rules."""

    key: Key
    subject: Selection | None
    ingress: tuple[PolicyRule, ...] | None
    egress: tuple[PolicyRule, ...] | None
    isolates: bool
    """Whether what none of the rules allows is denied, in the directions that are affected."""
    audited: bool = False
    """Whether it is only told what the policy would deny."""

    def of(self, direction: Direction) -> tuple[PolicyRule, ...] | None:
        """Return the rules of a direction, None if the policy does not affect it."""
        return self.ingress if direction is Direction.INGRESS else self.egress


def rules_of_network_policy(policy: NetworkPolicy) -> PolicyRules:
    """Return a NetworkPolicy's rules. They all allow, so their order means nothing."""
    spec, isolated = policy.spec, policy.spec.isolated
    return PolicyRules(
        key=key(policy),
        subject=Selection(policy.metadata.namespace, None, selector_of(spec.pod_selector)),
        ingress=_allowing(policy, Direction.INGRESS, spec.ingress) if "Ingress" in isolated else None,
        egress=_allowing(policy, Direction.EGRESS, spec.egress) if "Egress" in isolated else None,
        isolates=True,
        audited=is_audited(policy),
    )


def rules_of_cluster_policy(policy: ClusterNetworkPolicy, rank: int = 0) -> PolicyRules:
    """Return a ClusterNetworkPolicy's rules, in their order.

    `rank` tells policies of the same tier and priority apart: the API leaves their order open, Podway asks them in
    the order of their names.
    """
    spec = policy.spec
    return PolicyRules(
        key=key(policy),
        subject=_pods(spec.subject.namespaces, spec.subject.pods),
        ingress=tuple(_deciding(policy, Direction.INGRESS, spec.ingress, rank)) or None,
        egress=tuple(_deciding(policy, Direction.EGRESS, spec.egress, rank)) or None,
        isolates=False,
        audited=is_audited(policy),
    )


def split_range(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield the fewest prefixes (value, length) that together are the ports from first to last, both included."""
    while first <= last:
        size = first & -first or MOST_PORT + 1
        while size > last - first + 1:
            size >>= 1
        yield first, 17 - size.bit_length()
        first += size


@lru_cache(maxsize=4096)
def parse_block(text: str) -> Prefix | None:
    """Return a network; host bits are passed over, as Kubernetes does. None for what is no network."""
    try:
        return Prefix.of(ip_network(text, strict=False))
    except ValueError:
        return None


def _allowing(
    policy: NetworkPolicy,
    direction: Direction,
    rules: Sequence[NetworkPolicyRule],
) -> tuple[PolicyRule, ...]:
    namespace = policy.metadata.namespace
    found = []
    for index, rule in enumerate(rules):
        peers: Peers | None = None
        if rule.peers:
            peers = frozenset(known for one in rule.peers if (known := _peer(one, namespace)) is not None)
        ports, named = _ports(rule.ports)
        if peers != frozenset() and (ports or named):
            name = RuleName(key(policy), direction, index)
            found.append(
                PolicyRule(name, Tier.NETWORK_POLICY, Verdict.ALLOW, ISOLATED + 1, peers, ports, named),
            )
    return tuple(found)


def _peer(peer: NetworkPolicyPeer, namespace: str) -> Selection | Block | None:
    if peer.ip_block is not None:
        alone = peer.pod_selector is None and peer.namespace_selector is None
        return _block(peer.ip_block) if alone else None
    if peer.pod_selector is None and peer.namespace_selector is None:
        return None
    labels = EVERYTHING if peer.pod_selector is None else selector_of(peer.pod_selector)
    if peer.namespace_selector is None:
        return Selection(namespace, None, labels)
    return Selection(None, selector_of(peer.namespace_selector), labels)


def _block(block: IPBlock) -> Block | None:
    network, excepted = parse_block(block.cidr), [parse_block(text) for text in block.excepted]
    if network is None or None in excepted:
        return None
    return Block(network, frozenset(filter(None, excepted)))


def _ports(ports: tuple[NetworkPolicyPort, ...]) -> tuple[tuple[PortPrefix, ...], tuple[NamedPort, ...]]:
    if not ports:
        return (EVERY_PORT,), ()
    numbers: list[PortPrefix] = []
    names: list[NamedPort] = []
    for one in ports:
        protocol = PROTOCOLS.get(one.protocol)
        if protocol is None:
            continue
        match one.port:
            case None:
                numbers.append(PortPrefix(protocol))
            case str(name):
                names.append(NamedPort(name, protocol))
            case first:
                last = first if one.end_port is None else one.end_port
                numbers += _prefixes(protocol, first, last)
    return _unique(numbers), tuple(dict.fromkeys(names))


def _prefixes(protocol: int, first: int, last: int) -> Iterator[PortPrefix]:
    if 0 < first <= last <= MOST_PORT:
        for value, length in split_range(first, last):
            yield PortPrefix(protocol, value, length)


def _unique(ports: Iterable[PortPrefix]) -> tuple[PortPrefix, ...]:
    return tuple(dict.fromkeys(ports))


def _deciding(
    policy: ClusterNetworkPolicy,
    direction: Direction,
    rules: Sequence[ClusterPolicyRule],
    rank: int,
) -> Iterator[PolicyRule]:
    """Yield the rules of a direction; one that can match nothing is among them, for its policy affects the pod."""
    tier = Tier.ADMIN if policy.spec.tier == "Admin" else Tier.BASELINE
    base = (_MOST_PRIORITY - policy.spec.priority) << 20 | (_MOST_RANK - min(rank, _MOST_RANK)) << 5
    for index, rule in enumerate(rules):
        name = RuleName(key(policy), direction, index, rule.name)
        precedence = base | (_MOST_INDEX - min(index, _MOST_INDEX))
        verdict = {"Accept": Verdict.ALLOW, "Pass": Verdict.PASS}.get(rule.action, Verdict.DENY)
        if _understood(rule, direction):
            peers = frozenset(part for peer in rule.peers for part in _cluster_peer(peer))
            ports, named = _protocols(rule.protocols)
            yield PolicyRule(name, tier, verdict, precedence, peers, ports, named)
        elif verdict is Verdict.ALLOW:
            yield PolicyRule(name, tier, verdict, precedence, frozenset(), ())
        else:
            yield PolicyRule(name, tier, Verdict.DENY, precedence, None, (EVERY_PORT,))


def _understood(rule: ClusterPolicyRule, direction: Direction) -> bool:
    """Tell whether everything that a rule says is known and can be enforced."""
    return (
        rule.action in ACTIONS
        and bool(rule.peers)
        and all(_enforceable(peer, rule.action, direction) for peer in rule.peers)
        and all(map(_known_protocol, rule.protocols))
    )


def _enforceable(peer: ClusterPolicyPeer, action: str, direction: Direction) -> bool:
    if peer.domain_names and action != "Accept":
        return False
    outside = bool(peer.networks or peer.domain_names) or peer.nodes is not None
    return (
        peer.known
        and not (outside and direction is Direction.INGRESS)
        and all(parse_block(text) is not None for text in peer.networks)
    )


def _known_protocol(protocol: ClusterPolicyProtocol) -> bool:
    matches = [match for match in (protocol.tcp, protocol.udp, protocol.sctp) if match is not None]
    ports = [match.destination_port for match in matches if match.destination_port is not None]
    return protocol.known and all(port.number is not None or port.range is not None for port in ports)


def _cluster_peer(peer: ClusterPolicyPeer) -> Iterator[Selection | Block | DomainName]:
    pods = _pods(peer.namespaces, peer.pods)
    if pods is not None:
        yield pods
    if peer.nodes is not None:
        yield Selection(NODES, None, selector_of(peer.nodes))
    for text in peer.networks:
        network = parse_block(text)
        if network is not None:
            yield Block(network)
    for name in peer.domain_names:
        yield DomainName(plain(name))


def _pods(namespaces: LabelSelector | None, pods: NamespacedPod | None) -> Selection | None:
    if namespaces is not None:
        return Selection(None, selector_of(namespaces), EVERYTHING)
    if pods is None:
        return None
    return Selection(None, selector_of(pods.namespace_selector), selector_of(pods.pod_selector))


def _protocols(
    protocols: tuple[ClusterPolicyProtocol, ...],
) -> tuple[tuple[PortPrefix, ...], tuple[NamedPort, ...]]:
    if not protocols:
        return (EVERY_PORT,), ()
    numbers: list[PortPrefix] = []
    names: list[NamedPort] = []
    for one in protocols:
        if one.destination_named_port:
            names.append(NamedPort(one.destination_named_port))
        for name, match in (("TCP", one.tcp), ("UDP", one.udp), ("SCTP", one.sctp)):
            if match is not None:
                numbers += _cluster_ports(PROTOCOLS[name], match.destination_port)
    return _unique(numbers), tuple(dict.fromkeys(names))


def _cluster_ports(protocol: int, port: ClusterPolicyPort | None) -> Iterator[PortPrefix]:
    if port is None:
        yield PortPrefix(protocol)
    elif port.range is not None:
        yield from _prefixes(protocol, port.range.start, port.range.end)
    elif port.number is not None:
        yield from _prefixes(protocol, port.number, port.number)
