"""An agent's task that fails unexpectedly is told and done again; the others go on."""

import asyncio

import pytest

from podway.agent import supervisor
from podway.agent.membership import Membership
from podway.agent.supervisor import Supervisor
from podway.api.kinds.node import AGENT_INSTANCE, AGENT_SEEN, Node
from podway.api.meta import Metadata
from podway.errors import NameTaken


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)


def test_a_task_that_fails_is_done_again_and_the_others_go_on() -> None:
    runs: list[str] = []
    looks: list[int] = []

    async def fragile() -> None:
        runs.append("fragile")
        if len(runs) < 4:
            raise KeyError("cidr")
        await asyncio.Event().wait()

    async def main() -> Supervisor:
        watched = Supervisor(lambda: looks.append(len(runs)))
        ticks = 0
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
            running = [tasks.create_task(watched.run("fragile", fragile))]
            while len(runs) < 4:
                ticks += 1
                await asyncio.sleep(0.001)
            for task in running:
                task.cancel()
        assert ticks > 1
        return watched

    (failure,) = asyncio.run(main()).failures
    assert looks == [1, 2, 3], "what was left undone is looked at again, each time before it is done"
    assert (failure.task, failure.error, failure.times) == ("fragile", "KeyError: 'cidr'", 3)


def test_a_name_that_another_machine_has_ends_the_agent() -> None:
    async def taken() -> None:
        raise NameTaken("Node/a: taken")

    with pytest.raises(NameTaken):
        asyncio.run(Supervisor(lambda: None).run("membership", taken))


def test_a_failing_callback_of_the_loop_is_told() -> None:
    async def main() -> Supervisor:
        watched = Supervisor(lambda: None)
        loop = asyncio.get_running_loop()
        watched.watch(loop)
        loop.call_soon(lambda: int("x"))
        await asyncio.sleep(0.01)
        return watched

    assert [failure.task for failure in asyncio.run(main()).failures] == ["event loop"]


@pytest.mark.parametrize(
    ("seen", "taken"),
    [
        ("-5", False),
        ("", False),
        ("yesterday", False),
        ("9" * 400, False),
        ("²", False),
        ("now", True),
        ("now+10", True),
        ("now-10", True),
        ("now+3600", False),
        ("now-3600", False),
    ],
)
def test_whoever_was_seen_just_now_keeps_the_name_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, seen: str, taken: bool
) -> None:
    """A clock that was wrong, or a note that is none, keeps no node that is started again from its name."""
    now = 1_800_000_000
    monkeypatch.setattr("time.time", lambda: now)
    text = str(now + int(seen.removeprefix("now") or 0)) if seen.startswith("now") else seen
    notes = {AGENT_INSTANCE: "another kernel", AGENT_SEEN: text}
    others = [Node(metadata=Metadata(name="a", annotations=notes))]
    membership = Membership(None, "a", heartbeat_interval=10.0)  # type: ignore[arg-type]
    if taken:
        with pytest.raises(NameTaken):
            membership.check_name(others)
    else:
        membership.check_name(others)
