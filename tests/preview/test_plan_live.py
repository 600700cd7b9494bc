"""`podway plan` and `snapshot` of a running cluster: what is said is what the kernels then have."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from podway.errors import LabError
from podway.lab import cluster, names, pods
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel

POOL = "{apiVersion: podway.io/v1, kind: IPPool, metadata: {name: more}, spec: {cidr: 10.99.0.0/16}}"
MTU = "{apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}, spec: {mtu: 1400}}"


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """Two nodes and two pods."""
    name = f"p{os.getpid()}x{secrets.token_hex(3)}"
    try:
        cluster.up(name, nodes=2, pools=["10.244.0.0/16"], block_sizes=[], asn=64512, report=lambda _: None)
        for pod in ("a", "b"):
            pods.run(name, pod)
        yield name
    finally:
        try:
            cluster.down(name)
        except LabError as error:
            assert error.message == f"no lab {name!r}"  # noqa: PT017 - anything else is a failure to clean up


def routes(lab: str, node: str) -> set[tuple[str, str]]:
    command = ["ip", "-n", names.node_netns(lab, node), "-4", "-j", "route"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {(route["dst"], route.get("gateway", "")) for route in found}


def test_a_pools_routes_are_those_that_were_planned(lab: str, podway: Callable[..., Result]) -> None:
    nodes = ("node1", "node2")
    answer = json.loads(podway("--lab", lab, "plan", "-f", "-", "-o", "json", stdin=POOL).stdout)
    assert answer["silent"] == {}
    before = {node: routes(lab, node) for node in nodes}
    planned = {
        node["node"]: {
            _route(one["object"]) for one in (*node["kernel"], *node["learned"]) if one["kind"] != "nft table"
        }
        for node in answer["nodes"]
    }
    assert planned.keys() == set(nodes)
    podway("--lab", lab, "apply", "-f", "-", stdin=POOL)
    deadline = time.monotonic() + PATIENCE
    while any(len(routes(lab, node)) < len(before[node]) + 2 for node in nodes):
        assert time.monotonic() < deadline, {node: routes(lab, node) for node in nodes}
        time.sleep(0.2)
    # Which of the nodes claims which block is decided by who is quicker: the plan says so.
    now = {node: routes(lab, node) - before[node] for node in nodes}
    assert _to_owners(now) == _to_owners(planned)


def _to_owners(tables: dict[str, set[tuple[str, str]]]) -> dict[str, set[tuple[str, str]]]:
    """Say of each route whose block it leads to, instead of which block that is."""
    owners = {to: node for node, found in tables.items() for to, via in found if not via}
    return {node: {(owners[to], via) for to, via in found} for node, found in tables.items()}


def test_a_snapshot_tells_what_the_cluster_tells(lab: str, podway: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    assert "2 nodes with their pods" in podway("--lab", lab, "snapshot", "-o", path).stderr
    live = podway("--lab", lab, "plan", "-f", "-", "-o", "json", stdin=MTU).stdout
    assert podway("plan", "--snapshot", path, "-f", "-", "-o", "json", stdin=MTU).stdout == live
    assert json.loads(live)["paths"]["pairs"] == 2


def test_a_dead_nodes_pods_are_left_out_and_that_is_said(lab: str, podway: Callable[..., Result]) -> None:
    cluster.kill_node(lab, "node2")
    told = podway("--lab", lab, "plan", "-f", "-", stdin=MTU).stdout
    assert "note: node2: planned without its pods: " in told
    assert "node1: kernel 1 changed" in told
    assert "podway: node node2: its pods are not in the snapshot" in podway("--lab", lab, "snapshot").stderr


def _route(told: str) -> tuple[str, str]:
    words = told.split()
    assert words[0] == "route"
    return words[1], words[words.index("via") + 1] if "via" in words else ""
