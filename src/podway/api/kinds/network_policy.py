"""NetworkPolicy (networking.k8s.io/v1): which connections the pods of a namespace take and make.

Every field of the API is here. What a newer API may add is passed over when an object is read, so a peer can be
empty, and a protocol unknown: planners take such a peer or port to match nothing. `podway apply` refuses both.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

import msgspec

from podway.api.addresses import is_within
from podway.api.audit import SETTABLE, is_audited
from podway.api.columns import AGE, LABELS, NAME, NAMESPACE, Column
from podway.api.fields import (
    Problem,
    check_port,
    check_port_name,
    check_selector,
    parse_block,
)
from podway.api.meta import LabelSelector, Record, selector_text
from podway.api.resource import Names, Resource

PolicyType: TypeAlias = Literal["Ingress", "Egress"]
"""A direction of connections, as seen from the pod."""


class IPBlock(Record, frozen=True, kw_only=True):
    """A network without parts of it. It matches by address alone, whoever has the address."""

    cidr: str
    excepted: tuple[str, ...] = msgspec.field(default=(), name="except")


class NetworkPolicyPeer(Record, frozen=True, kw_only=True):
    """Whom a rule allows: pods (of the policy's own namespace, unless namespaces are selected), or a network."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class NetworkPolicyPort(Record, frozen=True, kw_only=True):
    """Ports of a protocol: all, one, those from `port` to `end_port`, or the destination pod's port of a name."""

    protocol: str = "TCP"
    port: int | str | None = None
    end_port: int | None = None


class NetworkPolicyIngressRule(Record, frozen=True, kw_only=True):
    """Connections that are taken. An empty list is no condition."""

    sources: tuple[NetworkPolicyPeer, ...] = msgspec.field(default=(), name="from")
    ports: tuple[NetworkPolicyPort, ...] = ()

    @property
    def peers(self) -> tuple[NetworkPolicyPeer, ...]:
        """The other ends."""
        return self.sources


class NetworkPolicyEgressRule(Record, frozen=True, kw_only=True):
    """Connections that are made. An empty list is no condition."""

    destinations: tuple[NetworkPolicyPeer, ...] = msgspec.field(default=(), name="to")
    ports: tuple[NetworkPolicyPort, ...] = ()

    @property
    def peers(self) -> tuple[NetworkPolicyPeer, ...]:
        """The other ends."""
        return self.destinations


NetworkPolicyRule: TypeAlias = NetworkPolicyIngressRule | NetworkPolicyEgressRule


class NetworkPolicySpec(Record, frozen=True, kw_only=True):
    """The pods, and what they may do. A direction named in `policy_types` is denied but for its rules."""

    pod_selector: LabelSelector = LabelSelector()
    ingress: tuple[NetworkPolicyIngressRule, ...] = ()
    egress: tuple[NetworkPolicyEgressRule, ...] = ()
    policy_types: tuple[PolicyType, ...] = ()

    @property
    def isolated(self) -> tuple[PolicyType, ...]:
        """The directions that the policy isolates: by default ingress, and egress if there are rules for it."""
        return self.policy_types or (("Ingress", "Egress") if self.egress else ("Ingress",))

    @property
    def directions(self) -> tuple[tuple[str, str, tuple[NetworkPolicyRule, ...]], ...]:
        """The fields of the two directions: their names, the names of their peers, and the rules."""
        return (("ingress", "from", self.ingress), ("egress", "to", self.egress))


class NetworkPolicy(Resource, frozen=True, kw_only=True):
    """What the owner of a namespace allows its pods; several policies allow the union of what each does."""

    KIND: ClassVar = "NetworkPolicy"
    NAMESPACED: ClassVar = True
    NAMES: ClassVar = Names("networkpolicies", short=("netpol",))
    COLUMNS: ClassVar = (
        NAMESPACE,
        NAME,
        Column("PODS", lambda policy, _: selector_text(policy.spec.pod_selector)),
        Column("ISOLATES", lambda policy, _: ",".join(policy.spec.isolated).lower()),
        Column("INGRESS", lambda policy, _: f"{len(policy.spec.ingress)} rules", wide=True),
        Column("EGRESS", lambda policy, _: f"{len(policy.spec.egress)} rules", wide=True),
        Column("AUDITED", lambda policy, _: "yes" if is_audited(policy) else "no", wide=True),
        AGE,
        LABELS,
    )
    COMPLETE: ClassVar = True
    IN_VIEW: ClassVar = True
    SETTABLE: ClassVar = SETTABLE

    api_version: Literal["networking.k8s.io/v1"] = "networking.k8s.io/v1"
    kind: Literal["NetworkPolicy"] = "NetworkPolicy"
    spec: NetworkPolicySpec = NetworkPolicySpec()

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in selectors, networks and ports, as Kubernetes' API server does."""
        yield from check_selector("spec.podSelector", self.spec.pod_selector)
        for direction, field, rules in self.spec.directions:
            for index, rule in enumerate(rules):
                where = f"spec.{direction}[{index}]"
                for number, peer in enumerate(rule.peers):
                    yield from _peer(f"{where}.{field}[{number}]", peer)
                for number, port in enumerate(rule.ports):
                    yield from _port(f"{where}.ports[{number}]", port)


def _peer(where: str, peer: NetworkPolicyPeer) -> Iterator[Problem]:
    yield from check_selector(f"{where}.podSelector", peer.pod_selector)
    yield from check_selector(f"{where}.namespaceSelector", peer.namespace_selector)
    block = peer.ip_block
    if block is None:
        return
    if peer.pod_selector is not None or peer.namespace_selector is not None:
        yield f"{where}.ipBlock", "stands beside a selector", "write it as an item of its own, with a dash"
    try:
        network = parse_block(block.cidr)
    except ValueError as error:
        yield f"{where}.ipBlock.cidr", str(error), "write a network such as 10.0.0.0/8 or 2001:db8::/32"
        return
    for number, text in enumerate(block.excepted):
        field = f"{where}.ipBlock.except[{number}]"
        try:
            part = parse_block(text)
        except ValueError as error:
            yield field, str(error), f"write a network inside {network}"
            continue
        if part == network or not is_within(part, network):
            yield field, f"{part} is no part of {network}", "remove it, or correct it"


def _port(where: str, port: NetworkPolicyPort) -> Iterator[Problem]:
    match port.port:
        case None:
            if port.end_port is not None:
                yield f"{where}.endPort", "stands without port", "write the first port of the range beside it"
        case str(name):
            yield from check_port_name(f"{where}.port", name)
            if port.end_port is not None:
                yield f"{where}.endPort", f"stands beside the port name {name!r}", "write the first port's number"
        case number:
            yield from check_port(f"{where}.port", number)
            if port.end_port is not None:
                yield from check_port(f"{where}.endPort", port.end_port)
                if port.end_port < number:
                    yield f"{where}.endPort", f"{port.end_port} is less than port {number}", "exchange them"
