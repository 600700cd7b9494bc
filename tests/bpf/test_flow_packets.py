"""One packet at a time: what becomes of it, what the tables and counters hold then."""

import select
import struct
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import (
    Counter,
    EventKind,
    FlowFlag,
    FlowKey,
    FlowState,
    Hook,
    Reason,
    Way,
    lifetime,
)
from podway.kernel.flow_events import EVENT_SIZE
from podway.policy.maps import Rule, RuleKey, Tier, Verdict
from tests.bpf.flow_bench import NODE, OUTSIDE, PODS, REDIRECT, REMOTE, SHOT, UNSPEC, Bench
from tests.bpf.flow_packets import (
    ACK,
    ETH_ARP,
    FIN,
    GRE,
    HARDWARE,
    ICMP,
    ICMPV6,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
    checksum,
    frame,
    icmp,
    ip,
    sctp,
    tcp,
    udp,
)

pytestmark = pytest.mark.kernel

A, B = PODS["pa"], PODS["pb"]
families = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
SECOND = 10**9

WAKE_AT = 1 << 18
"""Bytes that wait until the agent is woken (src/podway/bpf/flow/ring.h)."""
RING_HEADER = 8
"""Bytes before each event in a ring buffer (BPF_RINGBUF_HDR_SZ)."""


def echo(family: int, *, reply: bool = False, identifier: int = 5) -> tuple[int, bytes]:
    """An echo request or reply of a family: its protocol and message."""
    kinds = ((8, 0), (128, 129))[family]
    return (ICMP, ICMPV6)[family], icmp(kinds[reply], identifier=identifier)


def requests(family: int) -> dict[str, tuple[int, bytes, tuple[int, int], bytes, tuple[int, int]]]:
    """First packets of a connection, by protocol: upper header and ports, and those of what comes back."""
    ping, request = echo(family)
    _, reply = echo(family, reply=True)
    kind = (8, 128)[family] << 8
    return {
        "tcp": (TCP, tcp(1000, 80), (1000, 80), tcp(80, 1000, SYN | ACK), (80, 1000)),
        "udp": (UDP, udp(1000, 53), (1000, 53), udp(53, 1000), (53, 1000)),
        "sctp": (SCTP, sctp(1000, 99), (1000, 99), sctp(99, 1000), (99, 1000)),
        "echo": (ping, request, (5, kind), reply, (kind, 5)),
        "gre": (GRE, bytes(8), (0, 0), bytes(8), (0, 0)),
    }


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp", "echo", "gre"])
@pytest.mark.parametrize("where", ["own", "remote", "outside", "node"])
def test_connection_from_a_pod(bench: Bench, family: int, protocol: str, where: str) -> None:
    """Both entries are there before the first packet leaves; pods are reached straight, all else by the stack."""
    number, request, ports, answer, back = requests(family)[protocol]
    here, there = A[family], {"own": B, "remote": REMOTE, "outside": OUTSIDE, "node": NODE}[where][family]
    done = bench.run(Hook.FROM_POD, "pa", frame(ip(here, there, number, request)))

    forward, reply = bench.flow(here, there, number, ports), bench.flow(there, here, number, back)
    assert forward.rules == reply.rules == (0, 0)
    assert (forward.packets, forward.octets) == (1, len(ip(here, there, number, request)))
    assert (reply.packets, reply.state, FlowFlag.REPLY in reply.flags) == (0, FlowState.HALF_OPEN, True)
    way, counter = {"own": (Way.PEER, Counter.CARRIED_PEER), "remote": (Way.WIRE, Counter.CARRIED_WIRE)}.get(
        where, (Way.STACK, Counter.TO_STACK)
    )
    assert (forward.way, done.action) == (way, UNSPEC if way is Way.STACK else REDIRECT)
    assert bench.counted()[counter] == 1
    [event] = bench.events()
    assert (event.kind, event.key.source_port, event.reason) == (EventKind.FLOW_NEW, ports[0], Reason.KEPT)

    # What comes back is no new flow.
    returning = frame(ip(there, here, number, answer))
    if where == "own":
        assert bench.from_pod("pb", returning) == REDIRECT
    elif where == "remote":
        assert bench.from_wire(returning) == REDIRECT
    else:
        assert bench.to_pod("pa", returning, forwarded=where == "outside") == UNSPEC
    reply = bench.flow(there, here, number, back)
    assert reply.packets == 1
    assert reply.state == (FlowState.OPEN if number == TCP else FlowState.REPLIED)
    assert bench.counted()[Counter.FLOWS_MADE] == 1


@families
def test_carried_packet_is_as_the_kernel_would_forward_it(bench: Bench, family: int) -> None:
    """Hardware addresses are the route's, TTL or hop limit one less, IPv4's checksum right, all else untouched."""
    for pod, there, hardware in (("pb", B, "02000000 0b0b"), ("wire", REMOTE, "02000000 0202")):
        sent = ip(A[family], there[family], UDP, udp(1, 2, b"data"), hops=17)
        got = bench.run(Hook.FROM_POD, "pa", frame(sent)).frame
        assert got[:6] == bytes.fromhex(hardware), pod
        assert got[6:12] == bytes.fromhex("020000000101")
        where = (8, 7)[family]
        expected = bytearray(sent)
        expected[where] -= 1
        if family == 0:
            expected[10:12] = bytes(2)
            expected[10:12] = struct.pack("!H", checksum(bytes(expected[:20])))
        assert got[14:] == bytes(expected)


