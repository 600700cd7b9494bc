"""What others changed of what is ours, and was put right."""

import time
from collections import deque
from collections.abc import Iterator

import msgspec
import structlog

log = structlog.get_logger(__name__)

REMEMBERED = 100


class Repair(msgspec.Struct, frozen=True):
    """Something that was not as planned though nobody had changed the plan. `at` is seconds since 1970."""

    at: float
    what: str


class Repairs:
    """The latest repairs, oldest first."""

    def __init__(self) -> None:
        self._latest: deque[Repair] = deque(maxlen=REMEMBERED)
        self.total = 0
        """How many there were since the start."""

    def __iter__(self) -> Iterator[Repair]:
        return iter(self._latest)

    def note(self, what: str) -> None:
        """Log and remember a repair, told in words."""
        log.warning("repaired", change=what)
        self._latest.append(Repair(time.time(), what))
        self.total += 1
