"""The SQLite file when it is not as it should be."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from podway import inotify
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.pod import Pod
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.errors import (
    InvalidInput,
    StoreDamaged,
    StoreTooNew,
    StoreUnavailable,
    VersionExpired,
)
from podway.store import database, notifier, sqlite
from podway.store.base import Bookmark, Event, Store, list_all
from podway.store.open import open_store
from podway.store.sqlite import SqliteStore
from tests.patience import PATIENCE
from tests.store.conftest import fact


def in_store(path: Path, work: Callable[[Store], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        store = SqliteStore(path, **options)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


async def look(store: Store) -> tuple[Resource, ...]:
    return (await list_all(store)).items


async def now(store: Store) -> str:
    return (await store.list(Namespace)).version


def next_of(watch: AsyncGenerator[Event | Bookmark, None]) -> asyncio.Task[Event]:
    """Return a task that waits for the next change, not only for the word that the watch stands."""

    async def wait() -> Event:
        assert isinstance(await anext(watch), Bookmark)
        event = await anext(watch)
        assert isinstance(event, Event)
        return event

    return asyncio.ensure_future(wait())


def fill(path: Path, count: int = 1, prefix: str = "n") -> None:
    async def create(store: Store) -> None:
        for number in range(count):
            await store.create(Namespace(metadata=Metadata(name=f"{prefix}{number}", labels={"x": "y" * 60})))

    in_store(path, create)


def change_header(path: Path, pragma: str, value: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {pragma}={value}")


@pytest.mark.parametrize("url", ["sqlite://relative.db", "sqlite:///dir/", "redis://h", "/plain/path", ""])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(InvalidInput, match="sqlite:///"):
        open_store(url)


def test_url_opens_the_file(tmp_path: Path) -> None:
    asyncio.run(open_store(f"sqlite://{tmp_path}/a b%20?.db").close())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a b%20?.db"]


def test_missing_file_is_made_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"gone\.db does not exist"):
        SqliteStore(tmp_path / "gone.db", create=False)
    with pytest.raises(StoreUnavailable, match="has no directory"):
        SqliteStore(tmp_path / "no" / "gone.db")
    assert not list(tmp_path.iterdir())


def test_newer_schema_names_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    fill(path)
    change_header(path, "user_version", 7)
    with pytest.raises(StoreTooNew, match=r"s\.db has schema version 7.* up to 2"):
        SqliteStore(path)


def test_older_schema_is_migrated_and_keeps_its_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    fill(path)
    newer = (*database.MIGRATIONS, "ALTER TABLE changes ADD COLUMN writer TEXT; CREATE TABLE extra (x)")
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    assert [obj.metadata.name for obj in in_store(path, look)] == ["n0"]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
        connection.execute("SELECT x FROM extra")


def test_a_file_of_the_first_schema_is_opened_and_watched_from_where_it_is(tmp_path: Path) -> None:
    """As Podway 0.1 wrote it: with a history that was pruned for all kinds together."""
    path = tmp_path / "s.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(database.MIGRATIONS[0])
        body = b'{"metadata":{"name":"old","resourceVersion":"40"}}'
        connection.execute("INSERT INTO objects VALUES ('Namespace', '', 'old', ?)", (body,))
        connection.execute("INSERT INTO changes VALUES (40, 'added', 'Namespace', ?)", (body,))
        connection.execute(f"PRAGMA application_id={database.APPLICATION_ID}")
        connection.execute("PRAGMA user_version=1")

    async def work(store: Store) -> None:
        listing = await store.list(Namespace)
        assert [obj.metadata.name for obj in listing.items] == ["old"]
        file = listing.version.rpartition("-")[0]
        assert fact(await next_of(store.watch(Namespace, f"{file}-39"))).metadata.name == "old"
        with pytest.raises(VersionExpired):
            await anext(store.watch(Namespace, f"{file}-38"))
        made = await store.create(Namespace(metadata=Metadata(name="new")))
        assert (await next_of(store.watch(Namespace, listing.version))).object == made

    in_store(path, work)


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    fill(path)
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "CREATE TABLE extra (x); nonsense"))
        with pytest.raises(StoreUnavailable, match="syntax error"):
            SqliteStore(path)
    assert len(in_store(path, look)) == 1


@pytest.mark.parametrize("content", [b"", b"not a database at all " * 100, b"SQLite format 3\0" + b"\xff" * 4080])
def test_files_that_are_no_store(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"s\.db") as error:
        SqliteStore(path)
    assert error.value.hint
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreDamaged, match="not a Podway store"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_damaged_pages_are_told(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    fill(path, 200)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    with pytest.raises(StoreDamaged, match=r"s\.db is damaged") as error:
        in_store(path, look)
    assert ".recover" in error.value.hint


def test_locked_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    fill(path)
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"s\.db has been locked by another process for 0\.2 s"):
            fill(path, prefix="m")
        assert len(in_store(path, look)) == 1  # reading needs no lock


def test_a_removed_or_replaced_file_is_noticed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.db"

    async def watch(store: Store) -> None:
        watching = next_of(store.watch(Namespace, await now(store)))
        await asyncio.sleep(0.05)
        path.unlink()
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable, match="does not exist"):
            await watching
        assert asyncio.get_running_loop().time() - began < notifier.SLOW_POLL / 2
        with pytest.raises(StoreUnavailable, match="does not exist"):
            await store.create(Namespace(metadata=Metadata(name="lost")))
        assert not path.exists()

    in_store(path, watch)


def test_a_file_that_took_the_place_of_the_one_in_use_is_used_from_then_on(tmp_path: Path) -> None:
    path, fresh = tmp_path / "s.db", tmp_path / "fresh.db"
    fill(path, 3)
    fill(fresh, 5, prefix="m")

    async def watch(store: Store) -> None:
        assert len(await look(store)) == 3
        before = await now(store)
        watching = next_of(store.watch(Namespace, before))
        await asyncio.sleep(0.05)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        fresh.rename(path)
        with pytest.raises(VersionExpired, match="replaced by another file"):
            await watching
        with pytest.raises(VersionExpired, match="replaced by another file"):
            await anext(store.watch(Namespace, before))
        assert [obj.metadata.name for obj in await look(store)] == [f"m{number}" for number in range(5)]
        await store.create(Namespace(metadata=Metadata(name="new")))

    in_store(path, watch)
    assert len(in_store(path, look)) == 6


def test_a_store_that_is_opened_later_says_what_is_wrong_when_it_is_needed_and_recovers(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"not a database " * 100)

    async def work(store: Store) -> None:
        with pytest.raises(StoreDamaged, match=r"s\.db") as error:
            await look(store)
        assert "last-known.json" in error.value.hint
        path.unlink()
        with pytest.raises(StoreUnavailable, match="does not exist"):
            await look(store)
        await asyncio.to_thread(fill, path)
        assert len(await look(store)) == 1

    in_store(path, work, later=True, create=False)


def test_history_is_pruned_and_then_says_list_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "KEPT_CHANGES", 20)
    monkeypatch.setattr(sqlite, "PRUNE_EVERY", 5)
    path = tmp_path / "s.db"

    async def watch(store: Store) -> None:
        versions: list[str] = []
        pods = (await store.list(Pod)).version
        await store.create(Pod(metadata=Metadata(name="quiet", namespace="default")))
        for number in range(50):
            versions.append(await now(store))
            await store.create(Namespace(metadata=Metadata(name=f"n{number}")))
        assert fact(await next_of(store.watch(Namespace, versions[30]))).metadata.name == "n30"
        with pytest.raises(VersionExpired, match="Namespace"):
            await anext(store.watch(Namespace, versions[20]))
        assert fact(await next_of(store.watch(Pod, pods))).metadata.name == "quiet", "another kind's is kept"

    in_store(path, watch)


def open_files() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(found)


def test_watches_and_stores_leave_no_file_open(tmp_path: Path) -> None:
    async def main() -> Any:
        before = open_files()
        store = SqliteStore(tmp_path / "s.db")
        start = await now(store)
        watches = [next_of(store.watch(Namespace, start)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert sum("inotify" in name for name in open_files()) == 1
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        assert not any("inotify" in name for name in open_files())
        ending = next_of(store.watch(Namespace, start))
        await asyncio.sleep(0.05)
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await ending
        assert open_files() == before

    asyncio.run(main())
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.db"]


def test_without_inotify_a_watch_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, events: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify, "watch", refuse)
    path = tmp_path / "s.db"

    async def watch(store: Store) -> None:
        watching = next_of(store.watch(Namespace, await now(store)))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(fill, path)
        assert fact(await asyncio.wait_for(watching, 10)).metadata.name == "n0"

    in_store(path, watch)
    assert "Too many open files" in caplog.text


def in_mount_namespace(script: str, tmp_path: Path) -> str:
    """Run Python code as a process with `mount` at hand, in a mount namespace of its own."""
    code = "import subprocess\ndef mount(*args): subprocess.run(['mount', *args], check=True)\n" + script
    program = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code]
    result = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


CREATE = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from podway.api.meta import Metadata
    from podway.api.kinds.namespace import Namespace
    from podway.api.kinds.pod import Pod
    from podway.errors import StoreUnavailable
    from podway.store.base import list_all
    from podway.store.sqlite import SqliteStore

    async def create(path, count):
        store = SqliteStore(path)
        try:
            for number in range(count):
                await store.create(Namespace(metadata=Metadata(name=f"n{number}", labels={"x": "y" * 60})))
        except StoreUnavailable as error:
            print(error.message)
        finally:
            made = len((await list_all(store)).items)
            await store.close()
        return made
    """
)