def test_checksum_is_right_for_all_of_them(bench: Bench) -> None:
    """Carries in the incremental update of the checksum (RFC 1141) are where mistakes hide."""

    def all_of_them() -> None:
        for identifier in range(0, 65536, 13):
            sent = ip(A[0], B[0], UDP, udp(1, 2), identifier=identifier, hops=2 + identifier % 200)
            got = bench.bare(Hook.FROM_POD, "pa", frame(sent)).frame[14:34]
            assert checksum(got) == 0, identifier

    bench.inside(all_of_them)


ISOLATED = Rule(Verdict.DENY, 0, 77)
"""What a NetworkPolicy that selects a pod says of all that no rule allows."""


def isolate(bench: Bench, number: int, **allowed: Any) -> None:
    """Write a rule set that allows one thing."""
    entries = [(RuleKey(number), {Tier.NETWORK_POLICY: ISOLATED})]
    if allowed:
        entries.append((RuleKey(number, **allowed), {Tier.NETWORK_POLICY: Rule(Verdict.ALLOW, 1, 88)}))
    bench.rules(number, *entries)


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp", "echo", "gre"])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_denied_connection_leaves_nothing_but_an_event(
    bench: Bench, family: int, protocol: str, direction: str
) -> None:
    number, request, ports, _, back = requests(family)[protocol]
    isolate(bench, 1)
    bench.endpoint("pa" if direction == "egress" else "pb", *((1, 0) if direction == "egress" else (0, 1)))
    assert bench.from_pod("pa", frame(ip(A[family], B[family], number, request))) == SHOT
    assert bench.flow(A[family], B[family], number, ports) is None
    assert bench.flow(B[family], A[family], number, back) is None
    [event] = bench.events()
    reason = Reason.DENIED_EGRESS if direction == "egress" else Reason.DENIED_INGRESS
    assert (event.kind, event.reason) == (EventKind.PACKET_DROPPED, reason)
    assert event.rules[direction == "ingress"] == ISOLATED.number
    assert bench.counted() == {reason: 1}


@families
def test_isolated_pod_may_be_answered(bench: Bench, family: int) -> None:
    """Replies are not judged, in neither direction; a connection the other way is."""
    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    assert bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(1000, 80)))) == REDIRECT
    assert bench.from_pod("pb", frame(ip(B[family], A[family], TCP, tcp(80, 1000, SYN | ACK)))) == REDIRECT
    assert bench.from_pod("pb", frame(ip(B[family], A[family], TCP, tcp(80, 1001)))) == SHOT


@families
def test_policy_that_is_not_written_lets_nothing_pass(bench: Bench, family: int) -> None:
    bench.endpoint("pa", egress=9)
    assert bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(1000, 80)))) == SHOT
    assert bench.counted() == {Reason.POLICY_NOT_WRITTEN: 1}


@families
def test_node_reaches_its_isolated_pods_but_nobody_by_its_stack(bench: Bench, family: int) -> None:
    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    probe = frame(ip(NODE[family], A[family], TCP, tcp(1000, 80)))
    assert bench.to_pod("pa", probe, forwarded=True) == SHOT  # masqueraded traffic has the node's address, too
    assert bench.to_pod("pa", probe, forwarded=False) == UNSPEC
    assert bench.flow(NODE[family], A[family], TCP, (1000, 80)).rules == (0, 1)
    assert bench.from_pod("pa", frame(ip(A[family], NODE[family], TCP, tcp(80, 1000, SYN | ACK)))) == UNSPEC


@families
def test_change_cuts_an_open_connection_and_touches_no_other(bench: Bench, family: int) -> None:
    isolate(bench, 1, protocol=TCP, port=80, port_length=16)
    isolate(bench, 2, protocol=TCP, port=80, port_length=16)
    bench.endpoint("pa", ingress=2)
    bench.endpoint("pb", ingress=1)
    there, other = (A[family], B[family]), (B[family], A[family])
    bench.from_pod("pa", frame(ip(*there, TCP, tcp(1000, 80))))
    bench.from_pod("pb", frame(ip(*other, TCP, tcp(80, 1000, SYN | ACK))))
    bench.from_pod("pb", frame(ip(*other, TCP, tcp(1000, 80))))
    assert bench.flow(*there, TCP, (1000, 80)).rules == (0, 88)
    bench.events()

    bench.maps.set_rules(1, {}, [RuleKey(1, 0, TCP, 80, 16)])
    bench.maps.changed()
    assert bench.resets(Hook.FROM_POD, "pb", frame(ip(*other, TCP, tcp(80, 1000, ACK))))  # replies, too
    assert bench.resets(Hook.FROM_POD, "pa", frame(ip(*there, TCP, tcp(1000, 80, ACK))))
    told = [(event.kind, event.reason, event.rules) for event in bench.events()]
    cut = Reason.DENIED_INGRESS, (0, ISOLATED.number)
    assert told == [(EventKind.FLOW_REJUDGED, *cut), (EventKind.PACKET_DROPPED, *cut)] * 2
    judged = bench.counted()[Counter.FLOWS_JUDGED_AGAIN]
    assert bench.from_pod("pb", frame(ip(*other, TCP, tcp(1000, 80, ACK)))) == REDIRECT
    assert bench.counted()[Counter.FLOWS_JUDGED_AGAIN] == judged == 2

    isolate(bench, 1, protocol=TCP, port=80, port_length=16)
    assert bench.from_pod("pa", frame(ip(*there, TCP, tcp(1000, 80, ACK)))) == REDIRECT


