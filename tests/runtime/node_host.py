"""A lab's node as a container runtime sees a whole machine."""

import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path

from podway.kernel import netns
from podway.lab.names import node_netns
from podway.lab.state import node_dir
from tests.patience import PATIENCE

# /run/podway is the node's run directory, so that the plugin finds the agent where it does on a real node. Empty
# /run, /var/lib and /dev/shm keep what runtimes write there away from the machine's own. An empty
# /sys/fs/cgroup makes them do without cgroups, which differ from machine to machine. SIGCHLD is ignored so
# that the kernel reaps what is orphaned here.
INSIDE = """
mount -t tmpfs tmpfs "$1/run"
mkdir -p "$1/run/podway" "$1/run/netns" "$1/run/lock"
mount --bind "$2" "$1/run/podway"
for directory in /var/lib /dev/shm /sys/fs/cgroup; do mount -t tmpfs tmpfs "$directory"; done
mount --rbind "$1/run" /run
trap '' CHLD
echo ready
exec sleep infinity
"""


class NodeHost:
    """A node's network namespace with mounts, processes and System V IPC of its own.

    All of it ends with `close`, whatever was started inside. `directory` is seen inside, too; the agent and
    BIRD stay outside, as they may on a real node, where each has a container of its own.
    """

    def __init__(self, lab: str, node: str, directory: Path) -> None:
        self.node = node
        self.directory = directory
        self.netns = netns.path_of(node_netns(lab, node))
        self.run_dir = node_dir(lab, node)
        self._daemons: list[subprocess.Popen[bytes]] = []
        (directory / "run").mkdir(parents=True)
        apart = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            ["nsenter", f"--net={self.netns}", *apart, "sh", "-euc", INSIDE, "sh", directory, self.run_dir],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        pid = self._holder.pid
        self._first = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        self._enter = ["nsenter", f"--net={self.netns}", "--mount", "--ipc", "--pid", f"--target={self._first}"]

    def run(
        self, *command: str | Path, check: bool = True, environment: dict[str, str] | None = None, text: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside with `text` as its input; its output is text."""
        done = subprocess.run(
            [*self._enter, *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=150,
            env={**os.environ, **(environment or {})},
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def start(self, command: Sequence[str | Path], log: Path) -> None:
        """Start a daemon inside; it ends with the host."""
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [*self._enter, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        self._daemons.append(daemon)

    def path(self, inside: str | Path) -> Path:
        """Return where a path of the host's is seen from outside."""
        return Path(f"/proc/{self._first}/root{inside}")

    def close(self) -> None:
        """Kill the first process, and wait until the kernel has killed all others of its namespace."""
        first = os.pidfd_open(self._first)
        try:
            self._holder.kill()
            assert select.select([first], [], [], PATIENCE)[0], "processes of the host do not end"
        finally:
            os.close(first)
        self._holder.communicate()
        for daemon in self._daemons:
            daemon.wait(PATIENCE)
