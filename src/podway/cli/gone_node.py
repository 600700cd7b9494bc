"""What is said of a Node that is deleted: before, if its agent lives, and what became of it."""

import asyncio
import contextlib
import math
import time
from typing import NamedTuple

from podway.api.columns import age
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import SILENT_AFTER, Node
from podway.api.resource import key, subject
from podway.errors import NotFound
from podway.store.base import Store
from podway.store.leases import lease_of

BACK_SECONDS = 5.0
"""How long is looked whether a deleted node comes back: its agent hears of it in milliseconds."""


class Before(NamedTuple):
    """A node that is to be deleted: whether its agent lived a moment ago, and the CIDRs of its blocks."""

    alive: bool
    blocks: tuple[str, ...]


async def silence(store: Store, node: Node) -> float:
    """Return for how many seconds nothing was heard of a node's agent: infinity if it never was."""
    lease = await lease_of(store, node.metadata.name)
    alive = node.alive_at(lease.renewed if lease else None)
    return math.inf if alive is None else time.time() - alive


async def warning(store: Store, node: Node, *, lab: bool) -> str:
    """Say what will happen when a node is deleted whose agent was alive a moment ago; nothing if it was not."""
    silent = await silence(store, node)
    if silent >= SILENT_AFTER:
        return ""
    name = node.metadata.name
    stop = f"podway lab node rm {name}" if lab else "systemctl stop podway-agent on it"
    return (
        f"{subject(key(node))}: its agent was alive {age(silent)} ago. If it still runs it registers the node "
        f"again at once, without the labels and settings that it had. To take the node out, stop the agent first: "
        f"{stop}"
    )


async def blocks_of(store: Store, node: Node) -> list[str]:
    """Return the CIDRs of the blocks that a node owns."""
    return [one.spec.cidr for one in (await store.list(AddressBlock)).items if one.spec.node == node.metadata.name]


async def before_deletion(store: Store, node: Node) -> Before:
    """Return what is to be known of a node before it is deleted, to tell afterwards what became of it."""
    return Before(await silence(store, node) < SILENT_AFTER, tuple(await blocks_of(store, node)))


async def aftermath(store: Store, node: Node, before: Before) -> str:
    """Return what became of a deleted node, and of its blocks."""
    owned = before.blocks
    end = time.monotonic() + (BACK_SECONDS if before.alive else 0)
    while True:
        with contextlib.suppress(NotFound):
            await store.get(Node, node.metadata.name)
            return "its agent runs, and has registered it again"
        if time.monotonic() >= end:
            break
        await asyncio.sleep(0.1)
    if not owned:
        return "it had no blocks"
    left = await blocks_of(store, node)
    when = (
        "return to their pools within seconds: another node's agent sees to it"
        if left
        else "are back in their pools"
    )
    return f"its blocks ({', '.join(owned)}) {when}"
