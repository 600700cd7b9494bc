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
from collections.abc import Mapping
from concurrent.futures import CancelledError
from typing import Any

import structlog

from podway.agent.admin import Method, reply
from podway.agent.certificate import NodeCertificate
from podway.agent.state import NodeState
from podway.api.addresses import Address, Family
from podway.errors import AgentError, PodwayError
from podway.identity import tls
from podway.store.base import Store

log = structlog.get_logger(__name__)

HANDSHAKE = 5.0
"""Seconds that a peer may take for each step of the handshake."""
IDLE = 10.0
"""Seconds that a peer may be silent. Short, so that nobody goes on with a certificate that has ended."""
ANSWER = 120.0
"""Seconds that an answer may take."""
MAX_CONNECTIONS = 32
MAX_REQUEST = 1 << 20
"""Bytes of a request's line."""
RETRY = 2.0
"""Seconds until what failed is tried again."""
LOOKS = 12
"""How often in a certificate's life to look whether certificates or authorities are due."""


class Channel:
    """The agent's place where other machines ask, at each of the node's addresses."""

    _loop: asyncio.AbstractEventLoop
    _methods: Mapping[str, Method]
    _context: ssl.SSLContext

    def __init__(self, store: Store, state: NodeState) -> None:
        self._state = state
        self._certificate = NodeCertificate(store, state.node)
        self._wanted = asyncio.Event()
        self._listeners: dict[tuple[Address, int], socket.socket] = {}
        self._connections: set[socket.socket] = set()
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._problem = ""
        self._refused = 0
        self._last_refusal = ""

    def status(self) -> dict[str, Any]:
        """Return the addresses, the certificate, and what is wrong; plain JSON values."""
        credentials = self._certificate.credentials
        return {
            "addresses": [_endpoint(address, port) for address, port in self._listeners],
            "problem": self._problem,
            "cluster": credentials.cluster if credentials else "",
            "certificate": credentials.certificate.not_after.isoformat() if credentials else "",
            "refused": self._refused,
            "last_refusal": self._last_refusal,
        }

    def soon(self) -> None:
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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

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
                    f"cannot listen at {_endpoint(address, port)}: {error.strerror}",
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
        if not self._slots.acquire(blocking=False):
            connection.close()
            self._note_refusal(f"{peer}: {MAX_CONNECTIONS} others are being served")
            return
        threading.Thread(target=self._serve, args=(connection, peer), name="channel", daemon=True).start()

    # What follows runs in the connection's thread.

    def _serve(self, connection: socket.socket, peer: str) -> None:
        try:
            connection.settimeout(HANDSHAKE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # see podway.agent.remote
            wrap = self._context.wrap_socket
            with connection, wrap(connection, server_side=True, do_handshake_on_connect=False) as secure:
                self._connections.add(secure)
                try:
                    if self._admit(secure, peer):
                        self._answer(secure)
                finally:
                    self._connections.discard(secure)
        except (OSError, CancelledError) as error:  # the peer went away, or we are being stopped
            log.debug("channel connection ended", peer=peer, problem=str(error))
        finally:
            self._slots.release()

    def _admit(self, secure: ssl.SSLSocket, peer: str) -> bool:
        try:
            secure.do_handshake()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise  # somebody only looked whether the port is open
        except ssl.SSLError as error:
            self._note_refusal(f"{peer} {tls.explain(error)}")
            _part(secure)
            return False
        secure.settimeout(IDLE)
        return True

    def _answer(self, secure: ssl.SSLSocket) -> None:
        asker = tls.holder(secure)
        with secure.makefile("rb") as lines:
            while (line := lines.readline(MAX_REQUEST)).endswith(b"\n"):
                log.debug("asked", by=asker, request=line)
                answer = reply(line, self._methods, remote=True)
                secure.sendall(asyncio.run_coroutine_threadsafe(answer, self._loop).result(ANSWER))

    def _note_refusal(self, what: str) -> None:
        self._refused += 1
        if what != self._last_refusal:  # a peer that tries again and again is told of once
            log.warning("refused a connection", peer=what)
        self._last_refusal = what


def _part(secure: ssl.SSLSocket) -> None:
    """Close after the peer did: what it still sends would else reset the connection, and our alert be lost."""
    with socket.socket(fileno=secure.detach()) as connection, contextlib.suppress(OSError):
        connection.settimeout(1.0)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def _endpoint(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
