"""Informs an agent of the cluster: every change of a kind once, in order, many at a time where many come.

Each kind has an informer of its own, and there is no order among kinds. Pods and policies, of which a cluster may
have very many, are followed only while NetworkConfig has policies enforced, and Services and their endpoints only
while it has them served.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

import structlog

from podway.agent.cluster_handler import ClusterHandler
from podway.agent.contact import StoreContact
from podway.api.checked import RejectedObject
from podway.api.resource import Key, Resource, key
from podway.cluster.change import Change
from podway.cluster.setting_aside import RANGED, consistent, needs_a_look
from podway.cluster.view import OPTIONAL, PLANNED, ClusterView
from podway.errors import StoreError
from podway.reconcile.state import NodeState
from podway.reconcile.steps import RightOfWay
from podway.store.base import Event, Everything, Listing, Store, list_all
from podway.store.informer import Informer

log = structlog.get_logger(__name__)

CATCHING_UP = 10.0
"""Seconds for the store to tell one who starts of what he has written; then he lists anew."""

PAUSE = 0.2
"""Seconds after a watch that told too little, before the next one."""

TOGETHER = 0.02
"""Seconds after a delivery for which changes are gathered: each costs the loop more than a change in it does."""


class _Queued(NamedTuple):
    kind: type[Resource]
    one: Event | Listing[Resource]


async def first_view(
    store: Store,
    former: ClusterView | None = None,
    listing: Everything | None = None,
    written: Collection[Resource] = (),
) -> tuple[ClusterView, Mapping[str, str]]:
    """List what has to be followed; return the view of it, and the versions from which to follow.

    `former` knows the last good state of what is rejected. Who has listed PLANNED already gives the `listing`, and
    what was `written` since then, as the store answered: the view has that, too, and no kind is listed twice.
    Raises StoreError.
    """
    if listing is None:
        listing, written = await list_all(store, PLANNED), ()
    try:
        async with asyncio.timeout(CATCHING_UP):
            events, versions = await _told_since(store, listing, written)
    except (StoreError, TimeoutError) as error:  # listing tells whether it can be asked at all
        problem = error.message if isinstance(error, StoreError) else f"not told within {CATCHING_UP:g} s"
        log.info("what was written at the start is not told: the cluster is listed again", problem=problem)
        return await first_view(store, former)
    view = _after(ClusterView.of(listing.items, rejected=listing.rejected, former=former), events)
    followed = view.followed
    if not followed:
        return consistent(view.unfollowed(), former), versions
    more = await list_all(store, followed)
    items, rejected = (*listing.items, *more.items), (*listing.rejected, *more.rejected)
    view = _after(ClusterView.of(items, rejected=rejected, former=former), events)
    unfollowed = set(OPTIONAL).difference(followed)
    return consistent(view.unfollowed(unfollowed), former), {**versions, **more.versions}


async def _told_since(
    store: Store, listing: Everything, written: Collection[Resource]
) -> tuple[Sequence[Event], Mapping[str, str]]:
    """Watch until what was written after a listing is told; return all that was told, and the versions after it.

    Raises StoreError.
    """
    listed = set(map(_state, listing.items))
    missing = {_state(obj): type(obj) for obj in written if _state(obj) not in listed}
    events, versions = [], dict(listing.versions)
    while missing:
        kind = next(iter(missing.values()))
        async with aclosing(store.watch(kind, versions[kind.KIND])) as watch:
            async for one in watch:
                versions[kind.KIND] = one.version
                if isinstance(one, Event):
                    events.append(one)
                    if isinstance(one.object, Resource):
                        missing.pop(_state(one.object), None)
                if kind not in missing.values():
                    break
            else:  # it ended by itself, and the next one may at once
                await asyncio.sleep(PAUSE)
    return events, versions


def _state(obj: Resource) -> tuple[Key, str]:
    """Return what names one state of one object."""
    return key(obj), obj.metadata.resource_version


def _after(view: ClusterView, events: Iterable[Event]) -> ClusterView:
    for event in events:
        if event.type == "deleted" or isinstance(event.object, Resource):
            view = view.after(view.change(event.object, deleted=event.type == "deleted"))
        else:
            view = view.without(event.object)
    return view


class ClusterInformer:
    """Follows a store.

    `versions` are those from which kinds are followed, by the kind's name: others are listed first. `handler` is
    given each newer view of the cluster, with the changes that led to it. Requests that have the right of `way` go
    before changes that follow others: an ADD takes a dozen turns of the loop, and would meet many of these.
    """

    def __init__(
        self,
        store: Store,
        state: NodeState,
        contact: StoreContact,
        versions: Mapping[str, str],
        handler: ClusterHandler,
        way: RightOfWay,
    ) -> None:
        self._store = store
        self._way = way
        self._state = state
        self._contact = contact
        self._handler = handler
        self._queue: list[_Queued] = []
        self._arrived = asyncio.Event()
        self._informers = [self._informer(kind, versions.get(kind.KIND)) for kind in PLANNED]
        self._optional = {
            kind: self._informer(kind, versions[kind.KIND]) for kind in OPTIONAL if kind.KIND in versions
        }
        """Those that know where to begin: a later switch begins with a listing."""
        self._following: dict[type[Resource], asyncio.Task[None]] = {}
        """Those at work that are followed only while settings ask for it."""

    def _informer(self, kind: type[Resource], version: str | None) -> Informer:
        return Informer(
            self._store,
            kind,
            version=version,
            hear=partial(self._enqueue, kind),
            lost=partial(self._contact.lost, kind=kind.KIND),
            reached=partial(self._contact.reached, kind.KIND),
        )

    async def run(self) -> None:
        """Follow for ever."""
        self._following = {}  # a task that failed took the former ones along
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers:
                tasks.create_task(informer.run())
            self._follow_settings(tasks)
            tasks.create_task(self._deliver(tasks))

    def _follow_settings(self, tasks: asyncio.TaskGroup) -> None:
        """Begin or end to follow what only matters with certain settings, as the view asks."""
        state = self._state
        wanted = state.view.followed
        for kind in wanted:
            if kind not in self._following:
                informer = self._optional.setdefault(kind, self._informer(kind, None))
                self._following[kind] = tasks.create_task(informer.run())
        ended = [kind for kind in self._following if kind not in wanted]
        for kind in ended:
            self._following.pop(kind).cancel()
            self._contact.reached(kind.KIND)  # whether it could be asked for them matters to nobody
        unwanted = [kind for kind in OPTIONAL if kind not in wanted]
        for kind in unwanted:
            self._optional.pop(kind, None)
        self._queue = [each for each in self._queue if each.kind not in unwanted]
        state.view = state.view.unfollowed(unwanted)

    def _enqueue(self, kind: type[Resource], one: Event | Listing[Resource]) -> None:
        self._queue.append(_Queued(kind, one))
        self._arrived.set()

    async def _deliver(self, tasks: asyncio.TaskGroup) -> None:
        """Hand on what was queued: the first change after a pause at once, those that follow it together."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            queued, self._queue = self._queue, []
            try:
                await self._hand_on(queued)
            except BaseException:
                # Informers go on behind what they have told: what nobody took is handed on again.
                self._queue = queued + self._queue
                self._arrived.set()
                raise
            self._follow_settings(tasks)
            self._note_listed(each.kind for each in queued if isinstance(each.one, Listing))
            await asyncio.sleep(TOGETHER)
            await self._way.give()

    def _note_listed(self, kinds: Iterable[type[Resource]]) -> None:
        """Note what the store has told of since an agent started that knew it only from a file."""
        state = self._state
        if state.recalled:
            followed = {kind.KIND for kind in (*PLANNED, *state.view.followed)}
            state.recalled = (state.recalled & followed) - {kind.KIND for kind in kinds}
            if not state.recalled:
                self._handler.all_listed()

    async def _hand_on(self, queued: Sequence[_Queued]) -> None:
        view = self._state.view
        changes: list[Change[Any]] = []
        latest: dict[Key, Change[Any]] = {}  # of several changes of one object that follow each other, one is made
        for kind, one in queued:
            if isinstance(one, Event) and (one.type == "deleted" or isinstance(one.object, Resource)):
                change = view.change(one.object, deleted=one.type == "deleted")
                latest[change.key] = change
                continue
            changes += latest.values()
            view, latest = view.after(*latest.values()), {}
            if isinstance(one, Listing):
                newer = view.relisted(kind, one.items, one.rejected)
                changes += view.changes_to(newer)
                view = newer
            elif isinstance(one.object, RejectedObject):
                view = view.without(one.object)
        view = view.after(*latest.values())
        changes += latest.values()
        if needs_a_look(view, tuple(changes)):
            view = consistent(view, self._state.view)
            kept = [change for change in changes if change.kind not in RANGED]
            changes = [*kept, *self._state.view.changes_to(view, RANGED)]
        for name in view.rejected.keys() - self._state.view.rejected.keys():
            log.error("an object is rejected, and its last good state stays", problem=str(view.rejected[name]))
        await self._handler.take(view, tuple(changes))
