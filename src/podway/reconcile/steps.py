"""How long the agent's event loop is at work without a pause: while it is, no ADD is served.

The loop asks its selector for events, runs all callbacks that are ready, and asks again (BaseEventLoop._run_once);
so the time from one return of `select` to the next call is one step. Between two looks at the clock nothing is
added to the loop's own work.
"""

import asyncio
import selectors
import time
from typing import TypeAlias

from podway.metrics.exposition import Histogram

REST, LONGEST_REST = 10.0, 0.4
"""After work on everything, rest so many times as long as it took, within a limit in seconds."""

RESOLUTION = 0.00025
"""Seconds: steps are counted in buckets of this width."""

BUCKETS = 4000
"""One second; what takes longer is in the last one."""

_Events: TypeAlias = list[tuple[selectors.SelectorKey, int]]


async def rest(took: float, *, times: float = REST, longest: float = LONGEST_REST) -> None:
    """Rest after work that took so many seconds: so many times as long, within a limit. Requests come first."""
    await asyncio.sleep(min(longest, times * took))


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
