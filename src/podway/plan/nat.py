"""Pods' packets on their way out of the cluster: their source becomes an address of their node (RFC 2663, 4.1.2).

The networks outside commonly know the way to nodes and none to pods. So the node translates what its own pods
send there, if their pool asks for it (`natOutgoing`), and nothing else: no packet to another pod, a node, a BGP
peer, a Service, or a network that is excluded since it knows the way to pods.

*Where.* In nat's postrouting hook, for packets that came in by a pod's link or the bridge. So neither what the
node itself sends is looked at nor what other nodes' pods send, inside or outside of an encapsulation: that was
translated, or not, at its own node. The hook sees the first packet of a connection only; the others, and the
answers, go as that one did. A connection that was begun from outside is therefore never touched.

*Only beginnings.* The kernel begins to follow connections when the first such rule is loaded. From a TCP
connection that is older it may see an answer first, and would take that for a beginning: so of TCP only a SYN is
one.

*What it costs.* Every packet of the family is then tracked (docs/nat.md has the measurement). Only the outer
packets of VXLAN are not: to each connection they would add two more that nobody asks for.

*Two steps.* The table without its chains comes first, then the nodes' addresses one by one, and the chains last:
so no packet meets them before they know all nodes. They go in the opposite order.
"""

from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_network

from podway.api.addresses import Address, Family, Network, collapsed, host_network
from podway.cluster.view import ClusterView
from podway.plan.fabric import TunnelMode, required_modes
from podway.plan.guard import NFT_FAMILY, NODES, ElementFields
from podway.plan.objects import (
    BRIDGE_DEVICE,
    LINK_GROUP,
    NFT_NAT_TABLE,
    NftElement,
    NftField,
    NftSet,
    NftTable,
    NodePlan,
)

MULTICAST: dict[Family, Network] = {
    Family.IPV4: ip_network("224.0.0.0/4"),  # RFC 5771
    Family.IPV6: ip_network("ff00::/8"),  # RFC 4291
}

_SETS = """
\tset {nodes} {{
\t\ttype {type}
\t}}
"""

_CHAINS = """
\tchain leaving {{
\t\t{ip} saddr != {{ {sources} }} return
\t\t{ip} daddr {{ {inside} }} return
\t\t{ip} daddr @{nodes} return
\t\tmeta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn return
\t\t{translation} fully-random
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta iifgroup {group} goto leaving
{bridge}\t}}
"""

_BRIDGE = f'\t\tmeta iifname "{BRIDGE_DEVICE}" goto leaving\n'

_OUTER = """
\tchain outer_in {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tudp dport {port} {ip} saddr @{nodes} notrack
\t}}
\tchain outer_out {{
\t\ttype filter hook output priority raw; policy accept;
\t\tudp dport {port} {ip} daddr @{nodes} notrack
\t}}
"""
"""VXLAN's outer packets: both ways to this port, from a source port that says nothing (RFC 7348, section 5)."""

_VXLAN: dict[Family, TunnelMode] = {Family.IPV4: "vxlan", Family.IPV6: "vxlan6"}
"""The mode whose outer packets are of a family."""

_TYPE: dict[Family, NftField] = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}


def plan_nat_sets(view: ClusterView) -> NodePlan:
    """Return the tables that hold what the rules of `plan_nat` ask for, one for each family that has a pool."""
    return NodePlan(tables=tuple(_table(Family(family), "") for family in sorted(nat_families(view))))


def plan_nat(view: ClusterView, node: str, *, bridge: bool) -> NodePlan:
    """Return the tables that translate what a node's pods send out of the cluster, those of `plan_nat_sets`.

    None for a family of which no pool asks for it. `bridge` tells that there are pods on a bridge.
    """
    return NodePlan(tables=tuple(_translating(view, node, bridge=bridge)))


def translated_pools(view: ClusterView, family: Family) -> tuple[Network, ...]:
    """Return the ranges of the pools of a family whose pods' addresses are translated."""
    pools = (pool for pool in view.pools.values() if pool.family is family and pool.spec.nat_outgoing)
    return tuple(pool.network for pool in pools)


def kept_networks(view: ClusterView, family: Family) -> tuple[Network, ...]:
    """Return where pods' packets go without translation, besides to nodes: in order, none inside another."""
    config = view.config
    stated = (*config.service_networks, *map(ip_network, config.nat.excluded))
    peers = (host_network(peer.address) for peer in view.peers.values())
    every = [*_pools(view, family), MULTICAST[family], *stated, *peers]
    return collapsed(network for network in every if network.version == family)


def chosen_address(view: ClusterView, node: str, family: Family) -> Address | None:
    """Return the address that a node is told to send pods' packets from, None for that of the route."""
    here = view.nodes.get(node)
    return here.nat_address(family) if here else None


def is_translated(view: ClusterView, source: Address, destination: Address) -> bool:
    """Tell whether a packet that a pod sends from and to these addresses leaves with another source."""
    family = Family.of(source)
    if not any(source in network for network in translated_pools(view, family)):
        return False
    if any(destination in network for network in kept_networks(view, family)):
        return False
    return not any(destination in node.own_addresses for node in view.nodes.values())


def translation_words(view: ClusterView, node: str, source: Address, destination: Address) -> str:
    """Return what becomes of the source of a packet that a node's pod sends, in nft's words; empty: nothing."""
    if not is_translated(view, source, destination):
        return ""
    return _translation(view, node, Family.of(source))


def nat_families(view: ClusterView) -> frozenset[int]:
    """Return the families that have tables (`plan_nat_sets`)."""
    return frozenset(pool.family for pool in view.pools.values())


def nat_elements(fields: Iterable[ElementFields], families: Collection[int]) -> tuple[NftElement, ...]:
    """Return the elements that stand for a node of these addresses in the tables of these families."""
    return tuple(
        NftElement(NFT_FAMILY[family], NFT_NAT_TABLE, NODES, text) for family, text in fields if family in families
    )


def _translating(view: ClusterView, node: str, *, bridge: bool) -> Iterator[NftTable]:
    modes = required_modes(view, node)
    for family in Family:
        sources = translated_pools(view, family)
        if not sources:
            continue
        ip = NFT_FAMILY[family]
        chains = _CHAINS.format(
            ip=ip,
            nodes=NODES,
            group=LINK_GROUP,
            sources=", ".join(map(str, collapsed(sources))),
            inside=", ".join(map(str, kept_networks(view, family))),
            translation=_translation(view, node, family),
            bridge=_BRIDGE if bridge else "",
        )
        outer = _OUTER.format(ip=ip, nodes=NODES, port=view.config.vxlan.port) if _VXLAN[family] in modes else ""
        yield _table(family, chains + outer)


def _translation(view: ClusterView, node: str, family: Family) -> str:
    chosen = chosen_address(view, node, family)
    return f"snat to {chosen}" if chosen else "masquerade"


def _table(family: Family, chains: str) -> NftTable:
    sets = _SETS.format(nodes=NODES, type=_TYPE[family])
    return NftTable(NFT_FAMILY[family], NFT_NAT_TABLE, sets + chains, (NftSet(NODES, (_TYPE[family],)),))


def _pools(view: ClusterView, family: Family) -> list[Network]:
    return [pool.network for pool in view.pools.values() if pool.family is family]
