"""Encapsulation between nodes: in which tunnel mode, and by which gateway on which device.

Every encapsulation is a gateway on a device. The route to a block of another node leads through

========  ================================================  ===============
mode      gateway                                           device
========  ================================================  ===============
`none`    the node's own address                            the uplink
`vxlan`   the link-local address of its overlay device      `podway-vxlan`
`vxlan6`  the same                                          `podway-vxlan6`
`ipip`    the same                                          `podway-ipip`
========  ================================================  ===============

and permanent entries say where such a gateway is. So it is the kernel's routing that decides, whoever writes
the route: MTU, ICMP errors and the withdrawal of a dead node are the same in every mode.

A pool asks for an encapsulation; which tunnel mode that is, each pair of nodes decides by the addresses that both
have. VXLAN's outer headers are IPv4's wherever two nodes can (`vxlan`), else IPv6's (`vxlan6`): a VXLAN device of
the kernel sends from one address, so each has a device of its own, with the same number and port. IPIP's are
IPv4's.

A node encapsulates only after it has advertised that it may (`Node.sends`), and only to a node that advertises
that it decapsulates (`Node.accepts`); it decapsulates for as long as any may encapsulate. Each acts on its own
advertisement once it reads it back, in the one order in which the store delivers changes of Nodes to everyone: so
clusters switch without a coordinator and without loss (podway.plan.switching).
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Encapsulation, IPPool
from podway.api.kinds.node import Node
from podway.cluster.view import ClusterView
from podway.plan.objects import IPIP_DEVICE, VXLAN6_DEVICE, VXLAN_DEVICE

TunnelMode: TypeAlias = Literal["none", "vxlan", "vxlan6", "ipip"]
"""An encapsulation by outer headers of one family; as ip-tunnel(8) has modes."""


class Tunnel(msgspec.Struct, frozen=True):
    """What a tunnel mode adds to packets. `overhead` is the length of its outer headers in bytes."""

    encapsulation: Encapsulation
    device: str
    underlay: Family
    overhead: int


_VXLAN_HEADERS = 8 + 8 + 14
"""UDP, VXLAN and the inner Ethernet header, in bytes (RFC 7348, section 5)."""

_IP_HEADER = {Family.IPV4: 20, Family.IPV6: 40}

TUNNELS: Mapping[TunnelMode, Tunnel] = {
    "vxlan": Tunnel("vxlan", VXLAN_DEVICE, Family.IPV4, _VXLAN_HEADERS + _IP_HEADER[Family.IPV4]),
    "vxlan6": Tunnel("vxlan", VXLAN6_DEVICE, Family.IPV6, _VXLAN_HEADERS + _IP_HEADER[Family.IPV6]),
    "ipip": Tunnel("ipip", IPIP_DEVICE, Family.IPV4, _IP_HEADER[Family.IPV4]),
}
"""The modes that encapsulate; of two of one encapsulation the first is preferred."""

DEVICES: Mapping[TunnelMode, str] = {mode: tunnel.device for mode, tunnel in TUNNELS.items()}

_MODES: Mapping[str, TunnelMode] = {device: mode for mode, device in DEVICES.items()}

SMALLEST_IPV6_MTU = 1280
"""RFC 8200, section 5. The kernel takes IPv6 away from a device with less (addrconf_notify)."""


class OverlayNextHop(msgspec.Struct, frozen=True, gc=False):
    """The overlay device and gateway by which a node is reached.

    `mtu` is how many bytes it carries where that is less than the device's MTU, else 0. Without a gateway there is
    no way: IPv6 where it has not the bytes that it needs, or nodes without addresses of one family. Packets are
    not sent in another mode then.
    """

    device: str
    gateway: Address | None
    mtu: int = 0


class Overlay(msgspec.Struct, frozen=True):
    """What a node is in the overlays: computed from its address, so that nobody need ask or tell.

    `endpoint` is the address that outer headers carry, `mac` and `gateway` those of its overlay devices.
    """

    endpoint: Address
    mac: str
    gateway: IPv6Address


@lru_cache(maxsize=8192)
def overlay(endpoint: Address) -> Overlay:
    """Return what the node with this address is in the overlays.

    The MAC is locally administered: 02:70 and the IPv4 address, which the IPIP program reads as the outer
    destination; or 06 and 40 bits of a digest of the IPv6 address. The gateway is the MAC's link-local address
    (modified EUI-64, RFC 4291, appendix A).
    """
    if endpoint.version == 4:
        mac = b"\x02\x70" + endpoint.packed
    else:
        mac = b"\x06" + hashlib.sha256(endpoint.packed).digest()[:5]
    identifier = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return Overlay(endpoint, mac.hex(":"), IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def overhead(mode: TunnelMode) -> int:
    """Return by how many bytes a tunnel mode makes a packet longer."""
    return 0 if mode == "none" else TUNNELS[mode].overhead


def encapsulation_of(mode: TunnelMode) -> Encapsulation:
    """Return the encapsulation that a tunnel mode is one of."""
    return "none" if mode == "none" else TUNNELS[mode].encapsulation


def mode_of_device(device: str) -> TunnelMode:
    """Return the mode that packets get which leave by a device."""
    return _MODES.get(device, "none")


def tunnel_of(encapsulation: Encapsulation, underlay: Family) -> Tunnel | None:
    """Return the mode of an encapsulation with outer headers of this family, None if there is none."""
    every = TUNNELS.values()
    return next((one for one in every if (one.encapsulation, one.underlay) == (encapsulation, underlay)), None)


def endpoint(mode: TunnelMode, addresses: Iterable[Address]) -> Address | None:
    """Return which of a node's addresses the outer headers of a tunnel mode carry, None if none of them can."""
    underlay = TUNNELS[mode].underlay
    for address in addresses:  # plain: a planner asks it of thousands of nodes
        if address.version == underlay:
            return address
    return None


