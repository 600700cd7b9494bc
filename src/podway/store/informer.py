"""Following one kind for ever: list it, watch it from there, take the watch up again, list anew where one must."""

import asyncio
import time
from collections.abc import Callable

from podway.api.resource import Resource
from podway.errors import StoreError, VersionExpired
from podway.store.base import Event, Listing, Store

RETRY = 1.0
"""Seconds between attempts to reach a store that is away, and between watches that end as soon as they begin."""


class Informer:
    """Tells every change of one kind, in order.

    `hear` is given each change, and a listing where the kind had to be listed: it takes the place of all that was
    heard of the kind, which holds until then. `lost` is told why the store cannot be asked, `reached` that it
    could be. `version` is that of a listing that is known already; None lists first.
    """

    def __init__(
        self,
        store: Store,
        kind: type[Resource],
        *,
        version: str | None,
        hear: Callable[[Event | Listing[Resource]], None],
        lost: Callable[[StoreError], None],
        reached: Callable[[], None],
    ) -> None:
        self._store = store
        self._kind = kind
        self._version = version
        self._hear = hear
        self._lost = lost
        self._reached = reached

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            listed, began = self._version is None, time.monotonic()
            try:
                await self._follow()
            except VersionExpired:
                self._version = None
                if listed:  # a listing has not helped: say, a store that is damaged just there
                    await asyncio.sleep(RETRY)
            except StoreError as error:
                self._lost(error)
                await asyncio.sleep(RETRY)
            else:
                if time.monotonic() - began < RETRY:
                    await asyncio.sleep(RETRY)

    async def _follow(self) -> None:
        """List the kind unless its version is known, and watch it until the watch ends. Raises StoreError."""
        if self._version is None:
            listing = await self._store.list(self._kind)
            self._hear(listing)
            self._reached()
            self._version = listing.version
        async for one in self._store.watch(self._kind, self._version):
            self._reached()
            if isinstance(one, Event):
                self._hear(one)
            self._version = one.version
