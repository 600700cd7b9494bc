"""One agent for one node, and one node for one agent.

Two agents that program one kernel, or two kernels that claim one node's name, would undo each other's work.
The first is prevented by a lock that lives and dies with the process: flock(2) on a file named after the network
namespace, in a directory that is root's alone and the same for every run directory. (An abstract unix socket,
whose names are per network namespace, could be bound by anyone there.) The second is noticed in the store: a
node's lease says which kernel its agent runs on, and when it lived last.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from podway.errors import AgentError

LOCKS = Path("/run/podway/locks")


class NodeLock:
    """Held while an agent runs in this network namespace. Raises AgentError if another one holds it."""

    def __init__(self) -> None:
        self._path = path = LOCKS / f"netns-{_network_namespace()}"
        try:
            LOCKS.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            LOCKS.mkdir(mode=0o700, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise AgentError(
                f"{path} cannot be made: {error.strerror}", hint="run the agent as root; /run must be writable"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            raise AgentError(
                "another Podway agent runs on this node" + (f" (pid {holder})" if holder else ""),
                hint="stop it first (`systemctl stop podway-agent`); one node has one agent",
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let another agent start. The file stays: who waits for its lock must not hold that of a removed one."""
        os.ftruncate(self._file, 0)
        os.close(self._file)

    def remove(self) -> None:
        """Remove the file as well, and the directory if it is empty then: no agent is to start here any more."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)
        with contextlib.suppress(OSError):
            LOCKS.rmdir()


def kernel_instance() -> str:
    """Return what tells this running kernel and network namespace from every other one.

    It stays the same when the agent restarts and changes when the machine does.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{_network_namespace()}"


def _network_namespace() -> int:
    return os.stat("/proc/self/ns/net").st_ino