@families
def test_changed_identity_is_a_change(bench: Bench, family: int) -> None:
    """Labels of the far end changed: nothing was written to the pod's rule set."""
    isolate(bench, 1, identity=20)
    bench.endpoint("pb", ingress=1)
    network = ip_network(A[family])
    packet = frame(ip(A[family], B[family], UDP, udp(1000, 80)))
    assert bench.from_pod("pa", packet) == SHOT
    for identity, action in ((20, REDIRECT), (21, SHOT), (20, REDIRECT)):
        bench.maps.set_identity(network, identity)
        bench.maps.changed()
        assert bench.from_pod("pa", packet) == action
    bench.maps.remove_identity(network)
    bench.maps.changed()
    assert bench.from_pod("pa", packet) == SHOT


@families
def test_forged_sources(bench: Bench, family: int) -> None:
    """Another pod's, the node's, an outsider's, the other pod's while it has a flow: each by its reason."""
    for source in (B, NODE, OUTSIDE, REMOTE, (("0.0.0.0"), ("::")), ("169.254.7.7", "fe80::7")):
        for there in (B, REMOTE, OUTSIDE, NODE):
            packet = frame(ip(source[family], there[family], UDP, udp(1000, 80)))
            assert bench.from_pod("pa", packet) == SHOT
    assert bench.counted() == {Reason.NOT_OWN_SOURCE: 24}

    bench.from_pod("pa", frame(ip(A[family], REMOTE[family], TCP, tcp(1000, 80))))
    assert bench.from_pod("pb", frame(ip(A[family], REMOTE[family], TCP, tcp(1000, 80, ACK)))) == SHOT
    assert bench.from_wire(frame(ip(A[family], B[family], TCP, tcp(1000, 80)))) == SHOT
    bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(1000, 80))))
    assert bench.from_wire(frame(ip(A[family], B[family], TCP, tcp(1000, 80, ACK)))) == SHOT
    counted = bench.counted()
    assert (counted[Reason.NOT_OWN_SOURCE], counted[Reason.POD_SOURCE_FROM_WIRE]) == (25, 2)


@families
def test_wire_is_left_alone_but_for_own_pods(bench: Bench, family: int) -> None:
    """What is for the node, or goes through it, is none of the engine's business: also nonsense."""
    for there in (NODE, OUTSIDE, REMOTE):
        assert bench.from_wire(frame(ip(OUTSIDE[family], there[family], TCP, tcp(1, 2)))) == UNSPEC
        assert bench.from_wire(frame(ip(OUTSIDE[family], there[family], TCP, b"x"))) == UNSPEC
        assert (
            bench.from_wire(frame(ip(OUTSIDE[family], there[family], UDP, bytes(64), fragment=(64, False))))
            == UNSPEC
        )
    assert bench.from_wire(HARDWARE + struct.pack("!H", ETH_ARP) + bytes(28)) == UNSPEC
    assert bench.counted() == {}
    assert not list(bench.maps.flows())


@families
def test_outsiders_reach_a_pod_by_the_stack(bench: Bench, family: int) -> None:
    """The stack may translate them, so both directions are its: nothing is carried past what it knows."""
    request = frame(ip(OUTSIDE[family], A[family], TCP, tcp(1000, 80)))
    assert bench.from_wire(request) == UNSPEC
    assert bench.from_pod("pa", frame(ip(A[family], OUTSIDE[family], TCP, tcp(80, 1000, SYN | ACK)))) == UNSPEC
    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    assert bench.from_wire(request) == SHOT


@families
def test_what_takes_the_stack(bench: Bench, family: int) -> None:
    """Hop limits at their end, options, what is larger than the MTU: the kernel says what must be said."""
    here, there = A[family], B[family]
    # Router alert; a hop-by-hop header of padding, ahead of UDP.
    options = (b"\x94\x04\0\0", b"\0" + struct.pack("!BB", UDP, 0) + b"\x01\x04\0\0\0\0")[family]
    for sent in (
        ip(here, there, UDP, udp(1, 2), hops=1),
        ip(here, there, UDP, udp(1, 2), options=options),
        ip(here, there, UDP, udp(1, 2, bytes(1500))),
    ):
        done = bench.run(Hook.FROM_POD, "pa", frame(sent))
        assert (done.action, done.frame) == (UNSPEC, frame(sent))
    assert bench.counted()[Counter.TO_STACK] == 3
    assert bench.from_pod("pa", frame(ip(here, there, UDP, udp(1, 2)))) == REDIRECT
    # Segments that fit are carried, however long all of them are.
    long = frame(ip(here, there, TCP, tcp(1000, 80, ACK, bytes(2500))))
    assert bench.from_pod("pa", long, gso=1400) == REDIRECT
    assert bench.from_pod("pa", long, gso=1481) == UNSPEC


def extension(kind: int, following: int, detail: bytes = b"\x01\x04\0\0\0\0") -> bytes:
    return struct.pack("!BB", following, 0) + detail


