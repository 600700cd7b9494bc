"""The etcd store where things go wrong, and who may do what: against real etcds."""

import asyncio
import base64
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from podway.api.checked import RejectedObject
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec
from podway.api.kinds.cluster_authority import KEYS, KEYS_SPACE
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import LEASES, LeaseSpec, NodeLease
from podway.api.kinds.pod import Pod
from podway.api.kinds.secret import Secret
from podway.api.meta import Metadata
from podway.errors import (
    AlreadyExists,
    Conflict,
    InvalidObject,
    ObjectDamaged,
    StoreError,
    StoreForbidden,
    StoreTooNew,
    StoreUnavailable,
    VersionExpired,
)
from podway.ipam.claims import claim
from podway.store import informer as informers
from podway.store.base import Bookmark, Event, Store, list_all
from podway.store.etcd import client
from podway.store.etcd.access import read_url
from podway.store.etcd.keys import Layout, below
from podway.store.etcd.store import EtcdStore
from tests.etcd import HOST, EtcdServer, running_etcd
from tests.patience import PATIENCE
from tests.store.conftest import fact
from tests.store.test_following import following
from tests.store.test_rejected import BODIES

pytestmark = pytest.mark.kernel

Scenario = Callable[..., Awaitable[object]]


@contextlib.asynccontextmanager
async def opened(server: EtcdServer, url: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(read_url(url), sockets=server.socket)
    try:
        yield store
    finally:
        await store.close()


def run(server: EtcdServer, scenario: Scenario, *urls: str) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(2 * PATIENCE):
            stores = [await stack.enter_async_context(opened(server, url)) for url in urls]
            await scenario(*stores)

    asyncio.run(main())


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A part of the etcd that all tests share."""
    return f"test-{abs(hash(request.node.name)):x}"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd of three members, for what one does not survive."""
    with running_etcd(tmp_path_factory.mktemp("three"), members=3, options=("--unsafe-no-fsync",)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd with TLS, which wants certificates, and accounts."""
    with running_etcd(tmp_path_factory.mktemp("guarded"), tls=True, options=("--unsafe-no-fsync",)) as server:
        server.enable_accounts()
        (server.directory / "root.password").write_text("secret-of-root\n")
        yield server


def node(name: str, **labels: str) -> Node:
    return Node(metadata=Metadata(name=name, labels=labels))


def block(number: int, owner: str) -> AddressBlock:
    spec = AddressBlockSpec(cidr=f"10.9.{number}.0/24", pool="p", node=owner)
    return AddressBlock(metadata=Metadata(name=f"10-9-{number}-0-24"), spec=spec)


def names(items: Any) -> list[str]:
    return [one.metadata.name for one in items]


async def persistently(work: Callable[[], Awaitable[object]]) -> None:
    """Do what may fail, and may have been done though it did, until it is done."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            with contextlib.suppress(AlreadyExists):
                await work()
            return


# Servers that fail


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_another_member_is_asked_when_one_is_gone_or_hangs(
    three: EtcdServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(informers, "RETRY", 0.05)
    monkeypatch.setattr(client, "SILENCE", 0.5)
    monkeypatch.setattr(client, "ALIVE_TIMEOUT", 3.0)
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 5.0)

    async def scenario(store: EtcdStore, other: EtcdStore) -> None:
        async with following(store, Node) as known:
            await known.until(lambda: known.listings == 1)
            await other.create(node(f"before-{how}"))
            await known.until(lambda: f"before-{how}" in known.objects)
            asked = store._client.servers[0]
            member = next(one for one in range(3) if asked.endswith(f":{three.port(one)}"))
            if how == "killed":
                three.kill(member)
            else:
                three.signal(signal.SIGSTOP, member)
            try:
                await persistently(partial(other.create, node(f"after-{how}")))
                await known.until(lambda: f"after-{how}" in known.objects)
            finally:
                if how == "killed":
                    three.start()
                else:
                    three.signal(signal.SIGCONT, member)
            assert known.listings == 1, "the watch was taken up again"
            assert store._client.servers[0] != asked

    run(three, scenario, three.url("gone"), three.url("gone"))


def test_members_without_a_leader_are_told_and_taken_up_again(
    three: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informers, "RETRY", 0.05)
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 2.0)

    async def scenario(store: EtcdStore) -> None:
        async with following(store, Node) as known:
            await known.until(lambda: known.listings == 1)
            for member in (0, 1):
                three.kill(member)
            try:
                await known.until(lambda: known.lost)
                with pytest.raises(StoreUnavailable, match=r"etcd http://127\.0\.0\.1:23"):
                    await store.list(Node)
            finally:
                three.start()
            await persistently(partial(store.create, node("back")))
            await known.until(lambda: "back" in known.objects)
            assert known.listings == 1

    run(three, scenario, three.url("leaderless"))


@pytest.mark.parametrize("how", ["restarted", "set back", "made anew"])
def test_nothing_is_lost_when_the_server_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The same etcd; one with an older state; another cluster at the same address, which has got further."""
    monkeypatch.setattr(informers, "RETRY", 0.05)
    with running_etcd(tmp_path / "etcd") as server:

        async def scenario(store: EtcdStore) -> None:
            async with following(store, Node) as known:
                await known.until(lambda: known.listings == 1)
                await store.create(node("before"))
                if how == "set back":
                    server.stop(keep=True)
                    saved = (server.directory / "m0").rename(tmp_path / "saved")
                    for path in saved.rglob("*"):
                        target = server.directory / "m0" / path.relative_to(saved)
                        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
                    server.start()
                    for name in "abc":
                        await persistently(partial(store.create, node(name)))
                    await known.until(lambda: "c" in known.objects)
                    server.stop()
                    saved.rename(server.directory / "m0")
                else:
                    await known.until(lambda: "before" in known.objects)
                    server.stop(keep=how == "restarted")
                server.start()
                if how == "made anew":
                    for _ in range(20):
                        server.put(b"others", b"x")
                async with opened(server, server.url()) as other:
                    await other.create(node("after"))
                    stored = set(names((await other.list(Node)).items))
                await known.until(lambda: set(known.objects) == stored)
                assert ("before" in stored) is (how != "made anew")
                assert known.listings == (1 if how == "restarted" else 2)

        run(server, scenario, server.url())


def test_a_quiet_watch_hears_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it need not list anew, once it is taken up again, what was never changed."""
    monkeypatch.setattr(informers, "RETRY", 0.05)
    monkeypatch.setattr(client, "WATCH_SECONDS", (3.0, 3.0))
    monkeypatch.setattr(client, "SILENCE", 0.2)
    often = "--watch-progress-notify-interval=100ms"
    with running_etcd(tmp_path / "etcd", options=(often, "--unsafe-no-fsync")) as server:

        async def scenario(store: EtcdStore) -> None:
            watch = store.watch(Namespace, (await store.list(Namespace)).version)
            await anext(watch)
            await store.create(node("n"))
            newest = (await store.list(Node)).version
            while (told := await anext(watch)).version != newest:
                assert isinstance(told, Bookmark)
            server.compact()
            last = [told, *[one async for one in watch]][-1]  # until it has stood for long enough
            assert await anext(store.watch(Namespace, last.version)) == Bookmark(last.version)

        run(server, scenario, server.url())


def test_a_deletion_in_the_very_revision_that_was_forgotten_is_not_missed(
    etcd_server: EtcdServer, prefix: str
) -> None:
    """A watch from there stands in etcd 3.4, and leaves it out."""

    async def scenario(store: Store) -> None:
        await store.create(node("n"))
        version = (await store.list(Node)).version
        await store.delete(Node, "n")
        etcd_server.compact()
        with pytest.raises(VersionExpired, match="Node"):
            await anext(store.watch(Node, version))

    run(etcd_server, scenario, etcd_server.url(prefix))


def test_a_full_etcd_is_told_and_what_is_there_is_read(tmp_path: Path) -> None:
    with running_etcd(tmp_path / "etcd", options=("--quota-backend-bytes=262144", "--unsafe-no-fsync")) as server:

        async def scenario(store: Store) -> None:
            text = {"example.org/text": "x" * 50_000}

            async def fill() -> None:
                for number in range(100):
                    await store.create(Node(metadata=Metadata(name=f"n{number}", annotations=text)))

            with pytest.raises(StoreUnavailable, match="is full, and takes no change") as error:
                await fill()
            assert "etcdctl alarm disarm" in error.value.hint
            version = (await store.list(Node)).version
            assert len((await store.list(Node)).items) > 0
            assert await anext(store.watch(Node, version)) == Bookmark(version)

        run(server, scenario, server.url())


def test_what_is_too_large_for_etcd_is_refused(etcd_server: EtcdServer, prefix: str) -> None:
    async def scenario(store: Store) -> None:
        text = {f"example.org/text{number}": "x" * 200_000 for number in range(10)}
        with pytest.raises(InvalidObject, match="Secret/podway/s: is too large for etcd"):
            await store.create(Secret(metadata=Metadata(name="s", namespace="podway"), string_data=text))
        await store.create(node("n"))

    run(etcd_server, scenario, etcd_server.url(prefix))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "cannot be reached"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"kvs": 5', "none of its answers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe", "none of its answers"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nnil", "is it an etcd, of 3.4 or newer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
        (None, "no answer in time"),
    ],
)
def test_what_a_server_answers_in_part_or_never_is_told(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, told: str
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 0.3)

    served: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def main() -> None:
        async with await asyncio.start_server(serve, HOST, 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            store = EtcdStore(read_url(f"etcd://{HOST}:{port}"))
            with pytest.raises(StoreUnavailable, match=told):
                await store.list(Node)
            await store.close()
            await asyncio.gather(*(task for task in served if task is not None))

    asyncio.run(main())


def test_of_an_etcd_that_is_not_there_it_is_said_where_it_should_be() -> None:
    async def main() -> None:
        store = EtcdStore(read_url(f"etcd://{HOST}:1,{HOST}:2"))
        with pytest.raises(
            StoreUnavailable, match=rf"etcd http://{HOST}:[12] cannot be reached: .*Connect call failed"
        ):
            await store.list(Node)
        await store.close()
        with pytest.raises(StoreUnavailable, match="was closed"):
            await store.list(Node)

    asyncio.run(main())


# What others wrote


def test_what_others_wrote_is_set_aside_and_the_rest_is_read(etcd_server: EtcdServer, prefix: str) -> None:
    layout = Layout(prefix)
    where = {f"b{number}": body for number, body in enumerate(BODIES.values())}

    async def scenario(store: Store) -> None:
        version = (await store.list(Namespace)).version
        for name in ("a", "z"):
            await store.create(Namespace(metadata=Metadata(name=name)))
        for name, body in where.items():
            data = body if isinstance(body, bytes) else body.encode()
            etcd_server.put(layout.key(("Namespace", "", name)), data)
        odd = (b"\xff\x00", b"x/y", b"/", b"%41", "\N{SNOWMAN}".encode())
        for rest in odd:
            etcd_server.put(f"{prefix}/Namespace/".encode() + rest, b"{}")
            etcd_server.put(f"{prefix}/Pod/".encode() + rest, b"{}")
        etcd_server.put(f"{prefix}/Firewall/f".encode(), b"{}")
        listing = await store.list(Namespace)
        assert names(listing.items) == ["a", "z"]
        assert len(listing.rejected) == len(where) + len(odd)
        assert all(str(one).isprintable() for one in listing.rejected if one.found is None)
        (unknown,) = await store.unknown()
        assert "Firewall/f is rejected: Firewall is no kind that this Podway knows" in str(unknown)
        assert len((await list_all(store)).rejected) == len(where) + 2 * len(odd) + 1

        watch = store.watch(Namespace, version)
        told = [await anext(watch) for _ in range(1 + 2 + len(where) + len(odd))]
        rejected = [
            one.object for one in told if isinstance(one, Event) and isinstance(one.object, RejectedObject)
        ]
        assert {one.key for one in rejected} == {one.key for one in listing.rejected}
        await watch.aclose()

        for one in listing.rejected:
            with pytest.raises(AlreadyExists) if one.key[2] in where else contextlib.nullcontext():
                if one.key[2] in where:
                    await store.create(Namespace(metadata=Metadata(name=one.key[2])))
            with pytest.raises(ObjectDamaged):
                await store.get(Namespace, one.key[2])
        replaced = next(one for one in listing.rejected if one.found is None and one.key[2] in where)
        await store.update(Namespace(metadata=Metadata(name=replaced.key[2])))
        assert (await store.get(Namespace, replaced.key[2])).metadata.uid
        for one in listing.rejected:
            await store.delete(Namespace, one.key[2])
        after = await store.list(Namespace)
        assert (names(after.items), after.rejected) == (["a", "z"], ())
        for stray in (await list_all(store)).rejected:
            if stray.key[0] == "Pod":
                await store.delete(Pod, stray.key[2], namespace=stray.key[1])
        assert [one.key[0] for one in (await list_all(store)).rejected] == ["Firewall"]

    run(etcd_server, scenario, etcd_server.url(prefix))


def test_what_is_written_by_hand_is_an_object_as_any(etcd_server: EtcdServer, prefix: str) -> None:
    """Also several in one revision: no version between them is told, from which a watch would miss some."""
    layout = Layout(prefix)

    def body(name: str) -> bytes:
        return json.dumps({"metadata": {"name": name, "resourceVersion": "forged"}, "extra": [1]}).encode()

    async def scenario(store: Store) -> None:
        version = (await store.list(Node)).version
        puts = [
            {
                "request_put": {
                    "key": base64.b64encode(layout.key(("Node", "", name))).decode(),
                    "value": base64.b64encode(body(name)).decode(),
                }
            }
            for name in ("a", "b")
        ]
        etcd_server.ask("kv/txn", {"success": puts})
        watch = store.watch(Node, version)
        assert await anext(watch) == Bookmark(version)
        first, second = await anext(watch), await anext(watch)
        assert isinstance(first, Event)
        assert first.version == version
        assert (await store.list(Node)).version == second.version
        await watch.aclose()
        found = await store.get(Node, "a")
        assert found.metadata.resource_version != "forged"
        await store.patch(Node, "a", {"metadata": {"labels": {"x": "y"}}})
        stored = json.loads(etcd_server.get(layout.key(("Node", "", "a"))))
        assert stored["extra"] == [1]
        assert "resourceVersion" not in stored["metadata"]

    run(etcd_server, scenario, etcd_server.url(prefix))


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (b"nonsense", StoreUnavailable, "tells no cluster"),
        (b'{"uid":"x","format":2}', StoreTooNew, "written in form 2, and this Podway knows 1"),
    ],
)
def test_a_store_of_another_form_is_refused(
    etcd_server: EtcdServer, prefix: str, value: bytes, error: type[StoreError], words: str
) -> None:
    etcd_server.put(Layout(prefix).identity, value)

    async def scenario(store: Store) -> None:
        for work in (store.list(Node), store.create(node("n")), anext(store.watch(Node, "x.1"))):
            with pytest.raises(error, match=words):
                await work

    run(etcd_server, scenario, etcd_server.url(prefix))


