"""Starting processes inside namespaces, and ending every process of a lab, whoever started it.

Which processes belong to a lab is read from the kernel, never from a file that could lie after a crash: those
whose network namespace is one of the lab's, and those that carry the lab's mark in their environment (a
namespace whose name somebody removed can no longer be asked for). A process is signalled through a
pidfd (pidfd_open(2)) that was opened before it was recognised, so a pid used anew is never hit.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from podway import census
from podway.errors import LabError
from podway.kernel import netns

MARK = "PODWAY_LAB_MEMBER"
"""Environment variable of every process that a lab starts: `<lab>/<node>`."""

_NO_FILES: Mapping[Path, Path] = MappingProxyType({})

END_SECONDS = 30.0
"""How long killed processes may take to vanish, and to be found where thousands of others come and go."""


class CannotRun(LabError):
    """A command cannot be run. `status` is what a shell would end with (POSIX.1-2017, XCU 2.8.2): 126 or 127."""

    def __init__(self, command: str, reason: str, status: int) -> None:
        super().__init__(f"{command}: {reason}")
        self.status = status


class Spawned(NamedTuple):
    """A process that outlives us. (A Popen would wait for it, or complain.)"""

    pid: int

    def ended(self) -> int | None:
        """Return the exit status, negative for a signal, once it has ended; None before. Ask no more then."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


def spawn(command: Sequence[str], *, namespace: str, mark: str, log: Path, kept: Sequence[int] = ()) -> Spawned:
    """Start a process in a named namespace, in a session of its own, its output appended to `log`.

    It gets none of our descriptors but those in `kept`.
    """
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    with (
        netns.opened(netns.path_of(namespace)) as fd,
        log.open("ab") as output,
        open(os.devnull, "rb") as nothing,
    ):
        streams = [(os.POSIX_SPAWN_DUP2, source.fileno(), n) for n, source in enumerate((nothing, output, output))]

        def start() -> int:
            environment = {**os.environ, MARK: mark}
            return os.posix_spawnp(command[0], list(command), environment, file_actions=streams, setsid=True)

        return Spawned(netns.run(fd, start))  # a child starts in the namespace of the thread that made it


def run(command: Sequence[str], *, namespace: str, files: Mapping[Path, Path] = _NO_FILES) -> int:
    """Run a command in a named namespace on our own terminal; return its exit status.

    It sees `files` as podway.kernel.netns.run says. Raises CannotRun if there is no such command.
    """
    with netns.opened(netns.path_of(namespace)) as fd:
        try:
            process = netns.run(fd, lambda: subprocess.Popen(command), files=files)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            raise CannotRun(command[0], os.strerror(error.errno or 0), 127 if missing else 126) from error
    with _ignored(signal.SIGINT), process:  # the command decides what an interrupt means
        status = process.wait()
    return 128 - status if status < 0 else status


class Members:
    """The processes of some namespaces (by name) and marks. Our own process and those above it never count."""

    def __init__(self, namespaces: Collection[str], *, marked: Callable[[str], bool]) -> None:
        self._inodes: set[netns.Identity] = set()
        for name in namespaces:
            # A crash can leave a name without a namespace: nothing can live in that.
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(netns.path_of(name))
                self._inodes.add(netns.Identity(status.st_dev, status.st_ino))
        self._marked = marked
        self._spared = set(_ancestry())

    def end(self, *, grace: float = 0.0) -> None:
        """Kill them all, and those that they start meanwhile; ask them first if `grace` (seconds) is given.

        Raises LabError if some do not end.
        """
        if grace and self._signal(signal.SIGTERM, grace) is None:
            return
        if (left := self._signal(signal.SIGKILL, END_SECONDS)) is not None:
            raise LabError(f"processes do not end: {left}", hint="try again")

    def _signal(self, number: signal.Signals, patience: float) -> str | None:
        """Signal until none is left; tell what is left after `patience` seconds, if anything is."""
        deadline = time.monotonic() + patience
        while True:
            try:
                pids = census.find(self._has, deadline=deadline)
            except TimeoutError:
                return "on this machine others begin and end faster than it can be told whose they are"
            if not pids:
                return None
            with contextlib.ExitStack() as stack:
                opened = dict(self._open(pids, stack))
                for pidfd in opened:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, number)
                if staying := _not_ended(opened, deadline):
                    return "; ".join(_described(opened[pidfd]) for pidfd in staying)
                if time.monotonic() > deadline:
                    return "those that were ended had started others each time"

    def pids(self) -> list[int]:
        """Return the processes' ids now."""
        return census.look(self._has).belonging

    def _open(self, pids: Iterable[int], stack: contextlib.ExitStack) -> Iterator[tuple[int, int]]:
        """Yield the pidfds of those that are still among them, with their numbers."""
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                if self._has(pid):
                    yield pidfd, pid

    def _has(self, pid: int) -> bool:
        """Tell whether a process is one of them. Raises OSError of one that has ended, or is about to begin.

        A zombie has no namespace and no environment any more; in the middle of execve(2) the latter is empty.
        """
        if pid in self._spared:
            return False
        status = os.stat(f"/proc/{pid}/ns/net")
        if (status.st_dev, status.st_ino) in self._inodes:
            return True
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if not environment:
            raise ProcessLookupError(f"process {pid} has no environment")
        key = f"{MARK}=".encode()
        return any(
            entry.startswith(key) and self._marked(entry[len(key) :].decode(errors="replace"))
            for entry in environment.split(b"\0")
        )


def _not_ended(pidfds: Collection[int], deadline: float) -> list[int]:
    """Wait until all have ended, or the deadline; return the others. A pidfd is readable once its process ends."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    waiting = set(pidfds)
    while waiting:
        left = deadline - time.monotonic()
        ended = poll.poll(left * 1000) if left > 0 else []
        if not ended:
            break
        for pidfd, _ in ended:
            poll.unregister(pidfd)
            waiting.discard(pidfd)
    return sorted(waiting)


def _described(pid: int) -> str:
    """Return a process that does not end in words: what each of its threads does and waits for (man 5 proc)."""
    threads = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            name, _, rest = (task / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
            threads.append(f"{name} {rest.split()[0]} {(task / 'wchan').read_text()}")
    return f"{pid} ({', '.join(threads) or 'gone now'})"


def _ancestry() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        # man 5 proc: the parent is the second field after the command's closing parenthesis.
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