@pytest.mark.kernel
def test_full_disk(tmp_path: Path) -> None:
    output = in_mount_namespace(
        CREATE
        + textwrap.dedent(
            """
            mount("-t", "tmpfs", "-o", "size=256k", "small", ".")
            path = Path("store.db").absolute()
            made = asyncio.run(create(path, 5000))
            assert 0 < made < 5000, made
            mount("-o", "remount,size=4m", ".")
            assert asyncio.run(create(path, 0)) == made   # what was acknowledged is there, and it goes on
            """
        ),
        tmp_path,
    )
    assert "store.db: the disk is full" in output


@pytest.mark.kernel
def test_no_room_even_to_begin(tmp_path: Path) -> None:
    output = in_mount_namespace(
        CREATE
        + textwrap.dedent(
            """
            mount("-t", "tmpfs", "-o", "size=8k", "tiny", ".")
            try:
                SqliteStore(Path("store.db").absolute())
            except StoreUnavailable as error:
                print(error.message)
            print([entry.name for entry in Path(".").iterdir()])
            """
        ),
        tmp_path,
    )
    assert "disk is full" in output
    assert "[]" in output


@pytest.mark.kernel
def test_read_only_file_system(tmp_path: Path) -> None:
    fill(tmp_path / "store.db")
    output = in_mount_namespace(
        CREATE
        + textwrap.dedent(
            f"""
            mount("--bind", "{tmp_path}", "{tmp_path}")
            mount("-o", "remount,bind,ro", "{tmp_path}")
            for name in ("store.db", "new.db"):
                try:
                    asyncio.run(create(Path("{tmp_path}", name), 1))
                except StoreUnavailable as error:
                    print(error.message)
            """
        ),
        tmp_path,
    )
    first, second = output.splitlines()
    assert f"{tmp_path}/store.db" in first
    assert f"{tmp_path}/new.db: Read-only file system" in second


