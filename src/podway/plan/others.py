"""What the other nodes make a node hold: their entries on its overlay devices, and its routes to their blocks.

In a large cluster that is nearly everything, and it changes one node at a time. So it is planned apart from what
the node holds for itself, and after a change that is another node's alone only for the nodes that it is about.
"""

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from podway.api.addresses import Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
from podway.cluster.change import Change
from podway.cluster.relevance import alters_plans
from podway.cluster.view import ClusterView
from podway.plan.changes import Change as Difference
from podway.plan.changes import between
from podway.plan.fabric import mode_to, pool_modes, required_modes
from podway.plan.guard import node_elements
from podway.plan.objects import NodePlan
from podway.plan.overlays import overlay_entries
from podway.plan.remote import remote_routes
from podway.plan.sent_modes import SentModes
from podway.plan.uplink import Uplink


def plan_others(
    view: ClusterView,
    node: str,
    uplink: Uplink,
    transitional: Collection[Network] = (),
    *,
    only: Iterable[str] | None = None,
) -> NodePlan:
    """Return what the other nodes make a node hold: all of them, or `only` those of these names.

    `transitional` are blocks that get a route of ours for a while though BGP advertises them.
    """
    if only is None:
        only = {*view.nodes, *(str(owner) for owner in view.blocks.indexed("node"))}
        blocks = None
    else:
        blocks = [block for name in sorted(only) for block in view.blocks_of(name)]
    names = sorted(name for name in only if name != node)
    entries = overlay_entries(view, node, uplink, names)
    return msgspec.structs.replace(
        entries,
        elements=(*entries.elements, *node_elements(view, node, names)),
        routes=tuple(remote_routes(view, node, uplink, transitional, blocks=blocks)),
    )


def delta_of_others(
    before: ClusterView, after: ClusterView, node: str, uplink: Uplink, names: Collection[str]
) -> tuple[Difference, ...]:
    """Return the kernel objects that change on a node when only these other nodes and their blocks did."""
    return between(*(plan_others(view, node, uplink, only=names) for view in (before, after)))


def others_altered(
    before: ClusterView, after: ClusterView, node: str, changes: Iterable[Change[Any]], sent: SentModes
) -> frozenset[str] | None:
    """Return the other nodes that changes are about; None if they may alter more of a node's plan than that.

    What a node holds for itself depends on its own object and blocks, on pools and settings, on the modes that
    all nodes together hold and send. Where BGP advertises encapsulated routes, a node's new words may need routes
    of ours for a while, and while any node switches from one mode to another, each has to look at all of its
    routes (podway.plan.switching): that is for a look at everything, too.
    """
    here = after.nodes.get(node)
    if here is None or _switching(before, sent) or _switching(after, sent):
        return None
    names: set[str] = set()
    for change in changes:
        if not alters_plans(change):
            continue
        if change.kind == Node.KIND:
            names.add(change.key[2])
            names |= _neighbours_in_address(after, change.old) | _neighbours_in_address(after, change.new)
        elif change.kind == AddressBlock.KIND:
            blocks = [block for block in (change.old, change.new) if block is not None]
            if any(block.network == pool.network for block in blocks for pool in after.pools.values()):
                return None  # of the two, one takes the other's place among the sources of tunnelled packets
            names |= {block.spec.node for block in blocks}
        else:
            return None
    if node in names or required_modes(before, node) != required_modes(after, node):
        return None
    if pool_modes(before) != pool_modes(after):
        return None  # pods' MTU is that of all modes that any two nodes need
    for name, pool in after.pools.items():
        usual = {"none", *sent.get(name, ())}
        if any(there and mode_to(pool, here, there) not in usual for there in map(after.nodes.get, names)):
            return None
    return frozenset(names)


def _switching(view: ClusterView, sent: SentModes) -> bool:
    """Tell whether BGP advertises encapsulated routes, or any node may send what no pool asks for."""
    asked = pool_modes(view)
    return (
        any(pool.spec.encapsulation != "none" and pool.spec.distribution == "bgp" for pool in view.pools.values())
        or not view.nodes.indexed("sends") <= asked
        or any(not modes <= asked | {"none"} for modes in sent.values())
    )


def _neighbours_in_address(view: ClusterView, node: Node | None) -> frozenset[str]:
    """Return the nodes that say that they have an address of this one: an entry of one may be the other's."""
    addresses = node.status.addresses if node else ()
    return frozenset[str]().union(*(view.nodes.names("address", entry.address) for entry in addresses))
