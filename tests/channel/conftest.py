"""A lab of two nodes for all tests of the channel."""

import os
import secrets
from collections.abc import Iterator

import pytest

from podway.lab import cluster


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """The name of a dual-stack lab with nodes node1 and node2."""
    name = f"i{os.getpid()}x{secrets.token_hex(3)}"
    pools = ("10.244.0.0/16", "fd00:10:244::/56")
    cluster.up(name, nodes=2, pools=pools, block_sizes=(), asn=64512, report=lambda _: None)
    try:
        yield name
    finally:
        cluster.down(name)
