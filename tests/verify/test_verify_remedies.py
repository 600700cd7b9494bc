"""What verify advises is done in a lab: the fault is gone then, and nothing else is broken.

And what it must not advise: to remove what is Podway's own, or a route on which others depend.
"""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from podway.cli.options import GlobalOptions
from podway.cli.verify import world_of
from podway.kernel import netns
from podway.lab import cluster, names, pods
from podway.lab.facts import PoolSettings
from podway.verify.report import Finding, Report
from podway.verify.verify import verify

pytestmark = pytest.mark.kernel

PATIENCE = 20.0
COMMAND = re.compile("`(nsenter [^`]*|ip [^`]*|sysctl [^`]*)`")


def sh(namespace: str, script: str) -> str:
    path = netns.path_of(namespace)
    done = subprocess.run(["nsenter", f"--net={path}", "sh", "-euc", script], capture_output=True, text=True)
    assert done.returncode == 0, f"{script}: {done.stderr}"
    return done.stdout


class Lab:
    """Two nodes with a pod on each, and a default route out of each node."""

    def __init__(self, pool_settings: PoolSettings) -> None:
        self.name = f"pwm{os.getpid()}x{secrets.token_hex(2)}"
        pools = ("10.244.0.0/16", "fd00:244::/56")
        cluster.up(
            self.name,
            nodes=2,
            pools=pools,
            block_sizes=(),
            asn=64512,
            report=lambda _: None,
            pool_settings=pool_settings,
        )
        for number in (1, 2):
            pods.run(self.name, f"p{number}", node=f"node{number}")

    def on(self, node: int, script: str) -> str:
        return sh(names.node_netns(self.name, f"node{node}"), script)

    def prove(self) -> Report:
        return verify(world_of(GlobalOptions(None, self.name)), timeout=0.4)

    def address(self, pod: int, version: int = 4) -> str:
        found = pods.find(self.name, f"p{pod}", "default").addresses
        return str(next(address for address in found if address.version == version))

    def well(self) -> bool:
        done = subprocess.run(
            [sys.executable, "-m", "podway", "--lab", self.name, "doctor", "-o", "json"],
            capture_output=True,
            text=True,
        )
        return self.prove().holds and json.loads(done.stdout)["findings"] == []

    def wait_well(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.well():
            assert time.monotonic() < deadline, self.prove().findings


@pytest.fixture(scope="module", params=["routed", "bridge", "vxlan"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    encapsulations = {
        "routed": PoolSettings(),
        "bridge": PoolSettings(attach="bridge"),
        "vxlan": PoolSettings(encapsulation="vxlan"),
    }
    made = Lab(encapsulations[request.param])
    try:
        yield made
    finally:
        cluster.down(made.name)


FAULTS = {
    "a narrower route into nowhere": ("ip route add blackhole {there}/32 proto static", ""),
    "an unreachable route, IPv6": ("ip route add unreachable {there6}/128", ""),
    "a narrower route elsewhere": ("ip route add {there}/32 dev br9 proto static", "br9"),
    "a better metric": ("ip route add $(ip route get {there} fibmatch | cut -d' ' -f1) dev br9 metric 1", "br9"),
    "somebody has the address": ("ip address add {there}/32 dev br9", "br9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_advised_repairs_and_breaks_nothing(lab: Lab, fault: str) -> None:
    script, device = FAULTS[fault]
    lab.wait_well()
    if device:
        lab.on(1, f"ip link add {device} type bridge; ip link set {device} up")
    try:
        lab.on(1, script.format(there=lab.address(2), there6=lab.address(2, 6)))
        commands = {command for finding in lab.prove().findings for command in COMMAND.findall(finding.advice)}
        assert commands
        for command in commands:
            subprocess.run(["sh", "-euc", command], check=True)
        assert lab.prove().holds
    finally:
        with contextlib.suppress(AssertionError):
            lab.on(1, f"ip link del {device}" if device else "true")
    lab.wait_well()


def advice(findings: tuple[Finding, ...]) -> str:
    return "\n".join(finding.advice for finding in findings)


def test_a_dropped_forward_is_no_reason_to_remove_routes(lab: Lab) -> None:
    """The policy of FORWARD drops: the routes of Podway, on cni0 too, are right."""
    lab.wait_well()
    lab.on(1, "nft 'add table inet x; add chain inet x f { type filter hook forward priority 0; policy drop; }'")
    try:
        report = lab.prove()
    finally:
        lab.on(1, "nft delete table inet x")
    assert report.findings
    assert "ip route" not in advice(report.findings)
    assert all("a firewall rule or an eBPF program does it" in finding.problem for finding in report.findings)


def test_a_default_route_is_never_to_be_removed(lab: Lab) -> None:
    """The block's own route is gone for as long as BIRD stands still: what lacks is told, not what is left."""
    lab.wait_well()
    run_dir = f"/run/podway/lab/{lab.name}/nodes/node1"
    lab.on(1, "ip link add br9 type bridge; ip link set br9 up; ip address add 198.51.100.1/24 dev br9")
    lab.on(1, "ip route add default via 198.51.100.9 dev br9")
    birdc = ["birdc", "-s", f"{run_dir}/bird.ctl"]
    try:
        subprocess.run([*birdc, "disable", "'node2.ipv4'"], check=True, capture_output=True)
        deadline = time.monotonic() + PATIENCE
        while "proto bird" in lab.on(1, "ip -4 route"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        report = lab.prove()
    finally:
        subprocess.run([*birdc, "enable", "'node2.ipv4'"], check=True, capture_output=True)
        lab.on(1, "ip link del br9")
    # Where a pool asks for encapsulation, its last resort is there still, and nothing leaves by the default route.
    words = ("has no route to node2's block", "throws packets for node2's block")
    assert any(word in finding.problem for word in words for finding in report.findings)
    assert "ip route del" not in advice(report.findings)
    lab.wait_well()
