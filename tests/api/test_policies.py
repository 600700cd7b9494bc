"""Policies as they are read: mistakes are told with their field; what a newer API may hold is none."""

from typing import Any

import msgspec
import pytest

from podway.api.decode import decode
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.rules import check_change
from podway.api.validate import problems, validate
from podway.errors import InvalidObject

NETWORK = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
"""
CLUSTER = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guests}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
"""


def read(text: Any) -> Any:
    (manifest,) = decode(text, source="test")
    return manifest.resource


def wrong(text: Any) -> Any:
    """Return the field and problem of the mistake that `podway apply` would tell of a manifest."""
    with pytest.raises(InvalidObject) as caught:
        apply(read(text))
    assert caught.value.hint
    return caught.value.field, caught.value.problem


def apply(policy: Any) -> None:
    validate(policy)
    check_change(policy, [])


def test_a_whole_policy_is_read_and_written_back_as_it_was() -> None:
    text = NETWORK + (
        "  policyTypes: [Ingress, Egress]\n"
        "  ingress:\n"
        "  - from:\n"
        "    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}\n"
        "    - namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [red]}]}\n"
        "      podSelector: {}\n"
        "    ports: [{protocol: UDP, port: 6379, endPort: 6400}, {port: web}]\n"
        "  egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]\n"
    )
    policy = read(text)
    apply(policy)
    assert msgspec.convert(msgspec.to_builtins(policy), NetworkPolicy) == policy
    (rule,) = policy.spec.ingress
    assert rule.sources[0].ip_block.excepted == ("172.17.1.0/24",)
    assert rule.ports[1].protocol == "TCP"
    assert policy.spec.isolated == ("Ingress", "Egress")


def test_both_versions_of_cluster_network_policy_are_read_and_kept() -> None:
    for version in ("v1alpha2", "v1beta1"):
        policy = read(CLUSTER.replace("v1alpha2", version))
        assert policy.api_version == f"policy.networking.k8s.io/{version}"
    assert wrong(CLUSTER.replace("v1alpha2", "v1")) == (
        "apiVersion",
        "'policy.networking.k8s.io/v1' is not known for this kind",
    )


@pytest.mark.parametrize(
    ("rest", "field", "problem"),
    [
        ("podselector: {}", "spec.podselector", "is not a field here"),
        ("ingress: [{form: []}]", "spec.ingress[0].form", "is not a field here"),
        ("ingress: [{from: [{ipblock: {}}]}]", "spec.ingress[0].from[0].ipblock", "is not a field here"),
        ("policyTypes: [ingress]", "spec.policyTypes[0]", "'ingress' is not possible"),
        ("ingress: [{from: [{}]}]", "spec.ingress[0].from[0]", "names nobody"),
        ("egress: [{to: [{ipBlock: {cidr: 10.0.0.1}}]}]", "spec.egress[0].to[0].ipBlock.cidr", "no prefix length"),
        (
            "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]",
            "spec.egress[0].to[0].ipBlock.except[0]",
            "11.0.0.0/16 is no part of 10.0.0.0/8",
        ),
        (
            "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]",
            "spec.egress[0].to[0].ipBlock.except[0]",
            "10.0.0.0/8 is no part of 10.0.0.0/8",
        ),
        (
            "egress: [{to: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
            "spec.egress[0].to[0].ipBlock",
            "stands beside a selector",
        ),
        ("ingress: [{ports: [{port: 0}]}]", "spec.ingress[0].ports[0].port", "0 is out of range"),
        (
            "ingress: [{ports: [{port: 80, endPort: 70}]}]",
            "spec.ingress[0].ports[0].endPort",
            "70 is less than port 80",
        ),
        (
            "ingress: [{ports: [{port: web, endPort: 70}]}]",
            "spec.ingress[0].ports[0].endPort",
            "beside the port name",
        ),
        ("ingress: [{ports: [{endPort: 70}]}]", "spec.ingress[0].ports[0].endPort", "stands without port"),
        ("ingress: [{ports: [{port: Web_1}]}]", "spec.ingress[0].ports[0].port", "'Web_1' is not a port's name"),
        ("ingress: [{ports: [{protocol: ICMP}]}]", "spec.ingress[0].ports[0].protocol", "'ICMP' is no protocol"),
        (
            "ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}]",
            "spec.ingress[0].from[0].podSelector.matchExpressions[0].values",
            "operator In needs values",
        ),
    ],
)
def test_mistakes_in_a_network_policy(rest: Any, field: Any, problem: Any) -> None:
    found = wrong(f"{NETWORK}  {rest}\n")
    assert found[0] == field
    assert problem in found[1]


