"""The hard requirements: BIRD's death costs no packet, a node's death costs its routes within a second."""

import os
import signal
import threading
import time
from datetime import timedelta
from ipaddress import ip_address

import pytest

from podway.api.addresses import Address
from podway.bgp.liveness import Suspects
from podway.bgp.probe import answering
from podway.bgp.render import RESTART_TIME
from tests.bgp.bgp_lab import LabNode, Segment
from tests.patience import eventually

A, B = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def test_a_suspect_is_asked_until_it_is_back_or_buried() -> None:
    suspects = Suspects()
    assert suspects.see({A, B}, 0.0) == {A, B}
    suspects.conclude({A, B}, {B})
    assert suspects.see({A, B}, 1.0) == {B}
    assert suspects.see({A}, 2.0) == set()
    assert suspects.see(set(), 3.0) == set()
    assert suspects.see({A}, 4.0) == {A}, "it came back to life, and may die again"


def test_nobody_is_asked_for_longer_than_routes_are_kept() -> None:
    suspects = Suspects()
    suspects.see({A}, 100.0)
    assert suspects.see({A}, 100.0 + RESTART_TIME) == {A}
    assert suspects.see({A}, 101.0 + RESTART_TIME) == set()


def test_a_partner_is_asked_for_as_long_as_it_is_silent_and_may_prove_to_live() -> None:
    suspects = Suspects()
    assert suspects.see({A, B}, 100.0, {A}) == {A, B}
    suspects.conclude({A, B}, {B})
    assert suspects.see({A, B}, 101.0 + RESTART_TIME, {A}) == {A}
    assert suspects.dead == {A}
    suspects.conclude({A}, {A})
    assert suspects.dead == set(), "it answers, though its BIRD is silent still"
    suspects.conclude(suspects.see({A}, 102.0 + RESTART_TIME, {A}), ())
    assert suspects.dead == {A}, "and then it died"


@pytest.mark.kernel
def test_a_partner_is_known_to_live_or_not_only_after_it_was_asked(segment: Segment) -> None:
    one, _, three = segment.add(3)
    live, dead = ip_address("192.0.2.2"), ip_address("192.0.2.3")
    three.cut()
    one.start(segment.nodes)
    arbiter = one.speaker.liveness

    async def watch() -> frozenset[Address]:
        arbiter.watch({}, {live, dead})
        return arbiter.known

    assert one.run(watch()) == set(), "nobody was asked yet"
    eventually(lambda: arbiter.known == {live, dead})
    assert arbiter.dead == {dead}


@pytest.mark.kernel
def test_only_live_nodes_answer(segment: Segment) -> None:
    one, two, three = segment.add(3)
    eventually(lambda: "tentative" not in one.ip("address"))
    three.cut()
    live = {ip_address("192.0.2.2"), ip_address("2001:db8::2")}
    dead = {ip_address("192.0.2.3"), ip_address("2001:db8::3")}
    started = time.monotonic()
    assert one.run(answering(live, window=30)) == live
    assert time.monotonic() - started < 30, "all have answered: no reason to wait on"
    assert one.run(answering(live | dead, window=0.3)) == live
    one.ip("link", "set", "eth0", "down")
    assert one.run(answering(live | dead, window=0.1)) == set()
    assert two.run(answering(set(), window=30)) == set()


@pytest.mark.kernel
@pytest.mark.parametrize("ipv6", [False, True])
def test_no_packet_is_lost_when_bird_is_killed(segment: Segment, ipv6: bool) -> None:
    one, two, _ = segment.start(3)
    to, fro = one.flow_to(two, seconds=5, ipv6=ipv6), two.flow_to(one, seconds=5, ipv6=ipv6)
    changes = one.route_changes()
    time.sleep(0.5)
    former = two.bird
    two.kill_bird()
    eventually(lambda: two.speaker.bird.pid not in (None, former))
    assert (to(), fro()) == (0, 0)
    assert not [change for change in changes() if change.startswith("Deleted")]
    eventually(lambda: all(peer.established for peer in two.run(two.speaker.peers())))


