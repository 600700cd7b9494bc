"""The store of one machine: an SQLite file that agents and commands share.

`objects` holds every object as JSON. `changes` holds the last changes, one row for each revision, without a
gap: that is what a watch reads. All SQLite calls run in one worker thread, so the event loop never waits for
a lock or a disk.
"""

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, cast

import msgspec

from podway.api.resources import KINDS, Key, Resource, key, subject
from podway.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    RevisionGone,
    StoreDamaged,
    StoreUnavailable,
)
from podway.store.base import Event, Listing, R
from podway.store.bell import Bell
from podway.store.database import Database

KEPT_CHANGES = 10_000
"""How many changes a watch can go back, at least."""
PRUNE_EVERY = 500
WATCH_BATCH = 500

P = ParamSpec("P")
T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_decoders = {name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()}


class SqliteStore:
    """Store in the SQLite file at `path`, which is made if it is missing and `create` is true.

    Raises StoreUnavailable, StoreDamaged or StoreTooNew.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._database = Database(path, create=create)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._bell = Bell(path)
        self._closed = False

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """See Store.list."""
        return cast("Listing[R]", await self._run(self._list, kind.KIND, namespace))

    async def list_all(self) -> Listing[Resource]:
        """See Store.list_all. Ordered by kind, namespace and name."""
        return await self._run(self._list, None, None)

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """See Store.get."""
        return cast("R", await self._run(self._get, (kind.KIND, namespace, name)))

    async def create(self, obj: R) -> R:
        """See Store.create."""
        return cast("R", await self._run(self._create, obj))

    async def update(self, obj: R) -> R:
        """See Store.update. An object that equals the stored one is not written and keeps its version."""
        return cast("R", await self._run(self._update, obj))

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """See Store.delete."""
        await self._run(self._delete, (kind.KIND, namespace, name), resource_version)

    async def watch(self, since: int) -> AsyncIterator[Event]:
        """See Store.watch."""
        with self._bell.listening() as rung:
            while True:
                rung.clear()
                events = await self._run(self._changes, since)
                for event in events:
                    yield event
                    since = event.revision
                if not events:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._bell.poll_interval):
                            await rung.wait()

    async def close(self) -> None:
        """See Store.close. Watches of this store end with StoreUnavailable."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._worker, self._database.close)
        self._worker.shutdown(wait=False)
        self._bell.ring()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise StoreUnavailable(f"store {self._database.path} was closed")
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: work(*args, **kwargs))

    # What follows runs in the worker thread.

    def _list(self, kind: str | None, namespace: str | None) -> Listing[Resource]:
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT kind, body FROM objects WHERE (?1 IS NULL OR kind = ?1)"
                " AND (?2 IS NULL OR namespace = ?2) ORDER BY kind, namespace, name",
                (kind, namespace),
            ).fetchall()
            revision = _revision(connection)
        return Listing(items=tuple(self._decode(*row) for row in rows), revision=revision)

    def _get(self, wanted: Key) -> Resource:
        with self._database.reading() as connection:
            return self._stored(connection, wanted)

    def _create(self, obj: Resource) -> Resource:
        with self._database.writing() as connection:
            if _row(connection, key(obj)) is not None:
                raise AlreadyExists(f"{subject(key(obj))} exists already")
            revision = _revision(connection) + 1
            created = _with_metadata(
                obj,
                uid=str(uuid.uuid4()),
                resource_version=str(revision),
                creation_timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            _write(connection, created, revision, "added")
        self._database.announce()
        return created

    def _update(self, obj: Resource) -> Resource:
        with self._database.writing() as connection:
            old = self._stored(connection, key(obj))
            _check_version(old, obj.metadata.resource_version)
            new = _with_metadata(obj, uid=old.metadata.uid, creation_timestamp=old.metadata.creation_timestamp)
            if new == old:
                return old
            revision = _revision(connection) + 1
            new = _with_metadata(new, resource_version=str(revision))
            _write(connection, new, revision, "modified")
        self._database.announce()
        return new

    def _delete(self, unwanted: Key, resource_version: str) -> None:
        with self._database.writing() as connection:
            old = self._stored(connection, unwanted)
            if resource_version:
                _check_version(old, resource_version)
            connection.execute("DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", unwanted)
            _log_change(connection, old, _revision(connection) + 1, "deleted")
        self._database.announce()

    def _changes(self, since: int) -> tuple[Event, ...]:
        with self._database.reading() as connection:
            newest = _revision(connection)
            rows = connection.execute(
                "SELECT revision, type, kind, body FROM changes WHERE revision > ? ORDER BY revision LIMIT ?",
                (since, WATCH_BATCH),
            ).fetchall()
        if since > newest or (rows and rows[0][0] != since + 1):
            raise RevisionGone(
                f"store {self._database.path} no longer has every change after revision {since}: "
                f"it is at {newest} and keeps about {KEPT_CHANGES}",
                hint="list again, then watch from the revision of that list",
            )
        return tuple(Event(type_, self._decode(kind, body), rev) for rev, type_, kind, body in rows)

    def _stored(self, connection: sqlite3.Connection, wanted: Key) -> Resource:
        body = _row(connection, wanted)
        if body is None:
            raise NotFound(f"{subject(wanted)} does not exist")
        return self._decode(wanted[0], body)

    def _decode(self, kind: str, body: bytes) -> Resource:
        try:
            return _decoders[kind].decode(body)
        except (KeyError, msgspec.DecodeError) as error:
            raise StoreDamaged(
                f"store {self._database.path} holds a {kind} that this Podway cannot read: {error}",
                hint="a newer Podway may have written it: use that one; else restore the file from a copy",
            ) from error


def _revision(connection: sqlite3.Connection) -> int:
    # The newest change is never pruned, so this only grows.
    return int(connection.execute("SELECT coalesce(max(revision), 0) FROM changes").fetchone()[0])


def _row(connection: sqlite3.Connection, wanted: Key) -> bytes | None:
    rows: Iterable[tuple[bytes]] = connection.execute(
        "SELECT body FROM objects WHERE kind = ? AND namespace = ? AND name = ?", wanted
    )
    return next((body for (body,) in rows), None)


def _write(
    connection: sqlite3.Connection, obj: Resource, revision: int, change: Literal["added", "modified"]
) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO objects (kind, namespace, name, body) VALUES (?, ?, ?, ?)",
        (*key(obj), _encode(obj)),
    )
    _log_change(connection, obj, revision, change)


def _log_change(connection: sqlite3.Connection, obj: Resource, revision: int, change: str) -> None:
    connection.execute(
        "INSERT INTO changes (revision, type, kind, body) VALUES (?, ?, ?, ?)",
        (revision, change, obj.KIND, _encode(obj)),
    )
    if revision % PRUNE_EVERY == 0:
        connection.execute("DELETE FROM changes WHERE revision <= ?", (revision - KEPT_CHANGES,))


def _check_version(stored: Resource, expected: str) -> None:
    version = stored.metadata.resource_version
    if version != expected:
        raise Conflict(
            f"{subject(key(stored))} changed since it was read: "
            f"it is at version {version}, the change was made to {expected or 'none'}",
            hint="read it again, then decide again",
        )


def _with_metadata(obj: Resource, **changes: str) -> Resource:
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, **changes))
