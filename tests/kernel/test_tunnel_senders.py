"""Whose tunnelled packets a node takes: forged outer and inner sources beside lawful ones."""

import secrets
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeAlias

import msgspec
import pytest

from podway.api.addresses import Address, Family
from podway.api.kinds.ip_pool import Encapsulation
from podway.cluster.view import ClusterView
from podway.kernel.node import Kernel
from podway.plan.fabric import overlay
from podway.plan.objects import NodePlan
from tests.kernel.guard_lab import (
    BLOCKS,
    HERE,
    ROUTER,
    THERE,
    GuardLab,
    cluster,
    ethernet,
    guard_lab,
    icmp_error,
    ip_packet,
    listening,
    mac_of,
    send_frame,
    udp,
)
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel

THIRD = {Family.IPV4: ip_interface("192.0.2.3/24"), Family.IPV6: ip_interface("2001:db8::3/64")}
THIRDS_BLOCK = {Family.IPV4: "10.244.3.0/24", Family.IPV6: "fd00:10:244:3::40/122"}
UNKNOWN_BLOCK = {Family.IPV4: "10.244.77.0/24", Family.IPV6: "fd00:10:244:77::40/122"}
VNI, PORT = 4096, 4789
Way: TypeAlias = tuple[Encapsulation, Family, Family]

WAYS: list[Way] = [
    ("vxlan", Family.IPV4, Family.IPV4),
    ("vxlan", Family.IPV4, Family.IPV6),
    ("vxlan", Family.IPV6, Family.IPV4),
    ("vxlan", Family.IPV6, Family.IPV6),
    ("ipip", Family.IPV4, Family.IPV4),
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[2].label} by {way[0]} over {way[1].label}")
def way(request: pytest.FixtureRequest) -> Way:
    param: Way = request.param
    return param


def view_of(encapsulation: Encapsulation, outer: Family, inner: Family) -> ClusterView:
    """Nobody asks for the encapsulation: it is one that is on its way out, and still taken off."""
    underlay = [outer] if outer is Family.IPV6 else list(Family)
    third = {family: THIRD[family] for family in underlay}
    announced = "vxlan6" if encapsulation == "vxlan" and outer is Family.IPV6 else encapsulation
    return cluster(
        encapsulations=announced, underlay=underlay, more=[third], blocks={"more0": THIRDS_BLOCK[inner]}
    )


@pytest.fixture
def lab(new_netns: Callable[[], TestNamespace], way: Way) -> Iterator[GuardLab]:
    with guard_lab(new_netns, view_of(*way)) as lab:
        lab.run_pod(new_netns(), 7)
        yield lab


def tunnelled(
    encapsulation: Encapsulation, packet: bytes, source: Address, destination: Address, vni: int = VNI
) -> bytes:
    """Put outer headers on a packet."""
    if encapsulation == "ipip":
        return ip_packet(source, destination, 4, packet)
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    frame = ethernet(overlay(HERE[Family(destination.version)].ip).mac, overlay(source).mac, kind, packet)
    return ip_packet(source, destination, 17, udp(40000, PORT, struct.pack("!II", 8 << 24, vni << 8) + frame))


def pod_in(cidr: str) -> Address:
    return ip_network(cidr).network_address + 7


def taken(
    lab: GuardLab,
    encapsulation: Encapsulation,
    outer_source: Address,
    inner_source: Address,
    wait: float,
    *,
    from_pod: bool = False,
    destination: Address | None = None,
) -> bool:
    """Tell whether a packet from the fabric reaches the pod."""
    pod, outer = lab.pods[0], Family(outer_source.version)
    mark = secrets.token_bytes(8)
    inner = ip_packet(inner_source, pod.address[Family(inner_source.version)], 17, udp(5, 6, mark))
    packet = tunnelled(encapsulation, inner, outer_source, destination or HERE[outer].ip)
    with listening(pod.netns) as heard:
        if from_pod:
            pod.send(packet)
        else:
            send_frame(lab.fabric, packet, mac_of(lab.node), mac_of(lab.fabric))
        return heard.has(mark, wait)


def test_a_node_sends_from_its_pods_and_itself_and_from_nobody_else(lab: GuardLab, way: Way) -> None:
    encapsulation, outer, inner = way
    node = THERE[outer].ip
    lawful = {
        "a pod of the node": pod_in(BLOCKS[inner][1]),
        "a pod in a block that is not known yet": pod_in(
            "10.244.77.0/24" if inner is Family.IPV4 else "fd00:10:244:77::/64"
        ),
    }
    if inner is outer:
        lawful["the node itself"] = node
    forged = {
        "a pod of this node": lab.pods[0].address[inner] + 1,
        "the pod itself": lab.pods[0].address[inner],
        "this node": HERE[inner].ip,
        "a pod of a third node": pod_in(THIRDS_BLOCK[inner]),
        "a third node": THIRD[inner].ip,
        "a router": ROUTER[inner].ip,
        "the world outside": ip_address("203.0.113.9" if inner is Family.IPV4 else "2001:db8:9::9"),
    }
    for what, source in lawful.items():
        assert taken(lab, encapsulation, node, source, 5), what
    for what, source in forged.items():
        assert not taken(lab, encapsulation, node, source, 0.2), what


