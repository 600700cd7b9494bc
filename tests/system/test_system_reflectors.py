"""Route reflectors die one after the other, and the cluster keeps its routes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from podway.lab import cluster
from tests.patience import eventually
from tests.system.system_lab import SystemLab, running_lab

pytestmark = pytest.mark.kernel

NODES = 5


@pytest.fixture(scope="module")
def lab() -> Iterator[SystemLab]:
    with running_lab(NODES) as five:
        yield five


def findings(lab: SystemLab) -> list[dict[str, str]]:
    found = json.loads(lab.podway("doctor", "-o", "json", check=False))["findings"]
    return [finding for finding in found if finding["check"] == "reflectors"]


def test_reflectors_that_die_are_replaced_and_no_living_node_loses_a_route(lab: SystemLab) -> None:
    def routing(node: str) -> Any:
        return lab.status(node)["routing"]

    living = [f"node{number}" for number in range(1, NODES + 1)]
    lab.podway("set", "config", "bgp.topology=reflectors", "bgp.reflectors.count=2", "--wait")
    first = routing("node1")["reflectors"]
    assert len(first) == 2
    for node in living:  # --wait means: everything is done
        peers = routing(node)["peers"]
        assert {peer["node"] for peer in peers} == set(living if node in first else first) - {node}
        assert all(peer["state"] == "Established" for peer in peers)
    assert not findings(lab)
    blocks = {node: [str(block) for block, owner in lab.blocks().items() if owner == node] for node in living}

    def complete() -> bool:
        return all(
            block in lab.sh(node, "ip route; ip -6 route")
            for node in living
            for other in living
            for block in blocks[other]
        )

    eventually(complete)
    for dead in first:
        cluster.kill_node(lab.name, dead)
        living.remove(dead)
        for node in living:
            eventually(lambda node=node, dead=dead: dead in routing(node)["lost"])
        eventually(lambda: len(set(routing(living[0])["reflectors"]) - set(routing(living[0])["lost"])) == 2)
        eventually(complete)
        told = findings(lab)
        assert any(dead in finding["subject"] and "lost" in finding["found"] for finding in told), told
    assert lab.podway("status", living[0]).count("lost") == 1
