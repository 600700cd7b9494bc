"""Verify proves the encapsulation that the pool asks for, and says what is wrong with another."""

from ipaddress import ip_address

import msgspec
import pytest

from podway.api.kinds.ip_pool import Encapsulation, When
from podway.api.kinds.node import ACCEPTS, Node
from podway.cluster.view import ClusterView
from podway.kernel import netns
from podway.kernel.ipip import IpipTunnels, TunnelEndpoints
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links
from podway.plan.changes import compare
from podway.plan.fabric import overlay
from podway.plan.objects import IpipTunnel, NodePlan, TunnelEndpoint
from podway.prove.encapsulation import ExpectedEncapsulation, expected_encapsulation
from podway.prove.world import World
from podway.verify.report import Report, to_text
from podway.verify.verify import verify
from tests import builders
from tests.verify.hand_cluster import NODES, PODS, Cluster

pytestmark = pytest.mark.kernel

TIMEOUT = 1.0
POOLS = {"four": ("10.77.0.0/16", 24), "six": ("fd77::/48", 64)}
MTU = {"vxlan": 1450, "ipip": 1480}


def node_object(number: int, rack: int = 0) -> Node:
    own = (f"172.30.{rack}.{number}/24", f"fd30:{rack}::{number}/64")
    return builders.node(f"n{number}", *own, notes={ACCEPTS: "vxlan,ipip"})


def view_of(encapsulation: Encapsulation, when: When = "always") -> ClusterView:
    """Return what the store says of the cluster made by hand, whose IPv4 pool asks for this encapsulation."""
    six: Encapsulation = "none" if encapsulation == "ipip" else encapsulation
    encapsulations: dict[str, Encapsulation] = {"four": encapsulation, "six": six}
    return ClusterView.of(
        [
            *map(node_object, NODES),
            *(
                builders.pool(name, cidr, block_size=size, encapsulation=encapsulations[name], when=when)
                for name, (cidr, size) in POOLS.items()
            ),
            *(builders.block(f"10.77.{number}.0/24", "four", f"n{number}") for number in NODES),
            *(builders.block(f"fd77:0:0:{number}::/64", "six", f"n{number}") for number in NODES),
        ]
    )


def set_mtu(cluster: Cluster, mtu: int) -> None:
    for node in NODES:
        for number in PODS:
            cluster.on_node(node, f"ip link set veth{number} mtu {mtu}")
            cluster.on(cluster.pod(node, number), f"ip link set eth0 mtu {mtu}")


def lead(cluster: Cluster, node: int, other: int, encapsulation: str) -> None:
    """Lead a node's packets for the other one's pods into the overlay device, which stands already."""
    device, here = f"podway-{encapsulation}", overlay(ip_address(f"172.30.0.{node}"))
    there = overlay(ip_address(f"172.30.0.{other}"))
    for line in (
        f"ip address add {here.gateway}/64 dev {device} nodad",
        f"ip address add 169.254.1.1/32 dev {device} scope link",
        f"ip link set {device} mtu {MTU[encapsulation]} up",
        f"sysctl -qw net.ipv4.conf.{device}.rp_filter=2 net.ipv4.conf.eth0.rp_filter=2",
        f"ip neighbour add {there.gateway} lladdr {there.mac} dev {device} nud permanent",
        f"ip route replace 10.77.{other}.0/24 via inet6 {there.gateway} dev {device} src 172.30.0.{node}",
    ):
        cluster.on_node(node, line)


@pytest.fixture
def vxlan(cluster: Cluster) -> World:
    """The cluster made by hand, with its packets crossing in VXLAN."""
    set_mtu(cluster, MTU["vxlan"])
    for node, other in ((1, 2), (2, 1)):
        here, there = (overlay(ip_address(f"172.30.0.{number}")) for number in (node, other))
        cluster.on_node(
            node,
            f"ip link add podway-vxlan address {here.mac} type vxlan id 4096 dstport 4789 "
            f"local {here.endpoint} dev eth0 nolearning",
        )
        lead(cluster, node, other, "vxlan")
        cluster.on_node(node, f"bridge fdb add {there.mac} dev podway-vxlan dst {there.endpoint} self permanent")
        route = f"fd77:0:0:{other}::/64 via {there.gateway} dev podway-vxlan src fd30::{node}"
        cluster.on_node(node, f"ip -6 route replace {route}")
    return msgspec.structs.replace(cluster.world(), view=view_of("vxlan"))


