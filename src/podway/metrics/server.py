"""A small HTTP server that answers `GET /metrics`, and `GET /healthz` with `ok` (RFC 9112, as far as that needs).

A library for HTTP takes 180 ms to import, and there is one page. Each connection is for one request, short, and
one of few at a time, so that nobody can hold the loop that has pods to attach.
"""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import structlog

from podway.errors import AgentError, InvalidArgument
from podway.metrics.exposition import CONTENT_TYPE

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 8
MAX_REQUEST = 16 * 1024
"""Bytes of a request's head."""
EXCHANGE = 5.0
"""Seconds for a whole exchange."""

Collect = Callable[[], Awaitable[str]]


class MetricsServer:
    """Serves what `collect` returns."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen at an address, at all if it is empty. Raises AgentError if it cannot be listened at."""
        try:
            self._server = await asyncio.start_server(self._serve, host or None, port, limit=MAX_REQUEST)
        except OSError as error:
            raise AgentError(
                f"metrics cannot be served at {host or 'all addresses'} port {port}: {error.strerror or error}",
                hint="free the port, or name another: --metrics ADDRESS:PORT",
            ) from error

    @property
    def port(self) -> int:
        """The port that is listened at."""
        assert self._server is not None
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(EXCHANGE):
                    writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a request for metrics was broken off", problem=str(error))
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return _response("405 Method Not Allowed", "only GET\n")
        match path:
            case b"/metrics":
                return _response("200 OK", await self._collect(), CONTENT_TYPE)
            case b"/healthz":
                return _response("200 OK", "ok\n")
        return _response("404 Not Found", "there is /metrics, and /healthz\n")


def _response(status: str, text: str, content: str = "text/plain; charset=utf-8") -> bytes:
    body = text.encode()
    head = (f"HTTP/1.1 {status}", f"Content-Type: {content}", f"Content-Length: {len(body)}", "Connection: close")
    return "\r\n".join((*head, "", "")).encode() + body


def parse_endpoint(text: str, *, any_port: bool = False) -> tuple[str, int]:
    """Return address and port of `ADDRESS:PORT`, `[ADDRESS]:PORT`, or `:PORT`, which has an empty address: all.

    Port 0, any that is free, is one with `any_port` only. Raises InvalidArgument.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        known = not host or bool(ip_address(host))
    except ValueError:
        known = False
    if not known or not colon or not port.isdecimal() or not (0 if any_port else 1) <= int(port) < 65536:
        raise InvalidArgument(
            f"{text!r} is no address and port", hint="write 127.0.0.1:9180, [::1]:9180, or :9180 for all addresses"
        )
    return host, int(port)
