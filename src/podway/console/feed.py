"""Live flows: one question is asked once a second, however many follow it; each of them has a place of its own.

What was answered stands in a line of bounded length, numbered. Who follows is a number in that line: one that is
slow, or comes again, goes on where it was, and one that was overtaken by the line's end is told exactly how many
records it missed.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import msgspec
import structlog

from podway.console.sources import Question, Sources
from podway.errors import PodwayError
from podway.flows.heard import Heard, overtaken

log = structlog.get_logger(__name__)

EVERY = 1.0
"""Seconds between questions."""
KEPT = 20_000
"""Entries of a line."""
AT_A_TIME = 500
"""Entries that are handed out together."""
LINGER = 60.0
"""Seconds that a feed goes on after the last one who followed it: who reconnects finds its place."""
FIRST = 100
"""Records with which a feed begins: the latest."""
MOST = 10_000
"""Records that a node is asked for at once."""


class Entry(NamedTuple):
    """A line's entry: `record`, `lost` or `note`. `total` counts the records up to here, this one included."""

    event: str
    data: bytes
    total: int


class Place(NamedTuple):
    """Where somebody is in a line: behind the entry of this number, and behind so many records."""

    feed: str
    number: int
    total: int
    at: float

    @property
    def text(self) -> str:
        """The id of an event (HTML, server-sent events)."""
        return f"{self.feed}.{self.number}.{self.total}.{int(self.at * 1000)}"

    @classmethod
    def of(cls, text: str) -> "Place | None":
        """Return the place that an id says, None if it says none."""
        parts = text.split(".")
        if len(parts) != 4 or not all(part.isascii() and part.isdecimal() for part in parts[1:]):
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]), int(parts[3]) / 1000)


class Line:
    """Numbered entries, of which the latest are kept. Pure."""

    def __init__(self, name: str, kept: int = KEPT) -> None:
        self.name = name
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._next = 1
        self._total = 0

    def add(self, event: str, value: Any) -> None:
        """Add an entry; the oldest goes if there are too many."""
        self._total += event == "record"
        self._entries.append(Entry(event, msgspec.json.encode(value), self._total))
        self._next += 1

    @property
    def first(self) -> int:
        """The number of the oldest entry that is kept."""
        return self._next - len(self._entries)

    def begin(self) -> Place:
        """Return the place before all that is kept."""
        return Place(self.name, self.first - 1, self._before(), 0.0)

    def _before(self) -> int:
        """Return how many records came before those that are kept."""
        return self._entries[0].total - (self._entries[0].event == "record") if self._entries else self._total

    def take(self, place: Place, now: float) -> tuple[int, list[Entry], Place]:
        """Return how many records were missed since a place, what comes next, and the place behind that."""
        number, total = min(place.number, self._next - 1), place.total
        missed = 0
        if number < self.first - 1:
            missed, number = self._before() - total, self.first - 1
        begin = number + 1 - self.first
        found = [self._entries[at] for at in range(begin, min(begin + AT_A_TIME, len(self._entries)))]
        behind = found[-1].total if found else total + missed
        return missed, found, Place(self.name, number + len(found), behind, now)


class Follower:
    """Makes of one answer after the other what is new. Pure."""

    def __init__(self, limit: int = MOST) -> None:
        self._limit = limit
        self._following: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        self._silent: set[str] = set()
        self._notes: list[str] = []

    @property
    def following(self) -> Mapping[str, int]:
        """By node the number of the next record to be asked for."""
        return self._following

    def take(self, heard: Heard, limit: int | None = None) -> Iterable[tuple[str, Any]]:
        """Yield entries: what was lost first, then records, then what is to be said."""
        for node, count in heard.lost.items():
            known = self._lost.get(node)
            if known is not None and count > known:
                yield "lost", _lost(node, count - known, "its agent could not take them")
            self._lost[node] = count
        for node, count in overtaken(heard.records, self._following, limit or self._limit).items():
            yield "lost", _lost(node, count, "more came at once than is looked through")
        for record in heard.records:
            yield "record", msgspec.to_builtins(record)
        for node in sorted(heard.silent.keys() - self._silent):
            yield "note", {"node": node, "words": heard.silent[node].message}
        for node in sorted(self._silent - heard.silent.keys()):
            yield "note", {"node": node, "words": f"{node} answers again"}
        for words in heard.notes:
            if words not in self._notes:
                yield "note", {"node": "", "words": words}
        self._notes, self._silent = heard.notes, set(heard.silent)
        self._following.update(heard.following)


