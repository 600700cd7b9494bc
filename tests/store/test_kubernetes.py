"""The Kubernetes store where things go wrong, and what Podway's kinds are there: against a real API server."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from podway.api.checked import RejectedObject
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.cluster_network_policy import (
    ClusterNetworkPolicy,
    ClusterNetworkPolicySpec,
    ClusterPolicySubject,
    NamespacedPod,
)
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.node import Node, NodeAddress, NodeStatus
from podway.api.kinds.node_lease import LEASES, LeaseSpec, NodeLease
from podway.api.meta import Metadata
from podway.api.resource import GROUP, Resource
from podway.deploy.api import Api, Right
from podway.errors import (
    InvalidInput,
    InvalidObject,
    ObjectDamaged,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
    VersionExpired,
)
from podway.store import informer as informers
from podway.store.base import Bookmark, Event, Listing, Store
from podway.store.informer import Informer
from podway.store.kubernetes import access, client
from podway.store.kubernetes import store as kubernetes
from podway.store.kubernetes.access import Access, in_cluster, read_kubeconfig
from podway.store.kubernetes.store import KubernetesStore
from podway.store.material import Material
from tests.kubernetes import ADMIN, HOST, NOBODY, PORT, ROOT, Answer, ApiServer, running_api_server
from tests.patience import PATIENCE, eventually
from tests.store.conftest import Kubernetes

pytestmark = pytest.mark.kernel

Scenario = Callable[..., Awaitable[None]]


def entry(server: ApiServer, *ports: int, token: str = ADMIN, **more: Any) -> Access:
    servers = tuple(f"https://{HOST}:{port}" for port in ports or (PORT,))
    given = {"token": Material(data=token.encode()), "authorities": Material(path=server.authority.path), **more}
    return Access(servers=servers, source="the test", **given)


@contextlib.asynccontextmanager
async def opened(server: ApiServer, where: Access | Callable[[], Access]) -> AsyncIterator[KubernetesStore]:
    found = where if callable(where) else lambda: where
    store = KubernetesStore(found, sockets=lambda address: server.socket(address[0]))
    try:
        yield store
    finally:
        await store.close()


def run(server: ApiServer, scenario: Scenario, where: Access | Callable[[], Access] | None = None) -> None:
    async def main() -> None:
        async with opened(server, where or entry(server)) as store, asyncio.timeout(2 * PATIENCE):
            await scenario(store)

    asyncio.run(main())


@pytest.fixture
def server(api_server: ApiServer) -> ApiServer:
    """The API server that all tests share, empty."""
    Kubernetes(api_server).clean()
    return api_server


@pytest.fixture(scope="module")
def frail_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for what others would not survive."""
    with running_api_server(tmp_path_factory.mktemp("frail")) as server:
        yield server


def node(name: str, **labels: str) -> Node:
    return Node(metadata=Metadata(name=name, labels=labels))


def kubeconfig(tmp_path: Path, server: ApiServer, **user: Any) -> Path:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(server.kubeconfig(**user)))
    return path


# Who asks


@pytest.mark.parametrize("how", ["certificate", "token", "file", "data"])
def test_a_kubeconfig_says_who_asks(server: ApiServer, tmp_path: Path, how: str) -> None:
    config = server.kubeconfig()
    user = config["users"][0]["user"]
    if how in ("token", "file"):
        user.clear()
        user.update({"token": ADMIN} if how == "token" else {"tokenFile": "the-token"})
        (tmp_path / "the-token").write_text(f"{ADMIN}\n")
    if how == "data":
        for name in ("client-certificate", "client-key"):
            user[f"{name}-data"] = _base64(Path(user.pop(name)).read_bytes())
        cluster = config["clusters"][0]["cluster"]
        cluster["certificate-authority-data"] = _base64(Path(cluster.pop("certificate-authority")).read_bytes())
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))

    async def scenario(store: Store) -> None:
        await store.create(node("n"))
        assert [one.metadata.name for one in (await store.list(Node)).items] == ["n"]

    run(server, scenario, lambda: read_kubeconfig(path))


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_a_token_that_ended_is_read_again_at_once(server: ApiServer, tmp_path: Path) -> None:
    """As a pod has it: the kubelet puts another one into the file."""
    (tmp_path / "token").write_text("one-that-ended")
    shutil.copy(server.authority.path, tmp_path / "ca.crt")
    where = in_cluster({"KUBERNETES_SERVICE_HOST": HOST, "KUBERNETES_SERVICE_PORT": str(PORT)}, tmp_path)

    async def scenario(store: Store) -> None:
        with pytest.raises(StoreForbidden, match="401"):
            await store.list(Node)
        (tmp_path / "token").write_text(ADMIN)
        assert (await store.list(Node)).items == ()
        start = (await store.list(Node)).version
        (tmp_path / "token").write_text("one-that-ended")
        kubernetes_client = store._client  # type: ignore[attr-defined]
        kubernetes_client._identity.refused()
        with pytest.raises(StoreForbidden, match="401"):
            await anext(store.watch(Node, start))
        (tmp_path / "token").write_text(ADMIN)
        assert isinstance(await anext(store.watch(Node, start)), Bookmark)

    run(server, scenario, where)


