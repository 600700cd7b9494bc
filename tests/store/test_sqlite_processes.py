"""One store file, many real processes."""

import asyncio
import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podway.api.kinds.namespace import Namespace
from podway.api.resource import Resource
from podway.store.base import list_all
from podway.store.notifier import SLOW_POLL
from podway.store.sqlite import SqliteStore
from tests.patience import PATIENCE

PROGRAM = """
import asyncio, sys, msgspec
from pathlib import Path
from podway.api.meta import Metadata
from podway.api.kinds.namespace import Namespace
from podway.errors import AlreadyExists, Conflict
from podway.store.sqlite import SqliteStore

def namespace(name, **labels):
    return Namespace(metadata=Metadata(name=name, labels=labels))

async def main(store, me):
    sys.stdin.readline()  # all start together
{body}

async def opened():
    if {wait}: sys.stdin.readline()
    store = SqliteStore(Path(sys.argv[1]))
    await main(store, sys.argv[2])
    await store.close()
asyncio.run(opened())
"""


def program(body: str, *, wait: bool = False) -> str:
    indented = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    return PROGRAM.replace("{body}", indented).replace("{wait}", str(wait))


@contextlib.contextmanager
def running(path: Path, source: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", source, str(path), f"w{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def tell(process: subprocess.Popen[str], lines: int = 1) -> None:
    """Send a process so many empty lines."""
    assert process.stdin is not None
    process.stdin.write("\n" * lines)
    process.stdin.flush()


def line_of(process: subprocess.Popen[str]) -> str:
    """Read a line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def rest_of(process: subprocess.Popen[str]) -> str:
    """Read all else that a process prints. `communicate` would lose what was read along with a line before."""
    assert process.stdout is not None
    return process.stdout.read()


def run_all(path: Path, source: str, count: int) -> list[list[str]]:
    with running(path, source, count) as processes:
        time.sleep(0.5)
        for process in processes:
            tell(process, 2)
        outputs = [process.communicate(timeout=60)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0] * count
        return outputs


def everything(path: Path) -> tuple[Resource, ...]:
    async def look() -> tuple[Resource, ...]:
        store = SqliteStore(path)
        try:
            return (await list_all(store)).items
        finally:
            await store.close()

    return asyncio.run(look())


def test_each_name_is_claimed_by_exactly_one(tmp_path: Path) -> None:
    """Also: all of them make the file at the same moment, and none finds half of one."""
    claims = program(
        """
for number in range(40):
    try:
        await store.create(namespace(f"n{number}", owner=me))
        print(number)
    except AlreadyExists:
        pass
""",
        wait=True,
    )
    won = run_all(tmp_path / "s.db", claims, 4)
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(40))
    owners = {obj.metadata.name: obj.metadata.labels["owner"] for obj in everything(tmp_path / "s.db")}
    assert owners == {f"n{number}": f"w{me}" for me, numbers in enumerate(won) for number in numbers}
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.db"]


def test_no_update_is_lost(tmp_path: Path) -> None:
    counting = program(
        """
for _ in range(50):
    while True:
        try:
            await store.create(namespace("counter", value="0"))
        except AlreadyExists:
            pass
        seen = await store.get(Namespace, "counter")
        metadata = msgspec.structs.replace(
            seen.metadata, labels={"value": str(int(seen.metadata.labels["value"]) + 1)}
        )
        try:
            await store.update(Namespace(metadata=metadata))
            break
        except Conflict:
            pass
"""
    )
    run_all(tmp_path / "s.db", counting, 4)
    (counter,) = everything(tmp_path / "s.db")
    assert counter.metadata.labels == {"value": "200"}


def test_a_change_by_another_process_is_told_not_found_by_a_poll(tmp_path: Path) -> None:
    writer = program(
        """
for number in range(20):
    sys.stdin.readline()
    await store.create(namespace(f"n{number}"))
    print(asyncio.get_running_loop().time(), flush=True)
"""
    )

    async def follow(process: subprocess.Popen[str]) -> list[float]:
        store = SqliteStore(tmp_path / "s.db")
        delays: list[float] = []
        watch = store.watch(Namespace, (await store.list(Namespace)).version)
        await anext(watch)
        try:
            for _ in range(20):
                waiting = asyncio.ensure_future(anext(watch))
                await asyncio.sleep(0.02)
                tell(process)
                await asyncio.wait_for(waiting, PATIENCE)
                arrived = asyncio.get_running_loop().time()  # CLOCK_MONOTONIC: the same in all processes
                delays.append(arrived - float(await asyncio.to_thread(line_of, process)))
        finally:
            await watch.aclose()
            await store.close()
        return delays

    with running(tmp_path / "s.db", writer, 1) as (process,):
        tell(process)
        delays = asyncio.run(follow(process))
    assert sorted(delays)[10] < SLOW_POLL / 2, "told, not found by a poll"


@pytest.mark.parametrize("round_number", range(4))
def test_a_writer_killed_at_any_instant_damages_nothing(tmp_path: Path, round_number: int) -> None:
    writing = program(
        """
for number in range(100_000):
    await store.create(namespace(f"{me}-{number}", x="y" * 60))
    print(f"{me}-{number}", flush=True)
"""
    )
    path = tmp_path / "s.db"
    for _ in range(3):
        with running(path, writing.replace("{me}-", f"{{me}}-{time.monotonic_ns()}-"), 2) as processes:
            for process in processes:
                tell(process)
            line_of(processes[0])  # it writes
            time.sleep(random.uniform(0.0, 0.15))
            for process in processes:
                process.send_signal(signal.SIGKILL)
            acknowledged = {name for process in processes for name in rest_of(process).split()}
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            newest, count = connection.execute("SELECT max(revision), count(*) FROM changes").fetchone()
            assert newest == count
        objects = everything(path)
        assert len(objects) == newest
        assert acknowledged <= {obj.metadata.name for obj in objects if isinstance(obj, Namespace)}
