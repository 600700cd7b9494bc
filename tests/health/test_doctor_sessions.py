"""BGP and BFD sessions that are down: the doctor names the likely reason, as caused."""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.health.health_lab import HealthLab, end

pytestmark = pytest.mark.kernel

SESSION = "node1 - node2 IPv4"
BOTH = f"{SESSION}, IPv6"
"""A fault of both families is told once."""


@contextlib.contextmanager
def reconfigured_bird(lab: HealthLab, node: str, change: Callable[[str], str]) -> Iterator[None]:
    """Give a node's BIRD another configuration than its agent's, as somebody by hand might."""
    theirs, other = lab.run_dir(node) / "bird.conf", lab.run_dir(node) / "other.conf"
    text = theirs.read_text()
    assert change(text) != text
    other.write_text(change(text))
    lab.birdc(node, f'configure "{other}"')
    try:
        yield
    finally:
        lab.birdc(node, f'configure "{theirs}"')
        for each in ("node1", "node2"):
            lab.birdc(each, "restart all")


def test_another_as_number(lab: HealthLab) -> None:
    def changed(text: str) -> str:
        # Only nodes of one AS reflect routes to each other (RFC 4456).
        return text.replace("port 179 as 64512;", "port 179 as 65000;").replace("\trr client;\n", "")

    with reconfigured_bird(lab, "node2", changed):
        lab.finding("bgp-session", BOTH, "disagree about their AS numbers")


def test_a_password_at_one_end(lab: HealthLab) -> None:
    def guarded(text: str) -> str:
        return re.sub(r"(protocol bgp '[^']+' from nodes_ipv4 {)", r'\1 password "secret";', text)

    with reconfigured_bird(lab, "node2", guarded):
        lab.finding("bgp-session", SESSION, "only one end has a password")


@pytest.mark.parametrize("verdict", ["drop", "reject"])
def test_a_filtered_port(lab: HealthLab, verdict: str) -> None:
    reject = "reject with icmp type admin-prohibited"
    ports = "{ 179 }"
    lab.sh(
        "node2",
        "nft 'table ip x { chain p { type filter hook prerouting priority -400; "
        + ("" if verdict == "drop" else "}; chain i { type filter hook input priority 0; ")
        + f"tcp dport {ports} {'drop' if verdict == 'drop' else reject}; tcp sport {ports} drop; }}; }}'",
    )
    lab.birdc("node1", "restart 'node2.ipv4'")
    try:
        lab.finding("bgp-session", SESSION, "answers ping", "the port is filtered")
    finally:
        lab.sh("node2", "nft delete table ip x")


def test_no_route_to_the_peer(lab: HealthLab) -> None:
    """BIRD's sockets are bound to the uplink: they go on without a route, so that the session is to be ended."""
    lab.sh("node1", "ip route add unreachable 172.30.0.2/32")
    lab.birdc("node1", "disable 'node2.ipv4'")
    try:
        lab.finding("bgp-session", SESSION, "no route from node1 to 172.30.0.2", "ip route get 172.30.0.2")
    finally:
        lab.sh("node1", "ip route del unreachable 172.30.0.2/32")
        lab.birdc("node1", "enable 'node2.ipv4'")


def test_a_dead_bird(lab: HealthLab) -> None:
    lab.stop_agent("node2")
    end(lab.bird_pid("node2"), signal.SIGKILL)
    try:
        lab.finding("bgp-session", BOTH, "node2 answers ping, but nothing listens", "BIRD does not run there")
    finally:
        lab.start_agent("node2")


def test_a_dead_node(lab: HealthLab) -> None:
    lab.fabric("ip link set port2 down")
    try:
        lab.finding("bgp-session", BOTH, "answers neither ping nor TCP port 179")
    finally:
        lab.fabric("ip link set port2 up")


def test_a_bird_that_hangs(lab: HealthLab) -> None:
    pid = lab.bird_pid("node2")
    os.kill(pid, signal.SIGSTOP)
    try:
        lab.finding("bird", "node2: BIRD", "BIRD does not answer", "bird.pid")
        for session in ("node2.ipv4", "node2.ipv6"):  # whose hold timers may have expired by now
            lab.birdc("node1", f"restart '{session}'")
        lab.finding("bgp-session", BOTH, "it hangs")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_bfd_filtered(lab: HealthLab) -> None:
    lab.sh("node1", "nft 'table inet x { chain i { type filter hook input priority 0; udp dport 3784 drop; }; }'")
    try:
        lab.finding("bfd", BOTH, "Down", "UDP ports 3784")
        lab.finding("firewall", "node1: nft inet x i", "drops BFD (UDP 3784) from other nodes")
    finally:
        lab.sh("node1", "nft delete table inet x")
