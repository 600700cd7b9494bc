"""What the cluster's store tells an agent: every change once, in order, many at a time where many come."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from podway.agent.state import NodeState
from podway.api.checked import SetAside
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.errors import ObjectDamaged, RevisionGone, StoreError
from podway.store.base import Event, Listing, Store

log = structlog.get_logger(__name__)

STORE_RETRY = 1.0
"""Seconds between attempts to reach a store that is away; pods come and go meanwhile."""


class News:
    """Follows a store. `problem` says in words why it cannot be reached, and is empty if it can.

    `take` is given each newer view of the cluster, with the changes that led to it;
    `found` is called when the store is there again.
    """

    def __init__(
        self,
        store: Store,
        state: NodeState,
        *,
        take: Callable[[ClusterView, tuple[Change[Any], ...]], Awaitable[None]],
        found: Callable[[], None],
    ) -> None:
        self._store = store
        self._state = state
        self._take = take
        self._found = found
        self._heard: list[Event | Listing[Resource]] = []
        self._arrived = asyncio.Event()
        self.problem = ""

    async def run(self) -> None:
        """Follow for ever; a store that is away or forgot our place is listed anew."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._tell())

    def lost(self, error: StoreError) -> None:
        """Note that the store cannot be reached; an object that is set aside is none of its faults."""
        if isinstance(error, ObjectDamaged):
            log.debug("an object that is set aside was asked for", problem=error.message)
            return
        if error.message != self.problem:
            log.error("store lost: pods come and go all the same, news of other nodes wait", problem=error.message)
        self.problem = error.message

    def reached(self) -> None:
        """Note that the store can be reached."""
        if self.problem:
            log.info("store found again")
            self._found()
        self.problem = ""

    async def _listen(self) -> None:
        revision, gone = self._state.view.revision, -1
        while True:
            try:
                async for event in self._store.watch(revision):
                    revision = event.revision
                    self._hear(event)
            except RevisionGone:
                if revision == gone:  # the listing has not helped: a store that is damaged just there
                    await asyncio.sleep(STORE_RETRY)
                gone = revision
            except StoreError as error:
                self.lost(error)
                await asyncio.sleep(STORE_RETRY)
            try:
                listing = await self._store.list_all()
            except StoreError as error:
                self.lost(error)
            else:
                self.reached()
                revision = listing.revision
                self._hear(listing)

    def _hear(self, one: Event | Listing[Resource]) -> None:
        self._heard.append(one)
        self._arrived.set()

    async def _tell(self) -> None:
        """Hand on what was heard. What arrives while that is taken in makes one next view, not many."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            heard, self._heard = self._heard, []
            view = self._state.view
            changes: list[Change[Any]] = []
            for one in heard:
                if isinstance(one, Listing):
                    newer = ClusterView.of(one.items, one.revision, aside=one.aside, former=view)
                    changes += view.changes_to(newer)
                    view = newer
                elif isinstance(one.object, SetAside) and one.type != "deleted":
                    view = view.without(one.object, revision=one.revision)
                else:
                    change = view.change(one.object, deleted=one.type == "deleted")
                    view = view.after(change, revision=one.revision)
                    changes.append(change)
            for name in view.aside.keys() - self._state.view.aside.keys():
                log.error("an object is set aside, and its last good state stays", problem=str(view.aside[name]))
            await self._take(view, tuple(changes))
