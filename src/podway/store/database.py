"""The SQLite file: opened, created, migrated, and its failures told in words.

Write-ahead logging lets many processes read while one writes. `synchronous=NORMAL` because a commit then
survives the death of any process, and what only a power cut can undo belongs to a machine whose pods, leases
and routes that power cut ended too; waiting for the disk at every commit would cost ten times the latency.
"""

import contextlib
import errno
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from podway.errors import StoreDamaged, StoreError, StoreTooNew, StoreUnavailable

APPLICATION_ID = 0x70776179
"""`pway` in the file's header (SQLite file format, offset 68)."""

LOCK_TIMEOUT = 5.0
"""Seconds to wait for another process's write, which takes well under a millisecond."""

MIGRATIONS = (
    """
    CREATE TABLE objects (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (kind, namespace, name)
    ) WITHOUT ROWID;
    CREATE TABLE changes (
        revision INTEGER PRIMARY KEY, type TEXT NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL
    );
    """,
    # A trigger, so that it holds whoever prunes: an agent of a Podway that had the file open before, too.
    """
    CREATE TABLE file (tag TEXT NOT NULL);
    INSERT INTO file VALUES (lower(hex(randomblob(4))));
    CREATE INDEX changes_of_kind ON changes (kind, revision);
    CREATE TABLE compacted (kind TEXT NOT NULL PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO compacted SELECT kind, (SELECT min(revision) - 1 FROM changes) FROM changes GROUP BY kind;
    CREATE TRIGGER compact AFTER DELETE ON changes BEGIN
        INSERT INTO compacted VALUES (old.kind, old.revision)
        ON CONFLICT (kind) DO UPDATE SET revision = max(revision, excluded.revision);
    END;
    """,
)
"""Each script raises the schema version (PRAGMA user_version) by one; the first makes a new store."""

_DAMAGED_HINT = (
    "agents go on by what they know. Make a new file beside it, of what any node's agent knew last or of your "
    "manifests: `podway --store sqlite:///NEW apply -f /run/podway/last-known.json` (`sqlite3 FILE .recover` may "
    "save objects, too); then move the damaged file, its -wal and its -shm away, NEW in its place"
)


class Database:
    """An open store file and its one connection, for use by one thread at a time.

    Raises, from every method, StoreUnavailable, StoreDamaged or StoreTooNew, naming the file.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        with self.explained():
            if create and not path.exists():
                _create(path)
            self._file = _identity(path)
            self.connection = _connect(path)
        try:
            with self.explained():
                _migrate(self.connection, path)
                stored = self.connection.execute("SELECT tag FROM file").fetchone()
                self.tag = f"{stored[0] if stored else ''}.{self._file[1]}"
                """Tells this file from any other, a copy of it included."""
        except BaseException:
            self.connection.close()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read in one snapshot."""
        with self.explained():
            yield from _transaction(self.connection, write=False)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Write alone: no other process writes until the block ends. Commits unless it raises."""
        with self.explained():
            yield from _transaction(self.connection, write=True)

    def announce(self) -> None:
        """Wake other processes' watchers: they see the file's timestamps being set.

        They cannot rely on seeing the write itself, because SQLite makes a commit visible (in shared
        memory) only after it has written the log.
        """
        with self.explained():
            os.utime(self.path)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def is_current(self) -> bool:
        """Tell whether this is still the file at the path: SQLite would go on with a removed one."""
        with self.explained():
            return _identity(self.path) == self._file

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what SQLite or the system says into a StoreError that names the file and the cause."""
        try:
            yield
        except sqlite3.Error as error:
            raise _explain_sqlite(self.path, error) from error
        except UnicodeDecodeError as error:  # sqlite3 puts names out of the file into its messages
            raise StoreDamaged(f"store {self.path} is damaged: {error}", hint=_DAMAGED_HINT) from error
        except OSError as error:
            raise _explain_os(self.path, error) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=LOCK_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    # Text that is not UTF-8 is told as what it is, with the object it belongs to (podway.api.checked).
    connection.text_factory = lambda text: text.decode(errors="replace")
    try:
        connection.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make a whole store beside `path`, then link it there: nobody ever sees half of one."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        with contextlib.closing(_connect(Path(name))) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            _run_migrations(connection)
        with contextlib.suppress(FileExistsError):  # another process made it meanwhile: use that one
            os.link(name, path)
    finally:
        for leftover in (name, f"{name}-wal", f"{name}-shm"):
            Path(leftover).unlink(missing_ok=True)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreDamaged(
            f"store {path} is not a Podway store (its application id is not {APPLICATION_ID:#x})",
            hint="check the path in the store's URL; an empty or foreign file there must be moved away",
        )
    version = _pragma(connection, "user_version")
    if version > len(MIGRATIONS):
        raise StoreTooNew(
            f"store {path} has schema version {version}; this Podway knows versions up to {len(MIGRATIONS)}",
            hint="use the Podway that wrote it, or a newer one",
        )
    if version < len(MIGRATIONS):
        _run_migrations(connection)


