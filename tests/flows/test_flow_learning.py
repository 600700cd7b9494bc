"""What is noted of events as they come: names that are new or changed, losses, and drops in floods."""

from podway.flows.block import Block, Names
from podway.flows.learn import DROPS, Asked, Learner, Meant, thinned
from podway.flows.record import Frontend, Rule, Who
from podway.kernel.bpf.flow_layout import EVENT, EventKind, Reason
from podway.kernel.flow_events import SURVEYOR
from tests.flows.flow_events import CLIENT, OUTSIDE, PODS, WEB, event

NOTHING = Meant({}, {}, {})


def learn(learner: Learner, data: bytes, meant: Meant, first: int = 0, offset: int = 0) -> Names:
    return learner.learn(data, first, offset, learner.ask(data), meant)


def test_what_has_to_be_known_is_what_events_bear() -> None:
    data = event(rules=(0, 9), ifindex=3) + event(source=OUTSIDE, out=4)
    assert Learner().ask(data) == Asked(frozenset({CLIENT, WEB, OUTSIDE}), frozenset({9}), frozenset({3, 4}))


def test_each_block_says_once_what_names_mean() -> None:
    learner, meant = Learner(), Meant(PODS, {9: Rule("NetworkPolicy/shop/a")}, {3: "eth0"})
    data = event(rules=(0, 9), ifindex=3)
    first = learn(learner, data, meant)
    assert sorted(first.addresses) == sorted((0, text, who) for text, who in PODS.items())
    assert (first.rules, first.devices) == ([(0, 9, Rule("NetworkPolicy/shop/a"))], [(0, 3, "eth0")])
    assert learn(learner, data, meant, 1).empty
    learner.begin()
    assert learn(learner, data, meant) == first


def test_services_are_asked_for_by_the_address_that_was_called_and_said_once() -> None:
    learner, vip = Learner(), "10.96.0.10"
    data = event(service=(vip, 80))
    assert learner.ask(data).addresses == {CLIENT, WEB, vip}
    fronts = (Frontend("shop", "web", "tcp", 80),)
    assert learn(learner, data, Meant({}, {}, {}, {}, {vip: fronts})).services == [(0, vip, fronts)]
    assert learn(learner, data, NOTHING, 1).services == [], "one that is gone keeps its name"
    more = (*fronts, Frontend("shop", "web", "tcp", 443))
    assert learn(learner, data, Meant({}, {}, {}, {}, {vip: more}), 2).services == [(2, vip, more)]


def test_what_is_gone_keeps_its_name_until_another_has_it() -> None:
    learner, data = Learner(), event(rules=(0, 9))
    learn(learner, data, Meant(PODS, {9: Rule("NetworkPolicy/shop/a")}, {}))
    assert learn(learner, data, NOTHING, 1).empty
    other = Who("pod", "db", "shop", "node1")
    assert learn(learner, data, Meant({WEB: other}, {}, {}), 2).addresses == [(2, WEB, other)]
    learner.begin()
    again = learn(learner, data, NOTHING)
    assert (0, WEB, other) in again.addresses
    assert again.rules == [(0, 9, Rule("NetworkPolicy/shop/a"))]


def test_the_clock_is_noted_when_it_was_set() -> None:
    learner = Learner()
    assert learn(learner, event(), NOTHING, 0, 10**15).clock == [(0, 10**15)]
    assert learn(learner, event(), NOTHING, 1, 10**15 + 1000).clock == []
    assert learn(learner, event(), NOTHING, 2, 2 * 10**15).clock == [(2, 2 * 10**15)]


def test_losses_are_noted_for_each_processor_before_the_record_that_tells_of_them() -> None:
    learner = Learner()
    before = event(lost=5, processor=0) + event(lost=0, processor=1)
    assert learn(learner, before, NOTHING).losses == []  # what was lost before anybody looked is nobody's
    more = (
        event(lost=5, processor=0)
        + event(lost=7, processor=1)
        + event(lost=0, processor=SURVEYOR)
        + event(lost=15, processor=0)
        + event(lost=15, processor=0)
    )
    assert learn(learner, more, NOTHING, 2).losses == [(3, 7), (5, 10)]
    assert learn(learner, more[-EVENT.size :], NOTHING, 7).losses == []


def test_losses_go_on_after_another_agent_and_when_the_counter_turns() -> None:
    learner = Learner()
    learner.remember(event(lost=2**32 - 2, processor=0) + event(lost=2**32 - 9, processor=0))
    assert learn(learner, event(lost=3, processor=0), NOTHING).losses == [(0, 5)]


def test_losses_are_counted_anew_where_the_counter_is_another_one() -> None:
    learner = Learner()
    learner.remember(event(lost=40, processor=0))
    assert learn(learner, event(lost=0, processor=0), NOTHING).losses == []  # after a reboot nothing is lost yet
    assert learn(learner, event(lost=6, processor=0), NOTHING, 1).losses == [(1, 6)]
    assert learn(learner, event(lost=2, processor=0), NOTHING, 2).losses == [(2, 2)]  # the engine was opened anew


def test_few_drops_are_kept_each_and_a_flood_is_summed_up_without_a_packet_less() -> None:
    def drop(port: int, to: int = 80, reason: Reason = Reason.DENIED_INGRESS) -> bytes:
        return event(EventKind.PACKET_DROPPED, ports=(port, to), reason=reason)

    few = b"".join(drop(port) for port in range(DROPS))
    assert thinned(few) == few
    flood = few + event() + drop(1, to=443) + drop(1, reason=Reason.TABLE_FULL) + drop(1)
    block = Block.of("node1", 0, thinned(flood), Names())
    told = [
        (one.event, one.reason, one.destination.port, one.packets, one.octets)
        for one in map(block.record, range(block.count))
    ]
    assert told == [
        ("drop", "DENIED_INGRESS", 80, DROPS + 1, 60 * (DROPS + 1)),
        ("new", "", 80, 1, 60),
        ("drop", "DENIED_INGRESS", 443, 1, 60),
        ("drop", "TABLE_FULL", 80, 1, 60),
    ]
