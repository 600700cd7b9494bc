"""Agents without a kernel, without root: informers, loop, blocks, membership and encapsulations, in milliseconds.

The store is in memory, and so is the kernel (tests.recorded_kernel); all that drives them is the agent's own.
"""

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from podway.agent.blocks import BlockKeeper
from podway.agent.cluster_handler import ChangesRouting, ClusterHandler
from podway.agent.cluster_informer import ClusterInformer, first_view
from podway.agent.contact import StoreContact
from podway.agent.encapsulation import EncapsulationSwitch
from podway.agent.leasing import Leasing
from podway.agent.membership import Membership
from podway.agent.registration import Registration
from podway.agent.routing import Routing
from podway.api.addresses import Interface
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Encapsulation, IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import ACCEPTS, SENDS, Node
from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.kinds.pod import Pod
from podway.api.lease import Attachment, Lease
from podway.bgp.passwords import Secrets
from podway.bgp.speaker import BgpSpeaker
from podway.cluster.view import JUDGING, PLANNED, VIEWED, ClusterView
from podway.errors import AddressUnavailable, AgentError, KernelError, PoolExhausted, StoreUnavailable
from podway.plan.bgp import BgpPlan, BgpPlanning
from podway.plan.changes import KINDS, Change
from podway.plan.node import section_of
from podway.plan.uplink import Uplink
from podway.reconcile.pod_ends import PodEnds
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState
from podway.store.memory import MemoryCluster, MemoryStore
from tests import builders
from tests.patience import PATIENCE
from tests.recorded_kernel import RecordedFlows, RecordedKernel


class Trigger:
    """Stands where a part of the agent is that has a real BIRD, sockets, a disk; counts how often it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def trigger(self, *, changed: bool = False) -> None:
        self.count += 1

    def follow(self, changes: object) -> None:
        """Nothing of Services is asked of it."""


class Bird(BgpSpeaker):
    """Stands where BIRD is: it has its routes in a plan's modes as soon as it takes the plan."""

    def __init__(self, agent: "LoopOnly", run_dir: Path) -> None:
        super().__init__(run_dir)
        self._agent = agent
        self.taken = self.changed = 0
        self.lost: list[str] = []
        """Blocks to which no route of ours led while BIRD changed its own."""

    def leads(self, device: str) -> bool:
        return set(self._agent.kernel.learned.values()) == {device}

    async def apply(self, plan: BgpPlan, secrets: Secrets | None = None) -> bool:
        view, kernel = self._agent.state.view, self._agent.kernel
        self.taken += 1
        for network, device in kernel.learned.items():
            (block,) = (block for block in view.blocks.values() if block.network == network)
            address = view.nodes[block.spec.node].internal_addresses[0]
            hops = plan.overlay_next_hops.get(view.pools[block.spec.pool].network, {})
            wanted = hops[address].device if address in hops else "eth0"
            if wanted != device:
                self.changed += 1
                ours = kernel.routes.get(str(network))
                if ours is None or ours.device != wanted:
                    self.lost.append(str(network))
                kernel.learned[network] = wanted
        return True


class LoopOnly:
    """An agent but for what needs root: pods, BIRD, sockets. `bgp`: with one who stands where BIRD is."""

    def __init__(
        self, cluster: MemoryCluster, name: str, number: int, run_dir: Path, *, bgp: bool = False
    ) -> None:
        self.name = name
        self.addresses: tuple[Interface, ...] = (ip_interface(f"172.30.0.{number}/24"),)
        self.store = MemoryStore(cluster)
        self.kernel = RecordedKernel()
        self.routing: ChangesRouting = Trigger()
        self.last_known = Trigger()
        self.bird = Bird(self, run_dir) if bgp else None
        self._run_dir = run_dir
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, known: ClusterView | None = None) -> None:
        """Start; with the store away, and the cluster `known` from a file."""
        membership = Membership(self.store, self.name, heartbeat_interval=10.0)
        versions: Mapping[str, str] = {}
        if known is None:
            await membership.register(self.addresses)
            view, versions = await first_view(self.store)
        self.state = NodeState(self.name, known or view, Uplink("eth0", 1500, self.addresses))
        if known is not None:
            self.state.recalled = frozenset(kind.KIND for kind in PLANNED)
        self.contact = StoreContact()
        registration = Registration(membership, self.state, self.contact, 10.0)
        # Nobody tells of what others change here: an audit looks every tenth of a second.
        self.reconciler = Reconciler(
            self.kernel, self.state, PodEnds(self.kernel), run_dir=self._run_dir, audit_interval=0.1
        )
        if self.bird:
            self.routing = routing = Routing(self.state, self.bird, Trigger(), Trigger(), self.reconciler)
        encapsulation = EncapsulationSwitch(self.kernel, self.state, membership, self.reconciler, self.contact)
        self.blocks = blocks = BlockKeeper(
            self.store, self.state, 300.0, self.reconciler, membership, self.contact
        )
        handler = ClusterHandler(
            self.state,
            membership,
            registration,
            self.reconciler,
            encapsulation,
            blocks,
            self.routing,
            Trigger(),
            self.last_known,
            Trigger(),
        )
        informer = ClusterInformer(self.store, self.state, self.contact, versions, handler, self.reconciler.way)
        encapsulation.refresh()
        self.reconciler.start()
        await blocks.keep()
        work = [informer.run, self.reconciler.run, encapsulation.run, blocks.run]
        work += [routing.run] if self.bird else []
        self._tasks = [asyncio.ensure_future(each()) for each in work]

    async def stop(self) -> None:
        """End as a process that is killed does."""
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