def test_extension_headers(bench: Bench) -> None:
    """Upper headers are found behind them; a routing header that still leads elsewhere is not believed."""
    options = 60
    isolate(bench, 1, protocol=UDP, port=53, port_length=16)
    bench.endpoint("pb", ingress=1)
    for port, action in ((53, REDIRECT), (54, SHOT)):
        for chain in ([options], [options] * 7, [43], [51]):
            followers = [*chain[1:], UDP]
            bodies = b"".join(
                extension(kind, following, b"\0" * 6 + bytes(4 if kind == 51 else 0))
                if kind != 51
                else struct.pack("!BB", following, 1) + bytes(10)
                for kind, following in zip(chain, followers, strict=True)
            )
            packet = ip(A[1], B[1], UDP, udp(1000, port), options=bytes([chain[0]]) + bodies)
            assert bench.from_pod("pa", frame(packet)) == action, (port, chain)
    routed = ip(A[1], B[1], UDP, udp(1000, 53), options=bytes([43]) + extension(43, UDP, b"\0\x01" + bytes(4)))
    assert bench.from_pod("pa", frame(routed)) == SHOT
    endless = ip(A[1], B[1], UDP, udp(1, 53), options=bytes([60]) + extension(60, 60) * 8 + extension(60, UDP))
    assert bench.from_pod("pa", frame(endless)) == SHOT
    assert bench.counted()[Reason.EXTENSION_HEADERS] == 2


@families
def test_fragments_go_with_the_first(bench: Bench, family: int) -> None:
    isolate(bench, 1, protocol=UDP, port=53, port_length=16)
    bench.endpoint("pb", ingress=1)
    data = udp(1000, 53, bytes(100))

    def sent(part: slice, offset: int, more: bool, **changes: Any) -> int:
        packet = ip(A[family], B[family], UDP, data[part], fragment=(offset, more), **changes)
        return bench.from_pod("pa", frame(packet))

    assert sent(slice(48, None), 48, False) == SHOT  # nobody can know yet
    # The stack may put them together: none is carried past it.
    assert sent(slice(0, 48), 0, True) == UNSPEC
    assert sent(slice(48, None), 48, False) == UNSPEC
    assert sent(slice(48, None), 48, False, identifier=8) == SHOT
    assert bench.counted()[Reason.FRAGMENT_WITHOUT_FIRST] == 2
    assert bench.flow(A[family], B[family], UDP, (1000, 53)).packets == 2
    data = udp(1000, 54, bytes(100))  # a denied first one takes those after it along
    assert sent(slice(0, 48), 0, True, identifier=9) == SHOT
    assert sent(slice(48, None), 48, False, identifier=9) == SHOT
    assert bench.counted()[Reason.DENIED_INGRESS] == 2


def test_fragments_that_hide_headers(bench: Bench) -> None:
    """A first one too short for ports, and one that would write over TCP's flags (RFC 3128)."""
    assert bench.from_pod("pa", frame(ip(A[0], B[0], TCP, tcp(1, 80)[:8], fragment=(0, True)))) == SHOT
    assert bench.from_pod("pa", frame(ip(A[0], B[0], TCP, bytes(16), fragment=(8, False)))) == SHOT
    assert bench.counted() == {Reason.MALFORMED: 2}


def error(family: int, about: bytes, kind: tuple[int, int] = (3, 1), code: int = 4) -> tuple[int, bytes]:
    """An ICMP error about a packet, of which it quotes the beginning."""
    return (ICMP, ICMPV6)[family], struct.pack("!BBHI", kind[family], code, 0, 1400) + about[: 28 + 20 * family]


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp", "echo"])
def test_icmp_errors_belong_to_a_flow(bench: Bench, family: int, protocol: str) -> None:
    """Of anybody on the wire, and of the pod that the packet was sent to; about no flow: never."""
    number, request, *_ = requests(family)[protocol]
    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    about, near = ip(A[family], REMOTE[family], number, request), ip(A[family], B[family], number, request)
    router = OUTSIDE[family]
    assert bench.from_wire(frame(ip(router, A[family], *error(family, about)))) == SHOT
    bench.from_pod("pa", frame(about))
    bench.from_pod("pa", frame(near))
    assert bench.from_wire(frame(ip(router, A[family], *error(family, about)))) == REDIRECT
    assert bench.from_wire(frame(ip(router, A[family], *error(family, about, (11, 3), 0)))) == REDIRECT
    assert bench.from_pod("pb", frame(ip(B[family], A[family], *error(family, near)))) == REDIRECT
    assert bench.from_pod("pb", frame(ip(B[family], A[family], *error(family, about)))) == SHOT
    counted = bench.counted()
    assert (counted[Reason.ICMP_ERROR_UNRELATED], counted[Reason.ICMP_ERROR_FORGED]) == (1, 1)


