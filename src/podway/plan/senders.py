"""Whose tunnelled packets a node takes: those of nodes, with inner sources that the sending node may send.

A node sends from the addresses of the pods in its blocks, and from its own. An address of a pool in no block that
is known here yet may be that of any node's pod: BGP advertises a block, too, and routes outlive an agent that is
away. All else (this node's own pods and addresses, the world outside) comes by no tunnel.

IPIP: the program on the uplink asks a map for the inner source's longest prefix (podway/bpf/ipip.c). VXLAN: an
nftables table ahead of the device's socket, which takes packets wherever they come in. Both stand while the mode
is still taken off.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from typing import Literal

from podway.api.addresses import Address, Family, Network, address_text, host_network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
from podway.cluster.view import ClusterView
from podway.plan.guard import NFT_FAMILY, NODES
from podway.plan.objects import (
    NFT_VXLAN_TABLE,
    NftElement,
    NftField,
    NftSet,
    NftTable,
    NodePlan,
    TunnelSource,
    Vxlan,
    nft_number,
)

_EVERYTHING = IPv4Network("0.0.0.0/0")

_OUTER: dict[Family, tuple[NftField, str]] = {
    Family.IPV4: ("ipv4_addr", "@nh,96,32"),
    Family.IPV6: ("ipv6_addr", "@nh,64,128"),
}
"""The set's type of a node's address, and where the outer source stands."""

_INNER: dict[int, tuple[str, str]] = {
    Family.IPV4: ("0x0800", "@th,336,32"),
    Family.IPV6: ("0x86dd", "@th,304,128"),
}
"""The inner frame's type, and where the inner source stands: behind UDP, VXLAN, Ethernet (RFC 7348)."""

_ETHERTYPE_BYTES = 2

_SENDERS: dict[int, str] = {family: f"senders{family.value}" for family in Family}
_BLOCKS: dict[int, str] = {family: f"blocks{family.value}" for family in Family}
_POOLS: dict[int, str] = {family: f"pools{family.value}" for family in Family}
"""The sets' names, by the family of inner sources."""

_SETS = """
\tset senders{family} {{
\t\ttypeof {outer} . {inner}
\t\tflags interval
\t}}
\tset blocks{family} {{
\t\ttypeof @th,224,16 . {inner}
\t\tflags interval
\t}}
\tset pools{family} {{
\t\ttypeof @th,224,16 . {inner}
\t\tflags interval
\t}}
"""

_RULES = """
\t\t@th,224,16 {kind} {outer} . {inner} @senders{family} accept
\t\t@th,224,16 . {inner} @pools{family} @th,224,16 . {inner} != @blocks{family} {ip} saddr @{nodes} accept
"""

_TABLE = """
\tset {nodes} {{
\t\ttype {type}
\t}}
{sets}
\tchain tunnel {{
\t\t{ip} daddr != {local} counter drop
{rules}
\t\tcounter drop
\t}}
\tchain input {{
\t\ttype filter hook input priority raw; policy accept;
\t\tudp dport {port} @th,96,24 {vni:#x} goto tunnel
\t}}
"""


