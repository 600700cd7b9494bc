"""The agent: joins store, plan, kernel, BIRD and CNI plugin on one node.

Facts come in on the left: the store's watch, the kernel's events, the runtime's requests. Each changes the
node's state or only asks for a look; then one pure step makes the plan, and one comparison brings the kernel
to it. Whatever already is right costs no write, so starting the agent on a correct node changes nothing, and
stopping it stops nothing.
"""

import asyncio
import signal
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog

from podway.agent.blocks import BlockKeeper
from podway.agent.cluster_informer import ClusterInformer
from podway.agent.components import Components
from podway.agent.encapsulation import EncapsulationSwitch
from podway.agent.following import UplinkFollower, first_uplink
from podway.agent.identity import NodeLock
from podway.agent.lastknown import LastKnown
from podway.agent.learned import LearnedRoutes
from podway.agent.losses import ReflectorWatch
from podway.agent.membership import Membership
from podway.agent.offload import OffloadTest
from podway.agent.options import AgentOptions
from podway.agent.pods import PodNetwork
from podway.agent.readiness import Readiness
from podway.agent.reconciler import ECHO, Reconciler
from podway.agent.report import Reporter
from podway.agent.state import NodeState
from podway.agent.steps import Steps, rest
from podway.agent.supervisor import Supervisor
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.bgp.speaker import BgpSpeaker
from podway.channel import admin
from podway.channel.admin import Method
from podway.channel.server import Channel
from podway.cluster.change import Change
from podway.cluster.relevance import alters_plans, alters_routing
from podway.cluster.view import VIEWED, ClusterView
from podway.cni.server import CniServer
from podway.errors import PodwayError, RoutingError, StoreError
from podway.kernel.events import Event as KernelEvent
from podway.kernel.events import Resync, Watcher
from podway.kernel.node import Kernel
from podway.kernel.removal import LinkRemover
from podway.kernel.support import require_all
from podway.plan.bgp import BgpPlan, plan_bgp
from podway.plan.switching import concerns
from podway.plan.uplink_choice import Choice
from podway.store.base import list_all
from podway.store.open import open_store

log = structlog.get_logger(__name__)

LONGEST_ROUTING_REST = 2.0
"""Seconds that BIRD may wait at most for what another node changed: sessions come and go, routes do not wait."""

ROUTING_RETRY = 5.0
"""Seconds until BIRD is given a configuration again that it did not take."""

HOUSEKEEPING = 5.0
"""Seconds between looks at blocks: idle ones, and those of nodes that are gone."""