@families
def test_icmp_errors_that_lie(bench: Bench, family: int) -> None:
    """About a packet of another sender than the error's addressee, an error about an error, one cut short."""
    about = ip(A[family], REMOTE[family], UDP, udp(1, 2))
    bench.from_pod("pa", frame(about))
    for quoted in (
        ip(B[family], REMOTE[family], UDP, udp(1, 2)),
        ip(A[family], OUTSIDE[family], *error(family, about)),
    ):
        assert bench.from_wire(frame(ip(OUTSIDE[family], A[family], *error(family, quoted)))) == SHOT
    assert bench.from_wire(frame(ip(OUTSIDE[family], A[family], *error(family, about[:24])))) == SHOT
    assert bench.counted()[Reason.ICMP_ERROR_UNRELATED] == 3
    # The node's own kernel says what it must (TTL exceeded, too big), and the node hears of everything.
    assert bench.to_pod("pa", frame(ip(NODE[family], A[family], *error(family, about))), forwarded=False) == UNSPEC
    assert bench.from_wire(frame(ip(OUTSIDE[family], NODE[family], *error(family, about)))) == UNSPEC


@families
def test_pods_are_no_routers_but_have_neighbours(bench: Bench, family: int) -> None:
    if family == 0:
        assert bench.from_pod("pa", frame(ip(A[0], B[0], ICMP, icmp(5)))) == SHOT
        assert bench.counted() == {Reason.LINK_MESSAGE: 1}
        return
    isolate(bench, 1)
    bench.endpoint("pa", egress=1, ingress=1)
    for kind in (133, 135, 136, 143):
        assert bench.from_pod("pa", frame(ip("fe80::2", "ff02::2", ICMPV6, icmp(kind), hops=255))) == UNSPEC
    for kind in (134, 137):
        assert bench.from_pod("pa", frame(ip("fe80::2", "ff02::1", ICMPV6, icmp(kind), hops=255))) == SHOT
    assert bench.to_pod("pa", frame(ip("fe80::1", A[1], ICMPV6, icmp(135), hops=255)), forwarded=False) == UNSPEC
    # No policy is about these, so none gets past it in their shape.
    for there, hops in ((REMOTE[1], 255), (OUTSIDE[1], 255), ("ff02::2", 64)):
        assert bench.from_pod("pa", frame(ip(A[1], there, ICMPV6, icmp(135), hops=hops))) == SHOT
    for kind in (134, 135, 137):
        assert bench.from_wire(frame(ip(REMOTE[1], A[1], ICMPV6, icmp(kind), hops=255))) == SHOT
        assert bench.from_wire(frame(ip(REMOTE[1], NODE[1], ICMPV6, icmp(kind), hops=255))) == UNSPEC


@families
def test_answers_to_nothing(bench: Bench, family: int) -> None:
    """An echo reply and a SYN+ACK begin no flow, though everything is allowed; a RST passes and leaves none."""
    for upper in (echo(family, reply=True), (TCP, tcp(80, 1000, SYN | ACK))):
        assert bench.from_pod("pa", frame(ip(A[family], B[family], *upper))) == SHOT
    assert bench.counted() == {Reason.REPLY_WITHOUT_REQUEST: 2}
    assert bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(80, 1000, RST)))) == UNSPEC
    assert not list(bench.maps.flows())


@families
@pytest.mark.parametrize("hook", [Hook.FROM_POD, Hook.FROM_WIRE])
@pytest.mark.parametrize("settled", [False, True], ids=["at once", "long after"])
def test_no_call_rides_on_what_passed_for_an_answer(
    bench: Bench, family: int, hook: Hook, *, settled: bool
) -> None:
    """Whom `pb` may call, but who may not call it, opens nothing from a server's port: only answers."""
    isolate(bench, 1)
    bench.endpoint("pb", ingress=1)
    bench.began(ago=1000 if settled else 1)
    source, device = (A, "pa") if hook is Hook.FROM_POD else (REMOTE, "wire")
    there, ports = (source[family], B[family]), (80, 50051)

    def passes(flags: int, answer: bool = False) -> bool:
        if answer:
            return bench.from_pod("pb", frame(ip(*there[::-1], TCP, tcp(*ports[::-1], flags)))) != SHOT
        sent = frame(ip(*there, TCP, tcp(*ports, flags)))
        action = bench.run(hook, device, sent).action
        if action == UNSPEC:  # the stack may know more of it
            action = bench.run(Hook.TO_POD, "pb", sent).action
        return action != SHOT

    for flags in (0, FIN, 32, 8):
        assert not passes(flags), "no open connection sends that"
    assert passes(SYN | ACK) is not settled
    assert passes(ACK)
    assert not passes(SYN)
    assert not passes(SYN | FIN)
    assert passes(RST | ACK, answer=True)
    assert bench.flow(*there, TCP, ports).state == FlowState.RESET
    assert not passes(SYN)
    assert passes(ACK)
    assert passes(ACK, answer=True)
    assert not passes(SYN), "it is open again"
    assert passes(SYN, answer=True), "who may call does"


@families
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_may_answer_a_call_that_the_stack_translated_is_the_stacks(
    bench: Bench, family: int, protocol: int
) -> None:
    """`pa`, which lets nobody in, called a Service that is not ours. Who answers is known to the stack alone."""
    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    upper, back = (
        (tcp(50051, 80, SYN), tcp(80, 50051, SYN | ACK)) if protocol == TCP else (udp(50051, 80), udp(80, 50051))
    )
    backend, service = REMOTE[family], OUTSIDE[family]
    answer = frame(ip(backend, A[family], protocol, back))
    assert bench.run(Hook.FROM_WIRE, "wire", answer).action == SHOT, "an answer to nothing"
    assert bench.from_pod("pa", frame(ip(A[family], service, protocol, upper))) == UNSPEC
    assert bench.run(Hook.FROM_WIRE, "wire", answer).action == UNSPEC
    assert bench.run(Hook.TO_POD, "pa", answer).action == SHOT, "the stack knew nothing of it"
    named = frame(ip(service, A[family], protocol, back))
    assert bench.run(Hook.TO_POD, "pa", named).action == UNSPEC
    assert (
        bench.run(Hook.FROM_WIRE, "wire", frame(ip(backend, A[family], TCP, tcp(80, 50051, SYN)))).action == SHOT
    )
    assert len(list(bench.maps.flows())) == 2, "of the call to the Service alone"


