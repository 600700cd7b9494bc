"""What a policy may say today: what cannot be understood, or is not enforced, is refused when it is written. Pure.

In a store such things may be all the same, written by a newer Kubernetes; planners let them fail closed.
"""

from collections.abc import Iterator, Sequence

from podway.api.fields import PROTOCOLS, Problem
from podway.api.kinds.cluster_network_policy import ACTIONS, ClusterNetworkPolicy, ClusterPolicyPeer
from podway.api.kinds.network_policy import NetworkPolicy, NetworkPolicyPeer
from podway.api.resource import Resource, invalid


def check_change(new: Resource, others: Sequence[Resource], old: Resource | None) -> None:
    """Check that all of a policy is understood. Raises InvalidObject."""
    match new:
        case NetworkPolicy():
            problems = _of_network_policy(new)
        case ClusterNetworkPolicy():
            problems = _of_cluster_policy(new)
        case _:
            return
    for problem in problems:
        raise invalid(new, *problem)


def _of_network_policy(policy: NetworkPolicy) -> Iterator[Problem]:
    for direction, field, rules in policy.spec.directions:
        for index, rule in enumerate(rules):
            where = f"spec.{direction}[{index}]"
            for number, peer in enumerate(rule.peers):
                if peer == NetworkPolicyPeer():
                    hint = "write podSelector, namespaceSelector or ipBlock; `podSelector: {}` is every pod here"
                    yield f"{where}.{field}[{number}]", "names nobody", hint
            for number, port in enumerate(rule.ports):
                if port.protocol not in PROTOCOLS:
                    problem = f"{port.protocol!r} is no protocol of policies"
                    yield f"{where}.ports[{number}].protocol", problem, f"write {', '.join(PROTOCOLS)}"


def _outside(peer: ClusterPolicyPeer) -> str:
    """Return the field, if any, by which a peer means others than pods."""
    if peer.networks:
        return "networks"
    return "nodes" if peer.nodes is not None else "domainNames" if peer.domain_names else ""


def _of_cluster_policy(policy: ClusterNetworkPolicy) -> Iterator[Problem]:
    for direction, field, rules in policy.spec.directions:
        for index, rule in enumerate(rules):
            where = f"spec.{direction}[{index}]"
            if rule.action not in ACTIONS:
                yield f"{where}.action", f"{rule.action!r} is no action", f"write {', '.join(ACTIONS)}"
            if not rule.peers:
                yield f"{where}.{field}", "is missing", "name the peers; `- namespaces: {}` is every pod"
            named = any(protocol.destination_named_port for protocol in rule.protocols)
            for number, peer in enumerate(rule.peers):
                here = f"{where}.{field}[{number}]"
                if not peer.known:
                    yield (
                        here,
                        "names nobody",
                        "write namespaces or pods; for egress also nodes, networks or domainNames",
                    )
                if peer.domain_names and rule.action != "Accept":
                    hint = "accept names, and deny the rest by networks: 0.0.0.0/0 and ::/0"
                    yield f"{here}.domainNames", f"cannot be a peer of {rule.action}", hint
                outside = _outside(peer)
                if outside and direction == "ingress":
                    yield f"{here}.{outside}", "can be a peer of egress only", "write namespaces or pods"
                if outside and named:
                    problem = "has no named ports, which the rule asks for"
                    yield f"{here}.{outside}", problem, "write a rule for it with the port's number"
            for number, protocol in enumerate(rule.protocols):
                if not protocol.known:
                    hint = "write tcp, udp, sctp or destinationNamedPort"
                    yield f"{where}.protocols[{number}]", "names no protocol", hint
