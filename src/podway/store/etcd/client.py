"""Requests to etcd and watches of it, by its gateway: gRPC as JSON over HTTP, which every etcd since 3.4 has.

Why not gRPC itself: its Python library is a compiled megabyte with threads of its own, and the one asyncio client
of etcd made of it that is looked after (aetcd 1.0, 2026) knows one server, no account's token that ends, and takes
no watch up again; what would be left of it is the encoding of a dozen messages, which JSON is, too. aiohttp is
here already. What the gateway lacks, the names of clients' certificates as accounts and asking a watch how far it
is, is had otherwise: accounts have passwords, and a server that is silent is asked whether it lives.

A request is asked again where that does no harm: of another server if one cannot be reached or has no leader,
after a while if a server has too much to do, once more if it does not know our token (any more).
"""

import asyncio
import io
import logging
import random
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from podway.errors import StoreDamaged, StoreForbidden, StoreUnavailable
from podway.store.connections import Connections, Sockets, cut, plain_socket, transport_of, turn
from podway.store.etcd.access import Access
from podway.store.material import client_context

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 30.0
"""Seconds to wait for a whole answer, and for the beginning of a watch."""
SILENCE = 20.0
"""Seconds that a server may say nothing before it is asked whether it lives. Watches of quiet kinds are silent."""
ALIVE_TIMEOUT = 10.0
"""Seconds that it may take to say so. One without a leader takes seven."""
WATCH_SECONDS = (1200, 1800)
"""How long a watch stands: longer than a server takes to say how far it is (ten minutes, up to eleven)."""
PATIENCE = 20.0
"""Seconds that one who was told that there is too much to do comes back in all."""
BUSY_TRIES = 6
READ_AGAIN = 60.0
"""Seconds after which certificates' files are looked at again."""

# Codes of gRPC (google.rpc.Code).
INVALID_ARGUMENT, PERMISSION_DENIED, EXHAUSTED, PRECONDITION, OUT_OF_RANGE = 3, 7, 8, 9, 11
UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED = 14, 15, 16
_AWAY = frozenset({4, UNAVAILABLE})
"""DeadlineExceeded, Unavailable: another server may be better off."""

FULL_HINT = (
    "free it: `etcdctl compact REVISION`, `etcdctl defrag`, `etcdctl alarm disarm`; start etcd with "
    "--auto-compaction-retention=1h, and a larger --quota-backend-bytes if need be. Pods go on meanwhile"
)