@families
def test_no_pod_calls_its_node_by_what_passed_for_an_answer(bench: Bench, family: int) -> None:
    """The node may always call its pods, and be answered; a pod may call nobody here."""
    isolate(bench, 1)
    bench.endpoint("pa", egress=1, ingress=1)
    bench.began(ago=1)
    there = (A[family], NODE[family])
    assert bench.from_pod("pa", frame(ip(*there, TCP, tcp(80, 50051, ACK)))) == UNSPEC
    assert bench.from_pod("pa", frame(ip(*there, TCP, tcp(80, 50051, SYN)))) == SHOT
    assert bench.counted()[Reason.DENIED_EGRESS] == 1
    assert bench.from_pod("pa", frame(ip(*there, TCP, tcp(80, 50051, ACK)))) == UNSPEC


@families
@pytest.mark.parametrize("protocol", ["udp", "sctp", "echo"])
def test_what_passed_for_an_answer_does_so_for_a_while_only(bench: Bench, family: int, protocol: str) -> None:
    """However much goes between a server's port and a client's; of an echo reply it is certain who asked."""
    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    ping, reply = echo(family, reply=True)
    number, answer, call = {
        "udp": (UDP, udp(80, 50051), udp(50051, 80)),
        "sctp": (SCTP, sctp(80, 50051), sctp(50051, 80)),
        "echo": (ping, reply, echo(family)[1]),
    }[protocol]
    answers = frame(ip(B[family], A[family], number, answer))
    calls = frame(ip(A[family], B[family], number, call))
    assert bench.from_pod("pb", answers) == SHOT
    bench.began(ago=1)
    for _ in range(2):
        assert [bench.from_pod("pb", answers), bench.from_pod("pa", calls)] == [REDIRECT] * 2
    bench.began(ago=1000)
    assert bench.from_pod("pb", answers) == (REDIRECT if protocol == "echo" else SHOT)
    assert [bench.from_pod("pa", calls), bench.from_pod("pb", answers)] == [REDIRECT] * 2
    bench.began(ago=2000)
    assert bench.from_pod("pb", answers) == REDIRECT


@families
def test_both_call_at_once(bench: Bench, family: int) -> None:
    """Each SYN is judged in its own direction; where one may not call, the other's connection comes about."""
    there, back, ports = (A[family], B[family]), (B[family], A[family]), (1000, 2000)

    def send(name: str, flags: int) -> int:
        one = ip(*there, TCP, tcp(*ports, flags)) if name == "pa" else ip(*back, TCP, tcp(*ports[::-1], flags))
        return bench.from_pod(name, frame(one))

    for may, action in ((True, REDIRECT), (False, SHOT)):
        bench.reset()
        if not may:
            isolate(bench, 1)
            bench.endpoint("pa", ingress=1)
        assert send("pa", SYN) == REDIRECT
        assert send("pb", SYN) == action
        assert [send(name, SYN | ACK) for name in ("pb", "pa")] == [REDIRECT] * 2
        assert [send(name, ACK) for name in ("pa", "pb")] == [REDIRECT] * 2
        assert bench.flow(*there, TCP, ports).state == FlowState.OPEN
        assert (FlowFlag.REPLY in bench.flow(*there, TCP, ports).flags) is may


@families
def test_life_of_a_tcp_connection(bench: Bench, family: int) -> None:
    there, back, ports = (A[family], B[family]), (B[family], A[family]), (1000, 80)

    def state() -> tuple[FlowState, FlowState]:
        return bench.flow(*there, TCP, ports).state, bench.flow(*back, TCP, (80, 1000)).state

    def send(flags: int, answer: bool = False) -> None:
        one = ip(*back, TCP, tcp(80, 1000, flags)) if answer else ip(*there, TCP, tcp(*ports, flags))
        assert bench.from_pod("pb" if answer else "pa", frame(one)) == REDIRECT

    seen = []
    for flags, answer in (
        (SYN, False),
        (SYN, False),
        (SYN | ACK, True),
        (ACK, False),
        (FIN | ACK, False),
        (FIN | ACK, False),
        (ACK, True),
        (FIN | ACK, True),
        (ACK, False),
        (RST, True),
        (RST, False),
    ):
        send(flags, answer)
        assert len(set(state())) == 1
        seen.append(state()[0].name)
    assert seen == [*["HALF_OPEN"] * 2, *["OPEN"] * 2, *["CLOSING"] * 3, *["CLOSED"] * 4]
    assert [event.kind for event in bench.events()] == [EventKind.FLOW_NEW, EventKind.FLOW_END], "it ends once"
    # The ports used again, from the other end: another connection.
    assert bench.from_pod("pb", frame(ip(*back, TCP, tcp(80, 1000, SYN)))) == REDIRECT
    assert FlowFlag.REPLY in bench.flow(*there, TCP, ports).flags
    send(RST)
    assert state() == (FlowState.RESET,) * 2


