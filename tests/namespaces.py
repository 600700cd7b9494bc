"""Network namespaces of our own, for tests that play a node or a pod."""

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from podway.kernel import netns
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links
from tests.patience import PATIENCE


class TestNamespace:
    """A named network namespace with `lo` up. `fd` is closed, and the name removed, after the test."""

    __test__ = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.path: Path = netns.create(name)
        self.fd = netns.open_path(self.path)
        with Connection(self.fd) as connection:
            connection.transact([links.set_up(links.LOOPBACK)])

    def run(self, *command: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command inside; its output is text."""
        return subprocess.run(
            ["nsenter", f"--net={self.path}", *command],
            check=check,
            text=True,
            capture_output=True,
            **options,
        )

    def sh(self, script: str) -> str:
        """Run a shell script inside, return what it printed."""
        done = self.run("sh", "-euc", script, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def udp(self, address: object, timeout: float = PATIENCE) -> socket.socket:
        """Open a UDP socket inside, bound to a free port of this address."""
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        sock = netns.run(self.fd, lambda: socket.socket(family, socket.SOCK_DGRAM))
        sock.settimeout(timeout)
        try:
            sock.bind((str(address), 0))
        except OSError:
            sock.close()
            raise
        return sock

    def remove(self) -> None:
        """Close the descriptor and delete the name."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        netns.delete(self.name)


def die() -> None:
    """End this process on the spot: what a test's child does where the product may be killed."""
    os.kill(os.getpid(), signal.SIGKILL)
