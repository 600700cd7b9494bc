"""The routes that BIRD is expected to write on a node: to the blocks of the other nodes.

They belong to BIRD and are in no NodePlan. They are planned all the same, so that a preview can tell what a
change does to them.
"""

from podway.api.addresses import Family
from podway.api.resources import AddressBlock
from podway.plan.node import Uplink
from podway.plan.objects import Route
from podway.plan.view import ClusterView

METRIC = 32
"""`metric` of BIRD's kernel protocol, by default (krt_start in sysdep/linux/netlink.c)."""


def announced(view: ClusterView, block: AddressBlock) -> bool:
    """Tell whether a block passes the filters between nodes: a block of a pool, whose node is in the cluster."""
    pool = view.pools.get(block.spec.pool)
    return (
        block.spec.node in view.nodes
        and pool is not None
        and pool.network.version == block.network.version
        and pool.block_prefix == block.network.prefixlen
        and block.network.network_address in pool.network
    )


def learned_route(view: ClusterView, node: str, uplink: Uplink, block: AddressBlock) -> Route | None:
    """Return the route by which a node reaches a block of another node; None if it has none."""
    if block.spec.node == node or node not in view.nodes or not announced(view, block):
        return None
    family = Family.of(block.network)
    gateway = view.nodes[block.spec.node].internal_address(family)
    source = next((address for address in uplink.node_addresses if address.version == family), None)
    if gateway is None or source is None:
        return None
    return Route(block.network, device=uplink.device, gateway=gateway, source=source, metric=METRIC)
