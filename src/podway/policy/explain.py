"""Why a connection is allowed or denied: what both ends' rules say, by the entries that their nodes would have.

Nothing is asked of a kernel: what is explained is what the cluster's objects mean. Pure.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from podway.api.addresses import Address, Family
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Key, Resource, key, of_kind, subject
from podway.errors import InvalidArgument, NotFound
from podway.policy.lookup import Decision, PolicyMaps
from podway.policy.maps import Direction, EndpointRules, PodName, Prefix, RuleName
from podway.policy.names import plain
from podway.policy.planner import PolicyPlanner

_NOWHERE: tuple[Address, ...] = (IPv4Address(0), IPv6Address(0))
"""Stand for addresses that bear a name, and are nobody's of whom anything else is known."""


class End(msgspec.Struct, frozen=True):
    """One end of a connection: a pod, a node or an address."""

    name: str
    addresses: tuple[Address, ...]
    pod: Pod | None = None
    node: str = ""
    """The node that a pod runs on, or that the end is."""
    domain: str = ""
    """The name of DNS that some address bears, whose the end is."""


class Reason(msgspec.Struct, frozen=True):
    """What is said of a connection in one direction, and why."""

    direction: str
    pod: str
    allowed: bool
    reason: str
    selected: bool = False
    """Whether any policy selects the pod for this direction."""
    audit: str = ""
    """Why it would be denied if the policies that are audited were enforced; empty if it would not."""
    unless_named: bool = False
    """Whether it is denied only if the pod's node does not know the peer by a name in its policies."""


class Explanation(msgspec.Struct, frozen=True):
    """The verdict on a connection."""

    source: str
    destination: str
    address: str
    allowed: bool
    reasons: tuple[Reason, ...]


def find_end(objects: Iterable[Resource], text: str, namespace: str) -> End:
    """Return the end of this name: an address, NAMESPACE/POD, POD, a node, or a domain. Raises NotFound."""
    known = tuple(objects)
    try:
        address = ip_address(text)
    except ValueError:
        pass
    else:
        return _at(known, address)
    space, _, name = text.rpartition("/")
    for pod in of_kind(Pod, known):
        if (pod.metadata.namespace, pod.metadata.name) == (space or namespace, name):
            return End(subject(key(pod)), pod.addresses, pod, pod.spec.node_name)
    for node in of_kind(Node, known):
        if not space and node.metadata.name == name:
            return End(subject(key(node)), node.internal_addresses, None, name)
    if not space and "." in name.strip("."):
        return End(text, _NOWHERE, domain=plain(name))
    raise NotFound(f"there is no pod {space or namespace}/{name}, and no node {name}", hint="podway get pods -A")


def explain(
    objects: Iterable[Resource], source: End, destination: End, protocol: int, port: int
) -> tuple[Explanation, ...]:
    """Return the verdict on a connection, for each family that both ends have. Raises InvalidArgument if none."""
    known = tuple(objects)
    pairs = [(a, b) for b in destination.addresses for a in source.addresses if a.version == b.version]
    if not pairs:
        raise InvalidArgument(
            f"{source.name} and {destination.name} have no addresses of one family",
            hint="a pod has addresses once it runs; look at them: podway get pods -A",
        )
    judge = Judge(known, destination.domain)
    found = []
    for near, far in pairs:
        reasons = judge.reasons(source, destination, (near, far), protocol, port)
        allowed = all(reason.allowed for reason in reasons)
        where = f"any {Family.of(far).label} address of it" if destination.domain else str(far)
        found.append(Explanation(f"{source.name}", f"{destination.name}", where, allowed, reasons))
    return tuple(found)


class Judge:
    """Judges many connections in a cluster; each node's entries are compiled once."""

    def __init__(self, objects: Iterable[Resource], domain: str = "") -> None:
        """Know the objects; a `domain` is the name of an address that is neither a pod's nor a node's."""
        self._objects = tuple(objects)
        self._domain = domain
        self._compiled: dict[str, tuple[PolicyPlanner, PolicyMaps]] = {}

    def reasons(
        self, source: End, destination: End, addresses: tuple[Address, Address], protocol: int, port: int
    ) -> tuple[Reason, ...]:
        """Return what each end's rules say of a connection between two of their addresses."""
        for end in (source, destination):
            if end.pod is not None and end.node not in self._compiled:
                self._compiled[end.node] = compile_node(self._objects, end.node, self._domain)
        return tuple(_reasons(self._compiled, source, destination, addresses, protocol, port))


