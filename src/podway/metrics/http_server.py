"""A small HTTP server for pages that are asked for, not sent to (RFC 9112, as far as that needs).

A library for HTTP takes 180 ms to import, and there are few pages. Each connection is for one request, short, and
one of few at a time, so that nobody can hold the loop that has pods to attach.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

import structlog

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 32
MAX_REQUEST = 16 * 1024
"""Bytes of a request's head."""
EXCHANGE = 5.0
"""Seconds for a whole exchange."""


class Page(NamedTuple):
    """An answer: its text and what that is, its status, and further headers."""

    text: str
    content: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = {}


Pages: TypeAlias = Callable[[str], Awaitable[Page]]
"""What is found at a path."""


class HttpServer:
    """Serves pages."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, *, family: int = socket.AF_UNSPEC) -> None:
        """Listen at an address, at all of a family if it is empty. Raises OSError if it cannot be listened at."""
        self._server = await asyncio.start_server(
            self._serve, host or None, port, family=family, limit=MAX_REQUEST
        )

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
            log.debug("a request by HTTP was broken off", problem=str(error))
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        if method not in (b"GET", b"HEAD"):
            return _response(Page("only GET and HEAD\n", status=HTTPStatus.METHOD_NOT_ALLOWED))
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("ascii", "replace")
        return _response(await self._pages(path), body=method == b"GET")


def _response(page: Page, *, body: bool = True) -> bytes:
    text = page.text.encode()
    head = (
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        f"Content-Type: {page.content}",
        f"Content-Length: {len(text)}",
        *(f"{name}: {value}" for name, value in page.headers.items()),
        "Connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + (text if body else b"")
