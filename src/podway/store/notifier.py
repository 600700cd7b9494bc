"""Notifies of a file whose timestamps are set, or that goes away: inotify(7) in asyncio.

The first change after a while is told at once, those that follow it together: each notification has every watch
look at the file, which costs a process that follows hundreds of changes a second more than the changes themselves.
"""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from podway import inotify

SLOW_POLL = 1.0
"""Seconds between looks while notifications come: for a writer that was killed before it could notify."""
PAUSE = 0.02
"""Seconds after a notification for which nobody is told of another one: the kernel holds it until then."""
FAST_POLL = 0.05
"""Seconds between looks without inotify."""

log = logging.getLogger(__name__)


class ChangeNotifier:
    """Wakes this process's watchers. One inotify descriptor serves all: a user has only 128 of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pausing: asyncio.TimerHandle | None = None
        self._listeners: set[asyncio.Event] = set()
        self.notifications = 0
        """How often it rang."""

    @property
    def poll_interval(self) -> float:
        """Seconds that a listener may wait at most before it looks for itself."""
        return SLOW_POLL if self._descriptor >= 0 else FAST_POLL

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Give an event that is set at every notification; whoever waits for it clears it."""
        if not self._listeners:
            self._open()
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)
            if not self._listeners:
                self._close()

    def notify(self) -> None:
        """Wake all listeners."""
        self.notifications += 1
        for event in self._listeners:
            event.set()

    def _open(self) -> None:
        try:
            events = inotify.IN_ATTRIB | inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF
            self._descriptor = inotify.watch(self._path, events)
        except OSError as error:
            log.warning("no inotify for %s (%s): looking every %g s", self._path, error.strerror, FAST_POLL)
            return
        self._loop = asyncio.get_running_loop()
        self._listen(self._loop)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pausing = None
        loop.add_reader(self._descriptor, self._heard, loop)

    def _heard(self, loop: asyncio.AbstractEventLoop) -> None:
        inotify.drain(self._descriptor)
        self.notify()
        loop.remove_reader(self._descriptor)
        self._pausing = loop.call_later(PAUSE, self._listen, loop)

    def _close(self) -> None:
        if self._descriptor < 0:
            return
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
