"""Metrics served: `GET /metrics`, and `GET /healthz` with `ok`."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from ipaddress import ip_address

from podway.errors import AgentError, InvalidArgument
from podway.metrics.exposition import CONTENT_TYPE
from podway.metrics.http_server import HttpServer, Page

Collect = Callable[[], Awaitable[str]]


class MetricsServer:
    """Serves what `collect` returns."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect
        self._server = HttpServer(self._page)

    async def start(self, host: str, port: int) -> None:
        """Listen at an address, at all if it is empty. Raises AgentError if it cannot be listened at."""
        try:
            await self._server.start(host, port)
        except OSError as error:
            raise AgentError(
                f"metrics cannot be served at {host or 'all addresses'} port {port}: {error.strerror or error}",
                hint="free the port, or name another: --metrics ADDRESS:PORT",
            ) from error

    @property
    def port(self) -> int:
        """The port that is listened at."""
        return self._server.port

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    async def _page(self, path: str) -> Page:
        match path:
            case "/metrics":
                return Page(await self._collect(), CONTENT_TYPE)
            case "/healthz":
                return Page("ok\n")
        return Page("there is /metrics, and /healthz\n", status=HTTPStatus.NOT_FOUND)


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
