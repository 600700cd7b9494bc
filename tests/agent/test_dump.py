"""What commands say for a dump: bounded in size and time, and no command outlives who asked."""

import asyncio
from pathlib import Path

import pytest

from podway.agent.dump import output_of
from tests.patience import PATIENCE, eventually

NAMED = 'echo $$ > "$0"; echo begun; exec sleep 1000'
"""Writes its process ID into a file, says something, and goes on."""


def test_what_a_command_says_is_taken_whole() -> None:
    assert asyncio.run(output_of(("sh", "-c", "echo one; echo two >&2"))) == (
        "$ sh -c echo one; echo two >&2\none\ntwo\n"
    )


def test_a_command_that_says_too_much_is_ended_once_there_is_enough() -> None:
    """`yes` never ends by itself, and would fill the memory."""
    said = asyncio.run(output_of(("yes",), seconds=PATIENCE, most=1000))
    assert said == "$ yes\n" + "y\n" * 500 + "\n... only the first 1000 bytes are here\n"


def test_a_command_that_is_too_slow_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    said = asyncio.run(output_of(("sh", "-c", NAMED, str(file)), seconds=2))
    assert "not done after 2 s" in said
    assert not file.exists() or not alive(file), "it may not even have begun on a busy machine"


def test_a_command_ends_with_who_asked_for_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    async def cancelled() -> None:
        asking = asyncio.create_task(output_of(("sh", "-c", NAMED, str(file)), seconds=PATIENCE))
        await asyncio.to_thread(eventually, lambda: file.exists() and file.read_text().endswith("\n"), "it runs")
        assert alive(file)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(cancelled())
    assert not alive(file)


def test_a_command_that_is_not_there_is_named() -> None:
    assert asyncio.run(output_of(("podway-has-no-such-command",))) == (
        "podway-has-no-such-command: No such file or directory\n"
    )


def alive(file: Path) -> bool:
    """Whether the process that a file names is there."""
    number = file.read_text().strip()
    return bool(number) and Path(f"/proc/{number}").exists()
