"""Traces where the kernel's own forwarding carries pods' packets: what others put in the stack's way counts."""

from collections.abc import Iterator

import pytest

from podway.trace.page import to_text
from tests.trace.test_trace_lab import limits, lost
from tests.trace.trace_lab import TraceLab

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("by_the_kernel")]


@pytest.fixture(scope="module")
def by_the_kernel(lab: TraceLab) -> Iterator[None]:
    """Have the kernel forward while the tests of this file run."""
    with lab.on_data_path("kernel"):
        yield


def test_every_device_sees_the_packet(lab: TraceLab) -> None:
    report = lab.trace("a", "b", protocol="TCP", port=80)
    there = report.families[0].there
    assert report.delivered
    assert limits(there) == [64, 64, 63, 63, 62, 62]
    assert not any(hop.carried for hop in there.hops)
    assert "flow engine" not in to_text(report, width=110, full=True)


def test_a_firewall_drop(lab: TraceLab) -> None:
    rule = f"chain c {{ type filter hook forward priority 0; ip daddr {lab.address('b')} drop; }}"
    with lab.nft("node2", rule):
        family = lab.trace("a", "b").families[0]
    where, why = lost(family.there.verdict, family.there)
    assert where == "node node2"
    assert why.startswith("node node2 drops packets from other nodes to its pods, though it has the right route")
    assert family.there.verdict.last_seen == "entering by eth0 of node node2"
    assert (family.back.verdict.outcome, family.back.verdict.basis) == ("delivered", "echo")


def test_a_firewall_that_rejects_says_so(lab: TraceLab) -> None:
    rule = "chain c { type filter hook forward priority 0; tcp dport 80 reject with icmpx admin-prohibited; }"
    with lab.nft("node1", rule):
        family = lab.trace("a", "b", protocol="TCP", port=80).families[0]
    assert lost(family.there.verdict, family.there)[0] == "node node1"
    assert "node node1 answered: communication administratively prohibited" in family.there.verdict.detail


def test_translation_by_another_table(lab: TraceLab) -> None:
    source = lab.address("a")
    rule = f"chain c {{ type nat hook postrouting priority srcnat; ip saddr {source} masquerade; }}"
    with lab.nft("node1", rule):
        report = lab.trace("a", "b", protocol="TCP", port=80)
    there, back = report.families[0].there, report.families[0].back
    assert report.delivered
    assert (there.verdict.source_kept, there.verdict.code) == (False, "address-translated")
    assert there.verdict.problem.startswith("node node1 translates source addresses to ")
    assert "masquerade" in there.verdict.advice
    before, after = (seen.source for seen in there.hops[1].seen)
    assert (before, after == before) == (str(source), False)
    assert back.verdict.problem == ""


def test_a_source_that_is_refused(lab: TraceLab) -> None:
    source = lab.address("a")
    link = lab.sh("node2", "ip -br link show group 0x70776179").split("@")[0]
    with (
        lab.changed(
            "node2", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0"
        ),
        lab.changed("node2", f"ip route add {source} dev {link} proto static", f"ip route del {source}"),
    ):
        family = lab.trace("a", "b").families[0]
    where, why = lost(family.there.verdict, family.there)
    assert (where, "(rp_filter)" in why) == ("node node2", True)


def test_what_the_flow_engine_carries_passes_all_that_by(lab: TraceLab) -> None:
    """A rule that would drop, or translate, what the stack forwards sees nothing of it."""
    rules = (
        f"chain f {{ type filter hook forward priority 0; ip daddr {lab.address('b')} drop; }}\n"
        f"chain n {{ type nat hook postrouting priority srcnat; ip saddr {lab.address('a')} masquerade; }}"
    )
    with lab.on_data_path("ebpf"), lab.nft("node1", rules), lab.nft("node2", rules):
        report = lab.trace("a", "b", protocol="TCP", port=80)
    there = report.families[0].there
    assert report.delivered
    assert (there.verdict.source_kept, there.verdict.problem) == (True, "")
    assert [hop.carried for hop in there.hops] == [False, False, True, False]
    assert limits(there) == [64, 64, 63, 63, 62]
    assert "carried straight into the pod by the flow engine" in to_text(report, width=110, full=True)
