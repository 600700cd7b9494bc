"""Running short programs and timing them from before they are spawned until they have ended.

`posix_spawn` and a plain wait: a tenth of what Python's subprocess costs, and the same for every program.
Programs start in the network namespace of the calling thread (podway.kernel.netns.run).
"""

import os
import select
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Failed(Exception):
    """A measured program ended with another status than 0."""


class Command(msgspec.Struct, frozen=True):
    """A program, its arguments with it, and the file that is its standard input."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    stdin: Path


class Ended(msgspec.Struct, frozen=True):
    """How a program went: seconds from spawn to end, exit status, and what it wrote."""

    seconds: float
    status: int
    output: bytes


def run(command: Command) -> Ended:
    """Run one program to its end."""
    process = _Process(command)
    _, status = os.waitpid(process.pid, 0)
    return process.ended(time.perf_counter(), status)


def timed(command: Command) -> float:
    """Run one program; return its seconds. Raises Failed."""
    return _successful(command, run(command))


def timed_at_once(commands: Sequence[Command]) -> list[float]:
    """Start all programs as fast as possible, wait for all; return the seconds of each. Raises Failed.

    Between two starts it looks who has ended meanwhile, so no time is off by more than one start takes.
    """
    waiting: dict[int, tuple[int, _Process]] = {}
    ended: dict[int, Ended] = {}
    poll = select.poll()

    def look(timeout_ms: int | None) -> None:
        for pidfd, _ in poll.poll(timeout_ms):
            now = time.perf_counter()
            position, process = waiting.pop(pidfd)
            poll.unregister(pidfd)
            os.close(pidfd)
            _, status = os.waitpid(process.pid, 0)
            ended[position] = process.ended(now, status)

    for position, command in enumerate(commands):
        process = _Process(command)
        pidfd = os.pidfd_open(process.pid)
        waiting[pidfd] = (position, process)
        poll.register(pidfd, select.POLLIN)
        look(0)
    while waiting:
        look(None)
    return [_successful(command, ended[position]) for position, command in enumerate(commands)]


class _Process:
    """A program that runs."""

    def __init__(self, command: Command) -> None:
        self._output = os.memfd_create("output")
        stdin = os.open(command.stdin, os.O_RDONLY)
        actions = [
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, self._output, 1),
            (os.POSIX_SPAWN_DUP2, self._output, 2),
        ]
        self._begun = time.perf_counter()
        self.pid = os.posix_spawn(command.argv[0], command.argv, command.environment, file_actions=actions)
        os.close(stdin)

    def ended(self, at: float, status: int) -> Ended:
        """Return how it went, once it was waited for."""
        with os.fdopen(self._output, "rb") as output:
            output.seek(0)
            return Ended(at - self._begun, os.waitstatus_to_exitcode(status), output.read())


def _successful(command: Command, ended: Ended) -> float:
    if ended.status != 0:
        verb = command.environment.get("CNI_COMMAND", "")
        words = ended.output.decode(errors="replace").strip()
        raise Failed(f"{command.argv[0]} {verb} ended with status {ended.status}: {words}")
    return ended.seconds
