"""The relay: agents asked for commands that can reach the API server alone (podway.store.kubernetes.relay).

It is an HTTP server for one request (RFC 9112, as far as the API server's proxy needs it): `POST /ask` with a
token and a question, answered by the line that an agent answers with. Nobody is believed by where he comes from:
without a token of Podway's audience whose holder may ask this, nothing is asked, whoever reaches the port. The API
server does not look at the certificate of what it proxies to, so that is of the relay's own making.

Whoever reaches the port can cause work before it is known who he is. So one source has few places, those that
are no nodes have places of their own, few tokens are asked about at once, and who had none that is good keeps his
place for a while. API servers are on nodes, or are few.
"""

import asyncio
import hashlib
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import msgspec
import structlog

from podway.api.addresses import Address
from podway.api.fields import is_number
from podway.api.kinds.cluster_authority import AUTHORITY, ClusterAuthority
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.channel.places import Places, Refusals, Source, stranger
from podway.channel.remote import RemoteAgents
from podway.controller.following import Facts
from podway.errors import AgentError, NotFound, PodwayError
from podway.identity import certificates, keeper, tls
from podway.identity.orders import AuthorityOrder
from podway.store.kubernetes.relay import HEADER, NOT_RELAYED, Question, holder, may_ask
from podway.store.kubernetes.store import KubernetesStore

log = structlog.get_logger(__name__)

MAX_OF_NODES, MAX_OF_NODE = 64, 48
"""How many connections nodes of the cluster may have, and one of them: three commands ask as many at once."""
MAX_OF_STRANGERS, MAX_OF_STRANGER = 64, 16
"""The same for other addresses (of IPv6, a /64): pods, and API servers that are on no node until they have brought
a token that is good. One command asks as much as one stranger may."""
PROVEN, MOST_PROVEN = 600.0, 64
"""Seconds for which an address that brought a good token has the places of a node; how many such there may be."""
MAX_HEAD, MAX_BODY = 32 * 1024, 256 * 1024
"""Bytes of a request's head and body."""
READING = 5.0
"""Seconds in which a handshake must be done, a request be there, an answer be taken."""
REVIEWS = 4
"""Tokens of which the API server is asked at once whose they are."""
MOST_HOLDERS = 1024
"""Tokens of which it is remembered whose they are."""
REFUSED = 1.0
"""Seconds that who has no token that is good waits for his answer, in his place: so often can he try another."""
LONGEST = 60.0
"""Seconds that an agent may take at most, whatever is asked for."""
KNOWN = 30.0
"""Seconds for which it is not asked again whose a token is, and who may sign."""
NODES_KNOWN = 5.0
"""Seconds for which nodes' addresses are not gathered again."""
CERTIFICATE_LIFETIME = 365 * 24 * 3600


class _Line(msgspec.Struct, frozen=True):
    error: str
    hint: str = ""


