"""Informers (podway.store.informer): whatever happens to a watch, what is known comes to be what is stored."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.meta import Metadata
from podway.errors import AlreadyExists, Conflict, NotFound, StoreError, StoreUnavailable, VersionExpired
from podway.store import informer as informers
from podway.store.base import Bookmark, Event, Listing
from podway.store.informer import Informer
from podway.store.memory import MemoryCluster, MemoryStore
from tests.patience import PATIENCE
from tests.store.conftest import fact, unversioned

NAMES = st.sampled_from(["a", "b", "c"])
SPACES = {Node: "", Pod: "default"}
KINDS = st.sampled_from(list(SPACES))


def made(kind: Any, name: str, **labels: str) -> Any:
    return kind(metadata=Metadata(name=name, namespace=SPACES[kind], labels=labels))


class Known:
    """What one knows of a kind who hears what an informer tells."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.listings = 0
        self.lost: list[StoreError] = []
        self.told = asyncio.Event()

    def hear(self, one: Event | Listing[Any]) -> None:
        if isinstance(one, Listing):
            self.objects = {obj.metadata.name: obj for obj in one.items}
            self.listings += 1
            self.told.set()
            return
        obj = fact(one)
        if one.type == "deleted":
            assert unversioned(self.objects.pop(obj.metadata.name)) == unversioned(obj)
        else:
            assert (one.type == "added") == (obj.metadata.name not in self.objects)
            self.objects[obj.metadata.name] = obj
        self.told.set()

    def lose(self, error: StoreError) -> None:
        self.lost.append(error)
        self.told.set()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await self.told.wait()
                self.told.clear()


class Machine(RuleBasedStateMachine):
    """Two users write objects of two kinds; of each kind a watch is read, dropped, taken up again and cut off."""

    implementation: Any

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = TemporaryDirectory()
        self.cluster = self.implementation(Path(self.directory.name))
        self.stack = contextlib.AsyncExitStack()
        self.cluster.clean()
        opened = [self.run(self.stack.enter_async_context(self.cluster.open())) for _ in range(2)]
        self.writers, self.reader = opened, opened[0]
        self.stored: dict[tuple[Any, str], Any] = {}
        self.versions: dict[Any, str] = {}
        self.known: dict[Any, dict[str, Any]] = {kind: {} for kind in SPACES}
        self.unread = dict.fromkeys(SPACES, 0)
        self.gone = dict.fromkeys(SPACES, False)
        for kind in SPACES:
            self.list(kind)

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
        self.directory.cleanup()

    def changed(self, kind: Any) -> None:
        self.unread[kind] += 1

    @rule(kind=KINDS, name=NAMES, who=st.integers(0, 1))
    def create(self, kind: Any, name: str, who: int) -> None:
        work = self.writers[who].create(made(kind, name))
        if (kind, name) in self.stored:
            with pytest.raises(AlreadyExists):
                self.run(work)
        else:
            self.stored[kind, name] = self.run(work)
            self.changed(kind)

    @rule(kind=KINDS, name=NAMES, value=NAMES, who=st.integers(0, 1), stale=st.booleans())
    def update(self, kind: Any, name: str, value: str, who: int, stale: bool) -> None:
        old = self.stored.get((kind, name))
        metadata = msgspec.structs.replace(old.metadata if old else made(kind, name).metadata, labels={"x": value})
        if stale:
            metadata = msgspec.structs.replace(metadata, resource_version="stale")
        work = self.writers[who].update(msgspec.structs.replace(old or made(kind, name), metadata=metadata))
        if old is None or stale:
            with pytest.raises(NotFound if old is None else Conflict):
                self.run(work)
            return
        new = self.stored[kind, name] = self.run(work)
        assert new.metadata.labels == {"x": value}
        assert (new.metadata.resource_version != old.metadata.resource_version) == (new != old)
        if new != old:
            self.changed(kind)

    @rule(kind=KINDS, name=NAMES, value=st.none() | NAMES, who=st.integers(0, 1), stale=st.none() | st.booleans())
    def patch(self, kind: Any, name: str, value: str | None, who: int, stale: bool | None) -> None:
        """Patch a label: whatever version the object has (None), only if it has a stale one, or its own."""
        old = self.stored.get((kind, name))
        version = "" if stale is None else "stale" if stale or old is None else old.metadata.resource_version
        change = {"metadata": {"labels": {"x": value}}}
        work = self.writers[who].patch(kind, name, change, namespace=SPACES[kind], resource_version=version)
        if old is None or stale:
            with pytest.raises(NotFound if old is None else Conflict):
                self.run(work)
            return
        new = self.stored[kind, name] = self.run(work)
        assert new.metadata.labels.get("x") == value
        assert (new.metadata.resource_version != old.metadata.resource_version) == (new != old)
        if new != old:
            self.changed(kind)

    @rule(kind=KINDS, name=NAMES, who=st.integers(0, 1))
    def delete(self, kind: Any, name: str, who: int) -> None:
        work = self.writers[who].delete(kind, name, namespace=SPACES[kind])
        if (kind, name) not in self.stored:
            with pytest.raises(NotFound):
                self.run(work)
        else:
            self.run(work)
            del self.stored[kind, name]
            self.changed(kind)

    @rule(kind=KINDS)
    def list(self, kind: Any) -> None:
        """List a kind anew."""
        listing = self.run(self.reader.list(kind))
        self.known[kind] = {obj.metadata.name: obj for obj in listing.items}
        self.versions[kind], self.unread[kind], self.gone[kind] = listing.version, 0, False

    @rule(kind=KINDS, most=st.integers(1, 4))
    def watch(self, kind: Any, most: int) -> None:
        """Take a watch up again, read some changes of it, and drop it."""

        async def read() -> None:
            async with contextlib.aclosing(self.reader.watch(kind, self.versions[kind])) as watch:
                assert isinstance(await anext(watch), Bookmark)
                left = min(most, self.unread[kind])
                while left or self.gone[kind]:
                    event = await anext(watch)
                    if isinstance(event, Bookmark):
                        continue
                    # A pod is told as one that is about to go before it goes.
                    about_to_go = event.type == "modified" and fact(event).metadata.deletion_timestamp
                    left -= not about_to_go
                    name = fact(event).metadata.name
                    if event.type == "deleted":
                        assert unversioned(self.known[kind].pop(name)) == unversioned(fact(event))
                    else:
                        assert (event.type == "added") == (name not in self.known[kind])
                        self.known[kind][name] = event.object
                    self.versions[kind] = event.version

        if self.gone[kind]:
            with pytest.raises(VersionExpired):
                self.run(read())
            return
        reading = min(most, self.unread[kind])
        self.run(read())
        self.unread[kind] -= reading

    @precondition(lambda self: any(self.unread.values()))
    @rule(kind=KINDS)
    def forget(self, kind: Any) -> None:
        """Have the store forget what it can of the history of a kind: of the other one it keeps all, if it can."""
        for each in SPACES if self.cluster.together else (kind,):
            gone = self.cluster.forget(each, self.versions[each], self.unread[each])
            self.gone[each] = self.gone[each] or gone

    @invariant()
    def what_is_read_to_the_end_is_what_is_stored(self) -> None:
        for kind, known in self.known.items():
            if not self.unread[kind]:
                stored = {name: obj for (of, name), obj in self.stored.items() if of is kind}
                assert known == stored


