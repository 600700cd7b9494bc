"""What is counted of records for metrics."""

from podway.flows.tally import Tally
from podway.kernel.flow_events import EventKind
from tests.flows.flow_events import event


def test_records_are_counted_by_what_they_tell_and_connections_when_they_end() -> None:
    tally = Tally()
    tally.take(event() * 3 + event(EventKind.PACKET_DROPPED))
    going = event(EventKind.FLOW_LIVES, rtt=(100, 100), retransmitted=(5, 5))
    tally.take(going + event(EventKind.FLOW_END, rtt=(1000, 500), retransmitted=(2, 1)))
    tally.take(event(EventKind.FLOW_EVICTED, rtt=(0, 500)) + event(EventKind.FLOW_END, protocol=17))
    assert tally.events == {"new": 3, "drop": 1, "lives": 1, "end": 3, "changed": 0, "audit": 0}
    assert (sum(tally.round_trips.counts), tally.round_trips.sum) == (1, 0.0015), "half of a trip is none"
    assert tally.retransmitted == 3
