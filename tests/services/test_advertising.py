"""Which nodes tell of which Services' addresses."""

from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import LoadBalancerIngress, Service
from podway.api.meta import LabelSelector
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import OPTIONAL, ClusterView
from podway.services.advertising import EXCLUDED, Advertising, advertised, all_reaches
from tests import builders
from tests.services.clusters import NODE, OTHER, endpoint, objects, piece, pod, service

POOL = builders.pool("outside", "192.0.2.0/28", use="services")
SETTINGS = builders.config(services="pods", data_path="ebpf")
NODES = (builders.node(NODE, "172.30.0.1/24"), builders.node(OTHER, "172.30.0.2/24"))


def balanced(name: str = "web", ip: str = "192.0.2.1", **spec: Any) -> Service:
    return service(name, ingress=(LoadBalancerIngress(ip=ip),), type="LoadBalancer", **spec)


def tellers(*told: Resource, nodes: Any = NODES, pool: Any = POOL) -> dict[str, list[str]]:
    """Return who tells what by BGP, by node."""
    view = ClusterView.of([SETTINGS, *nodes, pool, *told])
    every = tuple(all_reaches(view))
    return {name: sorted(map(str, advertised(every, view.service_pools, name))) for name in view.nodes}


HERE, THERE = endpoint("10.1.0.1", NODE), endpoint("10.1.0.2", OTHER)
ONE = ["192.0.2.1/32"]


@pytest.mark.parametrize(
    ("policy", "endpoints", "expected"),
    [
        ("Cluster", [HERE], (ONE, ONE)),
        ("Local", [HERE], (ONE, [])),
        ("Local", [HERE, THERE], (ONE, ONE)),
        ("Cluster", [], ([], [])),
        ("Cluster", [endpoint("10.1.0.1", ready=False)], ([], [])),
        ("Cluster", [endpoint("10.1.0.1", ready=False, serving=True, terminating=True)], (ONE, ONE)),
        ("Local", [endpoint("10.1.0.1", ready=False, serving=True, terminating=True), THERE], ([], ONE)),
    ],
)
def test_nodes_tell_that_lead_to_an_endpoint(policy: str, endpoints: Any, expected: Any) -> None:
    told = tellers(balanced(external_traffic_policy=policy), piece("s", *endpoints))
    assert (told[NODE], told[OTHER]) == expected


def test_some_nodes_are_left_out() -> None:
    excluded = (builders.node(NODE, "172.30.0.1/24", labels={EXCLUDED: ""}), NODES[1])
    assert tellers(balanced(), piece("s", HERE), nodes=excluded) == {NODE: [], OTHER: ONE}
    racks = (builders.node(NODE, "172.30.0.1/24", labels={"rack": "a"}), NODES[1])
    rack = builders.pool(
        "r", "192.0.2.0/28", use="services", node_selector=LabelSelector(match_labels={"rack": "a"})
    )
    assert tellers(balanced(), piece("s", HERE), nodes=racks, pool=rack) == {NODE: ONE, OTHER: []}


def test_a_pool_is_told_as_a_whole_while_an_address_of_it_is_served() -> None:
    whole = builders.pool("outside", "192.0.2.0/28", use="services", advertise="pool")
    services = [balanced(external_traffic_policy="Local"), balanced("api", "192.0.2.2")]
    told = tellers(*services, piece("s", HERE), pool=whole)
    assert told == {NODE: ["192.0.2.0/28"], OTHER: []}
    segment = builders.pool("outside", "192.0.2.0/28", use="services", advertise="layer2")
    assert tellers(*services, piece("s", HERE), pool=segment) == {NODE: [], OTHER: []}


@pytest.mark.parametrize(
    "other",
    [
        {"load_balancer_class": "example.com/lb"},
        {"labels": {"service.kubernetes.io/service-proxy-name": "x"}},
        {"ip": "203.0.113.1"},
    ],
)
def test_what_is_anothers_is_not_told(other: Any) -> None:
    assert tellers(balanced(**other), piece("s", HERE)) == {NODE: [], OTHER: []}


def test_where_nobody_writes_slices_pods_count() -> None:
    web = balanced(selector={"app": "web"}, external_traffic_policy="Local")
    assert tellers(web, pod("p", "10.1.0.7", where=OTHER)) == {NODE: [], OTHER: ONE}
    assert tellers(web, pod("p", "10.1.0.7", where=OTHER, ends=True)) == {NODE: [], OTHER: []}


def _given(made: Any) -> Any:
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, type="LoadBalancer"))


_changing = st.one_of(
    objects,
    objects.filter(lambda obj: isinstance(obj, Service)).map(_given),
    st.sampled_from([POOL, *NODES, builders.config(), SETTINGS]),
)


@given(st.lists(st.tuples(st.booleans(), _changing), max_size=14))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_is_told_as_who_starts_now_tells_it(happened: Any) -> None:
    view = ClusterView.of([SETTINGS, *NODES, POOL])
    following = Advertising()
    following.follow(view, ())
    for put, obj in happened:
        before = sorted(following.reaches, key=repr)
        change = view.change(obj, deleted=not put)
        view = view.after(change)
        changed = following.follow(view, (change,))
        fresh = Advertising()
        fresh.follow(view, ())
        after = sorted(following.reaches, key=repr)
        assert after == sorted(fresh.reaches, key=repr)
        assert changed or before == after


def test_what_is_told_goes_on_until_everything_is_listed() -> None:
    following = Advertising()
    view = ClusterView.of([SETTINGS, *NODES, POOL]).unfollowed(OPTIONAL)
    following.follow(view, ())
    assert following.networks(NODE) is None
    for kind, listed in ((Service, [balanced()]), (Pod, []), (EndpointSlice, [piece("s", HERE)])):
        assert following.networks(NODE) is None
        newer = view.relisted(kind, listed)
        following.follow(newer, view.changes_to(newer))
        view = newer
    assert following.networks(NODE) == frozenset([ip_network("192.0.2.1/32")])
    off = view.after(Change.of(SETTINGS, builders.config()))
    assert following.follow(off, (Change.of(SETTINGS, builders.config()),))
    assert following.networks(NODE) == frozenset()