def test_a_host_of_the_fabric_that_is_no_node_sends_nothing(lab: GuardLab, way: Way) -> None:
    encapsulation, outer, inner = way
    for source in (pod_in(BLOCKS[inner][1]), ROUTER[inner].ip, pod_in(THIRDS_BLOCK[inner])):
        assert not taken(lab, encapsulation, ROUTER[outer].ip, source, 0.2)
    assert taken(lab, encapsulation, THERE[outer].ip, pod_in(BLOCKS[inner][1]), 5)


def test_a_pod_of_the_node_sends_nothing(lab: GuardLab, way: Way) -> None:
    encapsulation, outer, inner = way
    for source in (lab.pods[0].address[outer], THERE[outer].ip):
        assert not taken(lab, encapsulation, source, pod_in(BLOCKS[inner][1]), 0.2, from_pod=True)


def test_a_block_that_changes_hands_is_taken_from_its_new_owner(lab: GuardLab, way: Way) -> None:
    encapsulation, outer, inner = way
    source = pod_in(THIRDS_BLOCK[inner])
    assert taken(lab, encapsulation, THIRD[outer].ip, source, 5)
    view = view_of(*way)
    blocks = {name: block for name, block in view.blocks.items() if block.spec.cidr == THIRDS_BLOCK[inner]}
    (old,) = blocks.values()
    new = msgspec.structs.replace(old, spec=msgspec.structs.replace(old.spec, node="there"))
    objects = [*view.nodes.values(), *view.pools.values(), *(b for b in view.blocks.values() if b is not old), new]
    lab.follow(ClusterView.of(objects))
    assert not taken(lab, encapsulation, THIRD[outer].ip, source, 0.2)
    assert taken(lab, encapsulation, THERE[outer].ip, source, 5)
    assert lab.kernel.diff(lab.plan()) == []


def test_a_correct_node_costs_no_write_and_nothing_stays(lab: GuardLab) -> None:
    with Kernel.open(lab.node.fd) as again:
        assert again.diff(lab.plan()) == []
        assert (again.apply(lab.plan()).changes, again.writes) == ((), 0)
    lab.follow(cluster(underlay=[Family(each.version) for each in lab.uplink.node_addresses]))
    assert "podway-vxlan" not in lab.node.sh("nft list tables; ip link")
    assert lab.kernel.apply(NodePlan()).failures == ()


TAMPERINGS = {
    "nft delete table ip podway-vxlan": "nft table ip podway-vxlan is missing",
    "nft flush chain ip podway-vxlan tunnel": "nft table ip podway-vxlan is altered",
    "nft flush set ip podway-vxlan senders4": "of nft set ip podway-vxlan senders4 is missing",
    "nft add element ip podway-vxlan senders4 '{ 0xc0000202 . 0x01000000-0x01ffffff }'": "is not in the plan",
}


@pytest.mark.parametrize("command", TAMPERINGS)
def test_what_somebody_changes_is_told_and_put_right(new_netns: Callable[[], TestNamespace], command: str) -> None:
    way: Way = ("vxlan", Family.IPV4, Family.IPV4)
    with guard_lab(new_netns, view_of(*way)) as lab:
        lab.run_pod(new_netns(), 7)
        lab.node.sh(command)
        assert TAMPERINGS[command] in "\n".join(change.difference for change in lab.kernel.diff(lab.plan()))
        assert lab.kernel.apply(lab.plan()).failures == ()
        assert lab.kernel.diff(lab.plan()) == []
        assert taken(lab, "vxlan", THERE[Family.IPV4].ip, pod_in(BLOCKS[Family.IPV4][1]), 5)
        assert not taken(lab, "vxlan", THERE[Family.IPV4].ip, pod_in(THIRDS_BLOCK[Family.IPV4]), 0.2)


def test_another_networks_vxlan_packets_are_none_of_the_guards_business(
    new_netns: Callable[[], TestNamespace],
) -> None:
    """Several VXLAN devices share a port; each has its own VNI."""
    outer = Family.IPV4
    with guard_lab(new_netns, view_of("vxlan", outer, outer)) as lab:
        lab.node.sh(f"ip link add other type vxlan id 77 dstport {PORT} dev eth0 nolearning; ip link set other up")
        mark = secrets.token_bytes(8)
        inner = ip_packet("203.0.113.1", "203.0.113.2", 17, udp(5, 6, mark))
        with listening(lab.node, "other") as heard:
            packet = tunnelled("vxlan", inner, ROUTER[outer].ip, HERE[outer].ip, vni=77)
            send_frame(lab.fabric, packet, mac_of(lab.node), mac_of(lab.fabric))
            assert heard.has(mark, 5)


def test_an_error_is_relayed_only_to_whom_this_node_sends_for(new_netns: Callable[[], TestNamespace]) -> None:
    """A router's error about an outer packet comes home to a pod of this node, and to nobody else's (RFC 2003)."""
    family = Family.IPV4
    with guard_lab(new_netns, view_of("ipip", family, family)) as lab:
        pod = lab.run_pod(new_netns(), 7)
        for source, relayed in ((pod.address[family], 1), (pod_in(THIRDS_BLOCK[family]), 1)):
            inner = ip_packet(source, pod_in(BLOCKS[family][1]), 17, udp(5, 6, b"x" * 64))
            quoted = ip_packet(HERE[family].ip, THERE[family].ip, 4, inner)
            error = icmp_error(family, ROUTER[family].ip, HERE[family].ip, quoted)
            send_frame(lab.fabric, error, mac_of(lab.node), mac_of(lab.fabric))
            assert lab.kernel.ipip_counters()["relayed"] == relayed
