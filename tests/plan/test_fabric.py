"""How packets cross: pure functions over nodes and pools."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import ACCEPTS, SENDS, Node
from podway.cluster.view import ClusterView
from podway.plan.fabric import (
    OverlayNextHop,
    accepted_modes,
    desired_mode,
    mode_to,
    overlay,
    overlay_hops,
    overlay_next_hop,
    planned_modes,
    required_modes,
)
from podway.plan.learned import METRIC as BIRD_METRIC
from podway.plan.mtu import pod_mtu
from podway.plan.node import plan_node
from podway.plan.objects import IPIP_DEVICE, VXLAN6_DEVICE, VXLAN_DEVICE, Route
from podway.plan.remote import GUARD_METRIC, LAST_METRIC, STORE_METRIC
from podway.plan.switching import impossible
from podway.plan.uplink import Uplink
from tests import builders


def node(name: str, *interfaces: str, accepts: str = "", sends: str = "") -> Node:
    return builders.node(name, *interfaces, notes={ACCEPTS: accepts, SENDS: sends})


def pool(cidr: str = "10.244.0.0/16", **spec: Any) -> IPPool:
    return builders.pool(f"pool{cidr[:2]}", cidr, **spec)


def block(cidr: str, owner: str, of: IPPool) -> AddressBlock:
    return builders.block(cidr, of.metadata.name, owner)


ONE = node("one", "172.30.1.1/24", accepts="vxlan,ipip", sends="vxlan,ipip")
NEAR = node("near", "172.30.1.2/24", accepts="vxlan,ipip")
FAR = node("far", "172.30.2.1/24", accepts="vxlan,ipip")
UPLINK = Uplink("eth0", 1500, ONE.interface_addresses)


def view(*objects: Any) -> ClusterView:
    return ClusterView.of(objects)


def test_an_overlay_address_is_the_macs_modified_eui_64() -> None:
    found = overlay(ip_address("172.30.0.2"))
    assert found.mac == "02:70:ac:1e:00:02"
    assert found.gateway == ip_address("fe80::70:acff:fe1e:2")


@given(st.sets(st.ip_addresses(v=4), min_size=2, max_size=50))
def test_no_two_ipv4_nodes_share_an_overlay_address(addresses: set[Any]) -> None:
    assert len({overlay(address).mac for address in addresses}) == len(addresses)
    assert len({overlay(address).gateway for address in addresses}) == len(addresses)


def test_cross_subnet_encapsulates_only_between_subnets() -> None:
    crossing_pool = pool(encapsulation="ipip", when="cross-subnet")
    assert desired_mode(crossing_pool, ONE, NEAR) == "none"
    assert desired_mode(crossing_pool, ONE, FAR) == "ipip"
    assert desired_mode(pool(encapsulation="ipip"), ONE, NEAR) == "ipip"


def test_a_form_is_sent_only_to_who_accepts_it() -> None:
    silent = node("silent", "172.30.1.9/24")
    former = node("former", "172.30.1.8/24", accepts="vxlan")
    wanted = pool(encapsulation="ipip")
    assert mode_to(wanted, ONE, NEAR) == "ipip"
    assert mode_to(wanted, ONE, silent) == "none"
    assert mode_to(wanted, ONE, former) == "vxlan"  # it has not switched yet
    assert mode_to(pool(), ONE, former) == "none"  # bare packets are always taken


def test_a_form_is_sent_only_by_who_has_said_so() -> None:
    quiet = node("quiet", "172.30.1.9/24", accepts="vxlan,ipip")
    assert mode_to(pool(encapsulation="vxlan"), quiet, NEAR) == "none"
    assert mode_to(pool(encapsulation="vxlan"), ONE, quiet) == "vxlan"


def test_a_form_is_held_while_another_node_sends_it() -> None:
    plain = node("plain", "172.30.1.4/24")
    assert required_modes(view(plain, NEAR, pool()), "plain") == frozenset()
    still = node("still", "172.30.1.3/24", sends="vxlan")
    assert accepted_modes(view(plain, still, pool()), "plain") == {"vxlan"}
    assert required_modes(view(plain, still, pool()), "plain") == {"vxlan"}
    assert required_modes(view(plain, still, pool(encapsulation="ipip")), "plain") == {"vxlan", "ipip"}


def test_a_form_is_held_while_others_may_think_that_it_is_or_the_node_sends_it_itself() -> None:
    withdrawing = node("withdrawing", "172.30.1.5/24", accepts="vxlan")
    sending = node("sending", "172.30.1.6/24", sends="ipip")
    assert accepted_modes(view(withdrawing, pool()), "withdrawing") == frozenset()
    assert required_modes(view(withdrawing, pool()), "withdrawing") == {"vxlan"}
    assert accepted_modes(view(sending, pool()), "sending") == frozenset()
    assert required_modes(view(sending, pool()), "sending") == {"ipip"}


def test_what_is_sent_is_told_by_pool() -> None:
    cross, bare = pool(encapsulation="vxlan", when="cross-subnet"), pool("fd00:10:244::/56")
    cluster = view(
        ONE, NEAR, FAR, cross, bare, block("10.244.1.0/24", "near", cross), block("10.244.2.0/24", "far", cross)
    )
    assert planned_modes(cluster, "one") == {cross.metadata.name: {"none", "vxlan"}, bare.metadata.name: {"none"}}


def test_next_hops_have_their_ways_in_encapsulated_pools_only() -> None:
    vxlan, bare = pool(encapsulation="vxlan", when="cross-subnet"), pool("fd00:10:244::/56")
    seen = view(ONE, NEAR, FAR, vxlan, bare)
    next_hops = [hop for there in (NEAR, FAR) for hop in overlay_hops(seen.pools.values(), ONE, there)]
    assert next_hops == [(vxlan.network, ip_address("172.30.2.1"), overlay_next_hop(vxlan, ONE, FAR))]


def test_the_mtu_leaves_room_for_what_is_wanted_and_for_what_is_still_sent() -> None:
    bare, ipip = pool(), pool(encapsulation="ipip")
    assert pod_mtu(view(ONE, bare), UPLINK) == 1500
    assert pod_mtu(view(ONE, ipip), UPLINK) == 1480
    assert pod_mtu(view(ONE, bare), UPLINK, sent={bare.metadata.name: frozenset({"vxlan"})}) == 1450
    underlay = Uplink("eth0", 1500, node("six", "fd00::1/64").interface_addresses)
    assert pod_mtu(view(ONE, pool(encapsulation="vxlan")), underlay) == 1430


def test_a_pods_mtu_is_that_of_its_own_pools() -> None:
    bare, vxlan = pool(), pool("fd00:10:244::/56", encapsulation="vxlan")
    cluster = view(ONE, bare, vxlan)
    assert pod_mtu(cluster, UPLINK, [ip_address("10.244.0.2")]) == 1500
    assert pod_mtu(cluster, UPLINK, [ip_address("10.244.0.2"), ip_address("fd00:10:244::2")]) == 1450


def test_the_store_tells_routes_where_the_pool_says_so() -> None:
    stored = pool(encapsulation="vxlan", when="cross-subnet", distribution="store")
    far, near = block("10.244.2.0/24", "far", stored), block("10.244.1.0/24", "near", stored)
    plan = plan_node(view(ONE, NEAR, FAR, stored, far, near), "one", UPLINK, ())
    routes = {route.destination: route for route in plan.routes}
    assert routes[near.network].gateway == ip_address("172.30.1.2")
    assert routes[far.network].device == VXLAN_DEVICE
    assert {neighbour.address for neighbour in plan.neighbours} >= {routes[far.network].gateway}
    assert {(entry.mac, entry.endpoint) for entry in plan.forwarding} >= {
        (overlay(ip_address("172.30.2.1")).mac, ip_address("172.30.2.1"))
    }


def test_bare_packets_find_no_way_of_ours_through_routers() -> None:
    stored = pool(distribution="store")
    plan = plan_node(view(ONE, FAR, stored, block("10.244.2.0/24", "far", stored)), "one", UPLINK, ())
    assert plan.routes == ()


@pytest.mark.parametrize(
    ("mtu", "six", "room"), [(0, True, 0), (1330, True, 0), (1329, False, 1279), (576, False, 526)]
)
def test_less_than_ipv6_needs_is_no_way_for_ipv6_and_told_to_ipv4(mtu: int, six: bool, room: int) -> None:
    here, there = (
        node(name, *interfaces, accepts="vxlan", sends="vxlan")
        for name, interfaces in (("one", ("10.0.0.1/24", "fd01::1/64")), ("two", ("10.0.0.2/24", "fd01::2/64")))
    )
    gateway = overlay(ip_address("10.0.0.2")).gateway
    assert overlay_next_hop(pool(encapsulation="vxlan"), here, there, mtu) == OverlayNextHop(
        VXLAN_DEVICE, gateway, room
    )
    next_hop = overlay_next_hop(pool("fd00::/56", encapsulation="vxlan"), here, there, mtu)
    assert next_hop is not None
    assert next_hop.gateway == (gateway if six else None)


def test_what_the_store_distributes_and_cannot_be_encapsulated_does_not_fall_to_a_route_below() -> None:
    """Not even to one of BIRD's, from before the store distributed it, which leads there bare."""
    stored = pool("fd00::/56", encapsulation="vxlan", distribution="store")
    here, there = (
        node(name, *interfaces, accepts="vxlan", sends="vxlan")
        for name, interfaces in (("one", ("10.0.0.1/24", "fd01::1/64")), ("two", ("10.0.0.2/24", "fd01::2/64")))
    )
    theirs = block("fd00::40/122", "two", stored)
    for mtu, kind, metric in ((1500, "unicast", STORE_METRIC), (1300, "unreachable", GUARD_METRIC)):
        plan = plan_node(
            view(here, there, stored, theirs), "one", Uplink("eth0", mtu, here.interface_addresses), ()
        )
        (route,) = [route for route in plan.routes if route.destination == theirs.network]
        assert (route.type, route.metric) == (kind, metric)
    assert STORE_METRIC < GUARD_METRIC < BIRD_METRIC


