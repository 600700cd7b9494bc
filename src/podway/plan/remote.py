"""Our routes to the blocks of other nodes: where the store distributes them, and while BIRD changes its own."""

from collections.abc import Iterator

import msgspec

from podway.api.kinds.address_block import AddressBlock
from podway.cluster.view import ClusterView
from podway.plan.fabric import overlay_next_hop, pool_of, share_subnet
from podway.plan.objects import Route
from podway.plan.uplink import Uplink

LAST_METRIC = 1 << 31
"""Worse than all that others would set: what leads into a pool is preferred."""

STORE_METRIC = 30
"""Better than BIRD's routes (32): both stand side by side while a pool switches from one to the other."""

GUARD_METRIC = 31
"""Of unreachable routes between the two: a device that goes takes a route of ours along, and BIRD's from before,
which may lead on bare, would be the best."""


def distributed_by_store(view: ClusterView) -> frozenset[str]:
    """Return the names of the pools whose routes the store distributes."""
    return frozenset(name for name, pool in view.pools.items() if pool.spec.distribution == "store")


def distributed_routes(
    view: ClusterView, node: str, uplink: Uplink, block: AddressBlock, *, guarded: bool
) -> Iterator[Route]:
    """Yield a node's own routes to a block of another one; nothing if there is no way that it knows of.

    What is to be encapsulated and cannot be is unreachable. So it is, where `guarded`, for as long as a device is
    away: behind the way stands an unreachable route, ahead of what BIRD may have in the kernel from before.
    """
    route = _way(view, node, uplink, block)
    if route is None:
        return
    if route.type == "unicast":
        yield msgspec.structs.replace(route, metric=STORE_METRIC)
    if route.type != "unicast" or (guarded and route.device != uplink.device):
        yield Route(block.network, "unreachable", metric=GUARD_METRIC)


def last_resorts(view: ClusterView) -> Iterator[Route]:
    """Yield the routes that keep a pool's packets from leaving by the default route, which is bare.

    For the pools that ask for encapsulation: what has no route to its block is unreachable, and
    the sender is told.
    """
    for pool in view.pools.values():
        if pool.spec.encapsulation != "none":
            yield Route(pool.network, "unreachable", metric=LAST_METRIC)


def remote_route(view: ClusterView, node: str, uplink: Uplink, block: AddressBlock) -> Route | None:
    """Return the way from a node to a block of another one, whoever writes it; None if there is none.

    Without encapsulation a route of ours reaches only nodes of the own subnet: routers between subnets know
    of blocks only what BGP advertises them.
    """
    route = _way(view, node, uplink, block)
    return None if route is None or route.type == "unreachable" else route


def _way(view: ClusterView, node: str, uplink: Uplink, block: AddressBlock) -> Route | None:
    """Return what `remote_route` does; an unreachable route where what is to be encapsulated cannot be."""
    here, there = view.nodes.get(node), view.nodes.get(block.spec.node)
    pool = pool_of(view, block)
    if here is None or there is None or there is here or pool is None:
        return None
    source = next((address for address in uplink.sources if address.version == pool.family), None)
    next_hop = overlay_next_hop(pool, here, there, uplink.mtu)
    if next_hop is not None and next_hop.gateway is None:
        return Route(block.network, "unreachable")
    if next_hop is not None:
        return Route(
            block.network, device=next_hop.device, gateway=next_hop.gateway, source=source, mtu=next_hop.mtu
        )
    gateway = there.internal_address(pool.family)
    if gateway is None or not share_subnet(here, there, pool.family):
        return None
    if any(address.version == pool.family for address in uplink.absent):
        return None  # with its address the node has lost the subnet
    return Route(block.network, device=uplink.device, gateway=gateway, source=source)
