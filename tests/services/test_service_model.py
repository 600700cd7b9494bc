"""The planner of Services against a second opinion, after any order of events."""

from typing import Any

from hypothesis import given, settings

from podway.api.resource import key
from podway.services.maps import FrontendFlag, Maps, unpacked
from podway.services.planner import ServicePlanner, summary
from tests.services import model
from tests.services.clusters import NODE, events


def told(planner: ServicePlanner) -> dict[Any, Any]:
    """What the planner's entries say, in the model's words."""
    entries = planner.entries
    reached = summary(entries)
    return {
        (model.address(unpacked(where.address)), where.protocol, where.port): (
            {(unpacked(address), port) for address, port in reached[where]},
            frontend.affinity,
            FrontendFlag.DROP in frontend.flags,
        )
        for where, frontend in entries.frontends.items()
        if where.protocol
    }


@given(events)
@settings(max_examples=100, deadline=None)
def test_entries_say_what_kubernetes_says(happened: list[Any]) -> None:
    objects: dict[Any, Any] = {}
    planner, maps = ServicePlanner(NODE), Maps()
    for what, obj in happened:
        if what == "put":
            objects[key(obj)] = obj
            planner.put(obj)
        else:
            objects.pop(key(obj), None)
            planner.drop(key(obj))
        if len(objects) % 2:
            maps.apply(planner.settle())
    maps.apply(planner.settle())
    assert told(planner) == model.reachable(objects.values(), NODE)
    assert maps.entries == planner.entries


@given(events)
@settings(max_examples=60, deadline=None)
def test_who_starts_anew_writes_nothing(happened: list[Any]) -> None:
    former, objects = ServicePlanner(NODE), {}
    for what, obj in happened:
        if what == "put":
            objects[key(obj)] = obj
            former.put(obj)
        else:
            objects.pop(key(obj), None)
            former.drop(key(obj))
        former.settle()
    later = ServicePlanner(NODE, former.entries)
    for obj in reversed(list(objects.values())):
        later.put(obj)
    later.settle()
    assert later.entries.frontends == former.entries.frontends
    used = {one.backends for one in former.entries.frontends.values()}
    assert {choice: n for choice, n in later.entries.choices.items() if choice[0] in used} == {
        choice: n for choice, n in former.entries.choices.items() if choice[0] in used
    }
    kept = {n: backend for n, backend in former.entries.backends.items() if backend.backends in used}
    assert kept.items() <= later.entries.backends.items()


@given(events, events)
@settings(max_examples=60, deadline=None)
def test_no_number_gets_another_meaning(before: list[Any], after: list[Any]) -> None:
    planner = ServicePlanner(NODE)
    meant: dict[int, Any] = {}
    for what, obj in before + after:
        if what == "put":
            planner.put(obj)
        else:
            planner.drop(key(obj))
        for number, backend in planner.settle().backends.items():
            assert meant.setdefault(number, backend) == backend
