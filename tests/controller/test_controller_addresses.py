"""Services' addresses, as a controller gives them, and as they stay when another one takes over."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from podway.api.checked import RejectedObject
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.service import Service
from podway.api.resource import R, Resource
from podway.api.status import ACCEPTED
from podway.controller.addressing import Addressing, give_addresses, outcomes_of
from podway.controller.controller import WAITING, Controller, ControllerOptions, collect
from podway.controller.duties import ADDRESSING
from podway.controller.election import held
from podway.errors import StoreUnavailable
from podway.store.base import Listing
from podway.store.memory import MemoryCluster, MemoryStore
from tests.builders import pool
from tests.patience import PATIENCE
from tests.services.test_outside_addresses import addresses, service


@contextlib.contextmanager
def controlled(store: MemoryStore, name: str) -> Iterator[None]:
    work = asyncio.ensure_future(Controller(store, ControllerOptions(store="memory:", name=name)).run())
    try:
        yield
    finally:
        work.cancel()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():  # noqa: ASYNC110 - a store tells of no condition
            await asyncio.sleep(0.02)


async def given(store: MemoryStore) -> dict[str, list[str]]:
    return {one.metadata.name: addresses(one) for one in (await store.list(Service)).items}


def test_addresses_outlive_the_controller_that_gave_them() -> None:
    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        await store.create(pool("outside", "192.0.2.0/30", use="services"))
        await store.create(service("b"))

        async def holds(**expected: str) -> None:
            want = {name: [text] if text else [] for name, text in expected.items()}

            async def is_so() -> bool:
                return await given(store) == want

            await until(is_so)

        with controlled(store, "one"):
            await holds(b="192.0.2.0")
        await store.create(service("a"))  # by name it would be the first
        with controlled(store, "two"):
            await holds(a="192.0.2.1", b="192.0.2.0")
            await store.delete(Service, "b", namespace="default")
            await store.create(service("c"))
            await holds(a="192.0.2.1", c="192.0.2.0")
            await store.delete(IPPool, "outside")
            await holds(a="", c="")

    asyncio.run(scenario())


def test_who_takes_over_knows_what_was_given_though_what_it_follows_lags_behind() -> None:
    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        served = pool("outside", "192.0.2.0/30", use="services")
        stale = [await store.create(service(name)) for name in ("a", "b")]
        await Addressing(store).keep([served, stale[1]], lambda: True)
        assert await given(store) == {"a": [], "b": ["192.0.2.0"]}
        successor = Addressing(store)
        await successor.keep([served, *stale], lambda: True)
        assert await given(store) == {"a": ["192.0.2.1"], "b": ["192.0.2.0"]}
        await successor.keep([served, *stale], lambda: True)  # nor does it forget what it gave itself
        third = await store.create(service("c"))
        await successor.keep([served, *stale, third], lambda: False)
        assert (await given(store))["c"] == [], "who does not lead any more writes nothing"
        await successor.keep([served, *stale, third], lambda: True)
        assert (await given(store))["c"] == ["192.0.2.2"]

    asyncio.run(scenario())


def test_addresses_stay_while_their_pool_is_set_aside_or_cannot_be_read() -> None:
    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        await store.create(pool("outside", "192.0.2.0/30", use="services"))
        await store.create(service("a"))
        await give_addresses(store)
        (has,) = (await store.list(Service)).items
        pods, outside = pool("a", "192.0.2.0/24"), pool("outside", "192.0.2.0/30", use="services")
        situations: list[tuple[list[Resource], list[RejectedObject]]] = [
            ([pods, outside], []),
            ([], [RejectedObject(("IPPool", "", "outside"), "no", outside)]),
            ([], [RejectedObject(("IPPool", "", "outside"), "no", pool("outside", "nothing", use="services"))]),
            ([], [RejectedObject(("IPPool", "", "outside"), "it cannot be read")]),
        ]
        for objects, rejected in situations:
            (outcome,) = outcomes_of([has, *objects], {}, rejected)
            assert list(map(str, outcome.addresses)) == addresses(has)
        (outcome,) = outcomes_of([has, pods], {})
        assert outcome.addresses == ()

    asyncio.run(scenario())


class Denied(MemoryStore):
    """A store that lets nobody list Namespaces, as a ClusterRole of an earlier version does."""

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        if kind is Namespace:
            raise StoreUnavailable("namespaces is forbidden")
        return await super().list(kind, namespace=namespace)


def test_what_may_not_be_listed_keeps_only_those_duties_waiting_that_need_it() -> None:
    async def scenario() -> None:
        store = Denied(MemoryCluster())
        await store.create(pool("outside", "192.0.2.0/30", use="services"))
        await store.create(service("a"))
        controller = Controller(store, ControllerOptions(store="memory:", name="one"))
        work = asyncio.ensure_future(controller.run())

        async def judged(name: str) -> bool:
            return (await store.get(IPPool, name)).status.condition(ACCEPTED) is not None

        async def waits() -> bool:
            lines = (await collect(controller)).splitlines()
            waiting = [line for line in lines if line.startswith(WAITING.name) and line.endswith(" 1.0")]
            return waiting == [f'{WAITING.name}{{duty="{ADDRESSING.name}"}} 1.0']

        await until(partial(judged, "outside"))
        await until(waits)
        # Addresses are given after objects are judged: when another one is, the round before it is over.
        for name, cidr in (("first", "10.1.0.0/16"), ("second", "10.2.0.0/16")):
            await store.create(pool(name, cidr))
            await until(partial(judged, name))
        assert await given(store) == {"a": []}
        work.cancel()

    asyncio.run(scenario())


def test_who_applies_gives_addresses_unless_a_controller_does() -> None:
    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        await store.create(pool("outside", "192.0.2.0/30", use="services"))
        await store.create(service("a"))
        lease = await store.create(held("somebody", time.time()))
        await give_addresses(store)
        assert await given(store) == {"a": []}, "a controller works"
        await store.update(held("somebody", time.time() - 60, lease))
        await give_addresses(store)
        assert await given(store) == {"a": ["192.0.2.0"]}, "it is gone"

    asyncio.run(scenario())
