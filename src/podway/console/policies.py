"""Policies as the console shows them: their rules in words, and the pods that they select. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from podway.api.kinds.cluster_network_policy import (
    ClusterNetworkPolicy,
    ClusterPolicyPeer,
    ClusterPolicyPort,
    ClusterPolicyProtocol,
    NamespacedPod,
)
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_policy import NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort
from podway.api.kinds.pod import Pod
from podway.api.meta import LabelSelector, selector_text
from podway.api.resource import Resource, key, of_kind, subject
from podway.console.network import Shown
from podway.policy.lint import lint
from podway.policy.matching import NAMESPACE_NAME, Selection
from podway.policy.rules import PolicyRules, rules_of_cluster_policy, rules_of_network_policy
from podway.policy.selectors import LabelIndex, matches

NAMED = 200
"""Pods of one policy that are named; the rest is counted."""


class ShownRule(Shown, frozen=True):
    """A rule: what becomes of connections with whom, at which ports. `place` is as reports call it."""

    place: str
    action: str
    peers: tuple[str, ...]
    ports: tuple[str, ...]
    name: str = ""


class ShownPolicy(Shown, frozen=True):
    """A policy. `key` is what records of flows call it; `isolates` are the directions that it closes."""

    key: str
    kind: str
    namespace: str
    name: str
    selects: str
    count: int
    pods: tuple[str, ...]
    isolates: tuple[str, ...]
    ingress: tuple[ShownRule, ...]
    egress: tuple[ShownRule, ...]
    problems: tuple[str, ...]
    tier: str = ""
    priority: int = 0


def policies(objects: Iterable[Resource]) -> tuple[ShownPolicy, ...]:
    """Return all policies, those of the cluster first, in the order in which they are heard."""
    known = tuple(objects)
    selected = _Selected(known)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for wanted, (field, problem, hint) in lint(known):
        problems[subject(wanted)].append(f"{field}: {problem}: {hint}")
    of_cluster = sorted(
        of_kind(ClusterNetworkPolicy, known),
        key=lambda one: (one.spec.tier, one.spec.priority, one.metadata.name),
    )
    found = [_of_cluster(one, selected, problems[subject(key(one))]) for one in of_cluster]
    found += [_of_namespace(one, selected, problems[subject(key(one))]) for one in of_kind(NetworkPolicy, known)]
    return tuple(found)


class _Selected:
    """Finds the pods that policies select."""

    def __init__(self, objects: Iterable[Resource]) -> None:
        known = tuple(objects)
        self._pods: LabelIndex[str] = LabelIndex()
        self._inside: defaultdict[str, set[str]] = defaultdict(set)
        self._spaces = {
            one.metadata.name: {**one.metadata.labels, NAMESPACE_NAME: one.metadata.name}
            for one in of_kind(Namespace, known)
        }
        for pod in of_kind(Pod, known):
            if not pod.spec.host_network:
                name = f"{pod.metadata.namespace}/{pod.metadata.name}"
                self._pods.put(name, pod.metadata.labels)
                self._inside[pod.metadata.namespace].add(name)

    def by(self, rules: PolicyRules) -> list[str]:
        if rules.subject is None:
            return []
        within = set().union(*(self._inside[space] for space in self._of(rules.subject)))
        return sorted(self._pods.select(rules.subject.labels, within))

    def _of(self, selection: Selection) -> Iterator[str]:
        if selection.namespaces is None:
            yield selection.namespace or ""
            return
        for space, labels in self._spaces.items():
            if matches(selection.namespaces, labels):
                yield space


def _of_namespace(policy: NetworkPolicy, selected: _Selected, problems: Iterable[str]) -> ShownPolicy:
    pods = selected.by(rules_of_network_policy(policy))
    rules = {
        direction: tuple(
            ShownRule(
                f"{direction}[{place}]",
                "Allow",
                tuple(map(_peer, rule.peers)) or ("everybody",),
                tuple(map(_port, rule.ports)) or ("all ports",),
            )
            for place, rule in enumerate(found)
        )
        for direction, _, found in policy.spec.directions
    }
    return ShownPolicy(
        subject(key(policy)),
        policy.KIND,
        policy.metadata.namespace,
        policy.metadata.name,
        selector_text(policy.spec.pod_selector),
        len(pods),
        tuple(pods[:NAMED]),
        tuple(one.lower() for one in policy.spec.isolated),
        rules["ingress"],
        rules["egress"],
        tuple(problems),
    )


def _of_cluster(policy: ClusterNetworkPolicy, selected: _Selected, problems: Iterable[str]) -> ShownPolicy:
    pods = selected.by(rules_of_cluster_policy(policy))
    rules = {
        direction: tuple(
            ShownRule(
                f"{direction}[{place}]",
                rule.action,
                tuple(map(_cluster_peer, rule.peers)),
                tuple(map(_protocol, rule.protocols)) or ("all ports",),
                rule.name,
            )
            for place, rule in enumerate(found)
        )
        for direction, _, found in policy.spec.directions
    }
    wanted = policy.spec.subject
    return ShownPolicy(
        subject(key(policy)),
        policy.KIND,
        "",
        policy.metadata.name,
        _namespaced(wanted.pods) if wanted.pods else _spaces(wanted.namespaces),
        len(pods),
        tuple(pods[:NAMED]),
        (),
        rules["ingress"],
        rules["egress"],
        tuple(problems),
        policy.spec.tier,
        policy.spec.priority,
    )


def _spaces(selector: LabelSelector | None) -> str:
    if selector is None:
        return "nobody"
    text = selector_text(selector)
    return "all namespaces" if text == "all" else f"namespaces {text}"


def _namespaced(pods: NamespacedPod) -> str:
    text = selector_text(pods.pod_selector)
    return f"{'all pods' if text == 'all' else f'pods {text}'} in {_spaces(pods.namespace_selector)}"


def _peer(peer: NetworkPolicyPeer) -> str:
    if peer.ip_block is not None:
        excepted = f" without {', '.join(peer.ip_block.excepted)}" if peer.ip_block.excepted else ""
        return f"{peer.ip_block.cidr}{excepted}"
    pods = selector_text(peer.pod_selector) if peer.pod_selector is not None else "all"
    words = "all pods" if pods == "all" else f"pods {pods}"
    if peer.namespace_selector is not None:
        return f"{words} in {_spaces(peer.namespace_selector)}"
    return f"{words} of this namespace" if peer.pod_selector is not None else "nobody (unknown to this Podway)"


def _port(port: NetworkPolicyPort) -> str:
    if port.port is None:
        return f"{port.protocol}, all ports"
    return f"{port.protocol} {port.port}" + (f"-{port.end_port}" if port.end_port else "")


def _cluster_peer(peer: ClusterPolicyPeer) -> str:
    if peer.pods is not None:
        return _namespaced(peer.pods)
    if peer.namespaces is not None:
        return f"all pods in {_spaces(peer.namespaces)}"
    if peer.nodes is not None:
        return f"nodes {selector_text(peer.nodes)}"
    return ", ".join((*peer.networks, *peer.domain_names)) or "nobody (unknown to this Podway)"


def _protocol(one: ClusterPolicyProtocol) -> str:
    if one.destination_named_port:
        return f"port {one.destination_named_port}"
    for name, match in (("TCP", one.tcp), ("UDP", one.udp), ("SCTP", one.sctp)):
        if match is not None:
            return f"{name} {_numbers(match.destination_port)}"
    return "nothing (unknown to this Podway)"


def _numbers(port: ClusterPolicyPort | None) -> str:
    if port is None:
        return "all ports"
    return f"{port.range.start}-{port.range.end}" if port.range else str(port.number)
