"""Programs end with who runs them, and with them what they started."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from podway.subprocesses import running
from tests.patience import PATIENCE, eventually

FAMILY = """
sleep 1000 &
echo $! $$ >"$0.new"
mv "$0.new" "$0"
{then}
"""
"""Starts another that holds the same pipes, writes the numbers of both into a file, and goes on."""


def alive(file: Path) -> list[str]:
    """Return those of the processes that a file names which have not ended."""
    return [number for number in file.read_text().split() if not _ended(Path(f"/proc/{number}/stat"))]


def _ended(stat: Path) -> bool:
    try:
        return (
            stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        )  # whoever adopted it may not have reaped it yet
    except (FileNotFoundError, ProcessLookupError):
        return True


async def run(file: Path, then: str = "wait") -> None:
    async with running("sh", "-c", FAMILY.format(then=then), str(file), stdout=asyncio.subprocess.PIPE) as process:
        await process.wait()


@pytest.mark.parametrize("then", ["wait", "exec yes"])
def test_who_is_cancelled_leaves_no_program_behind(tmp_path: Path, then: str) -> None:
    """Neither one that is silent, nor one that writes more than anybody has read."""
    file = tmp_path / "pids"

    async def cancelled() -> None:
        task = asyncio.create_task(run(file, then))
        await asyncio.to_thread(eventually, file.exists, "both run")
        assert len(alive(file)) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    eventually(lambda: not alive(file), "both have ended")


def test_a_program_that_takes_too_long_ends(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    async def in_time() -> None:
        async with asyncio.timeout(PATIENCE) as limit:
            task = asyncio.create_task(run(file))
            await asyncio.to_thread(eventually, file.exists, "both run")
            limit.reschedule(asyncio.get_running_loop().time())
            await task

    with pytest.raises(TimeoutError):
        asyncio.run(in_time())
    eventually(lambda: not alive(file), "both have ended")


def test_who_has_left_the_programs_group_is_not_waited_for(tmp_path: Path) -> None:
    """It holds the pipes for longer than anybody would wait, and may go on."""
    file = tmp_path / "pid"
    there = 'setsid sh -c "echo \\$\\$ >$0.new; mv $0.new $0; exec sleep 1000" & exec sleep 1000'

    async def in_time() -> None:
        async with running("sh", "-c", there, str(file), stdout=asyncio.subprocess.PIPE):
            await asyncio.to_thread(eventually, file.exists, "it has left the group")

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await in_time()

    try:
        asyncio.run(main())
        assert alive(file)
    finally:
        os.kill(int(file.read_text()), signal.SIGKILL)


def test_a_block_that_fails_ends_the_program() -> None:
    kept: list[asyncio.subprocess.Process] = []

    async def mistaken() -> None:
        async with running("sleep", "1000") as process:
            kept.append(process)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        asyncio.run(mistaken())
    assert kept[0].returncode == -signal.SIGKILL


def test_one_that_ends_by_itself_is_let_alone() -> None:
    async def answer() -> tuple[bytes, int | None]:
        async with running("sh", "-c", "echo done; exit 3", stdout=asyncio.subprocess.PIPE) as process:
            said, _ = await process.communicate()
        return said, process.returncode

    assert asyncio.run(answer()) == (b"done\n", 3)


def test_one_that_cannot_be_run_is_told() -> None:
    async def missing() -> None:
        async with running("/no/such/program"):
            raise AssertionError

    with pytest.raises(FileNotFoundError):
        asyncio.run(missing())
