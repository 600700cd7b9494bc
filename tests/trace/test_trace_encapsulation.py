"""Traces through overlays, and by the store's routes, in a lab whose pools change while it runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import pytest

from podway.api.addresses import Family
from podway.api.kinds.ip_pool import IPPool
from podway.lab import facts
from podway.trace.page import to_text
from podway.trace.report import Direction, TraceReport
from tests.patience import PATIENCE
from tests.trace.trace_lab import TraceLab

pytestmark = pytest.mark.kernel

MTU = {"none": 1500, "vxlan": 1450, "ipip": 1480}


@contextmanager
def pools_with(lab: TraceLab, **changes: str) -> Iterator[None]:
    """Have the lab's IPv4 pool otherwise while the block runs, and wait until its packets cross so."""
    before = _pool(lab)
    try:
        _write(lab, msgspec.structs.replace(before.spec, **changes))
        yield
    finally:
        _write(lab, before.spec)


def _pool(lab: TraceLab) -> IPPool:
    pools = facts.ask(lab.name, lambda store: store.list(IPPool)).items
    return next(pool for pool in pools if pool.family is Family.IPV4)


def _write(lab: TraceLab, spec: object, *, meanwhile: Callable[[], object] = lambda: None) -> None:
    changed = msgspec.structs.replace(_pool(lab), spec=spec)
    facts.ask(lab.name, lambda store: store.update(changed))
    deadline = time.monotonic() + PATIENCE
    wanted = _Settled(changed.spec.encapsulation, changed.spec.distribution, MTU[changed.spec.encapsulation])
    while (found := _settled(lab)) != wanted:
        assert time.monotonic() < deadline, f"packets cross as {found}, not {wanted}"
        meanwhile()
        time.sleep(0.1)


class _Settled(NamedTuple):
    encapsulation: str
    protocol: str
    mtu: int


def _settled(lab: TraceLab) -> _Settled | tuple[_Settled, _Settled]:
    """Return how packets cross, who told the way and the pods' MTU, if both directions agree; else both."""
    family = lab.trace("a", "b", dry_run=True).families[0]
    there, back = (_crossing(direction) for direction in (family.there, family.back))
    return there if there == back else (there, back)


def _crossing(direction: Direction) -> _Settled:
    pod, sent, taken = (hop.kernel for hop in direction.hops[:3])
    if not (pod and sent and taken):
        return _Settled("", "", 0)
    protocol = {"bird": "bgp", "podway": "store"}.get(sent.owner, sent.owner)
    # Both ends of both pods' links: they change one after the other.
    return _Settled(sent.underlay.encapsulation if sent.underlay else "none", protocol, min(pod.mtu, taken.mtu))


def _there(report: TraceReport) -> Direction:
    assert report.delivered, to_text(report, width=110)
    return report.families[0].there


def test_vxlan_with_all_entries_that_lead_through_it(lab: TraceLab) -> None:
    with pools_with(lab, encapsulation="vxlan"):
        report = lab.trace("a", "b")
        there = _there(report)
        assert all(hop.on_plan for hop in there.hops)
        assert (there.verdict.encapsulation, there.verdict.problem, there.verdict.largest) == ("vxlan", "", 1450)
        sent, taken = there.hops[1], there.hops[2]
        assert (sent.exit, sent.wire_exit, taken.entry, taken.wire_entry) == (
            *("podway-vxlan", "eth0"),
            *("podway-vxlan", "eth0"),
        )
        assert sent.planned is not None
        assert sent.kernel is not None
        underlay = sent.kernel.underlay
        assert (sent.planned.encapsulation, underlay and underlay.encapsulation) == ("vxlan", "vxlan")
        assert underlay is not None
        assert (underlay.endpoint, underlay.device, underlay.mtu, underlay.missing) == (
            "172.30.0.2",
            "eth0",
            1500,
            "",
        )
        assert underlay.mac == "02:70:ac:1e:00:02"
        # Bare above the wire, wrapped on it; the inner TTL counts only the nodes.
        assert [(seen.interface, bool(seen.tunnels), seen.hop_limit) for seen in (*sent.seen, *taken.seen)] == [
            (sent.entry, False, 64),
            ("podway-vxlan", False, 63),
            ("eth0", True, 63),
            ("eth0", True, 63),
            ("podway-vxlan", False, 63),
            (taken.exit, False, 62),
        ][: lab.sights(6)]
        text = to_text(report, width=110, full=True)
        assert "02:70:ac:1e:00:02 is behind 172.30.0.2 (forwarding entry)" in text
        assert "the wire to node2, VXLAN (VNI 4096, port 4789) from 172.30.0.1 to 172.30.0.2" in text
        assert "encapsulated in vxlan" in text


def test_ipip_and_routes_of_the_store(lab: TraceLab) -> None:
    with pools_with(lab, encapsulation="ipip", distribution="store"):
        there = _there(lab.trace("a", "b"))
        assert all(hop.on_plan for hop in there.hops)
        assert (there.verdict.encapsulation, there.verdict.largest) == ("ipip", 1480)
        sent, taken = there.hops[1], there.hops[2]
        assert sent.planned is not None
        assert (sent.planned.owner, sent.planned.learned_from, sent.exit) == ("podway", "", "podway-ipip")
        assert taken.entry == "eth0"
        assert sent.seen[-1].tunnels == ("IP in IP from 172.30.0.1 to 172.30.0.2",)


@pytest.mark.parametrize("encapsulation", ["vxlan", "ipip"])
def test_traces_while_the_encapsulation_changes_are_delivered(lab: TraceLab, encapsulation: str) -> None:
    """Their packets are as large as the pods' links let them be, which change one after the other."""
    before = _pool(lab).spec
    for spec in (msgspec.structs.replace(before, encapsulation=encapsulation), before):
        _write(lab, spec, meanwhile=lambda: _there(lab.trace("a", "b")))


def test_a_filter_in_the_way_of_an_overlay(lab: TraceLab) -> None:
    drop = "chain c { type filter hook input priority 0; udp dport 4789 drop; }"
    with pools_with(lab, encapsulation="vxlan"), lab.nft("node2", drop):
        verdict = lab.trace("a", "b").families[0].there.verdict
        assert (verdict.outcome, verdict.hop) == ("lost", 3)
        assert verdict.problem == "node node2 drops VXLAN (UDP port 4789) from node node1: a firewall rule does it"


def test_several_ways_to_one_block_are_all_told(lab: TraceLab) -> None:
    """Somebody's route over two gateways comes first: the trace shows both, and the one that is taken."""
    block = lab.block("node2")
    visited = "nexthop via 172.30.0.2 dev eth0 nexthop via 172.30.0.3 dev eth0"
    with lab.changed("node1", f"ip route add {block} metric 5 {visited}", f"ip route del {block} metric 5"):
        kernel = lab.trace("a", "b", dry_run=True).families[0].there.hops[1].kernel
        assert kernel is not None
        assert kernel.next_hops == ("via 172.30.0.2 dev eth0 weight 1", "via 172.30.0.3 dev eth0 weight 1")
