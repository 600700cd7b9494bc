"""What an operator must know, as Events of Kubernetes (events.k8s.io/v1): aggregated, and never many.

Whoever sees something says it as often as it is so. Here it becomes one Event for each thing, with a count:
written at once the first time, then only now and then. What is said is kept, and written when a task of its own
asks for that: nobody who says something waits for an API server.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import msgspec
import structlog

from podway.errors import StoreError

log = structlog.get_logger(__name__)

SERIES = 300.0
"""Seconds between two writes of the same thing: an API server forgets an Event after an hour without one."""
QUIET = 900.0
"""Seconds without it, after which the same thing is a new one."""
BURST = 10
"""Events that may be written at once; then one for each PAUSE is."""
PAUSE = 30.0
MANY = 200
"""Things that are remembered at most; of more, those go that were not seen for longest."""
NOTE = 1000
"""Bytes of a note; an API server takes 1 kB (events.k8s.io/v1, Event.note)."""


class Notice(msgspec.Struct, frozen=True):
    """Something that an operator must know about an object that is in no namespace.

    `reason` is a word in CamelCase, `action` what was tried, `note` is for people. `times` is how often it
    happened since it was said last.
    """

    kind: str
    name: str
    reason: str
    action: str
    note: str
    uid: str = ""
    times: int = 1

    @property
    def thing(self) -> tuple[str, str, str]:
        """What makes two notices the same thing."""
        return self.kind, self.name, self.reason


class Announcement(msgspec.Struct, frozen=True):
    """A notice as it is written: `count` since `first`, the last at `last` (seconds since 1970).

    `written` is whether it has been written before, so that now only its series changes.
    """

    notice: Notice
    first: float
    last: float
    count: int
    written: bool = False


@runtime_checkable
class Announces(Protocol):
    """A store that can tell operators."""

    async def announce(self, announcement: Announcement, by: str, instance: str) -> None:
        """Write an Event. `by` is the component (podway.io/agent), `instance` which one of them it is.

        Raises StoreError.
        """
        ...


class Aggregate:
    """What was said, and what of it is to be written. Times are seconds since 1970."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str, str], Announcement] = {}
        self._written_at: dict[tuple[str, str, str], float] = {}
        self._allowance, self._allowed_at = float(BURST), 0.0
        self.withheld = 0
        """How often something new could not be written at once, since there was too much."""

    def say(self, notices: Iterable[Notice], now: float) -> None:
        """Take in what is so now."""
        for notice in notices:
            former = self._said.get(notice.thing)
            if former is None or now - former.last > QUIET:
                self._said[notice.thing] = Announcement(notice, now, now, notice.times)
                self._written_at.pop(notice.thing, None)
            else:
                count = former.count + notice.times
                self._said[notice.thing] = msgspec.structs.replace(former, notice=notice, last=now, count=count)
        for thing in sorted(self._said, key=lambda one: self._said[one].last)[: max(0, len(self._said) - MANY)]:
            self._forget(thing)

    def due(self, now: float) -> tuple[Announcement, ...]:
        """Return what is to be written now; it counts as written."""
        self._allowance = min(BURST, self._allowance + (now - self._allowed_at) / PAUSE)
        self._allowed_at = now
        found = []
        for thing, one in tuple(self._said.items()):
            at = self._written_at.get(thing)
            if at is not None and (one.last <= at or now - at < SERIES):
                if now - one.last > QUIET:
                    self._forget(thing)
                continue
            if self._allowance < 1:
                self.withheld += 1
                break
            self._allowance -= 1
            found.append(msgspec.structs.replace(one, written=at is not None))
            self._written_at[thing] = now
        return tuple(found)

    def _forget(self, thing: tuple[str, str, str]) -> None:
        self._said.pop(thing, None)
        self._written_at.pop(thing, None)


class Announcer:
    """Writes what was said, for one component. Where the store has no Events, nothing is kept."""

    def __init__(self, store: object, by: str, instance: str, clock: Callable[[], float]) -> None:
        self._store = store if isinstance(store, Announces) else None
        self._by, self._instance, self._clock = by, instance, clock
        self._aggregate = Aggregate()
        self._problem = ""

    @property
    def useful(self) -> bool:
        """Whether the store can tell operators."""
        return self._store is not None

    def say(self, *notices: Notice) -> None:
        """Take in what is so now."""
        if self._store is not None:
            self._aggregate.say(notices, self._clock())

    async def write(self) -> None:
        """Write what is due. What cannot be written is told in the log, and left out: it will be said again."""
        if self._store is None:
            return
        for announcement in self._aggregate.due(self._clock()):
            try:
                await self._store.announce(announcement, self._by, self._instance)
                self._problem = ""
            except StoreError as error:
                if error.message != self._problem:
                    log.warning(
                        "an Event cannot be written", problem=error.message, about=announcement.notice.note
                    )
                self._problem = error.message