def share_subnet(here: Node, there: Node, family: Family) -> bool:
    """Tell whether two nodes reach each other without a router, by addresses of this family."""
    address = there.internal_address(family)
    if address is None:
        return False
    for interface in here.interface_addresses:  # plain: a planner asks it of thousands of nodes
        if interface.version == family and address in interface.network:
            return True
    return False


def desired_mode(pool: IPPool, here: Node, there: Node) -> TunnelMode:
    """Return the tunnel mode that a pool asks for from one node to another.

    Where no mode of its encapsulation can carry them, it is one of those: they are not sent in another one.
    """
    asked = pool.spec.encapsulation
    if asked == "none":
        return asked
    if pool.spec.when == "cross-subnet" and share_subnet(here, there, pool.family):
        return "none"
    if asked == "ipip":
        return asked
    return (
        "vxlan6" if not share_underlay("vxlan", here, there) and share_underlay("vxlan6", here, there) else "vxlan"
    )


def mode_to(pool: IPPool, here: Node, there: Node) -> TunnelMode:
    """Return the mode in which a node sends to another: the desired one, once both advertise it.

    Until then it is the encapsulation that they last agreed on, since they have not switched yet, or none.
    """
    wanted = desired_mode(pool, here, there)
    return _agreed_mode(pool, here, there, wanted)


def _agreed_mode(pool: IPPool, here: Node, there: Node, wanted: TunnelMode) -> TunnelMode:
    """Return what `mode_to` does, `wanted` being the desired mode."""
    if wanted == "none" or not share_underlay(wanted, here, there):
        return wanted
    if wanted in there.accepts and wanted in here.sends:
        return wanted
    usable = (mode for mode in TUNNELS if mode != "ipip" or pool.family is Family.IPV4)
    return next((mode for mode in usable if _agreed(mode, here, there)), "none")


def _agreed(mode: TunnelMode, here: Node, there: Node) -> bool:
    return mode in there.accepts and mode in here.sends and share_underlay(mode, here, there)


def share_underlay(mode: TunnelMode, here: Node, there: Node) -> bool:
    """Tell whether both nodes have an address of the family of a tunnel mode's outer headers."""
    underlay = TUNNELS[mode].underlay
    return underlay in here.families and underlay in there.families


def pool_modes(view: ClusterView, encapsulation: Encapsulation | None = None) -> frozenset[TunnelMode]:
    """Return the modes that pools ask for between any two nodes: of one encapsulation, or of all."""
    asked = {pool.spec.encapsulation for pool in view.pools.values()} if encapsulation is None else {encapsulation}
    found: set[TunnelMode] = {"ipip"} if "ipip" in asked else set()
    if "vxlan" in asked:
        families = view.nodes.indexed("families")
        lone = frozenset({Family.IPV6})
        if families != {lone}:
            found.add("vxlan")
        if lone in families:
            # Who has IPv4 besides needs it, too: to reach those that have IPv6 only.
            found.add("vxlan6")
    return frozenset(found)


