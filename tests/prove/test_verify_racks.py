"""verify where the fabric is not flat: a real lab of two racks, whose routers know nothing of pods."""

import os
import secrets
import time
from collections.abc import Iterator

import msgspec
import pytest

from patience import PATIENCE
from podway.api.resources import IPPool
from podway.cli.options import GlobalOptions
from podway.cli.verify import world_of
from podway.lab import cluster, facts, pods
from podway.prove.report import Report
from podway.prove.verify import verify

pytestmark = pytest.mark.kernel


@pytest.fixture
def racks() -> Iterator[str]:
    """A lab: node1 and node2 in one rack, node3 in the other, a pod on each."""
    name = f"pwr{os.getpid()}x{secrets.token_hex(2)}"
    cluster.up(name, nodes=3, racks=2, pools=("10.244.0.0/16",), block_sizes=(), asn=64512, report=lambda _: None)
    try:
        for number in (1, 2, 3):
            pods.run(name, f"p{number}", node=f"node{number}")
        yield name
    finally:
        cluster.down(name)


def prove(lab: str) -> Report:
    return verify(world_of(GlobalOptions(None, lab)), timeout=1.0)


def test_routers_that_know_no_pods_are_named_and_crossed_encapsulated(racks: str) -> None:
    report = prove(racks)
    assert "node node1 sends packets for IPPool/ipv4 as they are to the router 172.30.1.254" in str(
        report.findings
    )
    assert {finding.detail.split(";")[0] for finding in report.findings} <= {
        f"172.30.{rack}.254 answered: network unreachable (ICMP)" for rack in (1, 2)
    }
    pool = facts.ask(racks, lambda store: store.get(IPPool, "ipv4"))
    spec = msgspec.structs.replace(pool.spec, encapsulation="vxlan", when="cross-subnet")
    facts.ask(racks, lambda store: store.update(msgspec.structs.replace(pool, spec=spec)))
    deadline = time.monotonic() + PATIENCE
    # A proof during the change may see both forms of one pair.
    while not (report := prove(racks)).holds or any(len(one.forms) > 1 for one in report.crossings):
        assert time.monotonic() < deadline, report.findings
    rack = {"node1": 1, "node2": 1, "node3": 2}
    assert {(one.sender, one.receiver) for one in report.crossings} == {
        (one, other) for one in rack for other in rack if one != other
    }
    for one in report.crossings:
        assert one.forms == one.asked == (("none",) if rack[one.sender] == rack[one.receiver] else ("vxlan",))