class Cluster:
    """A store, and agents on it."""

    def __init__(self, run_dir: Path) -> None:
        self.memory = MemoryCluster()
        self.store = MemoryStore(self.memory)
        self.agents: dict[str, LoopOnly] = {}
        self._run_dir = run_dir

    async def join(self, name: str, number: int, *, bgp: bool = False) -> LoopOnly:
        agent = self.agents[name] = LoopOnly(self.memory, name, number, self._run_dir, bgp=bgp)
        await agent.start()
        return agent

    async def pool(self, encapsulation: Encapsulation) -> None:
        """Have a pool whose routes the store distributes, with this encapsulation."""
        pool = builders.pool("pods", "10.244.0.0/16", encapsulation=encapsulation, distribution="store")
        with contextlib.suppress(Exception):
            await self.store.create(pool)
            return
        await self.store.patch(IPPool, "pods", {"spec": {"encapsulation": encapsulation}})


@contextlib.asynccontextmanager
async def running(run_dir: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(run_dir)
    try:
        yield cluster
    finally:
        for agent in cluster.agents.values():
            await agent.stop()


async def eventually(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if holds():
                return
            await asyncio.sleep(0.002)


def run(run_dir: Path, scenario: Callable[[Cluster], Any]) -> None:
    async def main() -> None:
        async with running(run_dir) as cluster:
            await scenario(cluster)

    asyncio.run(main())


def all_send_by(agents: list[LoopOnly], device: str) -> bool:
    """Tell whether all routes of these three agents to each other lead out of a device."""
    return all(
        [route.device for route in agent.kernel.routes.values() if route.gateway] == [device] * 2
        for agent in agents
    )


def keys(changes: list[Change]) -> set[tuple[str, str]]:
    return {(change.kind, change.action) for change in changes}


def test_nodes_that_join_reach_each_other_and_one_that_comes_costs_its_own_objects(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one, two = await cluster.join("node1", 1), await cluster.join("node2", 2)
        own = {agent: next(iter(agent.state.view.blocks_of(agent.name))).spec.cidr for agent in (one, two)}
        await eventually(lambda: own[two] in one.kernel.routes and own[one] in two.kernel.routes)
        assert one.kernel.routes[own[one]].type == "blackhole"
        assert str(one.kernel.routes[own[two]].gateway) == "172.30.0.2"
        await one.reconciler.settled()
        one.kernel.log.clear()
        three = await cluster.join("node3", 3)
        (block,) = three.state.view.blocks_of("node3")
        await eventually(lambda: block.spec.cidr in one.kernel.routes)
        # Its route, and the address to which pods' packets are not translated.
        assert keys(one.kernel.log) == {("route", "add"), ("nft element", "add")}
        assert len(one.kernel.log) == 2
        # What alters no plan costs the kernel nothing, and no other agent hears of signs of life.
        one.kernel.log.clear()
        await cluster.store.patch(Node, "node3", {"metadata": {"annotations": {"example.org/note": "x"}}})
        await eventually(lambda: "example.org/note" in one.state.view.nodes["node3"].metadata.annotations)
        await one.reconciler.settled()
        assert one.kernel.log == []

    run(tmp_path, scenario)


def test_audits_wait_while_it_is_not_known_where_the_uplink_is(tmp_path: Path) -> None:
    """What went with a device is missing by a plan of before: that is nothing that somebody else changed."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        own = next(iter(one.state.view.blocks_of("node1"))).spec.cidr
        for released in (True, False):
            one.reconciler.hold()
            one.kernel.kinds["route"].objects = {}
            await asyncio.sleep(0.3)  # three audits' time
            assert own not in one.kernel.routes
            if released:
                one.reconciler.release()
            await eventually(lambda: own in one.kernel.routes)  # without a word, too, after a while
            one.reconciler.release()

    run(tmp_path, scenario)


def test_repairs_are_not_put_off_for_ever_where_addresses_change_all_the_time(tmp_path: Path) -> None:
    """Each change has the uplink looked for anew, for which audits wait."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        own = next(iter(one.state.view.blocks_of("node1"))).spec.cidr

        async def change_all_the_time() -> None:
            while True:
                one.reconciler.release()
                one.reconciler.hold()
                await asyncio.sleep(0.02)

        changing = asyncio.create_task(change_all_the_time())
        one.kernel.kinds["route"].objects = {}
        await eventually(lambda: own in one.kernel.routes)
        changing.cancel()

    run(tmp_path, scenario)


def test_blocks_that_a_node_claims_and_gives_back_are_written_down(tmp_path: Path) -> None:
    """It has entered them itself when the store tells of them, so nothing is new to it then."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        (pool,) = one.state.view.pools.values()
        before = one.last_known.count
        block = await one.blocks.claim(pool)
        await eventually(lambda: one.last_known.count > before)
        before = one.last_known.count
        one.state.withdraw({block.network})
        one.reconciler.wake()
        await one.blocks.give_back((block,))
        assert block.network not in {each.network for each in one.state.view.blocks_of("node1")}
        await eventually(lambda: one.last_known.count > before)

    run(tmp_path, scenario)


def test_what_a_file_does_not_tell_of_stays_until_the_store_has_told_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is older than what its agent did last, and the store does not answer the next one yet."""
    listing, away = MemoryStore.list, False

    async def list_if_there(store: MemoryStore, kind: Any, **options: Any) -> Any:
        if away:
            raise StoreUnavailable("the store is away")
        return await listing(store, kind, **options)

    monkeypatch.setattr(MemoryStore, "list", list_if_there)

    async def scenario(cluster: Cluster) -> None:
        nonlocal away
        await cluster.pool("vxlan")
        one, two = await cluster.join("node1", 1), await cluster.join("node2", 2)
        await eventually(lambda: all_send_to(one, two) and all_send_to(two, one))
        old = one.state.view
        added = ("10.244.77.0/24", "10.244.78.0/24")
        for network in added:
            await cluster.store.create(builders.block(network, "pods", "node2"))
        await eventually(lambda: one.kernel.routes.keys() >= set(added))
        await one.reconciler.settled()
        await one.stop()
        before, away = dict(one.kernel.routes), True
        objects = {name: dict(kind.objects) for name, kind in one.kernel.kinds.items()}
        one.kernel.log.clear()
        await one.start(old)
        await one.reconciler.settled()
        await asyncio.sleep(0.3)  # three audits' time
        assert one.kernel.log == []
        assert await one.reconciler.differences() == []
        await cluster.store.delete(AddressBlock, builders.block("10.244.78.0/24", "pods", "node2").metadata.name)
        begun, go_on = asyncio.Event(), asyncio.Event()

        def auditing() -> bool:
            begun.set()
            return not go_on.is_set()

        one.kernel.auditing = auditing
        await begun.wait()  # an audit that took nothing away is under way when the store tells of everything
        away = False
        await eventually(lambda: not one.state.recalled)
        go_on.set()
        await eventually(lambda: "10.244.78.0/24" not in one.kernel.routes)
        assert one.kernel.routes == {each: route for each, route in before.items() if each != "10.244.78.0/24"}
        for change in one.kernel.log:  # what the file did not tell of is written once more, as it was
            assert change.want in {None, objects[change.kind][change.key]}
        assert not one.reconciler.repairs.total

    run(tmp_path, scenario)


def test_bird_is_given_nothing_while_the_store_has_told_of_a_part_but_where_the_uplink_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, told = MemoryStore.list, {kind.KIND for kind in PLANNED}

    async def list_if_told(store: MemoryStore, kind: Any, **options: Any) -> Any:
        if kind.KIND not in told:
            raise StoreUnavailable("the store does not answer")
        return await listing(store, kind, **options)

    monkeypatch.setattr(MemoryStore, "list", list_if_told)

    async def scenario(cluster: Cluster) -> None:
        await cluster.store.create(builders.pool("pods", "10.244.0.0/16", distribution="bgp"))
        one = await cluster.join("node1", 1, bgp=True)
        bird = one.bird
        assert bird
        await eventually(lambda: bird.taken)
        old = one.state.view
        await one.stop()
        bird.taken = 0
        told.clear()
        await cluster.store.create(builders.node("node2", "172.30.0.2/24"))
        await one.start(old)
        told.update({"Node", "IPPool"})
        await eventually(lambda: "node2" in one.state.view.nodes)
        assert one.state.recalled
        await asyncio.sleep(0.3)  # time enough for many plans
        assert bird.taken == 0
        one.state.uplink = Uplink("ens5", 1500, one.addresses)
        one.routing.trigger()
        await eventually(lambda: bird.taken)
        await cluster.store.create(builders.node("node3", "172.30.0.3/24"))
        await eventually(lambda: "node3" in one.state.view.nodes)
        await one.reconciler.settled()
        taken = bird.taken
        told.update(kind.KIND for kind in PLANNED)
        await eventually(lambda: bird.taken > taken)

    run(tmp_path, scenario)


def all_send_to(one: LoopOnly, other: LoopOnly) -> bool:
    """Tell whether a node encapsulates what goes to another's block."""
    return any(
        route.gateway is not None and route.device == "podway-vxlan"
        for block in other.state.view.blocks_of(other.name)
        if (route := one.kernel.routes.get(block.spec.cidr)) is not None
    )


def test_the_agent_goes_on_while_the_kernel_removes_elements(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(change: Change) -> bool:
        if change.kind == "nft element" and change.want is None:
            begun.set()
            assert go_on.wait(PATIENCE)
        return False

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        await cluster.store.create(builders.node("far2", "172.30.0.2/24"))
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        elements = one.kernel.kinds["nft element"].objects
        (element,) = (each for each in elements if each.fields == ("172.30.0.2",))
        one.kernel.refuses = slowly
        await cluster.store.delete(Node, "far2")
        await eventually(begun.is_set)
        assert element in elements
        assert not one.reconciler.at_rest
        await cluster.store.create(builders.node("far3", "172.30.0.3/24"))
        await eventually(lambda: "far3" in one.state.view.nodes)
        go_on.set()
        await one.reconciler.settled()
        assert element not in elements
        assert any(each.fields == ("172.30.0.3",) for each in elements)
        assert not one.reconciler.failures

    run(tmp_path, scenario)


def test_what_is_wanted_comes_before_many_elements_that_go(tmp_path: Path) -> None:
    removed: list[str] = []
    held = {1: threading.Event(), 2: threading.Event()}

    def slowly(change: Change) -> bool:
        if change.kind == "nft element" and change.want is None:
            removed.append(str(change))
            assert held.get(len(removed), held[1]).wait(PATIENCE)
        return False

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        leaving = [f"far{number}" for number in range(10, 40)]
        for number, name in enumerate(leaving, 10):
            await cluster.store.create(builders.node(name, f"172.30.0.{number}/24"))
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        one.kernel.log.clear()
        one.kernel.refuses = slowly
        first, *others = leaving
        await cluster.store.delete(Node, first)
        await eventually(lambda: removed)
        for name in others:  # all of them in one pass, behind the first
            await cluster.store.delete(Node, name)
        await eventually(lambda: len(one.state.view.nodes) == 1)
        held[1].set()
        await eventually(lambda: len(removed) == 2)
        await cluster.store.create(builders.node("new", "172.30.0.99/24"))
        await eventually(lambda: "new" in one.state.view.nodes)
        held[2].set()
        await one.reconciler.settled()
        order = [str(change) for change in one.kernel.log if change.kind == "nft element"]
        (added,) = (at for at, words in enumerate(order) if "172.30.0.99" in words)
        assert added < len(order) / 2, order
        assert len(removed) >= len(leaving)

    run(tmp_path, scenario)


def test_what_another_node_says_is_acted_on_without_a_look_at_all_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read them takes long in a large cluster: a thread does it, afterwards."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("vxlan")
        await cluster.store.create(builders.node("far2", "172.30.0.2/24"))
        await cluster.store.create(builders.block("10.244.99.0/24", "pods", "far2"))
        one = await cluster.join("node1", 1)
        await eventually(lambda: "vxlan" in one.state.view.nodes["node1"].sends)
        await one.reconciler.settled()
        looks: list[threading.Thread] = []
        read = one.kernel.gateway_devices

        def watched(*given: Any) -> Any:
            looks.append(threading.current_thread())
            return read(*given)

        def leads(device: str) -> bool:
            return one.kernel.routes["10.244.99.0/24"].device == device

        monkeypatch.setattr(one.kernel, "gateway_devices", watched)
        for accepts, device in (("vxlan", "podway-vxlan"), ("", "eth0"), ("vxlan", "podway-vxlan")):
            patch = {"metadata": {"annotations": {ACCEPTS: accepts, SENDS: accepts}}}
            await cluster.store.patch(Node, "far2", patch)
            await eventually(partial(leads, device))
        await eventually(lambda: looks)
        assert threading.main_thread() not in looks

    run(tmp_path, scenario)


@pytest.mark.parametrize("at_once", [1, 1000], ids=lambda number: f"{number} removed at once")
def test_an_encapsulation_is_switched_without_a_moment_in_which_it_is_sent_and_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Of each write of a route: nobody sends to a node what that does not hold the device for."""
    monkeypatch.setattr("podway.reconcile.reconciler.REMOVALS", at_once)

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        agents = [await cluster.join(f"node{number}", number) for number in (1, 2, 3)]
        wrong: list[str] = []

        def watched(agent: LoopOnly) -> Callable[[Change], bool]:
            def look(change: Change) -> bool:
                if change.kind == "route" and change.want is not None and change.want.device == "podway-vxlan":
                    block = next(b for b in agent.state.view.blocks.values() if b.network == change.key[0])
                    other = cluster.agents[block.spec.node]
                    if "podway-vxlan" not in other.kernel.kinds["device"].objects:
                        wrong.append(f"{agent.name} sends to {other.name}")
                if change.kind == "device" and change.want is None:
                    senders = [
                        other.name
                        for other in agents
                        for route in other.kernel.routes.values()
                        if other is not agent and route.device == "podway-vxlan"
                    ]
                    wrong.extend(f"{agent.name} gives up what {name} sends" for name in senders)
                return False

            return look

        for agent in agents:
            agent.kernel.refuses = watched(agent)
        steps: tuple[tuple[Encapsulation, str], ...] = (
            ("vxlan", "podway-vxlan"),
            ("none", "eth0"),
            ("vxlan", "podway-vxlan"),
        )
        for encapsulation, device in steps:
            await cluster.pool(encapsulation)
            await eventually(partial(all_send_by, agents, device))
        await cluster.pool("none")
        await eventually(lambda: not any(agent.kernel.kinds["device"].objects for agent in agents))
        await asyncio.gather(*(agent.reconciler.settled() for agent in agents))
        for agent in agents:  # what a device takes is guarded for as long as it is there
            gone = [change.kind for change in agent.kernel.log if change.want is None]
            assert gone.index("device") < gone.index("nft table")
        assert wrong == []
        assert all(not agent.reconciler.failures for agent in agents)

    run(tmp_path, scenario)


def test_bird_changes_its_routes_when_ours_stand_in_for_all_of_them(tmp_path: Path) -> None:
    """To hundreds of nodes: those are planned in portions, and BIRD is told of the change at once."""

    async def scenario(cluster: Cluster) -> None:
        pool = builders.pool("pods", "10.244.0.0/16", distribution="bgp")
        await cluster.store.create(pool)
        others = range(2, 202)
        for number in others:
            far = builders.node(f"far{number}", f"172.30.0.{number}/24", notes={ACCEPTS: "vxlan", SENDS: "vxlan"})
            await cluster.store.create(far)
            await cluster.store.create(builders.block(f"10.244.{number}.0/24", "pods", far.metadata.name))
        one = await cluster.join("node1", 1, bgp=True)
        assert one.bird
        one.kernel.learned = {ip_network(f"10.244.{number}.0/24"): "eth0" for number in others}
        for encapsulation, device in (("vxlan", "podway-vxlan"), ("none", "eth0"), ("vxlan", "podway-vxlan")):
            await cluster.store.patch(IPPool, "pods", {"spec": {"encapsulation": encapsulation}})
            await eventually(partial(one.bird.leads, device))
            await eventually(lambda: not one.state.transitional)
        assert one.bird.changed == 3 * len(others)
        assert one.bird.lost == []

    run(tmp_path, scenario)


def test_a_route_stands_in_until_bird_has_one_also_if_it_is_to_lead_another_way_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BIRD took none back: it has had none since the pool went over to BGP."""
    monkeypatch.setattr("podway.agent.encapsulation.WITHDRAWN_AFTER", 0.0)

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("vxlan")
        await cluster.store.create(builders.node("far2", "172.30.0.2/24"))
        await cluster.store.create(builders.block("10.244.2.0/24", "pods", "far2"))
        one = await cluster.join("node1", 1, bgp=True)
        await eventually(lambda: "vxlan" in one.state.view.nodes["node1"].sends)
        await eventually(lambda: "10.244.2.0/24" in one.kernel.routes)
        await cluster.store.patch(IPPool, "pods", {"spec": {"distribution": "bgp"}})
        await eventually(lambda: one.state.transitional)
        looks = 0
        look = EncapsulationSwitch._take

        def counted(self: EncapsulationSwitch, found: Any) -> bool:
            nonlocal looks
            changed = look(self, found)
            looks += 1
            return changed

        monkeypatch.setattr(EncapsulationSwitch, "_take", counted)
        patch = {"metadata": {"annotations": {ACCEPTS: "vxlan", SENDS: "vxlan"}}}
        await cluster.store.patch(Node, "far2", patch)
        await eventually(lambda: one.kernel.routes["10.244.2.0/24"].device == "podway-vxlan")
        await eventually(lambda: looks >= 2)
        assert one.state.transitional == {ip_network("10.244.2.0/24")}

    run(tmp_path, scenario)


def test_a_plan_that_came_too_late_is_not_given_to_bird(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes of ours stand in no more for what it changes: a switch was taken back while it was made."""
    begun, go_on = threading.Event(), threading.Event()

    plan_bgp = BgpPlanning.plan

    def slowly(planning: BgpPlanning, *given: Any, **named: Any) -> BgpPlan:
        plan = plan_bgp(planning, *given, **named)
        if plan.overlay_next_hops:
            begun.set()
            assert go_on.wait(PATIENCE)
        return plan

    monkeypatch.setattr(BgpPlanning, "plan", slowly)

    async def scenario(cluster: Cluster) -> None:
        await cluster.store.create(builders.pool("pods", "10.244.0.0/16", distribution="bgp"))
        far = builders.node("far2", "172.30.0.2/24", notes={ACCEPTS: "vxlan", SENDS: "vxlan"})
        await cluster.store.create(far)
        await cluster.store.create(builders.block("10.244.2.0/24", "pods", "far2"))
        one = await cluster.join("node1", 1, bgp=True)
        assert one.bird
        one.kernel.learned = {ip_network("10.244.2.0/24"): "eth0"}
        await cluster.store.patch(IPPool, "pods", {"spec": {"encapsulation": "vxlan"}})
        await eventually(begun.is_set)
        await cluster.store.patch(IPPool, "pods", {"spec": {"encapsulation": "none"}})
        await eventually(lambda: not one.state.transitional)
        await one.reconciler.settled()
        assert "10.244.2.0/24" not in one.kernel.routes
        go_on.set()
        taken = one.bird.taken
        await eventually(lambda: one.bird and one.bird.taken > taken)
        assert (one.bird.changed, one.bird.lost) == (0, [])

    run(tmp_path, scenario)


def test_bird_does_not_wait_for_ever_for_a_loop_that_comes_to_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podway.agent.routing.SETTLING", 0.2)

    async def unrest(agent: LoopOnly) -> None:
        while True:
            agent.reconciler.wake()
            await asyncio.sleep(0)

    async def scenario(cluster: Cluster) -> None:
        await cluster.store.create(builders.pool("pods", "10.244.0.0/16", distribution="bgp"))
        await cluster.store.create(
            builders.node("far2", "172.30.0.2/24", notes={ACCEPTS: "vxlan", SENDS: "vxlan"})
        )
        await cluster.store.create(builders.block("10.244.2.0/24", "pods", "far2"))
        one = await cluster.join("node1", 1, bgp=True)
        assert one.bird
        one.kernel.learned = {ip_network("10.244.2.0/24"): "eth0"}
        restless: list[asyncio.Future[None]] = []

        def begin(change: Change) -> bool:
            if change.kind == "route" and not restless:
                one.reconciler.wake()
                restless.append(asyncio.ensure_future(unrest(one)))
            return False

        one.kernel.refuses = begin  # with the first route of ours that is to stand in
        with structlog.testing.capture_logs() as told:
            await cluster.store.patch(IPPool, "pods", {"spec": {"encapsulation": "vxlan"}})
            await eventually(partial(one.bird.leads, "podway-vxlan"))
        restless[0].cancel()
        assert not one.reconciler.at_rest
        assert any("packets may be lost" in entry["event"] for entry in told)

    run(tmp_path, scenario)


def test_what_others_change_is_put_right_and_told_and_own_work_is_not(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("vxlan")
        one, two = await cluster.join("node1", 1), await cluster.join("node2", 2)
        (block,) = two.state.view.blocks_of("node2")
        await eventually(lambda: block.spec.cidr in one.kernel.routes)
        await eventually(lambda: one.kernel.routes[block.spec.cidr].device == "podway-vxlan")
        await one.reconciler.settled()
        assert list(one.reconciler.repairs) == []
        route = one.kernel.routes[block.spec.cidr]
        del one.kernel.kinds["route"].objects[route.key]
        one.reconciler.trigger(0)
        await eventually(lambda: list(one.reconciler.repairs))
        assert [repair.what for repair in one.reconciler.repairs] == [f"{route} was missing: added"]
        assert one.kernel.routes[block.spec.cidr] == route

    run(tmp_path, scenario)


def test_what_the_kernel_refuses_is_told_and_had_when_it_can_be(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        one.kernel.refuses = lambda change: change.kind == "route"
        two = await cluster.join("node2", 2)
        (block,) = two.state.view.blocks_of("node2")
        await eventually(lambda: one.reconciler.failures)
        assert block.spec.cidr in one.reconciler.failures[0]
        assert block.spec.cidr not in one.kernel.routes
        one.kernel.refuses = lambda change: False
        await eventually(lambda: block.spec.cidr in one.kernel.routes and not one.reconciler.failures)
        assert list(one.reconciler.repairs) == []

    run(tmp_path, scenario)


def test_a_change_does_not_wait_for_the_end_of_an_audit(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        looking = asyncio.Event()

        def auditing() -> bool:
            looking.set()
            return "10.244.2.0/24" not in one.kernel.routes

        one.kernel.auditing = auditing
        one.reconciler.trigger(0)
        await looking.wait()
        await cluster.join("node2", 2)
        await eventually(lambda: "10.244.2.0/24" in one.kernel.routes)
        await one.reconciler.settled()
        assert list(one.reconciler.repairs) == []

    run(tmp_path, scenario)


def bridged_pod(one: LoopOnly) -> tuple[Lease, list[tuple[str, Any]]]:
    """Return a lease of a pod on the bridge, and what its request makes in the kernel, with their kinds."""
    (block,) = one.state.view.blocks_of(one.name)
    address = block.network[5]
    attachment = Attachment("c0ffee", "eth0")
    lease = Lease(attachment, "default/web", "podway", "/run/netns/x", (address,), one.state.attach((address,)))
    section = section_of(one.state.wiring(lease))
    return lease, [(kind, obj) for kind, field in KINDS.items() for obj in getattr(section, field)]


def add(one: LoopOnly, lease: Lease, made: list[tuple[str, Any]]) -> None:
    """Do as an ADD does."""
    for kind, obj in made:
        one.kernel.kinds[kind].objects[obj.key] = obj
    wiring = one.state.wiring(lease)
    one.state.leases[lease.attachment] = lease
    one.reconciler.adopt(lease.attachment, wiring)
    one.state.touch(lease.attachment.link)


def while_an_audit_goes_on(one: LoopOnly, work: Callable[[], None]) -> asyncio.Event:
    """Have work done between two slices of the next audit; the event tells that it is done."""
    done = asyncio.Event()

    def auditing() -> bool:
        if not done.is_set():
            done.set()
            work()
        return False

    one.kernel.auditing = auditing
    one.reconciler.trigger(0)
    return done


def test_an_audit_leaves_alone_what_a_request_makes_and_removes_meanwhile(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.store.create(builders.pool("pods", "10.244.0.0/16", attach="bridge"))
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        lease, made = bridged_pod(one)
        assert {kind for kind, obj in made if lease.attachment.link not in str(obj)} >= {"route", "nft element"}

        one.kernel.log.clear()
        await while_an_audit_goes_on(one, partial(add, one, lease, made)).wait()
        await asyncio.sleep(0.3)
        assert [str(change) for change in one.kernel.log] == []

        def remove() -> None:
            one.state.leaving.add(lease.attachment)
            for kind, obj in made:
                del one.kernel.kinds[kind].objects[obj.key]

        await while_an_audit_goes_on(one, remove).wait()
        await asyncio.sleep(0.02)
        one.state.forget(lease.attachment)
        one.state.leaving.discard(lease.attachment)
        one.reconciler.wake()
        await asyncio.sleep(0.3)
        assert [str(change) for change in one.kernel.log] == []
        assert not list(one.reconciler.repairs)

    run(tmp_path, scenario)


def test_of_two_audits_at_once_the_longer_one_leaves_alone_what_is_made_after_the_other(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.store.create(builders.pool("pods", "10.244.0.0/16", attach="bridge"))
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        lease, made = bridged_pod(one)
        longer, begun = asyncio.ensure_future(one.reconciler.differences()), asyncio.Event()

        def auditing() -> bool:
            if asyncio.current_task() is not longer:
                return False
            begun.set()
            return lease.attachment not in one.state.leases

        one.kernel.auditing = auditing
        await begun.wait()
        assert await one.reconciler.differences() == []
        add(one, lease, made)
        assert await longer == []

    run(tmp_path, scenario)


def test_a_kernel_that_is_right_is_not_written_by_an_agent_that_starts(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("vxlan")
        one, two = await cluster.join("node1", 1), await cluster.join("node2", 2)
        await eventually(lambda: any(r.device == "podway-vxlan" for r in one.kernel.routes.values()))
        await eventually(lambda: any(r.device == "podway-vxlan" for r in two.kernel.routes.values()))
        await one.reconciler.settled()
        await one.stop()
        one.kernel.log.clear()
        await one.start()
        await one.reconciler.settled()
        assert one.kernel.log == []

    run(tmp_path, scenario)


def test_a_node_that_is_removed_while_its_agent_lives_comes_back_with_its_block(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one, two = await cluster.join("node1", 1), await cluster.join("node2", 2)
        (block,) = one.state.view.blocks_of("node1")
        await eventually(lambda: block.spec.cidr in two.kernel.routes)
        former = one.state.view.nodes["node1"].metadata.uid
        await cluster.store.delete(Node, "node1")
        await eventually(lambda: one.state.view.nodes["node1"].metadata.uid != former)
        await eventually(lambda: block.spec.cidr in two.kernel.routes)
        assert (await cluster.store.get(AddressBlock, block.metadata.name)).spec.node == "node1"
        assert (await cluster.store.get(NodeLease, "node1", namespace=LEASES)).renewed is not None

    run(tmp_path, scenario)


@pytest.mark.parametrize("how", ["ends", "expires"])
def test_watches_that_end_and_history_that_is_gone_lose_nothing(tmp_path: Path, how: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one = await cluster.join("node1", 1)
        for number in range(2, 6):
            node = builders.node(f"far{number}", f"172.30.0.{number}/24")
            await cluster.store.create(node)
            claim = builders.block(f"10.244.{number * 10}.0/24", "pods", node.metadata.name)
            await cluster.store.create(claim)
            for kind in VIEWED if how == "expires" else ():
                cluster.memory.forget(kind)
            cluster.memory.end_watches()
            if number % 2:
                await cluster.store.delete(Node, f"far{number - 1}")
        await eventually(lambda: {"10.244.30.0/24", "10.244.50.0/24"} <= one.kernel.routes.keys())
        await eventually(lambda: not {"10.244.20.0/24", "10.244.40.0/24"} & one.kernel.routes.keys())

    run(tmp_path, scenario)


def test_pods_and_policies_are_followed_only_while_policies_are_to_be_enforced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging = frozenset(kind.KIND for kind in JUDGING)
    listed: list[str] = []
    listing = MemoryStore.list

    async def counted(store: MemoryStore, kind: Any, **options: Any) -> Any:
        if kind.KIND in judging:
            listed.append(kind.KIND)
        return await listing(store, kind, **options)

    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        await cluster.store.create(builders.config())
        monkeypatch.setattr(MemoryStore, "list", counted)
        one = await cluster.join("node1", 1)
        web, other = (builders.pod(name, "node9", "10.244.99.1", namespace="x") for name in ("web", "other"))
        await cluster.store.create(web)

        def known() -> set[str]:
            return {name for _, name in one.state.view.namespaced_table(Pod)}

        async def switch(path: str) -> None:
            await cluster.store.patch(NetworkConfig, "default", {"spec": {"dataPath": path}})

        await one.reconciler.settled()
        assert not listed
        assert not known()
        assert one.state.view.unjudged == judging
        for number in range(1, 3):  # a second time as the first
            await switch("ebpf")
            await eventually(lambda: one.reconciler.enforcement.in_force)
            assert (sorted(listed), known()) == (sorted([*judging] * number), {"web"})
            await cluster.store.create(other)
            await eventually(lambda: known() == {"web", "other"})
            await switch("kernel")
            await eventually(lambda: not one.reconciler.enforcement.in_force and not known())
            await cluster.store.delete(Pod, "other", namespace="x")
        await cluster.store.create(other)
        await one.reconciler.settled()
        assert known() == set()

    run(tmp_path, scenario)


def test_nothing_is_enforced_and_nobody_let_in_before_it_is_known_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, away = MemoryStore.list, True

    async def slow(store: MemoryStore, kind: Any, **options: Any) -> Any:
        if away and kind is NetworkPolicy:
            raise StoreUnavailable("the store is away")
        return await listing(store, kind, **options)

    async def find(_namespace: str, _name: str) -> None:
        return None

    async def scenario(cluster: Cluster) -> None:
        nonlocal away
        await cluster.pool("none")
        await cluster.store.create(builders.config())
        one = await cluster.join("node1", 1)
        enforcement = one.reconciler.enforcement
        await enforcement.admit("x/web", "", find)
        monkeypatch.setattr(MemoryStore, "list", slow)
        await cluster.store.patch(NetworkConfig, "default", {"spec": {"dataPath": "ebpf"}})
        await eventually(lambda: one.state.view.unjudged == {"NetworkPolicy"})
        await one.reconciler.settled()
        assert not enforcement.in_force
        assert "NetworkPolicy" in enforcement.status()["problem"]
        with pytest.raises(AgentError, match="not listed yet: NetworkPolicy"):
            await enforcement.admit("x/web", "", find)
        away = False
        await eventually(lambda: enforcement.in_force)
        await enforcement.admit("x/web", "", find)
        assert enforcement.problem == ""

    run(tmp_path, scenario)


def test_a_task_of_the_plan_that_fails_is_done_again_and_nothing_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        one = await cluster.join("node1", 1)
        await one.reconciler.settled()
        await one.stop()
        node = builders.node("far", "172.30.0.9/24")
        changes = [one.state.view.change(node)]
        one.state.follow(one.state.view.after(*changes))
        claim = one.state.view.change(builders.block("10.244.9.0/24", "pods", "far"))
        one.state.follow(one.state.view.after(claim))
        one.reconciler.heard([*changes, claim])
        with monkeypatch.context() as patch:
            patch.setattr("podway.plan.node.plan_others", _fail)
            with pytest.raises(KeyError):
                one.reconciler.bring()
        one.reconciler.bring()
        assert "10.244.9.0/24" in one.kernel.routes

    run(tmp_path, scenario)


def _fail(*_: object, **__: object) -> None:
    raise KeyError("a mistake")


@pytest.mark.parametrize("error", [KernelError("read", errno.ENOMEM), ZeroDivisionError("a mistake")])
def test_services_are_begun_again_though_nothing_changes_and_the_loop_goes_on_meanwhile(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("none")
        config = builders.config()
        spec = msgspec.structs.replace(config.spec, data_path="ebpf", services="pods")
        await cluster.store.create(msgspec.structs.replace(config, spec=spec))
        monkeypatch.setattr("podway.reconcile.serving.RETRY", 0.3)
        with monkeypatch.context() as patch:
            patch.setattr(RecordedFlows, "read_services", lambda _: _fails(error))
            one = await cluster.join("node1", 1)
            await eventually(lambda: one.reconciler.serving.problem)
            assert not one.reconciler.serving.in_force
            await one.reconciler.settled()
            node = builders.node("far", "172.30.0.9/24")
            await cluster.store.create(node)
            await cluster.store.create(builders.block("10.244.9.0/24", "pods", "far"))
            await eventually(lambda: "10.244.9.0/24" in one.kernel.routes)
            await one.reconciler.settled()
        await eventually(lambda: one.reconciler.serving.in_force)
        assert not one.reconciler.serving.problem

    run(tmp_path, scenario)


def _fails(error: Exception) -> Generator[None, None, Any]:
    yield
    raise error


def test_a_change_of_the_hosts_settings_is_followed_and_is_no_repair(tmp_path: Path) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.pool("vxlan")
        one, _ = await cluster.join("node1", 1), await cluster.join("node2", 2)
        await eventually(lambda: "podway-vxlan" in one.kernel.kinds["device"].objects)
        await one.reconciler.settled()
        path = "net/ipv4/conf/podway-vxlan/rp_filter"
        assert one.kernel.kinds["sysctl"].objects[path].value == "0"
        one.kernel.settings["net/ipv4/conf/all/rp_filter"] = "1"
        one.reconciler.trigger(0)
        await eventually(lambda: one.kernel.kinds["sysctl"].objects[path].value == "2")
        assert list(one.reconciler.repairs) == []

    run(tmp_path, scenario)


def test_a_node_owns_the_range_that_kubernetes_gave_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.store.create(
            builders.pool("pods", "10.244.0.0/16", ranges="podCIDRs", distribution="store", block_size=29)
        )
        one, two = await cluster.join("node1", 1), await cluster.join("node2", 2)
        assert not one.state.view.blocks, "there is no range yet"
        leasing = Leasing(one.state, one.blocks)
        wants = Attachment("c0", "eth0")
        with pytest.raises(PoolExhausted, match="Node/node1 has no IPv4 range in"):
            await leasing.lease(wants, namespace="default")
        for name, given in (("node1", "10.244.9.8/29"), ("node2", "10.244.3.0/29")):
            await cluster.store.patch(Node, name, {"spec": {"podCIDRs": [given]}})
        await eventually(lambda: "10.244.3.0/29" in one.kernel.routes and "10.244.9.8/29" in two.kernel.routes)
        assert one.kernel.routes["10.244.9.8/29"].type == "blackhole"
        leased = [(await leasing.lease(Attachment(f"c{n}", "eth0"), namespace="default"))[0] for n in range(5)]
        assert {str(address) for address in leased} == {f"10.244.9.{n}" for n in range(10, 15)}
        with pytest.raises(
            PoolExhausted, match=r"10\.244\.9\.8/29, the range of node node1 in IPPool/pods, has no"
        ):
            await leasing.lease(wants, namespace="default")
        with pytest.raises(AddressUnavailable, match=r"is not of node node1, whose range .* is 10\.244\.9\.8/29"):
            await leasing.lease(wants, namespace="default", wanted=(ip_address("10.244.77.3"),))
        assert sorted(one.state.view.blocks) == ["10-244-3-0-29", "10-244-9-8-29"]
        assert not one.blocks.starving, "no other node can give back anything that would help"
        assert one.blocks.withdraw_idle() == two.blocks.withdraw_idle() == ()
        # The node is made anew, and given another range: the old one takes no new pod, and goes once it has none.
        await cluster.store.patch(Node, "node2", {"spec": {"podCIDRs": ["10.244.4.0/29"]}})
        await eventually(lambda: "10.244.4.0/29" in two.kernel.routes)
        (newest,) = await Leasing(two.state, two.blocks).lease(wants, namespace="default")
        assert str(newest).startswith("10.244.4."), "the old one, which has room, may be another node's range now"
        two.state.book.free([newest], wants, two.state.now())
        two.blocks.withdraw_idle()
        later = two.state.now() + 1000
        monkeypatch.setattr(two.state, "now", lambda: later)
        assert [block.spec.cidr for block in two.blocks.withdraw_idle()] == ["10.244.3.0/29"]

    run(tmp_path, scenario)
