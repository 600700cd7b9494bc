"""What agents are told of the cluster, when something goes wrong as they take it."""

import asyncio
from ipaddress import ip_interface
from typing import Any, cast

import pytest

from podway.agent.cluster_informer import ClusterInformer, first_view
from podway.agent.contact import StoreContact
from podway.api.kinds.ip_pool import IPPool
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.plan.uplink import Uplink
from podway.reconcile.state import NodeState
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


def test_what_nobody_took_for_a_mistake_is_handed_on_again() -> None:
    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        view, versions = await first_view(store)
        state = NodeState("n1", view, Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"),)))
        handler = Failing(state)
        informer = ClusterInformer(store, state, StoreContact(), versions, cast("Any", handler))
        await store.create(builders.pool("pods", "10.244.0.0/16"))
        with pytest.raises(BaseExceptionGroup):
            await informer.run()
        again = asyncio.ensure_future(informer.run())
        async with asyncio.timeout(PATIENCE):
            await handler.took.wait()
        again.cancel()
        assert [change.key for change in handler.taken] == [(IPPool.KIND, "", "pods")]

    asyncio.run(scenario())