def compile_node(objects: Iterable[Resource], node: str, domain: str = "") -> tuple[PolicyPlanner, PolicyMaps]:
    """Return the planner of a node that was fed with all objects, and the maps that it gives.

    Of names of DNS it knows only the `domain`, which it takes for that of the address `End.domain` stands for.
    """
    planner, maps = PolicyPlanner(node), PolicyMaps()
    for obj in objects:
        planner.put(obj)
    for address in _NOWHERE if domain else ():
        planner.bear(Prefix.host_of(address), {domain})
    maps.apply(planner.settle())
    return planner, maps


def policies_of(objects: Iterable[Resource], pod: Pod) -> tuple[tuple[Key, tuple[Direction, ...]], ...]:
    """Return the policies that select a pod, in the order of their names, with the directions that they affect."""
    planner, _ = compile_node(objects, pod.spec.node_name)
    selecting = planner.policies_of((pod.metadata.namespace, pod.metadata.name))
    return tuple(
        (rules.key, tuple(direction for direction in Direction if rules.of(direction) is not None))
        for rules in selecting
    )


def _at(objects: tuple[Resource, ...], address: Address) -> End:
    for pod in of_kind(Pod, objects):
        if not pod.spec.host_network and address in pod.addresses:
            return End(subject(key(pod)), (address,), pod, pod.spec.node_name)
    for node in of_kind(Node, objects):
        if address in node.internal_addresses:
            return End(subject(key(node)), (address,), None, node.metadata.name)
    return End(str(address), (address,))


def _reasons(
    compiled: dict[str, tuple[PolicyPlanner, PolicyMaps]],
    source: End,
    destination: End,
    addresses: tuple[Address, Address],
    protocol: int,
    port: int,
) -> Iterator[Reason]:
    if addresses[0] == addresses[1]:
        yield Reason("", source.name, allowed=True, reason="a pod always reaches itself")
        return
    ends = ((Direction.EGRESS, source, addresses[1]), (Direction.INGRESS, destination, addresses[0]))
    for direction, end, peer in ends:
        if end.pod is None:
            continue
        if end.pod.spec.host_network:
            yield Reason(direction, end.name, allowed=True, reason="no policy is for pods of the host's network")
            continue
        if direction is Direction.INGRESS and source.pod is None and source.node == end.node:
            yield Reason(direction, end.name, allowed=True, reason="its own node always reaches it")
            continue
        planner, maps = compiled[end.node]
        name: PodName = (end.pod.metadata.namespace, end.pod.metadata.name)
        rules = maps.endpoints.get(name, EndpointRules())
        number, audited = rules.of(direction), rules.of(direction, audit=True)
        decision = maps.decide(number, Prefix.host_of(peer), protocol, port)
        reason = why(decision, planner.rule_name(decision.rule), selected=bool(number))
        by_name = direction is Direction.EGRESS and not destination.domain and number in planner.naming
        unless_named = by_name and not decision.allowed
        if unless_named:
            reason += ", unless its node knows the address by a name in its policies (podway policy names)"
        would_be = maps.decide(audited, Prefix.host_of(peer), protocol, port)
        audit = "" if would_be.allowed else why(would_be, planner.rule_name(would_be.rule), selected=True)
        selected = bool(number or audited)
        told = audit if decision.allowed else ""
        yield Reason(direction, end.name, decision.allowed, reason, selected, told, unless_named)


def why(decision: Decision, name: RuleName | None, *, selected: bool) -> str:
    """Return the reason of a decision in words."""
    if name is None:
        return "no rule of its policies speaks of it" if selected else "no policy selects it"
    if name.place is None:
        policies = ", ".join(map(subject, name.policies))
        return f"it is isolated by {policies}, and no rule allows it"
    named = f" ({name.name})" if name.name else ""
    verb = "allows" if decision.allowed else "denies"
    return f"rule {name.direction}[{name.place}]{named} of {subject(name.policy)} {verb} it"
