"""The console's HTTP server: whom it refuses, what its answers bear, and that many who look ask once."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, TCPConnector
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request
from yarl import URL

from podway.console.guard import is_own
from podway.console.limits import STREAMS, STREAMS_EACH
from podway.console.server import Console
from podway.console.sources import Kept
from podway.errors import AgentError, StoreError
from podway.flows.heard import Heard
from tests.console.synthetic import Synthetic
from tests.console.test_console_feed import heard, record
from tests.patience import PATIENCE
from tools import console as built

Client = TestClient[Request, Application]


def asked(check: Callable[[Client], Awaitable[None]], sources: Synthetic | None = None, **options: Any) -> None:
    async def run() -> None:
        console = Console(sources or Synthetic(5, 4, 6), **options)
        async with TestClient(TestServer(console.application())) as client:
            await check(client)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8470", True),
        ("127.0.0.1", True),
        ("[::1]:8470", True),
        ("localhost:9", True),
        ("LOCALHOST", True),
        ("192.0.2.7:8470", True),
        ("podway.example:8470", True),
        ("evil.example", False),
        ("evil.example:8470", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("[::1]evil", False),
        ("", False),
        ("127.0.0.1:x", False),
    ],
)
def test_a_name_that_others_may_make_point_here_is_refused(host: str, own: bool) -> None:
    assert is_own(host, ["podway.example"]) is own


def test_who_has_a_view_already_is_told_only_that_it_was_seen_again_until_something_changed() -> None:
    sources, tags = Synthetic(5, 4, 6), []

    async def check(client: Client) -> None:
        async with client.get("/api/v1/network") as answer:
            first, tag = await answer.json(), answer.headers["ETag"]
        async with client.get("/api/v1/network", headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
            assert float(answer.headers["Podway-At"]) >= first["at"]
            assert float(answer.headers["Podway-Now"]) >= first["now"]
            assert answer.headers["Content-Security-Policy"]
        async with client.get("/api/v1/services", headers={"If-None-Match": tag}) as answer:
            assert answer.status == 200
        tags.append(tag)

    asked(check, sources)
    asked(check, sources)
    sources.sick = dict.fromkeys(sources.nodes[:1], "silent")
    asked(check, sources)
    assert tags[0] == tags[1] != tags[2], "a node that fell silent is news"


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", {"Host": "evil.example"}, 421),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-site"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", {}, 405),
        ("PUT", {}, 405),
        ("DELETE", {}, 405),
        ("OPTIONS", {"Origin": "http://evil.example"}, 405),
    ],
)
def test_only_own_pages_may_ask_and_only_by_get(method: str, headers: dict[str, str], status: int) -> None:
    async def check(client: Client) -> None:
        async with client.request(method, "/api/v1/about", headers=headers) as answer:
            assert answer.status == status
            assert "Access-Control-Allow-Origin" not in answer.headers
            body = await answer.json()
            assert ("error" in body) is (status != 200)

    asked(check)


@pytest.mark.parametrize(
    "path", ["/", "/flows?verdict=denied", "/api/v1/about", "/nothing", "/api/v1/nothing", "/app.js"]
)
def test_every_answer_forbids_scripts_of_others_and_markup_made_of_text(path: str) -> None:
    async def check(client: Client) -> None:
        async with client.get(path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self'" in policy
            assert "unsafe" not in policy
            assert "require-trusted-types-for 'script'" in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.status == (404 if "nothing" in path else 200)

    asked(check)


def test_pages_name_nothing_of_other_machines() -> None:
    for name in ("index.html", "app.js", "app.css"):
        text = (built.BUILT / name).read_text()
        hosts = {part.split("/")[0].split('"')[0] for part in text.split("://")[1:]}
        assert {host for host in hosts if not host.startswith("www.w3.org")} == set(), name


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    async def check(client: Client) -> None:
        async with client.get("/app.js") as first:
            tag = first.headers["ETag"]
        async with client.get("/app.js", headers={"If-None-Match": tag}) as second:
            assert (second.status, await second.read()) == (304, b"")

    asked(check)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("flows?nonsense=1", 400, "there is no parameter 'nonsense'"),
        ("flows?last=100000", 400, "last: '100000' is no number up to 10000"),
        ("flows?last=-1", 400, "last"),
        ("trace?from=a", 400, "a trace needs both ends"),
        ("trace?from=a&to=b&proto=gre", 400, "proto: 'gre' is none"),
        ("trace?from=a&to=b&family=5", 400, "family"),
        ("trace?from=a&to=b", 502, "nothing can be traced here"),
        ("nodes/nobody", 404, "there is no node 'nobody'"),
        ("nodes/<script>", 404, "there is no node '<script>'"),
    ],
)
def test_what_cannot_be_asked_is_said_with_what_to_do(path: str, status: int, words: str) -> None:
    async def check(client: Client) -> None:
        async with client.get(f"/api/v1/{path}", headers={"Podway-Console": "1"}) as answer:
            assert answer.status == status
            assert answer.content_type == "application/json"
            assert words in (await answer.json())["error"]

    asked(check)


@pytest.mark.parametrize("path", ["trace?from=a&to=b", "%74race?from=a&to=b", "trace?from=a&to=b&send=0&send=1"])
def test_no_image_of_another_site_sends_probes(path: str) -> None:
    """As a browser asks for it that says nothing of the site, which it does not to an address by http."""

    class Traced(Synthetic):
        sent = 0

        def trace(self, *_: Any, **__: Any) -> bytes:
            self.sent += 1
            return b"{}"

    sources = Traced(5, 4, 6)

    async def check(client: Client) -> None:
        async with client.get("/api/v1/doctor") as answer:
            assert answer.status == 403
        headers = {"Host": "192.0.2.7:8470", "Accept": "image/*"}
        async with client.get(URL(f"/api/v1/{path}", encoded=True), headers=headers) as answer:
            assert answer.status == 403
            assert "Podway-Console" in (await answer.json())["hint"]
        assert sources.sent == 0
        headers = {"Origin": "http://evil.example", "Access-Control-Request-Headers": "podway-console"}
        async with client.options(f"/api/v1/{path}", headers=headers) as answer:
            assert answer.status == 405
        async with client.get(f"/api/v1/{path}", headers={"Podway-Console": "1"}) as answer:
            assert (answer.status, sources.sent) == (200, 1)

    asked(check, sources)


class Away(Synthetic):
    """No agent can be asked."""

    def status(self) -> Mapping[str, Any]:
        raise AgentError("no agent runs here")

    def sums(self, question: Any, by: str) -> Any:
        raise AgentError("no agent runs here")


def test_without_agents_objects_are_shown_and_that_is_said() -> None:
    async def check(client: Client) -> None:
        async with client.get("/api/v1/network") as answer:
            body = await answer.json()
        assert (body["problem"], len(body["nodes"])) == ("no agent runs here", 5)
        async with client.get("/api/v1/talk") as answer:
            body = await answer.json()
        assert (body["notes"], len(body["workloads"]), body["edges"]) == (["no agent runs here"], 4, [])

    asked(check, Away(5, 4, 6))


def test_many_who_look_at_once_ask_the_cluster_once() -> None:
    class Slow(Synthetic):
        asked = 0

        def status(self) -> Mapping[str, Any]:
            self.asked += 1
            time.sleep(0.2)
            return super().status()

    sources = Slow(5, 4, 6)

    async def check(client: Client) -> None:
        async def look() -> int:
            async with client.get("/api/v1/network") as answer:
                await answer.read()
                return answer.status

        statuses = await asyncio.gather(*(look() for _ in range(200)))
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 1
        assert sources.asked == 1

    asked(check, sources)


def test_one_client_that_follows_a_thousand_times_is_refused_clearly_and_keeps_nobody_out() -> None:
    async def check(client: Client) -> None:
        where = client.make_url("/api/v1/flows/live")
        opened: list[ClientResponse] = []

        async def follow(session: ClientSession) -> tuple[int, str]:
            answer = await session.get(where)
            if answer.status == 200:
                opened.append(answer)
                return 200, ""
            async with answer:
                assert int(answer.headers["Retry-After"]) > 0
                return answer.status, (await answer.json())["error"]

        async with (
            ClientSession(connector=TCPConnector(limit=100)) as greedy,
            ClientSession(connector=TCPConnector(local_addr=("127.0.0.2", 0))) as other,
        ):
            try:
                assert {await follow(greedy) for _ in range(STREAMS_EACH)} == {(200, "")}
                refused = await asyncio.gather(*(follow(greedy) for _ in range(1000)))
                words = f"the console is busy: {STREAMS_EACH} others of the same source are being served"
                assert set(refused) == {(503, words)}
                assert await follow(other) == (200, "")
                opened.pop(0).close()
                async with asyncio.timeout(PATIENCE):  # the server hears of it when it writes the next time
                    while await follow(greedy) != (200, ""):
                        await asyncio.sleep(0.05)
            finally:
                for one in opened:
                    one.close()

    asked(check, Talking(5, 4, 6))


def test_who_comes_by_way_of_a_proxy_may_be_given_all_places_there_are() -> None:
    async def check(client: Client) -> None:
        where = client.make_url("/api/v1/flows/live")
        async with ClientSession(connector=TCPConnector(limit=STREAMS + 1)) as proxy:
            opened = [await proxy.get(where) for _ in range(STREAMS)]
            assert {answer.status for answer in opened} == {200}
            async with proxy.get(where) as refused:
                assert refused.status == 503
                assert f"{STREAMS} others are being served" in (await refused.json())["error"]
            for answer in opened:
                answer.close()

    asked(check, Talking(5, 4, 6), streams_each=STREAMS)


def test_one_client_may_be_given_fewer_requests() -> None:
    entered, goes_on = threading.Event(), threading.Event()

    class Held(Synthetic):
        def objects(self) -> Any:
            entered.set()
            assert goes_on.wait(PATIENCE)
            return super().objects()

    async def check(client: Client) -> None:
        async def status(path: str) -> int:
            async with client.get(f"/api/v1/{path}") as answer:
                return answer.status

        first = asyncio.ensure_future(status("services"))
        await asyncio.to_thread(entered.wait, PATIENCE)
        assert await status("about") == 503
        goes_on.set()
        assert await first == 200
        assert await status("about") == 200

    asked(check, Held(5, 4, 6), requests_each=1)


@pytest.mark.parametrize("by", ["header", "parameter"])
def test_a_browser_that_comes_again_goes_on_behind_the_last_record_that_it_had(by: str) -> None:
    async def read(answer: ClientResponse, least: int) -> tuple[str, list[int]]:
        """Return the last id, and the numbers of the records up to it, of which there are so many at least."""
        last, numbers = "", []
        async with asyncio.timeout(PATIENCE):
            async for line in answer.content:
                if line.startswith(b"data: "):
                    numbers.append(json.loads(line[6:])["sequence"])
                    if last and len(numbers) >= least:
                        return last, numbers
                    last = ""
                elif line.startswith(b"id: "):
                    last = line[4:].decode().strip()
        raise AssertionError("the console ended what is followed")

    async def check(client: Client) -> None:
        async with client.get("/api/v1/flows/live") as answer:
            place, first = await read(answer, 1)
        where = {"header": ("", {"Last-Event-ID": place}), "parameter": (f"?place={place}", {})}[by]
        async with client.get(f"/api/v1/flows/live{where[0]}", headers=where[1]) as answer:
            _, second = await read(answer, 1)
        assert first + second == list(range(1, len(first + second) + 1))

    asked(check, Talking(5, 4, 6))


class Talking(Synthetic):
    """Each question brings a record."""

    asks = 0

    def flows(self, question: Any, after: Mapping[str, int] | None = None, since: float = 0.0) -> Heard:
        self.asks += 1
        return heard(record("n", self.asks))


def test_an_answer_is_kept_and_an_old_one_is_shown_with_why_there_is_no_newer() -> None:
    answers: list[int | StoreError] = [1, StoreError("the store is away"), 2]

    def fetch() -> int:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, StoreError):
            raise answer
        return answer

    async def run() -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        with ThreadPoolExecutor(1) as threads:
            kept = Kept(threads, fetch, age=0)
            async with asyncio.timeout(PATIENCE):
                while not found or found[-1][0] != 2:
                    fresh = await kept.get()
                    if (fresh.value, fresh.problem) not in found[-1:]:
                        found.append((fresh.value, fresh.problem))
                    await asyncio.sleep(0.01)
        return found

    assert asyncio.run(run()) == [(1, ""), (1, "the store is away"), (2, "")]


@pytest.mark.parametrize("known", [True, False])
def test_a_mistake_of_ours_in_a_source_is_told_like_any_failure(known: bool) -> None:
    answers = [1] * known

    def fetch() -> int:
        return answers.pop()

    async def run() -> None:
        with ThreadPoolExecutor(1) as threads:
            kept = Kept(threads, fetch, age=0)
            if known:
                assert (await kept.get()).value == 1
                async with asyncio.timeout(PATIENCE):
                    while "IndexError" not in (await kept.get()).problem:
                        await asyncio.sleep(0.01)
            else:
                with pytest.raises(AgentError, match="IndexError"):
                    await kept.get()

    asyncio.run(run())


def test_built_files_are_known_to_belong_to_their_sources(tmp_path: Path) -> None:
    assert built.problem() == ""
    source, folder = tmp_path / "console", tmp_path / "assets"
    (source / "node_modules").mkdir(parents=True)
    folder.mkdir()
    (source / "main.ts").write_text("one")
    (folder / "app.js").write_text("one")
    assert "is missing" in built.problem(source, folder)
    (folder / built.STAMP.name).write_text(json.dumps(built.state(source, folder)))
    (source / "node_modules/x").write_text("installed")
    assert built.problem(source, folder) == ""
    (source / "main.ts").write_text("two")
    assert "other sources" in built.problem(source, folder)
    (source / "main.ts").write_text("one")
    (folder / "app.js").write_text("by hand")
    assert "other than those that were built" in built.problem(source, folder)
