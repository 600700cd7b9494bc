"""Traces where routers of racks tell the routes, and where a node's power is cut: who told, and why it is gone."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from podway.lab import cluster, pods
from podway.lab.fabric import Tor
from podway.trace.report import TraceReport
from tests.patience import PATIENCE, eventually
from tests.trace.trace_lab import TraceLab

pytestmark = pytest.mark.kernel


@pytest.fixture(params=["none", "bird", "frr"])
def racks(request: pytest.FixtureRequest) -> Iterator[tuple[TraceLab, Tor]]:
    """node1 in one rack, node2 in the other, a pod on each; with `none`, one segment for both."""
    tor: Tor = request.param
    name = f"ttr{os.getpid()}x{secrets.token_hex(2)}"
    pools = ("10.244.0.0/16",)
    count = 1 if tor == "none" else 2
    cluster.up(name, nodes=2, racks=count, tor=tor, pools=pools, block_sizes=(), asn=64512, report=lambda _: None)
    try:
        for pod, node in (("a", "node1"), ("b", "node2")):
            pods.run(name, pod, node=node)
        yield TraceLab(name), tor
    finally:
        cluster.down(name)


def told(report: TraceReport) -> tuple[str, str]:
    """Return who tells node1 the way to the other's block, as planned and as its kernel has it."""
    hop = report.families[0].there.hops[1]
    assert hop.planned is not None
    assert hop.kernel is not None
    return hop.planned.learned_from, hop.kernel.learned_from


def test_who_told_a_route_and_that_it_went_with_its_node(racks: tuple[TraceLab, Tor]) -> None:
    lab, tor = racks
    deadline = time.monotonic() + PATIENCE
    while not (report := lab.trace("a", "b")).delivered:
        assert time.monotonic() < deadline
    assert told(report) == (("node2", "node2") if tor == "none" else ("tor1-ipv4", "tor1-ipv4"))
    cluster.kill_node(lab.name, "node2")
    deadline = time.monotonic() + PATIENCE
    while lab.block("node2") in lab.sh("node1", "ip route"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    command = [sys.executable, "-m", "podway", "--lab", lab.name, "get", "nodes"]

    def rows() -> dict[str, str]:
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return {row.split()[0]: row for row in shown}

    # Agents look at what they have learned when the kernel tells them, which on a busy machine takes a moment.
    eventually(lambda: "no route from node1" in rows()["node2"], "it is told that node2 cannot be reached")
    assert "alive" in rows()["node1"]
    verdict = lab.trace("a", "b").families[0].there.verdict
    assert (verdict.outcome, verdict.hop) == ("lost", 2)
    assert verdict.problem.startswith(
        f"node node1 has no route to node2's block {lab.block('node2')}: it was withdrawn"
    )
    assert "node node2 is dead or cut off" in verdict.problem
    assert "podway delete node node2" in verdict.advice
