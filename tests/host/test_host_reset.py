"""Removing Podway leaves a node's kernel as it was before Podway came, but for what others made meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podway.channel.client import call
from podway.errors import AgentError
from podway.kernel import netns
from podway.kernel.bpf import tcx
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel

LOOK = """
ip -j -d link | tr , '\\n' | grep -v -e txqlen -e _packets
ip -4 route show table all; ip -6 route show table all | grep -v -e expires -e ff00
nft -s list ruleset
cd /proc/sys/net; grep -H . ipv4/conf/*/forwarding ipv4/conf/*/rp_filter ipv6/conf/*/forwarding
"""


class Host:
    """A node made by hand, with an agent started as systemd would."""

    def __init__(self, namespace: Any, directory: Path, name: str, store: Path) -> None:
        self.namespace, self.name = namespace, name
        self.run_dir = directory / name
        self._store = f"sqlite://{store}"
        self._agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "podway", "agent", "--node", self.name, "--store", self._store]
        self._agent = netns.run(
            self.namespace.fd,
            lambda: subprocess.Popen([*command, "--run-dir", str(self.run_dir)], stderr=subprocess.DEVNULL),
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                call(self.run_dir / "agent.sock", "status")
                break
            except AgentError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.terminate()
            self._agent.wait(PATIENCE)
            self._agent = None

    def podway(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done: subprocess.CompletedProcess[str] = self.namespace.run(
            sys.executable, "-m", "podway", *arguments, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def uninstall(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        nowhere = str(self.run_dir / "nowhere")
        dirs = ["--plugin-dir", nowhere, "--conf-dir", nowhere, "--unit-dir", nowhere]
        return self.podway("uninstall", "--run-dir", str(self.run_dir), *dirs, *arguments, check=check)

    def set(self, *arguments: str) -> None:
        self.podway("--store", self._store, "set", *arguments)

    def end(self) -> None:
        if self._agent is not None:
            self._agent.kill()
            self._agent.wait()
        pid = self.run_dir / "bird.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)


def programs_of(host: Host) -> object:
    """Return what is attached to the uplink, by whichever of the two hooks the kernel has."""

    def look() -> list[int]:
        return tcx.programs(socket.if_nametoindex("eth0"), "ingress") if tcx.is_supported() else []

    return host.namespace.sh("tc qdisc show dev eth0"), netns.run(host.namespace.fd, look)


@pytest.fixture
def hosts(new_netns: Callable[[], TestNamespace], tmp_path: Path) -> Iterator[list[Host]]:
    first, second = new_netns(), new_netns()
    first.sh(f"ip link add eth0 type veth peer name eth0 netns {second.name}")
    for number, namespace in enumerate((first, second), 1):
        namespace.sh(f"ip link set eth0 up; ip addr add 172.30.0.{number}/24 dev eth0")
    for namespace in (first, second):
        namespace.sh("until ip -6 addr show dev eth0 | grep fe80 | grep -qv tentative; do sleep 0.05; done")
    store = tmp_path / "store.db"
    manifest = tmp_path / "pool.json"
    pool = {"apiVersion": "podway.io/v1", "kind": "IPPool", "metadata": {"name": "p"}}
    manifest.write_text(json.dumps({**pool, "spec": {"cidr": "10.244.0.0/16"}}))
    made = [Host(namespace, tmp_path, f"n{i}", store) for i, namespace in enumerate((first, second), 1)]
    made[0].podway("--store", f"sqlite://{store}", "apply", "-f", str(manifest))
    yield made
    for host in made:
        host.end()


@pytest.mark.parametrize("encapsulation", ["none", "vxlan", "ipip"])
def test_a_node_is_as_it_was_before(hosts: list[Host], encapsulation: str) -> None:
    one, two = hosts
    one.namespace.sh("nft add table inet theirs; ip route add blackhole 192.0.2.0/24")
    one.namespace.sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter")  # strict: an overlay needs it loose
    before, programs = one.namespace.sh(LOOK), programs_of(one)
    one.start()
    two.start()
    one.set("pool/p", f"encapsulation={encapsulation}")
    way = {"none": "dev eth0", "vxlan": "dev podway-vxlan", "ipip": "dev podway-ipip"}[encapsulation]
    deadline = time.monotonic() + PATIENCE
    while not any("proto bird" in line and way in line for line in one.namespace.sh("ip route").splitlines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert one.namespace.sh(LOOK) != before
    assert (one.namespace.sh("cat /proc/sys/net/ipv4/conf/eth0/rp_filter") == "2\n") == (encapsulation != "none")
    assert (programs_of(one) != programs) == (encapsulation == "ipip")

    refused = one.uninstall(check=False)
    assert (refused.returncode, "another Podway agent" in refused.stderr) == (1, True), refused.stderr

    one.stop()
    assert "set back" in one.uninstall().stdout
    assert one.namespace.sh(LOOK).splitlines() == before.splitlines()
    assert programs_of(one) == programs
    assert one.uninstall().returncode == 0
