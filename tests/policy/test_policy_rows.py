"""What NetworkPolicy v1 means, point by point: each of the corners at which plugins have gone wrong.

Every `allows` compares the compiled maps of both ends with the model, and the expectation stands here by itself.
"""

from typing import Any

import msgspec
import pytest

from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.validate import problems
from podway.policy.maps import EndpointRules, Prefix
from podway.policy.rules import split_range
from tests.policy.clusters import NODES, Planned, cluster_policy, namespace, network_policy, node, pod

A, B, C, D = "10.1.1.1", "10.1.1.2", "10.1.2.1", "10.1.2.2"
OUTSIDE = "192.0.2.7"
WEB = (("web", "TCP", 80),)

a = pod("x", "a", A, labels={"app": "a"}, ports=WEB)
b = pod("x", "b", B, labels={"app": "b"}, node="n2", ports=(("web", "TCP", 8080),))
c = pod("y", "c", C, labels={"app": "a"}, ports=(("web", "UDP", 80),))
d = pod("y", "d", D, labels={"app": "d"}, node="n2")
CLUSTER = (namespace("x", team="blue"), namespace("y", team="red"), node("n1"), node("n2"), a, b, c, d)

APP_A = {"matchLabels": {"app": "a"}}
DENY = {"podSelector": {}, "policyTypes": ["Ingress"]}


def cluster(*policies: Any) -> Any:
    return Planned(*CLUSTER, *policies)


def ingress(*rules: Any, **spec: Any) -> Any:
    return network_policy(podSelector={}, ingress=list(rules), **spec)


def egress(*rules: Any, **spec: Any) -> Any:
    return network_policy(podSelector={}, policyTypes=["Egress"], egress=list(rules), **spec)


def reached(planned: Any, *addresses: Any, by: Any, port: Any = 80, protocol: Any = "TCP") -> Any:
    """Return those of some addresses that a source reaches."""
    return {address for address in addresses if planned.allows(by, address, port, protocol)}


def reaching(planned: Any, *addresses: Any, to: Any, port: Any = 80, protocol: Any = "TCP") -> Any:
    """Return those of some addresses that reach a destination."""
    return {address for address in addresses if planned.allows(address, to, port, protocol)}


def rows_of(planned: Any, on: Any = "n1") -> Any:
    return planned.maps[on].rules


def test_01_isolation_is_per_pod_and_direction_and_rules_add_up() -> None:
    planned = cluster(
        network_policy("one", podSelector=APP_A, ingress=[{"ports": [{"port": 80}]}]),
        network_policy("two", podSelector=APP_A, ingress=[{"ports": [{"port": 81}]}]),
    )
    assert planned.allows(D, A, 80)
    assert planned.allows(D, A, 81)
    assert not planned.allows(D, A, 82)
    assert planned.allows(A, D, 82)
    assert planned.allows(D, B, 82)
    planned.put(network_policy("three", where="y", podSelector={}, policyTypes=["Egress"]))
    assert not planned.allows(D, A, 80)


def test_02_policy_types_default_to_ingress_and_to_egress_only_if_there_are_rules() -> None:
    planned = cluster(network_policy(podSelector={}))
    assert reaching(planned, A, D, to=B) == set()
    assert planned.allows(A, D)
    planned.put(network_policy(podSelector={}, egress=[{"ports": [{"port": 443}]}]))
    assert not planned.allows(A, D)
    assert planned.allows(A, D, 443)


def test_03_an_empty_list_of_rules_is_as_an_absent_one() -> None:
    specs: tuple[dict[str, Any], ...] = ({}, {"ingress": []})
    for spec in specs:
        planned = cluster(network_policy(**DENY, **spec))
        assert reaching(planned, B, D, OUTSIDE, to=A) == set()


def test_04_an_empty_rule_allows_everything_from_outside_too() -> None:
    planned = cluster(ingress({}))
    assert reaching(planned, B, D, OUTSIDE, NODES["n2"][0], to=A) == {B, D, OUTSIDE, NODES["n2"][0]}
    assert planned.allows(OUTSIDE, A, 8 << 8, 1)


