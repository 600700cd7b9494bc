"""The doctor inside the agent: gathers one node's facts, and lets the checks judge them.

Whatever waits or thinks long (disks, netlink dumps, other programs, judges) does so in threads and processes of
its own, so that the agent attaches pods meanwhile. A source that fails or is too slow is a finding, and the
others go on.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TypeVar

import msgspec

from podway.api.addresses import Family, Network
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.kinds.pod import Pod
from podway.api.resource import subject
from podway.bgp.probe import PathMtu
from podway.bgp.speaker import BgpSpeaker
from podway.bgp.status import BirdRoute, PeerStatus
from podway.cluster.view import ClusterView
from podway.errors import NotFound, ObjectDamaged, PodwayError, RoutingError, StoreError
from podway.health import checks
from podway.health.checks.addresses import pool_fill
from podway.health.checks.encapsulation import bare_far
from podway.health.facts import (
    Files,
    Firewall,
    KernelNetwork,
    KnownPod,
    Memory,
    NarrowPath,
    NodeFacts,
    NodeSummary,
    Path,
    Reflector,
    Routing,
    Settings,
    StoreTrial,
    neighbour_overflows,
)
from podway.health.finding import Check, Finding, Severity
from podway.health.sources import files, firewall, network, pods, routing, settings
from podway.kernel.network import Connection
from podway.kernel.node import Kernel
from podway.plan.mtu import pool_mtu, pool_overhead
from podway.plan.reflectors import lost_by
from podway.plan.topology import topology
from podway.store.base import Store

T = TypeVar("T")

log = logging.getLogger(__name__)

SOURCE_SECONDS = 5.0
"""How long a source may take; all together usually take less than one second."""

BIRD_SECONDS = 1.0
STORE_SECONDS = 2.0

SIGNED_SECONDS = 8.0
"""How long a dropped signature is remembered when looks follow each other fast."""

ENDED = frozenset({"Succeeded", "Failed"})
"""Phases of a Pod that has no network any more."""

SETTLE = 0.2
"""Seconds between two looks at what differs from the plan: a pod may just be starting."""

SWITCH = 1.5
"""Seconds between two looks at what a node waits for, if it does: pools' packets may just switch."""


class NodeReport(msgspec.Struct, frozen=True):
    """An agent's answer: what it found, and what the command needs from all nodes."""

    findings: tuple[Finding, ...]
    summary: NodeSummary


