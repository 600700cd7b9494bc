"""How packets cross from node to node: in which form, and by which gateway on which device.

Every encapsulation is a gateway on a device. The route to a block of another node leads through

=======  ================================================  ==============
form     gateway                                           device
=======  ================================================  ==============
`none`   the node's own address                            the uplink
`vxlan`  the link-local address of its overlay device      `podway-vxlan`
`ipip`   the same                                          `podway-ipip`
=======  ================================================  ==============

and permanent entries say where such a gateway is. So it is the kernel's routing that decides, whoever writes
the route: MTU, ICMP errors and the withdrawal of a dead node are the same in every form.

A node puts a form on only after it has said that it may (`Node.sends`), and only for a node that says it takes
it off (`Node.accepts`); it takes off a form for as long as any may put it on. Each acts on its own words once it
reads them back, in the one order in which the store tells everyone of Nodes: so clusters switch without a
coordinator and without loss (podway.plan.switching).
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv6Address

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Encapsulation, IPPool
from podway.api.kinds.node import Node
from podway.cluster.view import ClusterView
from podway.plan.objects import IPIP_DEVICE, VXLAN_DEVICE

DEVICES: Mapping[Encapsulation, str] = {"vxlan": VXLAN_DEVICE, "ipip": IPIP_DEVICE}

_VXLAN_HEADERS = 8 + 8 + 14
"""UDP, VXLAN and the inner Ethernet header, in bytes (RFC 7348, section 5)."""

_IP_HEADER = {Family.IPV4: 20, Family.IPV6: 40}


SMALLEST_IPV6_MTU = 1280
"""RFC 8200, section 5. The kernel takes IPv6 away from a device with less (addrconf_notify)."""


class Crossing(msgspec.Struct, frozen=True):
    """An encapsulated way to a node.

    `mtu` is how many bytes it carries where that is less than the device's MTU, else 0. Without a gateway there is
    no way: IPv6 where it has not the bytes that it needs, or nodes whose endpoints are of two families. Packets
    do not cross in another form then.
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


def endpoint(addresses: Iterable[Address]) -> Address | None:
    """Return which of a node's addresses outer headers carry: its IPv4 address, else its IPv6 address."""
    return min(addresses, key=lambda address: address.version, default=None)


def overhead(form: Encapsulation, underlay: Family) -> int:
    """Return by how many bytes a form makes a packet longer, in outer headers of a family."""
    match form:
        case "vxlan":
            return _VXLAN_HEADERS + _IP_HEADER[underlay]
        case "ipip":
            return _IP_HEADER[Family.IPV4]
        case "none":
            return 0


def share_subnet(here: Node, there: Node, family: Family) -> bool:
    """Tell whether two nodes reach each other without a router, by addresses of this family."""
    address = there.internal_address(family)
    return address is not None and any(
        address in interface.network for interface in here.interface_addresses if interface.version == family
    )


def form_wanted(pool: IPPool, here: Node, there: Node) -> Encapsulation:
    """Return the form in which a pool asks for packets from one node to another."""
    form = pool.spec.encapsulation
    if form == "none" or pool.spec.when == "always":
        return form
    family = pool.family if there.internal_address(pool.family) else Family.IPV4
    return "none" if share_subnet(here, there, family) else form


def form_to(pool: IPPool, here: Node, there: Node) -> Encapsulation:
    """Return the form in which a node sends to another one: the wanted form, once one says so and one takes it.

    Until then it is the encapsulation that they last agreed on, since they have not switched yet, or none.
    """
    wanted = form_wanted(pool, here, there)
    if wanted == "none":
        return wanted
    usable: tuple[Encapsulation, ...] = ("vxlan", "ipip") if pool.family is Family.IPV4 else ("vxlan",)
    agreed = (form for form in (wanted, *usable) if form in there.accepts and form in here.sends)
    return next(agreed, "none")


def forms_asked(view: ClusterView) -> frozenset[Encapsulation]:
    """Return the encapsulations that pools ask for."""
    return frozenset({pool.spec.encapsulation for pool in view.pools.values()} - {"none"})


