"""The agent: joins store, plan, kernel, BIRD and CNI plugin on one node.

Facts come in on the left: the store's watch, the kernel's events, the runtime's requests. Each changes the
node's state, and the loop (podway.reconcile.reconciler) brings the kernel there. Whatever already is right costs
no write, so starting the agent on a correct node changes nothing, and stopping it stops nothing.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, closing
from functools import cached_property

import structlog

from podway import memory
from podway.agent.announcing import Announcing
from podway.agent.answering import Answering
from podway.agent.blocks import BlockKeeper
from podway.agent.cluster_handler import ClusterHandler
from podway.agent.cluster_informer import ClusterInformer, first_view
from podway.agent.components import Components
from podway.agent.contact import StoreContact
from podway.agent.encapsulation import EncapsulationSwitch
from podway.agent.first_pools import ensure_pools
from podway.agent.flow_recorder import FlowRecorder
from podway.agent.following import UplinkFollower, first_uplink
from podway.agent.housekeeping import Housekeeping
from podway.agent.identity import NodeLock
from podway.agent.kernel_events import KernelEvents
from podway.agent.lastknown import LastKnown
from podway.agent.learned import LearnedRoutes
from podway.agent.losses import ReflectorWatch
from podway.agent.membership import Membership
from podway.agent.metrics import AgentMetrics
from podway.agent.metrics_export import MetricsExport
from podway.agent.naming import NameListener
from podway.agent.offload import OffloadTest
from podway.agent.opening import Opening
from podway.agent.options import AgentOptions
from podway.agent.pods import PodNetwork
from podway.agent.readiness import Readiness
from podway.agent.registration import Registration
from podway.agent.report import Reporter
from podway.agent.routing import Routing
from podway.agent.service_health import ServiceHealth
from podway.agent.supervisor import Supervisor
from podway.api.kinds.pod import Pod
from podway.bgp.speaker import BgpSpeaker
from podway.channel import admin
from podway.channel.admin import Method
from podway.channel.server import Channel
from podway.cluster.view import JUDGING, PLANNED, ClusterView
from podway.cni.server import CniServer
from podway.errors import NotFound, PodwayError, StoreError
from podway.kernel import sysctls
from podway.kernel.events import Watcher
from podway.kernel.node import Kernel
from podway.kernel.pod_wirer import PodWirer
from podway.kernel.removal import LinkRemover
from podway.kernel.support import require_all
from podway.plan.uplink_choice import Choice
from podway.reconcile.pod_ends import PodEnds
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState
from podway.reconcile.steps import Steps
from podway.store.base import list_all
from podway.store.open import is_served, open_store

log = structlog.get_logger(__name__)

SETTLING = 10.0
"""Seconds that a new address of the uplink waits at most for the kernel to be ready before others hear of it."""

SWITCH_INTERVAL = 0.0001
"""Seconds after which a thread that computes lets another go on (sys.setswitchinterval).

