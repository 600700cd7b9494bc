"""Blocks for nodes, agreed in the store.

A claim is the creation of an AddressBlock whose name is its CIDR: the store lets only one creation of a name
succeed, so two nodes can never own one block. Giving a block back is its deletion, if nobody changed it
since.
"""

import contextlib
import random
import time
from collections.abc import Iterable

from podway.api.addresses import Network
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name, block_named
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.meta import Metadata
from podway.errors import AddressUnavailable, AlreadyExists, Conflict, NotFound, ObjectDamaged, PoolExhausted
from podway.ipam.blocks import FreeBlocks, count_blocks
from podway.store.base import Store
from podway.store.leases import lease_of


async def claim(store: Store, pool: IPPool, node: str, *, wanted: Network | None = None) -> AddressBlock:
    """Claim a free block of a pool for a node: `wanted`, or the one that FreeBlocks says.

    When many nodes claim at once, each that loses a race looks among a few more blocks, so that they spread
    out. Raises PoolExhausted if no block of the pool is free, AddressUnavailable if `wanted` is another
    node's.
    """
    window = 1
    while True:
        listing = await store.list(AddressBlock)
        blocks = listing.items
        taken = [block.network for block in blocks]
        # A claim that is rejected stands all the same: its name is its block.
        rejected = [block for one in listing.rejected if (block := block_named(one.key[2])) is not None]
        if wanted is None:
            free = FreeBlocks(pool.network, pool.block_prefix, (*taken, *rejected))
            candidates = [block for _ in range(window) if (block := free.take(node)) is not None]
        else:
            _require_free(wanted, blocks)
            unfit = next((one for one in listing.rejected if one.key[2] == block_name(wanted)), None)
            if unfit is not None:
                raise unfit.error
            candidates = [wanted]
        if not candidates:
            raise PoolExhausted(_exhausted(pool, taken), hint=exhausted_hint(pool))
        chosen = random.choice(candidates)
        try:
            return await store.create(
                AddressBlock(
                    metadata=Metadata(name=block_name(chosen)),
                    spec=AddressBlockSpec(cidr=str(chosen), pool=pool.metadata.name, node=node),
                )
            )
        except AlreadyExists:
            window = min(window * 2, 64)


async def give_back(store: Store, block: AddressBlock) -> None:
    """Delete a claim, if it is still what was read. Raises Conflict if not; a missing one is fine."""
    try:
        await store.delete(AddressBlock, block.metadata.name, resource_version=block.metadata.resource_version)
    except NotFound:
        return


async def give_back_all_of(store: Store, node: str) -> tuple[AddressBlock, ...] | None:
    """Delete every claim of a node that is no longer part of the cluster, and its lease; return the claims.

    Does nothing, and returns None, for a node that is (again) registered when it looks, or whose agent gave a
    sign of life lately: that registers it again, and goes on by its blocks. What a node claims that comes back
    meanwhile stays.
    """
    if not await _left(store, node):
        return None
    claims = [block for block in (await store.list(AddressBlock)).items if block.spec.node == node]
    returned = []
    for block in claims:
        if not await _left(store, node):
            break
        with contextlib.suppress(Conflict):  # somebody wrote to it since
            await give_back(store, block)
            returned.append(block)
    return tuple(returned)


async def _left(store: Store, node: str) -> bool:
    """Tell whether a node is gone, its agent, too; its lease is then deleted.

    An agent renews its lease before it writes its Node, so they are looked at the other way round.
    """
    try:
        await store.get(Node, node)
    except NotFound:
        lease = await lease_of(store, node)
    except ObjectDamaged:
        return False
    else:
        return False
    if lease is None:
        return True
    if lease.holds(time.time()):
        return False
    try:
        await store.delete(NodeLease, node, namespace=LEASES, resource_version=lease.metadata.resource_version)
    except Conflict:
        return False  # it was renewed just now
    except NotFound:
        pass  # somebody else does the same
    return True


def _require_free(wanted: Network, blocks: Iterable[AddressBlock]) -> None:
    for block in blocks:
        if block.network.version == wanted.version and block.network.overlaps(wanted):
            raise AddressUnavailable(
                f"block {wanted} is not free: {block.spec.cidr} belongs to node {block.spec.node}",
                hint=f"run the pod on {block.spec.node}, or choose another address; see `podway get blocks`",
            )


def _exhausted(pool: IPPool, taken: list[Network]) -> str:
    total = count_blocks(pool.network, pool.block_prefix)
    used = sum(1 for block in taken if block.version == pool.network.version and block.overlaps(pool.network))
    return (
        f"IPPool/{pool.metadata.name} ({pool.spec.cidr}) has no free block: "
        f"{used} of its {total} blocks of /{pool.block_prefix} are claimed"
    )


def exhausted_hint(pool: IPPool) -> str:
    """Return what to do when a pool is full."""
    return (
        f"add another {pool.family.label} IPPool with `podway apply -f`, or remove nodes or pods that are "
        "not needed; `podway get blocks` shows who owns what"
    )
