"""Informs an agent of the cluster: every change of a kind once, in order, many at a time where many come.

Each kind has an informer of its own, and there is no order among kinds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import structlog

from podway.agent.state import NodeState
from podway.api.checked import RejectedObject
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import VIEWED, ClusterView
from podway.errors import ObjectDamaged, StoreError
from podway.store.base import Event, Listing, Store
from podway.store.informer import Informer

log = structlog.get_logger(__name__)


class _Queued(NamedTuple):
    kind: type[Resource]
    one: Event | Listing[Resource]


class ClusterInformer:
    """Follows a store. `problem` says in words why it cannot be reached, and is empty if it can.

    `versions` are those from which kinds are followed, by the kind's name: others are listed first. `take` is
    given each newer view of the cluster, with the changes that led to it; `found` is called when the store is
    there again.
    """

    def __init__(
        self,
        store: Store,
        state: NodeState,
        versions: Mapping[str, str],
        *,
        take: Callable[[ClusterView, tuple[Change[Any], ...]], Awaitable[None]],
        found: Callable[[], None],
    ) -> None:
        self._store = store
        self._state = state
        self._take = take
        self._found = found
        self._queue: list[_Queued] = []
        self._arrived = asyncio.Event()
        self._problems: dict[str, str] = {}
        """Why the store cannot be asked, by kind; by the empty name what others than informers found."""
        self._informers = [
            Informer(
                store,
                kind,
                version=versions.get(kind.KIND),
                hear=partial(self._enqueue, kind),
                lost=partial(self.lost, kind=kind.KIND),
                reached=partial(self.reached, kind.KIND),
            )
            for kind in VIEWED
        ]

    @property
    def problem(self) -> str:
        """Why the store cannot be reached, in words; empty if it can."""
        return next(iter(self._problems.values()), "")

    async def run(self) -> None:
        """Follow for ever."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers:
                tasks.create_task(informer.run())
            tasks.create_task(self._deliver())

    def lost(self, error: StoreError, *, kind: str = "") -> None:
        """Note that the store cannot be reached; an object that is rejected is none of its faults."""
        if isinstance(error, ObjectDamaged):
            log.debug("an object that is rejected was asked for", problem=error.message)
            return
        if error.message not in self._problems.values():
            log.error(
                "store lost: pods come and go all the same, changes of other nodes wait", problem=error.message
            )
        self._problems[kind] = error.message

    def reached(self, kind: str = "") -> None:
        """Note that the store can be reached, for a kind or for what others than informers ask."""
        if not self._problems:
            return
        self._problems.pop(kind, None)
        if not self._problems.keys() - {""}:  # whoever else found it away tries again
            log.info("store found again")
            self._problems.clear()
            self._found()

    def _enqueue(self, kind: type[Resource], one: Event | Listing[Resource]) -> None:
        self._queue.append(_Queued(kind, one))
        self._arrived.set()

    async def _deliver(self) -> None:
        """Hand on what was queued. What arrives while that is taken in makes one next view, not many."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            queued, self._queue = self._queue, []
            view = self._state.view
            changes: list[Change[Any]] = []
            for kind, one in queued:
                if isinstance(one, Listing):
                    newer = view.relisted(kind, one.items, one.rejected)
                    changes += view.changes_to(newer)
                    view = newer
                elif isinstance(one.object, RejectedObject) and one.type != "deleted":
                    view = view.without(one.object)
                else:
                    change = view.change(one.object, deleted=one.type == "deleted")
                    view = view.after(change)
                    changes.append(change)
            for name in view.rejected.keys() - self._state.view.rejected.keys():
                log.error("an object is rejected, and its last good state stays", problem=str(view.rejected[name]))
            await self._take(view, tuple(changes))
