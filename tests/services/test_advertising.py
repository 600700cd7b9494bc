"""Which nodes tell of which Services' addresses."""

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import LoadBalancerIngress, Service
from podway.api.merge_patch import apply
from podway.api.meta import LabelSelector, Metadata
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import OPTIONAL, ClusterView
from podway.services.advertising import (
    EXCLUDED,
    TURNS,
    Advertising,
    Told,
    advertised,
    all_reaches,
    lines,
    reaches,
    summary,
)
from podway.services.lint import lint_addresses
from podway.services.outside import allocate, status_patch
from tests import builders
from tests.services.clusters import NODE, OTHER, endpoint, objects, piece, pod, service

POOL = builders.pool("outside", "192.0.2.0/28", use="services")
SETTINGS = builders.config(services="pods", data_path="ebpf")
PEER = BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(address="172.30.0.254", asn=64601))
NODES = (builders.node(NODE, "172.30.0.1/24"), builders.node(OTHER, "172.30.0.2/24"))


def balanced(name: str = "web", ip: str = "192.0.2.1", **spec: Any) -> Service:
    return service(name, ingress=(LoadBalancerIngress(ip=ip),), type="LoadBalancer", **spec)


def tellers(*told: Resource, nodes: Any = NODES, pool: Any = POOL) -> dict[str, list[str]]:
    """Return who tells what by BGP, by node."""
    view = ClusterView.of([SETTINGS, PEER, *nodes, pool, *told])
    every = tuple(all_reaches(view))
    return {name: sorted(map(str, advertised(every, view.service_pools, name))) for name in view.nodes}


SEGMENT = builders.pool("segment", "172.30.0.128/25", use="services", advertise="layer2")
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
    st.sampled_from([POOL, SEGMENT, PEER, *NODES, builders.config(), SETTINGS]),
)


@given(st.lists(st.tuples(st.booleans(), _changing), max_size=14))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_is_told_as_who_starts_now_tells_it(happened: Any) -> None:
    view = ClusterView.of([SETTINGS, PEER, *NODES, POOL])
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


_POSITIONS = st.tuples(st.integers(1, 12), st.sampled_from(["here", "away", "excluded", "gone"]))


@given(st.lists(st.lists(_POSITIONS, min_size=1, max_size=3), max_size=15))
@example([[(3, "gone")], [(11, "here"), (3, "here")]])
@settings(max_examples=40, deadline=None)
def test_nodes_that_come_and_go_alter_what_is_told_as_if_it_were_found_out_anew(moves: Any) -> None:
    """There are more nodes than take turns, so some of them matter only when others go."""
    told: list[Resource] = []
    for name, policy in (("all", "Cluster"), ("some", "Local")):
        for number, address in enumerate(("172.30.0.130", "192.0.2.1")):
            told += [
                balanced(f"{name}{number}", address, external_traffic_policy=policy),
                piece(f"{name}{number}", endpoint("10.1.0.3", "n3"), of=f"{name}{number}"),
            ]
    nodes = [builders.node(f"n{number}", f"172.30.0.{number}/24") for number in range(1, 11)]
    view = ClusterView.of([SETTINGS, PEER, POOL, SEGMENT, *nodes, *told])
    following = Advertising()
    following.follow(view, ())
    for together in moves:
        before, changes = list(following.reaches), []
        for number, what in together:
            name, address = f"n{number}", f"172.{31 if what == 'away' else 30}.0.{number}/24"
            node = builders.node(name, address, labels={EXCLUDED: ""} if what == "excluded" else {})
            changes.append(view.change(node, deleted=what == "gone"))
            view = view.after(changes[-1])
        changed = following.follow(view, changes)
        after = list(following.reaches)
        assert sorted(after, key=repr) == sorted(all_reaches(view), key=repr)
        assert changed is (before != after)


def test_what_is_told_goes_on_until_everything_is_listed() -> None:
    following = Advertising()
    view = ClusterView.of([SETTINGS, PEER, *NODES, POOL]).unfollowed(OPTIONAL)
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