class Doctor:
    """Examines the node. `memory` tells what the agent knows; the rest is looked at.

    Counters are noted from the beginning, so that the first look tells what was counted since. `tells_pods` says
    that whoever runs pods writes them into the store; else that is known only where there are some.
    """

    def __init__(
        self,
        memory: Callable[[], Memory],
        kernel: Kernel,
        speaker: BgpSpeaker,
        store: Store,
        places: files.Places,
        *,
        tells_pods: bool = False,
    ) -> None:
        self._memory = memory
        self._kernel = kernel
        self._speaker = speaker
        self._store = store
        self._places = places
        self._tells_pods = tells_pods
        self._counters = settings.counters()
        self._signed = (0.0, 0)
        self._unseen: dict[str, str] = {}
        self._one_at_a_time = asyncio.Lock()

    async def examine(self) -> NodeReport:
        """Look at everything once, and judge it."""
        async with self._one_at_a_time:
            facts = await self._gather()
        return NodeReport(await asyncio.to_thread(_judge, facts), summary(facts))

    async def _gather(self) -> NodeFacts:
        self._unseen = {}
        memory = self._memory()
        peers, known, bird_problem = await self._bird()
        async with asyncio.TaskGroup() as tasks:
            do = tasks.create_task
            ruleset = do(self._look("firewall", firewall.read(), Firewall()))
            host = do(self._look("settings", asyncio.to_thread(settings.read, memory.uplink), Settings()))
            links = do(self._look("rtnetlink", asyncio.to_thread(_network, memory, known), KernelNetwork()))
            probing = _routing(memory, peers, bird_problem, self._signatures())
            talk = do(self._look("paths", probing, Routing(problem=bird_problem)))
            astray = do(self._unreachable())
            disk = do(self._look("files", asyncio.to_thread(files.read, self._places), Files()))
            trial = do(self._store_trial(memory.node))
            drift = do(self._look("plan", self._drift(), ()))
            inside = do(self._look("pods", asyncio.to_thread(pods.read, memory.leases), ()))
            pending = do(self._pending(memory.pending))
            leases = do(self._look("leases in the store", self._renewed(), {}))
            known_pods = do(self._look("pods in the store", self._known_pods(), None))
            policies = do(self._look("policies in the store", self._policies(), 0))
        return NodeFacts(
            now=time.time(),
            memory=msgspec.structs.replace(memory, pending=pending.result()),
            settings=self._with_counters(host.result(), links.result()),
            network=links.result(),
            firewall=ruleset.result(),
            routing=msgspec.structs.replace(talk.result(), unreachable=astray.result()),
            files=disk.result(),
            store=trial.result(),
            pods=inside.result(),
            pods_known=known_pods.result(),
            policies=policies.result(),
            renewed=leases.result(),
            drift=drift.result(),
            unseen=self._unseen,
        )

    def _signatures(self) -> int:
        """Return how many segments were dropped for their signature lately: BIRD tries again every 5 seconds."""
        now, grown = time.monotonic(), Settings(counters=settings.counters(), before=self._counters).signatures
        if grown or now - self._signed[0] > SIGNED_SECONDS:
            self._signed = now, grown
        return self._signed[1]

    def _with_counters(self, found: Settings, links: KernelNetwork) -> Settings:
        """Add the neighbour tables' overflows to the counters; what was never counted before has not grown."""
        overflows = {neighbour_overflows(table.family): table.overflows for table in links.neighbours}
        now = {**found.counters, **overflows}
        before, self._counters = {**now, **self._counters}, now
        return msgspec.structs.replace(found, counters=now, before=before)

    async def _look(self, source: str, work: Awaitable[T], otherwise: T) -> T:
        try:
            async with asyncio.timeout(SOURCE_SECONDS):
                return await work
        except TimeoutError:
            self._unseen[source] = f"it took more than {SOURCE_SECONDS:g} s"
        except PodwayError as error:
            self._unseen[source] = error.message
        except OSError as error:
            self._unseen[source] = str(error)
        except Exception as error:  # the other sources go on, whatever it is
            log.exception("a source of facts failed: %s", source)
            self._unseen[source] = f"{type(error).__name__}: {error}"
        return otherwise

    async def _bird(self) -> tuple[tuple[PeerStatus, ...], tuple[BirdRoute, ...], str]:
        try:
            async with asyncio.timeout(BIRD_SECONDS):
                return await self._speaker.peers(), await self._speaker.kernel_routes(), ""
        except TimeoutError:
            return (), (), f"BIRD does not answer within {BIRD_SECONDS:g} s"
        except RoutingError as error:
            return (), (), error.message

    async def _unreachable(self) -> tuple[BirdRoute, ...]:
        """Return routes without a way to their next hop, now and a moment later: BIRD may be at work."""
        found: list[dict[Network, BirdRoute]] = []
        for wait in (0, SETTLE):
            await asyncio.sleep(wait)
            try:
                async with asyncio.timeout(BIRD_SECONDS):
                    found.append({route.network: route for route in await self._speaker.unreachable()})
            except (TimeoutError, RoutingError):
                return ()  # `bird` tells of it
        first, second = found
        return tuple(route for network, route in second.items() if network in first)

    async def _store_trial(self, node: str) -> StoreTrial:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._store.get(Node, node)
        except (NotFound, ObjectDamaged):
            pass  # it answered
        except TimeoutError:
            return StoreTrial(problem=f"the store does not answer within {STORE_SECONDS:g} s")
        except StoreError as error:
            return StoreTrial(problem=error.message)
        return StoreTrial(time.monotonic() - begun)

    async def _renewed(self) -> Mapping[str, float]:
        """Return when each node's agent renewed its lease; nothing if the store does not answer."""
        try:
            found = (await self._store.list(NodeLease, namespace=LEASES)).items
        except StoreError:
            return {}  # which is a finding of its own
        return {lease.metadata.name: lease.renewed for lease in found if lease.renewed is not None}

    async def _policies(self) -> int:
        """Return how many policies there are, also such as cannot be read; 0 if the store does not answer."""
        count = 0
        try:
            for kind in (NetworkPolicy, ClusterNetworkPolicy):
                listing = await self._store.list(kind)
                count += len(listing.items) + len(listing.rejected)
        except StoreError:
            return 0  # which is a finding of its own
        return count

    async def _known_pods(self) -> tuple[KnownPod, ...] | None:
        """Return the Pods in the store that run; None where nobody seems to write any, or it does not answer."""
        try:
            found = (await self._store.list(Pod)).items
        except StoreError:
            return None  # which is a finding of its own
        if not found and not self._tells_pods:
            return None
        return tuple(
            KnownPod(
                f"{pod.metadata.namespace}/{pod.metadata.name}",
                pod.spec.node_name,
                () if pod.spec.host_network or pod.status.phase in ENDED else pod.addresses,
            )
            for pod in found
        )

    async def _drift(self) -> tuple[str, ...]:
        first = await self._differences()
        if not first:
            return ()
        await asyncio.sleep(SETTLE)
        second = await self._differences()
        return tuple(difference for difference in first if difference in second)

    async def _pending(self, first: tuple[str, ...]) -> tuple[str, ...]:
        if not first:
            return ()
        await asyncio.sleep(SWITCH)
        second = self._memory().pending
        return tuple(words for words in first if words in second)

    async def _differences(self) -> tuple[str, ...]:
        plan = self._memory().plan
        return tuple(change.difference for change in await asyncio.to_thread(self._kernel.diff, plan))


