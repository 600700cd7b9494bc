"""What operators are told, aggregated and never many: pure."""

from hypothesis import given
from hypothesis import strategies as st

from podway.store.announcements import BURST, MANY, PAUSE, QUIET, SERIES, Aggregate, Notice
from podway.store.kubernetes.events import event, path, series

START = 1_790_000_000.0


def notice(name: str = "n1", times: int = 1) -> Notice:
    return Notice("Node", name, "PodsRefused", "AttachPod", "why", uid=name, times=times)


def test_the_same_thing_is_one_event_with_a_count() -> None:
    said = Aggregate()
    said.say([notice()], START)
    (first,) = said.due(START)
    assert (first.count, first.written) == (1, False)
    for second in range(1, 100):
        said.say([notice(times=2)], START + second)
        assert said.due(START + second) == (), "a series is written now and then only"
    (again,) = said.due(START + SERIES)
    assert (again.count, again.written, again.first, again.last) == (199, True, START, START + 99)
    assert said.due(START + 2 * SERIES) == (), "nothing happened since"
    assert path(first, "a", "i") == path(again, "a", "i")
    assert series(again)["series"]["count"] == 199


def test_what_comes_again_after_long_is_a_new_event() -> None:
    said = Aggregate()
    said.say([notice()], START)
    (first,) = said.due(START)
    said.say([notice()], START + QUIET + 1)
    (second,) = said.due(START + QUIET + 1)
    assert not second.written
    assert path(first, "a", "i") != path(second, "a", "i")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 400)), max_size=200))
def test_however_much_is_said_little_is_written(heard: list[tuple[int, int]]) -> None:
    """At most BURST at once and then one each PAUSE, and what is remembered has a bound."""
    said, now, written = Aggregate(), START, 0
    for seconds, name in heard:
        now += seconds
        said.say([notice(f"n{name}")], now)
        written += len(said.due(now))
        assert written <= BURST + (now - START) / PAUSE
        assert len(said._said) <= MANY


def test_what_had_to_wait_is_written_later() -> None:
    said = Aggregate()
    said.say([notice(f"n{number}") for number in range(BURST + 1)], START)
    assert len(said.due(START)) == BURST
    assert said.withheld == 1
    assert len(said.due(START + PAUSE)) == 1


def test_a_note_fits_into_an_event() -> None:
    said = Aggregate()
    said.say([Notice("IPPool", "p", "SetAside", "Judge", "ü" * 2000)], START)
    made = event(said.due(START)[0], "podway.io/controller", "c")
    assert len(made["note"].encode()) <= 1024
    assert made["regarding"] == {"apiVersion": "podway.io/v1", "kind": "IPPool", "name": "p"}
    assert "series" not in made
