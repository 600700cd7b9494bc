"""Names of domains in policies: what answers of DNS teach, for how long, and what nodes' entries make of it."""

import struct
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.errors import NotFound
from podway.kernel.dns_answers import completed, message_in
from podway.policy.dns_messages import read_answer
from podway.policy.explain import explain, find_end
from podway.policy.lint import lint
from podway.policy.maps import Prefix
from podway.policy.names import CEILING, FLOOR, Answer, Bearer, LearnedNames, patterns
from tests.policy.clusters import Planned, cluster_policy, namespace, pod, resource

CLIENT, WEB = "10.1.1.1", "10.1.2.1"
ONE, TWO, SIX = (Prefix.host(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
TCP_HEADER = struct.pack("!HHIIBBHHH", 53, 40000, 1, 1, 5 << 4, 0x18, 1024, 0, 0)


def answer(asked: str, *records: str, kind: str = "A", response: bool = True) -> bytes:
    """A message with records such as `www.example.com. 300 IN A 192.0.2.1`."""
    message = dns.message.make_response(dns.message.make_query(asked, kind))
    for one in records:
        name, ttl, family, sort, value = one.split()
        message.answer.append(dns.rrset.from_text(name, int(ttl), family, sort, value))
    if not response:
        message.flags &= ~dns.flags.QR
    return message.to_wire()


def test_a_name_is_learned_as_it_was_asked_for_by_aliases_too() -> None:
    chain = ("WWW.example.com. 300 IN CNAME a.cdn.test.", "a.cdn.test. 20 IN CNAME b.cdn.test.")
    found = read_answer(answer("WwW.Example.Com", *chain, "b.cdn.test. 600 IN A 192.0.2.1"))
    assert found == Answer("www.example.com", frozenset({ONE}), 20)
    six = read_answer(answer("v6.example.com", "v6.example.com. 5 IN AAAA 2001:db8::1", kind="AAAA"))
    assert six == Answer("v6.example.com", frozenset({SIX}), 5)


@pytest.mark.parametrize(
    "message",
    [
        answer("www.example.com", "other.example.com. 300 IN A 192.0.2.1"),  # nobody asked for it
        answer("www.example.com", "www.example.com. 9 IN CNAME www.example.com."),
        answer("www.example.com", "www.example.com. 9 IN A 192.0.2.1", response=False),
        answer("www.example.com", "www.example.com. 9 IN TXT x", kind="TXT"),
        answer("www.example.com"),
        b"\x00\x01\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",  # a name that is itself
        b"",
    ],
    ids=("unasked", "circle", "query", "text", "empty", "pointer to itself", "nothing"),  # a query's id is random
)
def test_what_answers_nothing_teaches_nothing(message: bytes) -> None:
    assert read_answer(message) is None


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0"),
        *("::1", "fe80::1", "ff02::1", "::", "::ffff:169.254.169.254", "::ffff:127.0.0.1", "::ffff:192.0.2.1"),
    ],
)
def test_no_domain_opens_what_is_every_machines_own(address: str) -> None:
    kind = "AAAA" if ":" in address else "A"
    found = read_answer(answer("www.example.com", f"www.example.com. 9 IN {kind} {address}", kind=kind))
    assert found is not None
    assert not found.addresses


def test_a_dot_within_a_label_makes_no_name_of_another_zone() -> None:
    assert read_answer(answer("x\\.ok.io", "x\\.ok.io. 9 IN A 192.0.2.1")) is None


def test_an_end_that_is_put_off_takes_no_room() -> None:
    known, one = LearnedNames(), Bearer(ONE, "www.example.com")
    for until in range(1, 1000):
        known.learn(one, float(until))
    assert known.due(500.0) == {}
    assert known.due(999.0) == {one: 999.0}
    known.forget([one])
    known.learn(one, 2000.0)
    assert known.due(1500.0) == {}
    assert known.due(2000.0) == {one: 2000.0}
    assert len(known._ends) == 1