def test_what_is_forbidden_is_told_by_verb_and_resource(server: ApiServer) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(StoreForbidden, match=r'cannot list resource "nodes".*at the cluster scope'):
            await store.list(Node)
        with pytest.raises(StoreForbidden, match=r'cannot create resource "ippools" in API group "podway.io"'):
            await store.create(IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/16")))

    run(server, scenario, entry(server, token=NOBODY))


PLUGIN = """#!/bin/sh
echo called >> {directory}/calls
test -n "$KUBERNETES_EXEC_INFO"
cat {directory}/answer
"""


def test_a_plugin_is_asked_once_until_what_it_said_ends(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "plugin").write_text(PLUGIN.format(directory=tmp_path))
    (tmp_path / "plugin").chmod(0o755)

    def say(ends: str) -> None:
        status = {"token": ADMIN, "expirationTimestamp": ends}
        (tmp_path / "answer").write_text(msgspec.json.encode({"status": status}).decode())

    api = "client.authentication.k8s.io/v1"
    exec_ = {"apiVersion": api, "command": "./plugin", "interactiveMode": "Never", "provideClusterInfo": True}
    path = kubeconfig(tmp_path, server, exec=exec_)
    calls = tmp_path / "calls"

    async def scenario(store: Store) -> None:
        await store.list(Node)
        await store.list(IPPool)
        assert calls.read_text().count("called") == 1

    async def again(store: Store) -> None:
        await store.list(Node)
        await store.list(IPPool)
        assert calls.read_text().count("called") > 2

    async def failing(store: Store) -> None:
        with pytest.raises(StoreUnavailable, match=r"plugin .*plugin failed \(status 1\): cat: "):
            await store.list(Node)

    say("2100-01-01T00:00:00Z")
    run(server, scenario, lambda: read_kubeconfig(path))
    say("2020-01-01T00:00:00Z")
    run(server, again, lambda: read_kubeconfig(path))
    (tmp_path / "answer").unlink()
    run(server, failing, lambda: read_kubeconfig(path))


def test_a_plugin_ends_with_who_asked_it(tmp_path: Path) -> None:
    """Say, with a command that is interrupted while a plugin waits for somebody to log in."""
    plugin, number = tmp_path / "plugin", tmp_path / "number"
    plugin.write_text(f"#!/bin/sh\necho $$ >{number}.new\nmv {number}.new {number}\nexec sleep 1000\n")
    plugin.chmod(0o755)
    exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump({**CONFIG, "users": [{"name": "u", "user": {"exec": exec_}}]}))

    async def cancelled() -> None:
        asking = asyncio.create_task(access.Identity(read_kubeconfig(path)).present())
        await asyncio.to_thread(eventually, number.exists, "the plugin runs")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(cancelled())
    assert not Path(f"/proc/{number.read_text().strip()}").exists()


CONFIG: dict[str, Any] = {
    "clusters": [{"name": "c", "cluster": {"server": "https://[::1]:6443"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}


NO_BASE64 = {"server": "https://x", "certificate-authority-data": "-"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"current-context": ""}, "has no current-context"),
        ({"current-context": "y"}, "context 'y' does not exist"),
        ({"clusters": []}, "cluster 'c' does not exist"),
        ({"users": []}, "user 'u' does not exist"),
        ({"clusters": [{"name": "c", "cluster": {"server": "http://x"}}]}, "has no server https"),
        ({"clusters": [{"name": "c", "cluster": NO_BASE64}]}, "is not base64"),
        ({"clusters": 5}, "is no kubeconfig"),
    ],
)
def test_what_is_no_kubeconfig_is_told(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump({**CONFIG, **change}))
    with pytest.raises(InvalidInput, match=why):
        read_kubeconfig(path)
    path.unlink()
    with pytest.raises(StoreUnavailable, match="there is no kubeconfig"):
        read_kubeconfig(path)


# What servers do


