"""Whose tunnelled packets a node takes: those of nodes, with inner sources that the sending node may send.

A node sends from the addresses of the pods in its blocks, and from its own. An address of a pool in no block that
is known here yet may be that of any node's pod: BGP tells of a block, too, and routes outlive an agent that is
away. All else (this node's own pods and addresses, the world outside) comes by no tunnel.

IPIP: the program on the uplink asks a map for the inner source's longest prefix (podway/bpf/ipip.c). VXLAN: an
nftables table ahead of the device's socket, which takes packets wherever they come in. Both stand while the form
is still taken off.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

from podway.api.addresses import Address, Family, Network, host_network
from podway.cluster.view import ClusterView
from podway.plan.fabric import endpoint
from podway.plan.guard import NFT_FAMILY, NODES
from podway.plan.objects import NFT_VXLAN_TABLE, NftElement, NftTable, NodePlan, TunnelSource, Vxlan

_EVERYTHING = IPv4Network("0.0.0.0/0")

_OUTER: dict[Family, tuple[str, str]] = {
    Family.IPV4: ("ipv4_addr", "@nh,96,32"),
    Family.IPV6: ("ipv6_addr", "@nh,64,128"),
}
"""The set's type of a node's address, and where the outer source stands."""

_INNER: dict[Family, tuple[str, str]] = {
    Family.IPV4: ("0x0800", "@th,336,32"),
    Family.IPV6: ("0x86dd", "@th,304,128"),
}
"""The inner frame's type, and where the inner source stands: behind UDP, VXLAN, Ethernet (RFC 7348)."""

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
    """Return the table of what a node's VXLAN device takes, and the elements of its sets."""
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
    sets = (NODES, *(f"{name}{family.value}" for name in ("senders", "blocks", "pools") for family in Family))
    elements = dict.fromkeys(
        NftElement(ip, NFT_VXLAN_TABLE, *element) for element in _elements(view, node, underlay)
    )
    return NodePlan(tables=(NftTable(ip, NFT_VXLAN_TABLE, body, sets),), elements=tuple(elements))


def ipip_sources(view: ClusterView, own: IPv4Address) -> tuple[TunnelSource, ...]:
    """Return which node each inner IPv4 source belongs to; the rest of the world, which is nobody's, comes last.

    `own` is this node's address: what is its own comes from no other.
    """
    senders = _endpoints(view, Family.IPV4)
    found: dict[Network, Address | None] = {
        pool.network: None for pool in view.pools.values() if isinstance(pool.network, IPv4Network)
    }
    for name, network in _sources(view):
        if isinstance(network, IPv4Network):
            found[network] = senders.get(name, own)
    found[_EVERYTHING] = own
    return tuple(TunnelSource(network, sender) for network, sender in found.items())


def _elements(view: ClusterView, node: str, underlay: Family) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield sets and what is in them. A block of a node that has no address of this family is known, too."""
    senders = {name: str(address) for name, address in _endpoints(view, underlay).items() if name != node}
    for sender in senders.values():
        yield NODES, (sender,)
    number = {name: hex(int(address)) for name, address in _endpoints(view, underlay).items() if name != node}
    for name, network in _sources(view):
        if name in senders:
            yield f"senders{network.version}", (number[name], _range(network))
    for block in view.blocks.values():
        yield f"blocks{block.network.version}", (_kind(block.network), _range(block.network))
    for pool in view.pools.values():
        yield f"pools{pool.network.version}", (_kind(pool.network), _range(pool.network))


def _endpoints(view: ClusterView, underlay: Family) -> dict[str, Address]:
    """Return the address of each node from which it sends outer headers of a family."""
    found = ((name, endpoint(node.internal_addresses)) for name, node in view.nodes.items())
    return {name: address for name, address in found if address is not None and address.version == underlay}


def _sources(view: ClusterView) -> Iterator[tuple[str, Network]]:
    """Yield what each node may send from: its own addresses, and those of the pods in its blocks."""
    for name, node in view.nodes.items():
        for address in node.internal_addresses:
            yield name, host_network(address)
        for interface in node.interface_addresses:
            yield name, host_network(interface.ip)
    for block in view.blocks.values():
        yield block.spec.node, block.network


def _kind(network: Network) -> str:
    return hex(int(_INNER[Family.of(network)][0], 16))


def _range(network: Network) -> str:
    first, last = int(network.network_address), int(network.broadcast_address)
    return hex(first) if first == last else f"{first:#x}-{last:#x}"
