"""Does what is to be done for the cluster, while this controller is the one that does it."""

import asyncio
import contextlib
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from functools import partial

import msgspec
import structlog

from podway import __version__
from podway.api.kinds import KINDS
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import ChannelSettings, NetworkConfig
from podway.api.kinds.node_certificate import NodeCertificate
from podway.api.kinds.node_lease import CONTROLLER, LEASES, NodeLease
from podway.api.resource import Key, subject
from podway.api.status import ACCEPTED, JudgedStatus
from podway.controller.addressing import Addressing
from podway.controller.duties import (
    ADDRESSING,
    DUTIES,
    JUDGING,
    SIGNING,
    Departures,
    Duty,
    Telling,
    requests,
    tellings,
    waiting,
)
from podway.controller.election import INTERVAL, Candidate, held
from podway.controller.following import FOLLOWED, Facts, Following
from podway.controller.signing import Signing
from podway.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, ObjectDamaged, PodwayError
from podway.ipam.claims import give_back_all_of
from podway.metrics.exposition import Metric, Values, expose
from podway.metrics.server import MetricsServer, parse_endpoint
from podway.store.announcements import Announcer, Notice
from podway.store.base import Store
from podway.store.open import is_served, open_store

log = structlog.get_logger(__name__)

BUILD = Metric("podway_controller_info", "The version of the controller.", labels=("version",))
LEADS = Metric("podway_controller_leads", "1 on the controller that works, 0 on those that wait.")
FACTS = Metric("podway_controller_store_in_touch", "Whether every kind is followed.")
WAITING = Metric(
    "podway_controller_duty_waits", "1 for what cannot be done, as a kind cannot be listed.", labels=("duty",)
)
UNDONE = Metric("podway_controller_work_undone", "Whether work failed, and is tried again.")
NOT_ACCEPTED = Metric("podway_controller_not_accepted", "Objects that do not hold, by kind.", labels=("kind",))
BLOCKS_RETURNED = Metric("podway_controller_blocks_returned_total", "Blocks given back.", "counter")
ADDRESSES_UNMET = Metric("podway_controller_services_without_address", "Services that lack an address outside.")
SIGNED = Metric(
    "podway_controller_certificate_requests_total", "Requests answered, by answer.", "counter", ("answer",)
)
AUTHORITY_UNTIL = Metric(
    "podway_controller_authority_expiry_timestamp_seconds", "When the newest authority ends, since 1970."
)
METRICS = (
    BUILD,
    LEADS,
    FACTS,
    WAITING,
    UNDONE,
    NOT_ACCEPTED,
    BLOCKS_RETURNED,
    ADDRESSES_UNMET,
    SIGNED,
    AUTHORITY_UNTIL,
)
"""All that a controller measures."""

GRACE = 10.0
"""Seconds that a node is gone before what it owned is given back."""
LOOK = 5.0
"""Seconds after which to look, though nothing was heard."""
TOGETHER = 0.2
"""Seconds in which changes are gathered: what one command writes is judged together."""
COMPONENT = "podway.io/controller"
FULL = "PoolFull"
"""Reason of the Events about pools that have no address left for a Service."""
NOT_ALLOCATING = "NotAllocating"
"""Reason of the Events about pools of which nothing is given, since something cannot be asked for."""
SET_ASIDE = "SetAside"
"""Reason of the Events about objects that do not hold."""
LEASES_LOOK = 300.0
"""Seconds between looks at all leases of agents: nobody watches them."""


class ControllerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's settings."""

    store: str
    name: str = ""
    """What it calls itself in the election, unlike all others; the machine's name and a number unless stated."""
    grace: float = GRACE
    metrics: str = ""
    """Where metrics are served, ADDRESS:PORT; nowhere if empty."""
    relay: str = ""
    """Where questions for agents are taken that come through the API server, ADDRESS:PORT; nowhere if empty."""


