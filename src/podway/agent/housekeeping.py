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
        self._orphaned_since: float | None = None
        """Since when there are blocks of nodes that are not registered."""

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
        state = self._state
        owners = {block.spec.node for block in state.view.blocks.values()}
        if owners <= state.view.registered:
            self._orphaned_since = None
        elif self._orphaned_since is None:
            self._orphaned_since = state.now()
        try:
            await self._blocks.give_back(leaving)
            if self._orphaned_since is not None:
                patience = state.now() - self._orphaned_since
                await self._membership.give_back_blocks_of_removed_nodes(state.view, patience)
        except StoreError as error:
            self._contact.lost(error)
