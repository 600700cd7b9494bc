"""Requests to a Kubernetes API and streams of it: over any of its servers, as whoever we are now.

A request is asked again where that does no harm: of another server if one cannot be reached, after a while if a
server has too much to do (429, with Retry-After), once more if it does not believe who we are (401): tokens end.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from podway.errors import StoreForbidden, StoreUnavailable
from podway.store.connections import Connections, Sockets, cut, plain_socket, transport_of, turn
from podway.store.kubernetes.access import Access, Identity

ANSWER_TIMEOUT = 30.0
"""Seconds to wait for a whole answer, and for the beginning of a stream."""
IDLE_TIMEOUT = 150.0
"""Seconds that a stream may be silent: a server writes a bookmark into it every minute."""
PATIENCE = 20.0
"""Seconds that one who was told to come back later comes back in all."""
BUSY_TRIES = 6

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises of words that are no API server's: cut off, or a proxy's page."""

MERGE_PATCH = "application/merge-patch+json"


T = TypeVar("T")


class StatusDetails(msgspec.Struct, rename="camel", frozen=True):
    """What a Status is about."""

    name: str = ""
    kind: str = ""
    causes: tuple[dict[str, Any], ...] = ()
    retry_after_seconds: int = 0


class Status(msgspec.Struct, rename="camel", frozen=True):
    """What an API server says where it does not do what it was asked (metav1.Status)."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails = StatusDetails()


class Refused(Exception):
    """An API server did not do what it was asked, for a reason that whoever asked has to judge."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.code} {status.reason}: {status.message}")
        self.status = status


class SlowAnswer(TimeoutError):
    """An answer had begun, and was not whole in time."""

    def __str__(self) -> str:
        return f"its answer was not whole after {ANSWER_TIMEOUT:g} s"


