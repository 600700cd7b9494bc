"""One lab for all tests of traces: three dual-stack nodes and three pods, left by each test as it was found."""

import os
import secrets
from collections.abc import Iterator

import pytest

from podway.lab import cluster, pods
from tests.trace.trace_lab import POOLS, TraceLab


@pytest.fixture(scope="session")
def lab() -> Iterator[TraceLab]:
    name = f"trace{os.getpid()}x{secrets.token_hex(2)}"
    cluster.up(name, nodes=3, pools=POOLS, block_sizes=(), asn=64512, report=lambda _: None)
    try:
        for pod, node, serve in (("a", "node1", 80), ("b", "node2", 80), ("c", "node1", None)):
            pods.run(name, pod, node=node, serve=serve)
        yield TraceLab(name)
    finally:
        cluster.down(name)
