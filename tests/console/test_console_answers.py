"""What the console makes of objects and of what agents say: map, pairs, policies, Services. Pure."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.columns import Cluster
from podway.api.decode import decode
from podway.api.resource import Resource
from podway.console.network import SMALL, History, Network, network, troubles
from podway.console.policies import ShownPolicy, policies
from podway.console.services import services
from podway.console.talk import talk, workload_of
from podway.errors import AgentError
from podway.flows.query import Row
from tests.console.synthetic import NOW, Synthetic, status


def objects(*documents: dict[str, Any]) -> tuple[Resource, ...]:
    text = "\n---\n".join(map(json.dumps, documents))
    return tuple(manifest.resource for manifest in decode(text, source="a test"))


def pod(name: str, namespace: str = "shop", address: str = "10.244.1.2", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "nodeName": "node1",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


def mapped(sources: Synthetic, **told: Any) -> Network:
    routes = sources.routes(()) if len(sources.nodes) <= SMALL else {}
    return network(Cluster(sources.found, NOW), {**sources.status(), **told}, routes)


# The map.


def test_a_small_map_has_the_routes_and_sessions_of_all_nodes() -> None:
    found = mapped(Synthetic(6, 0, 0))
    assert found.whole
    assert {(way.source, way.target) for way in found.ways} == {
        (one.name, other.name) for one in found.nodes for other in found.nodes if one is not other
    }
    assert {one.on for one in found.sessions} == {"node-0004", "node-0005"}
    assert [node.blocks for node in found.nodes[:2]] == [("10.0.0.0/24",), ("10.0.1.0/24",)]


def test_a_large_map_leaves_them_out_and_keeps_every_node() -> None:
    sources = Synthetic(SMALL + 1, 10, 0)
    found = mapped(sources)
    assert (found.whole, found.ways, found.sessions) == (False, (), ())
    assert len(found.nodes) == SMALL + 1
    assert found.pods == sum(node.pods for node in found.nodes) > 0


def test_a_node_that_does_not_answer_is_said_and_the_rest_shown() -> None:
    gone = {"node": "node-0001", "error": "the agent of node-0001 cannot be reached", "hint": "does it run?"}
    states = {node.name: node for node in mapped(Synthetic(3, 0, 0), **{"node-0001": gone}).nodes}
    assert (states["node-0001"].state, states["node-0001"].problems) == ("silent", (gone["error"],))
    assert states["node-0000"].state == states["node-0002"].state == "well"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"store": {"problem": "is away", "rejected": {}}}, "store: is away"),
        ({"store": {"problem": "", "rejected": {"Pod/a/b": "bad"}}}, "rejected: Pod/a/b: bad"),
        ({"pods": {"problem": "no pool"}}, "pods: no pool"),
        ({"drift": {"now": [], "repaired": [], "refused": ["route"]}}, "the kernel refuses: route"),
        ({"encapsulation": {"problems": ["no port"]}}, "encapsulation: no port"),
        (
            {
                "routing": {
                    "problem": "",
                    "peers": [
                        {"name": "x", "node": "node2", "address": "::1", "asn": 1, "state": "Active", "since": ""}
                        | {"last_error": "Hold timer expired"}
                    ],
                }
            },
            "BGP with node2 is Active: Hold timer expired",
        ),
    ],
)
def test_what_is_not_well_with_a_node_is_said_in_words(part: dict[str, Any], said: str) -> None:
    assert troubles(status("node1", [])) == ()
    assert troubles(status("node1", ["node2"], **part)) == (said,)


def test_routes_that_no_agent_told_are_none() -> None:
    sources = Synthetic(2, 0, 0)
    answered: dict[str, Any] = {"node-0000": AgentError("away"), "node-0001": sources.routes(())["node-0001"]}
    found = network(Cluster(sources.found, NOW), sources.status(), answered)
    assert [way.source for way in found.ways] == ["node-0001"]


def test_history_tells_what_changed_and_nothing_else() -> None:
    sources, history = Synthetic(2, 0, 0), History()
    sick = status("node-0001", [], pods={"problem": "no pool"})
    for at, told in enumerate(({}, {}, {"node-0001": sick}, {"node-0001": sick}, {})):
        history.note(mapped(sources, **told).nodes, float(at))
    assert [(one.at, one.state) for one in history.of("node-0001")] == [(0, "well"), (2, "trouble"), (4, "well")]
    assert [(name, one.at) for name, one in history.latest] == [("node-0001", 4.0), ("node-0001", 2.0)]
    assert history.of("nobody") == ()


# Who speaks to whom.


@pytest.mark.parametrize(
    ("name", "labels", "workload"),
    [
        ("web-7c5ddbdf54-x2k9z", {}, "web"),
        ("agent-zx9kd", {}, "agent"),
        ("db-0", {}, "db"),
        ("web-7c5ddbdf54-x2k9z", {"app": "shop"}, "shop"),
        ("x", {"app": "a", "app.kubernetes.io/name": "b"}, "b"),
        ("prometheus", {}, "prometheus"),
        ("-0", {}, "-0"),
    ],
)
def test_a_pod_is_of_the_workload_that_its_labels_or_its_name_say(
    name: str, labels: dict[str, str], workload: str
) -> None:
    assert workload_of(name, labels) == workload


def test_pairs_of_pods_become_pairs_of_workloads() -> None:
    known = objects(pod("web-1", app="web"), pod("web-2", app="web"), pod("db-0", "data"))
    rows = (
        Row("shop/web-1 -> data/db-0", flows=3, octets=10, last=5.0),
        Row("shop/web-2 -> data/db-0", flows=4, denied=2, last=7.0),
        Row("outside -> shop/web-1", dropped=1),
        Row("node/node1 -> shop/web-1", flows=1),
        Row("shop/old-0 -> outside", flows=1),
    )
    found = talk(known, rows, more=9)
    edges = {(edge.source, edge.target): edge for edge in found.edges}
    assert set(edges) == {
        ("shop/web", "data/db"),
        ("outside", "shop/web"),
        ("nodes", "shop/web"),
        ("shop/old", "outside"),
    }
    first = edges["shop/web", "data/db"]
    assert (first.flows, first.denied, first.octets, first.last) == (7, 2, 10, 7.0)
    assert {(one.name, one.pods) for one in found.workloads} == {("shop/web", 2), ("data/db", 1), ("shop/old", 0)}
    assert (found.namespaces, found.more) == (("data", "shop"), 9)


@given(st.lists(st.tuples(st.text(), st.text(), st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_no_flow_is_lost_between_pairs_and_edges(rows: list[tuple[str, str, int, int]]) -> None:
    found = talk((), [Row(f"{a} -> {b}", flows=flows, denied=denied) for a, b, flows, denied in rows])
    assert sum(edge.flows for edge in found.edges) == sum(row[2] for row in rows)
    assert sum(edge.denied for edge in found.edges) == sum(row[3] for row in rows)


# Policies.


def the_policies(*documents: dict[str, Any]) -> dict[str, ShownPolicy]:
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name[0]}}}
        for name in ("shop", "data")
    ]
    pods = (pod("web-1", app="web"), pod("web-2", app="web"), pod("db-0", "data", app="db"))
    return {one.name: one for one in policies(objects(*spaces, *pods, *documents))}


def test_a_network_policy_selects_pods_of_its_namespace_and_its_rules_are_words() -> None:
    found = the_policies(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {
                        "from": [
                            {"podSelector": {"matchLabels": {"app": "a"}}},
                            {"namespaceSelector": {"matchLabels": {"team": "d"}}},
                            {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.7/32"]}},
                        ],
                        "ports": [{"port": 80}, {"protocol": "UDP", "port": 100, "endPort": 200}],
                    },
                    {},
                ],
            },
        }
    )["web"]
    assert (found.pods, found.count, found.isolates) == (("shop/web-1", "shop/web-2"), 2, ("ingress", "egress"))
    first, second = found.ingress
    assert first.peers == (
        "pods app=a of this namespace",
        "all pods in namespaces team=d",
        "192.0.2.0/24 without 192.0.2.7/32",
    )
    assert first.ports == ("TCP 80", "UDP 100-200")
    assert (second.peers, second.ports, found.egress) == (("everybody",), ("all ports",), ())
    assert found.key == "NetworkPolicy/shop/web"


def test_cluster_policies_come_first_in_the_order_in_which_they_are_heard() -> None:
    def cluster_policy(name: str, priority: int, subject: dict[str, Any]) -> dict[str, Any]:
        rule = {"name": "metadata", "action": "Deny", "to": [{"networks": ["169.254.169.254/32"]}]}
        return {
            "apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": priority, "subject": subject, "egress": [rule]},
        }

    teams = {"namespaceSelector": {"matchLabels": {"team": "s"}}, "podSelector": {"matchLabels": {"app": "web"}}}
    found = the_policies(
        cluster_policy("second", 20, {"pods": teams}), cluster_policy("first", 10, {"namespaces": {}})
    )
    assert list(found) == ["first", "second"]
    assert (found["first"].count, found["first"].selects) == (3, "all namespaces")
    assert (found["second"].pods, found["second"].selects) == (
        ("shop/web-1", "shop/web-2"),
        "pods app=web in namespaces team=s",
    )
    [rule] = found["first"].egress
    assert (rule.action, rule.name, rule.peers, rule.ports) == (
        "Deny",
        "metadata",
        ("169.254.169.254/32",),
        ("all ports",),
    )


def test_a_policy_that_selects_nobody_is_doubted() -> None:
    found = the_policies(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "none", "namespace": "data"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
        }
    )["none"]
    assert found.count == 0
    assert "selects no pod" in found.problems[0]


# Services.

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "clusterIP": "10.96.0.9",
        "selector": {"app": "web"},
        "ports": [
            {"name": "http", "port": 80, "targetPort": "web"},
            {"name": "no", "port": 81, "targetPort": "none"},
        ],
    },
}


def test_a_service_has_the_pods_behind_it_where_there_are_no_slices() -> None:
    [found] = services(objects(SERVICE, pod("web-1", app="web"), pod("other", address="10.244.1.3")))
    http, none = found.ports
    assert (http.text, http.ready, http.count) == ("80/TCP", 1, 1)
    assert (http.backends[0].pod, http.backends[0].address, http.backends[0].port) == (
        "shop/web-1",
        "10.244.1.2",
        8080,
    )
    assert (none.ready, none.backends, found.source) == (0, (), "pods")


def test_slices_say_who_is_behind_a_service_and_how_they_are() -> None:
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 9090}],
        "endpoints": [
            {"addresses": ["10.244.1.2"], "nodeName": "node1"},
            {"addresses": ["10.244.1.8"], "conditions": {"ready": False}},
            {"addresses": ["10.244.1.9"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        ],
    }
    [found] = services(objects(SERVICE, piece, pod("web-1", app="web")))
    assert [(one.address, one.port, one.state, one.pod) for one in found.ports[0].backends] == [
        ("10.244.1.2", 9090, "ready", "shop/web-1"),
        ("10.244.1.8", 9090, "not ready", ""),
        ("10.244.1.9", 9090, "terminating", ""),
    ]
    assert (found.ports[0].ready, found.source) == (1, "slices")


def test_what_is_sent_is_json_in_camel_case() -> None:
    sent = msgspec.json.decode(msgspec.json.encode(mapped(Synthetic(4, 3, 0))))
    assert {"dataPath", "pods", "nodes", "whole"} <= set(sent)
    assert {"dataPath", "established"} <= set(sent["nodes"][0])
