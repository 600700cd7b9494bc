"""From a view of the cluster and a node's leases to every kernel object that the node must hold."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.api.lease import Lease
from podway.plan.objects import LINK_GROUP, NFT_TABLE, NftTable, NodePlan, Route, Sysctl
from podway.plan.view import ClusterView
from podway.plan.wiring import wire

SMALLEST_IPV6_MTU = 1280
"""RFC 8200 section 5."""

NODE_FORWARDING: dict[Family, str] = {
    # IPv4 asks the incoming interface; IPv6 asks the whole namespace (net/ipv6/ip6_output.c, ip6_forward).
    Family.IPV4: "net/ipv4/conf/{uplink}/forwarding",
    Family.IPV6: "net/ipv6/conf/all/forwarding",
}

_NFT_FAMILY: dict[Family, Literal["ip", "ip6"]] = {Family.IPV4: "ip", Family.IPV6: "ip6"}

SPOOF_GUARD = f"""
\tchain prerouting {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tmeta iifgroup {LINK_GROUP} fib saddr . iif oif missing counter drop
\t}}
"""
"""A pod may send only from an address that is routed to it: for the families whose kernel does not see to it."""

ALL_RP_FILTER = "net/ipv4/conf/all/rp_filter"
ACCEPT_RA = "net/ipv6/conf/{uplink}/accept_ra"


class HostFacts(msgspec.Struct, frozen=True):
    """Settings of the node that are not ours to choose, but that decide what it needs: their values as text."""

    all_rp_filter: str = ""
    accept_ra: str = ""
    """The uplink's."""

    @property
    def guarded(self) -> frozenset[Family]:
        """Families that need a rule against foreign source addresses.

        IPv4 has strict rp_filter, at no cost to forwarded packets; the rule's hook would cost every one of
        them some 2 %. But the kernel takes the larger of a link's setting and that of `all`: with 2 (loose)
        there, strict becomes loose (Documentation/networking/ip-sysctl.rst).
        """
        return frozenset(Family) if self.all_rp_filter == "2" else frozenset({Family.IPV6})

    @property
    def loses_router_advertisements(self) -> bool:
        """Whether the uplink, once it forwards IPv6, stops to listen to routers (accept_ra 1, same document)."""
        return self.accept_ra == "1"


USUAL_HOST = HostFacts()
"""A node of which nothing of that kind is known."""


class Uplink(msgspec.Struct, frozen=True):
    """The device by which a node reaches the other nodes."""

    device: str
    mtu: int
    addresses: tuple[Interface, ...]
    """At most one a family."""

    @property
    def node_addresses(self) -> tuple[Address, ...]:
        """The node's own addresses, without prefix lengths."""
        return tuple(interface.ip for interface in self.addresses)


def pod_mtu(view: ClusterView, uplink: Uplink) -> int:
    """Return the MTU of pod links in bytes: what every path carries, or less if the cluster says so."""
    return min(view.config.mtu, uplink.mtu) if view.config.mtu else uplink.mtu


def plan_node(
    view: ClusterView,
    node: str,
    uplink: Uplink,
    leases: Iterable[Lease],
    *,
    withdrawn: frozenset[Network] = frozenset(),
    facts: HostFacts = USUAL_HOST,
) -> NodePlan:
    """Return all kernel objects of ours that a node must hold.

    `withdrawn` blocks are being given back.

    A block of ours is a blackhole route: what is sent to an address that no pod holds ends here instead of
    going round, and BIRD learns from it what to announce.
    """
    mtu = pod_mtu(view, uplink)
    wirings = [wire(lease, mtu=mtu, node_addresses=uplink.node_addresses) for lease in leases]
    blocks = [block.network for block in view.blocks_of(node) if block.network not in withdrawn]
    families = {Family.of(block) for block in blocks} | {Family.of(address) for address in uplink.addresses}
    return NodePlan(
        links=tuple(wiring.link for wiring in wirings),
        addresses=tuple(address for wiring in wirings for address in wiring.addresses),
        neighbours=tuple(neighbour for wiring in wirings for neighbour in wiring.neighbours),
        sysctls=(
            *(Sysctl(NODE_FORWARDING[family].format(uplink=uplink.device), "1") for family in sorted(families)),
            *_keep_listening(facts, uplink, families),
            *(sysctl for wiring in wirings for sysctl in wiring.sysctls),
        ),
        routes=(
            *(Route(block, "blackhole") for block in blocks),
            *(route for wiring in wirings for route in wiring.routes),
        ),
        tables=tuple(NftTable(_NFT_FAMILY[family], NFT_TABLE, SPOOF_GUARD) for family in sorted(facts.guarded)),
    )


def _keep_listening(facts: HostFacts, uplink: Uplink, families: set[Family]) -> tuple[Sysctl, ...]:
    if Family.IPV6 not in families or not facts.loses_router_advertisements:
        return ()
    return (Sysctl(ACCEPT_RA.format(uplink=uplink.device), "2"),)