class Proxy:
    """Stands before the API server, in its network namespace, and can misbehave."""

    def __init__(self, server: ApiServer, port: int, context: ssl.SSLContext) -> None:
        self._server = server
        self._port = port
        self._context = context
        self.answers: list[bytes] = []
        """What is answered to the next requests in place of the API server's words."""
        self.about = b""
        """What the path of such a request has in it."""
        self.asked = 0
        self.most: int | None = None
        """After so many bytes of an answer nothing more comes."""
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Proxy":
        listening = self._server.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, self._port))
        self._listening = await asyncio.start_server(self._serve, sock=listening, ssl=self._context)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self.cut()
        await asyncio.sleep(0.05)

    def cut(self) -> None:
        """Break off all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if self.answers and self.about in head.partition(b"\r\n")[0]:
                writer.write(self.answers.pop(0))
                await writer.drain()
                return
            plain = self._server.socket()
            plain.setblocking(False)
            await asyncio.get_running_loop().sock_connect(plain, (HOST, PORT))
            trust = ssl.create_default_context(cafile=str(self._server.authority.path))
            upstream, other = await asyncio.open_connection(sock=plain, ssl=trust, server_hostname=HOST)
            self._writers.add(other)
            other.write(head[:-2] + b"Connection: close\r\n\r\n")  # so that each request passes here
            await asyncio.gather(_pass_on(reader, other), _pass_on(upstream, writer, self.most))
        except (OSError, asyncio.IncompleteReadError):
            pass  # cut off, which is what it is for
        finally:
            for one in (writer, other):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None = None) -> None:
    passed = 0
    while data := await reader.read(65536):
        passed += len(data)
        if most is not None and passed > most:
            await reader.read(-1)
            await asyncio.Event().wait()
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


def proxy(server: ApiServer, port: int) -> Proxy:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.directory / "server.crt", server.directory / "server.key")
    return Proxy(server, port, context)


def answer(status: str, body: bytes = b"{}", *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", *headers, "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "Connection: close", "", "")).encode() + body


def test_one_that_has_too_much_to_do_is_asked_again_when_it_says(server: ApiServer) -> None:
    async def scenario(store: Store) -> None:
        async with proxy(server, 7001) as before:
            before.answers = [answer("429 Too Many Requests", b"{}", "Retry-After: 1")]
            began = asyncio.get_running_loop().time()
            await store.create(node("n"))
            assert asyncio.get_running_loop().time() - began >= 1
            assert before.asked == 2
            assert [one.metadata.name for one in (await store.list(Node)).items] == ["n"]
            before.answers = [answer("429 Too Many Requests", b'{"message":"no"}', "Retry-After: 3600")]
            with pytest.raises(StoreUnavailable, match="has too much to do: no"):
                await store.list(IPPool)

    run(server, scenario, entry(server, 7001))


def test_410_comes_as_a_status_or_in_the_stream(server: ApiServer) -> None:
    gone = b'{"kind":"Status","code":410,"reason":"Expired","message":"too old"}'
    stream = b'{"type":"ERROR","object":' + gone + b"}\n"

    async def scenario(store: Store) -> None:
        async with proxy(server, 7001) as before:
            for wrong in (answer("410 Gone", gone), answer("200 OK", stream)):
                version = (await store.list(Node)).version
                watch = store.watch(Node, version)

                async def read(watch: Any = watch) -> None:
                    async for _ in watch:
                        pass

                limited = b'{"metadata":{"resourceVersion":"999999999"},"items":[]}'
                before.answers = [answer("200 OK", limited), wrong]
                with pytest.raises(VersionExpired, match=r"kind Node.*too old"):
                    await read()
            before.answers = [answer("410 Gone", gone)]  # of a list that was read too slowly
            assert (await store.list(Node)).items == ()

    run(server, scenario, entry(server, 7001))


PARTS = {
    "half a document": (
        answer("200 OK", b'{"metadata":{"resourceVersion":"9"},"items":[{"meta'),
        "cannot be read",
    ),
    "cut off": (answer("200 OK", b'{"metadata":{"resourceVersion":"9"},"items":[]}')[:-9], "cannot be reached"),
    "no list": (answer("200 OK"), "is no list"),
    "no document": (answer("200 OK", b"<html>Sign in</html>"), "cannot be read"),
    "a failure": (answer("500 Internal Server Error", b"out of memory"), r"failed \(500\): out of memory"),
}


@pytest.mark.parametrize("how", PARTS)
def test_an_answer_in_part_is_none(server: ApiServer, how: str) -> None:
    """It would be a cluster without nodes. So for the answer's first half as for the second."""
    wrong, why = PARTS[how]
    first = answer("200 OK", b'{"metadata":{"resourceVersion":"9","continue":"more"},"items":[]}')

    async def scenario(store: Store) -> None:
        async with proxy(server, 7001) as before:
            await store.create(node("n"))
            before.about = b"/api/v1/nodes"
            for answers in ([wrong], [first, wrong]):
                before.answers = answers
                with pytest.raises(StoreUnavailable, match=why):
                    await store.list(Node)
            assert [one.metadata.name for one in (await store.list(Node)).items] == ["n"]

    run(server, scenario, entry(server, 7001))


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"kind":"\xff"}', b"[" * 10_000], ids=range(4))
def test_a_page_of_a_proxys_is_no_answer(server: ApiServer, body: bytes) -> None:
    """Nor an empty list, nor a right that is lacking."""

    async def main() -> None:
        api = Api(client.Client(entry(server, 7001), lambda address: server.socket(address[0])))
        obj = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
        async with proxy(server, 7001) as before, opened(server, entry(server, 7001)) as store:
            steps: list[Callable[[], Awaitable[object]]] = [
                lambda: api.list("/api/v1/nodes"),
                lambda: api.denied([Right("get", "", "nodes")]),
            ]
            if body != b"{}":
                steps += [lambda: api.apply(obj, force=True), lambda: store.post("/api/v1/nodes", obj)]
            for step in steps:
                before.answers = [answer("200 OK", body)]
                with pytest.raises(StoreUnavailable, match="the API server's answer"):
                    await step()
        await api.close()

    asyncio.run(main())


def test_an_answer_in_part_does_not_tell_clusters_apart(server: ApiServer) -> None:
    """What was known of the cluster would be thrown away."""

    async def scenario(store: Store) -> None:
        async with proxy(server, 7001) as before:
            before.about = b"/namespaces/kube-system"
            before.answers = [answer("200 OK")]
            with pytest.raises(StoreUnavailable, match="is no namespace"):
                await store.list(Node)
            version = (await store.list(Node)).version
            async with contextlib.aclosing(store.watch(Node, version)) as watch:
                assert isinstance(await anext(watch), Bookmark)

    run(server, scenario, entry(server, 7001))