def _run_migrations(connection: sqlite3.Connection) -> None:
    """Apply the scripts that the file lacks, all or none, if no other process just did."""
    with contextlib.contextmanager(_transaction)(connection, write=True):
        for script in MIGRATIONS[_pragma(connection, "user_version") :]:
            # Not executescript(): it would commit the transaction first.
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")


def _statements(script: str) -> Iterator[str]:
    """Yield a script's statements; those that a trigger is made of end with a semicolon, too."""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if part.strip() and sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _transaction(connection: sqlite3.Connection, *, write: bool) -> Iterator[sqlite3.Connection]:
    if write:
        _begin_writing(connection)
    else:
        connection.execute("BEGIN")
    try:
        yield connection
        connection.execute("COMMIT")
    finally:
        # A failure such as a full disk may have rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _begin_writing(connection: sqlite3.Connection) -> None:
    """Wait for the write lock in steps as short as the writes are.

    SQLite's own steps grow to 100 ms: 30 processes that write without pause then wait up to 1.9 s for a lock
    that each holds for 0.1 ms; this way 0.08 s.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.0001, 0.002))
            else:
                return
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(LOCK_TIMEOUT * 1000)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return (status.st_dev, status.st_ino)


def _explain_sqlite(path: Path, error: sqlite3.Error) -> StoreError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:  # no room for the log's index
        code = sqlite3.SQLITE_FULL
    match code & 0xFF:  # the primary result code
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreDamaged(f"store {path} is damaged: {error}", hint=_DAMAGED_HINT)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreUnavailable(
                f"store {path} has been locked by another process for {LOCK_TIMEOUT:g} s",
                hint=f"see who holds it with `fuser -v {path}`, then try again",
            )
        case sqlite3.SQLITE_READONLY:
            return StoreUnavailable(
                f"store {path} is read-only", hint="check the file's owner and mode, and the mount options"
            )
        case sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"store {path}: the disk is full", hint=f"free space on {path.parent}")
        case sqlite3.SQLITE_CANTOPEN:
            return StoreUnavailable(
                f"store {path} cannot be opened: {error}",
                hint=f"check that {path.parent} exists and that you may read and write there",
            )
        case _:
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            return StoreUnavailable(f"store {path}: {error} ({name})", hint=f"check {path.parent} and its disk")


def _explain_os(path: Path, error: OSError) -> StoreUnavailable:
    match error.errno:
        case errno.ENOENT:
            hint = "check the store's URL; `podway lab up` makes a lab's store, `podway apply` a new one"
            missing = "does not exist" if path.parent.is_dir() else f"has no directory {path.parent}"
            return StoreUnavailable(f"store {path} {missing}", hint=hint)
        case errno.ENOSPC:
            return StoreUnavailable(f"store {path}: the disk is full", hint=f"free space on {path.parent}")
        case _:
            return StoreUnavailable(
                f"store {path}: {error.strerror}", hint=f"check that you may read and write in {path.parent}"
            )
