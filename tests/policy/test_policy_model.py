"""The planner says what the API's text says, whatever the cluster, the policies and the order of events."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from podway.policy.lookup import PolicyMaps
from podway.policy.maps import Prefix
from podway.policy.planner import PolicyPlanner
from tests.policy.clusters import IPS, NODES, NUMBERS, OUTSIDE, Planned, objects, resource

events = st.lists(st.tuples(st.booleans(), objects), min_size=1, max_size=25)
ADDRESSES = [*IPS, "fd00::1:1", "fd00::2:2", *NODES["n1"], NODES["n2"][0], *OUTSIDE]
CONNECTIONS = [
    *((protocol, port) for protocol in ("TCP", "UDP") for port in (*NUMBERS, 500)),
    ("SCTP", 80),
    (1, 8 << 8),
]


def follow(planned: Any, steps: Any) -> None:
    """Put and drop objects."""
    for put, manifest in steps:
        (planned.put if put else planned.drop)(manifest)


def every_connection(planned: Any) -> None:
    for source in ADDRESSES:
        for destination in ADDRESSES:
            for protocol, port in CONNECTIONS:
                planned.allows(source, destination, port, protocol)


def canonical(planned: Any, name: Any) -> Any:
    """The maps of a node without the numbers, which depend on what happened before."""
    maps, planner = planned.maps[name], planned.planners[name]
    entries: Any = {}
    for key, columns in maps.rules.items():
        told = tuple(rule and (rule.verdict, rule.precedence, planner.rule_name(rule.number)) for rule in columns)
        entries.setdefault((key.rule_set, key.identity), {})[key[2:]] = told
    of_identity: Any = {}
    for (rule_set, identity), row in entries.items():
        of_identity.setdefault(identity, {})[rule_set] = row
    sets: Any = {}
    for address in [Prefix.host(ip) for ip in ADDRESSES]:
        for rule_set in maps.rule_sets:
            row = of_identity.get(maps.identity(address), {}).get(rule_set, {})
            sets.setdefault(rule_set, []).append(sorted(row.items(), key=str))
    everybody = of_identity.get(0, {})
    return {
        pod: tuple(
            (
                number
                and (maps.rule_sets[number], str(sets[number]), str(sorted(everybody.get(number, {}).items())))
            )
            for number in rules
        )
        for pod, rules in maps.endpoints.items()
    }, len({number for number in maps.identities.values() if number})


@given(st.lists(objects, max_size=20))
@settings(deadline=None, max_examples=50)
def test_a_compiled_cluster_decides_as_the_model(manifests: Any) -> None:
    every_connection(Planned(*manifests))


@given(events)
@settings(deadline=None, max_examples=30)
def test_after_any_events_the_maps_decide_as_the_model(steps: Any) -> None:
    planned = Planned()
    follow(planned, steps)
    every_connection(planned)


@given(events)
@settings(deadline=None, max_examples=50)
def test_deltas_lead_to_what_a_compilation_from_scratch_gives(steps: Any) -> None:
    planned = Planned()
    follow(planned, steps)
    anew = Planned(*planned.now.values())
    for name in NODES:
        assert canonical(planned, name) == canonical(anew, name)
        assert len(planned.maps[name].rules) == len(anew.maps[name].rules)
        assert len(planned.maps[name].identities) == len(anew.maps[name].identities)


def started_anew(planned: Any, name: Any, manifests: Any) -> Any:
    """The maps that a planner gives which starts beside those of another one."""
    planner, maps = PolicyPlanner(name, planned.maps[name].left), PolicyMaps()
    for manifest in manifests:
        planner.put(resource(manifest))
    maps.apply(planner.settle())
    return maps


@given(events, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_a_planner_that_starts_anew_finds_everything_right(steps: Any, random: Any) -> None:
    planned = Planned()
    follow(planned, steps)
    manifests = list(planned.now.values())
    random.shuffle(manifests)
    for name in NODES:
        anew, before = started_anew(planned, name, manifests), planned.maps[name]
        assert anew.rules == before.rules
        assert anew.rule_sets == before.rule_sets
        assert anew.identities == before.identities
        assert anew.endpoints == before.endpoints


@given(events, events)
@settings(deadline=None, max_examples=50)
def test_who_starts_anew_gives_no_number_that_is_in_use_another_meaning(steps: Any, meanwhile: Any) -> None:
    planned, later = Planned(), Planned()
    follow(planned, steps)
    follow(later, [*steps, *meanwhile])
    for name in NODES:
        before, anew = planned.maps[name], started_anew(planned, name, later.now.values())
        # Who has a number that is used further has it still.
        kept = set(before.identities.values()) & set(anew.identities.values()) - {0}
        for prefix, number in before.identities.items():
            if number in kept and prefix in anew.identities:
                assert anew.identities[prefix] == number
        for pod, rules in before.endpoints.items():
            for number, now in zip(rules, anew.endpoints.get(pod, rules), strict=True):
                assert number == now or number not in anew.rule_sets


@given(events)
@settings(deadline=None, max_examples=25)
def test_what_comes_again_as_it_is_changes_nothing(steps: Any) -> None:
    planned = Planned()
    follow(planned, steps)
    planned.put(*planned.now.values())
    assert all(delta.empty for delta in planned.last.values())


@given(events)
@settings(deadline=None, max_examples=50)
def test_nothing_is_left_when_everything_is_gone(steps: Any) -> None:
    planned = Planned()
    follow(planned, steps)
    planned.drop(*list(planned.now.values()))
    for maps in planned.maps.values():
        assert (maps.rules, maps.identities, maps.rule_sets, maps.endpoints) == ({}, {}, {}, {})