def test_a_line_in_part_is_no_event(server: ApiServer) -> None:
    """A watch that ends in one, or tells what nobody knows, is taken up again from what it told before."""
    limited = answer("200 OK", b'{"metadata":{"resourceVersion":"999999999"},"items":[]}')

    async def scenario(store: Store) -> None:
        async with proxy(server, 7001) as before:
            version = (await store.list(Node)).version
            made = await store.create(node("n"))
            before.about = b"/api/v1/nodes"
            half = b'{"type":"ADDED","object":{"kind":"Node","metadata":{"name":"m","resour'
            before.answers = [limited, answer("200 OK", half)]
            assert [one async for one in store.watch(Node, version)] == [Bookmark(version)]
            renamed, latin = b'{"type":"RENAMED","object":{"metadata":{"name":"m"}}}', b'{"type":"\xff"}'
            for wrong in (half, renamed, b"5", latin, b'{"type":' + b"[" * 10_000):
                before.answers = [limited, answer("200 OK", wrong + b"\n")]
                watch = store.watch(Node, version)
                assert isinstance(await anext(watch), Bookmark)
                with pytest.raises(StoreUnavailable, match="wrote what is no event"):
                    await anext(watch)
            async with contextlib.aclosing(store.watch(Node, version)) as again:
                assert isinstance(await anext(again), Bookmark)
                told = await anext(again)
            assert isinstance(told, Event)
            assert told.object == made

    run(server, scenario, entry(server, 7001))


