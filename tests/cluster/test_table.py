"""Tables: a mapping in order, that never changes, with indices that say what a look at every object would."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from podway.api.kinds.namespace import Namespace
from podway.api.meta import Metadata
from podway.cluster.change import Change
from podway.cluster.table import Table

NAMES = st.sampled_from(["a", "b", "c", "d"])
LABELS = st.frozensets(st.sampled_from(["red", "green", "blue"]))
STEPS = st.lists(st.tuples(NAMES, st.none() | LABELS), max_size=30)
"""What is put under which name, or None for what is dropped."""


def labelled(name: str, labels: frozenset[str]) -> Namespace:
    return Namespace(metadata=Metadata(name=name, labels=dict.fromkeys(labels, "")))


def empty() -> Table[Any, Any]:
    return Table(indices={"label": lambda namespace: namespace.metadata.labels})


def applied(
    steps: list[tuple[str, frozenset[str] | None]], *, ask: bool
) -> tuple[Table[Any, Any], dict[str, Namespace]]:
    """Apply steps to a table and to a dict; with `ask` the index and the order are built first, and then kept."""
    table, model = empty(), dict[str, Namespace]()
    for name, labels in steps:
        if ask:
            table.select("label", "red")
            list(table)
        if labels is None:
            table = table.drop(name)
            model.pop(name, None)
        else:
            model[name] = labelled(name, labels)
            table = table.put(name, model[name])
    return table, model


@given(STEPS, st.booleans())
def test_a_table_is_a_mapping_in_the_order_of_its_names(steps: Any, ask: bool) -> None:
    table, model = applied(steps, ask=ask)
    assert list(table.items()) == sorted(model.items())
    assert list(table) == list(table.keys()) == sorted(model)
    assert list(table.values()) == [model[name] for name in sorted(model)]
    assert len(table) == len(model)
    assert all((name in table) == (name in model) and table.get(name) == model.get(name) for name in "abcd")


@given(STEPS, st.booleans())
def test_an_index_says_what_a_look_at_every_object_would(steps: Any, ask: bool) -> None:
    table, model = applied(steps, ask=ask)
    for label in ("red", "green", "blue"):
        having = {name for name, obj in model.items() if label in obj.metadata.labels}
        assert table.names("label", label) == having
        for name in "abcd":
            assert table.has("label", label, but=name) == bool(having - {name})
        assert table.select("label", label) == tuple(model[name] for name in sorted(having))
    assert table.indexed("label") == {label for obj in model.values() for label in obj.metadata.labels}


@given(STEPS, STEPS)
def test_a_table_never_changes(first: Any, then: Any) -> None:
    table, model = applied(first, ask=True)
    for name, labels in then:
        table.drop(name) if labels is None else table.put(name, labelled(name, labels))
    assert dict(table) == model
    assert {name for name in model if "red" in model[name].metadata.labels} == table.names("label", "red")


@given(STEPS, STEPS)
def test_the_changes_between_two_tables_lead_from_one_to_the_other(first: Any, then: Any) -> None:
    one, _ = applied(first, ask=False)
    other, _ = applied(then, ask=False)
    changes = list(one.changes_to(other))
    for change in changes:
        name = change.key[2]
        assert change.old == one.get(name)
        assert change.new == other.get(name)
        assert not change.empty
        one = one.drop(name) if change.new is None else one.put(name, change.new)
    assert one == other
    assert list(one.changes_to(other)) == []


def test_a_change_names_its_object() -> None:
    gone = Change.of(labelled("a", frozenset()), None)
    assert (gone.kind, gone.key) == ("Namespace", ("Namespace", "", "a"))
