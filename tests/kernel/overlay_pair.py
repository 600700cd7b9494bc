"""Two nodes on one wire, with a VXLAN device each: what the tests of overlays share."""

import contextlib
import socket
import time
from ipaddress import ip_address, ip_interface, ip_network

import msgspec

from podway.api.addresses import Family
from podway.kernel.node import Kernel
from podway.kernel.rtnl import addresses, links
from podway.plan.objects import (
    VXLAN_DEVICE,
    Device,
    ForwardingEntry,
    LinkAddress,
    Neighbour,
    NodePlan,
    Route,
    Sysctl,
    Vxlan,
)
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE

OUTER_MTU = 1500
HEADERS = {Family.IPV4: 50, Family.IPV6: 70}
MACS = ("02:70:0a:00:00:01", "02:70:0a:00:00:02")
GATEWAYS = (ip_address("fe80::70:aff:fe00:1"), ip_address("fe80::70:aff:fe00:2"))
NODES = {
    Family.IPV4: (ip_interface("192.0.2.1/24"), ip_interface("192.0.2.2/24")),
    Family.IPV6: (ip_interface("2001:db8::1/64"), ip_interface("2001:db8::2/64")),
}
PODS = {
    Family.IPV4: (ip_network("10.244.1.0/24"), ip_network("10.244.2.0/24")),
    Family.IPV6: (ip_network("fd00:1::/64"), ip_network("fd00:2::/64")),
}


def overlay_plan(here: int, outer: Family, **changes: object) -> NodePlan:
    """One of two nodes that reach each other's block by VXLAN; `changes` are of the device."""
    there, (own, other) = 1 - here, (NODES[outer][i].ip for i in (here, 1 - here))
    device = Device(VXLAN_DEVICE, "vxlan", MACS[here], OUTER_MTU - HEADERS[outer], Vxlan(4096, 4789, own, "eth0"))
    return NodePlan(
        devices=(msgspec.structs.replace(device, **changes),),
        addresses=(
            LinkAddress(VXLAN_DEVICE, ip_interface(f"{GATEWAYS[here]}/64"), "link"),
            *(LinkAddress("lo", ip_interface(PODS[family][here][1])) for family in Family),
        ),
        neighbours=(Neighbour(VXLAN_DEVICE, GATEWAYS[there], MACS[there]),),
        forwarding=(ForwardingEntry(VXLAN_DEVICE, MACS[there], other),),
        sysctls=(Sysctl(f"net/ipv6/conf/{VXLAN_DEVICE}/disable_ipv6", "0"),),
        routes=tuple(
            Route(PODS[family][there], device=VXLAN_DEVICE, gateway=GATEWAYS[there], source=PODS[family][here][1])
            for family in Family
        ),
    )


class Pair:
    """Two nodes on one wire, each with its kernel opened."""

    def __init__(self, namespaces: tuple[TestNamespace, TestNamespace], kernels: tuple[Kernel, Kernel]) -> None:
        """Give both their addresses; each has its `eth0` already."""
        self.namespaces = namespaces
        self.kernels = kernels
        for place, kernel in enumerate(kernels):
            index = links.find(kernel.connection, "eth0").index
            own = [LinkAddress("eth0", NODES[family][place]) for family in Family]
            own.append(LinkAddress("eth0", ip_interface(f"fe80::{place + 1}/64"), "link"))
            kernel.connection.transact(
                [
                    links.change(index, without_ipv6_autoconf=True),
                    links.set_up(index),
                    *(addresses.add(address, index) for address in own),
                ]
            )

    def apply(self, outer: Family, **changes: object) -> tuple[NodePlan, NodePlan]:
        plans = overlay_plan(0, outer, **changes), overlay_plan(1, outer, **changes)
        for kernel, plan in zip(self.kernels, plans, strict=True):
            assert kernel.apply(plan).failures == ()
        return plans

    def reaches(self, family: Family, size: int = 100) -> bool:
        """Send datagrams with an IP packet of this size, DF set, until one has come back.

        The nodes ask for each other's hardware addresses, and the kernel's neighbour tables, which all namespaces
        share, may be full for a moment.
        """
        here, there = (str(net[1]) for net in PODS[family])
        payload = b"x" * (size - (28 if family is Family.IPV4 else 48))
        with self.namespaces[0].udp(here, 0.5) as client, self.namespaces[1].udp(there, 0.5) as server:
            forbid_fragments(client, family)
            forbid_fragments(server, family)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                client.sendto(payload, server.getsockname()[:2])
                with contextlib.suppress(TimeoutError):
                    got, sender = server.recvfrom(65535)
                    server.sendto(got, sender)
                    return client.recv(65535) == payload
            return False


def forbid_fragments(sock: socket.socket, family: Family) -> None:
    """Have the kernel send with DF and answer EMSGSIZE: IP_MTU_DISCOVER/IPV6_MTU_DISCOVER, IP_PMTUDISC_DO."""
    level, option = (socket.IPPROTO_IP, 10) if family is Family.IPV4 else (socket.IPPROTO_IPV6, 23)
    sock.setsockopt(level, option, 2)
