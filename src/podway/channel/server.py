"""The channel: an agent answers other machines, over TLS 1.3 with certificates on both sides.

Each connection has a thread of its own for as long as it lasts, at most a few seconds. Handshakes so stay out
of the event loop, which has pods to attach, and OpenSSL tells a peer that it refuses why (asyncio's TLS closes
the connection without that word). The methods themselves run in the loop, as those of the unix socket do.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
from ipaddress import ip_address
from typing import Any, Protocol

import structlog

from podway.api.addresses import Address, Family, with_port
from podway.channel.admin import Method, reply
from podway.channel.certificate import Credential
from podway.channel.places import Places, Refusals, Source, stranger
from podway.cluster.view import ClusterView
from podway.errors import AgentError, PodwayError
from podway.identity import tls
from podway.identity.orders import is_operator
from podway.plan.uplink import Uplink
from podway.store.base import Store

log = structlog.get_logger(__name__)

HANDSHAKE = 5.0
"""Seconds that the whole handshake may take."""
EXCHANGE = 10.0
"""Seconds that a peer may take for a whole request, silence before it included, and to take in the whole answer.

Short, so that nobody goes on with a certificate that has ended, or holds a place by a byte now and then.
"""
ANSWER = 120.0
"""Seconds that an answer may take."""
MAX_CONNECTIONS = 32
MAX_OF_NODE, MAX_OF_STRANGER = 16, 8
"""How many of them one source may have: a node of the cluster, or another address (of IPv6, a /64)."""
MAX_REQUEST = 1 << 20
"""Bytes of a request's line."""
RETRY = 2.0
"""Seconds until what failed is tried again."""
LOOKS = 12
"""How often in a certificate's life to look whether certificates or authorities are due."""
CLOCK_LOOK, CLOCK_STEP = 2.0, 1.0
"""Seconds between looks whether the wall clock was set, and by how much it must be to matter."""


class Node(Protocol):
    """What is known of the node whose agent answers."""

    node: str
    uplink: Uplink
    view: ClusterView