class Controller:
    """One controller. `run` it once; `store` stays open."""

    def __init__(self, store: Store, options: ControllerOptions) -> None:
        self._store = store
        self._following = Following(store)
        # In containers many processes have number 1, and those in the nodes' network the nodes' names.
        self._candidate = Candidate(options.name or f"{socket.gethostname()}_{secrets.token_hex(4)}")
        self._departures = Departures(options.grace)
        self._signing = Signing(store)
        self._addressing = Addressing(store)
        self._signs = is_served(options.store)
        self._lessees: tuple[str, ...] = ()
        self._leases_at = -LEASES_LOOK
        self._problem = ""
        self._leading = False
        self.blocks_returned = 0
        self._announcer = Announcer(store, COMPONENT, self._candidate.name, time.time)
        self._unreadable: frozenset[Key] = frozenset()
        self._waits: dict[Duty, str] = {}
        """What is not done, and why."""

    async def run(self) -> None:
        """Stand for election, and work while elected, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._following.run())
                tasks.create_task(self._stand())
                tasks.create_task(self._work())
        finally:
            await self._give_up()

    # The election.

    async def _stand(self) -> None:
        while True:
            now = time.monotonic()
            try:
                async with asyncio.timeout(INTERVAL * 3):
                    await self._look(now)
            except (TimeoutError, PodwayError) as error:
                log.debug("the lease could not be looked at", problem=str(error))
            leads = self._candidate.leads(time.monotonic())
            if leads is not self._leading:
                self._leading = leads
                self._addressing.leave()
                log.info("this controller works now" if leads else "another controller works", name=self.name)
                self._following.changed.set()
            await asyncio.sleep(INTERVAL)

    async def _look(self, now: float) -> None:
        lease = await self._lease()
        step = self._candidate.look(lease, now)
        if step == "wait":
            self._candidate.lost()
            return
        try:
            if lease is None:
                await self._store.create(held(self.name, time.time()))
            else:
                await self._store.update(held(self.name, time.time(), lease))
        except (AlreadyExists, Conflict, NotFound):
            return  # somebody was quicker: the next look tells
        self._candidate.wrote(now)

    async def _lease(self) -> NodeLease | None:
        try:
            return await self._store.get(NodeLease, CONTROLLER, namespace=LEASES)
        except NotFound:
            return None
        except ObjectDamaged as error:
            if isinstance(error.found, NodeLease):
                return error.found
            raise

    async def _give_up(self) -> None:
        """Leave the lease to the next one, if the store is there."""
        if not self._candidate.leads(time.monotonic()):
            return
        self._candidate.lost()
        with contextlib.suppress(PodwayError, TimeoutError):
            async with asyncio.timeout(INTERVAL):
                lease = await self._lease()
                if lease is not None and lease.spec.holder_identity == self.name:
                    await self._store.update(held("", time.time(), lease))

    @property
    def facts(self) -> Facts:
        """The cluster as it is known now."""
        return self._following.facts

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self._candidate.name

    def metrics(self) -> Iterator[tuple[Metric, Values]]:
        """Yield what is measured."""
        kinds = {kind.KIND: 0.0 for kind in FOLLOWED if kind.JUDGED}
        for obj in self._following.facts.objects:
            told = getattr(obj, "status", None)
            condition = told.condition(ACCEPTED) if isinstance(told, JudgedStatus) else None
            if condition is not None and condition.status != "True":
                kinds[obj.KIND] += 1
        for one in self._following.facts.rejected:
            if one.key[0] in kinds:
                kinds[one.key[0]] += 1
        until = self._signing.authority_until
        yield BUILD, {(__version__,): 1.0}
        yield LEADS, float(self._leading)
        yield FACTS, float(self._following.facts.complete and not self._following.problems)
        waits = waiting(self._following.facts, self._following.problems)
        yield WAITING, {(duty.name,): float(duty in waits) for duty in DUTIES}
        yield UNDONE, float(bool(self._problem))
        yield NOT_ACCEPTED, {(kind,): count for kind, count in kinds.items()}
        yield BLOCKS_RETURNED, float(self.blocks_returned)
        yield ADDRESSES_UNMET, float(self._addressing.unmet)
        yield SIGNED, {("signed",): float(self._signing.signed), ("refused",): float(self._signing.refused)}
        yield AUTHORITY_UNTIL, {(): until} if until is not None else {}

    # The work.

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._following.changed.wait()
            await asyncio.sleep(TOGETHER)
            self._following.changed.clear()
            if not self._candidate.leads(time.monotonic()):
                continue
            try:
                await self._do()
                self._problem = ""
            except PodwayError as error:
                if error.message != self._problem:
                    log.error("work is left undone, and tried again", problem=error.message, hint=error.hint)
                self._problem = error.message

    async def _do(self) -> None:
        """Do all that is to be done; what fails keeps nothing else from being done. Raises the first failure."""
        facts = self._following.facts
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        failures: list[PodwayError] = []
        waits = waiting(facts, self._following.problems)
        self._tell_waiting(waits, facts)
        if JUDGING not in waits:
            for telling in tuple(tellings(facts, now)):
                await _tried(self._tell(telling), failures)
        self._tell_unreadable(facts)
        if ADDRESSING not in waits:
            await _tried(self._give_addresses(facts), failures)
        await self._announcer.write()
        if SIGNING not in waits:
            await _tried(self._sign(facts, failures), failures)
        await _tried(self._learn_lessees(), failures)
        for node in self._departures.due(facts, self._lessees, time.monotonic()):
            await _tried(self._clear_away(node, facts), failures)
        if failures:
            raise failures[0]

    def _tell_waiting(self, waits: dict[Duty, str], facts: Facts) -> None:
        """Say what is not done, and why; of addresses to whoever looks at the pools that they would be of."""
        for duty, why in waits.items():
            if why and self._waits.get(duty) != why:
                log.error("this is not done", duty=duty.name, problem=why)
        for duty in self._waits.keys() - waits.keys():
            log.info("this is done now", duty=duty.name)
        self._waits = waits
        if why := waits.get(ADDRESSING, ""):
            for pool in facts.of(IPPool):
                if pool.for_services:
                    note = f"no Service gets an address: {why}"
                    self._announcer.say(Notice(IPPool.KIND, pool.metadata.name, NOT_ALLOCATING, "Allocate", note))

    async def _clear_away(self, node: str, facts: Facts) -> None:
        """Give back what a removed node left, if it is gone indeed."""
        blocks = await give_back_all_of(self._store, node)
        # Its lease is gone, or it lives: the next look at all leases tells.
        self._lessees = tuple(one for one in self._lessees if one != node)
        if blocks is None:
            return
        self.blocks_returned += len(blocks)
        if blocks:
            returned = [block.spec.cidr for block in blocks]
            log.info("a removed node's blocks are given back", node=node, blocks=returned)
        if any(one.metadata.name == node for one in facts.of(NodeCertificate)):
            await self._signing.forget(node)

    async def _sign(self, facts: Facts, failures: list[PodwayError]) -> None:
        """Keep the cluster's authority, and answer who asks for a certificate: where agents do not sign."""
        if not self._signs:
            return
        config = next(facts.of(NetworkConfig), None)
        settings = config.spec.channel if config else ChannelSettings()
        waiting = requests(facts)
        await self._signing.keep(settings, time.time(), anew=bool(waiting))
        for one in waiting:
            await _tried(self._signing.answer(one, time.time()), failures)

    async def _give_addresses(self, facts: Facts) -> None:
        """Give Services of type LoadBalancer their addresses, of pools that hold."""
        await self._addressing.keep(facts.objects, lambda: self._candidate.leads(time.monotonic()), facts.rejected)
        for name in self._addressing.full:
            note = "Services wait for an address, and none is free: add another pool with use: services"
            self._announcer.say(Notice(IPPool.KIND, name, FULL, "Allocate", note))

    async def _tell(self, telling: Telling) -> None:
        kind, _, name = telling.key
        patch = {"status": {"conditions": msgspec.to_builtins(telling.conditions)}}
        try:
            await self._store.patch_status(KINDS[kind], name, patch, resource_version=telling.version)
        except (Conflict, NotFound):
            return  # it is another by now: the next look judges that
        if not telling.verdict.accepted:
            self._announcer.say(Notice(kind, name, SET_ASIDE, "Judge", telling.verdict.message))
        log.info(
            "judged", object=subject(telling.key), accepted=telling.verdict.accepted, why=telling.verdict.message
        )

    def _tell_unreadable(self, facts: Facts) -> None:
        """Say which objects nothing can be read of, once for each: they have no status that could."""
        unreadable = {one.key: one for one in facts.rejected if one.found is None and one.key[0] in KINDS}
        for each in sorted(unreadable.keys() - self._unreadable):
            kind, namespace, name = each
            if not namespace:
                self._announcer.say(Notice(kind, name, SET_ASIDE, "Read", unreadable[each].problem))
        self._unreadable = frozenset(unreadable)

    async def _learn_lessees(self) -> None:
        """Find out now and then whose leases there are: of a node that is gone its lease goes, too."""
        now = time.monotonic()
        if now - self._leases_at < LEASES_LOOK:
            return
        listing = await self._store.list(NodeLease, namespace=LEASES)
        self._lessees = tuple(lease.metadata.name for lease in listing.items if lease.metadata.name != CONTROLLER)
        self._leases_at = now