def test_05_an_empty_pod_selector_is_every_pod_of_the_namespace_but_none_of_the_hosts_network() -> None:
    host = pod("x", "host", NODES["n1"][0], labels={"app": "a"})
    host["spec"]["hostNetwork"] = True
    planned = cluster(host, network_policy(**DENY))
    assert reached(planned, A, B, by=D) == set()
    assert planned.allows(D, C)
    assert ("x", "host") not in planned.maps["n1"].endpoints
    assert planned.allows(D, NODES["n1"][0])


def test_06_a_pod_selector_alone_means_the_policys_own_namespace() -> None:
    planned = cluster(ingress({"from": [{"podSelector": APP_A}]}))
    assert reaching(planned, A, C, D, to=B) == {A}
    planned.put(ingress({"from": [{"podSelector": {}}]}))
    assert reaching(planned, A, C, D, OUTSIDE, to=B) == {A}


def test_07_a_namespace_selector_alone_means_all_pods_there_but_no_other_address() -> None:
    planned = cluster(ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]}))
    assert reaching(planned, B, C, D, OUTSIDE, to=A) == {C, D}
    planned.put(ingress({"from": [{"namespaceSelector": {}}]}))
    assert reaching(planned, B, C, D, OUTSIDE, NODES["n2"][0], to=A) == {B, C, D}


def test_08_two_selectors_in_one_item_must_both_match_in_two_items_either() -> None:
    red = {"matchLabels": {"team": "red"}}
    planned = cluster(ingress({"from": [{"namespaceSelector": red, "podSelector": APP_A}]}))
    assert reaching(planned, A, C, D, to=B) == {C}
    planned.put(ingress({"from": [{"namespaceSelector": red}, {"podSelector": APP_A}]}))
    assert reaching(planned, A, C, D, to=B) == {A, C, D}


@pytest.mark.parametrize(
    ("expression", "matching"),
    [
        ({"key": "app", "operator": "In", "values": ["a", "b"]}, {A, B}),
        ({"key": "app", "operator": "NotIn", "values": ["a"]}, {B, "10.1.1.9"}),
        ({"key": "app", "operator": "Exists"}, {A, B}),
        ({"key": "app", "operator": "DoesNotExist"}, {"10.1.1.9"}),
    ],
    ids=lambda value: value["operator"] if isinstance(value, dict) else "",
)
def test_09_not_in_and_does_not_exist_match_what_lacks_the_key(expression: Any, matching: Any) -> None:
    bare, asked = pod("x", "bare", "10.1.1.9"), pod("x", "asked", "10.1.1.8", labels={"app": "asked"})
    peers = [{"podSelector": {"matchExpressions": [expression]}}]
    planned = cluster(
        bare, asked, network_policy(podSelector={"matchLabels": {"app": "asked"}}, ingress=[{"from": peers}])
    )
    assert reaching(planned, A, B, C, "10.1.1.9", to="10.1.1.8") == matching


@pytest.mark.parametrize("operator", ["In", "NotIn"])
def test_10_a_broken_selector_is_named_and_matches_nothing(operator: Any) -> None:
    broken = {"matchExpressions": [{"key": "app", "operator": operator}]}
    policy = ingress({"from": [{"podSelector": broken}]})
    (problem,) = problems(msgspec.convert(policy, NetworkPolicy))
    assert problem.field == "spec.ingress[0].from[0].podSelector.matchExpressions[0].values"
    assert reaching(cluster(policy), A, C, D, to=B) == set()


