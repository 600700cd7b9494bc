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

A node sends a form to another one only once that says it accepts it (`Node.accepts`), and takes off a form for
as long as another may still put it on (`Node.sends`): so clusters switch without a coordinator and without loss.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv6Address

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.resources import AddressBlock, Encapsulation, IPPool, Node
from podway.plan.objects import IPIP_DEVICE, VXLAN_DEVICE
from podway.plan.view import ClusterView

DEVICES: Mapping[Encapsulation, str] = {"vxlan": VXLAN_DEVICE, "ipip": IPIP_DEVICE}

_VXLAN_HEADERS = 8 + 8 + 14
"""UDP, VXLAN and the inner Ethernet header, in bytes (RFC 7348, section 5)."""

_IP_HEADER = {Family.IPV4: 20, Family.IPV6: 40}


class Crossing(msgspec.Struct, frozen=True):
    """An encapsulated way to a node."""

    device: str
    gateway: Address


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
    """Return the form in which a node sends to another one: the wanted form, once that accepts it.

    Until then it is the encapsulation that it accepts, since it has not switched yet, or none.
    """
    wanted = form_wanted(pool, here, there)
    if wanted == "none" or wanted in there.accepts:
        return wanted
    if "vxlan" in there.accepts:
        return "vxlan"
    return "ipip" if "ipip" in there.accepts and pool.family is Family.IPV4 else "none"


def forms_held(view: ClusterView, node: str) -> frozenset[Encapsulation]:
    """Return the encapsulations that a node must be able to take off: those of any pool, and those still sent."""
    held: set[Encapsulation] = {pool.spec.encapsulation for pool in view.pools.values()}
    held |= {form for form in DEVICES if view.senders.get(form, frozenset()) - {node}}
    return frozenset(held - {"none"})


def forms_sent(view: ClusterView, node: str) -> Mapping[str, frozenset[Encapsulation]]:
    """Return in which forms a node sends to the other nodes, by pool; pools without remote blocks are left out."""
    here = view.nodes.get(node)
    if here is None:
        return {}
    sent: dict[str, set[Encapsulation]] = {}
    owners: dict[str, set[str]] = {}
    for block in view.blocks.values():
        if block.spec.node != node and block.spec.node in view.nodes:
            owners.setdefault(block.spec.pool, set()).add(block.spec.node)
    for name, others in owners.items():
        if pool := view.pools.get(name):
            sent[name] = {form_to(pool, here, view.nodes[other]) for other in others}
    return {name: frozenset(forms) for name, forms in sent.items()}


def crossing(pool: IPPool, here: Node, there: Node) -> Crossing | None:
    """Return the encapsulated way from one node to another for a pool's packets; None if they cross bare."""
    form = form_to(pool, here, there)
    target = endpoint(there.internal_addresses)
    if form == "none" or target is None:
        return None
    return Crossing(DEVICES[form], overlay(target).gateway)


def crossings(view: ClusterView, node: str) -> Mapping[Network, Mapping[Address, Crossing]]:
    """Return the encapsulated ways for what BGP tells: by the pool's network and the route's next hop.

    Pools whose routes are not told by BGP, and next hops that are reached without encapsulation, are left out.
    """
    here = view.nodes.get(node)
    if here is None:
        return {}
    found: dict[Network, dict[Address, Crossing]] = {}
    for pool in view.pools.values():
        if pool.spec.distribution != "bgp" or pool.spec.encapsulation == "none":
            continue
        for there in view.nodes.values():
            hop = there.internal_address(pool.family)
            way = crossing(pool, here, there) if hop and there is not here else None
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