def vxlan_guard(view: ClusterView, node: str, device: Vxlan) -> NodePlan:
    """Return the table of what a node's VXLAN device takes, and the elements for pools and its own blocks."""
    underlay = Family.of(device.local)
    (kind, outer), ip = _OUTER[underlay], NFT_FAMILY[underlay]
    body = _TABLE.format(
        nodes=NODES,
        type=kind,
        sets="".join(_SETS.format(family=family.value, outer=outer, inner=_INNER[family][1]) for family in Family),
        rules="".join(
            _RULES.format(
                family=family.value,
                nodes=NODES,
                outer=outer,
                ip=ip,
                kind=_INNER[family][0],
                inner=_INNER[family][1],
            )
            for family in Family
        ),
        ip=ip,
        local=device.local,
        port=device.port,
        vni=device.vni,
    )
    sets = [NftSet(NODES, (kind,))]
    for family in Family:
        inner = family.bits // 8
        sets.append(NftSet(_SENDERS[family], (underlay.bits // 8, inner)))
        sets += [NftSet(names[family], (_ETHERTYPE_BYTES, inner)) for names in (_BLOCKS, _POOLS)]
    elements = [
        *(_element(ip, _POOLS[net.version], (_kind(net), _range(net))) for net in _pools(view)),
        *_block_elements(view, ip, node),
    ]
    table = NftTable(ip, NFT_VXLAN_TABLE, body, tuple(sets))
    return NodePlan(tables=(table,), elements=tuple(dict.fromkeys(elements)))


def vxlan_senders(other: Node | None, blocks: Iterable[AddressBlock], underlay: Family) -> list[NftElement]:
    """Return the elements of the sets of `vxlan_guard` that stand for another node and its blocks.

    A block of a node that has no address of the family of outer headers is known, too.
    """
    # Plain: it is asked of thousands of nodes.
    ip, found = NFT_FAMILY[underlay], []
    sender = other.internal_address(underlay) if other else None
    number = ""
    if other is not None and sender is not None:
        number = nft_number(sender.packed)
        found.append(_element(ip, NODES, (address_text(sender),)))
        for address in other.own_addresses:
            inner = number if address is sender else nft_number(address.packed)
            found.append(_element(ip, _SENDERS[address.version], (number, inner)))
    for block in blocks:
        network = block.network
        inner = _range(network)
        if number:
            found.append(_element(ip, _SENDERS[network.version], (number, inner)))
        found.append(_element(ip, _BLOCKS[network.version], (_kind(network), inner)))
    return found


def ipip_sources(view: ClusterView, node: str, own: Address) -> tuple[TunnelSource, ...]:
    """Return which inner IPv4 sources are a node's own, any node's, and nobody's: the rest of the world, at last.

    `own` is this node's address: what is its own comes from no other.
    """
    found: dict[Network, Address | None] = dict.fromkeys(
        network for network in _pools(view) if isinstance(network, IPv4Network)
    )
    found |= dict.fromkeys(_sources(view.nodes.get(node), view.blocks_of(node)), own)
    found[_EVERYTHING] = own
    return tuple(TunnelSource(network, sender) for network, sender in found.items())


def ipip_senders(other: Node | None, blocks: Iterable[AddressBlock], own: Address) -> tuple[TunnelSource, ...]:
    """Return which inner IPv4 sources belong to another node. Of one that sends no IPIP nothing is taken.

    `own` is this node's address.
    """
    sender = (other.internal_address(Family.IPV4) if other else None) or own
    return tuple(TunnelSource(network, sender) for network in _sources(other, blocks))


def _sources(node: Node | None, blocks: Iterable[AddressBlock]) -> tuple[IPv4Network, ...]:
    """Return what a node may send from: its own IPv4 addresses, and those of the pods in its blocks."""
    every = (
        *(host_network(address) for address in (node.own_addresses if node else ())),
        *(block.network for block in blocks),
    )
    return tuple(dict.fromkeys(network for network in every if isinstance(network, IPv4Network)))


def _pools(view: ClusterView) -> Iterator[Network]:
    for pool in view.pools.values():
        yield pool.network


def _block_elements(view: ClusterView, ip: Literal["ip", "ip6"], name: str) -> Iterator[NftElement]:
    for block in view.blocks_of(name):
        yield _element(ip, _BLOCKS[block.network.version], (_kind(block.network), _range(block.network)))


def _element(ip: Literal["ip", "ip6"], name: str, fields: tuple[str, ...]) -> NftElement:
    return NftElement(ip, NFT_VXLAN_TABLE, name, fields)


def _kind(network: Network) -> str:
    return _INNER[network.version][0]


def _range(network: Network) -> str:
    # By numbers: it is asked of thousands of blocks.
    bits, first = network.max_prefixlen, int(network.network_address)
    begin, last = nft_number(first.to_bytes(bits // 8, "big")), first | (1 << bits - network.prefixlen) - 1
    return begin if first == last else f"{begin}-{nft_number(last.to_bytes(bits // 8, 'big'))}"
