"""Keeps this node registered: written anew when its addresses change, when it was removed, and now and then."""

import asyncio

from podway.agent.contact import StoreContact
from podway.agent.membership import Membership
from podway.errors import StoreError
from podway.reconcile.state import NodeState


class Registration:
    """Writes the node's object. `interval` is in seconds."""

    def __init__(self, membership: Membership, state: NodeState, contact: StoreContact, interval: float) -> None:
        self._membership = membership
        self._state = state
        self._contact = contact
        self._interval = interval

    async def renew(self) -> None:
        """Write it now, if the store is there. Raises NameTaken: another agent has the name."""
        try:
            await self._membership.register(self._state.uplink.addresses)
            self._contact.reached()
        except StoreError as error:
            self._contact.lost(error)

    async def run(self) -> None:
        """Write it now and then, for ever."""
        while True:
            await asyncio.sleep(self._interval)
            await self.renew()
