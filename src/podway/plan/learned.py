"""The routes that BIRD is expected to write on a node: to the blocks of the other nodes.

They belong to BIRD and are in no NodePlan. They are planned all the same, so that a preview can tell what a
change does to them.
"""

import msgspec

from podway.api.kinds.address_block import AddressBlock
from podway.cluster.view import ClusterView
from podway.plan.fabric import pool_of
from podway.plan.objects import Route
from podway.plan.remote import remote_route
from podway.plan.uplink import Uplink

METRIC = 32
"""`metric` of BIRD's kernel protocol, by default (krt_start in sysdep/linux/netlink.c)."""


def announced(view: ClusterView, block: AddressBlock) -> bool:
    """Tell whether BGP advertises a block: one of a pool that is distributed so, whose node is in the cluster."""
    pool = pool_of(view, block)
    return block.spec.node in view.nodes and pool is not None and pool.spec.distribution == "bgp"


def learned_route(view: ClusterView, node: str, uplink: Uplink, block: AddressBlock) -> Route | None:
    """Return the route by which BGP has a node reach a block of another one; None if it has none.

    Where only routers between the nodes know the way, the gateway is theirs to say, and None is returned.
    """
    if not announced(view, block):
        return None
    route = remote_route(view, node, uplink, block)
    return None if route is None else msgspec.structs.replace(route, metric=METRIC)
