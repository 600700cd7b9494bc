"""Labs to measure in: each with a name of its own, and gone afterwards whatever happened."""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from podway.api.encode import to_builtins, to_json, to_list
from podway.api.resource import Resource
from podway.channel.client import call
from podway.errors import LabError
from podway.kernel import netns
from podway.lab import agents, cluster, facts, names, pods, state
from podway.lab.processes import Spawned

T = TypeVar("T")
R = TypeVar("R", bound=Resource)


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

    def peers(self, node: str) -> list[dict[str, Any]]:
        """Return the node's BGP sessions. Raises AgentError."""
        found: list[dict[str, Any]] = call(state.node_dir(self.name, node) / "agent.sock", "peers")
        return found

    def resident(self, node: str) -> int:
        """Return the resident memory of the node's agent in bytes (VmRSS, proc_pid_status(5))."""
        for line in Path(f"/proc/{self.status(node)['pid']}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmRSS":
                return int(value.split()[0]) * 1024
        raise LabError(f"the agent of {node} ended")

    def run_pod(self, name: str, node: str, *, namespace: str = "default") -> "RunningPod":
        """Run a pod."""
        pod = pods.run(self.name, name, node=node, namespace=namespace)
        return RunningPod(pods.netns_of(self.name, pod), pod.status.pod_ip)

    def apply(self, *objects: Resource) -> None:
        """Create or change objects, as `podway apply` does. Raises LabError with its words."""
        manifests = to_json(to_list([to_builtins(obj) for obj in objects]))
        podway(self.name, "apply", "-f", "-", stdin=manifests)

    def only(self, kind: type[R]) -> R:
        """Return the one object of a kind that there is."""
        (found,) = facts.ask(self.name, lambda store: store.list(kind)).items
        return found

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
def lab(nodes: int, *, options: Sequence[str] = ()) -> Iterator[Lab]:
    """Give a lab while the block runs; `options` are further ones of `podway lab up`. Raises LabError."""
    name = f"bench{os.getpid()}{secrets.token_hex(2)}"
    try:
        begun = time.monotonic()
        podway(name, "lab", "up", "--nodes", str(nodes), *options)
        yield Lab(name, nodes, time.monotonic() - begun)
    finally:
        if name in state.labs():  # a failed command took it down itself
            cluster.down(name)


def podway(lab: str, *arguments: str, stdin: str = "") -> None:
    """Run podway for a lab. Raises LabError with its words."""
    command = [sys.executable, "-m", "podway", "--lab", lab, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")


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