@given(st.binary(max_size=600), st.integers(0, 40))
def test_hostile_messages_are_refused_or_read(data: bytes, at: int) -> None:
    whole = answer("www.example.com", "www.example.com. 9 IN A 192.0.2.1")
    for message in (data, whole[:at] + data, whole[:at] + data[:4] + whole[at + 4 :]):
        found = read_answer(message)
        assert found is None or found.addresses is not None


def test_a_pattern_means_all_in_a_domain_and_not_the_domain() -> None:
    assert list(patterns("a.b.example.com")) == ["a.b.example.com", "*.b.example.com", "*.example.com", "*.com"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.test", "b.test"]),
            st.frozensets(st.sampled_from([ONE, TWO]), min_size=1),
            st.integers(0, 2 * CEILING),
            st.integers(0, 500),
        ),
        max_size=12,
    )
)
def test_a_name_lasts_as_long_as_the_longest_answer_said_within_bounds(heard: Any) -> None:
    known, model, now = LearnedNames(), dict[Bearer, float](), 0.0
    for name, addresses, lifetime, later in heard:
        now += later
        known.hear(Answer(name, addresses, lifetime), now)
        for address in addresses:
            bearer = Bearer(address, name)
            model[bearer] = max(model.get(bearer, 0), now + min(max(lifetime, FLOOR), CEILING))
        over = {bearer for bearer, until in model.items() if until <= now}
        assert set(known.due(now)) == set(known.due(now)) == over  # as often as it is asked
        known.forget(over)
        model = {bearer: until for bearer, until in model.items() if bearer not in over}
        assert dict(known.items()) == model
        for address in (ONE, TWO):
            assert known.names_of(address) == {bearer.name for bearer in model if bearer.address == address}


def test_when_too_much_is_known_what_would_be_over_first_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podway.policy.names.MOST_ADDRESSES", 2)
    known = LearnedNames()
    for number, name in enumerate(("a", "b", "c")):
        known.learn(Bearer(ONE, name), 100.0 + number)
    assert known.due(0.0) == {Bearer(ONE, "a"): 100.0}


# In the entries of a node.

POLICY = cluster_policy(
    egress=[
        {"action": "Accept", "to": [{"domainNames": ["*.Example.com.", "api.test"]}]},
        {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]},
    ]
)


def node() -> Planned:
    return Planned(namespace("x"), pod("x", "client", CLIENT), pod("x", "web", WEB, node="n2"), POLICY)


def reached(planned: Planned, *addresses: str) -> list[bool]:
    rules = planned.maps["n1"].endpoints["x", "client"]
    return [planned.maps["n1"].decide(rules.egress, Prefix.host(one), 6, 443).allowed for one in addresses]


def bear(planned: Planned, address: Prefix, *names: str) -> None:
    planner = planned.planners["n1"]
    planner.bear(address, frozenset(names))
    planned.maps["n1"].apply(planner.settle())


def test_an_address_is_allowed_while_it_bears_a_name_that_a_rule_has() -> None:
    planned = node()
    assert reached(planned, "192.0.2.1", WEB) == [False, False]
    bear(planned, ONE, "a.b.example.com", "elsewhere.test")
    bear(planned, TWO, "example.com", "b.api.test")  # neither the domain itself, nor what is in a plain name
    bear(planned, SIX, "api.test")
    bear(planned, Prefix.host(WEB), "web.example.com")  # a pod's own: it is in several rules' eyes, then
    assert reached(planned, "192.0.2.1", "192.0.2.2", "2001:db8::1", WEB) == [True, False, True, True]
    bear(planned, ONE, "elsewhere.test")
    bear(planned, Prefix.host(WEB))
    assert reached(planned, "192.0.2.1", WEB, "2001:db8::1") == [False, False, True]