# Claims


def test_of_two_claims_of_a_block_the_first_counts(etcd_server: EtcdServer, prefix: str) -> None:
    layout = Layout(prefix)

    async def scenario(store: Store) -> None:
        version = (await store.list(AddressBlock)).version
        mine = await store.create(block(1, "honest"))
        with pytest.raises(AlreadyExists):
            await store.create(block(1, "late"))
        with pytest.raises(AlreadyExists):
            await store.create(block(1, "honest"))
        # Past Podway, as one would who has the account of a node: in the own range, which etcd allows.
        twice = msgspec.json.encode(block(1, "evil"))
        etcd_server.put(layout.key(("AddressBlock", "", "10-9-1-0-24"), "evil"), twice)
        forged = msgspec.json.encode(block(2, "honest"))
        etcd_server.put(layout.key(("AddressBlock", "", "10-9-2-0-24"), "evil"), forged)

        listing = await store.list(AddressBlock)
        assert listing.items == (mine,)
        problems = {one.key[2]: one.problem for one in listing.rejected}
        assert problems.keys() == {"evil/10-9-1-0-24", "10-9-2-0-24"}
        assert "claims what another node claimed before" in problems["evil/10-9-1-0-24"]
        assert "a claim of node evil, and says that it is honest's" in problems["10-9-2-0-24"]
        assert await store.get(AddressBlock, "10-9-1-0-24") == mine

        watch = store.watch(AddressBlock, version)
        told = [await anext(watch) for _ in range(6)]
        # The late claim came and went within a moment: that there was something is all that is told.
        first, last = (one.object for one in told if isinstance(one, Event))
        assert first == mine
        assert isinstance(last, RejectedObject)
        assert last.key == ("AddressBlock", "", "10-9-2-0-24")
        await watch.aclose()

    async def afterwards(store: Store) -> None:
        listing = await store.list(AddressBlock)
        watch = store.watch(AddressBlock, listing.version)
        await anext(watch)
        await store.delete(AddressBlock, "evil/10-9-1-0-24")
        assert isinstance(await anext(watch), Bookmark), "nothing is told of what did not count"
        changed = await store.patch(AddressBlock, "10-9-1-0-24", {"metadata": {"labels": {"x": "y"}}})
        assert fact(await anext(watch)) == changed
        twice = msgspec.json.encode(block(1, "evil"))
        etcd_server.put(layout.key(("AddressBlock", "", "10-9-1-0-24"), "evil"), twice)
        await store.delete(AddressBlock, "10-9-1-0-24", resource_version=changed.metadata.resource_version)
        assert isinstance(await anext(watch), Bookmark)
        with pytest.raises(VersionExpired, match="the other counts now"):
            await anext(watch)
        assert (await store.get(AddressBlock, "10-9-1-0-24")).spec.node == "evil"

    run(etcd_server, scenario, etcd_server.url(prefix))
    run(etcd_server, afterwards, etcd_server.url(prefix))


