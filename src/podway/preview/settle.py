"""What the agents make of a cluster's objects by themselves once they have heard of a change. Pure.

A new pool changes no node's kernel by itself: every agent claims a block of it. And a node sends in another mode
only once it and the others have said so. A preview that stopped before that would say that nothing happens.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from podway.api.addresses import Network
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import ACCEPTS, SENDS, Node
from podway.api.lease import Lease
from podway.api.meta import Metadata
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.errors import PoolExhausted
from podway.ipam.addresses import BlockUse
from podway.ipam.blocks import FreeBlocks, capacity
from podway.ipam.ranges import given, given_range
from podway.ipam.selection import pools_for_node, wants_another
from podway.plan.fabric import pool_modes, possible_modes
from podway.plan.path import Site


class Settled(NamedTuple):
    """A view with the agents' claims and returns in it, and with what they say of the modes that they send.

    `unserved` are the nodes that want a block of a pool that has none left: (node, pool).
    """

    view: ClusterView
    claimed: tuple[AddressBlock, ...]
    returned: tuple[AddressBlock, ...]
    unserved: tuple[tuple[str, str], ...]


def settle(view: ClusterView, sites: Mapping[str, Site]) -> Settled:
    """Let every node of a view claim the blocks that it lacks, and the blocks that nobody needs return.

    Nodes claim in the order of their names: which block a node really gets is decided when it claims. Blocks
    return that belong to no node, and empty ones of pools that no longer serve their node; never those of a node
    without a site, whose leases are not known.
    """
    claimed: list[AddressBlock] = []
    unserved: list[tuple[str, str]] = []
    taken = [block.network for block in view.blocks.values()]
    free = {pool.metadata.name: FreeBlocks(pool.network, pool.block_prefix, taken) for pool in view.pools.values()}
    for node in sorted(view.nodes):
        for pool in pools_for_node(view.pools.values(), view.labels_of_node(node)):
            if given(pool):
                network = _given(view, node, pool)
                if network is None:
                    unserved.append((node, pool.metadata.name))
                elif network not in taken:
                    claimed.append(claim_of(network, pool, node))
                continue
            if not wants_another(pool, _uses(view, node, pool, sites.get(node, Site()).leases)):
                continue
            network = free[pool.metadata.name].take(node)
            if network is None:
                unserved.append((node, pool.metadata.name))
            else:
                claimed.append(claim_of(network, pool, node))
    returned = tuple(block for block in view.blocks.values() if _returns(view, block, sites))
    changes = (*(Change.of(block, None) for block in returned), *(Change.of(None, block) for block in claimed))
    return Settled(agreed(view.after(*changes)), tuple(claimed), returned, tuple(unserved))


def agreed(view: ClusterView) -> ClusterView:
    """Return a view in which all nodes send and accept the encapsulations that pools ask for, and no others."""
    asked = pool_modes(view)
    changes: list[Change[Node]] = []
    for node in view.nodes.values():
        modes = asked & possible_modes(node.internal_addresses)
        if node.accepts != modes or node.sends != modes:
            words = ",".join(sorted(modes))
            annotations = {**node.metadata.annotations, ACCEPTS: words, SENDS: words}
            metadata = msgspec.structs.replace(node.metadata, annotations=annotations)
            changes.append(Change.of(node, msgspec.structs.replace(node, metadata=metadata)))
    return view.after(*changes)


def _given(view: ClusterView, node: str, pool: IPPool) -> Network | None:
    try:
        return given_range(pool, node, view.nodes.get(node))
    except PoolExhausted:
        return None


def claim_of(network: Network, pool: IPPool, node: str) -> AddressBlock:
    """Return the object by which a node owns a block."""
    return AddressBlock(
        metadata=Metadata(name=block_name(network)),
        spec=AddressBlockSpec(cidr=str(network), pool=pool.metadata.name, node=node),
    )


def _uses(view: ClusterView, node: str, pool: IPPool, leases: Sequence[Lease]) -> tuple[BlockUse, ...]:
    return tuple(
        BlockUse(
            block.network,
            pool.metadata.name,
            leased=_leased(block, leases),
            cooling=0,
            capacity=capacity(block.network, pool.excluded_networks),
        )
        for block in view.blocks_of(node)
        if block.spec.pool == pool.metadata.name
    )


def _returns(view: ClusterView, block: AddressBlock, sites: Mapping[str, Site]) -> bool:
    node = block.spec.node
    if node not in view.nodes:
        return True
    pool = view.pools.get(block.spec.pool)
    serving = pools_for_node([pool] if pool else [], view.labels_of_node(node))
    kept = any(pool.spec.namespace_selector is None for pool in serving)
    return not kept and node in sites and not _leased(block, sites[node].leases)


def _leased(block: AddressBlock, leases: Sequence[Lease]) -> int:
    return sum(address in block.network for lease in leases for address in lease.addresses)
