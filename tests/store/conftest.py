import asyncio
import contextlib
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import pytest
import yaml

from podway.api.checked import RejectedObject
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import LEASES
from podway.api.kinds.secret import Secret
from podway.api.resource import Resource
from podway.store.base import Bookmark, Event, Store
from podway.store.etcd.access import read_url
from podway.store.etcd.keys import Layout
from podway.store.etcd.store import EtcdStore
from podway.store.kubernetes.access import read_kubeconfig
from podway.store.kubernetes.store import KubernetesStore
from podway.store.kubernetes.translation import TRANSLATIONS
from podway.store.memory import MemoryCluster, MemoryStore
from podway.store.sqlite import SqliteStore
from tests.etcd import EtcdServer, running_etcd
from tests.kubernetes import ApiServer


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


class Cluster(Protocol):
    """A cluster that stores are opened on."""

    together: bool
    """Whether it forgets the histories of all kinds at once."""

    def open(self) -> AbstractAsyncContextManager[Store]:
        """Open another handle on it."""
        ...

    def forget(self, kind: type[Resource], version: str = "", unread: int = 0) -> bool:
        """Keep as little of the history of a kind as can be.

        Tell whether no watch can go on any more from this version, after which so many changes were made.
        """
        ...

    def document(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        """Return what is stored of an object, whoever wrote it."""
        ...

    def clean(self) -> None:
        """Remove what others left."""
        ...


class Sqlite:
    """A cluster in a file."""

    together = False

    def __init__(self, directory: Path) -> None:
        self._path = directory / "store.db"

    def open(self) -> AbstractAsyncContextManager[Store]:
        return opened(self._path)

    def forget(self, kind: type[Resource], version: str = "", unread: int = 0) -> bool:
        """Keep the newest change, as pruning does."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.execute(
                "DELETE FROM changes WHERE kind = ?1"
                " AND revision < (SELECT max(revision) FROM changes WHERE kind = ?1)",
                (kind.KIND,),
            )
        return unread > 1

    def document(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as connection:
            (body,) = connection.execute(
                "SELECT body FROM objects WHERE kind = ? AND namespace = ? AND name = ?",
                (kind.KIND, namespace, name),
            ).fetchone()
        return json.loads(body)

    def clean(self) -> None:
        """Nobody else has this file."""


class Memory:
    """A cluster in memory."""

    together = False

    def __init__(self) -> None:
        self.cluster = MemoryCluster()

    def open(self) -> AbstractAsyncContextManager[Store]:
        return opened_in_memory(self.cluster)

    def forget(self, kind: type[Resource], version: str = "", unread: int = 0) -> bool:
        self.cluster.forget(kind)
        return unread > 0

    def document(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        return json.loads(self.cluster.bodies[kind.KIND, namespace, name])

    def clean(self) -> None:
        """Nobody else has it."""


class Kubernetes:
    """A real API server, which all tests share."""

    together = False

    SPACES = ("a", "b", "c", "x", "y", LEASES)

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        path = self._server.directory / "admin.config"
        path.write_text(yaml.safe_dump(self._server.kubeconfig()))
        store = KubernetesStore(
            lambda: read_kubeconfig(path), sockets=lambda address: self._server.socket(address[0])
        )
        try:
            yield store
        finally:
            await store.close()

    def forget(self, kind: type[Resource], version: str = "", unread: int = 0) -> bool:
        """Compact the database: nodes are served from it, pods from the API server's memory, which forgets nothing
        so soon."""
        if kind is not Node:
            return False
        self._server.ask("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"generateName": "later-"}})
        newest = int(self._server.ask("GET", "/api/v1/nodes?limit=1")["metadata"]["resourceVersion"])
        self._server.compact(newest)
        return bool(version) and int(version.rpartition(".")[2]) + 1 < newest

    def document(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        how = TRANSLATIONS[kind.KIND]
        return self._server.ask("GET", how.path(how.versions[0], namespace, name))

    def clean(self) -> None:
        """Remove what other tests left, and make the namespaces that these ones use."""
        there = {one["metadata"]["name"] for one in self._server.ask("GET", "/api/v1/namespaces")["items"]}
        for name in set(self.SPACES) - there:
            self._server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        for how in TRANSLATIONS.values():
            if how.optional or how.kind in (Namespace, Secret):
                continue
            for item in self._server.ask("GET", how.path(how.versions[0], how.space))["items"]:
                meta = item["metadata"]
                path = how.path(how.versions[0], meta.get("namespace", ""), meta["name"])
                if meta.get("finalizers"):
                    nothing = {"metadata": {"finalizers": None}}
                    self._server.ask("PATCH", path, nothing, content="application/merge-patch+json")
                self._server.ask("DELETE", f"{path}?gracePeriodSeconds=0")


class Etcd:
    """A part of a real etcd, which all tests share: below a prefix of its own."""

    together = True

    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._prefix = f"t{secrets.token_hex(4)}"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        store = EtcdStore(read_url(self._server.url(self._prefix)), sockets=self._server.socket)
        try:
            yield store
        finally:
            await store.close()

    def forget(self, kind: type[Resource], version: str = "", unread: int = 0) -> bool:
        """Keep the newest revision."""
        newest = self._server.compact()
        return bool(version) and int(version.rpartition(".")[2]) < newest

    def document(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        return json.loads(self._server.get(Layout(self._prefix).key((kind.KIND, namespace, name))))

    def clean(self) -> None:
        """Nobody else has this prefix."""


Implementation: TypeAlias = Callable[[Path], Cluster]

# Every implementation of Store runs through test_conformance.py and test_following.py.
IMPLEMENTATIONS = [
    "sqlite",
    "memory",
    pytest.param("kubernetes", marks=pytest.mark.kernel),
    pytest.param("etcd", marks=pytest.mark.kernel),
]


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A real etcd; tests use parts of it below prefixes of their own."""
    with running_etcd(tmp_path_factory.mktemp("etcd"), options=("--unsafe-no-fsync",)) as server:
        yield server


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """What makes a cluster, in a directory where it needs one."""
    match request.param:
        case "sqlite":
            return Sqlite
        case "memory":
            return lambda _: Memory()
        case "etcd":
            etcd: EtcdServer = request.getfixturevalue("etcd_server")
            return lambda _: Etcd(etcd)
    server: ApiServer = request.getfixturevalue("api_server")
    return lambda _: Kubernetes(server)


def unversioned(obj: Resource) -> Resource:
    """Return an object without its version: of one that is deleted it says nothing."""
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, resource_version=""))


def fact(event: Event | Bookmark) -> Resource:
    """Return the object of an event that is about a fact."""
    assert isinstance(event, Event)
    assert not isinstance(event.object, RejectedObject)
    return event.object


class Scene:
    """Runs a scenario with as many handles on one store as it takes arguments for."""

    def __init__(self, cluster: Cluster) -> None:
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


@pytest.fixture
def scene(implementation: Implementation, tmp_path: Path) -> Scene:
    cluster = implementation(tmp_path)
    cluster.clean()
    return Scene(cluster)