class Channel:
    """The agent's place where other machines ask, at each of the node's addresses.

    With `requested` it asks the controller for its certificate.
    """

    _loop: asyncio.AbstractEventLoop
    _methods: Mapping[str, Method]
    _context: ssl.SSLContext

    def __init__(self, store: Store, state: Node, *, requested: bool = False) -> None:
        self._state = state
        self._certificate = Credential(store, state.node, requested=requested)
        self._wanted = asyncio.Event()
        self._listeners: dict[tuple[Address, int], socket.socket] = {}
        self._connections: set[socket.socket] = set()
        self._places = Places(MAX_CONNECTIONS)
        self._problem = ""
        self._refusals = Refusals(
            lambda what, count: log.warning("refused a connection", peer=what, since_the_last_line=count)
        )

    def status(self) -> dict[str, Any]:
        """Return the addresses, the certificate, and what is wrong; plain JSON values."""
        credentials = self._certificate.credentials
        return {
            "addresses": [with_port(address, port) for address, port in self._listeners],
            "problem": self._problem,
            "cluster": credentials.cluster if credentials else "",
            "certificate": credentials.certificate.not_after.isoformat() if credentials else "",
            "refused": self._refusals.count,
            "last_refusal": self._refusals.last,
        }

    def trigger(self) -> None:
        """Ask for a look: addresses, settings or authorities may have changed."""
        self._wanted.set()

    async def run(self, methods: Mapping[str, Method]) -> None:
        """Answer these methods, with sockets and certificate kept as they should be, for ever."""
        self._loop = asyncio.get_running_loop()
        self._methods = methods
        while True:
            self._wanted.clear()
            settings = self._state.view.config.channel
            lifetime = settings.certificate_lifetime_seconds
            pause = lifetime / LOOKS
            try:
                self._context = await self._certificate.keep(settings)
                # The one that we have may be of a time when lives were shorter.
                pause = min(pause, self._certificate.renewal_in(lifetime))
                self._listen(settings.port)
                self._problem = ""
            except PodwayError as error:
                if error.message != self._problem:
                    log.error("other nodes cannot ask this agent", problem=error.message, hint=error.hint)
                self._problem = error.message
                pause = min(pause, RETRY)
            await self._rest(pause)

    async def _rest(self, pause: float) -> None:
        """Wait so many seconds, or until a look is asked for or the clock is set, by which certificates go."""
        end, ahead = time.monotonic() + pause, time.time() - time.monotonic()
        while (left := end - time.monotonic()) > 0 and abs(time.time() - time.monotonic() - ahead) < CLOCK_STEP:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, CLOCK_LOOK)):
                    await self._wanted.wait()
                    return

    def close(self) -> None:
        """Answer no more, and end what connections there are."""
        for key in list(self._listeners):
            self._stop_listening(key)
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def _listen(self, port: int) -> None:
        """Listen at the node's addresses as they are now, and nowhere else. Raises AgentError."""
        wanted = {(address, port) for address in self._state.uplink.node_addresses}
        for key in self._listeners.keys() - wanted:
            self._stop_listening(key)
        for address, _ in wanted - self._listeners.keys():
            listener = socket.socket(Family.of(address).af, socket.SOCK_STREAM)
            try:
                listener.setblocking(False)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((str(address), port))
                listener.listen()
            except OSError as error:
                listener.close()
                raise AgentError(
                    f"cannot listen at {with_port(address, port)}: {error.strerror}",
                    hint="free the port, or set another: spec.channel.port of NetworkConfig/default",
                ) from error
            self._listeners[address, port] = listener
            self._loop.add_reader(listener, self._accept, listener)

    def _stop_listening(self, key: tuple[Address, int]) -> None:
        listener = self._listeners.pop(key)
        self._loop.remove_reader(listener)
        listener.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, (peer, *_) = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the peer went away again
        except OSError as error:  # no descriptor, no memory: whoever asks waits in the backlog
            self._refusals.note(f"somebody: {error.strerror}")
            return
        source, most = self._source(peer)
        problem = self._places.take(source, most)
        if problem:
            connection.close()
            self._refusals.note(f"{peer}: {problem}")
            return
        try:
            threading.Thread(
                target=self._serve, args=(connection, peer, source), name="channel", daemon=True
            ).start()
        except RuntimeError as error:  # no thread can be started
            connection.close()
            self._places.leave(source)
            self._refusals.note(f"{peer}: {error}")

    def _source(self, peer: str) -> tuple[Source, int]:
        """Return what a peer is counted by, and how many connections that may have."""
        address = ip_address(peer)
        if any(address in node.internal_addresses for node in self._state.view.nodes.values()):
            return address, MAX_OF_NODE
        return stranger(address), MAX_OF_STRANGER

    # What follows runs in the connection's thread.

    def _serve(self, connection: socket.socket, peer: str, source: Source) -> None:
        try:
            # Of a handshake and of a single read or write, this limits the whole (_PyDeadline in _ssl.c).
            connection.settimeout(HANDSHAKE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # see podway.channel.remote
            wrap = self._context.wrap_socket
            with connection, wrap(connection, server_side=True, do_handshake_on_connect=False) as secure:
                self._connections.add(secure)
                try:
                    if self._admit(secure, peer):
                        self._answer(secure)
                finally:
                    self._connections.discard(secure)
        except (OSError, CancelledError) as error:  # the peer went away or is too slow, or we are being stopped
            log.debug("channel connection ended", peer=peer, problem=str(error))
        except Exception:
            log.exception("channel connection failed", peer=peer)
        finally:
            self._places.leave(source)

    def _admit(self, secure: ssl.SSLSocket, peer: str) -> bool:
        try:
            secure.do_handshake()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise  # somebody only looked whether the port is open
        except ssl.SSLError as error:
            self._refusals.note(f"{peer} {tls.explain(error)}")
            _part(secure)
            return False
        return True

    def _answer(self, secure: ssl.SSLSocket) -> None:
        asker = tls.holder(secure)
        received = bytearray()
        while line := _next_line(secure, received):
            log.debug("asked", by=asker, request=line)
            answer = reply(line, self._methods, remote=True, operator=is_operator(asker))
            _send(secure, asyncio.run_coroutine_threadsafe(answer, self._loop).result(ANSWER))


def _next_line(secure: ssl.SSLSocket, received: bytearray) -> bytes:
    """Return the next whole line; nothing if the peer is done, or its line too long. Raises OSError."""
    deadline = time.monotonic() + EXCHANGE
    while (end := received.find(b"\n")) < 0:
        if len(received) > MAX_REQUEST:
            return b""
        secure.settimeout(_left(deadline))
        part = secure.recv(1 << 16)
        if not part:
            return b""
        received += part
    line = bytes(received[: end + 1])
    del received[: end + 1]
    return line


def _send(secure: ssl.SSLSocket, data: bytes) -> None:
    """Send an answer; raises OSError if it cannot be sent whole in time."""
    deadline, rest = time.monotonic() + EXCHANGE, memoryview(data)
    while rest:
        secure.settimeout(_left(deadline))
        rest = rest[secure.send(rest) :]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _part(secure: ssl.SSLSocket) -> None:
    """Close after the peer did: what it still sends would else reset the connection, and our alert be lost."""
    with socket.socket(fileno=secure.detach()) as connection, contextlib.suppress(OSError):
        deadline = time.monotonic() + 1.0
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_left(deadline))
        while connection.recv(4096):
            connection.settimeout(_left(deadline))
