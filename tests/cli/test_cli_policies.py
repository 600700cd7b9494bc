"""Policies on the command line: applied, shown, described, deleted."""

from typing import Any

POLICIES = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guests}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {guests: "yes"}}}
  egress: [{name: no-database, action: Deny, to: [{pods: {podSelector: {matchLabels: {app: db}}}}]}]
"""


def test_several_policies_in_one_file_are_applied_shown_described_and_deleted(podway: Any) -> None:
    made = podway("apply", "-f", "-", stdin=POLICIES)
    assert made.splitlines() == ["NetworkPolicy/shop/web created", "ClusterNetworkPolicy/guests created"]
    assert podway("apply", "-f", "-", stdin=POLICIES).splitlines()[1] == "ClusterNetworkPolicy/guests unchanged"
    assert podway.lines("get", "netpol", "-n", "shop")[1] == ["shop", "web", "app=web", "ingress", "0s"]
    cluster = podway.lines("get", "cnp")[1]
    assert cluster == ["guests", "Admin", "10", "all", "in", "namespaces", "guests=yes", "0s"]
    assert "no-database" in podway("describe", "cnp", "guests")
    written = podway("get", "netpol", "shop/web", "-o", "yaml")
    assert podway("apply", "-f", "-", stdin=written) == "NetworkPolicy/shop/web unchanged\n"
    podway("delete", "netpol/shop/web", "cnp/guests")
    assert "Policy" not in podway("get", "netpol,cnp", "-A", "-o", "json")


def test_nothing_is_applied_if_one_of_the_policies_is_wrong(podway: Any) -> None:
    wrong = POLICIES.replace("action: Deny", "action: Allow")
    told = podway("apply", "-f", "-", stdin=wrong, status=1)
    assert "document 2" in told
    assert "spec.egress[0].action: 'Allow' is no action" in told
    assert "Policy" not in podway("get", "netpol,cnp", "-A", "-o", "json")
