"""The store of one machine: an SQLite file that agents and commands share.

`objects` holds every object as JSON, `changes` the last changes of every kind, which is what a watch reads, and
`compacted` the newest change of a kind that is no longer kept. All SQLite calls run in one worker thread, so the
event loop never waits for a lock or a disk.

Versions are `FILE-NUMBER`: changes of all kinds are numbered together, and those of another file have nothing to
do with them.
"""

import asyncio
import contextlib
import hashlib
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, ParamSpec, TypeVar, cast

import msgspec

from podway.api.checked import RejectedObject, check, key_in
from podway.api.kinds import KINDS
from podway.api.merge_patch import Document
from podway.api.resource import Key, Resource, key, subject
from podway.errors import AlreadyExists, NotFound, StoreUnavailable, VersionExpired
from podway.store.base import Bookmark, Event, Listing, R
from podway.store.database import Database
from podway.store.notifier import ChangeNotifier
from podway.store.objects import (
    Alteration,
    alter,
    check_version,
    encode,
    identity,
    last_state,
    patching,
    replacing,
    replacing_status,
    with_metadata,
)

KEPT_CHANGES = 10_000
"""How many changes of its kind a watch can go back, at least."""
PRUNE_EVERY = 500
WATCH_BATCH = 500

LIST_AGAIN = "list this kind again, then watch from the version of that list"

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class _Look(NamedTuple):
    """What one look at the file found for all watches: which file, its newest change, and that of each kind."""

    file: str
    revision: int
    newest: Mapping[str, int]

    def is_news(self, watch: "_Watch") -> bool:
        """Tell whether there is anything that a watch has not heard."""
        return self.file != watch.file or self.newest.get(watch.kind, 0) > watch.since


class _Watch:
    """A watch of one kind: up to where it has heard of a file's changes, and what wakes it."""

    def __init__(self, kind: str, file: str, since: int) -> None:
        self.kind = kind
        self.file = file
        self.since = since
        self.look: _Look | None = None
        """The last look that found news."""
        self._failure: Exception | None = None
        self._woken = asyncio.Event()

    def wake(self, found: _Look | Exception) -> None:
        """Tell that there is news, or why nobody can tell any more."""
        if isinstance(found, Exception):
            self._failure = found
        else:
            self.look = found
        self._woken.set()

    async def news(self) -> None:
        """Wait until there is something that was not heard. Raises what the looks at the file failed with."""
        while self.look is None or not self.look.is_news(self):
            if self._failure is not None:
                raise self._failure
            self._woken.clear()
            await self._woken.wait()


