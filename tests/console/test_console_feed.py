"""Nobody who follows flows misses any without being told how many."""

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from podway.console import feed as feeds
from podway.console.feed import Feed, Follower, Line, Place
from podway.console.sources import Question
from podway.errors import AgentError
from podway.flows.heard import Heard
from podway.flows.record import End, FlowRecord
from tests.console.synthetic import Synthetic
from tests.patience import PATIENCE


def record(node: str, sequence: int) -> FlowRecord:
    return FlowRecord(float(sequence), node, sequence, "new", "allowed", End("10.0.0.1"), End("10.0.0.2"), "tcp")


def heard(*records: FlowRecord, following: Mapping[str, int] | None = None, **more: Any) -> Heard:
    told = {"notes": [], "silent": {}, "lost": {}, **more}
    after = {one.node: one.sequence + 1 for one in records}
    return Heard(list(records), {**after, **(following or {})}, **told)


@given(
    st.integers(1, 40),
    st.lists(st.one_of(st.sampled_from(["record", "note", "take"]), st.integers(0, 30)), max_size=120),
)
def test_what_is_seen_and_what_is_told_to_be_missed_is_all_there_was(kept: int, steps: list[str | int]) -> None:
    line = Line("a", kept)
    place, seen, missed, added = line.begin(), 0, 0, 0
    for step in steps:
        if step == "take":
            gone, found, place = line.take(place, 0.0)
            seen, missed = seen + sum(one.event == "record" for one in found), missed + gone
            continue
        for _ in range(step if isinstance(step, int) else 1):
            event = "note" if step == "note" else "record"
            line.add(event, {})
            added += event == "record"
    gone, found, place = line.take(place, 0.0)
    assert seen + missed + gone + sum(one.event == "record" for one in found) == added
    assert line.take(place, 0.0)[:2] == (0, [])


def test_a_place_is_read_back_from_its_text_and_other_texts_are_none() -> None:
    place = Place("abc", 7, 5, 12.25)
    assert Place.of(place.text) == place
    for text in ("", "abc", "abc.1.2", "abc.x.2.3", "abc.-1.2.3", "a.1.2.3.4", "a.\u0661.2.3"):
        assert Place.of(text) is None


def test_what_an_agent_lost_and_what_a_limit_cut_off_is_told_exactly() -> None:
    follower = Follower(limit=3)
    first = list(follower.take(heard(record("n", 4), lost={"n": 10}), limit=100))
    assert [event for event, _ in first] == ["record"]
    cut = heard(record("n", 17), record("n", 18), record("n", 19), lost={"n": 12})
    told = list(follower.take(cut))
    assert [event for event, _ in told] == ["lost", "lost", "record", "record", "record"]
    assert (told[0][1]["node"], told[0][1]["records"]) == ("n", 2)
    assert (told[1][1]["node"], told[1][1]["records"]) == ("n", 17 - 5)
    whole = heard(record("n", 20), record("n", 21), lost={"n": 12})
    assert [event for event, _ in follower.take(whole)] == ["record", "record"]
    assert follower.following == {"n": 22}


def test_a_node_that_does_not_answer_is_told_once_and_once_when_it_does_again() -> None:
    follower = Follower()
    away = heard(record("a", 1), silent={"b": AgentError("b is away")}, notes=["clock"])
    words = [[value["words"] for event, value in follower.take(away) if event == "note"] for _ in range(2)]
    assert words == [["b is away", "clock"], []]
    assert [value["words"] for event, value in follower.take(heard()) if event == "note"] == ["b answers again"]


class Counting(Synthetic):
    """Each question brings one record more."""

    def __init__(self) -> None:
        super().__init__(1, 0, 0)
        self.asked = 0

    def flows(self, question: Question, after: Mapping[str, int] | None = None, since: float = 0.0) -> Heard:
        self.asked += 1
        return heard(record("n", self.asked))


async def take(feed: Feed, last: str, count: int) -> tuple[str, list[dict[str, Any]]]:
    """Follow until so many entries came; return the last id, and the entries."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        async for place, entries in feed.follow(last):
            found += [json.loads(one.data) for one in entries]
            last = place or last
            if len(found) >= count:
                break
    return last, found


def test_who_comes_again_goes_on_where_they_were_and_all_share_one_question(monkeypatch: Any) -> None:
    monkeypatch.setattr(feeds, "EVERY", 0.01)

    async def check() -> None:
        sources = Counting()
        with ThreadPoolExecutor(1) as threads:
            feed = Feed(sources, Question({}), threads)
            last, first = await take(feed, "", 3)
            again, second = await take(feed, last, 3)
            _, other = await take(feed, "", 3)
            numbers = [one["sequence"] for one in (*first, *second)]
            assert numbers == list(range(1, len(numbers) + 1))
            assert other[0]["sequence"] == 1
            assert again != last
            _, stranger = await take(feed, "feed0000.9.9.5000", 2)
            assert (stranger[0]["records"], stranger[0]["since"]) == (None, 5.0)
            asked = sources.asked
            await feed.close()
        assert sources.asked <= asked + 1

    asyncio.run(check())
