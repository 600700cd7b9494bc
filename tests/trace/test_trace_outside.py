"""Traces out of the cluster: an expected translation, none where there should be one, and one that is a fault."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import pytest

from podway.api.addresses import Family
from podway.api.kinds.ip_pool import IPPool
from podway.kernel import netns
from podway.lab import facts, outside
from podway.store.base import Store
from podway.trace.report import Direction
from tests.patience import eventually
from tests.trace.trace_lab import TraceLab

pytestmark = pytest.mark.kernel

BOTH = (Family.IPV4, Family.IPV6)
NODE = {"IPv4": "172.30.0.1", "IPv6": "fd70:6f64:7761:7900::1"}


@pytest.fixture(autouse=True, scope="module")
def _host(lab: TraceLab) -> Iterator[None]:
    outside.ensure(lab.name)
    yield
    # The lab is shared with other tests: what they see of it is as it was.
    outside.remove(lab.name)


def visited(direction: Direction) -> list[str]:
    return [hop.pod or hop.node for hop in direction.hops]


@pytest.mark.parametrize(
    ("protocol", "port"), [("ICMP", 0), ("TCP", 80), ("TCP", 81), ("TCP", 0), ("UDP", 0), ("UDP", 53)]
)
def test_the_translation_and_what_the_host_saw(lab: TraceLab, protocol: str, port: int) -> None:
    report = lab.trace("a", "outside", protocol=protocol, port=port, families=BOTH)
    assert report.delivered
    for family in report.families:
        there, back = family.there, family.back
        assert visited(there) == ["default/a", "node1", "outside"]
        assert visited(back) == list(reversed(visited(there)))
        assert (there.verdict.translated, there.verdict.source_kept) == (NODE[family.family], False)
        assert (there.verdict.problem, back.verdict.problem) == ("", "")
        assert all(hop.on_plan and hop.seen for direction in (there, back) for hop in direction.hops)
        pod, node, host = there.hops
        assert {seen.source for seen in pod.seen} == {family.source}
        assert [seen.source for seen in node.seen] == [family.source, NODE[family.family]]
        assert {seen.source for seen in host.seen} == {NODE[family.family]}
        assert node.planned is not None
        assert (node.planned.disposition, node.planned.translation) == ("outside", "masquerade")
        # What comes back is the node's until the node gives it to the pod.
        assert {seen.destination for seen in back.hops[0].seen} == {NODE[family.family]}
        assert {seen.destination for seen in back.hops[-1].seen} == {family.source}


def test_an_answer_whose_port_only_the_translation_knows(lab: TraceLab) -> None:
    with udp_server(lab.namespace("outside"), 7777, b"no copy of what was asked"):
        (family,) = lab.trace("a", "outside", protocol="UDP", port=7777).families
    assert (family.there.verdict.outcome, family.there.verdict.problem) == ("delivered", "")
    assert family.there.verdict.answered_by == "a server answered"
    assert (family.back.verdict.outcome, family.back.verdict.problem) == ("delivered", "")
    assert family.back.hops[-1].seen


@contextmanager
def udp_server(namespace: str, port: int, answer: bytes) -> Iterator[None]:
    """Answer one datagram after the other in a namespace while the block runs."""
    with netns.opened(netns.path_of(namespace)) as fd:
        sock = netns.run(fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("0.0.0.0", port))
    sock.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                sock.sendto(answer, sock.recvfrom(999)[1])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sock.close()


def test_without_a_probe_the_plan_tells(lab: TraceLab) -> None:
    (family,) = lab.trace("a", "203.0.113.10", dry_run=True).families
    assert family.there.verdict.outcome == family.back.verdict.outcome == "delivered"
    assert family.there.hops[1].planned is not None
    assert family.there.hops[1].planned.translation == "masquerade"


def test_what_a_node_sends_is_its_own(lab: TraceLab) -> None:
    (family,) = lab.trace("node1", "outside").families
    assert family.there.verdict.outcome == family.back.verdict.outcome == "delivered"
    assert (family.there.verdict.translated, family.there.verdict.source_kept) == ("", True)


def test_from_outside_no_way_leads_to_pods(lab: TraceLab) -> None:
    for dry_run in (False, True):
        (family,) = lab.trace("outside", "a", dry_run=dry_run).families
        assert (family.there.verdict.outcome, family.there.verdict.code) == ("lost", "no-way")
        assert "knows no way to 10.244." in family.there.verdict.problem
        assert family.there.verdict.hop == 1
        assert family.back.verdict.outcome == "delivered"
    (family,) = lab.trace("outside", "node1").families
    assert family.there.verdict.outcome == family.back.verdict.outcome == "delivered"


def test_what_leaves_untranslated_is_told(lab: TraceLab) -> None:
    rules = "chain p { type filter hook prerouting priority -300; ip daddr 203.0.113.0/24 notrack; }"
    with lab.nft("node1", rules):
        report = lab.trace("a", "outside", protocol="TCP", port=80)
    (family,) = report.families
    assert not report.delivered
    verdict = family.there.verdict
    assert (verdict.code, verdict.hop, verdict.translated) == ("not-translated", 2, "")
    assert "from the pod's own address" in verdict.problem
    assert "podway doctor node1" in verdict.advice


def test_what_others_translate_on_the_way_out_is_no_fault(lab: TraceLab) -> None:
    rules = "chain p { type nat hook postrouting priority 100; ip saddr 10.244.0.0/16 oifname eth0 masquerade; }"
    with lab.nft("node1", rules):
        (out,) = lab.trace("a", "outside", protocol="TCP", port=80).families
    assert (out.there.verdict.code, out.there.verdict.translated) == ("", "172.30.0.1")


def test_a_pool_without_it_is_told_with_the_remedy(lab: TraceLab) -> None:
    _set(lab, on=False)
    try:
        eventually(lambda: "chain" not in lab.sh("node1", "nft list table ip podway-nat"))
        (family,) = lab.trace("a", "outside", protocol="TCP", port=80).families
    finally:
        _set(lab, on=True)
        eventually(lambda: "masquerade" in lab.sh("node1", "nft list table ip podway-nat"))
    assert family.there.hops[1].planned is not None
    assert family.there.hops[1].planned.translation == ""
    seen = family.there.hops[2].seen
    assert {one.source for one in seen} == {family.source}
    assert family.there.verdict.outcome != "delivered"
    assert "natOutgoing" in family.there.verdict.advice


def _set(lab: TraceLab, *, on: bool) -> None:
    async def write(store: Store) -> None:
        pool = await store.get(IPPool, "ipv4")
        await store.update(msgspec.structs.replace(pool, spec=msgspec.structs.replace(pool.spec, nat_outgoing=on)))

    facts.ask(lab.name, write)
