"""The planned way of packets: a pure function of view and leases."""

from ipaddress import ip_address, ip_interface

import msgspec

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.node import ACCEPTS, INTERFACE_ADDRESSES, SENDS, Node
from podway.api.lease import Attachment, Lease
from podway.api.meta import Metadata
from podway.cluster.view import ClusterView
from podway.plan.path import End, PlannedHop, Site, plan_path
from podway.plan.uplink import Uplink
from tests import builders

FAMILIES = {4: ("172.30.0.{}", "172.30.0.{}/24", "10.244.{}.0/24"), 6: ("fd30::{}", "fd30::{}/64", "fd00:{}::/64")}
POOLS = {4: IPPoolSpec(cidr="10.244.0.0/16"), 6: IPPoolSpec(cidr="fd00::/16", block_size=64)}
A1, A2 = Attachment("c1", "eth0"), Attachment("c2", "net1")


def _node(number: int, accepts: str = "vxlan,ipip") -> Node:
    """Return a node that may send every mode."""
    subnets = (subnet.format(number) for _, subnet, _ in FAMILIES.values())
    return builders.node(f"n{number}", *subnets, notes={ACCEPTS: accepts, SENDS: "vxlan,ipip"})


def _block(number: int, version: int) -> AddressBlock:
    return builders.block(FAMILIES[version][2].format(number), f"p{version}", f"n{number}")


def _view(nodes: tuple[Node, ...] = (), **changes: str) -> ClusterView:
    """Return a cluster of two nodes with blocks of both families, whose pools are so."""
    return ClusterView.of(
        [
            *(nodes or (_node(1), _node(2))),
            *(_block(number, version) for number in (1, 2) for version in FAMILIES),
            *(
                IPPool(metadata=Metadata(name=f"p{version}"), spec=msgspec.structs.replace(spec, **changes))
                for version, spec in POOLS.items()
            ),
        ]
    )


VIEW = _view()
POD = {1: ("10.244.1.2", "fd00:1::2"), 2: ("10.244.2.3", "fd00:2::3")}


def _site(number: int, attachment: Attachment) -> Site:
    own = tuple(ip_interface(subnet.format(number)) for _, subnet, _ in FAMILIES.values())
    lease = Lease(attachment, f"default/p{number}", "podnet", "/run/netns/x", tuple(map(ip_address, POD[number])))
    return Site(Uplink("eth9", 1500, own), (lease,))


SITES = {"n1": _site(1, A1), "n2": _site(2, A2)}


def _pod(number: int, version: int) -> End:
    address = POD[number][0 if version == 4 else 1]
    return End(ip_address(address), f"n{number}", f"default/p{number}")


def _shape(hops: tuple[PlannedHop, ...]) -> list[tuple[str, str, str, str, str, str]]:
    return [(hop.node, hop.pod, hop.entry, hop.exit, hop.disposition, hop.owner) for hop in hops]


def test_across_nodes_in_both_families() -> None:
    for version, (own, _, cidr) in FAMILIES.items():
        hops = plan_path(VIEW, SITES, _pod(1, version), _pod(2, version))
        assert _shape(hops) == [
            ("n1", "default/p1", "", "eth0", "forwarded", "podway"),
            ("n1", "", A1.link, "eth9", "forwarded", "bird"),
            ("n2", "", "eth9", A2.link, "forwarded", "podway"),
            ("n2", "default/p2", "net1", "", "delivered", "kernel"),
        ]
        route = hops[1].route
        assert route is not None
        assert (str(route.destination), str(route.gateway)) == (cidr.format(2), own.format(2))
        assert hops[1].learned_from == "n2"
        assert hops[2].neighbour is not None
        assert hops[2].neighbour.mac == A2.mac
        assert all(hop.route is None or hop.route.family == version for hop in hops)


def test_an_encapsulated_packet_crosses_by_an_overlay_device_and_the_wire_below_it() -> None:
    view = _view(encapsulation="vxlan")
    for version in FAMILIES:
        hops = plan_path(view, SITES, _pod(1, version), _pod(2, version))
        sent, taken = hops[1], hops[2]
        assert (sent.exit, sent.wire_exit, sent.encapsulation, sent.owner) == (
            "podway-vxlan",
            "eth9",
            "vxlan",
            "bird",
        )
        assert (taken.entry, taken.wire_entry) == ("podway-vxlan", "eth9")
        assert sent.route is not None
        assert sent.neighbour is not None
        # The way is the link-local address that comes from n2's MAC: 02:70 and 172.30.0.2.
        assert str(sent.route.gateway) == str(sent.neighbour.address) == "fe80::70:acff:fe1e:2"
        assert sent.neighbour.mac == "02:70:ac:1e:00:02"


def test_ipip_is_taken_off_on_the_uplink_itself() -> None:
    hops = plan_path(_view(encapsulation="ipip"), SITES, _pod(1, 4), _pod(2, 4))
    assert (hops[1].exit, hops[1].wire_exit, hops[1].encapsulation) == ("podway-ipip", "eth9", "ipip")
    assert (hops[2].entry, hops[2].wire_entry) == ("eth9", "")


def test_a_packet_is_sent_in_a_form_only_once_the_other_node_takes_it() -> None:
    view = _view((_node(1), _node(2, accepts="")), encapsulation="vxlan")
    there, back = (plan_path(view, SITES, _pod(*way), _pod(3 - way[0], 4)) for way in ((1, 4), (2, 4)))
    assert [hop.encapsulation for hop in there] == ["none"] * 4
    assert [hop.encapsulation for hop in back] == ["none", "vxlan", "none", "none"]