def test_nodes_without_a_family_in_common_do_not_meet_and_nothing_crosses_otherwise() -> None:
    here = node("one", "10.0.0.1/24", accepts="vxlan", sends="vxlan")
    there = node("two", "fd01::2/64", accepts="vxlan6", sends="vxlan6")
    for one, other in ((here, there), (there, here)):
        for told in (pool(encapsulation="vxlan"), pool("fd00::/56", encapsulation="vxlan")):
            next_hop = overlay_next_hop(told, one, other)
            assert next_hop is not None, "it does not cross bare"
            assert next_hop.gateway is None
    cluster = view(here, there, pool(encapsulation="vxlan"))
    (said,) = impossible(cluster, Uplink("eth0", 1500, here.interface_addresses))
    assert said.startswith("two: vxlan does not reach it: it has only IPv6, and this node only IPv4;")


def test_each_pair_of_nodes_crosses_by_outer_headers_of_a_family_that_both_have() -> None:
    words = {"accepts": "vxlan,vxlan6", "sends": "vxlan,vxlan6"}
    both, other = (
        node("both", "10.0.0.1/24", "fd01::1/64", **words),
        node("other", "10.0.0.3/24", "fd01::3/64", **words),
    )
    six = node("six", "fd01::2/64", accepts="vxlan6", sends="vxlan6")
    next_hops = {}
    for told in (pool(encapsulation="vxlan"), pool("fd00::/56", encapsulation="vxlan")):
        for here, there in ((both, other), (both, six), (six, both), (other, both)):
            next_hop = overlay_next_hop(told, here, there, 1500)
            assert next_hop is not None
            next_hops[here.metadata.name, there.metadata.name] = (next_hop.device, next_hop.gateway)
    assert next_hops == {
        ("both", "other"): (VXLAN_DEVICE, overlay(ip_address("10.0.0.3")).gateway),
        ("other", "both"): (VXLAN_DEVICE, overlay(ip_address("10.0.0.1")).gateway),
        ("both", "six"): (VXLAN6_DEVICE, overlay(ip_address("fd01::2")).gateway),
        ("six", "both"): (VXLAN6_DEVICE, overlay(ip_address("fd01::1")).gateway),
    }


