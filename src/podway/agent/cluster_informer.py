"""Informs an agent of the cluster: every change of a kind once, in order, many at a time where many come.

Each kind has an informer of its own, and there is no order among kinds.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import structlog

from podway.agent.cluster_handler import ClusterHandler
from podway.agent.contact import StoreContact
from podway.api.checked import RejectedObject
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import VIEWED
from podway.reconcile.state import NodeState
from podway.store.base import Event, Listing, Store
from podway.store.informer import Informer

log = structlog.get_logger(__name__)


class _Queued(NamedTuple):
    kind: type[Resource]
    one: Event | Listing[Resource]


class ClusterInformer:
    """Follows a store.

    `versions` are those from which kinds are followed, by the kind's name: others are listed first. `handler` is
    given each newer view of the cluster, with the changes that led to it.
    """

    def __init__(
        self,
        store: Store,
        state: NodeState,
        contact: StoreContact,
        versions: Mapping[str, str],
        handler: ClusterHandler,
    ) -> None:
        self._state = state
        self._handler = handler
        self._queue: list[_Queued] = []
        self._arrived = asyncio.Event()
        self._informers = [
            Informer(
                store,
                kind,
                version=versions.get(kind.KIND),
                hear=partial(self._enqueue, kind),
                lost=partial(contact.lost, kind=kind.KIND),
                reached=partial(contact.reached, kind.KIND),
            )
            for kind in VIEWED
        ]

    async def run(self) -> None:
        """Follow for ever."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers:
                tasks.create_task(informer.run())
            tasks.create_task(self._deliver())

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
            await self._handler.take(view, tuple(changes))
