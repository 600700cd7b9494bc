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
        sets.append(NftSet(f"senders{family.value}", (underlay.bits // 8, inner)))
        sets += [NftSet(f"{name}{family.value}", (_ETHERTYPE_BYTES, inner)) for name in ("blocks", "pools")]
    elements = [
        *(_element(ip, f"pools{net.version}", _kind(net), _range(net)) for net in _pools(view)),
        *_block_elements(view, ip, node),
    ]
    table = NftTable(ip, NFT_VXLAN_TABLE, body, tuple(sets))
    return NodePlan(tables=(table,), elements=tuple(dict.fromkeys(elements)))


def vxlan_senders(view: ClusterView, node: str, underlay: Family, names: Iterable[str]) -> tuple[NftElement, ...]:
    """Return the elements of the sets of `vxlan_guard` that stand for other nodes and their blocks.

    A block of a node that has no address of the family of outer headers is known, too.
    """
    ip = NFT_FAMILY[underlay]
    found: dict[NftElement, None] = {}
    for name in names:
        if name == node:
            continue
        sender = _sender(view, name, underlay)
        number = "" if sender is None else nft_number(sender.packed)
        if sender is not None:
            found[_element(ip, NODES, address_text(sender))] = None
            for address in view.nodes[name].own_addresses:
                found[_element(ip, f"senders{address.version}", number, nft_number(address.packed))] = None
        for block in view.blocks.select("node", name):
            network = block.network
            inner = _range(network)
            if sender is not None:
                found[_element(ip, f"senders{network.version}", number, inner)] = None
            found[_element(ip, f"blocks{network.version}", _kind(network), inner)] = None
    return tuple(found)


def ipip_sources(view: ClusterView, node: str, own: Address) -> tuple[TunnelSource, ...]:
    """Return which inner IPv4 sources are a node's own, any node's, and nobody's: the rest of the world, at last.

    `own` is this node's address: what is its own comes from no other.
    """
    found: dict[Network, Address | None] = dict.fromkeys(
        network for network in _pools(view) if isinstance(network, IPv4Network)
    )
    found |= {network: own for network in _sources(view, node) if isinstance(network, IPv4Network)}
    found[_EVERYTHING] = own
    return tuple(TunnelSource(network, sender) for network, sender in found.items())


def ipip_senders(view: ClusterView, own: Address, names: Iterable[str]) -> tuple[TunnelSource, ...]:
    """Return which inner IPv4 sources belong to other nodes. Of one that sends no IPIP nothing is taken."""
    found: dict[Network, Address] = {}
    for name in names:
        sender = _sender(view, name, Family.IPV4) or own
        found |= {network: sender for network in _sources(view, name) if isinstance(network, IPv4Network)}
    return tuple(TunnelSource(network, sender) for network, sender in found.items())


def _sender(view: ClusterView, name: str, underlay: Family) -> Address | None:
    """Return the address from which a node sends outer headers of a family, None if it sends none."""
    known = view.nodes.get(name)
    return known.internal_address(underlay) if known else None


def _sources(view: ClusterView, name: str) -> Iterator[Network]:
    """Yield what a node may send from: its own addresses, and those of the pods in its blocks."""
    known = view.nodes.get(name)
    for address in known.own_addresses if known else ():
        yield host_network(address)
    for block in view.blocks.select("node", name):
        yield block.network


def _pools(view: ClusterView) -> Iterator[Network]:
    for pool in view.pools.values():
        yield pool.network


def _block_elements(view: ClusterView, ip: Literal["ip", "ip6"], name: str) -> Iterator[NftElement]:
    for block in view.blocks.select("node", name):
        yield _element(ip, f"blocks{block.network.version}", _kind(block.network), _range(block.network))


def _element(ip: Literal["ip", "ip6"], name: str, *fields: str) -> NftElement:
    return NftElement(ip, NFT_VXLAN_TABLE, name, fields)


def _kind(network: Network) -> str:
    return _INNER[network.version][0]


def _range(network: Network) -> str:
    # By numbers: it is asked of thousands of blocks.
    digits, first = network.max_prefixlen // 4, int(network.network_address)
    last = first | (1 << network.max_prefixlen - network.prefixlen) - 1
    return f"{first:#0{digits + 2}x}" if first == last else f"{first:#0{digits + 2}x}-{last:#0{digits + 2}x}"
