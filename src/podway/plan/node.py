"""From a view of the cluster and a node's leases to every kernel object that the node must hold."""

from collections.abc import Collection, Iterable

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.kinds.ip_pool import IPPool
from podway.api.lease import Lease
from podway.cluster.view import ClusterView
from podway.plan.bridge import lan_of, plan_bridge
from podway.plan.fabric import device_mtu, overhead, pool_modes, possible_modes
from podway.plan.guard import plan_pod_guard
from podway.plan.objects import NodePlan, PodWiring, Route, Sysctl
from podway.plan.others import plan_others
from podway.plan.overlays import RP_FILTER, plan_overlays
from podway.plan.ports import port_guard
from podway.plan.remote import last_resorts
from podway.plan.sent_modes import NOTHING_SENT, SentModes
from podway.plan.uplink import Uplink
from podway.plan.wiring import wire

NODE_FORWARDING: dict[Family, str] = {
    # IPv4 asks the incoming interface; IPv6 asks the whole namespace (net/ipv6/ip6_output.c, ip6_forward).
    Family.IPV4: "net/ipv4/conf/{uplink}/forwarding",
    Family.IPV6: "net/ipv6/conf/all/forwarding",
}

ALL_RP_FILTER = RP_FILTER.format(device="all")
FORWARD_USES_PATH_MTU = "net/ipv4/ip_forward_use_pmtu"
NEIGHBOUR_LIMITS = ("net/ipv4/neigh/default/gc_thresh3", "net/ipv6/neigh/default/gc_thresh3")
"""One table a family for the machine, so only its first network namespace has the settings (man 7 arp)."""
USUAL_NEIGHBOURS = 1024

ACCEPT_RA = "net/ipv6/conf/{device}/accept_ra"


class HostFacts(msgspec.Struct, frozen=True):
    """Settings of the node that are not ours to choose, but that decide what it needs: their values as text."""

    all_rp_filter: str = ""
    accept_ra: str = ""
    """The uplink's."""
    rp_filter: str = ""
    """The uplink's."""
    neighbours: tuple[str, ...] = ()
    """The values of NEIGHBOUR_LIMITS that this namespace shows."""
    bridge_netfilter: tuple[str, ...] = ()
    """Those of podway.plan.bridge.BRIDGE_NETFILTER that this kernel has."""

    @property
    def strict(self) -> bool:
        """Whether the uplink takes a packet only if its answer would go back there (rp_filter 1)."""
        return "1" in {self.all_rp_filter, self.rp_filter} and "2" not in {self.all_rp_filter, self.rp_filter}

    @property
    def loose(self) -> bool:
        """Whether strict rp_filter on a pod's link is overruled.

        The kernel takes the larger of a link's setting and that of `all`: with 2 (loose) there, strict becomes
        loose (Documentation/networking/ip-sysctl.rst).
        """
        return self.all_rp_filter == "2"

    @property
    def most_neighbours(self) -> int:
        """How many neighbours the kernel keeps."""
        return min((int(value) for value in self.neighbours if value.isdecimal()), default=USUAL_NEIGHBOURS)

    @property
    def loses_router_advertisements(self) -> bool:
        """Whether the uplink, once it forwards IPv6, stops to listen to routers (accept_ra 1, same document)."""
        return self.accept_ra == "1"


USUAL_HOST = HostFacts()
"""A node of which nothing of that kind is known."""


def pool_mtu(view: ClusterView, uplink: Uplink, pool: IPPool, sent: SentModes = NOTHING_SENT) -> int:
    """Return the MTU for a pool's pods in bytes: what every path carries, or less if the cluster says so.

    `sent` are the modes in which this node may still send, by pool: while one that makes packets longer is
    among them, the MTU stays low.
    """
    carried = uplink.mtu - pool_overhead(view, uplink, pool, sent)
    return min(view.config.mtu, carried) if view.config.mtu else carried


def pool_overhead(view: ClusterView, uplink: Uplink, pool: IPPool, sent: SentModes = NOTHING_SENT) -> int:
    """Return by how many bytes a pool's packets may become longer on their way, between any two nodes."""
    modes = {*pool_modes(view, pool.spec.encapsulation), *sent.get(pool.metadata.name, ())}
    if "vxlan" in modes and "vxlan" not in possible_modes(uplink.node_addresses):
        modes.add("vxlan6")  # this node may not be registered yet
    return max(map(overhead, modes), default=0)


def pod_mtu(
    view: ClusterView, uplink: Uplink, addresses: Iterable[Address] | None = None, sent: SentModes = NOTHING_SENT
) -> int:
    """Return the MTU of a pod's link in bytes, which its addresses' pools decide; None stands for all pools.

    With IPv6 it is at least what that needs: the node tells IPv4 what of that is carried to other nodes.
    """
    pools = list(view.pools.values())
    if addresses is not None:
        wanted = tuple(addresses)
        pools = [pool for pool in pools if any(address in pool.network for address in wanted)]
    mtus = [pool_mtu(view, uplink, pool, sent) for pool in pools]
    mtu = min(mtus, default=min(view.config.mtu, uplink.mtu) if view.config.mtu else uplink.mtu)
    return device_mtu(mtu) if any(pool.family is Family.IPV6 for pool in pools) else mtu


def plan_wiring(
    view: ClusterView,
    node: str,
    uplink: Uplink,
    lease: Lease,
    *,
    leases: Iterable[Lease] = (),
    sent: SentModes = NOTHING_SENT,
) -> PodWiring:
    """Return what one pod's attachment needs, `lease`'s; `leases` are all of the node."""
    return _wiring(view, uplink, lease, lan_of(view, node, (*leases, lease)), sent)