def _judge(facts: NodeFacts) -> tuple[Finding, ...]:
    node = facts.memory.node
    return tuple(finding for check in checks.of_nodes() for finding in _examine(check, facts, node))


def _examine(check: Check[NodeFacts], facts: NodeFacts, node: str) -> Iterator[Finding]:
    try:
        yield from check.examine(facts, node)
    except Exception as error:
        log.exception("the check %s failed", check.name)
        found = f"the check itself failed: {type(error).__name__}: {error}"
        yield Finding(check.name, Severity.WARNING, node, found, check.why, "see the agent's log, and report it")


def _network(memory: Memory, known: tuple[BirdRoute, ...]) -> KernelNetwork:
    with Connection() as connection:
        return network.read(connection, known, [pool.network for pool in memory.view.pools.values()])


async def _routing(memory: Memory, peers: tuple[PeerStatus, ...], problem: str, signatures: int) -> Routing:
    others = [
        (name, address)
        for name, node in memory.view.nodes.items()
        if name != memory.node
        for address in node.internal_addresses
    ]
    own = {Family.of(address): address for address in memory.uplink.node_addresses}
    with Connection() as connection:
        sessions, paths = await asyncio.gather(
            routing.sessions(peers, own, connection, signatures),
            routing.paths(memory.node, others, _largest(memory)),
        )
    return Routing(sessions, paths, problem)


def _largest(memory: Memory) -> int:
    """Return the size of pods' largest packets as they cross between nodes, outer headers and all, in bytes."""
    view, uplink = memory.view, memory.uplink
    sizes = [pool_mtu(view, uplink, pool) + pool_overhead(view, uplink, pool) for pool in view.pools.values()]
    return max(sizes, default=memory.pod_mtu)


def _narrow(path: Path) -> NarrowPath:
    found = path.mtu or PathMtu(0, False)
    return NarrowPath(path.node, str(path.address), path.size, found.fits, found.told)


def _headers(memory: Memory) -> int:
    """Return how many bytes encapsulation adds at most."""
    pools = memory.view.pools.values()
    return max((pool_overhead(memory.view, memory.uplink, pool) for pool in pools), default=0)


def summary(facts: NodeFacts) -> NodeSummary:
    """Return what the command needs of a node's facts besides findings."""
    memory = facts.memory
    return NodeSummary(
        node=memory.node,
        version=memory.version,
        at=facts.now,
        pod_mtu=memory.pod_mtu,
        sessions=facts.routing.sessions,
        pools=tuple(pool_fill(facts, pool) for pool in memory.view.pools.values()),
        addresses=tuple(str(address) for address in memory.uplink.node_addresses),
        pending=memory.pending,
        headers=_headers(memory),
        narrow=tuple(_narrow(path) for path in facts.routing.paths if path.narrow),
        bare_far=bare_far(memory.view, memory.node),
        rejected={subject(one.key): one.problem for one in memory.view.rejected.values()},
        reflectors=tuple(_reflectors(memory.view)),
        racks=len({node.rack for node in memory.view.nodes.values()}),
        nodes=tuple(memory.view.nodes),
        seen=dict(_seen(facts)),
    )


def _seen(facts: NodeFacts) -> Iterator[tuple[str, float]]:
    """Yield the nodes whose agents' last signs of life are known, and how many seconds ago these were."""
    for name, node in facts.memory.view.nodes.items():
        alive = node.alive_at(facts.renewed.get(name))
        if alive is not None:
            yield name, max(0.0, facts.now - alive)


def _reflectors(view: ClusterView) -> Iterator[Reflector]:
    target = topology(view)
    for name in sorted(target.reflectors):
        without = lost_by(view.nodes, name) - {name}
        yield Reflector(name, view.nodes[name].rack, tuple(sorted(without)), name in target.lost)