class Client:
    """One user's way to a Kubernetes API. It belongs to the event loop in which it is used first."""

    def __init__(self, access: Access, sockets: Sockets = plain_socket) -> None:
        self._access = access
        self._identity = Identity(access)
        self._servers = list(access.servers)
        self._connections = Connections(sockets, access.servers[0], idle=IDLE_TIMEOUT)
        self._losses = 0

    @property
    def generation(self) -> int:
        """A number that grows whenever whoever answers next may be another server than before.

        One was lost, or ended a stream, or was connected to: a connection that ended while nobody used it is
        replaced without a word.
        """
        return self._losses + self._connections.made

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers, the one first that is asked first."""
        return tuple(self._servers)

    @property
    def in_cluster(self) -> bool:
        """Whether the server that was given is the Service `kubernetes`, behind which others are."""
        return self._access.in_cluster

    def learn(self, servers: tuple[str, ...]) -> None:
        """Ask these servers from now on, and the ones that were given if none of them answers."""
        current = self._servers[0]
        others = random.sample([one for one in servers if one != current], k=len(set(servers) - {current}))
        first = [current] if current in servers else []
        self._servers = [*first, *others, *(one for one in self._access.servers if one not in servers)]

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content: str = "application/json",
        more: Mapping[str, str] | None = None,
        divisible: bool = False,
    ) -> bytes:
        """Ask, with `more` headers; return the answer's body. Raises Refused, StoreUnavailable, StoreForbidden.

        Of what is `divisible` less can be asked for: where an answer had begun and was too slow, no other server
        is asked for as much, and StoreUnavailable has SlowAnswer for a cause at once.
        """
        headers = {**({"Content-Type": content} if body is not None else {}), **(more or {})}
        tries, waited, refusals = 0, 0.0, 0
        while True:
            server = self._servers[0]
            try:
                answer, code, after = await self._ask(server, method, path, query, body, headers)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._connections.require_open()
                if divisible and isinstance(error, SlowAnswer):
                    raise _unreachable(server, error) from error
                self._losses += 1
                tries += 1
                harmless = method == "GET" or isinstance(error, aiohttp.ClientConnectorError)
                self._turn(server)
                if not harmless or tries >= len(self._servers):
                    raise _unreachable(server, error) from error
                continue
            if code < 300:
                return answer
            if code == 401 and refusals == 0:
                refusals += 1
                self._identity.refused()
                continue
            if code == 429 or (code == 503 and after is not None):
                tries += 1
                pause = (after or 1.0) * random.uniform(1.0, 1.5)
                if tries >= BUSY_TRIES or waited + pause > PATIENCE:
                    raise StoreUnavailable(
                        f"the API server {server} has too much to do: {_status(answer).message}"
                    )
                waited += pause
                await asyncio.sleep(pause)
                continue
            if code >= 500 and method == "GET" and tries + 1 < len(self._servers):
                tries += 1
                self._turn(server)
                continue
            raise _judged(server, method, path, code, _status(answer))

    async def _ask(
        self,
        server: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> tuple[bytes, int, float | None]:
        arguments = await self._arguments(headers)
        session = self._connections.session
        begun = False
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT),
                session.request(method, URL(server + path), params=query, data=body, **arguments) as response,
            ):
                begun = True
                return await response.read(), response.status, _after(response)
        except TimeoutError as error:
            if begun:
                raise SlowAnswer from error
            raise

    async def stream(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """Yield an empty line once a stream stands, then its lines, until the server ends it.

        Raises Refused, StoreUnavailable and StoreForbidden.
        """
        server = self._servers[0]
        try:
            response = await self._begin(server, path, query)
            transport = transport_of(response)
            try:
                yield b""
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
                    for line in lines:
                        if line:
                            yield line
            finally:
                cut(response, transport)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._connections.require_open()
            self._losses += 1
            self._turn(server)
            raise _unreachable(server, error) from error
        self._connections.require_open()
        self._losses += 1

    async def _begin(self, server: str, path: str, query: Mapping[str, str]) -> aiohttp.ClientResponse:
        for trial in range(2):
            arguments = await self._arguments({})
            async with asyncio.timeout(ANSWER_TIMEOUT):
                response = await self._connections.session.get(URL(server + path), params=query, **arguments)
            if response.status < 300:
                return response
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    answer = await response.read()
            finally:
                cut(response, transport_of(response))
            if response.status == 401 and trial == 0:
                self._identity.refused()
                continue
            if response.status == 429:
                after = response.headers.get("Retry-After", "")
                await asyncio.sleep(
                    min(PATIENCE, float(after) if after.isdecimal() else 1.0) * random.uniform(1, 1.5)
                )
            raise _judged(server, "WATCH", path, response.status, _status(answer))
        raise AssertionError  # the second trial returns or raises

    async def _arguments(self, headers: Mapping[str, str]) -> dict[str, Any]:
        who, context = await self._identity.present()
        arguments: dict[str, Any] = {"headers": {**who, **headers}, "ssl": context}
        if self._access.server_name:
            arguments["server_hostname"] = self._access.server_name
        return arguments

    def _turn(self, server: str) -> None:
        turn(self._servers, server, "API server")

    async def close(self) -> None:
        """Close all connections. Streams end with StoreUnavailable."""
        await self._connections.close()


def decoded(decoder: "msgspec.json.Decoder[T]", answer: bytes) -> T:
    """Return what an answer says. Raises StoreUnavailable where it is none of an API server: cut off, say."""
    try:
        return decoder.decode(answer)
    except UNREADABLE as error:
        raise StoreUnavailable(f"the API server's answer cannot be read: {error}") from error


def _after(response: aiohttp.ClientResponse) -> float | None:
    """Return after how many seconds a server wants to be asked again, if it says so."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _status(body: bytes) -> Status:
    try:
        return msgspec.json.decode(body, type=Status)
    except UNREADABLE:
        return Status(message=body[:200].decode(errors="replace").strip())


def _unreachable(server: str, error: BaseException) -> StoreUnavailable:
    words = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    off = "certificate is not yet valid" in words or "certificate has expired" in words
    hint = "is the clock right, here and where the certificate was made?" if off else ""
    return StoreUnavailable(f"the API server {server} cannot be reached: {words}", hint=hint)


_FULL = "database space exceeded"
"""What etcd says to everyone who writes, once it has reached its quota (api/v3rpc/rpctypes/error.go)."""
_NO_ROOM = (
    "etcd is full: compact and defragment it, then `etcdctl alarm disarm`; until then nothing can be written"
)


def _judged(server: str, method: str, path: str, code: int, status: Status) -> Exception:
    words = status.message or status.reason or "it does not say why"
    if code == 401:
        return StoreForbidden(
            f"the API server {server} does not believe who asks (401): {words}",
            hint="is the token or certificate still good, and is the clock right?",
        )
    if code == 403:
        return StoreForbidden(
            f"the API server {server} forbids it: {words}",
            hint=f"RBAC has to allow that ({method} {path})",
        )
    if code >= 500:
        return StoreUnavailable(
            f"the API server {server} failed ({code}): {words}", hint=_NO_ROOM if _FULL in words else ""
        )
    return Refused(msgspec.structs.replace(status, code=code))