@pytest.fixture
def ipip(cluster: Cluster) -> World:
    """The same in IPIP, with the programs of ours."""
    set_mtu(cluster, MTU["ipip"])
    for node, other in ((1, 2), (2, 1)):
        local = ip_address(f"172.30.0.{node}")
        mac = overlay(local).mac
        cluster.on_node(node, f"ip link add podway-ipip address {mac} type veth peer name podway-ipip0")
        cluster.on_node(node, "ip link set podway-ipip0 up")
        lead(cluster, node, other, "ipip")
        plan = NodePlan(
            tunnels=(IpipTunnel("podway-ipip", "eth0", local),),
            endpoints=(TunnelEndpoint(ip_address(f"172.30.0.{other}")),),
        )
        bring(cluster, node, plan)
    return msgspec.structs.replace(cluster.world(), view=view_of("ipip"))


def bring(cluster: Cluster, node: int, plan: NodePlan) -> None:
    """Attach and detach a node's IPIP programs as a plan says."""
    with netns.opened(netns.path_of(cluster.node(node))) as descriptor, Connection(descriptor) as connection:

        def numbers() -> dict[str, int]:
            return {link.name: link.index for link in links.dump(connection)}

        for kind in (IpipTunnels(connection, numbers), TunnelEndpoints(connection, numbers)):
            changes = list(compare(kind.name, kind.list(plan), kind.wanted(plan)))
            if changes:
                assert kind.apply(changes) == {}


def prove(world: World) -> Report:
    return verify(world, timeout=TIMEOUT)


def problems(report: Report) -> list[str]:
    return [finding.problem for finding in report.findings]


def test_vxlan_is_proved_in_both_families(vxlan: World) -> None:
    report = prove(vxlan)
    assert problems(report) == []
    assert report.holds
    assert {
        (one.sender, one.receiver, one.family, one.observed, one.expected) for one in report.encapsulations
    } == {
        (*nodes, family, ("vxlan",), ("vxlan",))
        for nodes in (("n1", "n2"), ("n2", "n1"))
        for family in ("IPv4", "IPv6")
    }
    assert "n1 -> n2: vxlan (IPv4, IPv6)" in to_text(report)


def test_ipip_is_proved_beside_bare_ipv6(ipip: World) -> None:
    report = prove(ipip)
    assert problems(report) == []
    assert {(one.family, one.observed) for one in report.encapsulations} == {
        ("IPv4", ("ipip",)),
        ("IPv6", ("none",)),
    }


def test_within_a_subnet_cross_subnet_means_bare(vxlan: World) -> None:
    report = prove(msgspec.structs.replace(vxlan, view=view_of("vxlan", "cross-subnet")))
    assert {finding.code for finding in report.findings} == {"encapsulated"}
    assert problems(report)[0].startswith("packets from node n")
    assert "wrapped in VXLAN (VNI 4096, port 4789) from 172.30.0." in problems(report)[0]
    assert not report.holds


def test_bare_packets_are_not_what_the_pool_asks_for(cluster: Cluster) -> None:
    report = prove(msgspec.structs.replace(cluster.world(), view=view_of("vxlan")))
    assert {finding.code for finding in report.findings} == {"wrong-encapsulation"}
    assert {
        "packets from node n1 to n2's block 10.77.2.0/24 cross eth0 of node n1 bare, but the pool asks for "
        "VXLAN (VNI 4096, port 4789) from 172.30.0.1 to 172.30.0.2"
    } <= set(problems(report))
    assert "n1 -> n2: none (asked for: vxlan) (IPv4, IPv6)" in to_text(report)


def test_another_vni_is_not_the_clusters(cluster: Cluster, vxlan: World) -> None:
    view = vxlan.view
    settings = msgspec.structs.replace(view.config.vxlan, vni=7)
    config = msgspec.structs.replace(view.config, vxlan=settings)
    report = prove(msgspec.structs.replace(vxlan, view=msgspec.structs.replace(view, config=config)))
    assert "wrapped in VXLAN (VNI 4096, port 4789)" in problems(report)[0]
    assert "but the pool asks for VXLAN (VNI 7, port 4789)" in problems(report)[0]


