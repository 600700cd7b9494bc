"""What is counted of records as they come, for metrics: sums whose number does not grow with pods. Pure."""

from collections import Counter
from itertools import compress

from podway.flows.block import PLACES, event_of, rows_of
from podway.flows.record import EVENTS, Event
from podway.kernel.flow_events import EVENT_SIZE, EventKind
from podway.metrics.exposition import SECONDS, Histogram

RTT_SECONDS = (0.0001, 0.00025, 0.0005, *(limit for limit in SECONDS if limit <= 1))
"""The limits of buckets for round trips: from those of one machine to those around the world."""

_TOLD = frozenset({EventKind.FLOW_END, EventKind.FLOW_EVICTED})
_ARE_TOLD = bytes(kind in _TOLD for kind in range(256))


class Tally:
    """Records by what they tell; of TCP connections that ended their round trips, and what was sent again."""

    def __init__(self) -> None:
        self.events: Counter[Event] = Counter(dict.fromkeys(EVENTS, 0))
        self.round_trips = Histogram(RTT_SECONDS)
        self.retransmitted = 0

    def take(self, events: bytes) -> None:
        """Count records, as the engine told them."""
        start = PLACES["kind"][0]
        kinds = events[start::EVENT_SIZE]
        for kind in set(kinds):
            self.events[event_of(kind)] += kinds.count(kind)
        if _TOLD.isdisjoint(kinds):
            return
        fields = rows_of(events, "rtt", "rtt_back", "retransmitted", "retransmitted_back")
        ended = compress(fields, kinds.translate(_ARE_TOLD))
        there, back, *again = zip(*ended, strict=True)
        self.retransmitted += sum(map(sum, again))
        for (one, other), count in Counter(zip(there, back, strict=True)).items():
            if one and other:
                self.round_trips.observe((one + other) / 1e6, count)