def forms_accepted(view: ClusterView, node: str) -> frozenset[Encapsulation]:
    """Return the encapsulations that a node is to accept: those of any pool, and those that others may send."""
    return forms_asked(view) | {form for form in DEVICES if view.others_send(node, form)}


def forms_held(view: ClusterView, node: str) -> frozenset[Encapsulation]:
    """Return the encapsulations whose devices a node must hold.

    Besides those that it is to accept, those that others may think it does, and those that it may send.
    """
    here = view.nodes.get(node)
    said = here.accepts | here.sends if here else frozenset[str]()
    return forms_accepted(view, node) | {form for form in DEVICES if form in said}


def forms_sent(view: ClusterView, node: str) -> Mapping[str, frozenset[Encapsulation]]:
    """Return in which forms a node sends to the other nodes, by pool; nothing if there are none."""
    here = view.nodes.get(node)
    others = [other for name, other in view.nodes.items() if name != node]
    if here is None or not others:
        return {}
    return {
        name: frozenset(
            {"none"} if pool.spec.encapsulation == "none" else {form_to(pool, here, there) for there in others}
        )
        for name, pool in view.pools.items()
    }


def device_mtu(carried: int) -> int:
    """Return the MTU of a device of ours on which IPv6 stands, for packets of up to so many bytes.

    It is never less than IPv6 needs: with IPv6 the kernel would take the addresses, neighbours and gateways by
    which IPv4 goes, too. Where less is carried, IPv4's routes say so, and IPv6 has none.
    """
    return max(carried, SMALLEST_IPV6_MTU)


def meet(form: Encapsulation, one: Address | None, other: Address | None) -> bool:
    """Tell whether outer headers of a form can carry these two endpoints: one family, and IPv4's for IPIP."""
    versions = {address.version for address in (one, other) if address is not None}
    return one is not None and other is not None and len(versions) == 1 and (form != "ipip" or versions == {4})


def crossing(pool: IPPool, here: Node, there: Node, mtu: int = 0) -> Crossing | None:
    """Return the encapsulated way from one node to another for a pool's packets; None if they cross bare.

    `mtu` is the uplink's in bytes; 0 stands for one that is large enough.
    """
    form = form_to(pool, here, there)
    target = endpoint(there.internal_addresses)
    if form == "none" or target is None:
        return None
    way = Crossing(DEVICES[form], overlay(target).gateway)
    if not meet(form, endpoint(here.internal_addresses), target):
        return msgspec.structs.replace(way, gateway=None)
    carried = mtu - overhead(form, Family.of(target)) if mtu else SMALLEST_IPV6_MTU
    if carried >= SMALLEST_IPV6_MTU:
        return way
    gateway = None if pool.family is Family.IPV6 else way.gateway
    return msgspec.structs.replace(way, gateway=gateway, mtu=carried)


def crossings(
    view: ClusterView, node: str, others: Mapping[str, Node], networks: Collection[Network], mtu: int = 0
) -> Mapping[Network, Mapping[Address, Crossing]]:
    """Return the encapsulated ways of the pools of these networks to other nodes.

    By the pool's network and the next hop of a route in it; next hops that are reached without encapsulation are
    left out. `mtu` is the uplink's in bytes; 0 stands for one that is large enough.
    """
    here = view.nodes.get(node)
    if here is None:
        return {}
    found: dict[Network, dict[Address, Crossing]] = {}
    for pool in view.pools.values():
        if pool.spec.encapsulation == "none" or pool.network not in networks:
            continue
        for there in others.values():
            hop = there.internal_address(pool.family)
            way = crossing(pool, here, there, mtu) if hop and there is not here else None
            if hop and way:
                found.setdefault(pool.network, {})[hop] = way
    return found


def pool_of(view: ClusterView, block: AddressBlock) -> IPPool | None:
    """Return the pool that a block is part of, None if it is gone or was made anew with another range."""
    pool = view.pools.get(block.spec.pool)
    if pool is None or pool.network.version != block.network.version:
        return None
    inside = pool.block_prefix == block.network.prefixlen and block.network.network_address in pool.network
    return pool if inside else None
