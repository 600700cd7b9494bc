"""The way that a packet should take through the cluster, hop by hop, as the plans of the nodes say it.

A hop is one network namespace that a packet passes: a pod's or a node's. There it comes in by one device, a
route decides, and it leaves by another one.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family
from podway.api.lease import Lease
from podway.plan.node import plan_node, pod_mtu
from podway.plan.objects import Neighbour, Route
from podway.plan.uplink import Uplink
from podway.plan.view import ClusterView
from podway.plan.wiring import wire

Fate: TypeAlias = Literal["forwarded", "delivered", "discarded", "outside"]
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
    that it leaves by, empty where it ends. `route` is the one that should decide, `owner` who keeps it:
    `host` is whoever set up the node's own network. `learned_from` is the node that tells a route by BGP.
    """

    node: str
    pod: str
    entry: str
    exit: str
    fate: Fate
    owner: Owner
    route: Route | None = None
    learned_from: str = ""
    neighbour: Neighbour | None = None


def plan_path(view: ClusterView, sites: Mapping[str, Site], source: End, target: End) -> tuple[PlannedHop, ...]:
    """Return the hops of a packet from `source` to `target`, which are of one family.

    A packet from outside is taken to come in at the target's node. Nodes without a site, and devices that
    depend on it, are passed with empty names.
    """
    hops: list[PlannedHop] = []
    node, entry = source.node or target.node, ""
    lease = _lease(sites, source)
    if source.pod and source.address == target.address:
        return (PlannedHop(node, source.pod, "", "", "delivered", "kernel"),)
    if source.pod:
        hops.append(_out_of_pod(view, sites, source, target, lease))
        entry = lease.attachment.link if lease else ""
    elif not source.node:
        entry = _uplink(sites, node).device
    while node and node not in {hop.node for hop in hops if not hop.pod}:
        hops.append(_through_node(view, sites, node, entry, target))
        if hops[-1].fate != "forwarded":
            break
        if target.pod and target.node == node:
            inside = _lease(sites, target)
            ifname = inside.attachment.ifname if inside else ""
            hops.append(PlannedHop(node, target.pod, ifname, "", "delivered", "kernel"))
            break
        node = hops[-1].learned_from or target.node
        entry = _uplink(sites, node).device
    return tuple(hops)


def _out_of_pod(
    view: ClusterView, sites: Mapping[str, Site], source: End, target: End, lease: Lease | None
) -> PlannedHop:
    if lease is None:
        return PlannedHop(source.node, source.pod, "", "", "forwarded", "podway")
    uplink = _uplink(sites, source.node)
    pod = wire(lease, mtu=pod_mtu(view, uplink, lease.addresses), node_addresses=uplink.node_addresses).pod
    route = _longest(pod.routes, target.address)
    return PlannedHop(
        source.node,
        source.pod,
        "",
        pod.ifname,
        "forwarded",
        "podway",
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
    if own is not None:
        fate: Fate = "discarded" if own.type != "unicast" else "forwarded"
        known = _neighbour(plan.neighbours, own, address)
        if own.type != "unicast" and target.pod and target.node == node and not site.leases:
            # The pod's own route is narrower than its block's, but not known while its node is silent.
            return PlannedHop(node, "", entry, "", "forwarded", "podway")
        return PlannedHop(node, "", entry, own.device, fate, "podway", own, neighbour=known)
    block = next((block for block in view.blocks.values() if address in block.network), None)
    if block is not None:
        owner = view.nodes.get(block.spec.node)
        gateway = owner.internal_address(Family.of(address)) if owner else None
        route = Route(block.network, device=uplink.device, gateway=gateway)
        return PlannedHop(node, "", entry, uplink.device, "forwarded", "bird", route, block.spec.node)
    if not target.node:
        return PlannedHop(node, "", entry, "", "outside", "host")
    subnet = next((own.network for own in uplink.addresses if address in own.network), None)
    if subnet is None:
        return PlannedHop(node, "", entry, uplink.device, "forwarded", "host")
    connected = Route(subnet, device=uplink.device, scope="link")
    return PlannedHop(node, "", entry, uplink.device, "forwarded", "kernel", connected)


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