def test_a_node_holds_a_device_for_each_family_that_some_pair_needs() -> None:
    told = pool(encapsulation="vxlan")
    both, four = node("both", "10.0.0.1/24", "fd01::1/64"), node("four", "10.0.0.2/24")
    six = node("six", "fd01::3/64")
    uplinks = {one.metadata.name: Uplink("eth0", 1500, one.interface_addresses) for one in (both, four, six)}

    def devices(*nodes: Node) -> dict[str, dict[str, str]]:
        cluster = view(*nodes, told)
        names = [one.metadata.name for one in nodes]
        plans = {name: plan_node(cluster, name, uplinks[name], ()) for name in names}
        return {
            name: {one.name: str(one.vxlan.local) for one in plan.devices if one.vxlan}
            for name, plan in plans.items()
        }

    assert devices(both, four) == {"both": {VXLAN_DEVICE: "10.0.0.1"}, "four": {VXLAN_DEVICE: "10.0.0.2"}}
    assert devices(six) == {"six": {VXLAN6_DEVICE: "fd01::3"}}
    assert devices(both, four, six) == {
        "both": {VXLAN_DEVICE: "10.0.0.1", VXLAN6_DEVICE: "fd01::1"},
        "four": {VXLAN_DEVICE: "10.0.0.2"},
        "six": {VXLAN6_DEVICE: "fd01::3"},
    }
    assert pod_mtu(view(both, four, told), uplinks["both"]) == 1450
    assert pod_mtu(view(both, four, six, told), uplinks["four"]) == 1430, "the longer headers fit on every path"