async def _tried(work: Awaitable[None], failures: list[PodwayError]) -> None:
    """Do a piece of work, and note if it fails."""
    try:
        await work
    except PodwayError as error:
        failures.append(error)


def run(options: ControllerOptions) -> None:
    """Run a controller until SIGTERM or SIGINT. Raises PodwayError if it cannot start."""
    asyncio.run(_run(options))


async def _run(options: ControllerOptions) -> None:
    store = open_store(options.store, create=False)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    controller = Controller(store, options)
    log.info("ready", name=controller.name, store=options.store)
    try:
        if options.metrics:
            server = MetricsServer(partial(collect, controller))
            await server.start(*parse_endpoint(options.metrics))
        if options.relay:
            await _start_relay(controller, store, options.relay)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(controller.run())
            await stop.wait()
            task.cancel()
    finally:
        await store.close()


async def _start_relay(controller: Controller, store: Store, endpoint: str) -> None:
    # Late: they bring HTTP with them, which other stores do without.
    from podway.controller.relay import Relay
    from podway.store.kubernetes.store import KubernetesStore

    if not isinstance(store, KubernetesStore):
        raise InvalidArgument(
            "--relay: questions come through a Kubernetes API", hint="leave it out, or --store kubernetes:"
        )
    await Relay(store, lambda: controller.facts).start(*parse_endpoint(endpoint))


async def collect(controller: Controller) -> str:
    """Return the controller's metrics as text."""
    return expose(controller.metrics())
