"""A lab whose store is an etcd: what agents do while it is gone, and with an account that is a node's own."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.kinds.pod import Pod
from podway.errors import AgentError, LabError, StoreForbidden
from podway.kernel import netns
from podway.lab import agents, cluster, etcd, facts, names, pods, state
from podway.lab.paths import lab_store, store_file
from podway.lab.state import node_dir
from podway.store.etcd.keys import Layout
from tests.etcd import EtcdServer
from tests.patience import ANSWERED, PATIENCE, eventually

pytestmark = pytest.mark.kernel


class Lab:
    """A lab of two nodes, with a pod on each."""

    def __init__(self) -> None:
        self.name = f"e{secrets.token_hex(4)}"
        cluster.up(
            self.name,
            nodes=2,
            pools=("10.244.0.0/16",),
            block_sizes=(),
            asn=64512,
            report=lambda _: None,
            in_etcd=True,
        )
        try:
            self.pods = [pods.run(self.name, f"p{number}", node=f"node{number}") for number in (1, 2)]
        except BaseException:
            cluster.down(self.name)
            raise

    def podway(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "podway", "--lab", self.name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=2 * PATIENCE).stdout

    def ping(self, sender: Pod, receiver: Pod) -> bool:
        path = netns.path_of(pods.netns_of(self.name, sender))
        command = ["nsenter", f"--net={path}", *ANSWERED, receiver.status.pod_ips[0].ip]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def problem(self, node: str) -> str:
        told: str = agents.status(self.name, node)["store"]["problem"]
        return told

    def processes(self, namespace: str, program: str) -> list[int]:
        """Return the processes in a namespace whose command line has this."""
        found = subprocess.run(["ip", "netns", "pids", namespace], check=True, capture_output=True, text=True)
        return [pid for pid in map(int, found.stdout.split()) if program.encode() in _command(pid)]

    def kill(self, namespace: str, program: str) -> None:
        """End such processes at once."""
        for pid in self.processes(namespace, program):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.processes(namespace, program), f"{program} is gone")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        with contextlib.suppress(LabError):
            cluster.down(made.name)


def test_commands_and_agents_use_it_and_the_controller_signs(lab: Lab) -> None:
    assert lab.podway("get", "nodes", "-o", "name").split() == ["node/node1", "node/node2"]
    assert lab.ping(*lab.pods)
    eventually(lambda: lab.podway("get", "nodecertificates").count("until") == 2, "both certificates are signed")
    assert lab_store(lab.name).startswith("etcd://")


def test_agents_go_on_while_it_is_gone_and_take_up_what_happened_when_it_is_back(lab: Lab) -> None:
    lab.kill(names.control_netns(lab.name), "--data-dir=")
    for node in ("node1", "node2"):
        eventually(lambda node=node: "cannot be reached" in lab.problem(node), f"{node} tells that etcd is gone")
    assert lab.ping(*lab.pods)
    configuration = (node_dir(lab.name, "node2") / "bird.conf").read_text()
    # An agent that starts now knows what the one before it knew.
    lab.kill(names.node_netns(lab.name, "node2"), "agent")
    agents.start(lab.name, "node2")
    eventually(lambda: _is_ready(lab, "node2"), "node2's new agent is ready")
    assert agents.status(lab.name, "node2")["kernel_writes"] == 0
    assert (node_dir(lab.name, "node2") / "bird.conf").read_text() == configuration
    eventually(lambda: lab.ping(*reversed(lab.pods)), "pods reach each other by what it knows")

    etcd.start(lab.name)
    for node in ("node1", "node2"):
        eventually(lambda node=node: not lab.problem(node), f"{node} has etcd back")
    new = pods.run(lab.name, "new", node="node2")
    assert lab.ping(lab.pods[0], new)
    assert lab.ping(new, lab.pods[0])
    pods.remove(state.load(lab.name), new)


def _is_ready(lab: Lab, node: str) -> bool:
    try:
        return bool(agents.status(lab.name, node)["ready"])
    except AgentError:
        return False


class LabEtcd(EtcdServer):
    """The lab's etcd, as its administrator sees it."""

    def __init__(self, lab: str, directory: Path) -> None:
        super().__init__(directory)
        self.host = str(state.load(lab).fabric.control[0].ip)
        self.fd = netns.open_path(netns.path_of(names.control_netns(lab)))


def test_a_new_nodes_agent_needs_no_more_than_its_own_account(lab: Lab, tmp_path: Path) -> None:
    """It registers, claims a block, renews its lease, asks for a certificate, and carries pods."""
    server, layout, plain = LabEtcd(lab.name, tmp_path), Layout(etcd.PREFIX), lab_store(lab.name)
    (tmp_path / "root.password").write_text("secret-of-root")
    try:
        server.enable_accounts()
        file = server.add_account("node3", layout.readable(), layout.writable("node3"))
        store_file(lab.name).write_text(f"{plain}?user=node3&password-file={file}")
        cluster.add_node(lab.name, "node3", report=lambda _: None)
        with pytest.raises(StoreForbidden, match="forbids node3"):
            pods.run(lab.name, "forbidden", node="node3")
        store_file(lab.name).write_text(f"{plain}?user=root&password-file={tmp_path / 'root.password'}")
        pod = pods.run(lab.name, "p3", node="node3")
        lease: Any = facts.ask(lab.name, lambda store: store.get(NodeLease, "node3", namespace=LEASES))
        assert lease.spec.renew_time
        requested = eventually(
            lambda: "node3" in lab.podway("get", "nodecertificates"), "it asked for a certificate"
        )
        assert requested >= 0
        # The agents that ask as nobody are told so, and go on by what they know.
        eventually(
            lambda: "wants to know who asks" in lab.problem("node1"), "node1 is told that it needs an account"
        )
        assert not lab.problem("node3")
    finally:
        server.ask("auth/disable", {})
        os.close(server.fd)
        store_file(lab.name).write_text(plain)
    for node in ("node1", "node2", "node3"):
        eventually(lambda node=node: not lab.problem(node), f"{node} has etcd back")
    eventually(lambda: lab.ping(lab.pods[0], pod), "node1 knows the way to the new node's pod")