def _wiring(
    view: ClusterView, uplink: Uplink, lease: Lease, lan: tuple[Network, ...], sent: SentModes
) -> PodWiring:
    # The pods of a bridge have one MTU: nobody tells a sender on a LAN that its frame is too long for another.
    together = lease.attach == "bridge"
    mtu = pod_mtu(view, uplink, _addresses_in(lan) if together else lease.addresses, sent)
    return wire(lease, mtu=mtu, node_addresses=uplink.sources, lan=lan)


def _addresses_in(lan: tuple[Network, ...]) -> list[Address]:
    return [block.network_address for block in lan]


def plan_node(
    view: ClusterView,
    node: str,
    uplink: Uplink,
    leases: Iterable[Lease],
    *,
    withdrawn: frozenset[Network] = frozenset(),
    facts: HostFacts = USUAL_HOST,
    sent: SentModes = NOTHING_SENT,
    transitional: Collection[Network] = (),
    others: NodePlan | None = None,
) -> NodePlan:
    """Return all kernel objects of ours that a node must hold.

    `withdrawn` blocks are being given back. `sent` are the modes in which the node may still send, by pool.
    `transitional` are blocks of other nodes that get a route of ours for a while though BGP advertises them, so
    that no packet is lost while BIRD changes its own. `others` is what `plan_others` says, if that is known
    already.

    A block of ours is a blackhole route: what is sent to an address that no pod holds ends here instead of
    going round, and BIRD learns from it what to announce.
    """
    leases = tuple(leases)
    lan = lan_of(view, node, leases, withdrawn)
    wirings = [_wiring(view, uplink, lease, lan, sent) for lease in leases]
    bridge = plan_bridge(lan, pod_mtu(view, uplink, _addresses_in(lan), sent), facts.bridge_netfilter)
    blocks = [block.network for block in view.blocks_of(node) if block.network not in withdrawn]
    families = {Family.of(block) for block in blocks} | {Family.of(address) for address in uplink.addresses}
    subnets = [address.network for address in uplink.addresses]
    guard = plan_pod_guard(
        view, node, subnets=subnets, neighbours=facts.most_neighbours, loose=facts.loose, bridge=bool(lan)
    )
    over = plan_overlays(view, node, uplink, strict=facts.all_rp_filter == "1")
    if others is None:
        others = plan_others(view, node, uplink, transitional)
    return NodePlan(
        devices=(*over.devices, *bridge.devices),
        links=tuple(wiring.link for wiring in wirings),
        ports=tuple(wiring.port for wiring in wirings if wiring.port),
        addresses=(
            *over.addresses,
            *bridge.addresses,
            *(address for wiring in wirings for address in wiring.addresses),
        ),
        neighbours=(*others.neighbours, *(neighbour for wiring in wirings for neighbour in wiring.neighbours)),
        proxies=tuple(proxy for wiring in wirings for proxy in wiring.proxies),
        forwarding=others.forwarding,
        tunnels=over.tunnels,
        endpoints=others.endpoints,
        sources=(*over.sources, *others.sources),
        sysctls=(
            *over.sysctls,
            *bridge.sysctls,
            *_both_ways(facts, uplink, over),
            *_heed_path_mtu(over),
            *(Sysctl(NODE_FORWARDING[family].format(uplink=uplink.device), "1") for family in sorted(families)),
            *_keep_listening(facts, uplink, families),
            *(sysctl for wiring in wirings for sysctl in wiring.sysctls),
        ),
        routes=(
            *(Route(block, "blackhole") for block in blocks),
            *others.routes,
            *last_resorts(view),
            *(route for wiring in wirings for route in wiring.routes),
        ),
        tables=(*guard.tables, *port_guard(lan), *over.tables),
        elements=(
            *guard.elements,
            *over.elements,
            *others.elements,
            *(element for wiring in wirings for element in wiring.elements),
        ),
    )


def _both_ways(facts: HostFacts, uplink: Uplink, over: NodePlan) -> tuple[Sysctl, ...]:
    """Let in by the uplink what is answered by an overlay: IPIP always, every mode while it is switched.

    The kernel takes the larger of the two settings, so loose (2) on the uplink is enough.
    """
    if not over.devices or not facts.strict:
        return ()
    return (Sysctl(RP_FILTER.format(device=uplink.device), "2"),)


def _heed_path_mtu(over: NodePlan) -> tuple[Sysctl, ...]:
    """Have the node tell IPv4 pods of a link behind it that is narrower than its own, where VXLAN crosses one.

    A router there answers the node, whose kernel passes what it learned on to the route of the inner packet
    (skb_tunnel_check_pmtu). IPv6 heeds that also for what it forwards (ip6_finish_output), IPv4 only if it is told
    to (ip_dst_mtu_maybe_forward): large packets with DF would vanish without a word.
    """
    if not any(device.kind == "vxlan" for device in over.devices):
        return ()
    return (Sysctl(FORWARD_USES_PATH_MTU, "1"),)


def _keep_listening(facts: HostFacts, uplink: Uplink, families: set[Family]) -> tuple[Sysctl, ...]:
    if Family.IPV6 not in families or not facts.loses_router_advertisements:
        return ()
    return (Sysctl(ACCEPT_RA.format(device=uplink.device), "2"),)
