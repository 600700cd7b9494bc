import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from podway.api.checked import RejectedObject
from podway.api.resource import Resource
from podway.store.base import Bookmark, Event, Store
from podway.store.memory import MemoryCluster, MemoryStore
from podway.store.sqlite import SqliteStore


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = SqliteStore(path)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened_in_memory(cluster: MemoryCluster) -> AsyncIterator[Store]:
    store = MemoryStore(cluster)
    try:
        yield store
    finally:
        await store.close()


class Sqlite:
    """A cluster in a file."""

    kept = 1
    """How many changes of a kind are kept when its history is forgotten."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "store.db"

    def open(self) -> AbstractAsyncContextManager[Store]:
        """Open another handle on it."""
        return opened(self._path)

    def forget(self, kind: type[Resource]) -> None:
        """Keep no history of a kind but its newest change, as pruning does."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.execute(
                "DELETE FROM changes WHERE kind = ?1"
                " AND revision < (SELECT max(revision) FROM changes WHERE kind = ?1)",
                (kind.KIND,),
            )

    def document(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        """Return what is stored of an object, whoever wrote it."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as connection:
            (body,) = connection.execute(
                "SELECT body FROM objects WHERE kind = ? AND namespace = ? AND name = ?",
                (kind.KIND, namespace, name),
            ).fetchone()
        return json.loads(body)


class Memory:
    """A cluster in memory."""

    kept = 0

    def __init__(self, directory: Path) -> None:
        self.cluster = MemoryCluster()

    def open(self) -> AbstractAsyncContextManager[Store]:
        """Open another handle on it."""
        return opened_in_memory(self.cluster)

    def forget(self, kind: type[Resource]) -> None:
        """Keep no history of a kind."""
        self.cluster.forget(kind)

    def document(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        """Return what is stored of an object, whoever wrote it."""
        return json.loads(self.cluster.bodies[kind.KIND, namespace, name])


# Every implementation of Store runs through test_conformance.py and test_following.py.
IMPLEMENTATIONS: dict[str, type[Sqlite] | type[Memory]] = {"sqlite": Sqlite, "memory": Memory}


def fact(event: Event | Bookmark) -> Resource:
    """Return the object of an event that is about a fact."""
    assert isinstance(event, Event)
    assert not isinstance(event.object, RejectedObject)
    return event.object


class Scene:
    """Runs a scenario with as many handles on one store as it takes arguments for."""

    def __init__(self, cluster: Sqlite | Memory) -> None:
        self.cluster = cluster

    def run(self, scenario: Callable[..., Awaitable[object]], handles: int = 1) -> object:
        async def main() -> object:
            async with AsyncExitStack() as stack:
                stores: list[Store] = [
                    await stack.enter_async_context(self.cluster.open()) for _ in range(handles)
                ]
                async with asyncio.timeout(30):
                    return await scenario(*stores)

        return asyncio.run(main())


@pytest.fixture(params=list(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(IMPLEMENTATIONS[request.param](tmp_path))
