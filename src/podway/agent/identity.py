"""One agent for one node, and one node for one agent.

Two agents that program one kernel, or two kernels that claim one node's name, would undo each other's work.
The first is prevented by a lock that lives and dies with the process: an abstract unix socket, whose names
are per network namespace (unix(7)). The second is noticed in the store: a node's object says which kernel
its agent runs on, and when it was last seen.
"""

import os
import socket
from pathlib import Path

from podway.errors import AgentError

LOCK_NAME = "\0podway-agent"


class NodeLock:
    """Held while an agent runs in this network namespace. Raises AgentError if another one holds it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(LOCK_NAME)
        except OSError as error:
            self._socket.close()
            raise AgentError(
                "another Podway agent runs on this node",
                hint="stop it first (`systemctl stop podway-agent`); one node has one agent",
            ) from error

    def release(self) -> None:
        """Let another agent start."""
        self._socket.close()


def kernel_instance() -> str:
    """Return what tells this running kernel and network namespace from every other one.

    It stays the same when the agent restarts and changes when the machine does.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"
