"""One lab for all tests of the doctor that cause faults: each test repairs what it broke."""

from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from typing import Any

import pytest

from podway.cluster.view import ClusterView
from podway.health.facts import KernelNetwork, Memory, NeighbourTable, NodeFacts
from podway.plan.objects import NodePlan
from podway.plan.uplink import Uplink
from tests.health.health_lab import HealthLab, running_lab

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/16"),))


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[HealthLab]:
    """Two dual-stack nodes with a pod each, which lack nothing any more: certificates come a little later."""
    with running_lab(2) as lab:
        lab.wait_healthy()
        yield lab


@pytest.fixture
def lab(shared_lab: HealthLab) -> Iterator[HealthLab]:
    """The shared lab. After the test it must be without findings again: what is repaired is no longer found."""
    yield shared_lab
    shared_lab.start_missing_agents()
    shared_lab.wait_healthy()


@pytest.fixture
def node_facts() -> Callable[..., NodeFacts]:
    """Give a function that makes facts of a healthy node, but for what it is told."""

    def make(
        *, uplink: Uplink = UPLINK, tables: tuple[NeighbourTable, ...] = (), memory: Any = None, **given: Any
    ) -> NodeFacts:
        known = {"node": "node1", "version": "1", "view": ClusterView.of(()), "uplink": uplink, "pod_mtu": 1500}
        given.setdefault("network", KernelNetwork(neighbours=tables))
        given.setdefault("now", 1000.0)
        return NodeFacts(memory=Memory(**{"plan": NodePlan(), **known, **(memory or {})}), **given)

    return make
