"""What the controller has to do, from the cluster's objects."""

import msgspec

from podway.api.checked import RejectedObject
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.api.resource import Resource
from podway.api.status import Condition, JudgedStatus
from podway.controller.duties import Departures, Telling, tellings
from podway.controller.following import FOLLOWED, Facts
from podway.store.base import Event, Listing
from tests.api.test_judgement import block, node, pool

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def facts(*objects: Resource, rejected: tuple[RejectedObject, ...] = ()) -> Facts:
    made = Facts()
    for kind in FOLLOWED:
        of_kind = tuple(obj for obj in objects if isinstance(obj, kind))
        made.hear(kind, Listing(of_kind, "1", tuple(one for one in rejected if one.key[0] == kind.KIND)))
    return made


def told(obj: IPPool, telling: Telling, generation: int = 0) -> IPPool:
    metadata = msgspec.structs.replace(obj.metadata, generation=generation)
    return msgspec.structs.replace(obj, metadata=metadata, status=JudgedStatus(conditions=telling.conditions))


def test_what_was_told_is_not_told_again() -> None:
    one = pool("p", "10.0.0.0/16")
    (telling,) = tellings(facts(one), NOW)
    assert [(each.type, each.status, each.last_transition_time) for each in telling.conditions] == [
        ("Accepted", "True", NOW)
    ]
    assert not list(tellings(facts(told(one, telling)), LATER))


def test_another_generation_is_told_though_nothing_else_changed_and_the_time_stays() -> None:
    one = pool("p", "10.0.0.0/16")
    (telling,) = tellings(facts(one), NOW)
    (again,) = tellings(facts(told(one, telling, generation=2)), LATER)
    assert again.conditions[0].observed_generation == 2
    assert again.conditions[0].last_transition_time == NOW


def test_what_holds_no_more_is_told_since_when_and_others_conditions_stay() -> None:
    other = Condition(type="Watched", status="True")
    first = pool("a", "10.0.0.0/16", 1)
    second = msgspec.structs.replace(pool("b", "10.0.0.0/17", 2), status=JudgedStatus(conditions=(other,)))
    (telling,) = tellings(facts(second), NOW)
    (_, changed) = tellings(facts(first, told(second, telling)), LATER)
    accepted, kept = changed.conditions
    assert (accepted.status, accepted.reason, accepted.last_transition_time) == ("False", "Overlaps", LATER)
    assert kept == other


def test_what_is_wrong_by_itself_is_told_if_it_can_be_read() -> None:
    unfit = pool("p", "10.0.0.0/16", block_size=99)
    readable = RejectedObject(("IPPool", "", "p"), "spec.blockSize: no", unfit)
    (telling,) = tellings(facts(rejected=(readable, RejectedObject(("IPPool", "", "q"), "cannot be read"))), NOW)
    assert telling.key == readable.key
    assert telling.conditions[0].reason == "Invalid"


def test_a_node_is_gone_after_a_while_and_never_before_all_nodes_are_known() -> None:
    departures = Departures(10)
    partial = Facts()
    partial.hear(AddressBlock, Listing((block("10.0.1.0/24", "p", "n1"),), "1"))
    assert departures.due(partial, (), 0) == departures.due(partial, (), 100) == ()
    known = facts(node("n2", "172.30.0.2"), block("10.0.1.0/24", "p", "n1"), block("10.0.2.0/24", "p", "n2"))
    assert departures.due(known, (), 200) == ()
    assert departures.due(known, (), 209) == ()
    assert departures.due(known, (), 210) == ("n1",)
    known.hear(Node, Event("added", node("n1", "172.30.0.1"), "2"))
    assert departures.due(known, (), 211) == ()
    known.hear(Node, Event("deleted", node("n1", "172.30.0.1"), "3"))
    assert departures.due(known, (), 212) == (), "it was there again meanwhile"
    assert departures.due(known, ("n9", "n2"), 222) == ("n1",)
    assert departures.due(known, ("n9", "n2"), 232) == ("n1", "n9"), "who has only a lease is gone as well"


def test_a_node_that_is_rejected_is_not_gone() -> None:
    known = facts(block("10.0.1.0/24", "p", "n1"), rejected=(RejectedObject(("Node", "", "n1"), "status: no"),))
    departures = Departures(0)
    assert departures.due(known, (), 0) == ()


def test_a_listing_takes_the_place_of_all_that_was_heard_of_a_kind() -> None:
    known = facts(pool("a", "10.0.0.0/16"), node("n1", "172.30.0.1"))
    known.hear(IPPool, Listing((pool("b", "10.1.0.0/16"),), "2"))
    assert [one.metadata.name for one in known.of(IPPool)] == ["b"]
    assert known.registered == {"n1"}
