"""Whether the store can be asked, as all who ask it find out."""

import asyncio
import time

import structlog

from podway.errors import ObjectDamaged, StoreError

log = structlog.get_logger(__name__)


class StoreContact:
    """Notes when the store is lost and found again."""

    def __init__(self) -> None:
        self._listeners: list[asyncio.Event] = []
        self._problems: dict[str, str] = {}
        """Why the store cannot be asked, by kind; by the empty name what others than informers found."""
        self.lost_at: float | None = None
        """Since when (time.monotonic()) something cannot be asked; None while all can."""

    @property
    def problem(self) -> str:
        """Why the store cannot be reached, in words; empty if it can."""
        return next(iter(self._problems.values()), "")

    def tell_found(self, listener: asyncio.Event) -> None:
        """Set an event from now on whenever the store is there again."""
        self._listeners.append(listener)

    def lost(self, error: StoreError, *, kind: str = "") -> None:
        """Note that the store cannot be reached; an object that is rejected is none of its faults."""
        if isinstance(error, ObjectDamaged):
            log.debug("an object that is rejected was asked for", problem=error.message)
            return
        if error.message not in self._problems.values():
            log.error(
                "store lost: pods come and go all the same, changes of other nodes wait", problem=error.message
            )
        self._problems[kind] = error.message
        self.lost_at = time.monotonic() if self.lost_at is None else self.lost_at

    def reached(self, kind: str = "") -> None:
        """Note that the store can be reached, for a kind or for what others than informers ask."""
        if not self._problems:
            return
        self._problems.pop(kind, None)
        if not self._problems.keys() - {""}:  # whoever else found it away tries again
            log.info("store found again")
            self._problems.clear()
            self.lost_at = None
            for listener in self._listeners:
                listener.set()
