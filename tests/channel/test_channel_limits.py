"""Who asks slowly, in vain, often or with garbage: others are answered meanwhile, and the log stays readable."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from podway.api.addresses import Address
from podway.api.kinds.cluster_authority import AUTHORITY, ClusterAuthority
from podway.api.kinds.network_config import ChannelSettings
from podway.channel import server as channel
from podway.channel.admin import Method
from podway.channel.remote import call_node, operator_credentials
from podway.channel.server import Channel
from podway.cluster.view import ClusterView
from podway.identity import tls
from podway.store.sqlite import SqliteStore

HERE = ip_address("127.0.0.1")


class Scene:
    """A channel on the loopback, of a cluster of its own, and who asks it."""

    def __init__(self, opened: Channel, store: SqliteStore, port: int) -> None:
        self.channel = opened
        self.port = port
        self._store = store

    async def ask(self, *, source: str = "127.0.0.1") -> Any:
        """Ask as a command does, from this address."""
        authority = await self._store.get(ClusterAuthority, AUTHORITY)
        credentials = operator_credentials(authority.spec, ChannelSettings())

        def reach(address: str, port: int, timeout: float) -> socket.socket:
            return socket.create_connection((address, port), timeout, (source, 0))

        return await asyncio.to_thread(
            call_node, "n", [HERE], self.port, "hello", credentials=credentials, reach=reach, timeout=30.0
        )

    def connect(self, source: str = "127.0.0.2") -> socket.socket:
        return socket.create_connection((str(HERE), self.port), 10, (source, 0))

    @property
    def told(self) -> dict[str, Any]:
        return self.channel.status()


def on_a_channel(directory: Path, act: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), _opened(directory) as scene:
            await act(scene)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def _opened(directory: Path) -> AsyncIterator[Scene]:
    async def hello() -> str:
        return "hello"

    with socket.socket() as free:
        free.bind((str(HERE), 0))
        port = free.getsockname()[1]
    store = SqliteStore(directory / "store.db")
    view = ClusterView.of(())
    addresses: tuple[Address, ...] = (HERE,)
    config = SimpleNamespace(channel=ChannelSettings(port=port))
    state: Any = SimpleNamespace(
        node="n",
        uplink=SimpleNamespace(node_addresses=addresses),
        view=SimpleNamespace(nodes=view.nodes, config=config),
    )
    opened = Channel(store, state)
    task = asyncio.create_task(opened.run({"hello": Method(hello, remote=True)}))
    try:
        while not opened.status()["addresses"]:
            await asyncio.sleep(0.02)
            assert not task.done(), task.exception()
        yield Scene(opened, store, port)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        opened.close()
        await store.close()


async def _until(holds: Callable[[], bool], within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110 - nobody here could set an event
            await asyncio.sleep(0.05)


def _ended(connection: socket.socket) -> bool:
    """Send another byte, and tell whether the other side is done with it."""
    try:
        connection.sendall(b"\x16")
        return not connection.recv(100, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_who_sends_a_byte_now_and_then_is_ended_and_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE", 2.0)

    async def act(scene: Scene) -> None:
        slow = [scene.connect() for _ in range(40)]
        assert await scene.ask() == "hello"
        left = set(slow)

        def gone() -> bool:
            left.difference_update([each for each in left if _ended(each)])
            return not left

        await _until(gone)
        assert await scene.ask() == "hello"
        for each in slow:
            each.close()

    on_a_channel(tmp_path, act)


def test_a_request_that_does_not_end_is_given_up_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of somebody with a certificate, who sends a byte of it now and then."""
    monkeypatch.setattr(channel, "EXCHANGE", 1.0)

    async def act(scene: Scene) -> None:
        authority = await scene._store.get(ClusterAuthority, AUTHORITY)
        context = tls.client_context(operator_credentials(authority.spec, ChannelSettings()))

        def trickle() -> bytes:
            with scene.connect() as plain, context.wrap_socket(plain) as secure:
                for byte in json.dumps({"method": "hello"}).encode() * 100:
                    try:
                        secure.sendall(bytes([byte]))
                        secure.settimeout(0.05)
                        return secure.recv(100)
                    except TimeoutError:
                        continue
            return b"never ended"

        assert await asyncio.to_thread(trickle) == b""
        assert await scene.ask() == "hello"

    on_a_channel(tmp_path, act)


def test_one_source_cannot_take_all_places_and_all_places_are_given_back(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        taken = [scene.connect("127.0.0.2") for _ in range(channel.MAX_CONNECTIONS)]
        await _until(lambda: scene.told["refused"] >= channel.MAX_CONNECTIONS - channel.MAX_OF_STRANGER)
        assert "8 others of the same source" in scene.told["last_refusal"]
        assert await scene.ask(source="127.0.0.3") == "hello"
        for each in taken:
            each.close()
        await _until(lambda: not scene.channel._places.taken)
        assert await scene.ask(source="127.0.0.2") == "hello"

    on_a_channel(tmp_path, act)


def test_garbage_does_not_flood_the_log(tmp_path: Path) -> None:
    """Of two kinds in turn, so that no line is like the one before."""

    async def act(scene: Scene) -> None:
        with structlog.testing.capture_logs() as lines:
            for number in range(100):
                with scene.connect(f"127.0.0.{2 + number % 2}") as connection:
                    connection.sendall(
                        b"GET / HTTP/1.1\r\n\r\n" if number % 2 else b"\x16\x03\x01\x00\x05garbage!"
                    )
            await _until(lambda: scene.told["refused"] >= 100)
        refusals = [line for line in lines if line["event"] == "refused a connection"]
        assert 1 <= len(refusals) <= 3
        assert await scene.ask() == "hello"

    on_a_channel(tmp_path, act)


@pytest.mark.parametrize("step", [36 * 3600, -7 * 24 * 3600])
def test_a_certificate_is_renewed_when_somebody_sets_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    async def act(scene: Scene) -> None:
        before = scene.told["certificate"]
        await asyncio.sleep(0.2)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + step)
        await _until(lambda: scene.told["certificate"] != before, within=30)

    on_a_channel(tmp_path, act)