def test_a_list_that_comes_too_slowly_is_asked_for_in_smaller_parts(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 300 kB never come: eight of these nodes are more."""
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 2.0)
    names = [f"n{number:02}" for number in range(24)]
    large = {"annotations": {"example.org/x": "x" * 40_000}}
    for name in names:
        server.ask("POST", "/api/v1/nodes", {"metadata": {"name": name, **large}})

    async def scenario(store: Store) -> None:
        async with proxy(server, 7001) as before:
            before.most = 300_000
            listing = None
            while listing is None:
                with contextlib.suppress(StoreUnavailable):  # a machine that is busy may answer nothing in time
                    listing = await store.list(Node)
            assert [one.metadata.name for one in listing.items] == names

    run(server, scenario, entry(server, 7001))


def test_no_other_server_is_asked_for_as_much_as_comes_too_slowly(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 2.0)
    for number in range(4):
        metadata = {"name": f"n{number}", "annotations": {"example.org/x": "x" * 40_000}}
        server.ask("POST", "/api/v1/nodes", {"metadata": metadata})

    async def main() -> None:
        asking = client.Client(entry(server, 7001, 7002), lambda address: server.socket(address[0]))
        async with asyncio.timeout(2 * PATIENCE), proxy(server, 7001) as one, proxy(server, 7002) as other:
            one.most = other.most = 70_000
            ask, failed = asking._ask, list[type[BaseException]]()

            async def noted(*given: Any) -> Any:
                try:
                    return await ask(*given)
                except BaseException as error:
                    failed.append(type(error))
                    raise

            monkeypatch.setattr(asking, "_ask", noted)
            try:
                while client.SlowAnswer not in failed:  # on a busy machine an answer may not even begin in time
                    failed.clear()
                    with pytest.raises(StoreUnavailable):
                        await asking.request("GET", "/api/v1/nodes", query={"limit": "500"}, divisible=True)
            finally:
                await asking.close()
            assert failed.index(client.SlowAnswer) == len(failed) - 1

    asyncio.run(main())


def test_a_list_that_expires_is_read_anew_in_parts_as_small_as_before(server: ApiServer) -> None:
    gone = answer("410 Gone", b'{"kind":"Status","code":410,"reason":"Expired","message":"too old"}')
    limits: list[str] = []

    async def scenario(store: KubernetesStore) -> None:
        ask = store._client.request

        async def slowly(method: str, path: str, **more: Any) -> bytes:
            if "limit" in (query := more.get("query") or {}):
                limits.append(query["limit"])
                if len(limits) == 1:
                    raise StoreUnavailable("slow") from client.SlowAnswer()
            return await ask(method, path, **more)

        store._client.request = slowly  # type: ignore[method-assign]
        async with proxy(server, 7001) as before:
            before.about, before.answers = b"limit=", [gone]
            await store.list(Node)
        assert limits == ["500", "100", "100"]

    run(server, scenario, entry(server, 7001))


def test_a_clock_that_is_off_is_thought_of(server: ApiServer, tmp_path: Path) -> None:
    certificate, key = server.authority.issue("early", "kube-apiserver", hosts=(HOST,), early=timedelta(hours=-1))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def scenario(store: Store) -> None:
        async with Proxy(server, 7001, context):
            with pytest.raises(StoreUnavailable, match="not yet valid") as told:
                await store.list(Node)
        assert "is the clock right" in told.value.hint

    run(server, scenario, entry(server, 7001))


def test_a_full_database_is_told_and_read(frail_server: ApiServer) -> None:
    async def scenario(store: Store) -> None:
        version = (await store.list(Node)).version
        frail_server.fill(full=True)
        try:
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="database space exceeded") as told:
                    await store.create(node("no-room"))
                assert "etcdctl alarm disarm" in told.value.hint
            await store.list(Node)
            watch = store.watch(Node, version)
            assert isinstance(await anext(watch), Bookmark)
        finally:
            frail_server.fill(full=False)
        made = await store.create(node("room-again"))
        async with contextlib.aclosing(watch):
            told_of = [one async for one in _events(watch, 1)]
        assert [one.object for one in told_of] == [made]

    run(frail_server, scenario)


async def _events(watch: AsyncIterator[Event | Bookmark], most: int) -> AsyncIterator[Event]:
    """Yield so many changes that a watch tells."""
    while most and (one := await anext(watch)):
        if isinstance(one, Event):
            most -= 1
            yield one


def test_another_server_is_asked_when_one_is_gone(server: ApiServer) -> None:
    both = entry(server, 7001, 7002)

    async def scenario(store: Store) -> None:
        await store.create(node("n"))  # the first server's port is closed
        async with proxy(server, 7001) as one, proxy(server, 7002) as two, opened(server, both) as other:
            start = (await other.list(Node)).version
            watch = other.watch(Node, start)
            await anext(watch)
            assert (one.asked > 0, two.asked) == (True, 0)
            made = await store.create(node("m"))
            told = await anext(watch)
            assert isinstance(told, Event)
            assert told.object == made
            one.answers = [answer("503 Service Unavailable")] * 9
            one.cut()
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await anext(watch)
            last = await store.create(node("o"))
            async with contextlib.aclosing(other.watch(Node, told.version)) as again:
                assert isinstance(await anext(again), Bookmark)
                event = await anext(again)
                assert isinstance(event, Event)
                assert event.object == last
            assert two.asked > 0

    run(server, scenario, entry(server, 7009, PORT))


def test_in_a_cluster_all_servers_are_found_behind_the_service(server: ApiServer, tmp_path: Path) -> None:
    """The second of them answers still when the first, and the Service, are gone."""
    server.inside("ip", "addr", "add", "192.0.2.77/32", "dev", "lo")
    (tmp_path / "token").write_text(ADMIN)
    shutil.copy(server.authority.path, tmp_path / "ca.crt")
    where = in_cluster({"KUBERNETES_SERVICE_HOST": HOST, "KUBERNETES_SERVICE_PORT": "7001"}, tmp_path)
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    servers = {
        "metadata": {"name": "kubernetes"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.78"]}, {"addresses": ["192.0.2.77"]}],
        "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
    }
    server.ask("POST", path, servers)

    async def scenario(store: Store) -> None:
        async with proxy(server, 7001):
            await store.create(node("n"))
            version = (await store.list(Node)).version
        assert [one.metadata.name for one in (await store.list(Node)).items] == ["n"]
        async with contextlib.aclosing(store.watch(Node, version)) as watch:
            assert isinstance(await anext(watch), Bookmark)

    try:
        run(server, scenario, where)
    finally:
        server.ask("DELETE", f"{path}/kubernetes")
        server.inside("ip", "addr", "del", "192.0.2.77/32", "dev", "lo")


def test_an_authority_that_was_replaced_is_believed_without_a_restart(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.kubernetes import Authority

    monkeypatch.setattr(access, "READ_AGAIN", 0.0)
    new = Authority(tmp_path, "new-ca")
    certificate, key = new.issue("server", "kube-apiserver", hosts=(HOST,))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    trusted = tmp_path / "ca.crt"
    shutil.copy(server.authority.path, trusted)

    async def scenario(store: Store) -> None:
        async with Proxy(server, 7001, context):
            with pytest.raises(StoreUnavailable, match=r"(?i)certificate verify failed"):
                await store.list(Node)
            trusted.write_text(server.authority.pem + new.pem)  # both, while it is being replaced
            assert (await store.list(Node)).items == ()

    run(server, scenario, entry(server, 7001, authorities=Material(path=trusted)))


class Known:
    """What one knows of nodes who hears what an informer tells."""

    def __init__(self, store: Store) -> None:
        self.names: set[str] = set()
        self.listings = 0
        self.lost: list[StoreError] = []
        self._told = asyncio.Event()
        self._informer = Informer(
            store, Node, version=None, hear=self._hear, lost=self._lose, reached=self._told.set
        )

    def _hear(self, one: Event | Listing[Resource]) -> None:
        if isinstance(one, Listing):
            self.names = {obj.metadata.name for obj in one.items}
            self.listings += 1
        else:
            assert not isinstance(one.object, RejectedObject)
            (self.names.discard if one.type == "deleted" else self.names.add)(one.object.metadata.name)
        self._told.set()

    def _lose(self, error: StoreError) -> None:
        self.lost.append(error)
        self._told.set()

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Have the informer run; what ends it ends the test."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._informer.run())
            yield
            task.cancel()

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():
            self._told.clear()
            await self._told.wait()


def test_a_server_that_hangs_is_left_and_gone_back_to(
    frail_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "IDLE_TIMEOUT", 1.0)
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr(informers, "RETRY", 0.1)

    async def scenario(store: Store) -> None:
        known = Known(store)
        async with known.following():
            await known.until(lambda: known.listings)
            frail_server.signal(signal.SIGSTOP)
            try:
                await known.until(lambda: known.lost)
            finally:
                frail_server.signal(signal.SIGCONT)
            async with opened(frail_server, entry(frail_server)) as other:
                while True:
                    with contextlib.suppress(StoreUnavailable):
                        await other.create(node("after-it-hung"))
                        break
            await known.until(lambda: "after-it-hung" in known.names)
        assert known.listings == 1, "the watch was taken up again"

    run(frail_server, scenario)


@pytest.mark.parametrize("how", ["restarted", "set back", "made anew"])
def test_nothing_is_lost_when_the_server_comes_back(
    frail_server: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """The same API server; one with an older state of its database; another cluster at the same address."""
    monkeypatch.setattr(informers, "RETRY", 0.1)
    frail_server.end()
    saved = tmp_path / "saved"
    shutil.copytree(frail_server.data, saved)
    frail_server.start()

    async def scenario(store: Store) -> None:
        known = Known(store)
        async with known.following():
            mark = f"before-{how.replace(' ', '-')}"
            await store.create(node(mark))
            await known.until(lambda: mark in known.names)
            before = set(known.names)
            if how == "set back":
                # So many changes that those which the API server makes when it starts do not make up for them.
                for number in range(400):
                    change = {"metadata": {"labels": {"x": str(number)}}}
                    await store.patch(Node, mark, change)
            # In this very thread: with another, its children would end.
            come_back(frail_server, how, saved)
            async with opened(frail_server, entry(frail_server)) as other:
                await other.create(node(f"after-{how.replace(' ', '-')}"))
                stored = {one.metadata.name for one in (await other.list(Node)).items}
            await known.until(lambda: known.names == stored)
            assert before <= stored if how == "restarted" else not before <= stored
            if how == "made anew":
                with pytest.raises(StoreUnavailable, match=r"(?s)does not know kind IPPool.*deploy/crds.yaml"):
                    await store.list(IPPool)

    run(frail_server, scenario)


def test_another_cluster_is_known_for_one_though_no_connection_was_lost(frail_server: ApiServer) -> None:
    """Nobody asked anything while the server was replaced, and the new one has come as far as the old one had."""

    async def scenario(store: Store) -> None:
        version = (await store.list(Node)).version
        reached = int(version.rpartition(".")[2])
        come_back(frail_server, "made anew", Path())
        async with opened(frail_server, entry(frail_server)) as other:
            made = await other.create(node("another-cluster"))
            while int(made.metadata.resource_version) <= reached:
                label = {"metadata": {"labels": {"x": made.metadata.resource_version}}}
                made = await other.patch(Node, made.metadata.name, label)
        with pytest.raises(VersionExpired, match="is no version of kind Node here"):
            await anext(store.watch(Node, version))

    run(frail_server, scenario)


def come_back(server: ApiServer, how: str, saved: Path) -> None:
    server.end()
    if how == "set back":
        shutil.rmtree(server.data)
        shutil.copytree(saved, server.data)
    if how == "made anew":
        shutil.rmtree(server.data)
    server.start()


# What the kinds are


def test_a_kind_that_the_server_does_not_know_is_empty_until_it_does(
    frail_server: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kubernetes, "LOOK_AGAIN", 0.1)
    selector = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    pods = {
        "type": "object",
        "required": ["namespaceSelector", "podSelector"],  # as the project's own definition has it
        "properties": {"namespaceSelector": selector, "podSelector": selector},
    }
    subject = {"type": "object", "properties": {"pods": pods}}
    whatever = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    ingress = {"type": "array", "items": {**whatever, "properties": {"from": {"type": "array", "items": subject}}}}
    spec = {**whatever, "properties": {"subject": subject, "ingress": ingress}}
    definition = tmp_path / "cnp.yaml"
    names = {"kind": "ClusterNetworkPolicy", "plural": "clusternetworkpolicies"}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    group = "policy.networking.k8s.io"
    approved = {"api-approved.kubernetes.io": "unapproved, a test"}

    def write(*versions: tuple[str, bool]) -> None:
        """Write the definition with these versions; the first is stored, and those are served that are to be."""
        every = [
            {"name": name, "served": served, "storage": name == versions[0][0], "schema": schema}
            for name, served in versions
        ]
        definition.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "apiextensions.k8s.io/v1",
                    "kind": "CustomResourceDefinition",
                    "metadata": {"name": f"clusternetworkpolicies.{group}", "annotations": approved},
                    "spec": {"group": group, "scope": "Cluster", "names": names, "versions": every},
                }
            )
        )

    write(("v1beta1", True))

    async def scenario(store: Store) -> None:
        listing = await store.list(ClusterNetworkPolicy)
        assert (listing.items, listing.rejected) == ((), ())
        watch = store.watch(ClusterNetworkPolicy, listing.version)
        assert isinstance(await anext(watch), Bookmark)
        await asyncio.to_thread(frail_server.define, definition)
        with pytest.raises(VersionExpired):
            await anext(watch)
        everything = ClusterPolicySubject(pods=NamespacedPod())
        spec = ClusterNetworkPolicySpec(tier="Admin", priority=1, subject=everything)
        policy = ClusterNetworkPolicy(metadata=Metadata(name="p"), spec=spec)
        made = await store.create(policy)
        assert made.spec == policy.spec
        assert (await store.list(ClusterNetworkPolicy)).items == (made,)
        # A list that is changed is sent whole, so what the API wants of its items has to be in it.
        peer = {"pods": {"podSelector": {"matchLabels": {"app": "web"}}}}
        rule = {"name": "r", "action": "Deny", "from": [peer]}
        await store.patch(ClusterNetworkPolicy, "p", {"spec": {"ingress": [rule]}})
        ruled = await store.patch(ClusterNetworkPolicy, "p", {"spec": {"ingress": [{**rule, "action": "Accept"}]}})
        assert [each.action for each in ruled.spec.ingress] == ["Accept"]

        # Served in another version from now on, it is the same object.
        write(("v1alpha2", True), ("v1beta1", False))
        await asyncio.to_thread(frail_server.define, definition)
        former = f"/apis/{group}/v1beta1/clusternetworkpolicies"
        await asyncio.to_thread(eventually, lambda: not frail_server.answers(former))
        assert (await store.list(ClusterNetworkPolicy)).items[0].spec == ruled.spec

    run(frail_server, scenario)


DEFINITIONS = ROOT / "deploy/crds.yaml"


@contextlib.contextmanager
def redefined(server: ApiServer, directory: Path, kind: str, change: Callable[[Any], None]) -> Iterator[None]:
    """Have a kind's definition changed (that is, its version), and as it was afterwards."""
    (document,) = [
        one for one in yaml.safe_load_all(DEFINITIONS.read_text()) if one["spec"]["names"]["kind"] == kind
    ]
    former, other = directory / "former.yaml", directory / "other.yaml"
    former.write_text(yaml.safe_dump(document))
    change(document["spec"]["versions"][0])
    other.write_text(yaml.safe_dump(document))
    server.define(other)
    try:
        yield
    finally:
        server.define(former)


WHATEVER = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
PEERS = "/apis/podway.io/v1/bgppeers"
RIGHT = {"address": "192.0.2.9", "asn": 64513}
STRANGE: Mapping[str, Any] = {
    "newer": {"spec": {**RIGHT, "colour": "red"}},
    "text": {"spec": "192.0.2.1"},
    "none": {},
    "list": {"spec": [RIGHT]},
    "number": {"spec": {**RIGHT, "address": 5}},
    "huge": {"spec": {**RIGHT, "asn": 10**18}},
    "deep": {"spec": {**RIGHT, "address": json.loads("[" * 200 + "]" * 200)}},
    "null": {"spec": {"address": None, "asn": None}},
}
"""What cannot be a BGPPeer to this Podway, by name."""


def test_what_newer_definitions_allow_is_rejected_one_by_one(frail_server: ApiServer, tmp_path: Path) -> None:
    """As is what somebody wrote past a schema; the others are there, and a watch goes on behind it."""

    def loosen(version: Any) -> None:
        version["schema"] = {"openAPIV3Schema": {**WHATEVER, "properties": {"status": WHATEVER}}}

    def write(name: str, document: Mapping[str, Any]) -> bool:
        whole = {"apiVersion": "podway.io/v1", "kind": "BGPPeer", "metadata": {"name": name}, **document}
        try:
            frail_server.ask("POST", PEERS, whole)
        except Answer:  # a new schema counts a moment after it was given
            return False
        return True

    async def scenario(store: Store) -> None:
        start = (await store.list(BGPPeer)).version
        for name, document in {**STRANGE, "right": {"spec": RIGHT}}.items():
            await asyncio.to_thread(eventually, lambda n=name, d=document: write(n, d), f"{name} is written")
        listing = await store.list(BGPPeer)
        assert [one.metadata.name for one in listing.items] == ["right"]
        assert {one.key[2] for one in listing.rejected} == set(STRANGE)
        assert all(one.problem for one in listing.rejected)
        async with contextlib.aclosing(store.watch(BGPPeer, start)) as watch:
            told = [one.object async for one in _events(watch, len(STRANGE) + 1)]
        assert [type(one) for one in told] == [RejectedObject] * len(STRANGE) + [BGPPeer]
        for name in (*STRANGE, "right"):
            await store.delete(BGPPeer, name)

    with redefined(frail_server, tmp_path, "BGPPeer", loosen):
        run(frail_server, scenario)


def test_a_field_that_older_definitions_lack_is_refused_by_name(frail_server: ApiServer, tmp_path: Path) -> None:
    """The API server would drop it without a word; what the definitions know goes on."""

    def forget(version: Any) -> None:
        del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["bfd"]

    spec = BGPPeerSpec(address="192.0.2.9", asn=64513)

    async def scenario(store: Store) -> None:
        async def refused() -> str:
            newer = msgspec.structs.replace(spec, bfd=True)
            try:
                await store.create(BGPPeer(metadata=Metadata(name="p"), spec=newer))
            except InvalidObject as error:
                return f"{error} {error.hint}"
            await store.delete(BGPPeer, "p")  # the older schema counts a moment after it was given
            return ""

        words = ""
        while not words:
            words = await refused()
        assert "BGPPeer/p" in words
        assert 'unknown field "spec.bfd"' in words
        assert "older than this Podway" in words
        made = await store.create(BGPPeer(metadata=Metadata(name="p"), spec=spec))
        with pytest.raises(InvalidObject, match=r'unknown field "spec.bfd"'):
            await store.patch(BGPPeer, "p", {"spec": {"bfd": True}})
        assert (await store.get(BGPPeer, "p")) == made
        changed = await store.patch(BGPPeer, "p", {"spec": {"asn": 64514}})
        assert changed.spec.asn == 64514
        await store.delete(BGPPeer, "p")

    with redefined(frail_server, tmp_path, "BGPPeer", forget):
        run(frail_server, scenario)


def test_only_podways_own_leases_are_seen(server: ApiServer) -> None:
    """A kubelet's lease has the node's name, too."""
    lease = {"metadata": {"name": "n"}, "spec": {"holderIdentity": "kubelet"}}
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    server.ask("POST", path, lease)

    async def scenario(store: Store) -> None:
        assert (await store.list(NodeLease)).items == ()
        spec = LeaseSpec(holder_identity="me", lease_duration_seconds=30, renew_time="2026-01-31T12:00:00.123456Z")
        start = (await store.list(NodeLease)).version
        made = await store.create(NodeLease(metadata=Metadata(name="n", namespace=LEASES), spec=spec))
        assert made.spec == spec
        assert (await store.list(NodeLease)).items == (made,)
        async with contextlib.aclosing(store.watch(NodeLease, start)) as watch:
            await anext(watch)
            told = await anext(watch)
            assert isinstance(told, Event)
            assert told.object == made

    try:
        run(server, scenario)
    finally:
        server.ask("DELETE", f"{path}/n")


def test_of_several_addresses_of_a_family_a_node_has_the_first(server: ApiServer) -> None:
    async def scenario(store: Store) -> None:
        made = await store.create(node("n"))
        several = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]
        addresses = tuple(NodeAddress(type="InternalIP", address=one) for one in several)
        await store.update_status(msgspec.structs.replace(made, status=NodeStatus(addresses=addresses)))
        seen = await store.get(Node, "n")
        assert list(map(str, seen.internal_addresses)) == ["192.0.2.1", "2001:db8::1"]
        await store.patch(Node, "n", {"metadata": {"annotations": {"podway.io/asn": "64513"}}})
        stored = server.ask("GET", "/api/v1/nodes/n")
        assert [one["address"] for one in stored["status"]["addresses"]] == several

    run(server, scenario)