def _lost(node: str, records: int | None, why: str) -> dict[str, Any]:
    return {"node": node, "records": records, "why": why}


class Feed:
    """One question, asked again and again while anybody follows it."""

    def __init__(self, sources: Sources, question: Question, threads: Executor) -> None:
        self._sources = sources
        self._question = question
        self._threads = threads
        self._line = Line(secrets.token_hex(4))
        self._follower = Follower()
        self._changed = asyncio.Event()
        self._followers = 0
        self._left = time.monotonic()
        self._task = asyncio.create_task(self._run())

    @property
    def is_over(self) -> bool:
        """Whether nobody followed it for a while, or it ended."""
        idle = not self._followers and time.monotonic() - self._left > LINGER
        return idle or self._task.done()

    async def close(self) -> None:
        """Ask no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def follow(self, last: str) -> AsyncIterator[tuple[str, list[Entry]]]:
        """Yield entries as they come, with the id of the last one; from behind that of `last`, if it is known.

        Nothing for a while is an empty list.
        """
        self._followers += 1
        place, told = self._line.begin(), Place.of(last)
        try:
            if told is not None and told.feed == self._line.name:
                place = told
            elif told is not None:
                gone = _lost("", None, "the console remembers no more what came since then") | {"since": told.at}
                yield "", [Entry("lost", msgspec.json.encode(gone), 0)]
            while True:
                changed = self._changed
                missed, entries, place = self._line.take(place, time.time())
                if missed:
                    words = _lost("", missed, "they came faster than this browser took them")
                    entries.insert(0, Entry("lost", msgspec.json.encode(words), 0))
                if entries:
                    yield place.text, entries
                    continue
                try:
                    async with asyncio.timeout(15):
                        await changed.wait()
                except TimeoutError:
                    yield "", []
        finally:
            self._followers -= 1
            self._left = time.monotonic()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        began, first, failed = time.time(), True, ""
        while True:
            limit = FIRST if first else MOST
            params = {**self._question.params, "limit": limit}
            asked = self._question._replace(params=params)
            after = None if first else dict(self._follower.following)
            try:
                heard = await loop.run_in_executor(self._threads, self._sources.flows, asked, after, began)
            except PodwayError as error:
                if failed != error.message:
                    self._line.add("note", {"node": "", "words": error.message})
                failed = error.message
            else:
                first, failed = False, ""
                for event, value in self._follower.take(heard, limit):
                    self._line.add(event, value)
            self._changed.set()
            self._changed = asyncio.Event()
            await asyncio.sleep(EVERY)


class Feeds:
    """The feeds of all questions that anybody follows."""

    def __init__(self, sources: Sources, threads: Executor, most: int) -> None:
        self._sources = sources
        self._threads = threads
        self._most = most
        self._open: dict[bytes, Feed] = {}

    async def of(self, question: Question) -> Feed | None:
        """Return the feed of a question; None if there are too many of others."""
        for name, feed in list(self._open.items()):
            if feed.is_over:
                del self._open[name]
                await feed.close()
        found = self._open.get(question.name)
        if found is None and len(self._open) < self._most:
            found = self._open[question.name] = Feed(self._sources, question, self._threads)
        return found

    async def close(self) -> None:
        """Close all."""
        for feed in self._open.values():
            await feed.close()
        self._open.clear()
