"""What those have in common who keep maps of the node's flow engine in step with the cluster.

Policies (podway.reconcile.enforcement) and Services (podway.reconcile.serving) have planners that are told single
facts, remember what came of them, and say which entries change. Whoever brings that to the maps works in steps,
between which others go first. What the kernel refuses is told, and left to an audit. A mistake of ours ends here:
the loop that keeps routes and pods must not pay for it, so what is in the maps stays, and all is begun anew.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import structlog

from podway.errors import KernelError, PodwayError, explain
from podway.kernel.interface import FlowDoor
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

SLICE = 1000
"""Entries that are compared at once: less than a millisecond."""

RETRY = 10.0
"""Seconds until what could not be had, or was refused again, is tried once more."""


class MapKeeper(ABC):
    """Keeps some maps at what a planner says; `problem` says why they are not so, and is empty if they are."""

    DOING: ClassVar[str]
    """What it does, in the past tense, for messages."""
    FALLS_SHORT: ClassVar[str]
    """What to say if it is not done as it should be."""

    def __init__(self, flow: FlowDoor, state: NodeState) -> None:
        self._flow = flow
        self._state = state
        self._work: Iterator[None] | None = None
        """What is being written, in steps."""
        self._written = 0
        """How often something was written."""
        self._again = 0.0
        """Before then nothing is begun anew."""
        self.problem = ""

    @abstractmethod
    def _take_up(self) -> Iterator[None] | None:
        """Return `_work` once that is what to go on with: what is under way, else what is due, if anything is."""

    @abstractmethod
    def _finish(self) -> None:
        """Note that what was taken up is done."""

    @abstractmethod
    def _refuse(self, error: KernelError) -> None:
        """Note that the kernel refused something of it: an audit finds what."""

    @abstractmethod
    def _lose_track(self) -> None:
        """Have another planner made: this one was cut short, and nobody can tell what it knows."""

    @abstractmethod
    def _end(self) -> None:
        """Forget all that is known; the maps stay as they are."""

    def _steps(self, *, strict: bool = False) -> Iterator[None]:
        """Do what is due, and yield after each step. With `strict` raises the KernelError of what is refused."""
        while (work := self._take_up()) is not None:
            try:
                next(work)
            except StopIteration:
                self._work = None
                self._finish()
                continue
            except KernelError as error:
                self._work = None
                self._refuse(error)
                if strict:
                    raise
                continue
            except Exception as error:  # noqa: BLE001 - a mistake of ours, whatever it is
                self.fail(error)
                continue
            except BaseException:
                self._work = None
                self._lose_track()
                raise
            yield

    def fail(self, error: Exception, pause: float = RETRY) -> None:
        """Take a failure that nobody expected: maps stay as they are, all begins anew after a pause (seconds)."""
        log.error(f"the agent failed as it {self.DOING}", problem=explain(error), exc_info=error)
        self._end()
        self._again = self._state.now() + pause
        self.problem = f"the agent failed as it {self.DOING} ({explain(error)}); its log tells more"

    def note(self, error: PodwayError) -> None:
        """Take down, and log once, what keeps the maps from being as they should be."""
        if error.message != self.problem:
            log.error(self.FALLS_SHORT, problem=error.message, hint=error.hint)
        self.problem = error.message


def not_as_planned(what: str, counts: Mapping[str, int]) -> str:
    """Say how many entries of each sort are not as they should be."""
    return f"{what}: not as planned: {', '.join(f'{count} {sort}' for sort, count in counts.items() if count)}"
