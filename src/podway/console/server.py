"""The console's HTTP server: its pages, and an API of JSON that only reads (docs/console.md)."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from operator import is_not
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import structlog
from aiohttp import web

from podway import __version__
from podway.api.columns import Cluster
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource, of_kind, subject
from podway.channel.places import Places, Source, stranger
from podway.console.feed import Feeds
from podway.console.guard import HEADER, HEADERS, Handler, guarding, is_meant, problem
from podway.console.limits import AT_ONCE, AT_ONCE_EACH, STREAMS, STREAMS_EACH
from podway.console.network import SMALL, History, Network, ShownNode, network, sessions
from podway.console.policies import policies
from podway.console.services import services
from podway.console.sources import Fresh, Kept, Question, Sources
from podway.console.talk import talk
from podway.errors import AgentError, InvalidInput, NotFound, PodwayError
from podway.flows.heard import Heard, Summed
from podway.flows.reasons import names as reasons
from podway.flows.reasons import words_of

log = structlog.get_logger(__name__)

ASSETS = Path(__file__).parent / "assets"
"""What the browser gets: built of console/ by `./dev console`, and part of the tree."""

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

PAGES = ("/", "/flows", "/trace", "/policies", "/services", "/doctor", "/health", "/traffic")
"""Addresses of views: all are the one page, which shows the view of its address."""

AGAIN = 5
"""Seconds after which who was refused may try again."""
FEEDS = 16
"""Different questions that may be followed."""
TRACES = 2
"""Traces that run together."""
THREADS = 12
NAMED = 20
"""Names in one answer to what somebody begins to type."""
WRITE = 30.0
"""Seconds that a browser may take nothing of what it follows."""

PROBES = ("trace", "doctor")
"""Methods that send packets: doctor measures paths (podway.bgp.probe)."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_BUSY = "the console is busy"


class Asset(NamedTuple):
    """A file that the browser gets."""

    body: bytes
    type: str
    tag: str


