"""What a pod's veth pair looks like on both ends: routed, or as a port of the node's bridge.

Routed attach: the pod sees a point-to-point link: its address as /32 (/128), and a default route through a
gateway that is the same in every pod of every node, 169.254.1.1 (fe80::1). That gateway is an address of the
host end, so the host answers for it by ARP and neighbour discovery.

Bridge attach: the pod sees a LAN: its address with its block's prefix length, and a default route through the
block's first address, which the bridge has. It speaks with the other pods of the bridge without a router. The
node reaches it by a host route through the bridge, so both kinds of pod may live in one block.

In either, permanent neighbour entries on both ends make even the first packet between pod and node wait for
nothing.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_interface, ip_network

import msgspec

from podway.api.addresses import Address, Family, Interface, Network, gateway_of, host_network
from podway.api.kinds.ip_pool import DEFAULT_BLOCK_PREFIX
from podway.api.lease import Lease
from podway.plan.objects import (
    BRIDGE_DEVICE,
    FlowProgram,
    Link,
    LinkAddress,
    Neighbour,
    PodEnd,
    PodWiring,
    Port,
    Proxy,
    Route,
    Sysctl,
)
from podway.plan.ports import port_elements

GATEWAY: dict[Family, Address] = {
    Family.IPV4: ip_address("169.254.1.1"),
    Family.IPV6: ip_address("fe80::1"),
}

GATEWAY_MAC = "02:70:77:61:79:01"
"""Hardware address of every host end, and of the bridge, for which it is the gateway's in either attach.

Being set (not random), systemd-udevd leaves it alone; and a bridge with a set one does not follow its ports.
"""

HOST_SYSCTLS: dict[Family, dict[str, str]] = {
    # rp_filter 1: the kernel drops what a pod sends from an address that is not routed to it.
    # arp_filter 1: it notes no neighbour for a request from such an address, also where rp_filter is overruled.
    Family.IPV4: {"forwarding": "1", "rp_filter": "1", "arp_filter": "1"},
    Family.IPV6: {"forwarding": "1"},
}


@lru_cache(maxsize=1024)
def wire(
    lease: Lease,
    *,
    mtu: int,
    node_addresses: tuple[Address, ...],
    lan: tuple[Network, ...] = (),
    engine: bool = False,
) -> PodWiring:
    """Return everything that the pod's attachment needs.

    `mtu` is the pod link's, in bytes. `node_addresses` are the node's own: the node speaks to the pod from
    the one of the same family, never from the link's gateway address. `lan` are the blocks that have the
    bridge's pods among theirs: those pods ask on the bridge for every address in them, and the node answers for
    one that is routed. `engine`: the flow engine judges the pod's packets.
    """
    shape = _port if lease.attach == "bridge" else _routed
    wiring = shape(lease, mtu, {Family.of(address): address for address in node_addresses}, lan)
    return msgspec.structs.replace(wiring, programs=flow_programs(wiring.link.name)) if engine else wiring


def flow_programs(link: str) -> tuple[FlowProgram, ...]:
    """Return the programs that judge what a pod sends and gets, on its link."""
    return (FlowProgram(link, "from pod"), FlowProgram(link, "to pod"))


def _routed(lease: Lease, mtu: int, sources: Mapping[Family, Address], lan: Sequence[Network]) -> PodWiring:
    device, ifname, mac = lease.attachment.link, lease.attachment.ifname, lease.attachment.mac
    families = [Family.of(address) for address in lease.addresses]
    return PodWiring(
        link=_link(lease, mtu),
        addresses=tuple(LinkAddress(device, gateway_interface(family), "link") for family in families),
        neighbours=tuple(Neighbour(device, address, mac) for address in lease.addresses),
        sysctls=tuple(
            Sysctl(f"net/{'ipv4' if family is Family.IPV4 else 'ipv6'}/conf/{device}/{name}", value)
            for family in families
            for name, value in HOST_SYSCTLS[family].items()
        ),
        routes=_host_routes(lease, device, sources),
        pod=PodEnd(
            ifname=ifname,
            mac=mac,
            mtu=mtu,
            addresses=tuple(LinkAddress(ifname, ip_interface(address)) for address in lease.addresses),
            routes=tuple(route for family in families for route in _routes_to_gateway(family, ifname)),
            neighbours=tuple(Neighbour(ifname, GATEWAY[family], GATEWAY_MAC) for family in families),
        ),
        proxies=tuple(
            Proxy(BRIDGE_DEVICE, address) for address in lease.addresses if any(address in block for block in lan)
        ),
    )


def _port(lease: Lease, mtu: int, sources: Mapping[Family, Address], lan: Sequence[Network]) -> PodWiring:
    device, ifname, mac = lease.attachment.link, lease.attachment.ifname, lease.attachment.mac
    blocks = {address: home(address, lan) for address in lease.addresses}
    gateways = {Family.of(block): gateway_of(block) for block in blocks.values()}
    return PodWiring(
        link=_link(lease, mtu),
        addresses=(),
        # Those on the port resolve nothing: they hold the lease's addresses, and go with the link.
        neighbours=tuple(
            Neighbour(on, address, mac) for on in (device, BRIDGE_DEVICE) for address in lease.addresses
        ),
        sysctls=(),
        routes=_host_routes(lease, BRIDGE_DEVICE, sources),
        pod=PodEnd(
            ifname=ifname,
            mac=mac,
            mtu=mtu,
            addresses=tuple(
                LinkAddress(ifname, ip_interface(f"{address}/{block.prefixlen}"))
                for address, block in blocks.items()
            ),
            routes=tuple(
                Route(family.default_route, device=ifname, gateway=gateway) for family, gateway in gateways.items()
            ),
            neighbours=tuple(Neighbour(ifname, gateway, GATEWAY_MAC) for gateway in gateways.values()),
        ),
        port=Port(device, BRIDGE_DEVICE, mac),
        elements=port_elements(mac, lease.addresses),
    )


def _link(lease: Lease, mtu: int) -> Link:
    return Link(lease.attachment.link, lease.attachment.altname, lease.alias, GATEWAY_MAC, mtu)


def _host_routes(lease: Lease, device: str, sources: Mapping[Family, Address]) -> tuple[Route, ...]:
    return tuple(
        Route(
            host_network(address),
            device=device,
            source=sources.get(Family.of(address)),
            scope="link" if address.version == 4 else "global",
        )
        for address in lease.addresses
    )


def gateway_interface(family: Family) -> Interface:
    """Return the gateway address of routed pods with the prefix length that it has on the node's devices.

    It is alone in its network. Were the pod's link a network to the node (fe80::/64), the pod could invent
    neighbours there, as sources and as destinations, until no entry is left for anybody on the machine.
    """
    return ip_interface(host_network(GATEWAY[family]).with_prefixlen)


def _routes_to_gateway(family: Family, ifname: str) -> tuple[Route, ...]:
    gateway = GATEWAY[family]
    default = Route(family.default_route, device=ifname, gateway=gateway)
    if gateway.is_link_local and family is Family.IPV6:
        return (default,)  # the kernel itself routes fe80::/64
    return (Route(host_network(gateway), device=ifname, scope="link"), default)


def home(address: Address, blocks: Sequence[Network]) -> Network:
    """Return which of these blocks an address lies in; if none, the one of the usual size around it."""
    usual = DEFAULT_BLOCK_PREFIX[Family.of(address)]
    return next((block for block in blocks if address in block), ip_network(f"{address}/{usual}", strict=False))
