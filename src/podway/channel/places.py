"""Places for connections: who asks over the network may hold so many at once, and one source not all of them."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_network
from typing import TypeAlias

from podway.api.addresses import Address, Network

Source: TypeAlias = Address | Network
"""Who is counted as one, of those that ask."""

REFUSALS_LOGGED = 10.0
"""Seconds for which refusals are only counted after one was logged: anyone can cause them."""


def stranger(address: Address) -> Source:
    """Return what a peer is counted by that is no node: its address, of IPv6 the /64, which one host may have."""
    wide = isinstance(address, IPv6Address)
    return ip_network((int(address) >> 64 << 64, 64)) if wide else address


class Places:
    """So many connections as `most` at once. May be used by several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sources: Counter[Source] = Counter()
        self._guard = threading.Lock()

    @property
    def taken(self) -> int:
        """How many connections there are."""
        with self._guard:
            return self._sources.total()

    def take(self, source: Source, most: int) -> str:
        """Count a connection in of a source that may have `most`; return why it is one too many, if it is."""
        with self._guard:
            if self._sources.total() >= self._most:
                return f"{self._most} others are being served"
            if self._sources[source] >= most:
                return f"{most} others of the same source are being served"
            self._sources[source] += 1
            return ""

    def leave(self, source: Source) -> None:
        """Count a connection out that was counted in."""
        with self._guard:
            self._sources[source] -= 1
            self._sources = +self._sources


class Refusals:
    """Counts what is refused, and has one of many logged: `tell` gets it, and how many there were since the last.

    May be used by several threads.
    """

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        self._tell = tell
        self._guard = threading.Lock()
        self._logged = (-REFUSALS_LOGGED, 0)
        """When a refusal was logged last, and how many there had been by then."""
        self.count = 0
        self.last = ""

    def note(self, what: str) -> None:
        """Count one."""
        with self._guard:
            self.count += 1
            self.last = what
            (at, before), now = self._logged, time.monotonic()
            silent = now - at < REFUSALS_LOGGED
            if not silent:
                self._logged = (now, self.count)
            since = self.count - before
        if not silent:
            self._tell(what, since)