def test_a_foreign_object_that_is_rejected_is_patched_and_one_of_ours_replaced(server: ApiServer) -> None:
    """Either keeps its owners."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "6c0f0a5e-2d2f-4f4e-9c0b-0c6f0f1b2a3d"}
    server.ask(
        "POST",
        "/api/v1/nodes",
        {
            "metadata": {"name": "n", "annotations": {"podway.io/asn": "many"}, "ownerReferences": [owner]},
            "spec": {"providerID": "cloud://n", "unschedulable": True},
        },
    )
    peers = f"/apis/{GROUP}/v1/bgppeers"
    # A rule that can never match is beyond CEL, too.
    imports = [{"cidr": "10.0.0.0/8", "maxLength": 24, "action": action} for action in ("accept", "reject")]
    server.ask(
        "POST",
        peers,
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "BGPPeer",
            "metadata": {"name": "b", "ownerReferences": [owner]},
            "spec": {"address": "192.0.2.1", "asn": 64512, "import": imports},
        },
    )
    # The name of an IPv6 block is beyond CEL.
    block = AddressBlock(
        metadata=Metadata(name="wrong"), spec=AddressBlockSpec(cidr="fd00::/122", pool="p", node="n")
    )

    async def scenario(store: Store) -> None:
        await store.create(node("other"))
        listing = await store.list(Node)
        assert [one.metadata.name for one in listing.items] == ["other"]
        assert "asn" in listing.rejected[0].problem
        with pytest.raises(ObjectDamaged):
            await store.get(Node, "n")
        found = listing.rejected[0].found
        assert isinstance(found, Node)
        await store.update(
            msgspec.structs.replace(
                found, metadata=msgspec.structs.replace(found.metadata, annotations={"podway.io/asn": "64513"})
            )
        )
        assert (await store.get(Node, "n")).asn == 64513
        stored = server.ask("GET", "/api/v1/nodes/n")
        assert stored["spec"]["providerID"] == "cloud://n"
        assert stored["metadata"]["ownerReferences"] == [owner]
        (unfit,) = (await store.list(BGPPeer)).rejected
        assert isinstance(unfit.found, BGPPeer)
        await store.update(msgspec.structs.replace(unfit.found, spec=BGPPeerSpec(address="192.0.2.1", asn=64512)))
        assert server.ask("GET", f"{peers}/b")["metadata"]["ownerReferences"] == [owner]
        with pytest.raises(ObjectDamaged):
            await store.create(block)
        assert [one.key[2] for one in (await store.list(AddressBlock)).rejected] == ["wrong"]
        await store.delete(AddressBlock, "wrong")
        with pytest.raises(InvalidObject, match=r"IPPool/p: spec: .*RFC 2003"):
            await store.create(
                IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="fd00::/64", encapsulation="ipip"))
            )

    run(server, scenario)


def test_commands_work_on_a_cluster(server: ApiServer, tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, server)
    pid = server._processes["etcd"].pid

    def podway(*arguments: str, text: str = "") -> str:
        command = ("nsenter", f"--net=/proc/{pid}/ns/net", str(Path(sys.executable).parent / "podway"))
        done = subprocess.run(
            [*command, "--store", f"kubernetes://{path}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pool = "apiVersion: podway.io/v1\nkind: IPPool\nmetadata: {name: pods}\nspec: {cidr: 10.9.0.0/16}\n"
    podway("apply", "-f", "-", text=pool)
    assert "10.9.0.0/16" in podway("get", "pools")
    podway("set", "pool/pods", "encapsulation=vxlan")
    assert server.ask("GET", "/apis/podway.io/v1/ippools/pods")["spec"]["encapsulation"] == "vxlan"
    podway("delete", "pool", "pods")
    assert server.ask("GET", "/apis/podway.io/v1/ippools")["items"] == []