def read_assets(folder: Path = ASSETS) -> dict[str, Asset]:
    """Return the built files by the paths at which they are served."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in TYPES:
            body = path.read_bytes()
            found[f"/{path.name}"] = Asset(body, TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:24]}"')
    return found


class Console:
    """Answers a browser, from `sources`; `hosts` are names by which it may be asked besides addresses.

    `requests_each` and `streams_each` are places of one client: all who come by way of one proxy are one.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        hosts: Collection[str] = (),
        requests_each: int = AT_ONCE_EACH,
        streams_each: int = STREAMS_EACH,
    ) -> None:
        self._sources = sources
        self._threads = ThreadPoolExecutor(THREADS, "console")
        self._hosts = tuple(hosts)
        self._requests_each, self._streams_each = requests_each, streams_each
        self._assets = read_assets()
        self._history = History()
        self._objects = Kept(self._threads, sources.objects, age=3)
        self._doubts = Kept(self._threads, sources.doubts, age=3)
        self._status = Kept(self._threads, sources.status, age=5)
        self._diagnosis = Kept(self._threads, sources.diagnosis, age=20)
        self._routes = Kept(self._threads, lambda: sources.routes(()), age=10)
        self._sums: dict[bytes, Kept[Summed]] = {}
        self._drawing = asyncio.Lock()
        self._drawn: tuple[tuple[Any, ...], Network] | None = None
        """The latest map, and what it was made of."""
        self._tracing = asyncio.Semaphore(TRACES)
        self._working = Places(AT_ONCE)
        self._streams = Places(STREAMS)
        self._feeds = Feeds(sources, self._threads, FEEDS)

    def application(self) -> web.Application:
        """Return the application, for aiohttp to run."""
        app = web.Application(middlewares=[guarding(self._hosts)], client_max_size=0)
        for path in PAGES:
            app.router.add_get(path, self._page)
        for path in self._assets:
            app.router.add_get(path, self._asset)
        for path, handler in self._methods.items():
            app.router.add_get(f"/api/v1/{path}", self._api(handler, probes=path in PROBES))
        app.router.add_get("/api/v1/flows/live", self._live)
        app.on_cleanup.append(self._close)
        return app

    @property
    def _methods(self) -> Mapping[str, Callable[[web.Request], Awaitable[Any]]]:
        return {
            "about": self._about,
            "network": self._network,
            "nodes/{name}": self._node,
            "talk": self._talk,
            "flows": self._flows,
            "flows/sums": self._flow_sums,
            "policies": self._policies,
            "services": self._services,
            "doctor": self._doctor,
            "trace": self._trace,
            "names": self._names,
        }

    async def _close(self, _: web.Application) -> None:
        await self._feeds.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Pages.

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return self._send(request, self._assets["/index.html"])

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        return self._send(request, self._assets[request.path])

    def _send(self, request: web.Request, asset: Asset) -> web.StreamResponse:
        head = {"ETag": asset.tag, "Cache-Control": "no-cache", "Content-Type": asset.type}
        if request.headers.get("If-None-Match") == asset.tag:
            return web.Response(status=304, headers=head)
        response = web.Response(body=asset.body, headers=head)
        response.enable_compression()
        return response

    # The API.

    def _api(self, method: Callable[[web.Request], Awaitable[Any]], *, probes: bool = False) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if probes and not is_meant(request):
                return problem(403, "another site may not send probes", f"send a header with it: {HEADER}: 1")
            client = _client(request)
            if refusal := self._working.take(client, self._requests_each):
                return _busy(refusal)
            head = {"Cache-Control": "no-store"}
            try:
                answer = await method(request)
                if isinstance(answer, Dated):
                    head |= answer.head
                    if request.headers.get("If-None-Match") == answer.tag:
                        return web.Response(status=304, headers=head)
                    body = answer.body
                else:
                    body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
            except InvalidInput as error:
                return problem(400, error.message, error.hint)
            except NotFound as error:
                return problem(404, error.message, error.hint)
            except PodwayError as error:
                return problem(502, error.message, error.hint)
            finally:
                self._working.leave(client)
            response = web.Response(body=body, content_type="application/json", headers=head)
            response.enable_compression()
            return response

        return handle

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _about(self, request: web.Request) -> Any:
        return {
            "cluster": self._sources.cluster,
            "version": __version__,
            "now": time.time(),
            "reasons": {name: words_of(name) for name in reasons()},
        }

    async def _network(self, request: web.Request) -> Any:
        found, status = await self._map()
        self._history.note(found.nodes, status.at)
        latest = [{"node": name, **msgspec.to_builtins(one)} for name, one in self._history.latest]
        return _dated(status, {**msgspec.structs.asdict(found), "changes": latest}, rename=True)

    async def _map(self) -> tuple[Network, Fresh[Mapping[str, Any]]]:
        objects, doubts, status = await asyncio.gather(
            self._objects.get(), self._doubts.get(), self._status_or_nothing()
        )
        cluster = Cluster(objects.value.items, time.time(), lambda: doubts.value)
        routes: Mapping[str, Any] = _NOTHING
        if len(cluster.of(Node)) <= SMALL and status.value:
            routes = (await self._routes.get()).value
        made_of = (objects.value, doubts.value, status.value, routes)
        async with self._drawing:  # whoever looks meanwhile gets the same: it takes long of thousands of nodes
            if self._drawn is None or any(map(is_not, self._drawn[0], made_of)):
                rejected = tuple(f"{subject(one.key)}: {one.problem}" for one in objects.value.rejected)
                self._drawn = made_of, await self._in_thread(network, cluster, status.value, routes, rejected)
            found = self._drawn[1]
        return found, status._replace(problem=status.problem or objects.problem)

    async def _status_or_nothing(self) -> Fresh[Mapping[str, Any]]:
        """Return what agents say; nothing, and why, where none can be asked: objects are shown all the same."""
        try:
            return await self._status.get()
        except PodwayError as error:
            return Fresh(_NOTHING, time.time(), error.message)

    async def _node(self, request: web.Request) -> Any:
        name = request.match_info["name"]
        found, status = await self._map()
        node: ShownNode | None = next((one for one in found.nodes if one.name == name), None)
        if node is None:
            raise NotFound(f"there is no node {name!r}", hint="it may have been removed")
        answers = await self._in_thread(self._sources.routes, (name,)) if name in status.value else {}
        routes = answers.get(name, ())
        silent = isinstance(routes, AgentError)
        said = {
            "node": node,
            "sessions": list(sessions(name, status.value.get(name))),
            "routes": [] if silent else list(routes),
            "routesProblem": routes.message if silent else "",
            "history": self._history.of(name),
            "flows": status.value.get(name, {}).get("flows"),
        }
        return _dated(status, said)

    async def _policies(self, request: web.Request) -> Any:
        objects = await self._objects.get()
        return _dated(objects, {"policies": await self._in_thread(policies, objects.value.items)})

    async def _services(self, request: web.Request) -> Any:
        objects = await self._objects.get()
        return _dated(objects, {"services": await self._in_thread(services, objects.value.items)})

    async def _doctor(self, request: web.Request) -> Any:
        diagnosis = await self._diagnosis.get()
        return _dated(diagnosis, diagnosis.value)

    async def _names(self, request: web.Request) -> Any:
        begun = request.query.get("q", "").lower()
        objects = (await self._objects.get()).value.items
        found = sorted(name for name in _names(objects) if begun in name.lower())
        found.sort(key=lambda name: not name.lower().startswith(begun))
        return {"names": found[:NAMED], "more": max(0, len(found) - NAMED)}

    async def _trace(self, request: web.Request) -> Any:
        asked = _only(request, "from", "to", "port", "proto", "family", "send")
        source, target = asked.get("from", [""])[0], asked.get("to", [""])[0]
        if not source or not target:
            raise InvalidInput("a trace needs both ends", hint="name a pod, a node or an address in from and to")
        protocol = asked.get("proto", [""])[0]
        if protocol not in ("", "tcp", "udp", "icmp"):
            raise InvalidInput(f"proto: {protocol!r} is none", hint="there are tcp, udp and icmp")
        port = _number("port", asked.get("port", ["0"])[0], 65535)
        families = [_number("family", text, 6) for text in asked.get("family", ())]
        if not set(families) <= {4, 6}:
            raise InvalidInput("family: not 4 or 6", hint="leave it out for both")
        if self._tracing.locked():
            raise AgentError("two traces run already", hint="try again in a moment")
        async with self._tracing:
            return await self._in_thread(
                lambda: self._sources.trace(
                    source,
                    target,
                    protocol=protocol,
                    port=port,
                    families=families,
                    dry_run=asked.get("send", ["1"])[0] == "0",
                )
            )

    # Flows.

    def _question(self, request: web.Request, *more: str) -> Question:
        filters = _only(request, *FILTERS, *more)
        asked = {name: values for name, values in filters.items() if name in FILTERS}
        return self._sources.question(asked, time.time())

    async def _flows(self, request: web.Request) -> Any:
        question = self._question(request, "last")
        limit = _number("last", request.query.get("last", "500"), 10_000)
        asked = question._replace(params={**question.params, "limit": max(1, limit)})
        heard: Heard = await self._in_thread(self._sources.flows, asked)
        return {
            "records": heard.records[-limit:],
            "more": len(heard.records) >= limit,
            "notes": heard.notes,
            "silent": {node: error.message for node, error in heard.silent.items()},
            "lost": heard.lost,
        }

    async def _flow_sums(self, request: web.Request) -> Any:
        question = self._question(request, "by")
        summed = await self._summed(question, request.query.get("by", "pair"))
        return _dated(summed, _sums(summed.value))

    async def _talk(self, request: web.Request) -> Any:
        question = self._sources.question({"since": [request.query.get("since", "15m")]}, time.time())
        began = float(question.params.get("since", 0)) // 10 * 10  # so that many ask the same
        question = question._replace(params={**question.params, "since": began})
        objects = await self._objects.get()
        try:
            summed = await self._summed(question, "pair")
        except AgentError as error:
            said = await self._in_thread(talk, objects.value.items, ())
            return _dated(objects, {**msgspec.to_builtins(said), "notes": [error.message], "silent": {}})
        value = summed.value
        said = await self._in_thread(talk, objects.value.items, value.sums.rows, value.sums.more)
        told = _sums(value)
        return _dated(summed, {**msgspec.to_builtins(said), "notes": told["notes"], "silent": told["silent"]})

    async def _summed(self, question: Question, by: str) -> Fresh[Summed]:
        name = b"%b %b" % (by.encode(), question.name)
        kept = self._sums.pop(name, None)
        if kept is None:
            kept = Kept(self._threads, lambda: self._sources.sums(question, by), age=10)
        self._sums[name] = kept
        while len(self._sums) > FEEDS:
            del self._sums[next(iter(self._sums))]
        return await kept.get()

    async def _live(self, request: web.Request) -> web.StreamResponse:
        try:
            question = self._question(request, "place")
        except InvalidInput as error:
            return problem(400, error.message, error.hint)
        except PodwayError as error:
            return problem(502, error.message, error.hint)
        client = _client(request)
        if refusal := self._streams.take(client, self._streams_each):
            return _busy(refusal)
        try:
            return await self._follow(request, question)
        finally:
            self._streams.leave(client)

    async def _follow(self, request: web.Request, question: Question) -> web.StreamResponse:
        feed = await self._feeds.of(question)
        if feed is None:
            return _busy(f"{FEEDS} other questions are followed")
        head = {**HEADERS, "Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=head)
        try:
            await response.prepare(request)
            await response.write(b"retry: 2000\n\n")
            place = request.headers.get("Last-Event-ID") or request.query.get("place", "")
            async for last, entries in feed.follow(place):
                data = b"".join(_events(last, entries)) if entries else b": nothing new\n\n"
                async with asyncio.timeout(WRITE):
                    await response.write(data)
        except (ConnectionError, TimeoutError):
            log.debug("a browser follows flows no more")
        return response


FILTERS = (
    "from",
    "to",
    "pod",
    "namespace",
    "selector",
    "cidr",
    "verdict",
    "reason",
    "event",
    "policy",
    "workload",
    "service",
    "dns",
    "port",
    "protocol",
    "node",
    "since",
    "until",
)
"""What flows can be asked for: the options of `podway flows`."""


def _events(last: str, entries: Sequence[Any]) -> Iterator[bytes]:
    """Yield entries in the form of server-sent events: one of each kind in turn, the id with the last."""
    for at, entry in enumerate(entries):
        mark = f"id: {last}\n".encode() if last and at == len(entries) - 1 else b""
        yield b"%bevent: %b\ndata: %b\n\n" % (mark, entry.event.encode(), entry.data)


def _only(request: web.Request, *known: str) -> dict[str, list[str]]:
    """Return the parameters of a request by name. Raises InvalidInput for one that is none, or empty."""
    found: dict[str, list[str]] = {}
    for name, value in request.query.items():
        if name not in known:
            raise InvalidInput(f"there is no parameter {name!r}", hint=f"there are {', '.join(known)}")
        if value:
            found.setdefault(name, []).append(value)
    return found


def _client(request: web.Request) -> Source:
    """Return whom a request is counted for: by its address, of IPv6 its /64."""
    return stranger(ip_address((request.remote or "::").partition("%")[0]))


def _busy(why: str) -> web.Response:
    refused = problem(503, f"{_BUSY}: {why}", "close other pages of the console, or try again in a moment")
    refused.headers["Retry-After"] = str(AGAIN)
    return refused


def _number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and int(text) <= most):
        raise InvalidInput(f"{name}: {text[:40]!r} is no number up to {most}", hint="write one, or leave it out")
    return int(text)


