"""What agents are told of the cluster, when something goes wrong as they take it."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from ipaddress import ip_interface
from typing import Any, cast

import pytest
import structlog

from podway.agent.cluster_informer import ClusterInformer, _Queued, first_view
from podway.agent.contact import StoreContact
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.api.resource import R, Resource
from podway.cluster.change import Change
from podway.cluster.view import PLANNED, ClusterView
from podway.plan.uplink import Uplink
from podway.reconcile.state import NodeState
from podway.reconcile.steps import RightOfWay
from podway.store.base import Bookmark, Event, Listing, list_all
from podway.store.memory import MemoryCluster, MemoryStore
from tests import builders
from tests.patience import PATIENCE


class Failing:
    """A handler that makes a mistake with what it is told first."""

    def __init__(self, state: NodeState) -> None:
        self.state, self.failed, self.taken = state, False, list[Change[Any]]()
        self.took = asyncio.Event()

    async def take(self, view: ClusterView, changes: tuple[Change[Any], ...]) -> None:
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError
        self.state.view = view
        self.taken += changes
        self.took.set()


class Silent(MemoryStore):
    """A store of which each watch ends at once."""

    watched = 0

    async def watch(self, _kind: type[Resource], _version: str) -> AsyncGenerator[Event | Bookmark, None]:
        self.watched += 1
        told: tuple[Event, ...] = ()
        for one in told:
            yield one


def test_who_is_not_told_what_he_has_written_lists_again_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then he does not begin watch after watch."""
    monkeypatch.setattr("podway.agent.cluster_informer.CATCHING_UP", 0.5)

    async def scenario() -> None:
        store = Silent(MemoryCluster())
        listing = await list_all(store, PLANNED)
        own = await store.create(builders.node("n1", "172.30.0.1/24"))
        with structlog.testing.capture_logs() as logs:
            view, _ = await first_view(store, None, listing, (own,))
        assert dict(view.nodes) == {"n1": own}
        assert [one["problem"] for one in logs] == ["not told within 0.5 s"]
        assert 0 < store.watched <= 4

    asyncio.run(scenario())


class Counting(MemoryStore):
    """A store that counts how often each kind is listed."""

    def __init__(self, cluster: MemoryCluster) -> None:
        super().__init__(cluster)
        self.listed: Counter[str] = Counter()

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        self.listed[kind.KIND] += 1
        return await super().list(kind, namespace=namespace)


def test_who_starts_sees_what_he_has_written_without_listing_again() -> None:
    """And what others wrote meanwhile, some of it wrong; he goes on from there."""

    async def scenario() -> None:
        cluster = MemoryCluster()
        store = Counting(cluster)
        for number in (1, 2, 3):
            await store.create(builders.node(f"n{number}", f"172.30.0.{number}/24"))
        listing = await list_all(store, PLANNED)
        await store.delete(Node, "n2")
        pool = await store.create(builders.pool("pods", "10.244.0.0/16"))
        cluster.log(Node.KIND, "modified", (Node.KIND, "", "n3"), b"{", "damaged")
        own = await store.patch(Node, "n1", {"metadata": {"annotations": {"podway.io/asn": "64513"}}})
        view, versions = await first_view(store, None, listing, (pool, own))
        assert dict(view.nodes) == {"n1": own, "n3": next(n for n in listing.items if n.metadata.name == "n3")}
        assert list(view.rejected) == [(Node.KIND, "", "n3")]
        assert dict(view.pools) == {"pods": pool}
        assert set(store.listed.values()) == {1}
        later = await store.create(builders.node("n4", "172.30.0.4/24"))
        async with aclosing(store.watch(Node, versions[Node.KIND])) as watch:
            told = [await anext(watch), await anext(watch)]
        assert [one.object for one in told if isinstance(one, Event)] == [later]

    asyncio.run(scenario())


def test_who_has_written_nothing_new_asks_nothing_more() -> None:
    async def scenario() -> None:
        store = Counting(MemoryCluster())
        own = await store.create(builders.node("n1", "172.30.0.1/24"))
        listing = await list_all(store, PLANNED)
        view, versions = await first_view(store, None, listing, (own,))
        assert (dict(view.nodes), versions) == ({"n1": own}, listing.versions)
        assert set(store.listed.values()) == {1}

    asyncio.run(scenario())


def test_who_starts_lists_again_where_the_store_has_forgotten_the_changes() -> None:
    async def scenario() -> None:
        cluster = MemoryCluster()
        store = Counting(cluster)
        listing = await list_all(store, PLANNED)
        own = await store.create(builders.node("n1", "172.30.0.1/24"))
        cluster.forget(Node)
        view, _ = await first_view(store, None, listing, (own,))
        assert dict(view.nodes) == {"n1": own}
        assert store.listed[Node.KIND] == 2

    asyncio.run(scenario())


def test_what_nobody_took_for_a_mistake_is_handed_on_again() -> None:
    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        view, versions = await first_view(store)
        state = NodeState("n1", view, Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"),)))
        handler = Failing(state)
        informer = ClusterInformer(store, state, StoreContact(), versions, cast("Any", handler), RightOfWay())
        await store.create(builders.pool("pods", "10.244.0.0/16"))
        with pytest.raises(BaseExceptionGroup):
            await informer.run()
        again = asyncio.ensure_future(informer.run())
        async with asyncio.timeout(PATIENCE):
            await handler.took.wait()
        again.cancel()
        assert [change.key for change in handler.taken] == [(IPPool.KIND, "", "pods")]

    asyncio.run(scenario())


def test_changes_of_one_object_that_come_together_are_one_change() -> None:
    """Whoever acts on changes acts on what came of them; what came and went again is no change at all."""

    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        await store.create(builders.node("n1", "172.30.0.1/24"))
        await store.create(builders.node("n2", "172.30.0.2/24"))
        view, versions = await first_view(store)
        state = NodeState("n1", view, Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"),)))
        handler = Failing(state)
        handler.failed = True
        informer = ClusterInformer(store, state, StoreContact(), versions, cast("Any", handler), RightOfWay())
        for note in ("a", "b"):
            await store.patch(Node, "n2", {"metadata": {"annotations": {"example.org/note": note}}})
        await store.delete(Node, "n1")
        back = await store.create(builders.node("n1", "172.30.0.9/24"))
        await store.create(builders.node("n3", "172.30.0.3/24"))
        await store.delete(Node, "n3")
        queue: list[Any] = []
        async for one in store.watch(Node, versions[Node.KIND]):
            if isinstance(one, Event):
                queue.append(_Queued(Node, one))
            if len(queue) == 6:
                break
        await informer._hand_on(queue)
        told = {change.key[2]: change for change in handler.taken}
        assert len(told) == len(handler.taken)
        assert told["n2"].old == view.nodes["n2"]
        assert told["n2"].new == await store.get(Node, "n2")
        assert (told["n1"].old, told["n1"].new) == (view.nodes["n1"], back)
        assert told["n3"].empty
        assert dict(state.view.nodes) == {obj.metadata.name: obj for obj in (await store.list(Node)).items}

    asyncio.run(scenario())
