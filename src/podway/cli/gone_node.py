"""What is said of a Node that is deleted: before, if its agent lives, and what became of it."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from podway.api.columns import age
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import AGENT_SEEN, SILENT_AFTER, Node
from podway.api.resource import key, subject
from podway.errors import NotFound
from podway.store.base import Store

BACK_SECONDS = 5.0
"""How long is looked whether a deleted node comes back: its agent hears of it in milliseconds."""


def lives(node: Node) -> bool:
    """Tell whether a node's agent gave a sign of life a moment ago."""
    seen = node.metadata.annotations.get(AGENT_SEEN, "")
    return seen.isdecimal() and time.time() - int(seen) < SILENT_AFTER


def warning(node: Node, *, lab: bool) -> str:
    """Say what will happen when a node is deleted whose agent was alive a moment ago."""
    name = node.metadata.name
    seen = age(time.time() - int(node.metadata.annotations[AGENT_SEEN]))
    stop = f"podway lab node rm {name}" if lab else "systemctl stop podway-agent on it"
    return (
        f"{subject(key(node))}: its agent was alive {seen} ago. If it still runs it registers the node again "
        f"at once, without the labels and settings that it had. To take the node out, stop the agent first: {stop}"
    )


async def blocks_of(store: Store, node: Node) -> list[str]:
    """Return the CIDRs of the blocks that a node owns."""
    return [one.spec.cidr for one in (await store.list(AddressBlock)).items if one.spec.node == node.metadata.name]


async def aftermath(store: Store, node: Node, owned: Sequence[str]) -> str:
    """Return what became of a deleted node that owned these blocks, and of them."""
    end = time.monotonic() + (BACK_SECONDS if lives(node) else 0)
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