class SqliteStore:
    """Store in the SQLite file at `path`, which is made if it is missing and `create` is true.

    With `later` it is opened when it is first needed. Raises StoreUnavailable, StoreDamaged or StoreTooNew.
    """

    def __init__(self, path: Path, *, create: bool = True, later: bool = False) -> None:
        self._path = path
        self._create_file = create
        self._open: Database | None = None
        if not later:
            _ = self._database
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._notifier = ChangeNotifier(path)
        self._watches: set[_Watch] = set()
        self._lookout: asyncio.Task[None] | None = None
        """Looks at the file for all watches: most of what changes concerns one of them."""
        self._closed = False
        self._known: dict[str, dict[Key, tuple[bytes, Resource | RejectedObject]]] = {}
        """What was checked last, by kind and key, with a digest of the body that it was."""

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """See Store.list."""
        return cast("Listing[R]", await self._run(self._list, kind.KIND, namespace))

    async def unknown(self) -> tuple[RejectedObject, ...]:
        """See Store.unknown."""
        return await self._run(self._unknown)

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """See Store.get."""
        return cast("R", await self._run(self._get, (kind.KIND, namespace, name)))

    async def create(self, obj: R) -> R:
        """See Store.create."""
        return await self._run(self._create, obj)

    async def update(self, obj: R) -> R:
        """See Store.update."""
        version = obj.metadata.resource_version
        return await self._run(self._alter, type(obj), key(obj), version, replacing(obj))

    async def update_status(self, obj: R) -> R:
        """See Store.update_status."""
        version = obj.metadata.resource_version
        return await self._run(self._alter, type(obj), key(obj), version, replacing_status(obj))

    async def patch(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch."""
        wanted, alteration = (kind.KIND, namespace, name), patching(kind, patch, status=False)
        return await self._run(self._alter, kind, wanted, resource_version or None, alteration)

    async def patch_status(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch_status."""
        wanted, alteration = (kind.KIND, namespace, name), patching(kind, patch, status=True)
        return await self._run(self._alter, kind, wanted, resource_version or None, alteration)

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """See Store.delete."""
        await self._run(self._delete, (kind.KIND, namespace, name), resource_version)

    async def watch(self, kind: type[Resource], version: str) -> AsyncGenerator[Event | Bookmark, None]:
        """See Store.watch."""
        watch = _Watch(kind.KIND, *_read_version(version))
        with self._looked_out_for(watch):
            events = await self._run(self._changes, watch.kind, watch.file, watch.since)
            yield Bookmark(version)
            while True:
                for number, event in events:
                    yield event
                    watch.since = number
                await watch.news()
                events = await self._run(self._changes, watch.kind, watch.file, watch.since)

    async def close(self) -> None:
        """See Store.close."""
        if self._closed:
            return
        self._closed = True
        if self._open is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._open.close)
        self._worker.shutdown(wait=False)
        self._notifier.notify()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise StoreUnavailable(f"store {self._path} was closed")
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: work(*args, **kwargs))

    @contextlib.contextmanager
    def _looked_out_for(self, watch: _Watch) -> Iterator[None]:
        """Have a watch woken while the block runs."""
        self._watches.add(watch)
        if self._lookout is None:
            self._lookout = asyncio.get_running_loop().create_task(self._look_out())
        try:
            yield
        finally:
            self._watches.discard(watch)
            if not self._watches and self._lookout is not None:
                self._lookout.cancel()
                self._lookout = None

    async def _look_out(self) -> None:
        """Look at the file when it was changed, and now and then, and wake the watches for which there is news."""
        mine, look = asyncio.current_task(), None
        try:
            with self._notifier.listening() as notified:
                while True:
                    notified.clear()
                    look = await self._run(self._newest, look)
                    for watch in filter(look.is_news, self._watches):
                        watch.wake(look)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._notifier.poll_interval):
                            await notified.wait()
        except Exception as error:  # noqa: BLE001 - it is raised by each watch
            if self._lookout is mine:
                self._lookout = None
            for watch in self._watches:
                watch.wake(error)

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
        return self._open

    def _list(self, kind: str, namespace: str | None) -> Listing[Resource]:
        database = self._database
        with database.reading() as connection:
            rows = connection.execute(
                "SELECT namespace, name, body FROM objects WHERE kind = ?1 AND (?2 IS NULL OR namespace = ?2)"
                " ORDER BY namespace, name",
                (kind, namespace),
            ).fetchall()
            revision = _revision(connection)
        keys: list[Key] = [(kind, str(where), str(name)) for where, name, _ in rows]
        found = [self._checked(stored, row[2]) for stored, row in zip(keys, rows, strict=True)]
        if namespace is None:
            known = self._known.get(kind, {})
            self._known[kind] = {stored: known[stored] for stored in keys}
        return Listing(
            tuple(one for one in found if not isinstance(one, RejectedObject)),
            _version(database.tag, revision),
            tuple(one for one in found if isinstance(one, RejectedObject)),
        )

    def _unknown(self) -> tuple[RejectedObject, ...]:
        with self._database.reading() as connection:
            names = [kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM objects").fetchall()]
            rows = [
                row
                for kind in names
                if kind not in KINDS
                for row in connection.execute(
                    "SELECT kind, namespace, name, body FROM objects WHERE kind = ?", (kind,)
                ).fetchall()
            ]
        found = (check((str(kind), str(where), str(name)), _bytes(body)) for kind, where, name, body in rows)
        return tuple(one for one in found if isinstance(one, RejectedObject))

    def _get(self, wanted: Key) -> Resource:
        with self._database.reading() as connection:
            found = self._stored(connection, wanted)
        if isinstance(found, RejectedObject):
            raise found.error
        return found

    def _create(self, obj: R) -> R:
        with self._database.writing() as connection:
            if _row(connection, key(obj)) is not None:
                raise AlreadyExists(f"{subject(key(obj))} exists already")
            revision = _revision(connection) + 1
            created = with_metadata(obj, **identity(None), resource_version=str(revision))
            _write(connection, key(created), encode(created), revision, "added")
        self._database.announce()
        return created

    def _alter(self, kind: type[R], wanted: Key, expected: str | None, alteration: Alteration) -> R:
        with self._database.writing() as connection:
            old = self._stored(connection, wanted)
            if expected is not None:
                check_version(wanted, old, expected)
            revision = _revision(connection) + 1
            body = alter(_bytes(_row(connection, wanted)), old, alteration, str(revision))
            if body is None:
                return cast("R", old)
            _write(connection, wanted, body, revision, "modified")
        self._database.announce()
        return msgspec.json.decode(body, type=kind)

    def _delete(self, unwanted: Key, resource_version: str) -> None:
        with self._database.writing() as connection:
            old = self._stored(connection, unwanted)
            if resource_version:
                check_version(unwanted, old, resource_version)
            connection.execute("DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", unwanted)
            _log_change(connection, unwanted[0], last_state(unwanted, old), _revision(connection) + 1, "deleted")
        self._database.announce()

    def _newest(self, known: _Look | None) -> _Look:
        database = self._database
        with database.reading() as connection:
            if known is None or known.file != database.tag:
                newest = {kind: _revision(connection, kind) for kind in KINDS}
                return _Look(database.tag, _revision(connection), newest)
            rows = connection.execute(
                "SELECT kind, revision FROM changes WHERE revision > ? ORDER BY revision", (known.revision,)
            ).fetchall()
        newer = {str(kind): int(revision) for kind, revision in rows}
        return _Look(known.file, max(newer.values(), default=known.revision), {**known.newest, **newer})

    def _changes(self, kind: str, file: str, since: int) -> tuple[tuple[int, Event], ...]:
        database = self._database
        with database.reading() as connection:
            newest, gone = _revision(connection), _compacted(connection, kind)
            rows = connection.execute(
                "SELECT revision, type, body FROM changes WHERE kind = ? AND revision > ?"
                " ORDER BY revision LIMIT ?",
                (kind, since, WATCH_BATCH),
            ).fetchall()
        if file != database.tag:
            raise VersionExpired(f"store {self._path} was replaced by another file", hint=LIST_AGAIN)
        if not gone <= since <= newest:
            raise VersionExpired(
                f"store {self._path} no longer has every change of kind {kind} after {since}: "
                f"it is at {newest} and keeps about {KEPT_CHANGES}",
                hint=LIST_AGAIN,
            )
        return tuple(
            (number, Event(type_, self._changed(kind, body, number), _version(file, number)))
            for number, type_, body in rows
        )

    def _changed(self, kind: str, body: object, number: int) -> Resource | RejectedObject:
        named = key_in(kind, _bytes(body))
        if named is None:
            raise VersionExpired(
                f"store {self._path}: what changed of kind {kind} at {number} cannot be read", hint=LIST_AGAIN
            )
        return self._checked(named, body)

    def _stored(self, connection: sqlite3.Connection, wanted: Key) -> Resource | RejectedObject:
        body = _row(connection, wanted)
        if body is None:
            raise NotFound(f"{subject(wanted)} does not exist")
        return self._checked(wanted, body)

    def _checked(self, stored: Key, content: object) -> Resource | RejectedObject:
        """Check an object, unless it is the one that was checked last under this key."""
        body = _bytes(content)
        digest = hashlib.blake2b(body, digest_size=16).digest()  # bodies are several times as large
        of_kind = self._known.setdefault(stored[0], {})
        known = of_kind.get(stored)
        if known is None or known[0] != digest:
            known = of_kind[stored] = (digest, check(stored, body))
        return known[1]


def _version(file: str, revision: int) -> str:
    return f"{file}-{revision}"


def _read_version(version: str) -> tuple[str, int]:
    file, _, number = version.rpartition("-")
    if not (file and number.isascii() and number.isdecimal() and len(number) < 20):
        raise VersionExpired(f"{version!r} is no version of a listing or watch of this store", hint=LIST_AGAIN)
    return file, int(number)


def _bytes(content: object) -> bytes:
    """Return what stands in a column, which may be of any type: a flipped bit makes one another."""
    return content if isinstance(content, bytes) else str(content).encode(errors="replace")


def _revision(connection: sqlite3.Connection, kind: str | None = None) -> int:
    """Return the number of the newest change, of a kind if one is named. It is never pruned, so it only grows."""
    found = connection.execute(
        "SELECT max(revision) FROM changes"
        if kind is None
        else "SELECT max(revision) FROM changes WHERE kind = ?",
        () if kind is None else (kind,),
    )
    return int(found.fetchone()[0] or 0)


def _compacted(connection: sqlite3.Connection, kind: str) -> int:
    """Return the newest change of a kind that is no longer kept."""
    row = connection.execute("SELECT CAST(revision AS INTEGER) FROM compacted WHERE kind = ?", (kind,)).fetchone()
    return int(row[0] or 0) if row else 0


def _row(connection: sqlite3.Connection, wanted: Key) -> bytes | None:
    rows: Iterable[tuple[bytes]] = connection.execute(
        "SELECT body FROM objects WHERE kind = ? AND namespace = ? AND name = ?", wanted
    )
    return next((body for (body,) in rows), None)


def _write(
    connection: sqlite3.Connection, about: Key, body: bytes, revision: int, change: Literal["added", "modified"]
) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO objects (kind, namespace, name, body) VALUES (?, ?, ?, ?)", (*about, body)
    )
    _log_change(connection, about[0], body, revision, change)


def _log_change(connection: sqlite3.Connection, kind: str, body: bytes, revision: int, change: str) -> None:
    connection.execute(
        "INSERT INTO changes (revision, type, kind, body) VALUES (?, ?, ?, ?)", (revision, change, kind, body)
    )
    if revision % PRUNE_EVERY == 0:
        for of in KINDS:
            connection.execute(
                "DELETE FROM changes WHERE kind = ?1 AND revision <= (SELECT revision FROM changes WHERE kind = ?1"
                " ORDER BY revision DESC LIMIT 1 OFFSET ?2)",
                (of, KEPT_CHANGES),
            )