@pytest.mark.parametrize(
    ("rest", "field", "problem"),
    [
        ("priority: 1001", "spec.priority", "1001 is out of range"),
        ("subject: {}", "spec.subject", "is empty"),
        ("subject: {namespaces: {}, pods: {}}", "spec.subject", "has namespaces and pods"),
        ("tier: admin", "spec.tier", "'admin' is not possible"),
        ("ingress: [{action: Allow, from: [{namespaces: {}}]}]", "spec.ingress[0].action", "'Allow' is no action"),
        ("ingress: [{action: Deny}]", "spec.ingress[0].from", "is missing"),
        ("ingress: [{action: Deny, from: [{}]}]", "spec.ingress[0].from[0]", "names nobody"),
        (
            "ingress: [{action: Deny, from: [{nodes: {}}]}]",
            "spec.ingress[0].from[0].nodes",
            "can be a peer of egress only",
        ),
        (
            "egress: [{action: Deny, to: [{domainNames: [kubernetes.io]}]}]",
            "spec.egress[0].to[0].domainNames",
            "cannot be a peer of Deny",
        ),
        (
            "ingress: [{action: Accept, from: [{domainNames: [kubernetes.io]}]}]",
            "spec.ingress[0].from[0].domainNames",
            "can be a peer of egress only",
        ),
        (
            "egress: [{action: Accept, to: [{domainNames: [kubernetes.io, 'a.*.io']}]}]",
            "spec.egress[0].to[0].domainNames[1]",
            "'a.*.io' is no name of a domain",
        ),
        (
            "egress: [{action: Deny, to: [{networks: [10.0.0.0/33]}]}]",
            "spec.egress[0].to[0].networks[0]",
            "10.0.0.0/33",
        ),
        (
            "egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]}]",
            "spec.egress[0].to[0].networks",
            "has no named ports",
        ),
        (
            "egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: "
            "{range: {start: 9, end: 9}}}}]}]",
            "spec.egress[0].protocols[0].tcp.destinationPort.range.start",
            "9 is not less than the end, 9",
        ),
        (
            "egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{}]}]",
            "spec.egress[0].protocols[0]",
            "names no protocol",
        ),
        (
            "egress: [{action: Deny, to: [{namespaces: {}, nodes: {}}]}]",
            "spec.egress[0].to[0]",
            "has namespaces and nodes",
        ),
        ("egress: [" + "{action: Deny, to: [{nodes: {}}]}, " * 26 + "]", "spec.egress", "has 26 entries"),
    ],
)
def test_mistakes_in_a_cluster_network_policy(rest: Any, field: Any, problem: Any) -> None:
    name = rest.partition(":")[0]
    kept = "".join(line for line in CLUSTER.splitlines(keepends=True) if not line.startswith(f"  {name}:"))
    found = wrong(f"{kept}  {rest}\n")
    assert found[0] == field
    assert problem in found[1]


def test_a_stored_policy_with_what_a_newer_api_has_is_read_and_is_no_broken_object() -> None:
    newer = b"""{"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
      "metadata": {"name": "new"},
      "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [
      {"action": "Deny", "from": [{"services": {}}], "protocols": [{"quic": {}}]}]}}"""
    policy = msgspec.json.decode(newer, type=ClusterNetworkPolicy)
    assert not list(problems(policy))
    (rule,) = policy.spec.ingress
    assert not rule.peers[0].known
    assert not rule.protocols[0].known
