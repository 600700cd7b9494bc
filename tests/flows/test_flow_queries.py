"""What is found of what was recorded: every filter, limits, sums; and what cannot be asked."""

from collections.abc import Iterator
from typing import Any

import pytest

from podway.errors import InvalidInput
from podway.flows.block import Block
from podway.flows.query import Query, Row, Sums, find, merged, sums
from podway.flows.record import Frontend, Rule, Who
from podway.kernel.bpf.flow_layout import EventKind, FlowFlag, FlowState, Reason
from tests.flows.flow_events import CLIENT, OUTSIDE, SECOND, WEB, event, names

DENY, ALLOW = 70, 71
VIP = "10.96.0.10"
EVENTS = (
    event(time=1 * SECOND, rules=(0, ALLOW)),
    event(
        EventKind.PACKET_DROPPED, time=2 * SECOND, reason=Reason.DENIED_INGRESS, rules=(0, DENY), ports=(1, 443)
    ),
    event(EventKind.PACKET_DROPPED, time=3 * SECOND, reason=Reason.NOT_OWN_SOURCE, source=OUTSIDE, made=0),
    event(time=4 * SECOND, protocol=17, source=OUTSIDE, ports=(9, 53), service=(VIP, 5353)),
    event(
        EventKind.FLOW_END,
        time=5 * SECOND,
        source=WEB,
        destination=CLIENT,
        ports=(80, 40000),
        flags=FlowFlag.REPLY,
        state=FlowState.CLOSED,
        counts=(3, 300, 4, 400),
        rules=(0, ALLOW),
    ),
    event(EventKind.FLOW_LIVES, time=6 * SECOND, source="10.244.1.9", destination=OUTSIDE, ports=(5, 8443)),
)


def blocks(size: int = 2) -> Iterator[Block]:
    """All events, so many in a block, newest first."""
    for first in reversed(range(0, len(EVENTS), size)):
        said = names()
        said.addresses += [
            (0, "10.244.1.9", Who("pod", "db", "data", "node1", "StatefulSet/db")),
            (0, OUTSIDE, Who(names=("api.example.com", "www.example.com"))),
            (0, "172.30.0.1", Who("node", "node1", "", "node1")),
        ]
        said.services.append((0, VIP, (Frontend("shop", "dns", "udp", 5353, "dns"),)))
        isolated = ("NetworkPolicy/shop/deny", "NetworkPolicy/shop/more")
        said.rules += [
            (0, DENY, Rule(isolated[0], isolates=isolated)),
            (0, ALLOW, Rule("NetworkPolicy/shop/allow", "ingress[0]")),
        ]
        yield Block.of("node1", first, b"".join(EVENTS[first : first + size]), said)


def test_a_workload_of_any_name_is_found_or_not() -> None:
    """Older agents wrote what API servers took."""
    said = names()
    said.addresses.append((0, CLIENT, Who("pod", "client", "shop", "node1", "Foo/a/b")))
    record = Block.of("node1", 0, EVENTS[0], said).record(0)
    assert Query.of({"workloads": ["shop/*"]}).matches(record)
    assert Query.of({"workloads": ["shop/foo/*"]}).matches(record)
    assert not Query.of({"workloads": ["shop/b"]}).matches(record)


