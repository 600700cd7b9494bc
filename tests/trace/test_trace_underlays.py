"""What trace and doctor tell where nodes have IPv4 alone, IPv6 alone, or both."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from podway.lab.facts import PoolSettings
from tests.patience import eventually
from tests.system.system_lab import SystemLab

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab() -> Iterator[SystemLab]:
    """A node of both families, one of IPv4 alone and one of IPv6 alone, each with a pod."""
    found = SystemLab()
    try:
        found.up(3, pool_settings=PoolSettings(distribution="store", encapsulation="vxlan"))
        for number in (1, 2, 3):
            found.podway("lab", "run", f"p{number}", "--node", f"node{number}")
        found.sh("node2", "ip address del fd70:6f64:7761:7900::2/64 dev eth0")
        found.sh("node3", "ip address del 172.30.0.3/16 dev eth0")
        eventually(lambda: "node3" in str(found.status("node2")["encapsulation"]["problems"]))
        eventually(lambda: traced(found, "p1", "p3")["verdict"]["outcome"] == "delivered")
        yield found
    finally:
        found.down()


def traced(lab: SystemLab, source: str, target: str) -> Any:
    """Return the report on the way there of a trace, in the first family."""
    return json.loads(lab.podway("trace", source, target, "-o", "json", check=False))["families"][0]["there"]


def test_trace_shows_the_underlay_that_a_pair_shares(lab: SystemLab) -> None:
    for target, device in (("p2", "podway-vxlan"), ("p3", "podway-vxlan6")):
        eventually(lambda target=target: traced(lab, "p1", target)["verdict"]["outcome"] == "delivered")
        assert device in [hop["exit"] for hop in traced(lab, "p1", target)["hops"]]


def test_trace_tells_of_nodes_that_share_no_family(lab: SystemLab) -> None:
    verdict = traced(lab, "p2", "p3")["verdict"]
    assert (verdict["outcome"], verdict["code"]) == ("lost", "no-way")
    assert "no way leads from node node2" in verdict["problem"]
    assert "podway status node2" in verdict["advice"]


def test_doctor_finds_pods_mtu_right_on_every_node(lab: SystemLab) -> None:
    def healthy() -> bool:
        found = json.loads(lab.podway("doctor", "-o", "json", check=False))["findings"]
        assert [each for each in found if "mtu" in each["check"]] == []
        return True

    eventually(healthy)