class Relay:
    """Answers whoever may ask."""

    _context: ssl.SSLContext

    def __init__(self, store: KubernetesStore, facts: Callable[[], Facts]) -> None:
        self._store = store
        self._facts = facts
        self._nodes, self._strangers = Places(MAX_OF_NODES), Places(MAX_OF_STRANGERS)
        self._node_addresses: tuple[float, frozenset[Address]] = (-NODES_KNOWN, frozenset())
        self._proven: dict[Address, float] = {}
        """Addresses that brought a good token, such as a managed API server's, and until when that counts."""
        self._refusals = Refusals(
            lambda what, count: log.warning("refused a connection", peer=what, since_the_last_line=count)
        )
        self._server: asyncio.Server | None = None
        self._reviewing = asyncio.Semaphore(REVIEWS)
        self._holders: dict[str, tuple[float, dict[str, Any]]] = {}
        """Whose tokens are, and until when that is believed: what ends first stands first."""
        self._authority: tuple[float, ClusterAuthority] | None = None
        self._agents: tuple[tuple[Any, ...], RemoteAgents] | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen at an address, at all if it is empty. Raises AgentError if it cannot be listened at."""
        made = certificates.fulfil(AuthorityOrder("relay", time.time(), CERTIFICATE_LIFETIME))
        self._context = tls.own_context(made)
        try:
            self._server = await asyncio.start_server(
                self._serve,
                host or None,
                port,
                limit=MAX_HEAD,
                reuse_port=True,  # two controllers may be on one node, and are while they are upgraded
            )
        except OSError as error:
            raise AgentError(
                f"questions cannot be relayed at {host or 'all addresses'} port {port}: {error.strerror or error}",
                hint="free the port, or name another: --relay ADDRESS:PORT",
            ) from error

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        if peer is None:  # it went away again
            writer.close()
            return
        places, source, most = self._place(ip_address(peer[0]))
        if problem := places.take(source, most):
            writer.close()
            self._refusals.note(f"{peer[0]}: {problem}")
            return
        try:
            async with asyncio.timeout(READING):
                await writer.start_tls(self._context)  # here, where handshakes have places, too
                status, token, body = await _request(reader)
            line = (
                await self._answer(ip_address(peer[0]), token, body) if status.startswith("200") else _line(status)
            )
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(line)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + line)
            async with asyncio.timeout(READING):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a question was broken off", problem=str(error))
        except Exception:
            log.exception("a question could not be answered", peer=peer[0])
        finally:
            writer.transport.abort()
            places.leave(source)

    def _place(self, peer: Address) -> tuple[Places, Source, int]:
        """Return among whom a peer has its place, what it is counted by, and how many that may have."""
        now = time.monotonic()
        if now - self._node_addresses[0] >= NODES_KNOWN:
            found = (address for node in self._facts().of(Node) for address in node.internal_addresses)
            self._node_addresses = (now, frozenset(found))
        if peer in self._node_addresses[1] or self._proven.get(peer, 0.0) > now:
            return self._nodes, peer, MAX_OF_NODE
        return self._strangers, stranger(peer), MAX_OF_STRANGER

    def _prove(self, peer: Address) -> None:
        self._proven.pop(peer, None)
        while len(self._proven) >= MOST_PROVEN:
            del self._proven[next(iter(self._proven))]  # whoever brought one longest ago
        self._proven[peer] = time.monotonic() + PROVEN

    async def _answer(self, peer: Address, token: str, body: bytes) -> bytes:
        try:
            question = msgspec.json.decode(body, type=Question)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _line(f"not a question: {error}")
        try:
            user = await self._holder(token)
            if user is None:
                self._refusals.note(f"{peer} has no token for Podway that is good")
                await asyncio.sleep(REFUSED)
                return _refusal("nobody", question)
            self._prove(peer)
            if question.subresource in NOT_RELAYED:
                return _line(
                    f"`{question.method}` is not asked through the API server",
                    "agents are asked for it directly, by who may read the keys of the cluster's authorities",
                )
            if not await may_ask(self._store, user, question):
                who = user.get("username", "")
                log.warning("a question is refused", user=who, node=question.node, method=question.method)
                return _refusal(who, question)
            log.info("asked", user=user["username"], node=question.node, method=question.method)
            agents = await self._remote()
            seconds = min(max(question.timeout, 0.1), LONGEST)
            result = await asyncio.to_thread(
                lambda: agents.call(question.node, question.method, timeout=seconds, **question.params)
            )
        except PodwayError as error:
            return _line(error.message, error.hint)
        except TypeError as error:  # a parameter by the name of one of ours
            return _line(f"not a question: {error}")
        return msgspec.json.encode({"result": result}) + b"\n"

    async def _holder(self, token: str) -> dict[str, Any] | None:
        """Return whose a token is, by what the API server said within the last seconds."""
        if not token:
            return None
        mark = hashlib.sha256(token.encode()).hexdigest()
        known = self._known(mark)
        if known is None:
            async with self._reviewing:
                known = self._known(mark)  # who has the same token may have waited less
                if known is None:
                    known = await holder(self._store, token)
                    if known is not None:  # of others there may be as many as somebody likes
                        self._holders[mark] = (time.monotonic() + KNOWN, known)
        return known

    def _known(self, mark: str) -> dict[str, Any] | None:
        now = time.monotonic()
        while self._holders:
            oldest, (end, _) = next(iter(self._holders.items()))
            if end > now and len(self._holders) <= MOST_HOLDERS:
                break
            del self._holders[oldest]
        end, user = self._holders.get(mark, (0.0, None))
        return user if end > now else None

    async def _remote(self) -> RemoteAgents:
        """Return the agents as they can be asked now."""
        now = time.monotonic()
        if self._authority is None or now - self._authority[0] > KNOWN:
            try:
                stored = await self._store.get(ClusterAuthority, AUTHORITY)
            except NotFound as error:
                raise AgentError(
                    "this cluster has no certificates yet", hint="the controller makes them: wait a moment"
                ) from error
            spec = await keeper.operators(self._store, stored)
            self._authority = (now, msgspec.structs.replace(stored, spec=spec))
        facts = self._facts()
        known = (self._authority[1], *facts.of(Node), *facts.of(NetworkConfig))
        if self._agents is None or self._agents[0] != known:
            self._agents = (known, RemoteAgents(known))
        return self._agents[1]


async def _request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    """Read a request; return the status to answer with, the token and the body.

    Raises TimeoutError's kin of asyncio for what is no whole request.
    """
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length = headers.get("content-length", "0")
    if method != "POST" or rest.partition(" ")[0].partition("?")[0] != "/ask":
        return "404 Not Found", "", b""
    if not is_number(length) or int(length) > MAX_BODY:
        return "413 Content Too Large", "", b""
    return "200 OK", headers.get(HEADER.lower(), ""), await reader.readexactly(int(length))


def _line(problem: str, hint: str = "") -> bytes:
    return msgspec.json.encode(_Line(problem, hint)) + b"\n"


def _refusal(who: str, question: Question) -> bytes:
    return _line(
        f"{who} may not ask the agent of {question.node} for `{question.method}`",
        f"RBAC has to allow it: get agents/{question.subresource} in the group podway.io",
    )
