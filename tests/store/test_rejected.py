"""Objects of the store that are no facts: rejected and named, while all others are read, written and watched."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from podway.api.checked import RejectedObject
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.meta import Metadata
from podway.errors import AlreadyExists, Conflict, ObjectDamaged, PoolExhausted, StoreError, VersionExpired
from podway.ipam.claims import claim
from podway.store.base import Bookmark, Event, Store, list_all
from podway.store.sqlite import SqliteStore
from tests.store.conftest import fact

NAMES = ("a", "b", "c")


def in_store(path: Path, work: Callable[[Store], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        store = SqliteStore(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


async def next_event(store: Store, version: str) -> Event:
    async with contextlib.aclosing(store.watch(Namespace, version)) as watch:
        assert isinstance(await anext(watch), Bookmark)
        event = await anext(watch)
        assert isinstance(event, Event)
        return event


async def three(store: Store) -> None:
    for name in NAMES:
        await store.create(Namespace(metadata=Metadata(name=name)))


def overwrite(path: Path, name: str, body: str | bytes, table: str = "objects") -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        where = "name = ?" if table == "objects" else "json_extract(body, '$.metadata.name') = ?"
        connection.execute(f"UPDATE {table} SET body = ? WHERE {where}", (body, name))


BODIES: dict[str, str | bytes] = {
    "not UTF-8": b'{"metadata":{"name":"\xff\xfe","resourceVersion":"2"}}',
    "not JSON": b"\x00\x01\x02",
    "half of it": b'{"metadata":{"na',
    "a number for a name": b'{"metadata":{"name":5}}',
    "a list": b"[]",
    "nothing": b"",
    "NULL-like text": "null",
    "another object's name": b'{"metadata":{"name":"z","resourceVersion":"2"}}',
    "very deep": b'{"metadata":' * 5000,
    "a bad label": b'{"metadata":{"name":"b","resourceVersion":"2","labels":{"x":"-"}}}',
    "a bad time": b'{"metadata":{"name":"b","resourceVersion":"2","creationTimestamp":"yesterday"}}',
    "a bad kind": b'{"kind":"Pod","metadata":{"name":"b","resourceVersion":"2"}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_one_bad_object_is_rejected_and_the_others_are_read(tmp_path: Path, body: str | bytes) -> None:
    path = tmp_path / "s.db"
    in_store(path, three)
    overwrite(path, "b", body)

    async def look(store: Store) -> None:
        listing = await store.list(Namespace)
        assert [obj.metadata.name for obj in listing.items] == ["a", "c"]
        assert [one.key for one in listing.rejected] == [("Namespace", "", "b")]
        assert str(listing.rejected[0]).startswith("Namespace/b is rejected: ")
        with pytest.raises(ObjectDamaged, match="Namespace/b is rejected") as error:
            await store.get(Namespace, "b")
        assert "podway delete namespace b" in error.value.hint
        with pytest.raises(AlreadyExists):
            await store.create(Namespace(metadata=Metadata(name="b")))
        found = listing.rejected[0].found
        version = found.metadata.resource_version if found else ""
        with pytest.raises(Conflict):
            await store.update(Namespace(metadata=Metadata(name="b", resource_version="77")))
        await store.update(Namespace(metadata=Metadata(name="b", resource_version=version, labels={"x": "y"})))
        after = await store.list(Namespace)
        assert ([obj.metadata.name for obj in after.items], after.rejected) == (["a", "b", "c"], ())

    in_store(path, look)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_bad_object_can_be_deleted_and_a_watch_tells_it(tmp_path: Path, body: str | bytes) -> None:
    path = tmp_path / "s.db"
    in_store(path, three)
    overwrite(path, "b", body)

    async def delete(store: Store) -> None:
        version = (await store.list(Namespace)).version
        await store.delete(Namespace, "b")
        event = await next_event(store, version)
        name = event.object.key[2] if isinstance(event.object, RejectedObject) else event.object.metadata.name
        assert (event.type, name) == ("deleted", "b")
        assert (await store.list(Namespace)).rejected == ()

    in_store(path, delete)


def test_a_bad_change_is_told_as_rejected_and_an_unreadable_one_asks_for_a_listing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"

    async def filled(store: Store) -> str:
        start = (await store.list(Namespace)).version
        await three(store)
        return start

    start = in_store(path, filled)
    overwrite(path, "b", b'{"metadata":{"name":"b","labels":5}}', "changes")

    async def watch(store: Store) -> None:
        events = store.watch(Namespace, start)
        assert [await anext(events), fact(await anext(events)).metadata.name] == [Bookmark(start), "a"]
        event = await anext(events)
        assert isinstance(event, Event)
        assert isinstance(event.object, RejectedObject)
        assert (event.type, event.object.key) == ("added", ("Namespace", "", "b"))
        assert "labels" in event.object.problem

    async def watch_unreadable(store: Store) -> None:
        with pytest.raises(VersionExpired, match="cannot be read"):
            await next_event(store, start)
        listing = await store.list(Namespace)
        assert len(listing.items) == 3
        await store.create(Namespace(metadata=Metadata(name="d")))
        assert fact(await next_event(store, listing.version)).metadata.name == "d"

    in_store(path, watch)
    overwrite(path, "c", b"\xff", "changes")
    in_store(path, watch_unreadable)


def test_a_kind_of_a_newer_podway_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    in_store(path, three)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE objects SET kind = 'Firewall' WHERE name = 'b'")

    async def look(store: Store) -> None:
        (one,) = (await list_all(store)).rejected
        assert "no kind that this Podway knows" in one.problem

    in_store(path, look)


def test_a_claim_that_is_rejected_is_nobody_elses(tmp_path: Path) -> None:
    """A pool of two blocks: of one the claim is damaged. The other is claimed, and then the pool is full."""
    path = tmp_path / "s.db"
    pool = IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.9.0.0/25", block_size=26))
    first = AddressBlock(
        metadata=Metadata(name="10-9-0-0-26"), spec=AddressBlockSpec(cidr="10.9.0.0/26", pool="p", node="n")
    )
    in_store(path, lambda store: store.create(first))
    overwrite(path, "10-9-0-0-26", b"\xff\xff")

    async def claims(store: Store) -> None:
        assert str((await claim(store, pool, "n")).network) == "10.9.0.64/26"
        with pytest.raises(PoolExhausted):
            await claim(store, pool, "n")
        with pytest.raises(ObjectDamaged, match="10-9-0-0-26"):
            await claim(store, pool, "n", wanted=first.network)

    in_store(path, claims)


def test_text_that_is_not_utf8_in_the_key_itself(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    in_store(path, three)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE objects SET name = CAST(x'ff62' AS TEXT) WHERE name = 'b'")

    async def look(store: Store) -> None:
        listing = await store.list(Namespace)
        assert len(listing.items) == 2
        assert "it says of itself that it is Namespace/b" in listing.rejected[0].problem

    in_store(path, look)


def test_what_is_checked_once_is_not_checked_again(tmp_path: Path) -> None:
    async def look(store: Store) -> None:
        await three(store)
        one, other = await store.list(Namespace), await store.list(Namespace)
        assert all(a is b for a, b in zip(one.items, other.items, strict=True))
        changed = msgspec.structs.replace(one.items[0].metadata, labels={"x": "y"})
        await store.update(Namespace(metadata=changed))
        third = await store.list(Namespace)
        assert third.items[0].metadata.labels == {"x": "y"}
        assert third.items[1] is one.items[1]

    in_store(tmp_path / "s.db", look)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a store with a hundred objects."""
    path = tmp_path_factory.mktemp("healthy") / "s.db"

    async def fill(store: Store) -> None:
        for number in range(50):
            await store.create(Node(metadata=Metadata(name=f"n{number}", annotations={"a": "b" * 40})))
            spec = AddressBlockSpec(cidr=f"10.9.{number}.0/24", pool="p", node=f"n{number}")
            await store.create(AddressBlock(metadata=Metadata(name=f"10-9-{number}-0-24"), spec=spec))

    in_store(path, fill)
    return path.read_bytes()


