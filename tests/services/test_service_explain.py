"""What is told of Services: frontends and backends with reasons, and what is probably not meant."""

from typing import Any

from podway.api.kinds.endpoint_slice import EndpointPort
from podway.api.kinds.service import LoadBalancerIngress, ServicePort
from podway.services.explain import Explainer, NotUsed, lines, lines_from_outside, summary
from podway.services.lint import lint
from tests import builders
from tests.builders import config
from tests.services.clusters import NODE, OTHER, VIP, VIP6, endpoint, node, piece, pod, service


def _told(*objects: Any) -> list[tuple[str, str]]:
    return [(field, problem) for _, (field, problem, _) in lint(objects)]


def test_each_backend_is_told_with_where_it_is_used_or_why_not() -> None:
    web = service(internal_traffic_policy="Local")
    objects = [
        web,
        node(),
        node("b", OTHER),
        pod("here", "10.1.0.1"),
        piece("one", endpoint("10.1.0.1"), endpoint("10.1.0.2", OTHER), endpoint("10.1.0.3", OTHER, ready=False)),
    ]
    (frontend,) = Explainer(objects).explain(web).frontends
    assert (frontend.address, frontend.port, frontend.kind, frontend.ready) == (VIP, 80, "cluster", 2)
    here, there, bad = frontend.backends
    assert (here.pod, here.used_on) == ("shop/here", (NODE,))
    assert here.not_used == (NotUsed((OTHER,), f"on node {NODE}, and the traffic policy is Local"),)
    assert there.used_on == (OTHER,)
    assert NotUsed((OTHER,), "not ready") in bad.not_used
    assert summary(Explainer(objects).explain(web)) == "2 of 3"
    shown = list(lines(Explainer(objects).explain(web, [OTHER])))
    assert shown[0] == f"{VIP}:80/TCP, cluster address"
    assert shown[1].endswith(f"shop/here on {NODE}: not used: on node {NODE}, and the traffic policy is Local")
    assert shown[2] == f"  10.1.0.2:8080 on {OTHER}: used"


def test_what_is_not_served_says_why() -> None:
    explainer = Explainer([])
    assert explainer.explain(service(cluster_ips=("None",))).why_none.startswith("headless")
    assert explainer.explain(service(cluster_ips=())).why_none == "it has no address yet"
    assert explainer.explain(service(type="ExternalName")).why_none.startswith("ExternalName")
    assert summary(explainer.explain(service(type="ExternalName"))) == "-"


def test_nothing_is_told_of_a_service_that_works() -> None:
    assert _told(service(), piece("one", endpoint("10.1.0.1"))) == []
    assert _told(service(selector={"app": "web"}), pod("a", "10.1.0.1")) == []
    assert _told(service(), piece("one", endpoint("10.1.0.1", terminating=True, ready=False, serving=True))) == []


def test_no_endpoints_and_none_ready_are_told_once_a_port_and_family() -> None:
    two = service("web", ServicePort(port=80), external_ips=("192.0.2.1",), cluster_ips=(VIP, VIP6))
    assert _told(two) == [
        ("spec.ports[0]", "has no IPv4 endpoints: connections are refused"),
        ("spec.ports[0]", "has no IPv6 endpoints: connections are refused"),
    ]
    assert _told(service(), piece("one", endpoint("10.1.0.1", ready=False))) == [
        ("spec.ports[0]", "none of 1 IPv4 endpoints is ready")
    ]


def test_port_names_that_match_nothing_are_told() -> None:
    named = service("web", ServicePort(name="http", port=80))
    other = piece("one", endpoint("10.1.0.1"), ports=(EndpointPort(name="metrics", port=9),))
    assert _told(named, other) == [("spec.ports[0].name", "no slice has a port called http/TCP")]
    by_pods = service("web", ServicePort(port=80, target_port="http"), selector={"app": "web"})
    assert _told(by_pods, pod("a", "10.1.0.1")) == [
        ("spec.ports[0].targetPort", "no pod that it selects has a TCP port called 'http'")
    ]
    assert _told(by_pods, pod("a", "10.1.0.1", ports=[("http", 8080, "TCP")])) == []


def test_two_services_of_one_address_and_port_are_told_of_the_one_that_lost() -> None:
    old = service("old", external_ips=("192.0.2.1",), created="2026-01-01T00:00:00Z")
    new = service("new", external_ips=("192.0.2.1",), cluster_ips=("10.96.0.11",), created="2026-01-02T00:00:00Z")
    slices = (piece("one", endpoint("10.1.0.1"), of="old"), piece("two", endpoint("10.1.0.1"), of="new"))
    assert _told(old, new, *slices) == [("spec.externalIPs", "TCP 192.0.2.1 port 80 is Service shop/old's")]


def test_sctp_with_another_port_is_told() -> None:
    sctp = service("web", ServicePort(port=80, protocol="SCTP"))
    other = piece("one", endpoint("10.1.0.1"), ports=(EndpointPort(port=8080, protocol="SCTP"),))
    assert _told(sctp, other) == [("spec.ports[0].targetPort", "SCTP leads to another port number")]


def test_clients_outside_are_told_apart_with_node_ports_and_who_is_behind_them() -> None:
    spec: Any = {"type": "LoadBalancer", "external_traffic_policy": "Local", "external_ips": ("192.0.2.9",)}
    ranges: Any = {"load_balancer_source_ranges": ("203.0.113.0/24",)}
    balanced = [LoadBalancerIngress(ip="192.0.2.1")]
    web = service("web", ServicePort(port=80, node_port=30080), ingress=balanced, **spec, **ranges)
    objects = [web, node(), node("b", OTHER), piece("one", endpoint("10.1.0.1"), endpoint("10.1.1.1", OTHER))]
    assert Explainer(objects).explain(web).from_outside == ()  # another proxy serves them
    told = Explainer([*objects, config(services="all")]).explain(web)
    assert [one.kind for one in told.frontends] == ["cluster", "load balancer", "external"]
    assert all(backend.used_on == (NODE, OTHER) for one in told.frontends for backend in one.backends)
    shown = [(one.kind, one.address, one.port, one.from_networks) for one in told.from_outside]
    assert shown == [
        ("load balancer", "192.0.2.1", 80, ("203.0.113.0/24",)),
        ("external", "192.0.2.9", 80, ()),
        ("node port", "0.0.0.0", 30080, ()),
    ]
    for one in told.from_outside:
        assert [backend.used_on for backend in one.backends] == [(NODE,), (OTHER,)]
    text = list(lines_from_outside(told))
    assert text[0] == "192.0.2.1:80/TCP, load balancer address, from 203.0.113.0/24"
    assert text[6] == "0.0.0.0:30080/TCP, node port of each node"


def test_external_addresses_that_are_a_pods_or_nodes_are_told() -> None:
    web = service(external_ips=("10.1.0.1", "172.30.0.1", "192.0.2.1"))
    here = builders.node(NODE, "172.30.0.1/24")
    assert _told(web, here, pod("a", "10.1.0.1"), piece("one", endpoint("10.1.0.1"))) == [
        ("spec.externalIPs[0]", "10.1.0.1 is pod shop/a's"),
        ("spec.externalIPs[1]", f"172.30.0.1 is node {NODE}'s"),
    ]