@families
def test_lifetimes(bench: Bench, family: int) -> None:
    """A connection that is over is judged anew; what is sent one way keeps the other way open."""
    there, back = (A[family], B[family]), (B[family], A[family])
    ping, request = echo(family)
    kind = (8, 128)[family] << 8
    table = [
        (UDP, udp(1, 2), (1, 2), 30),
        (TCP, tcp(1, 2), (1, 2), 120),
        (SCTP, sctp(1, 2), (1, 2), 10),
        (ping, request, (5, kind), 30),
        (GRE, bytes(8), (0, 0), 600),
    ]
    for protocol, upper, ports, seconds in table:
        assert lifetime(protocol, FlowState.HALF_OPEN) == seconds
        packet = frame(ip(*there, protocol, upper))
        bench.from_pod("pa", packet)
        made = bench.flow(*there, protocol, ports).made
        bench.age(*there, protocol, ports, seconds - 1)
        bench.from_pod("pa", packet)
        assert bench.flow(*there, protocol, ports).made == made - (seconds - 1) * SECOND
        bench.age(*there, protocol, ports, seconds + 1)
        bench.from_pod("pa", packet)
        assert bench.flow(*there, protocol, ports).made > made

    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    bench.from_pod("pa", frame(ip(*there, UDP, udp(7, 8))))
    bench.age(*there, UDP, (7, 8), 31)
    assert bench.from_pod("pb", frame(ip(*back, UDP, udp(8, 7)))) == SHOT
    bench.from_pod("pa", frame(ip(*there, UDP, udp(7, 8))))
    bench.age(*there, UDP, (7, 8), 29)
    bench.from_pod("pa", frame(ip(*there, UDP, udp(7, 8))))
    forward = bench.flow(*there, UDP, (7, 8))
    assert bench.flow(*back, UDP, (8, 7)).seen < forward.seen
    bench.age(*there, UDP, (7, 8), 2)
    assert bench.from_pod("pb", frame(ip(*back, UDP, udp(8, 7)))) == REDIRECT
    assert bench.flow(*there, UDP, (7, 8)).state == FlowState.REPLIED


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_entry_that_the_table_gave_up_comes_back(bench: Bench, family: int, protocol: str) -> None:
    """Either alone: the connection goes on, though nobody may call the pod; a changed rule still cuts it."""
    number, request, ports, answer, _ = requests(family)[protocol]
    isolate(bench, 1)
    bench.endpoint("pa", ingress=1)
    there = FlowKey(ip_address(A[family]), ip_address(REMOTE[family]), number, *ports)
    out, back = (
        frame(ip(A[family], REMOTE[family], number, request)),
        frame(ip(REMOTE[family], A[family], number, answer)),
    )
    if protocol == "tcp":
        out = frame(ip(A[family], REMOTE[family], number, tcp(*ports, ACK)))
    bench.from_pod("pa", frame(ip(A[family], REMOTE[family], number, request)))
    assert bench.from_wire(back) == REDIRECT
    for key in (there, there.reversed()):
        bpf.delete(bench.engine.maps["flows"], key.pack())
        assert (bench.from_pod("pa", out), bench.from_wire(back)) == (REDIRECT, REDIRECT)
        forward, reply = bench.maps.flow(there), bench.maps.flow(there.reversed())
        assert forward
        assert reply
        assert (forward.flags & FlowFlag.REPLY, reply.flags & FlowFlag.REPLY) == (0, FlowFlag.REPLY)
        assert min(forward.packets, reply.packets) >= 1
    assert bench.counted()[Counter.FLOWS_MADE] == 1
    bpf.delete(bench.engine.maps["flows"], there.reversed().pack())
    isolate(bench, 2)
    bench.endpoint("pa", egress=2, ingress=1)
    if protocol == "tcp":
        assert bench.resets(Hook.FROM_WIRE, "wire", back)
    else:
        assert bench.from_wire(back) == SHOT
    bpf.delete(bench.engine.maps["flows"], there.pack())
    bpf.delete(bench.engine.maps["flows"], there.reversed().pack())
    assert bench.from_wire(back) == SHOT


@families
def test_no_fragment_in_anothers_name(bench: Bench, family: int) -> None:
    """A first fragment with a forged source leaves no ports for the later ones of who it names."""
    first = ip(A[family], B[family], UDP, udp(1, 53, bytes(40)), fragment=(0, True))
    later = ip(A[family], B[family], UDP, bytes(8), fragment=(48, False))
    assert bench.from_pod("pb", frame(first)) == SHOT
    assert bench.from_pod("pa", frame(later)) == SHOT
    assert bench.counted() == {Reason.NOT_OWN_SOURCE: 1, Reason.FRAGMENT_WITHOUT_FIRST: 1}