def accepted_modes(view: ClusterView, node: str) -> frozenset[TunnelMode]:
    """Return the modes that a node is to accept: those that pools ask for, and those that others may send."""
    wanted = pool_modes(view) | {mode for mode in TUNNELS if view.others_send(node, mode)}
    here = view.nodes.get(node)
    return wanted if here is None else wanted & possible_modes(here.internal_addresses)


def possible_modes(addresses: Collection[Address]) -> frozenset[TunnelMode]:
    """Return the modes whose outer headers can carry one of a node's addresses."""
    versions = {address.version for address in addresses}
    return frozenset(mode for mode, tunnel in TUNNELS.items() if tunnel.underlay in versions)


def required_modes(view: ClusterView, node: str) -> frozenset[TunnelMode]:
    """Return the modes whose devices a node must hold.

    Besides those that it is to accept, those that others may think it does, and those that it may send.
    """
    here = view.nodes.get(node)
    said = here.accepts | here.sends if here else frozenset[str]()
    return accepted_modes(view, node) | {mode for mode in TUNNELS if mode in said}


def planned_modes(view: ClusterView, node: str) -> Mapping[str, frozenset[TunnelMode]]:
    """Return in which modes a node sends to the other nodes, by pool; nothing if there are none."""
    here = view.nodes.get(node)
    others = [other for name, other in view.nodes.items() if name != node]
    if here is None or not others:
        return {}
    return {
        name: frozenset(
            {"none"} if pool.spec.encapsulation == "none" else {mode_to(pool, here, there) for there in others}
        )
        for name, pool in view.pools.items()
    }


def device_mtu(carried: int) -> int:
    """Return the MTU of a device of ours on which IPv6 stands, for packets of up to so many bytes.

    It is never less than IPv6 needs: with IPv6 the kernel would take the addresses, neighbours and gateways by
    which IPv4 goes, too. Where less is carried, IPv4's routes say so, and IPv6 has none.
    """
    return max(carried, SMALLEST_IPV6_MTU)


def overlay_next_hop(pool: IPPool, here: Node, there: Node, mtu: int = 0) -> OverlayNextHop | None:
    """Return the overlay next hop from one node to another for a pool's packets; None if they go bare.

    `mtu` is the uplink's in bytes; 0 stands for one that is large enough.
    """
    wanted = desired_mode(pool, here, there)
    if wanted == "none":
        return None
    mode = _agreed_mode(pool, here, there, wanted)
    if mode == "none":
        return OverlayNextHop(DEVICES[wanted], None) if _lost(encapsulation_of(wanted), here, there) else None
    target = endpoint(mode, there.internal_addresses)
    if target is None or not share_underlay(mode, here, there):
        return OverlayNextHop(DEVICES[mode], None)
    next_hop = OverlayNextHop(DEVICES[mode], overlay(target).gateway)
    carried = mtu - overhead(mode) if mtu else SMALLEST_IPV6_MTU
    if carried >= SMALLEST_IPV6_MTU:
        return next_hop
    gateway = None if pool.family is Family.IPV6 else next_hop.gateway
    return msgspec.structs.replace(next_hop, gateway=gateway, mtu=carried)


def _lost(encapsulation: Encapsulation, here: Node, there: Node) -> bool:
    """Tell whether two nodes agreed on a tunnel mode of an encapsulation that their addresses no longer allow.

    Then they wait for each other to advertise another one, rather than send bare what was encapsulated.
    """
    return any(
        mode in here.sends and mode in there.accepts and not share_underlay(mode, here, there)
        for mode, tunnel in TUNNELS.items()
        if tunnel.encapsulation == encapsulation
    )


def overlay_hops(
    pools: Iterable[IPPool], here: Node, there: Node, mtu: int = 0
) -> Iterator[tuple[Network, Address, OverlayNextHop]]:
    """Yield the overlay next hops from one node to another for these pools.

    With the pool's network and the next hop of a route in it; pools whose packets go bare are left out. `mtu` is
    the uplink's in bytes; 0 stands for one that is large enough.
    """
    for pool in pools:
        hop = there.internal_address(pool.family)
        next_hop = overlay_next_hop(pool, here, there, mtu) if hop is not None else None
        if hop is not None and next_hop is not None:
            yield pool.network, hop, next_hop


def pool_of(view: ClusterView, block: AddressBlock) -> IPPool | None:
    """Return the pool that a block is part of, None if it is gone or was made anew with another range."""
    pool = view.pools.get(block.spec.pool)
    if pool is None or pool.network.version != block.network.version:
        return None
    inside = pool.block_prefix == block.network.prefixlen and block.network.network_address in pool.network
    return pool if inside else None
