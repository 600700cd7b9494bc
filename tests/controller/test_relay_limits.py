"""The relay among those who may not ask it: what one of them can take, and what a question may be made of."""

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from podway.controller import relay
from podway.controller.following import Facts
from podway.controller.relay import Relay
from podway.store.kubernetes.relay import AUDIENCE
from tests.patience import PATIENCE


class Api:
    """What a Kubernetes API says of tokens, after a while: `good …` are good, and may do nothing."""

    def __init__(self) -> None:
        self.reviews = self.now = self.most = 0

    async def post(self, path: str, asked: Any) -> Any:
        if not path.endswith("/tokenreviews"):
            return {"status": {"allowed": False}}
        self.reviews += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02)
        self.now -= 1
        good = asked["spec"]["token"].startswith("good")
        return {"status": {"authenticated": good, "audiences": [AUDIENCE], "user": {"username": "she"}}}


class Scene:
    def __init__(self, opened: Relay, api: Api, port: int) -> None:
        self.relay, self.api, self._port = opened, api, port
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def connect(self, source: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), PATIENCE, (source, 0))

    async def send(self, request: bytes, source: str = "127.0.0.1") -> tuple[int, Any]:
        """Send a request as it stands; return status and answer."""
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._context, local_addr=(source, 0), server_hostname=""
            )
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        return int(head.split()[1]), json.loads(body)

    async def ask(self, token: str, source: str = "127.0.0.1") -> str:
        body = json.dumps({"node": "n", "method": "routes", "params": {}, "timeout": 5}).encode()
        status, answer = await self.send(request(body, token), source)
        assert status == 200
        return str(answer["error"])


def request(body: bytes, token: str = "", length: str = "") -> bytes:
    lines = "POST /ask HTTP/1.1", f"Podway-Token: {token}", f"Content-Length: {length or len(body)}"
    return "\r\n".join([*lines, "", ""]).encode() + body


def on_a_relay(act: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        api: Any = Api()
        opened = Relay(api, Facts)
        await opened.start("127.0.0.1", port)
        try:
            await act(Scene(opened, api, port))
        finally:
            opened.close()

    asyncio.run(main())


def test_one_source_cannot_take_all_places_and_all_places_are_given_back() -> None:
    async def act(scene: Scene) -> None:
        silent = [scene.connect("127.0.0.2") for _ in range(2 * relay.MAX_OF_STRANGER)]
        assert await scene.ask("good", "127.0.0.3") == "she may not ask the agent of n for `routes`"
        for refused in silent[relay.MAX_OF_STRANGER :]:
            refused.settimeout(PATIENCE)
            assert await asyncio.to_thread(refused.recv, 1) == b""
        for each in silent:
            each.close()
        async with asyncio.timeout(PATIENCE):
            while scene.relay._strangers.taken:  # noqa: ASYNC110 - nobody here could set an event
                await asyncio.sleep(0.01)
        assert "she may not" in await scene.ask("good", "127.0.0.2")

    on_a_relay(act)


def test_who_brought_a_good_token_may_ask_as_much_as_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as an API server that is on no node: it asks for all people at once."""
    monkeypatch.setattr(relay, "MOST_PROVEN", 2)
    monkeypatch.setattr(relay, "READING", PATIENCE)

    async def act(scene: Scene) -> None:
        for source in ("127.0.0.2", "127.0.0.4", "127.0.0.3"):
            await scene.ask("good", source)
        assert "nobody may" in await scene.ask("bad", "127.0.0.5")
        for source, most in (
            ("127.0.0.3", relay.MAX_OF_NODE),
            ("127.0.0.2", relay.MAX_OF_STRANGER),  # others brought one since
            ("127.0.0.5", relay.MAX_OF_STRANGER),
        ):
            held = [scene.connect(source) for _ in range(most + 4)]
            for refused in held[most:]:
                refused.settimeout(PATIENCE)
                assert await asyncio.to_thread(refused.recv, 1) == b""
            for admitted in held[:most]:
                admitted.setblocking(False)
                with pytest.raises(BlockingIOError):
                    admitted.recv(1)
            for each in held:
                each.close()
            async with asyncio.timeout(PATIENCE):
                while scene.relay._strangers.taken or scene.relay._nodes.taken:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)

    on_a_relay(act)


def test_tokens_that_somebody_makes_up_cost_the_api_server_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "REFUSED", 0.0)
    monkeypatch.setattr(relay, "MOST_HOLDERS", 5)

    async def act(scene: Scene) -> None:
        many = [scene.relay._holder(f"bad {number}") for number in range(40)]
        assert await asyncio.gather(*many) == [None] * 40
        assert scene.api.most == relay.REVIEWS
        assert not scene.relay._holders, "of these there may be as many as somebody likes"
        for number in range(8):
            assert await scene.relay._holder(f"good {number}") == {"username": "she"}
        reviews = scene.api.reviews
        assert await scene.relay._holder("good 7") == {"username": "she"}
        assert (scene.api.reviews, len(scene.relay._holders)) == (reviews, 5)
        await scene.relay._holder("good 0")
        assert scene.api.reviews == reviews + 1, "forgotten for those that came later"
        monkeypatch.setattr(relay, "KNOWN", 0.0)
        await scene.relay._holder("good short")
        await scene.relay._holder("good short")
        assert scene.api.reviews == reviews + 3

    on_a_relay(act)


def test_who_has_no_token_keeps_his_place_for_a_while() -> None:
    async def act(scene: Scene) -> None:
        began = asyncio.get_running_loop().time()
        many = [scene.ask(f"bad {number}", "127.0.0.2") for number in range(relay.MAX_OF_STRANGER)]
        assert set(await asyncio.gather(*many)) == {"nobody may not ask the agent of n for `routes`"}
        assert asyncio.get_running_loop().time() - began >= relay.REFUSED

    with structlog.testing.capture_logs() as lines:
        on_a_relay(act)
    assert [line["log_level"] for line in lines] == ["warning"], "one line for all of them"


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        (request(b"", length="9" * 5000), 413, "413"),
        (request(b"", length="1" + "0" * 10), 413, "413"),
        (request(b"", length="-1"), 413, "413"),
        (request(b"", length="²"), 413, "413"),
        (
            request(b'{"node": "n", "params": {"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}"),
            200,
            "not a question",
        ),
        (request(b'{"node": ' + b"9" * 5000 + b"}"), 200, "not a question"),
        (request(b"\xff"), 200, "not a question"),
        (b"\r\n\r\n", 404, "404"),
        (b"POST\r\n:\r\n\xff\r\n\r\n", 404, "404"),
    ],
)
def test_a_malformed_request_is_answered_and_is_no_failure_of_ours(asked: bytes, status: int, words: str) -> None:
    async def act(scene: Scene) -> None:
        found, answer = await scene.send(asked)
        assert (found, words in answer["error"]) == (status, True), answer

    with structlog.testing.capture_logs() as lines:
        on_a_relay(act)
    assert not [line for line in lines if line["log_level"] == "error"]
