"""A node's object and lease, while others write to them, too."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_interface

from podway.agent.membership import Membership
from podway.api.kinds.node import ASN, Node
from podway.api.resource import R
from podway.store.memory import MemoryCluster, MemoryStore

HERE = (ip_interface("192.0.2.1/24"),)


class Overtaken(MemoryStore):
    """A way to the store that is slow once: what it answers is old when it arrives."""

    def __init__(self, cluster: MemoryCluster, meanwhile: Callable[[MemoryStore], Awaitable[object]]) -> None:
        super().__init__(cluster)
        self._others = MemoryStore(cluster)
        self._meanwhile: Callable[[MemoryStore], Awaitable[object]] | None = meanwhile

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        found = await super().get(kind, name, namespace=namespace)
        if kind is Node and self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            await meanwhile(self._others)
        return found


def test_what_is_set_on_a_node_while_its_agent_registers_it_stays() -> None:
    async def set_asn(store: MemoryStore) -> None:
        notes = {ASN: "64999", "example.org/gone": None}
        await store.patch(Node, "a", {"metadata": {"annotations": notes}})

    async def main() -> None:
        cluster = MemoryCluster()
        await Membership(MemoryStore(cluster), "a", heartbeat_interval=10.0).register(HERE)
        notes = {ASN: "64512", "example.org/gone": "1"}
        await MemoryStore(cluster).patch(Node, "a", {"metadata": {"annotations": notes}})
        await Membership(Overtaken(cluster, set_asn), "a", heartbeat_interval=10.0).register(HERE)
        annotations = (await MemoryStore(cluster).get(Node, "a")).metadata.annotations
        assert annotations == {ASN: "64999", "podway.io/interface-addresses": "192.0.2.1/24"}

    asyncio.run(main())