def test_routes_that_the_store_tells_are_ours() -> None:
    for mode, device in (("none", "eth9"), ("vxlan", "podway-vxlan")):
        hops = plan_path(_view(distribution="store", encapsulation=mode), SITES, _pod(1, 4), _pod(2, 4))
        assert (hops[1].owner, hops[1].exit, hops[1].leads_to, hops[1].learned_from) == (
            "podway",
            device,
            "n2",
            "",
        )
        assert (hops[-1].node, hops[-1].disposition) == ("n2", "delivered")


def test_pods_of_a_bridge_come_and_go_by_their_ports() -> None:
    def transitional(number: int, address: str) -> Lease:
        attachment = Attachment(f"c{number}", "eth0")
        where = (ip_address(address),)
        return Lease(attachment, f"default/p{number}", "podnet", "/run/netns/x", where, "bridge")

    one, twin = transitional(1, "10.244.1.2"), transitional(3, "10.244.1.3")
    sites = {**SITES, "n1": msgspec.structs.replace(SITES["n1"], leases=(one, twin))}
    view, neighbour = _view(attach="bridge"), End(ip_address("10.244.1.3"), "n1", "default/p3")
    near = plan_path(view, sites, _pod(1, 4), neighbour)
    assert _shape(near) == [
        ("n1", "default/p1", "", "eth0", "forwarded", "kernel"),
        ("n1", "", "cni0", "cni0", "forwarded", "podway"),
        ("n1", "default/p3", "eth0", "", "delivered", "kernel"),
    ]
    assert (near[1].wire_entry, near[1].wire_exit) == (one.attachment.link, twin.attachment.link)
    far = plan_path(view, sites, _pod(1, 4), _pod(2, 4))
    assert [(hop.entry, hop.wire_entry, hop.exit, hop.owner) for hop in far[:2]] == [
        ("", "", "eth0", "podway"),
        ("cni0", one.attachment.link, "eth9", "bird"),
    ]


def test_between_subnets_without_encapsulation_only_the_routers_know_the_gateway() -> None:
    far = msgspec.structs.replace(
        _node(2), metadata=Metadata(name="n2", annotations={INTERFACE_ADDRESSES: "172.30.0.2/32,fd30::2/128"})
    )
    near = _node(1)
    near = msgspec.structs.replace(
        near, metadata=Metadata(name="n1", annotations={INTERFACE_ADDRESSES: "172.30.0.1/32,fd30::1/128"})
    )
    told = plan_path(_view((near, far)), SITES, _pod(1, 4), _pod(2, 4))[1]
    assert (told.owner, told.leads_to, told.exit) == ("bird", "n2", "eth9")
    assert told.route is not None
    assert told.route.gateway is None
    # The store distributes no route there at all: the packet is left to the host's own routes.
    assert plan_path(_view((near, far), distribution="store"), SITES, _pod(1, 4), _pod(2, 4))[1].owner == "host"


def test_nodes_and_the_pod_itself() -> None:
    node1, node2 = (End(ip_address(f"172.30.0.{n}"), f"n{n}") for n in (1, 2))
    assert _shape(plan_path(VIEW, SITES, node1, node2)) == [
        ("n1", "", "", "eth9", "forwarded", "kernel"),
        ("n2", "", "eth9", "", "delivered", "kernel"),
    ]
    assert _shape(plan_path(VIEW, SITES, _pod(1, 4), node1)) == [
        ("n1", "default/p1", "", "eth0", "forwarded", "podway"),
        ("n1", "", A1.link, "", "delivered", "kernel"),
    ]
    assert _shape(plan_path(VIEW, SITES, _pod(1, 4), _pod(1, 4))) == [
        ("n1", "default/p1", "", "", "delivered", "kernel")
    ]


def test_out_of_the_cluster_and_back() -> None:
    beyond = End(ip_address("192.0.2.1"))
    assert [hop.disposition for hop in plan_path(VIEW, SITES, _pod(1, 4), beyond)] == ["forwarded", "outside"]
    assert _shape(plan_path(VIEW, SITES, beyond, _pod(1, 4))) == [
        ("n1", "", "eth9", A1.link, "forwarded", "podway"),
        ("n1", "default/p1", "eth0", "", "delivered", "kernel"),
    ]


def test_an_address_that_no_pod_has_ends_at_the_blocks_owner() -> None:
    free = End(ip_address("10.244.2.99"), "n2")
    last = plan_path(VIEW, SITES, _pod(1, 4), free)[-1]
    assert (last.node, last.disposition, last.route and last.route.type) == ("n2", "discarded", "blackhole")


def test_without_a_nodes_agent_the_way_has_gaps_but_an_end() -> None:
    hops = plan_path(VIEW, {"n1": SITES["n1"]}, _pod(1, 4), _pod(2, 4))
    assert [(hop.node, hop.pod, hop.disposition) for hop in hops] == [
        ("n1", "default/p1", "forwarded"),
        ("n1", "", "forwarded"),
        ("n2", "", "forwarded"),
        ("n2", "default/p2", "delivered"),
    ]
    assert {hops[2].entry, hops[2].exit, hops[3].entry} == {""}
