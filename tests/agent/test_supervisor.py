"""An agent's task that fails unexpectedly is told and done again; the others go on."""

import asyncio
from ipaddress import ip_interface

import pytest

from podway.agent import supervisor
from podway.agent.membership import Membership
from podway.agent.supervisor import Supervisor
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import LEASES, LeaseSpec, NodeLease, micro_time
from podway.api.meta import Metadata
from podway.errors import NameTaken
from podway.store.memory import MemoryCluster, MemoryStore


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)


def test_a_task_that_fails_is_done_again_and_the_others_go_on() -> None:
    runs: list[str] = []
    looks: list[int] = []

    async def fragile() -> None:
        runs.append("fragile")
        if len(runs) < 4:
            raise KeyError("cidr")
        await asyncio.Event().wait()

    async def main() -> Supervisor:
        watched = Supervisor(lambda: looks.append(len(runs)))
        ticks = 0
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
            running = [tasks.create_task(watched.run("fragile", fragile))]
            while len(runs) < 4:
                ticks += 1
                await asyncio.sleep(0.001)
            for task in running:
                task.cancel()
        assert ticks > 1
        return watched

    (failure,) = asyncio.run(main()).failures
    assert looks == [1, 2, 3], "what was left undone is looked at again, each time before it is done"
    assert (failure.task, failure.error, failure.times) == ("fragile", "KeyError: 'cidr'", 3)


def test_a_name_that_another_machine_has_ends_the_agent() -> None:
    async def taken() -> None:
        raise NameTaken("Node/a: taken")

    with pytest.raises(NameTaken):
        asyncio.run(Supervisor(lambda: None).run("membership", taken))


def test_a_failing_callback_of_the_loop_is_told() -> None:
    async def main() -> Supervisor:
        watched = Supervisor(lambda: None)
        loop = asyncio.get_running_loop()
        watched.watch(loop)
        loop.call_soon(lambda: int("x"))
        await asyncio.sleep(0.01)
        return watched

    assert [failure.task for failure in asyncio.run(main()).failures] == ["event loop"]


@pytest.mark.parametrize(
    ("seen", "taken"), [(None, False), (0, True), (10, True), (-10, True), (3600, False), (-3600, False)]
)
def test_whoever_was_seen_just_now_keeps_the_name_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, seen: int | None, taken: bool
) -> None:
    """A clock that was wrong keeps no node that is started again from its name."""
    now = 1_800_000_000
    monkeypatch.setattr("time.time", lambda: now)
    spec = LeaseSpec(
        holder_identity="another kernel",
        lease_duration_seconds=30,
        renew_time="" if seen is None else micro_time(now + seen),
    )

    async def main() -> None:
        store = MemoryStore(MemoryCluster())
        await store.create(NodeLease(metadata=Metadata(name="a", namespace=LEASES), spec=spec))
        await Membership(store, "a", heartbeat_interval=10.0).check_name()

    if taken:
        with pytest.raises(NameTaken):
            asyncio.run(main())
    else:
        asyncio.run(main())


def test_a_node_is_registered_with_what_it_is_and_nothing_is_written_twice() -> None:
    """What others wrote on the node's object stays, what older agents wrote of their life goes."""

    async def main() -> None:
        store = MemoryStore(MemoryCluster())
        former = {"podway.io/agent-seen": "1", "podway.io/asn": "64512", "example.org/note": "kept"}
        await store.create(Node(metadata=Metadata(name="a", labels={"l": "1"}, annotations=former)))
        membership = Membership(store, "a", heartbeat_interval=10.0)
        one = (ip_interface("192.0.2.1/24"),)
        await membership.register(one)
        await membership.announce({"podway.io/accepts": "vxlan"})
        node = await store.get(Node, "a")
        assert node.internal_addresses == (one[0].ip,)
        assert node.metadata.labels == {"l": "1"}
        assert node.metadata.annotations == {
            "podway.io/asn": "64512",
            "example.org/note": "kept",
            "podway.io/interface-addresses": "192.0.2.1/24",
            "podway.io/accepts": "vxlan",
        }
        lease = await store.get(NodeLease, "a", namespace=LEASES)
        await membership.register(one)
        assert await store.get(Node, "a") == node
        assert (await store.get(NodeLease, "a", namespace=LEASES)).spec.renew_time > lease.spec.renew_time
        await store.delete(Node, "a")
        await membership.register(one)
        assert (await store.get(Node, "a")).metadata.annotations == {
            "podway.io/interface-addresses": "192.0.2.1/24",
            "podway.io/accepts": "vxlan",
        }

    asyncio.run(main())