def test_who_lists_and_watches_knows_what_is_stored(implementation: Any, request: pytest.FixtureRequest) -> None:
    examples = 15 if "kubernetes" in request.node.name else 40

    machine = type("Machine", (Machine,), {"implementation": staticmethod(implementation)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@contextlib.asynccontextmanager
async def following(store: Any, kind: Any) -> Any:
    known = Known()
    running = asyncio.create_task(
        Informer(store, kind, version=None, hear=known.hear, lost=known.lose, reached=lambda: None).run()
    )
    try:
        yield known
    finally:
        running.cancel()
        (ended,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


def test_a_watch_that_ends_is_taken_up_again_without_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informers, "RETRY", 0.01)
    cluster = MemoryCluster()
    store = MemoryStore(cluster)

    async def scenario() -> None:
        async with following(store, Node) as known:
            for number in range(5):
                await store.create(made(Node, f"n{number}"))
                cluster.end_watches()
                await store.create(made(Node, f"m{number}"))
            await known.until(lambda: len(known.objects) == 10)
            assert known.listings == 1

    asyncio.run(scenario())


class Away(MemoryStore):
    """A store that fails when it is told to."""

    problem: StoreError | None = None
    listing: asyncio.Event | None = None

    async def list(self, kind: Any, *, namespace: str | None = None) -> Any:
        if self.listing is not None:
            await self.listing.wait()
        if self.problem is not None:
            raise self.problem
        return await super().list(kind, namespace=namespace)

    async def watch(self, kind: Any, version: str) -> Any:
        if self.problem is not None:
            raise self.problem
        async for one in super().watch(kind, version):
            yield one


def test_what_is_known_holds_until_the_new_list_is_there_and_other_kinds_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(informers, "RETRY", 0.01)
    cluster = MemoryCluster()
    store = Away(cluster)

    async def scenario() -> None:
        await store.create(made(Node, "old"))
        async with following(store, Node) as spaces, following(store, Pod) as pods:
            await spaces.until(lambda: bool(spaces.objects))
            await pods.until(lambda: pods.listings == 1)
            store.listing = asyncio.Event()
            # None of these waits for anything, so no watch runs in between.
            await MemoryStore(cluster).delete(Node, "old")
            await store.create(made(Node, "new"))
            cluster.forget(Node)
            cluster.end_watches()
            await store.create(made(Pod, "web"))
            await pods.until(lambda: "web" in pods.objects)
            assert (set(spaces.objects), spaces.listings) == ({"old"}, 1)
            store.listing.set()
            await spaces.until(lambda: spaces.listings == 2)
            assert set(spaces.objects) == {"new"}
            assert pods.listings == 1

    asyncio.run(scenario())


def test_a_store_that_is_away_is_told_and_then_followed_from_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informers, "RETRY", 0.01)
    cluster = MemoryCluster()
    store = Away(cluster)

    async def scenario() -> None:
        async with following(store, Node) as known:
            await known.until(lambda: known.listings == 1)
            store.problem = StoreUnavailable("away")
            cluster.end_watches()
            await known.until(lambda: len(known.lost) == 3)
            await MemoryStore(cluster).create(made(Node, "meanwhile"))
            store.problem = None
            await known.until(lambda: "meanwhile" in known.objects)
            assert known.listings == 1

    asyncio.run(scenario())
