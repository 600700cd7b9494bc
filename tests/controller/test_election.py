"""Of several controllers one works: by a model of a lease that is written by compare-and-swap."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from podway.api.kinds.node_lease import NodeLease
from podway.controller.election import DEADLINE, DURATION, INTERVAL, Candidate, held


class Cell:
    """Where the lease is; a write succeeds if nobody wrote since it was read."""

    def __init__(self) -> None:
        self.lease: NodeLease | None = None
        self.version = 0


def look(candidate: Candidate, cell: Cell, now: float, *, answered: bool = True) -> None:
    """Have a candidate look, as the controller does; the answer to its write may be lost."""
    if candidate.look(cell.lease, now) == "wait":
        candidate.lost()
        return
    cell.lease, cell.version = held(candidate.name, now, cell.lease), cell.version + 1
    if answered:
        candidate.wrote(now)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 8), st.booleans()), max_size=60),
    st.tuples(*[st.floats(-1e6, 1e6)] * 3),
)
def test_two_never_lead_at_a_time_whatever_their_clocks_say(
    looks: list[tuple[int, float, bool]], offsets: tuple[float, float, float]
) -> None:
    candidates, cell, now = [Candidate(name) for name in "abc"], Cell(), 0.0
    for who, pause, answered in looks:
        now += pause
        look(candidates[who], cell, now + offsets[who], answered=answered)
        leading = [one.name for one, offset in zip(candidates, offsets, strict=True) if one.leads(now + offset)]
        assert len(leading) <= 1


def test_one_that_is_gone_is_followed_when_its_lease_counts_no_more() -> None:
    first, second, cell = Candidate("a"), Candidate("b"), Cell()
    look(first, cell, 0)
    assert first.leads(0)
    now = 0.0
    while not second.leads(now):
        now += INTERVAL
        look(second, cell, now)
        assert not (second.leads(now) and now < DURATION)
    assert now <= DURATION + 2 * INTERVAL
    assert not first.leads(now)


def test_one_that_cannot_write_stops_before_others_begin() -> None:
    first, cell = Candidate("a"), Cell()
    look(first, cell, 0)
    assert first.leads(DEADLINE - 0.1)
    assert not first.leads(DEADLINE)
    assert DEADLINE < DURATION


def test_one_that_ends_leaves_the_lease_to_the_next() -> None:
    first, second, cell = Candidate("a"), Candidate("b"), Cell()
    look(first, cell, 0)
    look(second, cell, 1)
    assert not second.leads(1)
    cell.lease = held("", 2, cell.lease)
    look(second, cell, 3)
    assert second.leads(3)


def test_a_lease_that_says_it_counts_for_ever_is_waited_for_as_long_as_it_says() -> None:
    candidate = Candidate("a")
    lease = held("other", 0)
    long = msgspec.structs.replace(lease, spec=msgspec.structs.replace(lease.spec, lease_duration_seconds=3600))
    assert candidate.look(long, 0) == "wait"
    assert candidate.look(long, 3599) == "wait"
    assert candidate.look(long, 3601) == "take"
