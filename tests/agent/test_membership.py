"""A node's object and lease, while others write to them, too."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_interface
from typing import Any

import pytest

from podway.agent.identity import kernel_instance
from podway.agent.membership import Membership
from podway.api.addresses import Interface
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import ASN, Node
from podway.api.kinds.node_lease import LEASES, LeaseSpec, NodeLease, micro_time
from podway.api.meta import Metadata
from podway.api.resource import Key, R
from podway.cluster.view import ClusterView
from podway.errors import NameTaken
from podway.store.base import Event
from podway.store.memory import MemoryCluster, MemoryStore
from tests import builders
from tests.patience import PATIENCE

HERE = (ip_interface("192.0.2.1/24"),)


class Overtaken(MemoryStore):
    """A way to the store that is slow once, at its `turn`-th look at a node: what it answers is old by then."""

    def __init__(
        self, cluster: MemoryCluster, meanwhile: Callable[[MemoryStore], Awaitable[object]], turn: int = 1
    ) -> None:
        super().__init__(cluster)
        self._others = MemoryStore(cluster)
        self._meanwhile = meanwhile
        self._turn = turn

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        try:
            return await super().get(kind, name, namespace=namespace)
        finally:
            self._turn -= kind is Node
            if kind is Node and self._turn == 0:
                await self._meanwhile(self._others)


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


@pytest.mark.parametrize("change", ["comes", "goes"])
def test_who_reads_an_address_of_a_node_reads_its_subnet(change: str) -> None:
    """They are two writes: a session to an address of no subnet would be one across a router, and begin twice."""
    both = (*HERE, ip_interface("fd30::1/64"))
    before, after = (HERE, both) if change == "comes" else (both, HERE)

    async def main() -> None:
        store = MemoryStore(MemoryCluster())
        membership = Membership(store, "a", heartbeat_interval=10.0)
        await membership.register(before)
        version = (await store.list(Node)).version
        await membership.register(after)
        read: list[Node] = []
        async with asyncio.timeout(PATIENCE), contextlib.aclosing(store.watch(Node, version)) as watch:
            while not (read and read[-1].interface_addresses == after == told(read[-1])):
                event = await anext(watch)
                if isinstance(event, Event) and isinstance(event.object, Node):
                    read.append(event.object)
        assert all(set(told(node)) <= set(node.interface_addresses) for node in read)

    def told(node: Node) -> tuple[Interface, ...]:
        return tuple(one for one in both if one.ip in node.internal_addresses)

    asyncio.run(main())


LEASE = (NodeLease.KIND, LEASES, "a")
NODE = (Node.KIND, "", "a")


def spoil(cluster: MemoryCluster, about: Key, **metadata: Any) -> None:
    """Write into an object's metadata what no Podway would."""
    body = json.loads(cluster.bodies[about])
    body["metadata"] |= metadata
    cluster.bodies[about] = json.dumps(body).encode()


def lease_of(holder: str, renewed: float) -> NodeLease:
    spec = LeaseSpec(holder_identity=holder, lease_duration_seconds=30, renew_time=micro_time(renewed))
    return NodeLease(metadata=Metadata(name="a", namespace=LEASES), spec=spec)


@pytest.mark.parametrize(("age", "other", "taken"), [(5, True, True), (100, True, False), (5, False, False)])
@pytest.mark.parametrize("expired", [False, True], ids=["no lease", "an expired lease"])
def test_a_living_agent_of_an_older_podway_keeps_its_name(
    age: int, other: bool, taken: bool, expired: bool
) -> None:
    """It knows no leases, and writes onto the node when it lives, and on which kernel."""

    async def main() -> None:
        store = MemoryStore(MemoryCluster())
        membership = Membership(store, "a", heartbeat_interval=10.0)
        if expired:
            await store.create(lease_of("the kernel before", time.time() - 500))
        instance = "another kernel" if other else kernel_instance()
        notes = {"podway.io/agent-seen": f"{time.time() - age:.0f}", "podway.io/agent-instance": instance}
        await store.create(Node(metadata=Metadata(name="a", annotations=notes)))
        if taken:
            with pytest.raises(NameTaken):
                await membership.check_name()
            with pytest.raises(NameTaken):
                await membership.register(HERE)
            assert (await store.get(Node, "a")).metadata.annotations == notes
        else:
            await membership.check_name()
            await membership.register(HERE)
            assert (await store.get(Node, "a")).metadata.annotations.keys() == {"podway.io/interface-addresses"}

    asyncio.run(main())


CLAIM, LATER = builders.block("10.0.0.0/26", "pods", "a"), builders.block("10.0.0.64/26", "pods", "a")
LAGGING = ClusterView.of((builders.node("z", "192.0.2.26/24"), CLAIM))
"""What node z knows: of the blocks of node a, and not of that node."""