@pytest.mark.kernel
@pytest.mark.parametrize("dies", [1, 2])
def test_a_session_that_returns_comes_up_once_on_a_busy_machine(segment: Segment, dies: int) -> None:
    """One BIRD is kept from running when its delay to dial ends, then the other while the first is at it.

    Where both dial, one finds a second connection waiting when the first has just become a session, takes that
    for another restart, and drops the stale routes of the first.
    """
    segment.pools = segment.pools[:1]
    segment.start(2)
    victim, other = sorted(segment.nodes, key=lambda node: node.number != dies)
    logged = (other.run_dir / "bird.log").stat().st_size
    changes = other.route_changes()
    former, killed = victim.bird, time.monotonic()
    victim.kill_bird()
    eventually(lambda: victim.speaker.bird.pid not in (None, former))
    time.sleep(0.3)
    os.kill(victim.bird, signal.SIGSTOP)
    time.sleep(max(0, killed + 1.3 - time.monotonic()))
    os.kill(other.bird, signal.SIGSTOP)
    os.kill(victim.bird, signal.SIGCONT)
    time.sleep(0.3)
    os.kill(other.bird, signal.SIGCONT)
    eventually(lambda: all(peer.established for peer in victim.run(victim.speaker.peers())))
    time.sleep(1)
    assert not [change for change in changes() if change.startswith("Deleted")]
    assert (other.run_dir / "bird.log").read_text()[logged:].count("State changed to up") == 1


@pytest.mark.kernel
def test_no_packet_is_lost_when_bird_is_replaced(segment: Segment) -> None:
    segment.pools = segment.pools[:1]
    one, two, _ = segment.start(3)
    to, fro = one.flow_to(two, seconds=5), two.flow_to(one, seconds=5)
    former = two.bird
    two.run(two.speaker.restart())
    assert two.bird != former
    assert (to(), fro()) == (0, 0)
    # The new one learns and announces as the former did.
    two.ip("route", "add", "blackhole", "10.244.200.0/24", "proto", "112")
    eventually(lambda: "10.244.200.0/24" in one.routes())


@pytest.mark.kernel
@pytest.mark.parametrize("bird_dies_first", [False, True])
def test_a_dead_nodes_routes_are_gone_within_a_second(segment: Segment, bird_dies_first: bool) -> None:
    one, two, three = segment.start(3)
    two.stop_agent()
    if bird_dies_first:  # its peers keep its routes, since its kernel answers
        two.kill_bird()
        time.sleep(1.5)
        assert two.block4 in one.routes()
    gone: dict[int, float] = {}

    def watch(node: LabNode) -> None:
        eventually(lambda: not {two.block4, two.block6} & node.routes().keys())
        gone[node.number] = time.monotonic() - cut

    two.cut()
    cut = time.monotonic()
    if not bird_dies_first:
        two.kill_bird()
    watchers = [threading.Thread(target=watch, args=(node,)) for node in (one, three)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join()
    assert max(gone.values()) < 5, "BFD and a ping tell, not the hold time of 9 s"
    print("routes gone after", gone)
    assert one.routes().keys() == {three.block4, three.block6}, "the living are not disturbed"

    # The node comes back: plugged in again and started anew.
    segment.switch.ip("link", "set", f"p{two.number}", "up")
    two.start(segment.nodes)
    eventually(lambda: segment.complete(one))


@pytest.mark.kernel
def test_a_dead_nodes_routes_go_by_the_hold_timer_without_an_agent(segment: Segment) -> None:
    segment.pools = segment.pools[:1]
    one, two = segment.start(2)
    one.stop_agent()
    two.stop_agent()
    two.cut()
    two.kill_bird()
    time.sleep(2)
    assert two.block4 in one.routes()
    eventually(lambda: not one.routes())


@pytest.mark.kernel
def test_a_bird_that_is_only_stuck_keeps_its_routes_for_a_while(segment: Segment) -> None:
    """BFD falls silent, the kernel answers: an overloaded node must not lose its pods."""
    segment.pools = segment.pools[:1]
    one, two = segment.start(2)
    (since,) = (peer.since for peer in one.run(one.speaker.peers()))
    os.kill(two.bird, signal.SIGSTOP)
    try:
        eventually(lambda: [peer.bfd for peer in one.run(one.speaker.peers())] == ["Down"])
        time.sleep(2)
        assert two.block4 in one.routes()
    finally:
        os.kill(two.bird, signal.SIGCONT)
    eventually(lambda: [peer.bfd for peer in one.run(one.speaker.peers())] == ["Up"])
    (peer,) = one.run(one.speaker.peers())
    assert abs(peer.since - since) < timedelta(seconds=0.1), "the session never went down"
