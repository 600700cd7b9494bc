"""What is told of flows that go on, and of those that end without a word; what an event says of a flow."""

import os
import struct
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import pytest

from podway.kernel.bpf import flow_survey
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import (
    EVENT,
    FLOW,
    Counter,
    Event,
    EventKind,
    FlowKey,
    FlowState,
    Reason,
    lifetime,
)
from podway.kernel.bpf.flow_survey import Survey
from tests.bpf.flow_bench import PODS, REDIRECT, SHOT, Bench
from tests.bpf.flow_packets import ACK, FIN, RST, SYN, TCP, UDP, frame, ip, tcp, udp

pytestmark = pytest.mark.kernel

A, B = PODS["pa"], PODS["pb"]
families = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
SECOND = 10**9
OPENED = ((SYN, False), (SYN | ACK, True), (ACK, False))


def events(data: bytes) -> Iterator[Event]:
    for at in range(0, len(data), EVENT.size):
        yield Event.unpack(data[at : at + EVENT.size])


def look(survey: Survey, now: int) -> list[Event]:
    """What a survey tells, as of a time."""
    steps = survey.look(now)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return list(events(end.value))


def send(bench: Bench, family: int, port: int, *segments: tuple[int, bool]) -> None:
    """Send TCP segments from one pod to port 80 of the other; answers are true."""
    for flags, answer in segments:
        if answer:
            bench.from_pod("pb", frame(ip(B[family], A[family], TCP, tcp(80, port, flags))))
        else:
            bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(port, 80, flags))))


@families
def test_what_is_over_leaves_the_table_and_only_what_nobody_told_is_told(bench: Bench, family: int) -> None:
    """Of every state; and connections that ended in silence leave their quota."""
    survey = Survey(bench.engine.maps)
    closing = (*OPENED, (FIN | ACK, False))
    states = {
        1: ((SYN, False),),
        2: OPENED,
        3: closing,
        4: (*closing, (FIN | ACK, True)),
        5: (*OPENED, (RST, True)),
    }
    for port, segments in states.items():
        send(bench, family, port, *segments)
        now = time.monotonic_ns()
        flow = bench.flow(A[family], B[family], TCP, (port, 80))
        seconds = lifetime(TCP, flow.state)
        assert all(one.kind is EventKind.FLOW_LIVES for one in look(survey, now + (seconds - 5) * SECOND))
        told = look(survey, now + (seconds + 5) * SECOND)
        assert list(bench.maps.flows()) == []
        if flow.state >= FlowState.CLOSED:
            assert told == []  # the engine saw it end
            continue
        [event] = told
        answers = sum(answer for _, answer in segments)
        assert (event.kind, event.key.source_port, event.state) == (EventKind.FLOW_END, port, flow.state)
        assert (event.packets, event.packets_back) == (len(segments) - answers, answers)
        assert (event.made, event.rules) == (flow.made, flow.rules)


def test_connections_that_ended_in_silence_leave_their_quota(bench: Bench) -> None:
    bench.reset(established=1)
    send(bench, 0, 1, *OPENED)
    blocked = frame(ip(A[0], B[0], TCP, tcp(2, 80)))
    assert bench.from_pod("pa", blocked) == SHOT
    look(Survey(bench.engine.maps), time.monotonic_ns() + (lifetime(TCP, FlowState.OPEN) + 1) * SECOND)
    assert bench.from_pod("pa", blocked) == REDIRECT


def test_a_survey_leaves_the_quotas_of_connections_that_live(bench: Bench) -> None:
    bench.reset(established=2)
    send(bench, 0, 1, *OPENED)
    look(Survey(bench.engine.maps), time.monotonic_ns())
    send(bench, 0, 2, *OPENED)
    assert bench.from_pod("pa", frame(ip(A[0], B[0], TCP, tcp(3, 80)))) == SHOT


@families
def test_a_long_life_is_told_while_packets_come(bench: Bench, family: int) -> None:
    survey = Survey(bench.engine.maps)
    send(bench, family, 1, *OPENED)
    made = bench.flow(A[family], B[family], TCP, (1, 80)).made
    assert look(survey, time.monotonic_ns()) == []  # too young: its end will tell
    bench.age(A[family], B[family], TCP, (1, 80), 60)
    send(bench, family, 1, (ACK, False))
    [event] = look(survey, time.monotonic_ns())
    assert (event.kind, event.packets, event.packets_back) == (EventKind.FLOW_LIVES, 3, 1)
    assert event.made == made - 60 * SECOND
    assert look(survey, time.monotonic_ns()) == []  # nothing came since
    send(bench, family, 1, (ACK, True))
    [event] = look(survey, time.monotonic_ns())
    assert (event.kind, event.packets, event.packets_back) == (EventKind.FLOW_LIVES, 3, 2)


