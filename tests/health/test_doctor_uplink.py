"""What a node loses of its own addresses and ways: told while it lasts, with nothing else for the same cause."""

import pytest

from tests.health.health_lab import HealthLab

pytestmark = pytest.mark.kernel

V4, V6 = "172.30.0.1/16", "fd70:6f64:7761:7900::1/64"


def test_the_nodes_addresses_are_gone(lab: HealthLab) -> None:
    lab.sh("node1", f"ip address del {V4} dev eth0; ip address del {V6} dev eth0")
    try:
        lab.finding("uplink", "node1: eth0", "172.30.0.1", "is valid any more", "ip address add")
        checks = {finding["check"] for finding in lab.doctor()["findings"] if "node1" in finding["subject"]}
        assert checks <= {"uplink", "bgp-session", "bfd", "ping", "path-mtu"}
    finally:
        lab.sh("node1", f"ip address add {V4} dev eth0; ip address add {V6} dev eth0 nodad")


def test_a_family_is_gone(lab: HealthLab) -> None:
    lab.sh("node1", f"ip address del {V6} dev eth0")
    try:
        lab.finding("uplink", "node1: eth0", "no IPv6 address", "in the other nodes' subnet")
        assert lab.status("node1")["uplink"]["addresses"] == [V4]
    finally:
        lab.sh("node1", f"ip address add {V6} dev eth0 nodad")


def test_bird_knows_no_way_to_a_next_hop(lab: HealthLab) -> None:
    block = lab.block("node2")
    for protocol in ("uplink_ipv4", "direct_ipv4"):
        lab.birdc("node1", f"disable {protocol}")
    try:
        lab.finding("next-hop", f"node1: route {block}", "told", "node2.ipv4", "ip route get")
        assert any(block in line for line in lab.status("node1")["drift"]["now"])
        assert "differences from the plan" in lab.podway("status", "node1").stdout
    finally:
        for protocol in ("direct_ipv4", "uplink_ipv4"):
            lab.birdc("node1", f"enable {protocol}")
