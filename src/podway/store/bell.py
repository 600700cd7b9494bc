"""A bell that rings when a file's timestamps are set or the file goes away: inotify(7) in asyncio."""

import asyncio
import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# include/uapi/linux/inotify.h
IN_ATTRIB = 0x00000004
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800

SLOW_POLL = 1.0
"""Seconds between looks when the bell works: for a writer that was killed before it could ring."""
FAST_POLL = 0.05
"""Seconds between looks without inotify."""

log = logging.getLogger(__name__)


class Bell:
    """Wakes this process's watchers. One inotify descriptor serves all: a user has only 128 of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: set[asyncio.Event] = set()

    @property
    def poll_interval(self) -> float:
        """Seconds that a listener may wait at most before it looks for itself."""
        return SLOW_POLL if self._descriptor >= 0 else FAST_POLL

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Give an event that is set at every ring; whoever waits for it clears it."""
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

    def ring(self) -> None:
        """Wake all listeners."""
        for event in self._listeners:
            event.set()

    def _open(self) -> None:
        try:
            self._descriptor = _watch(self._path)
        except OSError as error:
            log.warning("no inotify for %s (%s): looking every %g s", self._path, error.strerror, FAST_POLL)
            return
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._heard)

    def _heard(self) -> None:
        os.read(self._descriptor, 4096)
        self.ring()

    def _close(self) -> None:
        if self._descriptor < 0:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1


def _watch(path: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mask = IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF
    if libc.inotify_add_watch(descriptor, os.fsencode(path), mask) < 0:
        code = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(code, os.strerror(code))
    return descriptor