def test_what_the_table_gave_up_is_told_once_with_what_was_known_last(bench: Bench) -> None:
    survey = Survey(bench.engine.maps)
    send(bench, 0, 1, *OPENED)
    bench.age(A[0], B[0], TCP, (1, 80), 60)
    [known] = look(survey, time.monotonic_ns())
    key = known.key
    bpf.delete(bench.engine.maps["flows"], key.reversed().pack())
    assert look(survey, time.monotonic_ns()) == []  # the other entry is enough to go on
    bpf.delete(bench.engine.maps["flows"], key.pack())
    now = time.monotonic_ns()
    [event] = look(survey, now)
    assert event == known._replace(kind=EventKind.FLOW_EVICTED, time=now)
    assert look(survey, time.monotonic_ns()) == []


def test_what_the_engine_told_the_end_of_is_not_told_as_given_up(bench: Bench) -> None:
    survey = Survey(bench.engine.maps)
    send(bench, 0, 1, *OPENED)
    bench.age(A[0], B[0], TCP, (1, 80), 60)
    assert len(look(survey, time.monotonic_ns())) == 1
    send(bench, 0, 1, (RST, False))
    now = time.monotonic_ns()
    assert look(survey, now) == []
    assert look(survey, now + 60 * SECOND) == []
    assert list(bench.maps.flows()) == []


def test_more_flows_than_one_batch_are_all_seen(bench: Bench) -> None:
    survey, most = Survey(bench.engine.maps), flow_survey.BATCH
    ports = range(1, most + 1)
    bench.reset(half_open=10 * most)
    for port in ports:
        send(bench, 0, port, (SYN, False))
    assert look(survey, time.monotonic_ns()) == []
    assert survey.entries == 2 * most
    told = look(survey, time.monotonic_ns() + 121 * SECOND)
    assert {event.key.source_port for event in told} == set(ports)


def test_a_survey_that_ends_early_tells_what_it_took_out_and_another_one_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an agent stops while the next one begins: each end is told, and once."""
    monkeypatch.setattr(flow_survey, "BATCH", 16)
    ports = range(1, 65)
    bench.reset(half_open=100)
    for port in ports:
        send(bench, 0, port, (SYN, False))
    later = time.monotonic_ns() + 121 * SECOND
    steps = Survey(bench.engine.maps).look(later)
    next(steps)
    with pytest.raises(StopIteration) as ended:
        steps.send(True)
    told = list(events(ended.value.value))
    assert len(told) <= 16
    told += look(Survey(bench.engine.maps), later)
    assert sorted(event.key.source_port for event in told) == list(ports)


@families
def test_an_end_says_what_went_both_ways(bench: Bench, family: int) -> None:
    """By whoever's packet it is seen."""
    for last in (False, True):
        bench.reset()
        send(bench, family, 1, *OPENED, (ACK, True), (RST, last))
        first, event = bench.events()
        assert (first.kind, event.kind, event.state) == (EventKind.FLOW_NEW, EventKind.FLOW_END, FlowState.RESET)
        there, back = (3 - last, 2 + last), (2 + last, 3 - last)
        assert (event.packets, event.packets_back) == (back if last else there)
        assert event.octets >= 40 * event.packets
        assert event.octets_back >= 40 * event.packets_back
        assert event.made == first.made == first.time < event.time


@families
def test_a_flow_whose_ends_are_used_again_has_ended(bench: Bench, family: int) -> None:
    there = (A[family], B[family], UDP, (1, 2))
    packet = frame(ip(A[family], B[family], UDP, udp(1, 2)))
    bench.from_pod("pa", packet)
    bench.age(*there, 31)
    made = bench.flow(*there).made
    bench.from_pod("pa", packet)
    kinds = [(event.kind, event.made) for event in bench.events()]
    assert kinds[1:] == [(EventKind.FLOW_END, made), (EventKind.FLOW_NEW, bench.flow(*there).made)]


def test_a_dropped_packet_counts_itself(bench: Bench) -> None:
    packet = frame(ip("10.1.0.99", B[0], UDP, udp(1, 2, b"five!")))
    bench.from_pod("pa", packet)
    [event] = bench.events()
    assert (event.reason, event.packets, event.octets, event.made) == (
        Reason.NOT_OWN_SOURCE,
        1,
        len(packet) - 14,
        0,
    )


def test_the_next_event_says_how_many_were_lost_before_it(bench: Bench) -> None:
    before = bench.maps.counters()[Counter.EVENTS_LOST]
    packet = frame(ip("10.1.0.99", B[0], UDP, udp(1, 2)))

    def many() -> None:
        bench.bare(bench_hook, "pa", packet, repeat=60000)

    bench_hook = next(iter(bench.engine.programs))
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})  # each counts for itself what it lost
    try:
        bench.inside(many)
        told = bench.events()
        lost = 60000 - len(told)
        assert lost > 0
        bench.from_pod("pa", packet)
        [after] = bench.events()
    finally:
        os.sched_setaffinity(0, processors)
    assert bench.maps.counters()[Counter.EVENTS_LOST] - before == lost
    assert after.lost - told[0].lost == lost