async def left(store: MemoryStore) -> tuple[set[str], set[str]]:
    """Return the names of the claims and leases that there are."""
    blocks, leases = (await store.list(AddressBlock)).items, (await store.list(NodeLease)).items
    return {block.spec.cidr for block in blocks}, {lease.metadata.name for lease in leases}


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("renewed", [5.0, 100.0, None])
def test_blocks_and_lease_of_a_node_go_once_it_is_gone_and_silent(registered: bool, renewed: float | None) -> None:
    """Whoever sees to it may have heard of a new node's block before it hears of the node itself."""

    async def main() -> None:
        store = MemoryStore(MemoryCluster())
        await store.create(CLAIM)
        if registered:
            await store.create(builders.node("a", "192.0.2.1/24"))
        if renewed is not None:
            await store.create(lease_of("another kernel", time.time() - renewed))
        before = await left(store)
        theirs = Membership(store, "z", heartbeat_interval=10.0)
        await theirs.give_back_blocks_of_removed_node("a", LAGGING, gone=0)
        assert await left(store) == before, "it may be there again in a moment"
        await theirs.give_back_blocks_of_removed_node("a", LAGGING, gone=5)
        assert await left(store) == (before if registered or renewed == 5.0 else (set(), set()))

    asyncio.run(main())


@pytest.mark.parametrize("turn", [1, 2])
def test_a_node_that_comes_back_meanwhile_keeps_its_lease_and_what_it_claims(turn: int) -> None:
    async def come_back(store: MemoryStore) -> None:
        await Membership(store, "a", heartbeat_interval=10.0).register(HERE)
        await store.create(LATER)

    async def main() -> None:
        cluster = MemoryCluster()
        await MemoryStore(cluster).create(CLAIM)
        theirs = Membership(Overtaken(cluster, come_back, turn), "z", heartbeat_interval=10.0)
        await theirs.give_back_blocks_of_removed_node("a", LAGGING, gone=5)
        assert await left(MemoryStore(cluster)) == ({"10.0.0.0/26", "10.0.0.64/26"}, {"a"})

    asyncio.run(main())


def test_a_claim_that_somebody_writes_to_stays_and_keeps_no_other_from_going() -> None:
    async def label(store: MemoryStore) -> None:
        await store.patch(AddressBlock, CLAIM.metadata.name, {"metadata": {"labels": {"x": "y"}}})

    async def main() -> None:
        cluster = MemoryCluster()
        for block in (CLAIM, LATER):
            await MemoryStore(cluster).create(block)
        theirs = Membership(Overtaken(cluster, label, 2), "z", heartbeat_interval=10.0)
        await theirs.give_back_blocks_of_removed_node("a", LAGGING, gone=5)
        assert (await left(MemoryStore(cluster)))[0] == {"10.0.0.0/26"}

    asyncio.run(main())


BAD_METADATA = [{"labels": {"x": "-"}}, {"annotations": {"a b": "1"}}, {"creationTimestamp": "yesterday"}]


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=lambda bad: next(iter(bad)))
def test_a_lease_with_bad_metadata_guards_the_name_and_its_holder_mends_it(metadata: dict[str, Any]) -> None:
    async def main() -> None:
        cluster = MemoryCluster()
        await MemoryStore(cluster).create(lease_of("another kernel", time.time()))
        spoil(cluster, LEASE, **metadata)
        ours = Membership(MemoryStore(cluster), "a", heartbeat_interval=10.0)
        with pytest.raises(NameTaken):
            await ours.check_name()
        with pytest.raises(NameTaken):
            await ours.register(HERE)
        await MemoryStore(cluster).delete(NodeLease, "a", namespace=LEASES)
        await MemoryStore(cluster).create(lease_of("another kernel", time.time() - 100))
        spoil(cluster, LEASE, **metadata)
        await ours.register(HERE)
        assert (await MemoryStore(cluster).get(NodeLease, "a", namespace=LEASES)).holds(time.time())

    asyncio.run(main())


@pytest.mark.parametrize(
    "spec", [{"renewTime": "soon"}, {"renewTime": 5}, {"renewTime": "2026-01-31T12:00:00"}, "none"], ids=str
)
def test_a_lease_that_tells_no_time_is_mended(spec: object) -> None:
    async def main() -> None:
        cluster = MemoryCluster()
        await MemoryStore(cluster).create(lease_of("another kernel", time.time()))
        body = json.loads(cluster.bodies[LEASE])
        body["spec"] = body["spec"] | spec if isinstance(spec, dict) else spec
        cluster.bodies[LEASE] = json.dumps(body).encode()
        await Membership(MemoryStore(cluster), "a", heartbeat_interval=10.0).register(HERE)
        assert (await MemoryStore(cluster).get(NodeLease, "a", namespace=LEASES)).holds(time.time())

    asyncio.run(main())


def test_a_node_whose_rejection_is_not_the_agents_is_not_written_again_and_again() -> None:
    """Each write of it would wake every agent of the cluster."""

    async def main() -> None:
        cluster = MemoryCluster()
        membership = Membership(MemoryStore(cluster), "a", heartbeat_interval=10.0)
        await membership.register(HERE)
        spoil(cluster, NODE, annotations={ASN: "many"})
        await membership.register(HERE)
        written = cluster.bodies[NODE]
        assert json.loads(written)["metadata"]["annotations"]["podway.io/interface-addresses"] == "192.0.2.1/24"
        await membership.register(HERE)
        assert cluster.bodies[NODE] == written

    asyncio.run(main())