The loop, and a thread that attaches a pod, let go of the interpreter with each system call, and wait so long each
time to go on if another thread computes: an ADD makes some hundred. By default it is fifty times as long."""


class Agent:
    """One node's agent. `run` it once."""

    def __init__(self, options: AgentOptions, steps: Steps) -> None:
        self._options = options
        self._steps = steps
        self._supervisor = Supervisor(self._look_again)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises PodwayError if it cannot start."""
        _require_system()
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
            wirer = stack.enter_context(closing(PodWirer(self._kernel)))
            remover = stack.enter_context(closing(LinkRemover()))
            self._watcher = Watcher(None, self._kernel.ports, remover.ports)
            stack.callback(self._watcher.close)

            self._membership = Membership(self._store, options.node, options.heartbeat_interval)
            view, choice, versions, away = await self._first_view(known)
            self._state = state = NodeState(options.node, view, choice.uplink)
            self._contact = contact = StoreContact()
            if away is not None:
                self._go_by_file(away)
            self._channel = Channel(self._store, state, requested=is_served(options.store))
            stack.callback(self._channel.close)
            self._registration = Registration(self._membership, state, contact, options.heartbeat_interval)

            ends = self._adopt_pods()
            self._reconciler = reconciler = Reconciler(
                self._kernel, state, ends, run_dir=options.run_dir, audit_interval=options.resync_interval
            )
            self._uplink = UplinkFollower(self._kernel.connection, state, options, reconciler, problem=choice.note)
            self._encapsulation = EncapsulationSwitch(self._kernel, state, self._membership, reconciler, contact)
            self._blocks = BlockKeeper(
                self._store, state, options.idle_block_delay, reconciler, self._membership, contact
            )
            self._speaker = BgpSpeaker(options.run_dir)
            self._learned = LearnedRoutes(self._speaker, state, reconciler.repairs)
            self._readiness = Readiness(state, self._speaker, self._encapsulation, self._membership)
            self._routing = Routing(state, self._speaker, self._learned, self._readiness, reconciler)
            self._pods = PodNetwork(
                state, self._kernel, wirer, remover, ends, self._blocks, reconciler, self._routing, self._find_pod
            )
            self._offloads = OffloadTest(self._kernel, reconciler.plan)
            handler = ClusterHandler(
                state,
                self._membership,
                self._registration,
                reconciler,
                self._encapsulation,
                self._blocks,
                self._routing,
                self._channel,
                self._last_known,
                self._service_health,
            )
            self._cluster_informer = ClusterInformer(
                self._store, state, contact, versions, handler, reconciler.way
            )

            self._supervisor.attempt("plan", self._first_plan)
            await self._blocks.keep()
            self._supervisor.attempt("plan", reconciler.bring)  # BIRD begins with what the kernel has
            await self._routing.start()

            server = CniServer(
                self._pods,
                socket_path=options.cni_socket,
                spool=options.cni_spool,
                under_way=reconciler.way.taken,
            )
            await server.start()
            stack.push_async_callback(server.close)
            reporter = Reporter(self._components, server)
            stack.callback((await admin.serve(options.admin_socket, reporter.methods)).close)
            log.info("ready", node=options.node, uplink=choice.uplink.device, pods=len(state.leases))
            memory.settle()
            await self._serve(server, reporter.methods)

    def _go_by_file(self, away: StoreError) -> None:
        """Note that the store is away, and that all that is known is what the last agent wrote down."""
        self._contact.lost(away)
        followed = {kind.KIND for kind in (*PLANNED, *JUDGING)}
        self._state.recalled = frozenset(followed - self._state.view.unlisted)

    def _adopt_pods(self) -> PodEnds:
        """Take over the pods that the kernel has, and remove what ADDs that were cut short have left."""
        for orphan in self._kernel.orphans():
            log.warning("removing the link of an ADD that was cut short", link=orphan)
            self._kernel.unwire(orphan)
        self._state.adopt(self._kernel.leases())
        # It goes on until it is known whose turn it is.
        self._state.answered = self._kernel.answered_on(self._state.uplink.device)
        ends = PodEnds(self._kernel)
        ends.learn(self._state.leases.values())
        return ends

    @cached_property
    def _service_health(self) -> ServiceHealth:
        return ServiceHealth(self._state, self._reconciler.serving)

    @cached_property
    def _components(self) -> Components:
        self._flows = FlowRecorder(self._options, self._state, self._kernel, self._reconciler)
        self._opening = Opening(self._options, self._state, self._store)
        return Components(
            self._options,
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
            self._contact,
            self._uplink,
            self._routing,
            self._flows,
            self._opening,
            self._service_health,
        )

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
            listing = await list_all(self._store, PLANNED)
            pools = await ensure_pools(self._store, self._options.default_pools, listing.items)
            await self._membership.check_name()
            choice = await first_uplink(connection, self._options, (*here, *listing.items))
            self._membership.check(choice.uplink.addresses, listing.items)
            registered = await self._membership.register(choice.uplink.addresses)
            written = (*pools, registered) if registered is not None else pools
            view, versions = await first_view(self._store, known, listing, written)
        except StoreError as error:
            if known is None or not here:
                raise
            return known, await first_uplink(connection, self._options, known.nodes.values()), {}, error
        return self._membership.present(view, choice.uplink.addresses), choice, versions, None

    async def _serve(self, server: CniServer, methods: Mapping[str, Method]) -> None:
        metrics = AgentMetrics(self._components, server)
        stop_measuring = await self._serve_metrics(metrics)
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._supervisor.watch(loop)
        self._last_known.trigger()
        events = KernelEvents(
            self._watcher,
            self._state,
            self._reconciler,
            self._pods,
            self._learned,
            self._uplink,
            self._supervisor,
        )
        loop.add_reader(self._watcher, events.read)
        housekeeping = Housekeeping(
            server, self._state, self._blocks, self._membership, self._routing, self._contact
        )
        answering = Answering(self._state, self._kernel, self._reconciler, self._routing, self._speaker.liveness)
        work = {
            "informer": self._cluster_informer.run,
            "last known": lambda: self._last_known.run(self._state),
            "encapsulation": self._encapsulation.run,
            "reconciler": self._reconciler.run,
            "pods": self._pods.run,
            "blocks": self._blocks.run,
            "routing": self._routing.run,
            "answering": answering.run,
            "service health": self._service_health.run,
            "learned routes": self._learned.run,
            "readiness": self._readiness.run,
            "reflectors": ReflectorWatch(self._state, self._speaker, self._membership).run,
            "offloads": self._offloads.run,
            "flows": self._flows.run,
            "names": NameListener(self._state, self._kernel, self._reconciler).run,
            "flow exports": self._flows.exports.run,
            "metrics export": MetricsExport(self._options.metrics_export, self._options.node, metrics.collect).run,
            "uplink": self._uplink.run,
            "new uplink": self._follow_uplink,
            "membership": self._registration.run,
            "housekeeping": housekeeping.run,
            "BIRD": self._speaker.run,
            "opening": self._opening.run,
            "announcing": Announcing(self._components, server).run,
            "channel": lambda: self._channel.run(methods),
        }
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._supervisor.run(name, each)) for name, each in work.items()]
            await stop.wait()
            for task in running:
                task.cancel()
        loop.remove_reader(self._watcher)
        stop_measuring()
        log.info("stopped; pods, routes and BIRD stay as they are", node=self._options.node)

    async def _serve_metrics(self, metrics: AgentMetrics) -> Callable[[], None]:
        """Serve metrics, if that is wanted; return what ends it. Raises AgentError if nobody can listen there."""
        if not self._options.metrics:
            return lambda: None
        from podway.metrics.server import MetricsServer, parse_endpoint

        served = MetricsServer(metrics.text)
        await served.start(*parse_endpoint(self._options.metrics))
        return served.close

    async def _find_pod(self, namespace: str, name: str) -> Pod | None:
        try:
            return await self._store.get(Pod, name, namespace=namespace)
        except NotFound:
            return None

    def _first_plan(self) -> None:
        self._encapsulation.refresh()
        self._reconciler.start()

    def _look_again(self) -> None:
        """Have everything compared and told anew, after a task failed in the middle of it."""
        self._encapsulation.trigger()
        self._reconciler.wake()
        self._reconciler.trigger()
        self._channel.trigger()
        self._blocks.trigger()
        self._routing.look_again()

    async def _follow_uplink(self) -> None:
        """Have everybody take over another device, MTU or address of the uplink, for ever."""
        while True:
            await self._uplink.changed.wait()
            self._uplink.changed.clear()
            self._service_health.trigger()
            try:
                async with asyncio.timeout(SETTLING):
                    await self._reconciler.settled()
            except TimeoutError:
                log.error("others are told of the uplink's addresses though the kernel is not ready for them")
            self._channel.trigger()
            self._routing.trigger()
            await self._registration.renew()


def _require_system() -> None:
    require_all()
    sysctls.make_writable()


def run(options: AgentOptions) -> None:
    """Run an agent until it is told to stop. Raises PodwayError."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    memory.share_arena()
    memory.collect_seldom()  # until it has settled
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