class Conversation:
    """Segments of TCP between both pods; `turn` is where their numbers begin."""

    def __init__(self, bench: Bench, family: int, turn: int) -> None:
        self.bench, self.family, self.turn = bench, family, turn

    def call(self, flags: int, sequence: int, acknowledged: int, data: bytes = b"") -> None:
        self._send("pa", (A, B), (7, 80), flags, sequence, acknowledged, data)

    def answer(self, flags: int, sequence: int, acknowledged: int, data: bytes = b"") -> None:
        self._send("pb", (B, A), (80, 7), flags, sequence, acknowledged, data)

    def _send(
        self,
        pod: str,
        ends: Sequence[Sequence[str]],
        ports: tuple[int, int],
        flags: int,
        sequence: int,
        acknowledged: int,
        data: bytes,
    ) -> None:
        segment = tcp(*ports, flags, data, self.turn + sequence, self.turn + acknowledged)
        source, destination = (end[self.family] for end in ends)
        assert self.bench.from_pod(pod, frame(ip(source, destination, TCP, segment))) == REDIRECT

    def ended(self) -> Event:
        """Reset it, and return what is told of its end."""
        self.call(RST, 0, 0)
        *_, event = self.bench.events()
        assert event.kind is EventKind.FLOW_END
        return event


TURNS = pytest.mark.parametrize("turn", [1000, 2**32 - 3], ids=["", "numbers turn"])


@families
@TURNS
def test_round_trips_are_those_of_the_handshake_on_either_side(bench: Bench, family: int, turn: int) -> None:
    began = time.monotonic()
    talk = Conversation(bench, family, turn)
    talk.call(SYN, 0, 0)
    time.sleep(0.05)
    talk.answer(SYN | ACK, 0, 1)
    answered = time.monotonic()
    time.sleep(0.02)
    talk.call(ACK, 1, 1)
    over = time.monotonic()
    there, here = talk.ended().rtt
    assert 0.05 <= there / 1e6 <= answered - began
    assert 0.02 <= here / 1e6 <= over - began


@families
@TURNS
def test_what_is_sent_again_is_counted_in_its_direction(bench: Bench, family: int, turn: int) -> None:
    talk = Conversation(bench, family, turn)
    for _ in range(2):
        talk.call(SYN, 0, 0)  # once more: it is not known which of both is answered
    talk.answer(SYN | ACK, 0, 1)
    talk.call(ACK, 1, 1, b"ask")
    talk.answer(ACK, 1, 4, b"answer")
    talk.call(ACK, 4, 7)
    talk.call(ACK, 4, 7)  # takes no number: nothing to be sent again
    talk.answer(ACK, 1, 4, b"answer")
    talk.answer(ACK, 1, 4, b"answer, and more")
    talk.answer(ACK, 17, 4, b"then")
    talk.call(FIN | ACK, 4, 21)
    assert talk.bench.flow(A[family], B[family], TCP, (7, 80)).rtt
    event = talk.ended()
    assert event.retransmitted == (1, 2)
    assert (event.rtt[0], event.rtt[1] > 0) == (0, True), "of a SYN that was sent twice nothing is known"


def test_a_longer_round_trip_counts_once_the_shorter_one_is_old(bench: Bench) -> None:
    talk = Conversation(bench, 0, 1)
    talk.call(SYN, 0, 0)
    talk.answer(SYN | ACK, 0, 1)
    talk.call(ACK, 1, 1)
    key = FlowKey(ip_address(A[0]), ip_address(B[0]), TCP, 7, 80)

    def shift(which: FlowKey, field: str, seconds: float) -> None:
        value = bytearray(bpf.lookup(bench.engine.maps["flows"], which.pack()) or b"")
        at = FLOW.offsets[field]
        (ticks,) = struct.unpack_from("=I", value, at)
        struct.pack_into("=I", value, at, ticks - int(seconds * SECOND / 1024) & 0xFFFFFFFF)
        bpf.insert(bench.engine.maps["flows"], which.pack(), bytes(value))

    def known() -> int:
        return int(bench.flow(B[0], A[0], TCP, (80, 7)).rtt)

    def round_trip(number: int, seconds: float) -> int:
        """The round trip that is known once a byte was acknowledged after so long."""
        shift(key, "sampled", 1)
        talk.call(ACK, number, 1, b"x")
        shift(key.reversed(), "asked", seconds)
        talk.answer(ACK, 1, number + 1)
        return known()

    first = known()
    assert round_trip(1, 60) == first
    shift(key.reversed(), "rtt_seen", 11)
    assert round_trip(2, 60) >= 59_000_000


def test_key_of_an_event_is_that_of_the_table(bench: Bench) -> None:
    send(bench, 1, 9, *OPENED)
    [event] = bench.events()
    assert event.key == FlowKey(event.key.source, event.key.destination, TCP, 9, 80)
    assert bench.maps.flow(event.key) is not None
