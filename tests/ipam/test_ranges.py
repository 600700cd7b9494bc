"""Ranges that Kubernetes gives to nodes: which one a node may claim, and what is told where there is none."""

import msgspec
import pytest

from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node, NodeSpec
from podway.api.meta import Metadata
from podway.api.validate import problems
from podway.errors import PoolExhausted
from podway.ipam.ranges import given_range, given_ranges
from tests.api.test_judgement import pool

FOUR = pool("four", "10.244.0.0/16", ranges="podCIDRs")
SIX = pool("six", "fd00:10::/48", ranges="podCIDRs", block_size=64)


def node(*ranges: str) -> Node:
    return Node(metadata=Metadata(name="n1"), spec=NodeSpec(pod_cidrs=ranges))


@pytest.mark.parametrize("ranges", [("10.244.7.0/24", "fd00:10:0:7::/64"), ("fd00:10:0:7::/64", "10.244.7.0/24")])
def test_of_two_families_each_pool_takes_its_own_in_whatever_order(ranges: tuple[str, str]) -> None:
    assert str(given_range(FOUR, "n1", node(*ranges))) == "10.244.7.0/24"
    assert str(given_range(SIX, "n1", node(*ranges))) == "fd00:10:0:7::/64"
    blocks = pool("blocks", "10.9.0.0/16")
    assert {str(one) for one in given_ranges((FOUR, SIX, blocks), "n1", node(*ranges))} == set(ranges)


@pytest.mark.parametrize(
    ("of", "found", "words", "hint"),
    [
        (FOUR, None, "Node/n1 has no IPv4 range in spec.podCIDRs yet", "--cluster-cidr=10.244.0.0/16"),
        (FOUR, node("fd00:10:0:7::/64"), "Node/n1 has no IPv4 range", "--allocate-node-cidrs=true"),
        (
            FOUR,
            node("10.5.1.0/24"),
            "10.5.1.0/24, of spec.podCIDRs of Node/n1, is not in IPPool/four",
            "--cluster-cidr",
        ),
        (FOUR, node("10.244.7.0/25"), "is no block of IPPool/four (/24)", "set spec.blockSize: 25"),
    ],
)
def test_what_is_missing_is_told(of: IPPool, found: Node | None, words: str, hint: str) -> None:
    with pytest.raises(PoolExhausted) as told:
        given_range(of, "n1", found)
    assert words in told.value.message
    assert hint in told.value.hint
    assert not given_ranges((of,), "n1", found)


def test_a_nodes_range_that_is_no_network_is_told() -> None:
    (wrong,) = problems(node("10.244.7.0/24", "10.244.7.1/24"))
    assert wrong.field == "spec.podCIDRs[1]"
    read = msgspec.json.decode(
        b'{"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.0.0.0/24"], "x": 1}}', type=Node
    )
    assert read.spec.pod_cidrs == ("10.0.0.0/24",)