def test_11_except_cuts_its_own_item_only() -> None:
    cut = {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.0/28"]}}
    planned = cluster(ingress({"from": [cut]}))
    assert reaching(planned, OUTSIDE, "192.0.2.77", to=A) == {"192.0.2.77"}
    planned.put(ingress({"from": [cut, {"ipBlock": {"cidr": "192.0.2.7/32"}}]}))
    assert reaching(planned, OUTSIDE, "192.0.2.6", "192.0.2.77", to=A) == {OUTSIDE, "192.0.2.77"}


def test_12_an_ip_block_matches_pods_by_their_address() -> None:
    planned = cluster(ingress({"from": [{"ipBlock": {"cidr": f"{C}/32"}}]}))
    assert reaching(planned, B, C, D, to=A) == {C}
    planned.put(ingress({"from": [{"ipBlock": {"cidr": "10.1.1.1/4"}}]}))
    assert reaching(planned, B, C, D, OUTSIDE, to=A) == {B, C, D}


def test_13_an_ip_block_matches_pods_that_other_rules_tell_apart_and_nodes() -> None:
    red = {"namespaceSelector": {"matchLabels": {"team": "red"}}}
    planned = cluster(
        ingress({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "172.30.0.0/24"}}]}),
        network_policy("other", podSelector=APP_A, ingress=[{"from": [red], "ports": [{"port": 81}]}]),
    )
    assert reaching(planned, B, C, D, OUTSIDE, NODES["n2"][0], to=A) == {B, C, D, NODES["n2"][0]}


def test_14_egress_is_judged_by_the_pods_address_and_port() -> None:
    planned = cluster(egress({"to": [{"podSelector": APP_A}], "ports": [{"port": 8080}]}))
    assert planned.allows(B, A, 8080)
    assert not planned.allows(B, A, 80)


def test_15_a_virtual_address_in_an_ip_block_allows_nothing_at_the_pods_behind_it() -> None:
    planned = cluster(egress({"to": [{"ipBlock": {"cidr": "10.96.0.10/32"}}]}))
    assert reached(planned, A, C, D, by=B) == set()
    assert planned.allows(B, "10.96.0.10")  # as a packet that nothing translates


def test_16_ports_by_protocol_and_tcp_by_default() -> None:
    planned = cluster(ingress({"ports": [{"port": 80}, {"protocol": "UDP", "port": 53}]}))
    assert planned.allows(D, A, 80)
    assert not planned.allows(D, A, 80, "UDP")
    assert planned.allows(D, A, 53, "UDP")
    assert not planned.allows(D, A, 53)
    planned.put(ingress({"ports": [{"protocol": "UDP"}]}))
    assert planned.allows(D, A, 9, "UDP")
    assert not planned.allows(D, A, 9)
    planned.put(ingress({"ports": []}))
    assert planned.allows(D, A, 9)
    assert planned.allows(D, A, 0, 47)


def test_17_a_range_of_ports_holds_both_ends() -> None:
    planned = cluster(ingress({"ports": [{"port": 1000, "endPort": 1999}]}))
    assert {port for port in (999, 1000, 1500, 1999, 2000) if planned.allows(D, A, port)} == {1000, 1500, 1999}
    assert all(len(list(split_range(1, last))) <= 30 for last in (65534, 65535, 32767))
    assert len(list(split_range(1, 65534))) == 30


def test_18_a_named_port_of_ingress_is_the_destinations_by_name_and_protocol() -> None:
    planned = cluster(network_policy(podSelector={}, ingress=[{"ports": [{"port": "web"}]}]))
    assert reached(planned, A, B, by=D, port=80) == {A}
    assert reached(planned, A, B, by=D, port=8080) == {B}
    planned.put(network_policy(podSelector={}, ingress=[{"ports": [{"protocol": "UDP", "port": "web"}]}]))
    assert reached(planned, A, B, by=D, port=80, protocol="UDP") == set()


def test_19_a_named_port_of_egress_is_each_destinations_own_and_of_no_other_address() -> None:
    planned = cluster(egress({"ports": [{"port": "web"}]}))
    e = pod("x", "e", "10.1.1.9")
    planned.put(e)
    assert reached(planned, A, B, C, D, OUTSIDE, by="10.1.1.9", port=80) == {A}
    assert reached(planned, A, B, C, D, OUTSIDE, by="10.1.1.9", port=8080) == {B}
    planned.put(egress({"ports": [{"port": "web", "protocol": "UDP"}]}))
    assert reached(planned, A, B, C, D, by="10.1.1.9", port=80, protocol="UDP") == {C}


