"""A lab in which faults are caused: nodes, their agents and BIRDs, and the doctor's report on them."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podway.api.kinds.address_block import AddressBlock
from podway.channel.client import call
from podway.errors import AgentError
from podway.kernel import netns
from podway.lab import agents, cluster, facts, names, pods, processes
from podway.lab.paths import lab_dir, lab_store
from podway.lab.state import node_dir
from podway.store.base import Listing
from tests.patience import PATIENCE

POOLS = ("10.244.0.0/16", "fd00:244::/56")

Report = dict[str, Any]


def sh(namespace: str, script: str) -> str:
    """Run a shell script in a named network namespace; return what it printed."""
    path = netns.path_of(namespace)
    done = subprocess.run(["nsenter", f"--net={path}", "sh", "-euc", script], capture_output=True, text=True)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class HealthLab:
    """One lab of a unique name, with a pod on each node."""

    name: str = field(default_factory=lambda: f"h{os.getpid()}x{secrets.token_hex(2)}")

    def up(self, nodes: int) -> None:
        cluster.up(self.name, nodes=nodes, pools=POOLS, block_sizes=[], asn=64512, report=lambda _: None)
        for number in range(1, nodes + 1):
            pods.run(self.name, f"pod{number}", node=f"node{number}")

    def sh(self, node: str, script: str) -> str:
        return sh(names.node_netns(self.name, node), script)

    def fabric(self, script: str) -> str:
        return sh(names.fabric_netns(self.name), script)

    def run_dir(self, node: str) -> Path:
        return node_dir(self.name, node)

    def status(self, node: str) -> dict[str, Any]:
        answer: dict[str, Any] = call(self.run_dir(node) / "agent.sock", "status")
        return answer

    @property
    def carries(self) -> bool:
        """Whether the flow engine carries the packets of pods."""
        return bool(self.status("node1")["data_path"]["in_force"] == "ebpf")

    def birdc(self, node: str, command: str) -> str:
        socket = self.run_dir(node) / "bird.ctl"
        return subprocess.run(
            ["birdc", "-s", str(socket), command], check=True, capture_output=True, text=True
        ).stdout

    def bird_pid(self, node: str) -> int:
        return int((self.run_dir(node) / "bird.pid").read_text())

    def store(self, question: Callable[[Any], Any]) -> Any:
        return facts.ask(self.name, question)

    def block(self, node: str) -> str:
        """Return a node's IPv4 block."""
        listing: Listing[AddressBlock] = self.store(lambda store: store.list(AddressBlock))
        return next(b.spec.cidr for b in listing.items if b.spec.node == node and b.network.version == 4)

    # The doctor.

    def podway(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "podway", "--lab", self.name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=150)

    def doctor(self, *nodes: str) -> Report:
        done = self.podway("doctor", *nodes, "-o", "json")
        assert not done.stderr, done.stderr
        report: Report = json.loads(done.stdout)
        assert done.returncode == (1 if report["errors"] else 0)
        assert report["healthy"] == (report["errors"] == 0)
        return report

    def finding(self, check: str, subject: str, *words: str, within: float = PATIENCE) -> dict[str, str]:
        """Wait until the doctor has a finding on this subject that says these words; return it."""
        deadline = time.monotonic() + within
        while True:
            found: list[dict[str, str]] = self.doctor()["findings"]
            for finding in found:
                told = f"{finding['found']} {finding['advice']}"
                if (finding["check"], finding["subject"]) == (check, subject) and all(w in told for w in words):
                    assert finding["why"]
                    assert finding["advice"]
                    return finding
            assert time.monotonic() < deadline, f"no {check} on {subject} with {words} in {found}"

    def wait_healthy(self, within: float = PATIENCE) -> None:
        """Wait until the doctor finds nothing at all."""
        deadline = time.monotonic() + within
        while found := self.doctor()["findings"]:
            assert time.monotonic() < deadline, found

    # Processes.

    def stop_agent(self, node: str) -> None:
        pid = int(self.status(node)["pid"])
        end(pid, signal.SIGTERM)

    def start_agent(self, node: str) -> None:
        agents.wait_ready(self.name, {node: agents.start(self.name, node)}, lambda _: None)

    def start_missing_agents(self) -> None:
        """Start the agents that a failed test left stopped, so that others do not fail with it."""
        for node in ("node1", "node2"):
            with contextlib.suppress(AgentError):
                self.status(node)
                continue
            self.start_agent(node)

    def restart_agent(self, node: str) -> None:
        self.stop_agent(node)
        self.start_agent(node)

    @contextlib.contextmanager
    def altered_agent(self, node: str, alteration: str) -> Iterator[None]:
        """Have a node's agent run with one statement executed before it begins."""
        self.stop_agent(node)
        program = f"{alteration}\nfrom podway.cli.main import main\nmain()"
        options = ["agent", "--node", node, "--store", lab_store(self.name), "--run-dir", str(self.run_dir(node))]
        process = processes.spawn(
            [sys.executable, "-c", program, *options],
            namespace=names.node_netns(self.name, node),
            mark=f"{self.name}/{node}",
            log=self.run_dir(node) / agents.LOG,
        )
        agents.wait_ready(self.name, {node: process}, lambda _: None)
        try:
            yield
        finally:
            self.restart_agent(node)


def end(pid: int, number: signal.Signals) -> None:
    """Signal a process, and wait until it is gone."""
    os.kill(pid, number)
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.02)


@contextlib.contextmanager
def running_lab(nodes: int) -> Iterator[HealthLab]:
    """Give a lab while the block runs."""
    lab = HealthLab()
    try:
        lab.up(nodes)
        yield lab
    finally:
        if lab_dir(lab.name).exists():
            cluster.down(lab.name)
