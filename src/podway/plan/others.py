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
from podway.plan.guard import element_fields, node_elements, takes_tunnels
from podway.plan.nat import nat_elements, nat_families
from podway.plan.objects import NodePlan
from podway.plan.overlays import held_modes, overlay_entries
from podway.plan.remote import distributed_by_store, distributed_routes
from podway.plan.uplink import Uplink


def plan_others(
    view: ClusterView,
    node: str,
    uplink: Uplink,
    transitional: Collection[Network] = (),
    lingering: Collection[str] = (),
    *,
    only: Iterable[str],
) -> dict[str, NodePlan]:
    """Return what each of the other nodes of these names makes a node hold.

    `transitional` are blocks that get a route of ours for a while though BGP advertises them; `lingering` names
    pools in which routes of BIRD's still stand though the store distributes them.
    """
    held = held_modes(view, node, uplink)  # once: it is asked of thousands of nodes
    taken = takes_tunnels(view, node)
    by_store = distributed_by_store(view)
    families = nat_families(view)
    asked = bool(held or by_store or transitional)
    found: dict[str, NodePlan] = {}
    for name in only:
        there, blocks = view.nodes.get(name), view.blocks_of(name) if asked else ()
        entries = overlay_entries(held, there, blocks)
        routes = [
            route
            for block in blocks
            if block.spec.pool in by_store or block.network in transitional
            for route in distributed_routes(
                view,
                node,
                uplink,
                block,
                guarded=block.network in transitional or block.spec.pool in lingering,
            )
        ]
        fields = element_fields(there.own_addresses if there else ())
        known = (*(node_elements(fields) if taken else ()), *nat_elements(fields, families))
        if known or routes:
            entries = msgspec.structs.replace(entries, elements=(*entries.elements, *known), routes=tuple(routes))
        found[name] = entries
    return found


def altered_nodes(after: ClusterView, changes: Iterable[Change[Any]]) -> frozenset[str]:
    """Return the nodes whose part in another's plan changes may have altered.

    Of changes of nodes and blocks: what pools, settings and a node's own object alter is its ground.
    """
    names: set[str] = set()
    for change in changes:
        if change.kind == Node.KIND and alters_plans(change):
            names.add(change.key[2])
            names |= _neighbours_in_address(after, change.old) | _neighbours_in_address(after, change.new)
        elif change.kind == AddressBlock.KIND and alters_plans(change):
            names |= {block.spec.node for block in (change.old, change.new) if block is not None}
    return frozenset(names)


def _neighbours_in_address(view: ClusterView, node: Node | None) -> frozenset[str]:
    """Return the nodes that say that they have an address of this one: an entry of one may be the other's."""
    addresses = node.status.addresses if node else ()
    return frozenset[str]().union(*(view.nodes.names("address", entry.address) for entry in addresses))
