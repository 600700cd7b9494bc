"""Who goes first between two steps of the loop."""

import asyncio

import pytest

from podway.reconcile import steps
from podway.reconcile.steps import RightOfWay


async def _work(way: RightOfWay, done: list[str]) -> None:
    """Do what can wait, in three steps."""
    for number in range(3):
        await way.give()
        done.append(f"step {number}")


async def _request(way: RightOfWay, done: list[str], turns: int) -> None:
    """Be served in so many turns of the loop, as an ADD is."""
    with way.taken():
        for _ in range(turns):
            await asyncio.sleep(0)
        done.append("served")


def test_requests_are_served_before_the_next_step_of_what_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GIVES_WAY", 1000.0)
    done: list[str] = []

    async def scenario() -> None:
        way = RightOfWay()
        await asyncio.gather(_work(way, done), _request(way, done, 5), _request(way, done, 20))

    asyncio.run(scenario())
    assert done == ["served", "served", "step 0", "step 1", "step 2"]


def test_nobody_waits_where_there_is_no_request() -> None:
    done: list[str] = []
    asyncio.run(_work(RightOfWay(), done))
    assert len(done) == 3


def test_a_request_that_came_to_its_end_by_an_error_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GIVES_WAY", 1000.0)
    done: list[str] = []

    async def scenario() -> None:
        way = RightOfWay()
        with pytest.raises(OSError, match="refused"), way.taken():
            raise OSError("refused")
        await _work(way, done)

    asyncio.run(scenario())
    assert len(done) == 3


async def _work_beside_a_request(done: list[str]) -> None:
    """Do what can wait while a request is under way, which waits for it."""
    way = RightOfWay()
    with way.taken():
        await _work(way, done)


def test_what_can_wait_goes_on_beside_requests_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GIVES_WAY", 0.001)
    monkeypatch.setattr(steps, "HAS_WAY", 1000.0)
    done: list[str] = []
    asyncio.run(_work_beside_a_request(done))
    assert len(done) == 3


def test_a_request_that_waits_for_what_can_wait_loses_its_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GIVES_WAY", 1000.0)
    monkeypatch.setattr(steps, "HAS_WAY", 0.001)
    done: list[str] = []
    asyncio.run(_work_beside_a_request(done))
    assert len(done) == 3
