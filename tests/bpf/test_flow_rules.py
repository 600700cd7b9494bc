"""Which rule decides: the engine's verdict on one packet, compared with the definition, over random rule sets."""

from collections.abc import Iterable
from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podway.kernel.bpf.flow_layout import MOST_PRECEDENCE, EventKind, Hook, Reason
from podway.policy.maps import ANYBODY, Rule, RuleKey, Tier, Verdict
from tests.bpf.flow_bench import NODE, PODS, REDIRECT, REMOTE, SHOT, Bench, is_reset
from tests.bpf.flow_packets import ACK, ICMP, SYN, TCP, UDP, frame, icmp, ip, tcp, udp

pytestmark = pytest.mark.kernel

SET = 3
IDENTITIES = (ANYBODY, 20, 21)
PORTS = (80, 81, 8080, 8087, 65535)
KINDS = ((8, 0), (3, 4), (42, 1))
"""Types and codes of ICMP: of an echo request, of one that is never asked for here, of one that nobody knows."""

rule = st.builds(
    Rule, st.sampled_from([Verdict.ALLOW, Verdict.PASS, Verdict.DENY]), st.integers(0, 3), st.integers(16, 40)
)


@st.composite
def rule_keys(draw: st.DrawFn) -> RuleKey:
    protocol = draw(st.sampled_from([0, TCP, UDP, ICMP]))
    length = draw(st.sampled_from([0, 8, 13, 16])) if protocol else 0
    port = draw(st.sampled_from([*PORTS, *(kind << 8 | code for kind, code in KINDS)]))
    return RuleKey(SET, draw(st.sampled_from(IDENTITIES)), protocol, port & ~(0xFFFF >> length), length)


rule_sets = st.dictionaries(rule_keys(), st.dictionaries(st.sampled_from(Tier), rule, min_size=1), max_size=12)


def decide(
    entries: dict[RuleKey, dict[Tier, Rule]], identity: int, protocol: int, port: int
) -> tuple[bool, Iterable[int]]:
    """The definition: whether it may be, and which rules may have said so."""
    matching = [
        tiers
        for key, tiers in entries.items()
        if key.identity in {ANYBODY, identity}
        and key.protocol in {0, protocol}
        and port & ~(0xFFFF >> key.port_length) == key.port
    ]
    for tier in Tier:
        said = [tiers[tier] for tiers in matching if tier in tiers]
        if not said:
            continue
        first = max((one.precedence, one.verdict) for one in said)
        if first[1] is not Verdict.PASS:
            numbers = [one.number for one in said if (one.precedence, one.verdict) == first]
            return first[1] is Verdict.ALLOW, numbers
    return True, [0]


@given(rule_sets)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_verdict_is_as_defined(shared_bench: Bench, entries: dict[RuleKey, dict[Tier, Rule]]) -> None:
    bench = shared_bench
    bench.reset()
    bench.endpoint("pa", ingress=SET)
    bench.rules(SET, *entries.items())
    for identity in IDENTITIES:
        bench.maps.set_identity(ip_network(REMOTE[0]), identity)
        bench.maps.changed()
        questions = [
            *((TCP, port, tcp(999, port)) for port in PORTS),
            *((UDP, port, udp(999, port)) for port in PORTS),
            (ICMP, 8 << 8, icmp(8)),
            (ICMP, 42 << 8 | 1, icmp(42, 1)),
            (99, 0, bytes(8)),
        ]
        for protocol, port, upper in questions:
            bench.events()
            sent = frame(ip(REMOTE[0], PODS["pa"][0], protocol, upper))
            done = bench.run(Hook.FROM_WIRE, "wire", sent)
            allowed, rules = decide(entries, identity, protocol, port)
            # What was allowed to another identity before is cut: its sender is told.
            refused = done.action == SHOT or is_reset(sent, done)
            assert done.action in {SHOT, REDIRECT}
            assert allowed is not refused, (identity, protocol, port)
            for event in bench.events():  # of a flow that was allowed before, and still is, there is none
                assert event.rules[1] in rules
                assert event.reason == (Reason.KEPT if allowed else Reason.DENIED_INGRESS)


def test_precedence_is_heard_to_its_end(bench: Bench) -> None:
    """Thirty bits of precedence, and all of a rule's number."""
    bench.endpoint("pa", ingress=SET)
    for more, less in ((MOST_PRECEDENCE, MOST_PRECEDENCE - 1), (1, 0), (1 << 29, (1 << 29) - 1)):
        first, second = Rule(Verdict.ALLOW, more, 2**32 - 1), Rule(Verdict.DENY, less, 17)
        bench.rules(SET, (RuleKey(SET), {Tier.ADMIN: first}), (RuleKey(SET, protocol=UDP), {Tier.ADMIN: second}))
        bench.events()
        port = more & 0x7FFF
        assert bench.from_wire(frame(ip(REMOTE[0], PODS["pa"][0], UDP, udp(port, 1)))) == REDIRECT
        [event] = bench.events()
        assert event.rules == (0, 2**32 - 1)