class Refused(Exception):
    """etcd did not do what it was asked, for a reason that whoever asked has to judge."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Told(msgspec.Struct, frozen=True):
    """What the gateway says of a failure: `error` until etcd 3.5, `message` since, `code` always."""

    code: int = 2
    message: str = ""
    error: Any = None

    @property
    def words(self) -> str:
        return self.message or (self.error if isinstance(self.error, str) else "") or "it does not say why"


class _Token(msgspec.Struct, frozen=True):
    token: str = ""


class Client:
    """One user's way to an etcd. It belongs to the event loop in which it is used first."""

    def __init__(self, access: Access, sockets: Sockets = plain_socket) -> None:
        self._access = access
        self._servers = random.sample(access.servers, k=len(access.servers))
        self._connections = Connections(sockets, access.servers[0], idle=None)
        self._context: ssl.SSLContext | None = None
        self._marks: object = None
        self._looked = -READ_AGAIN
        self._token: str | None = None
        """The account's, None if it has to be asked for, empty if the server has no accounts."""
        self._authenticating = asyncio.Lock()
        self._heard: dict[str, float] = {}
        """When each server answered last."""
        self._asking_alive = asyncio.Lock()

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers, the one first that is asked first."""
        return tuple(self._servers)

    async def request(self, method: str, body: Mapping[str, Any], *, harmless: bool) -> bytes:
        """Ask for what etcd's API calls so (`kv/range`); return the answer's body.

        What is `harmless` is asked again of another server. Raises Refused, StoreUnavailable, StoreForbidden and
        StoreDamaged.
        """
        data, tries, waited, refusals = msgspec.json.encode(body), 0, 0.0, 0
        while True:
            server = self._servers[0]
            try:
                status, answer = await self._ask(server, method, data, await self._present())
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._connections.require_open()
                tries += 1
                self._turn(server)
                unasked = isinstance(error, aiohttp.ClientConnectorError)
                # A connection that was kept open may have been closed since: that says nothing of the server.
                most = len(self._servers) + isinstance(error, aiohttp.ServerDisconnectedError)
                if not (harmless or unasked) or tries >= most:
                    raise _unreachable(server, error, harmless=harmless or unasked) from error
                continue
            if status < 300:
                return answer
            told = _told(answer, status)
            if self._unknown_to(told) and refusals == 0:
                refusals, self._token = 1, None
                continue
            if told.code == EXHAUSTED and "too many requests" in told.words:
                tries += 1
                pause = random.uniform(0.5, 1.5)
                if tries < BUSY_TRIES and waited + pause < PATIENCE:
                    waited += pause
                    await asyncio.sleep(pause)
                    continue
            if told.code in _AWAY:
                tries += 1
                self._turn(server)
                if harmless and tries < len(self._servers):
                    continue
            raise self._judged(server, method, told)

    async def _ask(
        self, server: str, method: str, data: bytes, headers: Mapping[str, str], within: float | None = None
    ) -> tuple[int, bytes]:
        async with (
            asyncio.timeout(within or ANSWER_TIMEOUT),
            self._connections.session.post(
                URL(f"{server}/v3/{method}"), data=io.BytesIO(data), headers=headers, ssl=self._tls()
            ) as response,
        ):
            answer = await response.read()
        if response.status < 300:
            self._heard[server] = time.monotonic()
        return response.status, answer

    async def stream(self, method: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a stream until the server ends it, or it has stood long enough.

        Raises Refused, StoreUnavailable, StoreForbidden and StoreDamaged.
        """
        server, until = self._servers[0], time.monotonic() + random.uniform(*WATCH_SECONDS)
        try:
            response = await self._begin(server, method, msgspec.json.encode(body))
            transport = transport_of(response)
            try:
                rest = b""
                while chunk := await self._read(server, response, until):
                    *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
                    for line in lines:
                        if line:
                            yield line
            finally:
                cut(response, transport)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._connections.require_open()
            self._turn(server)
            raise _unreachable(server, error, harmless=True) from error
        self._connections.require_open()

    async def _begin(self, server: str, method: str, data: bytes) -> aiohttp.ClientResponse:
        for trial in range(2):
            # A server that has no leader is to end the watch, and not to be silent.
            headers = {**await self._present(), "Grpc-Metadata-hasleader": "true"}
            async with asyncio.timeout(ANSWER_TIMEOUT):
                response = await self._connections.session.post(
                    URL(f"{server}/v3/{method}"), data=io.BytesIO(data), headers=headers, ssl=self._tls()
                )
            if response.status < 300:
                return response
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    answer = await response.read()
            finally:
                cut(response, transport_of(response))
            told = _told(answer, response.status)
            if self._unknown_to(told) and trial == 0:
                self._token = None
                continue
            if told.code in _AWAY:
                self._turn(server)
            raise self._judged(server, method, told)
        raise AssertionError  # the second trial returns or raises

    async def _read(self, server: str, response: aiohttp.ClientResponse, until: float) -> bytes:
        """Return what comes next of a stream, nothing at its end; raise an error if the server is dead."""
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(SILENCE):
                    chunk = await response.content.readany()
            except TimeoutError:
                await self._require_alive(server)
            else:
                self._heard[server] = time.monotonic()
                return chunk
        return b""

    async def _require_alive(self, server: str) -> None:
        """Raise TimeoutError or StoreUnavailable unless a server answered lately, or does so now.

        It is asked for what only a server that has a leader can say.
        """
        async with self._asking_alive:  # one question serves all watches
            if time.monotonic() - self._heard.get(server, -SILENCE) < SILENCE:
                return
            question = msgspec.json.encode({"key": f"{self._access.prefix}/store".encode(), "limit": 1})
            status, answer = await self._ask(server, "kv/range", question, await self._present(), ALIVE_TIMEOUT)
            if status < 300:
                return
            told = _told(answer, status)
            if self._unknown_to(told):
                self._token = None  # it lives, and whoever asks next says who asks
            elif told.code in _AWAY:
                self._turn(server)
                raise self._judged(server, "kv/range", told)
            self._heard[server] = time.monotonic()

    # Who asks.

    def _unknown_to(self, told: _Told) -> bool:
        """Tell whether a server does not know (any more) who asks, and could be told."""
        if not self._access.user:
            return False
        return told.code == UNAUTHENTICATED or any(
            words in told.words for words in ("revision of auth store is old", "user name is empty")
        )

    async def _present(self) -> dict[str, str]:
        if not self._access.user:
            return {}
        async with self._authenticating:
            if self._token is None:
                self._token = await self._authenticate()
            return {"Authorization": self._token} if self._token else {}

    async def _authenticate(self) -> str:
        assert self._access.password is not None
        password = self._access.password.read().decode(errors="replace").strip("\r\n")
        data = msgspec.json.encode({"name": self._access.user, "password": password})
        for _ in self._access.servers:
            server = self._servers[0]
            try:
                status, answer = await self._ask(server, "auth/authenticate", data, {})
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._connections.require_open()
                self._turn(server)
                problem: Exception = _unreachable(server, error, harmless=True)
                continue
            if status < 300:
                return msgspec.json.decode(answer, type=_Token).token
            told = _told(answer, status)
            if told.code == PRECONDITION:
                log.warning("etcd %s has no accounts: who asks as %s is anybody", server, self._access.user)
                return ""
            if "CommonName" in told.words:
                raise self._judged(server, "auth/authenticate", told)
            if told.code not in _AWAY:
                raise StoreForbidden(
                    f"etcd {server} does not let {self._access.user} in: {told.words}",
                    hint=f"is the password in {self._access.password.path} right, and is there such an account "
                    "(`etcdctl user list`)?",
                )
            self._turn(server)
            problem = self._judged(server, "auth/authenticate", told)
        raise problem

    def _tls(self) -> ssl.SSLContext | bool:
        """Return the context for new connections. Raises StoreUnavailable."""
        access, now = self._access, time.monotonic()
        if not self._servers[0].startswith("https:"):
            return False
        if self._context is None or now - self._looked >= READ_AGAIN:
            files = (access.authorities, access.certificate, access.key)
            marks = tuple(one.mark if one is not None else None for one in files)
            if self._context is None or marks != self._marks:
                try:
                    self._context = client_context(*files)
                except (ssl.SSLError, ValueError) as error:
                    raise StoreUnavailable(
                        f"the certificates for etcd cannot be used: {error}",
                        hint="look at the files that ca, cert and key of the store's URL name",
                    ) from error
                self._marks = marks
            self._looked = now
        return self._context

    # What came of it.

    def _turn(self, server: str) -> None:
        turn(self._servers, server, "etcd")

    def _judged(self, server: str, method: str, told: _Told) -> Exception:
        words, user = told.words, self._access.user
        if told.code == UNAUTHENTICATED or "user name is empty" in words:
            return StoreForbidden(
                f"etcd {server} wants to know who asks: {words}",
                hint="name an account in the store's URL: ?user=NAME&password-file=FILE",
            )
        if told.code == PERMISSION_DENIED or "permission denied" in words:
            return StoreForbidden(
                f"etcd {server} forbids {user or 'it'} ({method}): {words}",
                hint="docs/store.md says which ranges of keys whose role has to allow",
            )
        if "CommonName" in words:
            return StoreForbidden(
                f"etcd {server} takes no certificate with a name from one who has an account: {words}",
                hint="give the client a certificate without a common name (CN); the account says who asks",
            )
        if told.code == EXHAUSTED and "space exceeded" in words:
            return StoreUnavailable(f"etcd {server} is full, and takes no change: {words}", hint=FULL_HINT)
        if told.code == EXHAUSTED and "too many requests" in words:
            return StoreUnavailable(f"etcd {server} has too much to do: {words}")
        if told.code == DATA_LOSS or "corrupt" in words:
            return StoreDamaged(
                f"etcd {server} is damaged: {words}",
                hint="replace this member, or restore a snapshot of the cluster",
            )
        if told.code in (INVALID_ARGUMENT, OUT_OF_RANGE):
            return Refused(told.code, words)
        return StoreUnavailable(f"etcd {server} failed: {words}")

    def judged_watch(self, reason: str) -> Exception:
        """Return the error that etcd's words are about a watch that it canceled."""
        code = PERMISSION_DENIED if "permission denied" in reason else 2
        return self._judged(self._servers[0], "watch", _Told(code, reason))

    async def close(self) -> None:
        """Close all connections. Watches end with StoreUnavailable."""
        await self._connections.close()


def _told(answer: bytes, status: int) -> _Told:
    try:
        return msgspec.json.decode(answer, type=_Told)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        words = answer[:200].decode(errors="replace").strip()
        if status == 404:
            words = f"404 {words}: is it an etcd, of 3.4 or newer, with --enable-grpc-gateway?"
        return _Told(2, words)


def _unreachable(server: str, error: BaseException, *, harmless: bool) -> StoreUnavailable:
    words = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    unsure = "" if harmless else "; what was to be written may have been"
    return StoreUnavailable(f"etcd {server} cannot be reached: {words}{unsure}")
