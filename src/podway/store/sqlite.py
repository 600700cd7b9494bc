"""The store of one machine: an SQLite file that agents and commands share.

`objects` holds every object as JSON. `changes` holds the last changes, one row for each revision, without a
gap: that is what a watch reads. All SQLite calls run in one worker thread, so the event loop never waits for
a lock or a disk.
"""

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, cast

import msgspec

from podway.api.checked import SetAside, check, key_in
from podway.api.resource import Key, Resource, key, subject
from podway.errors import AlreadyExists, Conflict, NotFound, RevisionGone, StoreUnavailable
from podway.store.base import Event, Listing, R
from podway.store.bell import Bell
from podway.store.database import Database

KEPT_CHANGES = 10_000
"""How many changes a watch can go back, at least."""
PRUNE_EVERY = 500
WATCH_BATCH = 500

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class SqliteStore:
    """Store in the SQLite file at `path`, which is made if it is missing and `create` is true.

    `set_aside` is told what every listing of the whole store sets aside.
    Raises StoreUnavailable, StoreDamaged or StoreTooNew.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        set_aside: Callable[[Iterable[SetAside]], None] | None = None,
        later: bool = False,
    ) -> None:
        self._path = path
        self._create_file = create
        self._open: Database | None = None
        self._generation = 0
        """How often a file was opened: changes of different files have nothing to do with each other."""
        if not later:
            _ = self._database
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._bell = Bell(path)
        self._closed = False
        self._set_aside = set_aside
        self._known: dict[Key, tuple[bytes, Resource | SetAside]] = {}

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """See Store.list."""
        return cast("Listing[R]", await self._run(self._list, kind.KIND, namespace))

    async def list_all(self) -> Listing[Resource]:
        """See Store.list_all. Ordered by kind, namespace and name."""
        listing = await self._run(self._list, None, None)
        if self._set_aside is not None:
            self._set_aside(listing.aside)
        return listing

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
        generation = await self._run(self._opened)
        with self._bell.listening() as rung:
            while True:
                rung.clear()
                events = await self._run(self._changes, since, generation)
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
        if self._open is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._open.close)
        self._worker.shutdown(wait=False)
        self._bell.ring()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise StoreUnavailable(f"store {self._path} was closed")
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: work(*args, **kwargs))

    # What follows runs in the worker thread.

    @property
    def _database(self) -> Database:
        """The file that is there now."""
        if self._open is not None and not self._open.is_current():
            log.warning("store %s was replaced by another file: that one is used now", self._path)
            self._open.close()
            self._open = None
        if self._open is None:
            self._open = Database(self._path, create=self._create_file)
            self._create_file = False  # one that goes missing was not removed for a new one to be made
            self._generation += 1
        return self._open

    def _opened(self) -> int:
        with self._database.reading():
            return self._generation

    def _list(self, kind: str | None, namespace: str | None) -> Listing[Resource]:
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT kind, namespace, name, body FROM objects WHERE (?1 IS NULL OR kind = ?1)"
                " AND (?2 IS NULL OR namespace = ?2) ORDER BY kind, namespace, name",
                (kind, namespace),
            ).fetchall()
            revision = _revision(connection)
        keys = [(str(of), str(where), str(name)) for of, where, name, _ in rows]
        found = [self._checked(stored, row[3]) for stored, row in zip(keys, rows, strict=True)]
        if kind is namespace is None:
            self._known = {stored: self._known[stored] for stored in keys}
        aside = tuple(one for one in found if isinstance(one, SetAside))
        return Listing(tuple(one for one in found if not isinstance(one, SetAside)), revision, aside)

    def _get(self, wanted: Key) -> Resource:
        with self._database.reading() as connection:
            found = self._stored(connection, wanted)
        if isinstance(found, SetAside):
            raise found.error
        return found

    def _create(self, obj: Resource) -> Resource:
        with self._database.writing() as connection:
            if _row(connection, key(obj)) is not None:
                raise AlreadyExists(f"{subject(key(obj))} exists already")
            revision = _revision(connection) + 1
            created = _with_metadata(
                obj,
                resource_version=str(revision),
                **_identity(None),
            )
            _write(connection, created, revision, "added")
        self._database.announce()
        return created

    def _update(self, obj: Resource) -> Resource:
        with self._database.writing() as connection:
            old = self._stored(connection, key(obj))
            _check_version(key(obj), old, obj.metadata.resource_version)
            former = old.found if isinstance(old, SetAside) else old
            new = _with_metadata(obj, **_identity(former))
            if new == former:
                return new
            revision = _revision(connection) + 1
            new = _with_metadata(new, resource_version=str(revision))
            _write(connection, new, revision, "modified")
        self._database.announce()
        return new

    def _delete(self, unwanted: Key, resource_version: str) -> None:
        with self._database.writing() as connection:
            old = self._stored(connection, unwanted)
            if resource_version:
                _check_version(unwanted, old, resource_version)
            connection.execute("DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", unwanted)
            last = old.found if isinstance(old, SetAside) else old
            body = _encode(last) if last else _nameplate(unwanted)
            _log_change(connection, unwanted[0], body, _revision(connection) + 1, "deleted")
        self._database.announce()

    def _changes(self, since: int, generation: int) -> tuple[Event, ...]:
        with self._database.reading() as connection:
            if generation != self._generation:
                raise RevisionGone(
                    f"store {self._path} was replaced by another file",
                    hint="list again, then watch from the revision of that list",
                )
            newest = _revision(connection)
            rows = connection.execute(
                "SELECT revision, type, kind, body FROM changes WHERE revision > ? ORDER BY revision LIMIT ?",
                (since, WATCH_BATCH),
            ).fetchall()
        if since > newest or (rows and rows[0][0] != since + 1):
            raise RevisionGone(
                f"store {self._path} no longer has every change after revision {since}: "
                f"it is at {newest} and keeps about {KEPT_CHANGES}",
                hint="list again, then watch from the revision of that list",
            )
        return tuple(Event(type_, self._changed(kind, body, rev), rev) for rev, type_, kind, body in rows)

    def _changed(self, kind: object, body: object, revision: int) -> Resource | SetAside:
        named = key_in(str(kind), _bytes(body))
        if named is None:
            raise RevisionGone(
                f"store {self._path}: what changed at revision {revision} cannot be read",
                hint="list again, then watch from the revision of that list",
            )
        return self._checked(named, body)

    def _stored(self, connection: sqlite3.Connection, wanted: Key) -> Resource | SetAside:
        body = _row(connection, wanted)
        if body is None:
            raise NotFound(f"{subject(wanted)} does not exist")
        return self._checked(wanted, body)

    def _checked(self, stored: Key, content: object) -> Resource | SetAside:
        """Check an object, unless it is the one that was checked last under this key."""
        body = _bytes(content)
        known = self._known.get(stored)
        if known is None or known[0] != body:
            known = self._known[stored] = (body, check(stored, body))
        return known[1]


def _bytes(content: object) -> bytes:
    """Return what stands in a column, which may be of any type: a flipped bit makes one another."""
    return content if isinstance(content, bytes) else str(content).encode(errors="replace")


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
    body = _encode(obj)
    connection.execute(
        "INSERT OR REPLACE INTO objects (kind, namespace, name, body) VALUES (?, ?, ?, ?)", (*key(obj), body)
    )
    _log_change(connection, obj.KIND, body, revision, change)


def _log_change(connection: sqlite3.Connection, kind: str, body: bytes, revision: int, change: str) -> None:
    connection.execute(
        "INSERT INTO changes (revision, type, kind, body) VALUES (?, ?, ?, ?)", (revision, change, kind, body)
    )
    if revision % PRUNE_EVERY == 0:
        connection.execute("DELETE FROM changes WHERE revision <= ?", (revision - KEPT_CHANGES,))


def _check_version(stored: Key, old: Resource | SetAside, expected: str) -> None:
    last = old.found if isinstance(old, SetAside) else old
    version = last.metadata.resource_version if last else ""
    if version != expected:
        raise Conflict(
            f"{subject(stored)} changed since it was read: "
            f"it is at version {version or 'none'}, the change was made to {expected or 'none'}",
            hint="read it again, then decide again",
        )


def _identity(former: Resource | None) -> dict[str, str]:
    """Return the metadata that stay for an object's life; those of a new one if nothing is known of a former."""
    if former is not None:
        return {"uid": former.metadata.uid, "creation_timestamp": former.metadata.creation_timestamp}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"uid": str(uuid.uuid4()), "creation_timestamp": now}


def _nameplate(unwanted: Key) -> bytes:
    """Return what is left to say of an object of which nothing could be read, now that it is deleted."""
    return _encode({"metadata": {"namespace": unwanted[1], "name": unwanted[2]}})


def _with_metadata(obj: Resource, **changes: str) -> Resource:
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, **changes))
