"""Routed attach: what a pod's veth pair looks like on both ends.

The pod sees a point-to-point link: its address as /32 (/128), and a default route through a gateway that
is the same in every pod of every node, 169.254.1.1 (fe80::1). That gateway is an address of the host end,
so the host answers for it by ARP and neighbour discovery, and permanent neighbour entries on both ends
make even the first packet need neither.
"""

from functools import lru_cache
from ipaddress import ip_address, ip_interface

from podway.api.addresses import Address, Family, Interface, host_network
from podway.api.lease import Lease
from podway.plan.objects import Link, LinkAddress, Neighbour, PodEnd, PodWiring, Route, Sysctl

GATEWAY: dict[Family, Address] = {
    Family.IPV4: ip_address("169.254.1.1"),
    Family.IPV6: ip_address("fe80::1"),
}

GATEWAY_MAC = "02:70:77:61:79:01"
"""Hardware address of every host end. Being set (not random), systemd-udevd leaves it alone."""

HOST_SYSCTLS: dict[Family, dict[str, str]] = {
    # rp_filter 1: the kernel drops what a pod sends from an address that is not routed to it.
    Family.IPV4: {"forwarding": "1", "rp_filter": "1"},
    Family.IPV6: {"forwarding": "1"},
}


@lru_cache(maxsize=1024)
def wire(lease: Lease, *, mtu: int, node_addresses: tuple[Address, ...]) -> PodWiring:
    """Return everything that the pod's attachment needs.

    `mtu` is the pod link's, in bytes. `node_addresses` are the node's own: the node speaks to the pod from
    the one of the same family, never from the link's gateway address.
    """
    device = lease.attachment.link
    ifname = lease.attachment.ifname
    source = {Family.of(address): address for address in node_addresses}
    families = [Family.of(address) for address in lease.addresses]
    return PodWiring(
        link=Link(device, lease.attachment.altname, lease.alias, GATEWAY_MAC, mtu),
        addresses=tuple(LinkAddress(device, _gateway_interface(family), "link") for family in families),
        neighbours=tuple(Neighbour(device, address, lease.attachment.mac) for address in lease.addresses),
        sysctls=tuple(
            Sysctl(f"net/{'ipv4' if family is Family.IPV4 else 'ipv6'}/conf/{device}/{name}", value)
            for family in families
            for name, value in HOST_SYSCTLS[family].items()
        ),
        routes=tuple(
            Route(
                host_network(address),
                device=device,
                source=source.get(Family.of(address)),
                scope="link" if address.version == 4 else "global",
            )
            for address in lease.addresses
        ),
        pod=PodEnd(
            ifname=ifname,
            mac=lease.attachment.mac,
            mtu=mtu,
            addresses=tuple(LinkAddress(ifname, ip_interface(address)) for address in lease.addresses),
            routes=tuple(route for family in families for route in _pod_routes(family, ifname)),
            neighbours=tuple(Neighbour(ifname, GATEWAY[family], GATEWAY_MAC) for family in families),
        ),
    )


def _gateway_interface(family: Family) -> Interface:
    return ip_interface(f"{GATEWAY[family]}/{32 if family is Family.IPV4 else 64}")


def _pod_routes(family: Family, ifname: str) -> tuple[Route, ...]:
    gateway = GATEWAY[family]
    default = Route(family.default_route, device=ifname, gateway=gateway)
    if gateway.is_link_local and family is Family.IPV6:
        return (default,)  # the kernel itself routes fe80::/64
    return (Route(host_network(gateway), device=ifname, scope="link"), default)
