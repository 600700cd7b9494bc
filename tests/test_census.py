"""Processes are found, and none is believed to be there, though others come and go all the time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podway import census
from tests.patience import PATIENCE

CROWD = "import os\nwhile True:\n    os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)"


ZOMBIES = "import os, time\nfor _ in range(4000):\n    os.fork() or os._exit(0)\nprint()\ntime.sleep(1000)"


@pytest.fixture(scope="module")
def zombies() -> Iterator[None]:
    """Many for which nobody waits, as there are where the first process of a container waits for none."""
    with subprocess.Popen([sys.executable, "-uc", ZOMBIES], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield
        process.kill()


@pytest.fixture
def crowd(zombies: None) -> Iterator[None]:
    """Processes that start and end as quickly as they can, without environment."""
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            process = subprocess.Popen([sys.executable, "-c", CROWD])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def bears(mark: str, pid: int) -> bool:
    """Tell whether a process has this in its environment."""
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    if not environment and pid != os.getpid():
        raise ProcessLookupError(pid)
    return mark.encode() in environment.split(b"\0")


def marked(mark: str) -> list[int]:
    return census.find(lambda pid: bears(mark, pid), deadline=time.monotonic() + PATIENCE)


@pytest.mark.usefixtures("crowd")
def test_that_there_is_none_is_told_in_a_crowd() -> None:
    for number in range(20):
        assert marked(f"CENSUS={os.getpid()}-{number}") == []


@pytest.fixture
def passers_by(zombies: None) -> Iterator[None]:
    """Processes that last for a tenth of a second each, some at any time."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            process = subprocess.Popen(["sh", "-c", "while :; do sleep 0.1; done"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


@pytest.mark.usefixtures("passers_by")
def test_a_look_that_takes_long_comes_to_an_end_though_some_always_end_meanwhile() -> None:
    """As on a busy machine, where a look at all processes outlasts many of them."""

    present = set(os.listdir("/proc"))

    def belongs(pid: int) -> bool:
        if str(pid) in present:
            time.sleep(0.0005)
        os.stat(f"/proc/{pid}/ns/net")  # of one that has ended it raises
        return False

    assert census.find(belongs, deadline=time.monotonic() + PATIENCE) == []


@pytest.mark.usefixtures("crowd")
def test_one_of_a_chain_of_short_lived_ones_is_found_in_a_crowd() -> None:
    chain = "import os, time\nfor _ in range(40):\n    os._exit(0) if os.fork() else None\ntime.sleep(1000)"
    for number in range(5):
        mark = f"CENSUS={os.getpid()}-chain-{number}"
        name, _, value = mark.partition("=")
        subprocess.run([sys.executable, "-c", chain], check=True, env={**os.environ, name: value})
        ended = set()
        deadline = time.monotonic() + PATIENCE
        while (found := marked(mark)) and time.monotonic() < deadline:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    ended.add(pid)
        assert found == []
        assert ended


def test_one_without_environment_is_not_taken_for_one_that_begins() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={}) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"begun?\n")
        assert process.stdout.readline()
        assert process.pid in census.look(lambda pid: bears("CENSUS=none", pid)).others
        process.communicate()
