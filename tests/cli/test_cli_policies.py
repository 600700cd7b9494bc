"""Policies on the command line: applied, shown, described, deleted, explained."""

from typing import Any

from click.testing import CliRunner

from podway.cli import main as root

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


CLUSTER = """\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Node
  metadata: {name: n1}
  status: {addresses: [{type: InternalIP, address: 172.30.0.1}]}
- {apiVersion: v1, kind: Node, metadata: {name: n2}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {guests: "yes"}}}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, namespace: shop, labels: {app: web}}
  spec: {nodeName: n1}
  status: {phase: Running, podIPs: [{ip: 10.244.1.5}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: db, namespace: shop, labels: {app: db}}
  spec: {nodeName: n2}
  status: {phase: Running, podIPs: [{ip: 10.244.2.5}]}
"""


def test_a_connection_is_explained_by_the_rules_of_both_ends(podway: Any) -> None:
    podway("apply", "-f", "-", stdin=CLUSTER)
    told = podway("policy", "explain", "shop/web", "shop/db", "--port", "80")
    assert told.splitlines()[:3] == [
        "Pod/shop/web -> Pod/shop/db (10.244.2.5) tcp port 80: allowed",
        "  egress of Pod/shop/web: allowed: no policy selects it",
        "  ingress of Pod/shop/db: allowed: no policy selects it",
    ]
    podway("apply", "-f", "-", stdin=POLICIES)
    told = podway("policy", "explain", "web", "db", "-n", "shop", "--port", "80")
    assert "80: denied" in told
    assert "denied: rule egress[0] (no-database) of ClusterNetworkPolicy/guests denies it" in told
    told = podway("policy", "explain", "192.0.2.7", "shop/web", "--port", "80")
    assert "denied: it is isolated by NetworkPolicy/shop/web, and no rule allows it" in told
    told = podway("policy", "explain", "n1", "shop/web", "--port", "443")
    assert "allowed: its own node always reaches it" in told
    told = podway("policy", "explain", "shop/db", "shop/web", "--port", "80")
    assert "allowed: rule ingress[0] of NetworkPolicy/shop/web allows it" in told
    assert "there is no pod default/nobody" in podway("policy", "explain", "nobody", "n1", "--port", "1", status=1)


def test_the_policies_of_a_pod_are_listed(podway: Any) -> None:
    podway("apply", "-f", "-", stdin=CLUSTER + "---\n" + POLICIES)
    assert podway("policy", "list", "shop/web").splitlines()[:2] == [
        "ClusterNetworkPolicy/guests: egress",
        "NetworkPolicy/shop/web: ingress",
    ]


def test_what_is_probably_not_meant_is_told(podway: Any) -> None:
    podway("apply", "-f", "-", stdin=CLUSTER + "---\n" + POLICIES)
    assert "nothing found" in podway("policy", "lint")
    slips = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: typo, namespace: shop}
spec:
  podSelector: {matchLabels: {app: wbe}}
  policyTypes: [Egress]
  ingress: [{}]
  egress: [{to: [{podSelector: {}}], ports: [{port: 443}, {port: 53, protocol: UDP}]}]
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: second}
spec: {tier: Admin, priority: 10, subject: {namespaces: {}}}
"""
    podway("apply", "-f", "-", stdin=slips)
    result = CliRunner().invoke(root.main, ["--store", podway.url, "policy", "lint"])
    assert result.exit_code == 1
    told = result.stdout
    assert "NetworkPolicy/shop/typo: spec.podSelector: selects no pod" in told
    assert "NetworkPolicy/shop/typo: spec.ingress: has rules that nobody reads" in told
    assert "spec.egress: allows no DNS (port 53 of TCP)" in told
    assert "ClusterNetworkPolicy/second: spec.priority: 10 is that of ClusterNetworkPolicy/guests" in told


SERVED = """\
apiVersion: podway.io/v1
kind: IPPool
metadata: {name: ipv4}
spec: {cidr: 10.244.0.0/16}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: shop}
spec:
  podSelector: {matchLabels: {app: none}}
  egress:
  - ports: [{port: 53, protocol: UDP}, {port: 53}]
  - to: [{ipBlock: {cidr: 10.96.0.0/24}}, {ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 0.0.0.0/0}}]
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: everywhere}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  egress: [{action: Accept, to: [{networks: [192.0.2.0/24, "fd00:96::a/128"]}]}]
"""


def test_networks_that_are_for_services_are_told_also_by_who_applies_them(podway: Any) -> None:
    command = ["--store", podway.url, "apply", "-f", "-"]
    noted = CliRunner().invoke(root.main, command, input=SERVED).stderr.splitlines()
    assert len(noted) == 1, "of a policy that may be written before its pods nothing is said for that"
    assert noted[0].startswith(
        "note: NetworkPolicy/shop/out: spec.egress[1].to[0].ipBlock.cidr: matches no connection to a Service: "
        "its addresses are Services': 10.96.0.0/24 has that of Service/shop/web"
    )
    assert CliRunner().invoke(root.main, command, input=SERVED).stderr == "", "nothing is changed"
    config = (
        "{apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}, "
        'spec: {serviceCidrs: ["fd00:96::/112"]}}'
    )
    podway("apply", "-f", "-", stdin=config)
    told = CliRunner().invoke(root.main, ["--store", podway.url, "policy", "lint"]).stdout
    assert "ClusterNetworkPolicy/everywhere: spec.egress[0].to[0].networks[1]: matches no connection" in told
    assert told.count("matches no connection") == 2


def test_it_is_said_where_nothing_enforces_policies(podway: Any) -> None:
    podway("apply", "-f", "-", stdin=CLUSTER)
    command = ["--store", podway.url, "policy", "list", "shop/web"]
    assert "note: nothing enforces policies here" in CliRunner().invoke(root.main, command).stderr
    config = "{apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}, spec: {dataPath: ebpf}}"
    podway("apply", "-f", "-", stdin=config)
    assert "note:" not in CliRunner().invoke(root.main, command).stderr