OTHER = overlay(ip_address("172.30.0.2"))
FAULTS = {
    "no forwarding entry": (
        1,
        f"bridge fdb del {OTHER.mac} dev podway-vxlan self",
        f"the forwarding entry of node n2 ({OTHER.mac}) on podway-vxlan of node n1 is missing",
    ),
    "a wrong forwarding entry": (
        1,
        f"bridge fdb replace {OTHER.mac} dev podway-vxlan dst 172.30.0.77 self permanent",
        f"the forwarding entry of node n2 ({OTHER.mac}) on podway-vxlan of node n1 leads to 172.30.0.77, not to "
        "172.30.0.2",
    ),
    "no neighbour": (
        1,
        f"ip neighbour del {OTHER.gateway} dev podway-vxlan",
        f"the neighbour entry of node n2 ({OTHER.gateway}) on podway-vxlan of node n1 is missing",
    ),
    "no device to take it off": (2, "ip link set podway-vxlan down", "podway-vxlan of node n2 is down"),
    "a filter on the way in": (
        2,
        "nft -f - <<< 'table inet t { chain c { type filter hook input priority 0; udp dport 4789 drop; }; }'",
        "node n2 drops VXLAN (UDP port 4789) from node n1: a firewall rule does it",
    ),
    "a filter on the way out": (
        1,
        "nft -f - <<< 'table inet t { chain c { type filter hook output priority 0; udp dport 4789 drop; }; }'",
        "node n1 drops what podway-vxlan sends: a firewall rule or an eBPF program does it",
    ),
    "a small uplink": (
        2,
        "ip link set eth0 mtu 1480",
        "the MTU of eth0 of node n2 is 1480, but packets of 1500 bytes must pass",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_vxlan_is_named(cluster: Cluster, vxlan: World, fault: str) -> None:
    node, command, problem = FAULTS[fault]
    cluster.on_node(node, command)
    report = prove(vxlan)
    assert problem in problems(report)
    assert ("pod default/p12", "pod default/p22", "IPv4") in {
        (pair.sender, pair.receiver, pair.family)
        for finding in report.findings
        if finding.problem == problem
        for pair in finding.pairs
    }


def test_what_breaks_ipip_is_named(cluster: Cluster, ipip: World) -> None:
    local, other = ip_address("172.30.0.2"), ip_address("172.30.0.1")
    tunnel = IpipTunnel("podway-ipip", "eth0", local)
    bring(cluster, 2, NodePlan(tunnels=(tunnel,)))
    assert f"node n2 takes no IPIP packets from {other}, the address of node n1" in problems(prove(ipip))
    bring(cluster, 2, NodePlan())
    found = problems(prove(ipip))
    assert "the program that takes IPIP headers off is not attached to eth0 of node n2" in found
    assert "the program that puts IPIP headers on is not attached to podway-ipip of node n2" in found


def test_the_form_asked_for_follows_pool_subnets_and_destination() -> None:
    view, target = view_of("vxlan"), ip_address("10.77.2.5")
    asked = expected_encapsulation(view, "n1", "n2", target)
    assert str(asked) == "VXLAN (VNI 4096, port 4789) from 172.30.0.1 to 172.30.0.2"
    bare = [
        expected_encapsulation(view, "n1", "n1", target),
        expected_encapsulation(view, "n1", "n2", ip_address("172.30.0.2")),
        expected_encapsulation(view, "n1", "n2", ip_address("192.0.2.1")),
        expected_encapsulation(view_of("vxlan", "cross-subnet"), "n1", "n2", target),
        expected_encapsulation(view_of("none"), "n1", "n2", target),
    ]
    assert bare == [ExpectedEncapsulation()] * 5
    across = view_of("vxlan", "cross-subnet")
    far = across.after(across.change(node_object(2, rack=1)))
    assert (
        str(expected_encapsulation(far, "n1", "n2", target))
        == "VXLAN (VNI 4096, port 4789) from 172.30.0.1 to 172.30.1.2"
    )