def found(**asked: Any) -> list[int]:
    """The seconds of the records that are found, in their order."""
    answers = [find(Query.of(asked), blocks(size), len(EVENTS), lambda: False) for size in (1, 2, 6)]
    assert answers[0].records == answers[1].records == answers[2].records
    assert all(answer.complete for answer in answers)
    return [int(record.time) for record in answers[0].records]


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"verdicts": ["denied"]}, [2]),
        ({"verdicts": ["dropped"]}, [3]),
        ({"verdicts": ["denied", "dropped"]}, [2, 3]),
        ({"verdicts": ["allowed"], "events": ["new"]}, [1, 4]),
        ({"reasons": ["NOT_OWN_SOURCE"]}, [3]),
        ({"reasons": ["NOT_OWN_SOURCE"], "verdicts": ["denied"]}, []),
        ({"events": ["end", "lives"]}, [5, 6]),
        ({"pods": ["shop/client"]}, [1, 2, 5]),
        ({"pods": ["shop/*"]}, [1, 2, 3, 4, 5]),
        ({"pods": ["data/db", "shop/client"]}, [1, 2, 5, 6]),
        ({"sources": ["shop/client"]}, [1, 2, 5]),
        ({"sources": ["shop/web"]}, []),  # the end was told by an answer: who called is the client all the same
        ({"destinations": ["192.0.2.0/24"]}, [6]),
        ({"sources": ["192.0.2.9"]}, [3, 4]),
        ({"pods": ["192.0.2.0/24"]}, [3, 4, 6]),
        ({"workloads": ["data/db"]}, [6]),
        ({"workloads": ["data/statefulset/d*"]}, [6]),
        ({"workloads": ["data/Deployment/db"]}, []),
        ({"workloads": ["shop/Pod/client"]}, [1, 2, 5]),  # one that nobody controls is a workload by itself
        ({"services": ["shop/dns"]}, [4]),
        ({"services": ["shop/d*"], "verdicts": ["denied"]}, []),
        ({"services": ["data/dns"]}, []),
        ({"names": ["API.example.com."]}, [3, 4, 6]),
        ({"names": ["*.example.com"], "events": ["new"]}, [4]),
        ({"names": ["example.com"]}, []),
        ({"pods": ["fd00::/8"]}, []),
        ({"namespaces": ["data"]}, [6]),
        ({"namespaces": ["data", "shop"], "protocols": ["udp"]}, [4]),
        ({"protocols": ["17"]}, [4]),
        ({"ports": [80]}, [1, 3, 5]),
        ({"ports": [443, 8443]}, [2, 6]),
        ({"policies": ["shop/deny"]}, [2]),
        ({"policies": ["more"]}, [2]),
        ({"policies": ["networkpolicy/shop/ALLOW"]}, [1, 5]),
        ({"policies": ["op/allow"]}, []),
        ({"since": 3.0, "until": 4.0}, [3, 4]),
        ({"after": 3}, [5, 6]),
        ({"limit": 2}, [5, 6]),
        ({"limit": 1, "verdicts": ["denied", "dropped"]}, [3]),
    ],
    ids=str,
)
def test_filters(asked: dict[str, Any], seconds: list[int]) -> None:
    assert found(**asked) == seconds


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"verdicts": ["refused"]}, "--verdict: 'refused'"),
        ({"reasons": ["BAD_LUCK"]}, "--reason: 'BAD_LUCK'"),
        ({"events": ["birth"]}, "--event"),
        ({"protocols": ["tcpp"]}, "--protocol: 'tcpp'"),
        ({"protocols": ["256"]}, "--protocol"),
        ({"protocols": ["²"]}, "--protocol: '²'"),
        ({"protocols": ["9" * 5000]}, "--protocol"),
        ({"ports": [0]}, "--port: 0"),
        ({"limit": 0}, "--last: 0"),
        ({"limit": 10_001}, "--last"),
        ({"pods": ["web"]}, "--pod: cannot read 'web'"),
        ({"sources": ["a/b/c"]}, "--from"),
        ({"destinations": ["300.0.0.1"]}, "--to"),
        ({"workloads": ["web"]}, "--workload: cannot read 'web'"),
        ({"workloads": ["a/b/c/d"]}, "--workload"),
        ({"services": ["shop/web/80"]}, "--service: cannot read 'shop/web/80'"),
        ({"names": ["https://example.com"]}, "--dns: cannot read"),
        ({"names": [""]}, "--dns: cannot read ''"),
        ({"colour": "red"}, "colour"),
        ({"ports": ["http"]}, "ports"),
    ],
)
def test_what_nothing_can_match_is_refused_by_its_option(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as told:
        Query.of(asked)
    assert said in told.value.message


def test_an_answer_ends_when_its_time_is_over_and_says_how_far_it_came() -> None:
    answer = find(Query(), blocks(2), 6, lambda: True)
    assert [int(record.time) for record in answer.records] == [5, 6]
    assert (answer.complete, answer.reached, answer.next) == (False, 5.0, 6)
    total = sums(Query(), "verdict", blocks(2), lambda: True)
    assert (total.complete, total.reached) == (False, 5.0)


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("verdict", {"allowed": (2, 0, 0, 7, 700), "denied": (0, 1, 0, 0, 0), "dropped": (0, 0, 1, 0, 0)}),
        (
            "port",
            {
                "tcp/80": (1, 0, 1, 7, 700),
                "tcp/443": (0, 1, 0, 0, 0),
                "udp/53": (1, 0, 0, 0, 0),
                "tcp/8443": (0,) * 5,
            },
        ),
        (
            "policy",
            {
                "NetworkPolicy/shop/allow": (1, 0, 0, 7, 700),
                "NetworkPolicy/shop/deny": (0, 1, 0, 0, 0),
                "NetworkPolicy/shop/more": (0, 1, 0, 0, 0),
                "(none)": (1, 0, 1, 0, 0),
            },
        ),
        ("pod", {"shop/client": (1, 1, 0, 7, 700), "shop/web": (2, 1, 1, 7, 700), "data/db": (0,) * 5}),
        (
            "workload",
            {
                "shop/Pod/client": (1, 1, 0, 7, 700),
                "shop/Pod/web": (2, 1, 1, 7, 700),
                "data/StatefulSet/db": (0,) * 5,
            },
        ),
        ("service", {"shop/dns": (1, 0, 0, 0, 0)}),
        ("dns", {"api.example.com": (1, 0, 1, 0, 0), "www.example.com": (1, 0, 1, 0, 0)}),
        ("namespace", {"shop": (2, 1, 1, 7, 700), "data": (0,) * 5}),
        (
            "reason",
            {"(none)": (2, 0, 0, 7, 700), "DENIED_INGRESS": (0, 1, 0, 0, 0), "NOT_OWN_SOURCE": (0, 0, 1, 0, 0)},
        ),
        ("node", {"node1": (2, 1, 1, 7, 700)}),
        (
            "pair",
            {
                "shop/client -> shop/web": (1, 1, 0, 7, 700),
                "outside -> shop/web": (1, 0, 1, 0, 0),
                "data/db -> outside": (0,) * 5,
            },
        ),
        (
            "connection",
            {
                "shop/client@10.244.2.2 -> shop/web@10.244.1.2 tcp/80": (1, 0, 0, 7, 700),
                "shop/client@10.244.2.2 -> shop/web@10.244.1.2 tcp/443": (0, 1, 0, 0, 0),
                "@192.0.2.9 -> shop/web@10.244.1.2 tcp/80": (0, 0, 1, 0, 0),
                "@192.0.2.9 -> shop/web@10.244.1.2 udp/53": (1, 0, 0, 0, 0),
                "data/db@10.244.1.9 -> @192.0.2.9 tcp/8443": (1, 0, 0, 0, 0),  # it began before
            },
        ),
    ],
)
def test_sums(by: Any, rows: dict[str, tuple[int, ...]]) -> None:
    total = sums(Query(), by, blocks(), lambda: False)
    assert {row.key: (row.flows, row.denied, row.dropped, row.packets, row.octets) for row in total.rows} == rows
    happened = [row.flows + row.denied + row.dropped for row in total.rows]
    assert happened == sorted(happened, reverse=True)


def test_a_connection_that_began_before_counts_once_while_it_goes_on_and_when_it_ends() -> None:
    ended = sums(Query(since=5.0), "connection", blocks(), lambda: False)
    assert {row.key.rpartition(" ")[2]: row.flows for row in ended.rows} == {"tcp/80": 1, "tcp/8443": 1}
    assert [row.flows for row in sums(Query(since=5.0), "pod", blocks(), lambda: False).rows] == [0, 0, 0]


def test_sums_of_several_nodes_are_one() -> None:
    one = Sums((Row("a", 3, last=5.0), Row("b", 1)), more=2)
    other = Sums((Row("b", 4, denied=1, last=7.0),), complete=False, reached=3.0)
    whole = merged([one, other])
    assert whole.rows == (Row("b", 5, denied=1, last=7.0), Row("a", 3, last=5.0))
    assert (whole.more, whole.complete, whole.reached) == (2, False, 3.0)
