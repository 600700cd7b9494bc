"""Labs to measure in: each with a name of its own, and gone afterwards whatever happened."""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from podway.errors import LabError
from podway.kernel import netns
from podway.lab import agents, cluster, names, pods, state
from podway.lab.processes import Spawned

T = TypeVar("T")


class Lab:
    """A running lab; `took` is how many seconds `podway lab up` did."""

    def __init__(self, name: str, nodes: int, took: float) -> None:
        self.name = name
        self.took = took
        self.nodes = [f"node{index}" for index in range(1, nodes + 1)]

    def inside(self, node: str, function: Callable[[], T]) -> T:
        """Run a function in a node's network namespace, in a thread of its own."""
        return inside(names.node_netns(self.name, node), function)

    def status(self, node: str) -> dict[str, Any]:
        """Return what the node's agent says of itself. Raises AgentError."""
        return agents.status(self.name, node)

    def resident(self, node: str) -> int:
        """Return the resident memory of the node's agent in bytes (VmRSS, proc_pid_status(5))."""
        for line in Path(f"/proc/{self.status(node)['pid']}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmRSS":
                return int(value.split()[0]) * 1024
        raise LabError(f"the agent of {node} ended")

    def run_pod(self, name: str, node: str) -> "RunningPod":
        """Run a pod."""
        pod = pods.run(self.name, name, node=node)
        return RunningPod(pods.netns_of(self.name, pod), pod.status.pod_ip)

    def start_agent(self, node: str) -> Spawned:
        """Start the node's agent; do not wait until it is ready."""
        return agents.start(self.name, node)

    def wait_ready(self, node: str, process: Spawned) -> None:
        """Wait until an agent is ready. Raises LabError."""
        agents.wait_ready(self.name, {node: process}, lambda _: None)


class RunningPod(msgspec.Struct, frozen=True):
    """A pod of a lab: its network namespace's name, and its (first) address."""

    netns: str
    address: str


@contextlib.contextmanager
def lab(nodes: int) -> Iterator[Lab]:
    """Give a lab while the block runs. Raises LabError."""
    name = f"bench{os.getpid()}{secrets.token_hex(2)}"
    command = [sys.executable, "-m", "podway", "--lab", name, "lab", "up", "--nodes", str(nodes)]
    try:
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")
        yield Lab(name, nodes, time.monotonic() - begun)
    finally:
        if name in state.labs():  # a failed command took it down itself
            cluster.down(name)


def inside(namespace: str, function: Callable[[], T]) -> T:
    """Run a function in a named network namespace, in a thread of its own."""
    with netns.opened(netns.path_of(namespace)) as fd:
        return netns.run(fd, function)


def kill(pid: int) -> None:
    """Kill a process by SIGKILL; return once it has ended."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        with contextlib.suppress(ChildProcessError):  # it may be ours to reap
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
