"""What is counted of records as they come, for metrics: sums whose number does not grow with pods. Pure."""

from collections import Counter

from podway.flows.block import column_of, event_of
from podway.flows.record import EVENTS, Event
from podway.kernel.flow_events import EventKind
from podway.metrics.exposition import SECONDS, Histogram

RTT_SECONDS = (0.0001, 0.00025, 0.0005, *(limit for limit in SECONDS if limit <= 1))
"""The limits of buckets for round trips: from those of one machine to those around the world."""

_TOLD = frozenset({EventKind.FLOW_END, EventKind.FLOW_EVICTED})


class Tally:
    """Records by what they tell; of TCP connections that ended their round trips, and what was sent again."""

    def __init__(self) -> None:
        self.events: Counter[Event] = Counter(dict.fromkeys(EVENTS, 0))
        self.round_trips = Histogram(RTT_SECONDS)
        self.retransmitted = 0

    def take(self, events: bytes) -> None:
        """Count records, as the engine told them."""
        kinds = column_of(events, "kind")
        for kind, count in Counter(kinds).items():
            self.events[event_of(kind)] += count
        if _TOLD.isdisjoint(kinds):
            return
        ended = [at for at, kind in enumerate(kinds) if kind in _TOLD]
        there, back, again, again_back = (
            column_of(events, name) for name in ("rtt", "rtt_back", "retransmitted", "retransmitted_back")
        )
        for at in ended:
            if there[at] and back[at]:
                self.round_trips.observe((there[at] + back[at]) / 1e6)
            self.retransmitted += again[at] + again_back[at]
