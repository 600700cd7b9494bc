"""The pools of a cluster that has none, where several agents make them at a time."""

import asyncio

from podway.agent.first_pools import ensure_pools
from podway.store.memory import MemoryCluster, MemoryStore


def test_who_was_not_the_quickest_has_the_pools_of_who_was() -> None:
    """He would begin without pools that are there."""

    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        cidrs = ("10.244.0.0/16", "fd00:244::/48")
        made = await ensure_pools(store, cidrs, ())
        assert [pool.spec.cidr for pool in made] == list(cidrs)
        assert await ensure_pools(store, cidrs, ()) == made

    asyncio.run(scenario())