ENFORCED, AUDITED = 4, 5
DENY = (RuleKey(AUDITED), {Tier.NETWORK_POLICY: Rule(Verdict.DENY, 0, 50)})
FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


def kinds(bench: Bench) -> list[tuple[EventKind, Reason, tuple[int, int]]]:
    return [(event.kind, event.reason, event.rules) for event in bench.events()]


@FAMILIES
def test_what_is_audited_is_told_with_its_rule_and_passes(bench: Bench, family: int) -> None:
    """At either end, beside what is enforced; of an answer nothing is told."""
    allow = Rule(Verdict.ALLOW, 1, 60)
    there = frame(ip(PODS["pa"][family], PODS["pb"][family], TCP, tcp(9, 80)))
    back = frame(ip(PODS["pb"][family], PODS["pa"][family], TCP, tcp(80, 9, SYN | ACK)))
    for audit, reason, rules in (
        ((AUDITED, 0), Reason.DENIED_EGRESS, (50, 0)),
        ((0, AUDITED), Reason.DENIED_INGRESS, (0, 50)),
    ):
        bench.reset()
        bench.rules(ENFORCED, (RuleKey(ENFORCED), {Tier.NETWORK_POLICY: allow}))
        bench.rules(AUDITED, DENY)
        bench.endpoint("pa", egress=ENFORCED, audit=(audit[0], 0))
        bench.endpoint("pb", ingress=ENFORCED, audit=(0, audit[1]))
        assert bench.from_pod("pa", there) == REDIRECT
        told = [(EventKind.FLOW_NEW, Reason.KEPT, (60, 60)), (EventKind.FLOW_AUDITED, reason, rules)]
        assert kinds(bench) == told
        assert bench.from_pod("pb", back) == bench.from_pod("pa", there) == REDIRECT
        assert kinds(bench) == []
        assert reason not in bench.counted(), "nothing was dropped for it"


def test_a_connection_that_is_denied_anyway_and_a_set_that_is_not_written_are_no_audit(bench: Bench) -> None:
    packet = frame(ip(REMOTE[0], PODS["pa"][0], UDP, udp(1, 2)))
    bench.endpoint("pa", audit=(0, AUDITED))
    assert bench.from_wire(packet) == REDIRECT, "nothing is known of the set, and it is not what judges"
    assert [kind for kind, _, _ in kinds(bench)] == [EventKind.FLOW_NEW]
    bench.reset()
    bench.rules(AUDITED, DENY)
    bench.rules(ENFORCED, (RuleKey(ENFORCED), {Tier.NETWORK_POLICY: Rule(Verdict.DENY, 0, 70)}))
    bench.endpoint("pa", ingress=ENFORCED, audit=(0, AUDITED))
    assert bench.from_wire(packet) == SHOT
    assert kinds(bench) == [(EventKind.PACKET_DROPPED, Reason.DENIED_INGRESS, (0, 70))]


def test_what_is_open_is_audited_when_the_audit_begins_and_whenever_it_changes(bench: Bench) -> None:
    packet = frame(ip(REMOTE[0], PODS["pa"][0], UDP, udp(1, 2)))
    assert bench.from_wire(packet) == REDIRECT
    bench.events()
    bench.rules(AUDITED, DENY)
    bench.endpoint("pa", audit=(0, AUDITED))
    for _ in range(2):
        assert bench.from_wire(packet) == REDIRECT
    told = [(EventKind.FLOW_AUDITED, Reason.DENIED_INGRESS, (0, 50))]
    assert kinds(bench) == told, "once"
    bench.rules(AUDITED, (RuleKey(AUDITED), {Tier.NETWORK_POLICY: Rule(Verdict.ALLOW, 0, 51)}))
    bench.from_wire(packet)
    assert kinds(bench) == []
    bench.rules(AUDITED, DENY)
    assert bench.from_wire(packet) == REDIRECT
    assert kinds(bench) == told
    bench.maps.changed()  # of something else
    assert bench.from_wire(packet) == REDIRECT
    assert kinds(bench) == []


def test_the_node_itself_is_not_audited(bench: Bench) -> None:
    """As its processes always reach its pods."""
    bench.rules(AUDITED, DENY)
    bench.endpoint("pa", audit=(0, AUDITED))
    bench.to_pod("pa", frame(ip(NODE[0], PODS["pa"][0], UDP, udp(1, 2))), forwarded=False)
    assert EventKind.FLOW_AUDITED not in [kind for kind, _, _ in kinds(bench)]