@pytest.mark.kernel
def test_a_user_who_may_not_write(tmp_path: Path) -> None:
    path = Path("/tmp") / f"podway-test-{os.getpid()}" / "store.db"
    path.parent.mkdir(mode=0o755)
    try:
        fill(path)
        path.chmod(0o644)
        own = path.with_name("own.db")  # used before the user changes: Python may not import as the other
        script = CREATE + textwrap.dedent(
            f"""
            asyncio.run(create(Path({str(own)!r}), 1))
            import os
            os.setuid(65534)
            asyncio.run(create(Path({str(path)!r}), 1))
            """
        )
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd="/"
        )
        assert str(path) in result.stdout + result.stderr
        assert "StoreUnavailable" in result.stderr
    finally:
        shutil.rmtree(path.parent)


def test_changes_that_follow_one_another_are_notified_of_together_and_the_last_one_too(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.touch()

    async def main() -> None:
        told = notifier.ChangeNotifier(path)
        with told.listening() as notified:
            for _ in range(200):
                os.utime(path)
                await asyncio.sleep(0)
            before = told.notifications
            assert 0 < before < 100
            notified.clear()
            os.utime(path)
            async with asyncio.timeout(PATIENCE):
                await notified.wait()
            assert told.notifications > before

    asyncio.run(main())