async def watched(store: Store, number: int) -> Event | Bookmark:
    """Read on from the change of a number, in the file that a listing tells."""
    file = (await store.list(Node)).version.rpartition("-")[0]
    async with contextlib.aclosing(store.watch(Node, f"{file}-{number}")) as watch:
        await anext(watch)
        return await anext(watch)


@pytest.mark.parametrize("seed", range(150))
def test_flipped_bits_of_the_file_are_told_as_the_stores_own_errors(
    tmp_path: Path, healthy: bytes, seed: int
) -> None:
    """Whatever is damaged: objects are rejected, or a StoreError says what is wrong; never another exception."""
    random = Random(seed)
    content = bytearray(healthy)
    for _ in range(random.choice([1, 1, 8])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path = tmp_path / "s.db"
    path.write_bytes(content)

    async def use(store: Store) -> None:
        for work in (
            lambda: list_all(store),
            lambda: store.list(AddressBlock),
            lambda: store.get(Node, f"n{random.randrange(50)}"),
            lambda: watched(store, random.randrange(100)),
            lambda: store.create(Node(metadata=Metadata(name="new"))),
            lambda: store.delete(Node, f"n{random.randrange(50)}"),
            lambda: list_all(store),
        ):
            with contextlib.suppress(StoreError, TimeoutError):  # a watch may have nothing to tell
                async with asyncio.timeout(10):
                    found = await work()
                assert all(str(one) for one in getattr(found, "rejected", ()))

    with contextlib.suppress(StoreError):
        in_store(path, use)
