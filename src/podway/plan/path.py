"""The way that a packet should take through the cluster, hop by hop, as the plans of the nodes say it.

A hop is one network namespace that a packet passes: a pod's or a node's. There it comes in by one device, a
route decides, and it leaves by another one. Routers between nodes are nobody's hops: what they do is theirs.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Encapsulation
from podway.api.lease import Lease
from podway.cluster.view import ClusterView
from podway.plan.bgp import plan_bgp
from podway.plan.fabric import encapsulation_of, mode_of_device
from podway.plan.learned import announced
from podway.plan.nat import translation_words
from podway.plan.node import plan_node, plan_wiring
from podway.plan.objects import BRIDGE_DEVICE, Neighbour, Route
from podway.plan.remote import remote_route
from podway.plan.uplink import Uplink

Disposition: TypeAlias = Literal["forwarded", "delivered", "discarded", "outside"]
Owner: TypeAlias = Literal["podway", "bird", "kernel", "host"]

_UNKNOWN = Uplink("", 0, ())


class Site(msgspec.Struct, frozen=True):
    """What a plan needs to know of a node beyond the view; `uplink` is None while the node does not answer.

    `leases` need not be all of the node's: those of the pods that a path is about do.
    """

    uplink: Uplink | None = None
    leases: tuple[Lease, ...] = ()


class End(msgspec.Struct, frozen=True):
    """Who sends or takes a packet: a pod of a node, a node itself, or an address that is neither's.

    `node` is empty for an address outside the cluster; `pod` is `<namespace>/<name>`.
    """

    address: Address
    node: str = ""
    pod: str = ""


class PlannedHop(msgspec.Struct, frozen=True):
    """One namespace on the way. `pod` is empty for the node's own.

    `entry` is the device that the packet comes in by, empty where it is made (or not known); `exit` the one
    that it leaves by, empty where it ends: those that routing sees. Where one of them is an overlay device or a
    bridge, `wire_entry` and `wire_exit` are the devices below, which carry the packet to the next hop.
    `encapsulation` is that with which it leaves for another node.

    `translation` is what becomes of the source where a pod's packet leaves the cluster, in nft's words.

    `route` is the one that should decide, `owner` who keeps it: `host` is whoever set up the node's own network.
    `leads_to` is the node that the route leads to, `learned_from` who tells it by BGP: that node, a reflector, or
    a BGPPeer by its name.
    """

    node: str
    pod: str
    entry: str
    exit: str
    disposition: Disposition
    owner: Owner
    route: Route | None = None
    learned_from: str = ""
    neighbour: Neighbour | None = None
    leads_to: str = ""
    encapsulation: Encapsulation = "none"
    wire_entry: str = ""
    wire_exit: str = ""
    translation: str = ""


def plan_path(view: ClusterView, sites: Mapping[str, Site], source: End, target: End) -> tuple[PlannedHop, ...]:
    """Return the hops of a packet from `source` to `target`, which are of one family.

    A packet from outside is taken to come in at the target's node. Nodes without a site, and devices that
    depend on it, are passed with empty names.
    """
    hops: list[PlannedHop] = []
    node, entry, below = source.node or target.node, "", ""
    lease = _lease(sites, source)
    if source.pod and source.address == target.address:
        return (PlannedHop(node, source.pod, "", "", "delivered", "kernel"),)
    if source.pod:
        hops.append(_out_of_pod(view, sites, source, target, lease))
        entry = lease.attachment.link if lease else ""
        if lease and lease.attach == "bridge":
            entry, below = BRIDGE_DEVICE, entry
    elif not source.node:
        entry = _uplink(sites, node).device
    while node and node not in {hop.node for hop in hops if not hop.pod}:
        hop = _through_node(view, sites, node, entry, target)
        hops.append(msgspec.structs.replace(hop, wire_entry=below))
        if hop.disposition == "outside" and source.pod:
            words = translation_words(view, node, source.address, target.address)
            hops[-1] = msgspec.structs.replace(hops[-1], translation=words)
        if hops[-1].disposition != "forwarded":
            break
        if target.pod and target.node == node:
            inside = _lease(sites, target)
            ifname = inside.attachment.ifname if inside else ""
            if inside and inside.attach == "bridge":
                hops[-1] = msgspec.structs.replace(hops[-1], wire_exit=inside.attachment.link)
            hops.append(PlannedHop(node, target.pod, ifname, "", "delivered", "kernel"))
            break
        node = hop.leads_to or target.node
        entry, below = _uplink(sites, node).device, ""
        if hop.encapsulation == "vxlan":
            # IPIP is taken off on the uplink itself: there the packet comes in by it.
            entry, below = hop.exit, entry
    return tuple(hops)


def _out_of_pod(
    view: ClusterView, sites: Mapping[str, Site], source: End, target: End, lease: Lease | None
) -> PlannedHop:
    if lease is None:
        return PlannedHop(source.node, source.pod, "", "", "forwarded", "podway")
    site = sites.get(source.node, Site())
    pod = plan_wiring(view, source.node, site.uplink or _UNKNOWN, lease, leases=site.leases).pod
    # On a bridge the kernel itself knows the way to its neighbours, by the pod's own address.
    lans = (on.address.network for on in pod.addresses)
    connected = [Route(lan, device=pod.ifname, scope="link") for lan in lans if lan.num_addresses > 1]
    route = _longest((*pod.routes, *connected), target.address)
    return PlannedHop(
        source.node,
        source.pod,
        "",
        pod.ifname,
        "forwarded",
        "kernel" if route in connected else "podway",
        route,
        neighbour=_neighbour(pod.neighbours, route, target.address),
    )


def _through_node(view: ClusterView, sites: Mapping[str, Site], node: str, entry: str, target: End) -> PlannedHop:
    address = target.address
    registered = view.nodes.get(node)
    if target.node == node and not target.pod and registered and address in registered.internal_addresses:
        return PlannedHop(node, "", entry, "", "delivered", "kernel")
    uplink = _uplink(sites, node)
    site = sites.get(node, Site())
    plan = plan_node(view, node, uplink, site.leases)
    own = _longest(plan.routes, address)
    block = view.block_at(address)
    told = remote_route(view, node, uplink, block) if block is not None and announced(view, block) else None
    if own is not None and (own.type != "unreachable" or told is None):
        disposition: Disposition = "discarded" if own.type != "unicast" else "forwarded"
        known = _neighbour(plan.neighbours, own, address)
        if own.type != "unicast" and target.pod and target.node == node and not site.leases:
            # The pod's own route is narrower than its block's, but not known while its node is silent.
            return PlannedHop(node, "", entry, "", "forwarded", "podway")
        hop = PlannedHop(node, "", entry, own.device, disposition, "podway", own, neighbour=known)
        remote = block is not None and block.spec.node != node and own.destination == block.network
        return _to_a_node(hop, block, uplink) if block and remote else hop
    if block is not None and announced(view, block):
        if told is None:  # only routers between the nodes know the way, and told BIRD
            told = Route(block.network, device=uplink.device)
        told = msgspec.structs.replace(told, source=None)
        known = _neighbour(plan.neighbours, told, address)
        learned_from = _learned_from(view, node, block)
        hop = PlannedHop(node, "", entry, told.device, "forwarded", "bird", told, learned_from, known)
        return _to_a_node(hop, block, uplink)
    if not target.node:
        return PlannedHop(node, "", entry, "", "outside", "host")
    subnet = next((own.network for own in uplink.addresses if address in own.network), None)
    if subnet is None:
        return PlannedHop(node, "", entry, uplink.device, "forwarded", "host")
    connected = Route(subnet, device=uplink.device, scope="link")
    return PlannedHop(node, "", entry, uplink.device, "forwarded", "kernel", connected)


def _learned_from(view: ClusterView, node: str, block: AddressBlock) -> str:
    """Return who tells a node the way to a block: its owner, else reflectors or peers outside the cluster."""
    if node not in view.nodes:
        return ""
    plan = plan_bgp(view, node)
    family = Family.of(block.network)
    others = [peer.node for peer in plan.peers if peer.family is family]
    if block.spec.node in others:
        return block.spec.node
    outside = [peer.peer for peer in plan.outside if peer.family is family]
    return " or ".join(sorted({*others, *outside}))


def _to_a_node(hop: PlannedHop, block: AddressBlock, uplink: Uplink) -> PlannedHop:
    """Add to a hop on the way to a block of another node which that is, and how the packet crosses."""
    encapsulation = encapsulation_of(mode_of_device(hop.exit))
    return msgspec.structs.replace(
        hop,
        leads_to=block.spec.node,
        encapsulation=encapsulation,
        wire_exit=uplink.device if encapsulation != "none" else "",
    )


def _uplink(sites: Mapping[str, Site], node: str) -> Uplink:
    return sites.get(node, Site()).uplink or _UNKNOWN


def _lease(sites: Mapping[str, Site], end: End) -> Lease | None:
    leases = sites.get(end.node, Site()).leases
    return next((lease for lease in leases if end.pod and end.address in lease.addresses), None)


def _longest(routes: Iterable[Route], address: Address) -> Route | None:
    """Return the route that a packet to an address takes: that of the longest prefix (RFC 1812, 5.2.4.3)."""
    matching = (route for route in routes if address in route.destination)
    return max(matching, key=lambda route: route.destination.prefixlen, default=None)


def _neighbour(neighbours: Iterable[Neighbour], route: Route | None, address: Address) -> Neighbour | None:
    key = (route.device, route.gateway or address) if route else None
    return next((neighbour for neighbour in neighbours if neighbour.key == key), None)
