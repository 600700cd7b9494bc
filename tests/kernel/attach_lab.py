"""What tests of both ways to attach a pod share: a node with a bridge, leases, wirings, datagrams."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network

import msgspec

from podway.api.addresses import Address, Network
from podway.api.kinds.ip_pool import Attach
from podway.api.lease import Attachment, Lease
from podway.kernel.node import Kernel
from podway.kernel.rtnl import addresses, links
from podway.plan.bridge import plan_bridge
from podway.plan.changes import merged
from podway.plan.node import section_of
from podway.plan.objects import LinkAddress, NodePlan, PodWiring, Route
from podway.plan.wiring import wire
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE

NODE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
LAN = (ip_network("10.244.1.0/24"), ip_network("fd00:10:244::40/122"))
V4, V6 = ip_address("10.244.1.7"), ip_address("fd00:10:244::47")
OTHER4, OTHER6 = ip_address("10.244.1.8"), ip_address("fd00:10:244::48")
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2


def lease_of(
    *held: Address,
    attach: Attach,
    container: str = "c0ffee",
    ifname: str = "eth0",
    netns: str = "/run/netns/x",
) -> Lease:
    """Return a lease of these addresses."""
    return Lease(Attachment(container, ifname), "default/web", "podway", netns, held, attach)


def plan_of(lease: Lease, mtu: int = 1500, lan: tuple[Network, ...] = LAN) -> PodWiring:
    """Return what a lease's attachment looks like on a node with a bridge for these blocks."""
    return wire(lease, mtu=mtu, node_addresses=NODE, lan=lan)


def node_plan(*wirings: PodWiring, mtu: int = 1500) -> NodePlan:
    """Return the plan of a node that has a bridge: that, its blocks, and these pods, without rules."""
    blocks = NodePlan(routes=tuple(Route(block, "blackhole") for block in LAN))
    pods = (msgspec.structs.replace(section_of(wiring), elements=()) for wiring in wirings)
    return merged([plan_bridge(LAN, mtu), blocks, *pods])


@contextmanager
def opened_kernel(node: TestNamespace) -> Iterator[Kernel]:
    """Open the kernel of a node that forwards and has its own addresses."""
    node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
    with Kernel.open(node.fd) as kernel:
        kernel.connection.transact(
            [addresses.add(LinkAddress("lo", ip_interface(address)), links.LOOPBACK) for address in NODE]
        )
        yield kernel


def talk(
    left: TestNamespace,
    left_address: Address,
    right: TestNamespace,
    right_address: Address,
    *,
    size: int = 8,
    within: float = PATIENCE,
) -> None:
    """Send one datagram each way, unfragmented; the receiver must see the sender's own address and port."""
    with left.udp(left_address, within) as one, right.udp(right_address, within) as other:
        if left_address.version == 4:
            one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        one.sendto(b"x" * size, other.getsockname())
        data, sender = other.recvfrom(65536)
        assert (len(data), sender[:2]) == (size, one.getsockname()[:2])
        other.sendto(b"y", sender)
        assert one.recv(16) == b"y"
