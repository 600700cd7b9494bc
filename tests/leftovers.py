"""What tests leave behind: processes that they started, and network namespaces that they named.

Every process that tests start inherits MARK in its environment. (One that gets an environment of its own is not
seen; such are waited for where they are started.) Namespaces bear the test process's id in their names. What
belongs to a lab that stands is the lab's, which several tests may share.
"""

import contextlib
import os
import re
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from podway import census
from podway.kernel.netns import RUN_NETNS
from podway.lab import names
from podway.lab.paths import LABS
from podway.lab.processes import MARK as LAB_MARK

MARK = "PYTEST_RUN_OF_PODWAY"
"""Not of the names that the command line knows (PODWAY_…): it would tell of it."""
ENDING_SECONDS = 10.0
"""How long what was told to end may take to vanish."""


@dataclass(frozen=True)
class Things:
    """Processes (their commands by pid) and names of network namespaces."""

    processes: dict[int, str]
    namespaces: frozenset[str]

    def __sub__(self, before: "Things") -> "Things":
        new = {pid: command for pid, command in self.processes.items() if pid not in before.processes}
        return Things(new, self.namespaces - before.namespaces)

    def __bool__(self) -> bool:
        return bool(self.processes or self.namespaces)

    def __str__(self) -> str:
        words = [f"process {pid}: {command}" for pid, command in sorted(self.processes.items())]
        return "; ".join(words + [f"network namespace {name}" for name in sorted(self.namespaces)])


NOTHING = Things({}, frozenset())


def mark_this_run() -> None:
    """Have all processes that are started from now on recognised."""
    os.environ[MARK] = f"{os.getpid()}-{secrets.token_hex(4)}"


def things(*, of_labs: bool) -> Things:
    """Return what there is of this run now; what belongs to labs that stand only if `of_labs`."""
    labs = _standing_labs(of_labs=of_labs)
    found = {}
    for pid in census.look(lambda pid: _is_ours(pid, labs)).belonging:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            found[pid] = command.replace("\0", " ").strip()
    return Things(found, _namespaces(labs))


def left_since(before: Things, *, of_labs: bool = False) -> Things:
    """Return what is left that was not there before, and kill it; what is about to end gets the time to."""
    deadline = time.monotonic() + ENDING_SECONDS
    labs = _standing_labs(of_labs=of_labs)
    while _runs(before, labs, deadline) or _namespaces(labs) - before.namespaces:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    else:
        return NOTHING
    left = things(of_labs=of_labs) - before
    for pid in left.processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def _runs(before: Things, labs: set[str], deadline: float) -> bool:
    """Tell whether a process is left that was not there before, whoever hides it by starting it and ending."""

    def is_new(pid: int) -> bool:
        return pid not in before.processes and _is_ours(pid, labs)

    try:
        return bool(census.find(is_new, deadline=deadline))
    except TimeoutError:
        return True


def _namespaces(labs: set[str]) -> frozenset[str]:
    our_name = re.compile(rf"(?<!\d){os.getpid()}(?!\d)")
    named = os.listdir(RUN_NETNS) if RUN_NETNS.is_dir() else []
    prefixes = tuple(map(names.prefix, labs))
    return frozenset(name for name in named if our_name.search(name) and not name.startswith(prefixes))


def _standing_labs(*, of_labs: bool) -> set[str]:
    return set() if of_labs else {lab.name for lab in LABS.iterdir()} if LABS.is_dir() else set()


def _is_ours(pid: int, labs: set[str]) -> bool:
    """Tell whether a process is one of this run, and of none of these labs. Raises OSError of one that ended."""
    content = Path(f"/proc/{pid}/environ").read_bytes()
    if not content:  # a zombie, or one in the middle of execve(2)
        raise ProcessLookupError(f"process {pid} has no environment")
    entries = content.decode(errors="replace").split("\0")
    environment = dict(entry.partition("=")[::2] for entry in entries)
    ours = environment.get(MARK) == os.environ[MARK] and pid != os.getpid()
    return ours and environment.get(LAB_MARK, "").partition("/")[0] not in labs