def test_what_is_known_of_names_counts_for_policies_that_come_later_and_goes_with_them() -> None:
    planned = node()
    bear(planned, ONE, "www.example.com")
    before = dict(planned.maps["n1"].identities)
    planned.drop(POLICY)
    assert not planned.maps["n1"].identities
    planned.put(POLICY)
    assert reached(planned, "192.0.2.1", "192.0.2.2") == [True, False]
    assert planned.maps["n1"].identities.keys() == before.keys()
    assert planned.planners["n1"].is_named("www.example.com")
    assert not planned.planners["n1"].is_named("example.com")


def test_only_sets_of_policies_with_names_are_to_be_listened_for() -> None:
    planned = node()
    assert planned.planners["n1"].naming == {planned.maps["n1"].endpoints["x", "client"].egress}
    planned.put({**POLICY, "spec": {**POLICY["spec"], "egress": POLICY["spec"]["egress"][1:]}})
    assert not planned.planners["n1"].naming


# Explained.


def said(target: str) -> str:
    objects = [resource(one) for one in (namespace("x"), pod("x", "client", CLIENT), POLICY)]
    found = explain(objects, find_end(objects, "client", "x"), find_end(objects, target, "x"), 6, 443)
    return " ".join(f"{one.allowed}: {one.reasons[0].reason}" for one in found)


def test_a_connection_to_a_name_is_explained_and_one_to_an_address_says_what_else_counts() -> None:
    assert said("WWW.example.com").startswith("True: rule egress[0] of ClusterNetworkPolicy/c allows it")
    assert said("www.example.org").startswith("False: rule egress[1] of ClusterNetworkPolicy/c denies it")
    assert "unless its node knows the address by a name" in said("192.0.2.1")
    with pytest.raises(NotFound):
        said("nobody")


def test_names_without_a_resolver_that_is_believed_are_told() -> None:
    objects = [resource(one) for one in (namespace("x"), pod("x", "client", CLIENT), POLICY)]
    assert [problem[0] for _, problem in lint(objects)] == ["spec.egress[0].to[0].domainNames"]
    server = pod("kube-system", "dns", "10.1.3.1", labels={"k8s-app": "kube-dns"})
    assert not lint([*objects, resource(server)])


# In packets.


def test_what_is_in_a_datagram_is_a_message_and_what_is_in_a_segment_never() -> None:
    ends = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    udp = bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]) + ends + bytes(8) + b"hello"
    assert message_in(udp) == b"hello"
    tcp = bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]) + ends + TCP_HEADER + struct.pack("!H", 2) + b"hi"
    assert message_in(tcp) is None


@given(st.binary(max_size=64), st.booleans())
def test_a_checksum_is_completed_where_a_device_would_have_and_never_mended(data: bytes, ipv6: bool) -> None:
    ends = bytes(range(32)) if ipv6 else bytes(range(8))
    length = (8 + len(data)).to_bytes(2, "big")
    if ipv6:
        head = bytes([0x60, 0, 0, 0]) + length + bytes([17, 64]) + ends
    else:
        head = bytes([0x45, 0]) + (28 + len(data)).to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, 17, 0, 0]) + ends
    pseudo = ends + bytes([0, 17]) + length

    def folded(part: bytes) -> int:
        total: int = sum(struct.unpack(f"!{(len(part) + 1) // 2}H", part + bytes(len(part) % 2)))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return total

    ports = struct.pack("!HH", 53, 40000) + length
    whole = completed(head + ports + folded(pseudo).to_bytes(2, "big") + data)
    assert whole[: len(head) + 6] == head + ports
    assert folded(pseudo + whole[len(head) :]) == 0xFFFF  # right, as its receiver checks it (RFC 1071)
    assert completed(whole) == whole
    wrong = (int.from_bytes(whole[len(head) + 6 : len(head) + 8], "big") ^ 1).to_bytes(2, "big")
    if int.from_bytes(wrong, "big") != folded(pseudo):
        damaged = whole[: len(head) + 6] + wrong + whole[len(head) + 8 :]
        assert completed(damaged) == damaged