def test_many_nodes_that_claim_at_once_get_blocks_of_their_own(etcd_server: EtcdServer, prefix: str) -> None:
    pool = IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.9.0.0/20", block_size=24))

    async def scenario(store: Store) -> None:
        claimed = await asyncio.gather(*(claim(store, pool, f"n{number}") for number in range(16)))
        assert len({one.spec.cidr for one in claimed}) == 16
        listing = await store.list(AddressBlock)
        assert {(one.spec.cidr, one.spec.node) for one in listing.items} == {
            (one.spec.cidr, one.spec.node) for one in claimed
        }
        assert listing.rejected == ()

    run(etcd_server, scenario, etcd_server.url(prefix))


# Who asks


def account(server: EtcdServer, name: str, file: Path | None = None) -> str:
    certificate, key = server.client
    password = file or server.directory / f"{name}.password"
    return server.url(cert=str(certificate), key=str(key), user=name, password_file=str(password))


def test_a_node_writes_its_own_objects_and_no_others(guarded: EtcdServer) -> None:
    layout = Layout("podway")
    guarded.add_account("n1", layout.readable(), layout.writable("n1"))

    async def beginning(stolen: Store, admin: Store) -> None:
        guarded.delete(below(b"podway/"))
        with pytest.raises(StoreForbidden, match="nothing is stored below podway/store yet, and who asks may not"):
            await stolen.list(Node)
        await admin.create(node("n2"))
        await admin.create(block(2, "n2"))
        await admin.create(Secret(metadata=Metadata(name=KEYS, namespace=KEYS_SPACE)))
        await admin.create(Secret(metadata=Metadata(name="bgp", namespace="podway"), string_data={"p": "q"}))

    async def own(store: Store, admin: Store) -> None:
        lease = NodeLease(metadata=Metadata(name="n1", namespace=LEASES), spec=LeaseSpec(holder_identity="k"))
        mine = [await store.create(obj) for obj in (node("n1"), lease, block(1, "n1"))]
        await store.patch(Node, "n1", {"metadata": {"labels": {"x": "y"}}})
        await store.patch_status(Node, "n1", {"status": {"addresses": []}})
        await store.update(msgspec.structs.replace(mine[1], spec=LeaseSpec(holder_identity="l")))
        await store.delete(AddressBlock, mine[2].metadata.name)
        everything = await list_all(store)
        assert {"n1", "n2"} <= set(names(everything.items))
        version = (await store.list(Node)).version
        assert await anext(store.watch(Node, version)) == Bookmark(version)
        assert names((await store.list(Secret)).items) == ["bgp"]

    async def others(store: Store, admin: Store) -> None:
        lease = NodeLease(metadata=Metadata(name="n2", namespace=LEASES))
        pool = IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/8"))
        for obj in (node("n11"), lease, block(3, "n2"), block(3, "n11"), pool):
            with pytest.raises(StoreForbidden, match=r"forbids n1.*permission denied"):
                await store.create(obj)
        for work in (
            store.patch(Node, "n2", {"metadata": {"labels": {"x": "y"}}}),
            store.delete(Node, "n2"),
            store.delete(AddressBlock, "10-9-2-0-24"),
            store.get(Secret, KEYS, namespace=KEYS_SPACE),
        ):
            with pytest.raises(StoreForbidden, match="forbids n1"):
                await work
        mine = await store.create(block(4, "n1"))
        with pytest.raises(StoreForbidden):  # a claim cannot be made another's
            await store.update(msgspec.structs.replace(mine, spec=block(4, "n2").spec))

    for scenario in (beginning, own, others):
        run(guarded, scenario, account(guarded, "n1"), account(guarded, "root"))