class Agent:
    """One node's agent. `run` it once."""

    def __init__(self, options: AgentOptions, steps: Steps) -> None:
        self._options = options
        self._steps = steps
        self._routing_problem = ""
        self._blocks_wanted = asyncio.Event()
        self._routing_wanted = asyncio.Event()
        self._routing_pending = False
        self._supervisor = Supervisor(self._look_again)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises PodwayError if it cannot start."""
        require_all()
        options = self._options
        options.prepare()
        async with AsyncExitStack() as stack:
            stack.callback(NodeLock().release)
            self._last_known = LastKnown(options.run_dir, options.store)
            known = self._last_known.load()
            # One who has known a cluster does not make an empty one in its place.
            self._store = open_store(options.store, create=known is None, later=known is not None)
            stack.push_async_callback(self._store.close)
            self._kernel = Kernel.open()
            stack.callback(self._kernel.close)
            remover = LinkRemover()
            stack.callback(remover.close)
            self._watcher = Watcher(own_ports=self._kernel.ports | remover.ports)
            stack.callback(self._watcher.close)

            self._membership = Membership(self._store, options.node, options.heartbeat_interval)
            view, choice, versions, away = await self._first_view(known)
            self._state = NodeState(options.node, view, choice.uplink)
            self._channel = Channel(self._store, self._state)
            stack.callback(self._channel.close)
            self._uplink = UplinkFollower(
                self._kernel.connection,
                self._state,
                options,
                changed=self._uplink_changed,
                bring_to_plan=self._bring_to_plan,
                problem=choice.note,
            )
            for orphan in self._kernel.orphans():
                log.warning("removing the link of an ADD that was cut short", link=orphan)
                self._kernel.unwire(orphan)
            self._state.adopt(self._kernel.leases())
            self._cluster_informer = ClusterInformer(
                self._store, self._state, versions, take=self._take, found=self._blocks_wanted.set
            )
            if away is not None:
                self._cluster_informer.lost(away)
            self._encapsulation = EncapsulationSwitch(
                self._kernel,
                self._state,
                self._membership,
                bring_to_plan=self._bring_to_plan,
                store_lost=self._cluster_informer.lost,
            )
            self._reconciler = Reconciler(
                self._kernel, self._state, options, failures_changed=self._encapsulation.trigger
            )
            self._blocks = BlockKeeper(
                self._store,
                self._state,
                options.idle_block_delay,
                announce=self._reconciler.apply,
                say=self._membership.announce,
            )
            self._pods = PodNetwork(
                self._state,
                self._kernel,
                remover,
                self._blocks,
                bring_to_plan=self._reconciler.apply,
                more_blocks=self._blocks_wanted.set,
                repaired=self._reconciler.note,
                impaired=lambda: self._routing_problem,
            )
            self._pods.learn_namespaces()
            self._reconciler.learn_facts()
            self._supervisor.attempt("plan", self._first_plan)
            await self._ensure_blocks()
            self._speaker = BgpSpeaker(options.run_dir)
            await self._start_routing()
            self._learned = LearnedRoutes(self._speaker, self._state, self._reconciler.note)
            self._offloads = OffloadTest(self._kernel, self._state.plan)
            self._readiness = Readiness(self._state, self._speaker, self._encapsulation, self._membership)

            server = CniServer(self._pods, socket_path=options.cni_socket, spool=options.cni_spool)
            await server.start()
            stack.push_async_callback(server.close)
            components = Components(
                options,
                self._state,
                self._kernel,
                self._reconciler,
                self._pods,
                self._speaker,
                self._learned,
                self._encapsulation,
                self._offloads,
                self._channel,
                self._store,
                self._supervisor,
                self._steps,
                self._problems,
            )
            reporter = Reporter(components)
            stack.callback((await admin.serve(options.admin_socket, reporter.methods)).close)
            log.info("ready", node=options.node, uplink=choice.uplink.device, pods=len(self._state.leases))
            await self._serve(server, reporter.methods)

    async def _first_view(
        self, known: ClusterView | None
    ) -> tuple[ClusterView, Choice, Mapping[str, str], StoreError | None]:
        """Choose the uplink and register the node; return the cluster as it is and the versions to follow it from,
        or as it is `known` and why the store is away.

        Raises StoreError if nothing is known, and AgentError if no device can be the uplink.
        """
        node, connection = self._options.node, self._kernel.connection
        here = [known.nodes[node]] if known and node in known.nodes else []
        try:
            stored = (await list_all(self._store, VIEWED)).items
            self._membership.check_name(stored)
            choice = await first_uplink(connection, self._options, (*here, *stored))
            self._membership.check(choice.uplink.addresses, stored)
            await self._membership.register(choice.uplink.addresses)
            listing = await list_all(self._store, VIEWED)
        except StoreError as error:
            if known is None or not here:
                raise
            return known, await first_uplink(connection, self._options, known.nodes.values()), {}, error
        view = ClusterView.of(listing.items, rejected=listing.rejected, former=known)
        return self._membership.present(view, choice.uplink.addresses), choice, listing.versions, None

    async def _serve(self, server: CniServer, methods: Mapping[str, Method]) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._supervisor.watch(loop)
        self._watcher.blocks = self._state.view.block_ranges
        self._last_known.trigger()
        loop.add_reader(self._watcher, self._kernel_changed)
        work = {
            "informer": self._cluster_informer.run,
            "last known": lambda: self._last_known.run(self._state),
            "encapsulation": self._encapsulation.run,
            "reconciler": self._reconciler.run,
            "pods": self._pods.run,
            "blocks": self._keep_blocks,
            "routing": self._keep_routing,
            "learned routes": self._learned.run,
            "readiness": self._readiness.run,
            "reflectors": ReflectorWatch(self._state, self._speaker, self._membership).run,
            "offloads": self._offloads.run,
            "uplink": self._uplink.run,
            "membership": self._keep_membership,
            "housekeeping": lambda: self._housekeeping(server),
            "BIRD": self._speaker.run,
            "channel": lambda: self._channel.run(methods),
        }
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._supervisor.run(name, each)) for name, each in work.items()]
            await stop.wait()
            for task in running:
                task.cancel()
        loop.remove_reader(self._watcher)
        log.info("stopped; pods, routes and BIRD stay as they are", node=self._options.node)

    def _first_plan(self) -> None:
        self._encapsulation.refresh(force=True)
        self._bring_to_plan()

    def _look_again(self) -> None:
        """Have everything compared and told anew, after a task failed in the middle of it."""
        self._encapsulation.trigger()
        self._reconciler.trigger()
        self._channel.trigger()
        for wanted in (self._blocks_wanted, self._routing_wanted):
            wanted.set()

    def _problems(self) -> dict[str, Any]:
        return {
            "store": self._cluster_informer.problem,
            "routing": self._routing_problem,
            "uplink": self._uplink.problem,
            "pending": "BIRD has not taken the last change yet" if self._routing_pending else "",
        }

    def _bgp_plan(self) -> BgpPlan:
        state = self._state
        return plan_bgp(state.view, state.node, self._speaker.running, uplink=state.uplink)

    def _bring_to_plan(self) -> None:
        self._pods.fit_mtu()
        self._reconciler.apply()

    async def _take(self, view: ClusterView, changes: tuple[Change[Any], ...]) -> None:
        before, node = self._state.view, self._options.node
        view = self._encapsulation.as_advertised(self._membership.present(view, self._state.uplink.addresses))
        if any(change.kind == ClusterAuthority.KIND for change in changes):
            self._channel.trigger()
        if not any(map(alters_plans, changes)):
            self._state.advance(view)  # say, another node's heartbeat
            return
        delta = self._state.take_others(view, changes)
        self._watcher.blocks = view.block_ranges
        self._last_known.trigger()
        self._channel.trigger()
        if node not in view.nodes:
            log.warning("this node was removed from the cluster while its agent runs: registering it again")
            await self._register()
            return  # the watch will tell
        routing = any(map(alters_routing, changes))
        switching = concerns(before, node) or concerns(view, node)
        if delta is not None:
            self._reconciler.carry_out(delta)
        elif routing:
            self._encapsulation.refresh(force=switching)
        if delta is None and (
            switching
            or before.blocks_of(node) != view.blocks_of(node)
            or (before.pools, before.config) != (view.pools, view.config)
        ):
            self._bring_to_plan()
        self._blocks_wanted.set()
        if routing:
            self._routing_pending = True
            self._routing_wanted.set()

    async def _register(self) -> None:
        try:
            await self._membership.register(self._state.uplink.addresses)
            self._cluster_informer.reached()
        except StoreError as error:
            self._cluster_informer.lost(error)

    async def _start_routing(self) -> None:
        try:
            await self._speaker.start(self._bgp_plan(), self._state.view.secrets)
        except RoutingError as error:
            if self._speaker.bird.pid is None:
                raise
            # It runs on with what it took last, and pods need it: no reason not to start.
            self._routing_refused(error)
            self._routing_wanted.set()

    async def _keep_routing(self) -> None:
        while True:
            await self._routing_wanted.wait()
            self._routing_wanted.clear()
            if self._options.node not in self._state.view.nodes:
                continue
            began = time.monotonic()
            plan = self._bgp_plan()
            took = time.monotonic() - began
            try:
                await self._speaker.apply(plan, self._state.view.secrets)
            except RoutingError as error:
                self._routing_refused(error)
                await asyncio.sleep(ROUTING_RETRY)
                self._routing_wanted.set()
            else:
                self._routing_problem = ""
                self._routing_pending = self._routing_wanted.is_set()
                self._readiness.trigger()
                self._learned.trigger()
            await rest(took, longest=LONGEST_ROUTING_REST)

    async def _reread_passwords(self) -> None:
        try:
            await self._speaker.reread_passwords()
        except RoutingError as error:
            self._routing_refused(error)

    def _routing_refused(self, error: RoutingError) -> None:
        if error.message != self._routing_problem:
            log.error("BIRD keeps its former configuration", problem=error.message, hint=error.hint)
        self._routing_problem = error.message

    def _kernel_changed(self) -> None:
        for event in self._watcher.read():
            self._supervisor.attempt("kernel events", partial(self._consider, event))

    def _consider(self, event: KernelEvent | Resync) -> None:
        if isinstance(event, Resync):
            self._pods.look_for_vanished()
            self._reconciler.trigger()
            self._learned.trigger()
            self._uplink.trigger()
            return
        if event.kind == "link" and event.removed and event.ours:
            self._pods.link_vanished(event.device)
        if event.uplink:
            self._uplink.trigger()
        if event.learned:
            self._learned.trigger()
        if event.kind == "forwarding" and self._is_echo(f"{event.device} {event.subject}"):
            return  # the one kind of change of which the kernel never names the author (vxlan_fdb_notify)
        # Settings of the uplink and of the whole namespace are ours to keep, though the devices are not.
        if event.ours or event.kind == "sysctl":
            if self._is_echo(event.subject if event.kind == "nft" else event.device):
                self._reconciler.trigger(ECHO, full=False)
            else:
                self._reconciler.trigger()

    def _is_echo(self, what: str) -> bool:
        return self._state.touched(what, since=self._state.now() - ECHO)

    async def _keep_blocks(self) -> None:
        while True:
            await self._blocks_wanted.wait()
            self._blocks_wanted.clear()
            await self._ensure_blocks()

    async def _uplink_changed(self) -> None:
        """Take over another device, MTU or address of the uplink."""
        self._bring_to_plan()
        self._channel.trigger()
        self._routing_wanted.set()
        await self._register()

    async def _ensure_blocks(self) -> None:
        try:
            await self._blocks.ensure()
        except StoreError as error:
            self._cluster_informer.lost(error)

    async def _keep_membership(self) -> None:
        while True:
            await asyncio.sleep(self._options.heartbeat_interval)
            await self._register()

    async def _housekeeping(self, server: CniServer) -> None:
        orphaned_since: float | None = None
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            await server.replay()
            await self._reread_passwords()
            leaving = self._blocks.withdraw_idle()
            if self._blocks.starving:
                self._blocks_wanted.set()
            owners = {block.spec.node for block in self._state.view.blocks.values()}
            if owners <= self._state.view.registered:
                orphaned_since = None
            elif orphaned_since is None:
                orphaned_since = self._state.now()
            try:
                await self._blocks.give_back(leaving)
                if orphaned_since is not None:
                    patience = self._state.now() - orphaned_since
                    await self._membership.give_back_blocks_of_removed_nodes(self._state.view, patience)
            except StoreError as error:
                self._cluster_informer.lost(error)


def run(options: AgentOptions) -> None:
    """Run an agent until it is told to stop. Raises PodwayError."""
    try:
        steps = Steps()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(steps)) as runner:
            runner.run(Agent(options, steps).run())
    except BaseExceptionGroup as group:
        # One task failed and took the others along: its error is the one to show.
        raise _first_podway_error(group) or group from group


def _first_podway_error(group: BaseExceptionGroup[BaseException]) -> PodwayError | None:
    for error in group.exceptions:
        found = _first_podway_error(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, PodwayError):
            return found
    return None
