"""What people get wrong in policies that are valid: they mean something else than what was meant. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from podway.api.addresses import Address, Network, is_within
from podway.api.audit import AUDIT
from podway.api.fields import Problem, parse_block
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.resource import Key, Resource, key, of_kind, subject
from podway.policy.maps import ANY_PROTOCOL
from podway.policy.matching import NAMESPACE_NAME, Selection
from podway.policy.names import resolvers
from podway.policy.rules import (
    PROTOCOLS,
    PolicyRule,
    PolicyRules,
    rules_of_cluster_policy,
    rules_of_network_policy,
)
from podway.policy.selectors import matches

DNS = 53
"""The port of DNS (RFC 1035), of UDP and of TCP."""


def lint(objects: Iterable[Resource], *, pods_may_come: bool = False) -> tuple[tuple[Key, Problem], ...]:
    """Return for each policy what is probably not meant: the field, what is wrong with it, and what to do.

    With `pods_may_come` nothing is said of a policy that selects no pod: it may be written before its pods.
    """
    known = tuple(objects)
    served = _Served(known)
    pods: dict[str, list[Pod]] = defaultdict(list)
    for pod in of_kind(Pod, known):
        if not pod.spec.host_network:
            pods[pod.metadata.namespace].append(pod)
    spaces = _spaces(known)
    servers = [text for config in of_kind(NetworkConfig, known) for text in config.spec.dns_servers]
    believed = resolvers(servers, of_kind(Service, known), of_kind(Pod, known))
    found: list[tuple[Key, Problem]] = []
    for policy in of_kind(NetworkPolicy, known):
        rules = rules_of_network_policy(policy)
        problems = (*_mark(policy), *_ignored(policy), *_without_dns(rules), *_of_services(policy, served))
        if not pods_may_come:
            problems = (*_selects_nothing(rules, pods, spaces), *problems)
        found += [(key(policy), problem) for problem in problems]
    equals: dict[tuple[str, int], list[ClusterNetworkPolicy]] = defaultdict(list)
    for cluster_policy in of_kind(ClusterNetworkPolicy, known):
        equals[cluster_policy.spec.tier, cluster_policy.spec.priority].append(cluster_policy)
        rules = rules_of_cluster_policy(cluster_policy)
        problems = (*_mark(cluster_policy), *_of_services(cluster_policy, served))
        if not believed:
            problems = (*problems, *_unheard(cluster_policy))
        if not pods_may_come:
            problems = (*_selects_nothing(rules, pods, spaces), *problems)
        found += [(key(cluster_policy), problem) for problem in problems]
    for (tier, priority), policies in equals.items():
        for policy_ in policies[1:]:
            other = subject(key(policies[0]))
            problem = f"{priority} is that of {other} in tier {tier}, too: the API leaves their order open"
            found.append(
                (key(policy_), ("spec.priority", problem, "give each policy of a tier a priority of its own"))
            )
    return tuple(sorted(found))


class Doors:
    """Says of pods which of their ports no peer may call, whoever it is."""

    def __init__(self, objects: Iterable[Resource]) -> None:
        known = tuple(objects)
        self._spaces = _spaces(known)
        self._rules = [rules_of_network_policy(policy) for policy in of_kind(NetworkPolicy, known)]
        self._cluster = [rules_of_cluster_policy(policy) for policy in of_kind(ClusterNetworkPolicy, known)]

    def shut_by(self, pod: Pod, protocol: int, port: int) -> tuple[Key, ...]:
        """Return the NetworkPolicies that isolate a pod and none of which lets anybody in there.

        Empty where somebody may come in, or where policies of the cluster decide.
        """
        if pod.spec.host_network or any(self._selecting(self._cluster, pod)):
            return ()
        isolating = [rules for rules in self._selecting(self._rules, pod) if rules.ingress is not None]
        if any(
            rule.named or _speaks_of(rule, protocol, port) for rules in isolating for rule in rules.ingress or ()
        ):
            return ()
        return tuple(rules.key for rules in isolating)

    def _selecting(self, every: Iterable[PolicyRules], pod: Pod) -> Iterator[PolicyRules]:
        return (one for one in every if one.subject is not None and _selected(one.subject, pod, self._spaces))


def _spaces(objects: Iterable[Resource]) -> dict[str, dict[str, str]]:
    """Return the labels of namespaces, by their names."""
    return {
        space.metadata.name: {**space.metadata.labels, NAMESPACE_NAME: space.metadata.name}
        for space in of_kind(Namespace, objects)
    }


def _selects_nothing(
    rules: PolicyRules, pods: Mapping[str, Sequence[Pod]], spaces: Mapping[str, Mapping[str, str]]
) -> Iterator[Problem]:
    """Compare a policy with the pods, by their namespaces."""
    wanted = rules.subject
    if wanted is None:
        return
    inside: Iterable[str | None] = (wanted.namespace,)
    if wanted.namespaces is not None:
        inside = [name for name, labels in spaces.items() if matches(wanted.namespaces, labels)]
    if not any(matches(wanted.labels, pod.metadata.labels) for name in inside for pod in pods.get(name or "", ())):
        field = "spec.podSelector" if rules.isolates else "spec.subject"
        yield field, "selects no pod", "compare it with the pods' labels: podway get pods -A -o wide"


def _selected(selection: Selection, pod: Pod, spaces: dict[str, dict[str, str]]) -> bool:
    where = pod.metadata.namespace
    if selection.namespaces is None:
        inside = where == selection.namespace
    else:
        inside = where in spaces and matches(selection.namespaces, spaces[where])
    return inside and matches(selection.labels, pod.metadata.labels)


class _Served:
    """The addresses of Services within the cluster, and where else addresses of the cluster are."""

    def __init__(self, objects: tuple[Resource, ...]) -> None:
        self.ranges = [one for config in of_kind(NetworkConfig, objects) for one in config.spec.service_networks]
        self.pools = [pool.network for pool in of_kind(IPPool, objects) if not pool.for_services]
        self.addresses: Mapping[Address, Key] = {
            address: key(service) for service in of_kind(Service, objects) for address in service.cluster_addresses
        }

    def within(self, network: Network) -> str:
        """Say whose addresses a network is for, if it is for Services alone; empty if it is not."""
        if any(network.version == one.version and is_within(network, one) for one in self.ranges):
            return f"are Services' (spec.serviceCidrs), of which {network} is a part"
        if not network.prefixlen or any(network.overlaps(pool) for pool in self.pools if _alike(network, pool)):
            return ""
        owner = next((one for address, one in self.addresses.items() if address in network), None)
        return f"are Services': {network} has that of {subject(owner)}" if owner else ""


def _alike(one: Network, other: Network) -> bool:
    return one.version == other.version


def _of_services(policy: NetworkPolicy | ClusterNetworkPolicy, served: _Served) -> Iterator[Problem]:
    """A Service's address in a network: what connections are judged by is the address of the pod that serves."""
    hint = "select the pods behind the Service, by their labels and their own ports"
    for field, text in _networks(policy):
        try:
            network = parse_block(text)
        except ValueError:
            continue  # it matches nothing; whoever applies it is told
        if told := served.within(network):
            yield field, f"matches no connection to a Service: its addresses {told}", hint


