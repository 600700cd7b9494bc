"""The planned way of packets: a pure function of view and leases."""

from ipaddress import ip_address, ip_interface

from podway.api.lease import Attachment, Lease
from podway.api.meta import Metadata
from podway.api.resources import AddressBlock, AddressBlockSpec, Node, NodeAddress, NodeStatus
from podway.plan.path import End, PlannedHop, Site, plan_path
from podway.plan.uplink import Uplink
from podway.plan.view import ClusterView

FAMILIES = {4: ("172.30.0.{}", "172.30.0.{}/24", "10.244.{}.0/24"), 6: ("fd30::{}", "fd30::{}/64", "fd00:{}::/64")}
A1, A2 = Attachment("c1", "eth0"), Attachment("c2", "net1")


def _node(number: int) -> Node:
    told = tuple(NodeAddress(type="InternalIP", address=own.format(number)) for own, _, _ in FAMILIES.values())
    return Node(metadata=Metadata(name=f"n{number}"), status=NodeStatus(addresses=told))


def _block(number: int, cidr: str) -> AddressBlock:
    spec = AddressBlockSpec(cidr=cidr.format(number), pool="p", node=f"n{number}")
    return AddressBlock(metadata=Metadata(name=cidr.format(number)), spec=spec)


VIEW = ClusterView.of(
    [
        *(_node(number) for number in (1, 2)),
        *(_block(number, cidr) for number in (1, 2) for _, _, cidr in FAMILIES.values()),
    ],
    1,
)
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
    return [(hop.node, hop.pod, hop.entry, hop.exit, hop.fate, hop.owner) for hop in hops]


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
    assert [hop.fate for hop in plan_path(VIEW, SITES, _pod(1, 4), beyond)] == ["forwarded", "outside"]
    assert _shape(plan_path(VIEW, SITES, beyond, _pod(1, 4))) == [
        ("n1", "", "eth9", A1.link, "forwarded", "podway"),
        ("n1", "default/p1", "eth0", "", "delivered", "kernel"),
    ]


def test_an_address_that_no_pod_has_ends_at_the_blocks_owner() -> None:
    free = End(ip_address("10.244.2.99"), "n2")
    last = plan_path(VIEW, SITES, _pod(1, 4), free)[-1]
    assert (last.node, last.fate, last.route and last.route.type) == ("n2", "discarded", "blackhole")


def test_without_a_nodes_agent_the_way_has_gaps_but_an_end() -> None:
    hops = plan_path(VIEW, {"n1": SITES["n1"]}, _pod(1, 4), _pod(2, 4))
    assert [(hop.node, hop.pod, hop.fate) for hop in hops] == [
        ("n1", "default/p1", "forwarded"),
        ("n1", "", "forwarded"),
        ("n2", "", "forwarded"),
        ("n2", "default/p2", "delivered"),
    ]
    assert {hops[2].entry, hops[2].exit, hops[3].entry} == {""}