def test_on_a_segment_one_answers_and_the_others_turn_is_the_same_wherever_it_is_asked() -> None:
    nodes = [builders.node(f"n{number}", f"172.30.0.{number}/24") for number in range(1, 8)]
    away = builders.node("away", "172.31.0.1/24")
    view = ClusterView.of([SETTINGS, *nodes, away, SEGMENT, piece("s", HERE)])

    def turns(address: str, view: ClusterView) -> tuple[str, ...]:
        (found,) = reaches(view, balanced(ip=address))
        return found.nodes

    addresses = [f"172.30.0.{number}" for number in range(128, 192)]
    owners = {address: turns(address, view)[0] for address in addresses}
    assert set(owners.values()) == {node.metadata.name for node in nodes}, "each has some"
    assert all(len(turns(address, view)) == len(nodes) for address in addresses)
    without = view.after(Change.of(nodes[2], None))
    for address in addresses:
        left = tuple(name for name in turns(address, view) if name != "n3")
        assert turns(address, without) == left, "who goes leaves the others' order as it is"


def lint_of(*told: Resource) -> list[str]:
    found = lint_addresses(ClusterView.of([SETTINGS, *NODES, *told]))
    return [f"{problem}: {hint}" for _, (_, problem, hint) in found]


def test_addresses_that_nobody_tells_of_are_told_with_what_to_do() -> None:
    web, here = balanced(), piece("s", HERE)
    assert lint_of(POOL, PEER, web, here) == []
    assert lint_of(POOL, web) == [], "that it has no endpoints is said elsewhere"
    assert lint_of(POOL, web, here) == [
        "nobody is told of 192.0.2.1: there is no IPv4 BGPPeer: "
        "add a BGPPeer, or set advertise: layer2 of IPPool/outside where nodes share a segment"
    ]
    elsewhere = msgspec.structs.replace(PEER, spec=BGPPeerSpec(address="172.30.0.254", asn=64601, node="x"))
    assert "no node that leads to an endpoint and may has a BGPPeer" in lint_of(POOL, elsewhere, web, here)[0]
    apart = builders.pool("segment", "192.0.2.0/28", use="services", advertise="layer2")
    assert "no node that may has it in the subnet of its uplink" in lint_of(apart, web, here)[0]
    asking = service(type="LoadBalancer", load_balancer_class="podway.io/outside")
    (outcome,) = allocate([asking], [], lambda _: {})
    patch = status_patch(outcome, "2026-01-01T00:00:00Z")
    lacking = msgspec.convert(apply(msgspec.to_builtins(outcome.service), patch or {}), Service)
    assert lint_of(lacking)[0].startswith("it lacks an address: no IPv4 pool is with use: services")


def test_who_tells_is_shown() -> None:
    web = balanced()
    told = Told([SETTINGS, PEER, *NODES, POOL, web, piece("s", HERE)])
    assert summary(told.of(web)) == "node1, node2 (BGP)"
    assert list(lines(told.of(web))) == ["192.0.2.1 of IPPool/outside: node1, node2 by BGP"]
    segment = balanced(ip="172.30.0.130")
    told = Told([SETTINGS, *NODES, SEGMENT, segment, piece("s", HERE)])
    first, second = told.of(segment)[0].nodes
    assert summary(told.of(segment)) == f"{first} (layer 2)"
    assert list(lines(told.of(segment))) == [
        f"172.30.0.130 of IPPool/segment: {first} answers ARP and neighbour discovery, then {second}"
    ]


def test_of_those_who_take_turns_the_first_that_lives_answers() -> None:
    nodes = [builders.node(f"n{number}", f"172.30.0.{number}/24") for number in range(1, 12)]
    web = balanced(ip="172.30.0.130")
    following = Advertising()
    following.follow(ClusterView.of([SETTINGS, *nodes, SEGMENT, web, piece("s", HERE)]), ())
    (reach,) = following.reaches
    first, second, third, *_ = reach.nodes
    address = frozenset([ip_address("172.30.0.130")])

    def answering(*dead: str) -> list[str]:
        return [name for name in reach.nodes if following.answered(name, dead) == address]

    assert answering() == [first]
    assert answering(second) == [first]
    assert answering(first) == [second]
    assert answering(first, second) == [third]
    assert len(reach.nodes) == TURNS
    assert following.partners(first) == set(reach.nodes) - {first}
    assert following.answerable(second) == address
    (idle, *_) = {node.metadata.name for node in nodes} - set(reach.nodes)
    assert following.partners(idle) == following.answerable(idle) == frozenset()