class Dated:
    """A document with the time of what it says; who has the same already is told so by its tag alone.

    A view asks every few seconds, and most of the time only that time is another one.
    """

    def __init__(self, at: float, value: Mapping[str, Any]) -> None:
        self._dates = {"at": at, "now": time.time()}
        self._value = msgspec.json.encode(value)
        self.tag = f'"{hashlib.sha256(self._value).hexdigest()[:24]}"'

    @property
    def head(self) -> dict[str, str]:
        """The headers of an answer, with or without the body."""
        return {"ETag": self.tag} | {f"Podway-{name.title()}": str(moment) for name, moment in self._dates.items()}

    @property
    def body(self) -> bytes:
        """All of it, as JSON."""
        return b"%b,%b" % (msgspec.json.encode(self._dates)[:-1], self._value[1:])


def _dated(fresh: Fresh[Any], value: Mapping[str, Any], *, rename: bool = False) -> Dated:
    """Return a document with the time of what it says, and why that is not newer, if it should be."""
    if rename:
        value = {_camel(name): one for name, one in value.items()}
    return Dated(fresh.at, {"problem": fresh.problem, **value})


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _sums(summed: Summed) -> dict[str, Any]:
    sums, notes, silent = summed
    return {
        "rows": sums.rows,
        "more": sums.more,
        "complete": sums.complete,
        "notes": notes,
        "silent": {node: error.message for node, error in silent.items()},
    }


def _names(objects: Sequence[Resource]) -> Iterator[str]:
    yield from (f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in of_kind(Pod, objects))
    yield from (node.metadata.name for node in of_kind(Node, objects))


async def serve(console: Console, host: str, port: int, told: Callable[[int], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set; `told` gets the port once the console listens. Raises AgentError if it cannot."""
    runner = web.AppRunner(console.application(), access_log=None, shutdown_timeout=1.0, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise AgentError(
                f"the console cannot listen at {host} port {port}: {error.strerror or error}",
                hint="name another port: --listen 127.0.0.1:PORT",
            ) from error
        told(int(runner.addresses[0][1]))
        await stop.wait()
    finally:
        await runner.cleanup()
