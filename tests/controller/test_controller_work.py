"""What a controller does when a part of it cannot be done."""

import asyncio
import contextlib
from typing import Any

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.controller.controller import Controller, ControllerOptions
from podway.errors import StoreUnavailable
from podway.store.memory import MemoryCluster, MemoryStore
from tests.api.test_judgement import block, pool
from tests.patience import PATIENCE


class WithoutStatus(MemoryStore):
    """A store in which no status can be written."""

    async def patch_status(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("an admission webhook does not answer")


async def worked(store: MemoryStore, until: Any) -> None:
    """Have a controller work until that is so."""
    options = ControllerOptions(store="memory:", name="one", grace=0.0)
    work = asyncio.ensure_future(Controller(store, options).run())
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                if await until():
                    return
                await asyncio.sleep(0.02)
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


def test_what_cannot_be_told_keeps_no_block_from_being_given_back() -> None:
    async def scenario() -> None:
        cluster = MemoryCluster()
        store = MemoryStore(cluster)
        for obj in (pool("p", "10.0.0.0/16"), block("10.0.1.0/24", "p", "gone")):
            await store.create(obj)

        async def returned() -> bool:
            return not (await store.list(AddressBlock)).items

        await worked(WithoutStatus(cluster), returned)
        assert [one.status.conditions for one in (await store.list(IPPool)).items] == [()]

    asyncio.run(scenario())
