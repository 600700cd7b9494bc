"""HTTP to a store's servers: sockets that notice a dead peer, and a parting that does not wait."""

import asyncio
import contextlib
import logging
import socket
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import aiohttp

from podway.errors import StoreUnavailable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection: another server is asked then."""
CLOSING_STEP, CLOSING_STEPS = 0.01, 50
"""Seconds between looks whether all connections are closed by now, and how many."""

# A peer that vanished is noticed by the kernel (tcp(7)): probes after 15 s of silence, 5 s apart, three of them.
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)

Sockets: TypeAlias = Callable[[Any], socket.socket]
"""Makes the socket for an address (an entry of getaddrinfo(3))."""


def plain_socket(address: Any) -> socket.socket:
    """Make a socket in this process's network namespace."""
    return socket.socket(address[0], address[1], address[2])


class Connections:
    """The connections of one client, which belong to the event loop in which they are used first.

    What comes from a server may be silent for `idle` seconds, None: for ever. `address` is the store's, in errors.
    """

    def __init__(self, sockets: Sockets, address: str, *, idle: float | None) -> None:
        self._make_socket = sockets
        self._address = address
        self._idle = idle
        self._closed = False
        self._session: aiohttp.ClientSession | None = None
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.made = 0
        """How many connections were begun."""

    @property
    def session(self) -> aiohttp.ClientSession:
        """What to ask by. Raises StoreUnavailable once it was closed."""
        self.require_open()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Compression costs a server more than a network does.
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "podway"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=self._idle),
                connector=aiohttp.TCPConnector(limit=0, socket_factory=self._socket),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _socket(self, address: Any) -> socket.socket:
        self.made += 1
        made = self._make_socket(address)
        try:
            for level, option, value in _SOCKET_OPTIONS:
                made.setsockopt(level, option, value)
        except OSError:
            made.close()
            raise
        self._sockets.add(made)
        return made

    def require_open(self) -> None:
        """Raise StoreUnavailable once it was closed."""
        if self._closed:
            raise StoreUnavailable(f"the store at {self._address} was closed")

    async def close(self) -> None:
        """Close them all, for good."""
        self._closed = True
        if self._session is None:
            return
        await self._session.close()
        # asyncio parts from a peer as TLS wants it, which takes half a minute where the peer is dead.
        for made in self._sockets:
            if made.fileno() >= 0:
                with contextlib.suppress(OSError):
                    made.shutdown(socket.SHUT_RDWR)
        for _ in range(CLOSING_STEPS):
            if all(made.fileno() < 0 for made in self._sockets):
                break
            await asyncio.sleep(CLOSING_STEP)


def turn(servers: list[str], server: str, what: str) -> None:
    """Have another server asked first from now on, unless that is so; `what` servers are, in the log."""
    if len(servers) > 1 and servers[0] == server:
        servers.append(servers.pop(0))
        log.warning("%s %s does not answer: %s is asked now", what, server, servers[0])


def transport_of(response: aiohttp.ClientResponse) -> asyncio.Transport | None:
    """Return the transport of an answer that is being read."""
    connection = response.connection
    return connection.transport if connection is not None else None


def cut(response: aiohttp.ClientResponse, transport: asyncio.Transport | None) -> None:
    """Close the connection of a stream at once: a parting that TLS has would outlast the store."""
    if transport is not None:
        transport.abort()
    response.close()