def test_tokens_that_end_are_renewed_and_passwords_read_again(guarded: EtcdServer, tmp_path: Path) -> None:
    guarded.add_account("n5", Layout("podway").readable(), (below(b"podway/"),))
    file = tmp_path / "password"
    file.write_text("wrong")
    known: list[str] = []

    async def scenario(store: EtcdStore, admin: Store) -> None:
        with pytest.raises(StoreForbidden, match="does not let n5 in") as error:
            await store.list(Node)
        assert str(file) in error.value.hint
        file.write_text("secret-of-n5\n")
        await store.create(node("n5"))
        guarded.stop(keep=True)  # simple tokens do not outlive a server
        guarded.start()
        guarded.log_in()
        assert "n5" in names((await store.list(Node)).items)
        token = store._client._token
        store._client._token = "nonsense.17"
        await store.patch(Node, "n5", {"metadata": {"labels": {"x": "y"}}})
        assert store._client._token not in (token, "nonsense.17")
        store._client._token = "nonsense.18"
        version = (await store.list(Node)).version
        store._client._token = "nonsense.19"
        assert await anext(store.watch(Node, version)) == Bookmark(version)
        known.append("told")

    run(guarded, scenario, account(guarded, "n5", file), account(guarded, "root"))
    assert known


def test_who_asks_without_account_or_certificate_is_told_so(guarded: EtcdServer) -> None:
    certificate, key = guarded.client
    nobody = guarded.url(cert=str(certificate), key=str(key))
    other = guarded.directory / "other.crt"
    other.write_text("no certificate")

    async def without_account(store: Store, *_: Store) -> None:
        with pytest.raises(StoreForbidden, match="wants to know who asks") as error:
            await store.list(Node)
        assert "user=NAME&password-file=FILE" in error.value.hint

    async def failing(*stores: Store) -> None:
        for store, words in zip(stores, ("cannot be reached", "cannot be reached", "cannot be used"), strict=True):
            with pytest.raises(StoreUnavailable, match=words):
                await store.list(Node)

    run(guarded, without_account, nobody)
    plain = f"etcd://{HOST}:{guarded.port()}"
    run(
        guarded,
        failing,
        guarded.url(),
        plain,
        f"{plain}?ca={guarded.authority and guarded.authority.path}&cert={other}&key={other}",
    )


def test_an_account_where_there_are_none_is_nobodys(
    etcd_server: EtcdServer, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "password").write_text("x")

    async def scenario(store: Store) -> None:
        await store.create(node("n"))
        assert "has no accounts: who asks as somebody is anybody" in caplog.text
        with pytest.raises(Conflict):
            await store.update(node("n"))

    run(etcd_server, scenario, etcd_server.url(prefix, user="somebody", password_file=str(tmp_path / "password")))
