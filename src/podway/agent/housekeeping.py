"""What an agent looks at every few seconds, because nothing tells of it."""

import asyncio

from podway.agent.blocks import BlockKeeper
from podway.agent.contact import StoreContact
from podway.agent.membership import Membership
from podway.agent.routing import Routing
from podway.cni.server import CniServer
from podway.errors import StoreError
from podway.reconcile.state import NodeState

INTERVAL = 5.0
"""Seconds between looks."""


class Housekeeping:
    """Removes what was deleted while nobody served, and gives back idle blocks, and those of removed nodes."""

    def __init__(
        self,
        server: CniServer,
        state: NodeState,
        blocks: BlockKeeper,
        membership: Membership,
        routing: Routing,
        contact: StoreContact,
    ) -> None:
        self._server = server
        self._state = state
        self._blocks = blocks
        self._membership = membership
        self._routing = routing
        self._contact = contact
        self._gone: dict[str, float] = {}
        """The nodes that own blocks and are not registered, and since when they are seen so."""

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self._server.replay()
            await self._routing.reread_passwords()
            await self._return_blocks()

    async def _return_blocks(self) -> None:
        leaving = self._blocks.withdraw_idle()
        if self._blocks.starving:
            self._blocks.trigger()
        view, now = self._state.view, self._state.now()
        gone = {block.spec.node for block in view.blocks.values()} - view.registered
        self._gone = {node: self._gone.get(node, now) for node in gone}
        try:
            await self._blocks.give_back(leaving)
            for node, since in sorted(self._gone.items()):
                await self._membership.give_back_blocks_of_removed_node(node, view, now - since)
        except StoreError as error:
            self._contact.lost(error)
