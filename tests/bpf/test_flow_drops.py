"""What the kernel itself drops, told into the ring: it wakes who reads, and leaves room for the engine's."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from podway.flows import reasons
from podway.kernel import netns
from podway.kernel.bpf.drops import DropTracer
from podway.kernel.bpf.flow_layout import Counter, Hook, Reason
from podway.kernel.flow_events import drop_reasons
from podway.policy.maps import Rule, RuleKey, Tier, Verdict
from tests.bpf.flow_bench import OUTSIDE, PODS, Bench
from tests.bpf.flow_packets import TCP, UDP, frame, ip, tcp, udp
from tests.patience import eventually

pytestmark = pytest.mark.kernel

TO_NODE = bytes.fromhex("020000000101")
HALF = 20_000
"""Events of which more than half of the ring is full."""


@pytest.fixture
def traced(bench: Bench) -> Iterator[Bench]:
    """The engine, and the kernel telling what it drops for lack of a route."""
    known = drop_reasons()
    inode = bench.inside(lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    wanted = known[reasons.NO_ROUTE]
    with contextlib.closing(DropTracer(bench.engine.maps, inode, [wanted], wanted)) as tracer:
        tracer.begin()
        yield bench


def send(bench: Bench, packets: int) -> None:
    """Have the node's kernel drop packets of a pod, slowly enough for each to be told."""
    sent = TO_NODE + frame(ip(PODS["pa"][0], OUTSIDE[0], UDP, udp(1, 2)))[6:]
    before = bench.counted().get(Reason.DROPPED_BY_KERNEL, 0)
    with netns.run(bench.pods.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as link:
        link.bind(("pa", 0))
        for number in range(1, packets + 1):
            link.send(sent)
            if not number % 400:
                time.sleep(0.11)
    eventually(
        lambda: bench.counted().get(Reason.DROPPED_BY_KERNEL, 0) == before + packets, "the kernel drops them"
    )


def test_the_agent_is_woken_by_drops_of_the_kernel_as_by_others(traced: Bench) -> None:
    send(traced, 400)
    assert not select.select([traced.woken], [], [], 0)[0]
    send(traced, 2400)
    assert select.select([traced.woken], [], [], 0)[0]
    assert [event.reason for event in traced.events()] == [Reason.DROPPED_BY_KERNEL] * 2800


def test_drops_of_the_kernel_leave_half_of_the_ring_to_the_engine(traced: Bench) -> None:
    traced.rules(1, (RuleKey(1), {Tier.NETWORK_POLICY: Rule(Verdict.DENY, 0, 77)}))
    traced.endpoint("pa", egress=1)
    denied = frame(ip(PODS["pa"][0], PODS["pb"][0], TCP, tcp(1, 2)))
    traced.inside(lambda: traced.bare(Hook.FROM_POD, "pa", denied, repeat=HALF))
    send(traced, 100)
    traced.inside(lambda: traced.bare(Hook.FROM_POD, "pa", denied, repeat=100))
    told = [event.reason for event in traced.events()]
    assert told == [Reason.DENIED_EGRESS] * (HALF + 100)
    assert traced.counted()[Counter.DROPS_WITHHELD] == 100
    send(traced, 1)
    assert [event.reason for event in traced.events()] == [Reason.DROPPED_BY_KERNEL]
