"""What becomes of an agent's task that fails in a way nobody expected: it is told, and started again.

The node's pods must not pay for a mistake in one of the agent's tasks: the others go on, and what failed may go
well the next time, when the facts are others. This is the one place where that is decided.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from podway.errors import NameTaken, explain

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between a task's failure and its next start: doubled from the first to the longest."""

STABLE = 60.0
"""A task that has run for so many seconds is well again: its next failure counts as the first."""


class Failure(msgspec.Struct, frozen=True):
    """A task's latest failure, when it was (seconds since 1970), and how many there were."""

    task: str
    error: str
    at: float
    times: int = 1


class Supervisor:
    """Runs an agent's tasks for ever, each until it is cancelled.

    After a failure `look_again` is called: what the task was about to do is done by looking at everything anew.
    """

    def __init__(self, look_again: Callable[[], None]) -> None:
        self._look_again = look_again
        self._failures: dict[str, Failure] = {}

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The latest failure of every task that ever failed, and of callbacks."""
        return tuple(self._failures.values())

    async def run(self, task: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do a task's work; where it fails, do it again after a pause. Raises NameTaken: the agent must end."""
        clock, pause = asyncio.get_running_loop().time, 0.0
        while True:
            begun = clock()
            try:
                return await work()
            except NameTaken:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the others need not fail
                pause = (
                    FIRST_PAUSE if clock() - begun > STABLE else min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
                )
                self.note(task, error)
            await asyncio.sleep(pause)
            self._look_again()

    def attempt(self, task: str, work: Callable[[], object]) -> None:
        """Do something once; a failure that nobody expected is told, and what was to be done is done later."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest need not fail
            self.note(task, error)
            asyncio.get_running_loop().call_later(FIRST_PAUSE, self._look_again)

    def note(self, task: str, error: BaseException) -> None:
        """Log and remember a failure that nobody expected."""
        former = self._failures.get(task)
        self._failures[task] = Failure(task, explain(error), time.time(), former.times + 1 if former else 1)
        log.error(
            "a task of the agent failed: it is done again", task=task, problem=explain(error), exc_info=error
        )

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take over what fails in the loop's callbacks, which no task answers for."""
        loop.set_exception_handler(self._unhandled)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.note("event loop", error)
        else:
            loop.default_exception_handler(context)