def test_20_one_name_with_other_numbers_does_not_mix_them() -> None:
    planned = cluster(egress({"to": [{"podSelector": {}}], "ports": [{"port": "web"}]}))
    e = pod("x", "e", "10.1.1.9")
    planned.put(e)
    assert reached(planned, A, B, by="10.1.1.9", port=80) == {A}
    assert reached(planned, A, B, by="10.1.1.9", port=8080) == {B}
    planned.put(pod("x", "b", B, labels={"app": "b"}, node="n2", ports=WEB))
    assert reached(planned, A, B, by="10.1.1.9", port=80) == {A, B}


def test_21_ports_of_sidecars_count_and_a_name_may_stand_twice() -> None:
    two = pod("x", "two", "10.1.1.9", ports=(("web", "TCP", 80), ("web", "TCP", 90)))
    ports = [{"name": "web", "containerPort": 70}]
    two["spec"]["initContainers"] = [
        {"restartPolicy": "Always", "ports": ports},
        {"ports": [{"containerPort": 60, "name": "web"}]},
    ]
    planned = cluster(two, ingress({"ports": [{"port": "web"}]}))
    assert {port for port in (60, 70, 80, 90) if planned.allows(D, "10.1.1.9", port)} == {70, 80, 90}


def test_22_a_rule_for_sctp_isolates_and_is_none_for_tcp() -> None:
    planned = cluster(ingress({"ports": [{"protocol": "SCTP", "port": 80}]}))
    assert planned.allows(D, A, 80, "SCTP")
    assert not planned.allows(D, A, 80, "TCP")
    assert not planned.allows(D, A, 80, "UDP")


def test_23_other_protocols_are_denied_by_isolation_and_allowed_by_rules_without_ports() -> None:
    planned = cluster(network_policy(**DENY))
    assert not planned.allows(D, A, 8 << 8, 1)
    assert not planned.allows(D, A, 0, 47)
    planned.put(network_policy(podSelector={}, ingress=[{"from": [{"namespaceSelector": {}}]}]))
    assert planned.allows(D, A, 8 << 8, 1)
    assert not planned.allows(OUTSIDE, A, 8 << 8, 1)


def test_24_nothing_of_a_policy_speaks_of_icmp_errors_which_go_with_their_connection() -> None:
    planned = cluster(ingress({"ports": [{"port": 80}]}))
    assert {key.protocol for key in rows_of(planned)} == {0, 6}


def test_25_a_pod_is_reached_by_its_own_node_but_does_not_reach_it() -> None:
    planned = cluster(network_policy(podSelector={}, policyTypes=["Ingress", "Egress"]))
    assert reaching(planned, *NODES["n1"], NODES["n2"][0], to=A) == set(NODES["n1"])
    assert reached(planned, *NODES["n1"], by=A) == set()


def test_26_the_own_node_is_so_with_all_its_addresses() -> None:
    planned = cluster(network_policy(podSelector={}))
    two = pod("x", "two", "fd00::1:9", node="n2")
    planned.put(two)
    assert planned.allows(NODES["n2"][1], "fd00::1:9")
    assert not planned.allows(NODES["n1"][1], "fd00::1:9")


