"""How long the agent's event loop is at work without a pause, and who goes first when it pauses.

While it is at work no ADD is served. The loop asks its selector for events, runs all callbacks that are ready, and
asks again (BaseEventLoop._run_once); so the time from one return of `select` to the next call is one step. Between
two looks at the clock nothing is added to the loop's own work.
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Iterator
from typing import TypeAlias

from podway.metrics.exposition import Histogram

REST, LONGEST_REST = 10.0, 0.4
"""After work on everything, rest so many times as long as it took, within a limit in seconds."""

GIVES_WAY, HAS_WAY = 0.05, 0.2
"""Seconds that what can wait gives way to requests at most before each of its steps, and for which a request has
the right of way at most: it may wait for the store, or for what those steps do."""

RESOLUTION = 0.00025
"""Seconds: steps are counted in buckets of this width."""

BUCKETS = 4000
"""One second; what takes longer is in the last one."""

_Events: TypeAlias = list[tuple[selectors.SelectorKey, int]]


async def rest(took: float, *, times: float = REST, longest: float = LONGEST_REST) -> None:
    """Rest after work that took so many seconds: so many times as long, within a limit. Requests come first."""
    await asyncio.sleep(min(longest, times * took))


class RightOfWay:
    """Requests of the runtime go before what can wait. Belongs to one event loop.

    An ADD takes a dozen turns of the loop, for it hears of each answer of a thread in one and acts on it in the
    next. Work that only lets others go first between its steps has one of them in each turn: beside an audit an
    ADD takes ten times as long as alone, though nothing ever holds it up for more than one step. So that work
    pauses until no request is under way.
    """

    def __init__(self) -> None:
        self._requests: set[object] = set()
        self._free = asyncio.Event()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Have what can wait give way while the block runs, for a while."""
        request = object()
        self._requests.add(request)
        self._free.clear()
        late = asyncio.get_running_loop().call_later(HAS_WAY, self._end, request)
        try:
            yield
        finally:
            late.cancel()
            self._end(request)

    def _end(self, request: object) -> None:
        self._requests.discard(request)
        if not self._requests:
            self._free.set()

    async def give(self) -> None:
        """Let others go first: whoever is ready, and requests until they are done; but not for ever."""
        await asyncio.sleep(0)
        if self._requests:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GIVES_WAY):
                    await self._free.wait()


class Steps(selectors.EpollSelector):
    """A selector that counts how long the loop is away from it."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = [0] * BUCKETS
        self.ever = Histogram()
        """All steps since the start, for metrics."""
        self._began = time.perf_counter()
        self.count = 0
        self.longest = 0.0

    def select(self, timeout: float | None = None) -> _Events:
        """See selectors.BaseSelector.select."""
        took = time.perf_counter() - self._began
        self.count += 1
        self._counts[min(int(took / RESOLUTION), BUCKETS - 1)] += 1
        self.longest = max(self.longest, took)
        self.ever.observe(took)
        try:
            return super().select(timeout)
        finally:
            self._began = time.perf_counter()

    def percentile(self, percent: float) -> float:
        """Return how many seconds so many of all steps took at most, up to the width of a bucket."""
        rank, seen = self.count * percent / 100, 0
        for bucket, number in enumerate(self._counts):
            seen += number
            if seen >= rank:
                return min((bucket + 1) * RESOLUTION, self.longest)
        return self.longest

    def summary(self) -> dict[str, float]:
        """Return how many steps there were since this was asked last, and how many seconds they took."""
        found = {
            "count": self.count,
            "median": self.percentile(50),
            "p99": self.percentile(99),
            "p99.9": self.percentile(99.9),
            "longest": self.longest,
        }
        self._counts = [0] * BUCKETS
        self.count, self.longest = 0, 0.0
        return found