@families
def test_quota_of_half_open_flows(bench: Bench, family: int) -> None:
    """A pod that asks everybody and is answered by nobody is stopped; others and its answered ones are not."""
    bench.reset(half_open=100)

    def flood() -> list[int]:
        return [
            bench.bare(Hook.FROM_POD, "pa", frame(ip(A[family], REMOTE[family], TCP, tcp(port, 80)))).action
            for port in range(1, 301)
        ]

    bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(999, 80))))
    bench.from_pod("pb", frame(ip(B[family], A[family], TCP, tcp(80, 999, SYN | ACK))))
    actions = bench.inside(flood)
    assert 99 <= actions.count(REDIRECT) <= 101
    assert bench.counted()[Reason.QUOTA_HALF_OPEN] == actions.count(SHOT)
    assert bench.from_pod("pb", frame(ip(B[family], REMOTE[family], TCP, tcp(1, 80)))) == REDIRECT
    assert bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(999, 80, ACK)))) == REDIRECT
    # An answer makes room for one more.
    assert bench.from_wire(frame(ip(REMOTE[family], A[family], TCP, tcp(80, 1, SYN | ACK)))) == REDIRECT
    assert bench.from_pod("pa", frame(ip(A[family], REMOTE[family], TCP, tcp(400, 80)))) == REDIRECT
    assert bench.from_pod("pa", frame(ip(A[family], REMOTE[family], TCP, tcp(401, 80)))) == SHOT


@families
def test_quota_of_open_connections(bench: Bench, family: int) -> None:
    bench.reset(established=3)

    def connect(port: int) -> int:
        action = bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(port, 80))))
        bench.from_pod("pb", frame(ip(B[family], A[family], TCP, tcp(80, port, SYN | ACK))))
        return action

    assert [connect(port) for port in range(1, 6)] == [REDIRECT] * 3 + [SHOT] * 2
    assert bench.counted()[Reason.QUOTA_ESTABLISHED] == 2
    bench.from_pod("pa", frame(ip(A[family], B[family], TCP, tcp(1, 80, RST))))
    assert [connect(port) for port in (6, 7)] == [REDIRECT, SHOT]


@families
def test_route_that_changes_changes_the_way(bench: Bench, family: int) -> None:
    """At once where the agent says so, and after a second where nobody does."""
    packet = frame(ip(A[family], REMOTE[family], UDP, udp(1, 2)))
    option = ("-4", "-6")[family]
    network, gateway = (("10.2.0.0/16", "172.31.0.2"), ("fd00:2::/32", "fd31::2"))[family]
    assert bench.from_pod("pa", packet) == REDIRECT
    try:
        bench.node.sh(f"ip {option} route replace blackhole {network}")
        bench.maps.changed(ways=True)
        assert bench.from_pod("pa", packet) == UNSPEC
    finally:
        bench.node.sh(f"ip {option} route flush {network}; ip {option} route add {network} via {gateway}")
    ways = bench.counted()[Counter.WAYS_RENEWED]
    bench.from_pod("pa", packet)
    bench.maps.changed()
    bench.from_pod("pa", packet)
    assert bench.counted()[Counter.WAYS_RENEWED] <= ways + 1
    bench.maps.changed(ways=True)
    assert bench.from_pod("pa", packet) == REDIRECT


def test_inactive_build_does_nothing(bench: Bench) -> None:
    bpf.insert(bench.engine.maps["active"], bytes(4), bytes(8))
    for hook, device in ((Hook.FROM_POD, "pa"), (Hook.FROM_WIRE, "wire"), (Hook.TO_POD, "pb")):
        sent = frame(ip(A[0], B[0], TCP, tcp(1, 2)))
        done = bench.run(hook, device, sent)
        assert (done.action, done.frame) == (UNSPEC, sent)
    assert bench.counted() == {}
    assert not list(bench.maps.flows())


def test_lost_events_are_counted(bench: Bench) -> None:
    isolate(bench, 1)
    bench.endpoint("pa", egress=1)
    packet = frame(ip(A[0], B[0], TCP, tcp(1, 2)))

    def many() -> None:
        bench.bare(Hook.FROM_POD, "pa", packet, repeat=60000)

    bench.inside(many)
    told = len(bench.events())
    counted = bench.counted()
    assert counted[Reason.DENIED_EGRESS] == 60000
    assert 0 < told < 60000
    assert told + counted[Counter.EVENTS_LOST] == 60000


def test_agent_is_woken_when_much_waits(bench: Bench) -> None:
    """Not by each event: that would cost more than all the rest."""
    isolate(bench, 1)
    bench.endpoint("pa", egress=1)
    packet = frame(ip(A[0], B[0], TCP, tcp(1, 2)))
    bench.events()

    def is_awake() -> bool:
        return bool(select.select([bench.woken], [], [], 0)[0])

    def send(packets: int) -> None:
        bench.inside(lambda: bench.bare(Hook.FROM_POD, "pa", packet, repeat=packets))

    many = WAKE_AT // (EVENT_SIZE + RING_HEADER)
    assert not is_awake()  # epoll looks again only when asked
    send(many - 10)
    assert not is_awake()
    send(1000)
    assert is_awake()
    assert len(bench.events()) == many - 10 + 1000
    assert not is_awake()


def test_a_kernel_that_lists_no_trie_in_one_go_is_asked_key_by_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before 5.13. The pools are in a trie, the pods in a hash, and of rules there are none."""
    maps = [bench.engine.maps[name] for name in ("pools", "endpoints", "rules")]
    expected = [bpf.items(fd) for fd in maps]
    assert [bool(each) for each in expected] == [True, True, False]
    monkeypatch.setattr(bpf.library(), "bpf_map_lookup_batch", lambda *_: -524)
    assert [bpf.items(fd) for fd in maps] == expected