def test_27_what_another_node_sends_in_its_own_name_is_as_any_address() -> None:
    planned = cluster(ingress({"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}))
    assert planned.allows(OUTSIDE, A)
    assert not planned.allows(NODES["n2"][0], A)


def test_28_a_pod_of_the_hosts_network_does_not_make_its_node_a_peer_or_a_subject() -> None:
    host = pod("x", "host", NODES["n2"][0], labels={"app": "host"}, node="n2")
    host["spec"]["hostNetwork"] = True
    planned = cluster(host, ingress({"from": [{"podSelector": {"matchLabels": {"app": "host"}}}]}))
    assert not planned.allows(NODES["n2"][0], A)
    assert planned.allows(D, NODES["n2"][0])
    assert Prefix.host(NODES["n2"][0]) not in planned.maps["n1"].identities


def test_29_a_pod_reaches_itself() -> None:
    planned = cluster(network_policy(podSelector={}, policyTypes=["Ingress", "Egress"]))
    assert planned.allows(A, A)


def test_30_by_a_service_back_to_itself_is_judged_as_any_connection_by_the_same_maps() -> None:
    planned = cluster(ingress({"from": [{"podSelector": APP_A}]}))
    assert planned.decide(a, "ingress", A, 6, 80)[0]
    planned.put(ingress({"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}))
    assert not planned.decide(a, "ingress", A, 6, 80)[0]


def test_31_a_changed_policy_names_the_rule_sets_whose_flows_are_judged_again_and_no_other() -> None:
    planned = cluster(
        network_policy("one", podSelector=APP_A, ingress=[{}]), network_policy("two", where="y", podSelector={})
    )
    before = planned.maps["n1"].endpoints
    planned.put(network_policy("one", podSelector=APP_A, ingress=[]))
    assert set(planned.last["n1"].rule_sets) == {before["x", "a"].ingress}
    assert not planned.allows(D, A)


def test_32_replies_are_no_matter_of_rules() -> None:
    planned = cluster(network_policy(**DENY))
    assert planned.allows(A, D)
    assert not planned.allows(D, A)


def test_33_changed_labels_move_subjects_and_peers() -> None:
    planned = cluster(
        network_policy(podSelector=APP_A, ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}])
    )
    assert reaching(planned, B, D, to=A) == {B}
    planned.put(pod("x", "b", B, labels={"app": "z"}, node="n2"))
    assert reaching(planned, B, D, to=A) == set()
    planned.put(pod("x", "a", A, labels={"app": "z"}))
    assert reaching(planned, B, D, to=A) == {B, D}
    named = {"matchLabels": {"kubernetes.io/metadata.name": "y"}}
    planned.put(
        ingress({"from": [{"namespaceSelector": named}, {"namespaceSelector": {"matchLabels": {"new": "yes"}}}]})
    )
    assert reaching(planned, B, C, D, to=A) == {C, D}
    planned.put(namespace("x", new="yes"))
    assert reaching(planned, B, C, D, to=A) == {B, C, D}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_34_finished_pods_are_neither_subjects_nor_peers(phase: Any) -> None:
    planned = cluster(ingress({"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}))
    assert planned.allows(B, A)
    planned.put(pod("x", "b", B, labels={"app": "b"}, node="n2", phase=phase))
    assert not planned.allows(B, A)
    assert ("x", "b") not in planned.maps["n2"].endpoints


@pytest.mark.parametrize("added_first", [True, False])
def test_35_an_address_that_is_given_again_is_the_new_pods_in_whatever_order_it_is_told(added_first: Any) -> None:
    planned = cluster(ingress({"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}))
    old = pod("x", "b", B, labels={"app": "b"}, node="n2", uid="1", creationTimestamp="2026-01-01T00:00:00Z")
    new = pod("y", "new", B, labels={"app": "new"}, node="n2", uid="2", creationTimestamp="2026-01-02T00:00:00Z")
    planned.put(old)
    assert planned.allows(B, A)
    if added_first:
        planned.put(new)
        planned.put(old | {"metadata": old["metadata"] | {"deletionTimestamp": "2026-01-03T00:00:00Z"}})
    else:
        planned.drop(old)
        planned.put(new)
    assert not planned.allows(B, A)
    planned.drop(old)
    assert not planned.allows(B, A)


def test_36_a_pod_that_is_being_deleted_is_still_subject_and_peer() -> None:
    going = {"deletionTimestamp": "2026-01-03T00:00:00Z"}
    planned = cluster(ingress({"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}))
    planned.put(pod("x", "b", B, labels={"app": "b"}, node="n2", **going))
    assert planned.allows(B, A)
    assert not planned.allows(D, B)


def test_37_a_pod_is_isolated_before_it_has_an_address() -> None:
    planned = cluster(network_policy(**DENY))
    planned.put(pod("x", "starting", phase="Pending"))
    number = planned.maps["n1"].endpoints["x", "starting"].ingress
    assert not planned.maps["n1"].decide(number, Prefix.host(D), 6, 80).allowed


def test_38_what_is_planned_for_a_pod_says_when_there_is_nothing_to_wait_for() -> None:
    planned = cluster(network_policy(**DENY))
    planned.put(pod("y", "free", phase="Pending"))
    assert planned.maps["n1"].endpoints["y", "free"] == EndpointRules()


def test_39_a_pod_of_two_families_has_one_identity_and_blocks_are_of_their_own_family() -> None:
    both = pod("y", "both", "10.1.2.9", "fd00::2:9", labels={"app": "both"})
    target = pod("x", "target", "10.1.1.9", "fd00::1:9", labels={"app": "target"})
    planned = cluster(both, target, ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]}))
    assert planned.allows("10.1.2.9", "10.1.1.9")
    assert planned.allows("fd00::2:9", "fd00::1:9")
    identities = planned.maps["n1"].identities
    assert identities[Prefix.host("10.1.2.9")] == identities[Prefix.host("fd00::2:9")]
    planned.put(ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}))
    assert planned.allows("10.1.2.9", "10.1.1.9")
    assert not planned.allows("fd00::2:9", "fd00::1:9")


def test_40_link_local_addresses_are_denied_as_others_unless_a_block_allows_them() -> None:
    planned = cluster(egress())
    assert not planned.allows(A, "169.254.169.254")
    planned.put(egress({"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}]}))
    assert planned.allows(A, "169.254.169.254")
    assert not planned.allows(A, "169.254.169.253")


def test_41_there_is_no_exception_for_dns() -> None:
    dns = pod("y", "dns", "10.1.2.9", labels={"k8s-app": "kube-dns"})
    planned = cluster(dns, egress({"to": [{"podSelector": {}}]}))
    assert not planned.allows(A, "10.1.2.9", 53, "UDP")
    ports = [{"port": 53}, {"port": 53, "protocol": "UDP"}]
    everywhere = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    planned.put(egress({"to": [everywhere], "ports": ports}))
    assert planned.allows(A, "10.1.2.9", 53, "UDP")
    assert planned.allows(A, "10.1.2.9", 53)
    assert not planned.allows(A, "169.254.20.10", 53, "UDP")


def test_42_what_a_fragment_without_ports_needs_is_its_connections_and_no_rule_matches_port_0() -> None:
    planned = cluster(ingress({"ports": [{"port": 80}]}))
    assert not planned.allows(D, A, 0)
    assert not planned.allows(D, A, 0, "UDP")


def test_43_a_policy_before_its_pods_and_pods_before_their_namespace() -> None:
    policy = ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]})
    planned = Planned(policy, node("n1"), node("n2"))
    planned.put(a, d)
    assert not planned.allows(D, A)
    planned.put(namespace("x"), namespace("y", team="red"))
    assert planned.allows(D, A)
    planned.put(ingress({"from": [{"namespaceSelector": {}}]}))
    unknown = pod("z", "e", "10.1.2.9")
    planned.put(unknown)
    assert not planned.allows("10.1.2.9", A)


def test_44_when_the_last_policy_goes_the_pod_is_open() -> None:
    one, two = network_policy("one", **DENY), network_policy("two", **DENY)
    planned = cluster(one, two)
    planned.drop(one)
    assert not planned.allows(D, A)
    planned.drop(two)
    assert planned.allows(D, A)
    assert not rows_of(planned)


# ClusterNetworkPolicy


EVERYBODY: list[Any] = [{"namespaces": {}}]


def test_tiers_are_heard_in_order_and_pass_goes_on_to_the_next() -> None:
    admin = cluster_policy(
        ingress=[
            {"action": "Pass", "from": [{"pods": {"podSelector": APP_A}}]},
            {"action": "Deny", "from": EVERYBODY},
        ]
    )
    planned = cluster(admin, network_policy(podSelector={}, ingress=[{"ports": [{"port": 80}]}]))
    assert reaching(planned, A, C, D, to=B) == {A, C}
    assert not planned.allows(C, B, 81)
    baseline = cluster_policy("base", tier="Baseline", ingress=[{"action": "Deny", "from": EVERYBODY}])
    planned.put(baseline)
    assert planned.allows(C, B, 80)
    assert not planned.allows(A, C)  # no NetworkPolicy selects it: the Baseline's denial after the pass
    planned.drop(admin)
    assert planned.allows(D, B, 80)


def test_lower_priorities_are_asked_first_and_equal_ones_by_their_names() -> None:
    accept = {"action": "Accept", "from": EVERYBODY}
    deny = {"action": "Deny", "from": EVERYBODY}
    planned = cluster(cluster_policy("z", priority=5, ingress=[accept]), cluster_policy("a", ingress=[deny]))
    assert planned.allows(D, A)
    planned.put(cluster_policy("z", priority=10, ingress=[accept]))
    assert not planned.allows(D, A)
    planned.drop(cluster_policy("a"))
    assert planned.allows(D, A)


def test_networks_and_nodes_are_peers_of_egress() -> Any:
    def to(**peer: Any) -> Any:
        return cluster_policy(
            egress=[
                {"action": "Accept", "to": [peer]},
                {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]},
            ]
        )

    planned = cluster(to(networks=["192.0.2.0/24"]))
    assert reached(planned, B, OUTSIDE, NODES["n1"][0], by=A) == {OUTSIDE}
    planned.put(to(nodes={"matchLabels": {"role": "edge"}}), node("n2", role="edge"))
    assert reached(planned, B, OUTSIDE, *NODES["n1"], *NODES["n2"], by=A) == set(NODES["n2"])


@pytest.mark.parametrize(("action", "allowed"), [("Accept", True), ("Deny", False), ("Pass", False)])
def test_a_rule_with_an_unknown_peer_fails_closed(action: Any, allowed: Any) -> None:
    planned = cluster(
        cluster_policy(
            ingress=[
                {
                    "action": action,
                    "from": [{"services": {}}, {"pods": {"podSelector": APP_A}}],
                    "protocols": [{"tcp": {}}],
                }
            ]
        )
    )
    assert planned.allows(D, A) is allowed
    assert planned.allows(D, A, 53, "UDP") is allowed
    deny = cluster_policy("next", priority=20, ingress=[{"action": "Deny", "from": EVERYBODY}])
    planned.put(deny)
    assert not planned.allows(C, A)


def test_a_cluster_policy_does_not_isolate() -> None:
    planned = cluster(cluster_policy(ingress=[{"action": "Accept", "from": [{"pods": {"podSelector": APP_A}}]}]))
    assert planned.allows(D, B)


def test_a_named_port_of_a_cluster_policy_is_of_any_protocol() -> None:
    deny = {"action": "Deny", "to": EVERYBODY, "protocols": [{"destinationNamedPort": "web"}]}
    planned = cluster(cluster_policy(egress=[deny]))
    assert reached(planned, A, B, C, by=D, port=80) == {B, C}
    assert reached(planned, A, B, C, by=D, port=80, protocol="UDP") == {A, B}


def test_changed_labels_of_a_namespace_move_the_subjects_of_a_cluster_policy() -> None:
    deny = {"action": "Deny", "from": EVERYBODY}
    planned = cluster(cluster_policy(subject={"namespaces": {"matchLabels": {"guests": "yes"}}}, ingress=[deny]))
    assert planned.allows(D, A)
    planned.put(namespace("x", guests="yes"))
    assert not planned.allows(D, A)
    planned.put(namespace("x"))
    assert planned.allows(D, A)