def test_a_device_of_ours_never_loses_ipv6() -> None:
    told = pool(encapsulation="vxlan")
    cluster = view(ONE, FAR, told)
    for mtu, device_mtu, bound in ((1500, 1450, "eth0"), (1330, 1280, "eth0"), (1329, 1280, ""), (576, 1280, "")):
        uplink = Uplink("eth0", mtu, UPLINK.addresses)
        devices = {device.kind: device for device in plan_node(cluster, "one", uplink, ()).devices}
        device = devices["vxlan"]
        assert device.mtu == device_mtu
        assert device.vxlan is not None
        assert device.vxlan.uplink == bound
        assert pod_mtu(cluster, uplink) == mtu - 50, "IPv4 alone needs no more"


def test_a_bridged_block_has_a_route_of_ours_beside_birds() -> None:
    told = pool(encapsulation="ipip")
    far = block("10.244.2.0/24", "far", told)
    cluster = view(ONE, FAR, told, far)
    last_resort = Route(told.network, "unreachable", metric=LAST_METRIC)
    assert plan_node(cluster, "one", UPLINK, ()).routes == (last_resort,)
    other, route, guard = plan_node(cluster, "one", UPLINK, (), transitional={far.network}).routes
    assert other == last_resort
    assert (route.device, route.metric) == (IPIP_DEVICE, STORE_METRIC)
    assert guard == Route(far.network, "unreachable", metric=GUARD_METRIC)


def test_what_was_encapsulated_is_not_sent_bare_while_a_lost_underlay_is_replaced() -> None:
    told = pool("fd00::/56", encapsulation="vxlan")
    here = node("one", "10.0.0.1/24", "fd01::1/64", accepts="vxlan", sends="vxlan")
    lost_ipv4 = node("two", "fd01::2/64", accepts="vxlan", sends="vxlan")
    for one, other in ((here, lost_ipv4), (lost_ipv4, here)):
        next_hop = overlay_next_hop(told, one, other)
        assert next_hop is not None, "it does not cross bare"
        assert next_hop.gateway is None
    assert overlay_next_hop(told, here, node("new", "fd01::3/64")) is None, (
        "it gets what it got before: nothing was put on"
    )


@pytest.mark.parametrize("cidr", ["10.244.0.0/16", "fd00::/56"])
def test_a_subnet_is_shared_in_the_pools_own_family_or_not_at_all(cidr: str) -> None:
    """Bare packets need an address of their own family at the other end."""
    cross = pool(cidr, encapsulation="vxlan", when="cross-subnet")
    dual = node("dual", "10.0.0.1/24", "fd01::1/64", accepts="vxlan,vxlan6", sends="vxlan,vxlan6")
    four = node("four", "10.0.0.2/24", accepts="vxlan", sends="vxlan")
    six = node("six", "fd01::2/64", accepts="vxlan6", sends="vxlan6")
    assert mode_to(cross, dual, four) == ("none" if cross.network.version == 4 else "vxlan")
    assert mode_to(cross, dual, six) == ("none" if cross.network.version == 6 else "vxlan6")


@pytest.mark.parametrize("encapsulation", ["vxlan", "ipip"])
def test_a_node_that_an_encapsulation_does_not_reach_is_named(encapsulation: Any) -> None:
    asked = pool(encapsulation=encapsulation)
    four, six = node("four", "10.0.0.1/24"), node("six", "fd01::2/64")
    here = Uplink("eth0", 1500, four.interface_addresses)
    (said,) = impossible(view(four, six, asked), here)
    assert said.startswith(f"six: {encapsulation} does not reach it: it has only IPv6, and this node only IPv4")