def _networks(policy: NetworkPolicy | ClusterNetworkPolicy) -> Iterator[tuple[str, str]]:
    """Yield the networks in a policy's rules, with their fields."""
    if isinstance(policy, NetworkPolicy):
        for direction, field, rules in policy.spec.directions:
            for index, rule in enumerate(rules):
                for number, peer in enumerate(rule.peers):
                    if peer.ip_block is not None:
                        yield f"spec.{direction}[{index}].{field}[{number}].ipBlock.cidr", peer.ip_block.cidr
        return
    for direction, field, cluster_rules in policy.spec.directions:
        for index, cluster_rule in enumerate(cluster_rules):
            for number, cluster_peer in enumerate(cluster_rule.peers):
                for place, text in enumerate(cluster_peer.networks):
                    yield f"spec.{direction}[{index}].{field}[{number}].networks[{place}]", text


def _unheard(policy: ClusterNetworkPolicy) -> Iterator[Problem]:
    """Names of domains where nobody is known whose answers are believed."""
    for direction, field, rules in policy.spec.directions:
        for index, rule in enumerate(rules):
            for number, peer in enumerate(rule.peers):
                if peer.domain_names:
                    problem = "matches nothing: no DNS server is known whose answers are believed"
                    hint = "list the cluster's DNS servers in spec.dnsServers of the NetworkConfig"
                    yield f"spec.{direction}[{index}].{field}[{number}].domainNames", problem, hint


def _mark(policy: NetworkPolicy | ClusterNetworkPolicy) -> Iterator[Problem]:
    said = policy.metadata.annotations.get(AUDIT, "true")
    if said not in ("true", "false", ""):
        field = f"metadata.annotations[{AUDIT}]"
        yield (
            field,
            f"{said!r} is no mark: the policy is enforced",
            'write "true" to have it only report, or remove it',
        )


def _ignored(policy: NetworkPolicy) -> Iterator[Problem]:
    for direction, _, rules in policy.spec.directions:
        if rules and direction.capitalize() not in policy.spec.isolated:
            problem = f"has rules that nobody reads: policyTypes lacks {direction.capitalize()}"
            yield f"spec.{direction}", problem, f"add {direction.capitalize()} to spec.policyTypes"


def _without_dns(rules: PolicyRules) -> Iterator[Problem]:
    """A policy that allows some egress, but no DNS: names are what most pods begin with."""
    if not rules.egress:
        return
    lacking = [name for name in ("UDP", "TCP") if not _allows(rules, PROTOCOLS[name], DNS)]
    if lacking:
        problem = f"allows no DNS (port {DNS} of {' and '.join(lacking)}), so names cannot be looked up"
        yield "spec.egress", problem, "add a rule for the DNS pods with that port; another policy may have one"


def _allows(rules: PolicyRules, protocol: int, port: int) -> bool:
    return any(_speaks_of(rule, protocol, port) for rule in rules.egress or ())


def _speaks_of(rule: PolicyRule, protocol: int, port: int) -> bool:
    return any(
        one.protocol in (ANY_PROTOCOL, protocol) and port >> 16 - one.length == one.port >> 16 - one.length
        for one in rule.ports
    )
