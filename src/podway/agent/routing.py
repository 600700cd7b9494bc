"""Keeps BIRD at the node's BGP plan."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import structlog

from podway.agent.cluster_handler import Triggered
from podway.api.addresses import Network
from podway.api.kinds.node import Node
from podway.bgp.speaker import BgpSpeaker
from podway.cluster.change import Change
from podway.errors import RoutingError
from podway.plan.bgp import BgpPlan, BgpPlanning
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState
from podway.reconcile.steps import rest
from podway.services.advertising import Advertising

log = structlog.get_logger(__name__)

RESTS, LONGEST_REST = 30.0, 2.0
"""How many times as long as a plan took BIRD waits for the next one, and for how many seconds at most: sessions
come and go, routes do not wait."""

SETTLING = 10.0
"""Seconds that BIRD waits at most for routes of ours that stand in for those that it is about to change."""

RETRY = 5.0
"""Seconds until BIRD is given a configuration again that it did not take."""


class Routing:
    """Gives BIRD what is planned, each time that something came of it."""

    def __init__(
        self,
        state: NodeState,
        speaker: BgpSpeaker,
        learned: Triggered,
        readiness: Triggered,
        reconciler: Reconciler,
    ) -> None:
        """Take what it works with; `learned` and `readiness` are asked for a look when BIRD has taken a plan."""
        self._state = state
        self._reconciler = reconciler
        self._speaker = speaker
        self._planning = BgpPlanning(state.node)
        self._changed: set[str] | None = None
        """The nodes that changed since the last plan; None: not known."""
        self.advertising = Advertising()
        """Who tells of which Services' addresses."""
        self.advertised = asyncio.Event()
        """Set whenever somebody tells of another one."""
        self._learned = learned
        self._readiness = readiness
        self._wanted = asyncio.Event()
        self._configured_for = state.uplink
        """The uplink that BIRD's configuration is for."""
        self._pending = False
        self._late_since: float | None = None
        """Since when plans came too late, if they do."""
        self.problem = ""
        """Why BIRD keeps a former configuration, in words; empty if it does not."""

    @property
    def pending(self) -> str:
        """What BIRD has not done yet, in words; empty if nothing."""
        return "BIRD has not taken the last change yet" if self._pending else ""

    def trigger(self, *, changed: bool = False) -> None:
        """Ask for a plan; `changed` says that something came of it for sure, and is pending until BIRD has it."""
        self._pending = self._pending or changed
        self._wanted.set()

    def look_again(self) -> None:
        """Plan all of it anew: where a task failed halfway, changes may have been lost on their way here."""
        self._changed = None
        self.trigger()

    def follow(self, changes: Iterable[Change[Any]]) -> None:
        """Hear of the changes that led to the node's view, of nodes and of who tells of a Service's address."""
        changes = tuple(changes)
        if self._changed is not None:
            self._changed.update(change.key[2] for change in changes if change.kind == Node.KIND)
        if self.advertising.follow(self._state.view, changes):
            self.advertised.set()
            self.trigger(changed=True)

    async def start(self) -> None:
        """Start BIRD, or take over the one that runs. Raises RoutingError if none runs afterwards.

        It keeps its configuration while the cluster is known only from a file, which may not know of a session.
        """
        self.advertising.follow(self._state.view, ())
        try:
            plan = self._snapshot()()
            await self._speaker.start(plan, self._state.view.secrets, as_before=bool(self._state.recalled))
        except RoutingError as error:
            if self._speaker.bird.pid is None:
                raise
            # It runs on with what it took last, and pods need it: no reason not to start.
            self._refused(error)
            self.trigger()

    async def run(self) -> None:
        """Plan and have it taken when asked, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._goes_on or self._state.node not in self._state.view.nodes:
                continue
            await self._until_stood_in()
            began = time.monotonic()
            uplink, stood_in = self._state.uplink, self._state.transitional
            try:
                plan = await asyncio.to_thread(self._snapshot())  # it may take a while
            except BaseException:
                self._changed = None
                raise
            took = time.monotonic() - began
            if self._is_late(stood_in):
                self._wanted.set()
                continue
            try:
                await self._speaker.apply(plan, self._state.view.secrets)
            except RoutingError as error:
                self._refused(error)
                await asyncio.sleep(RETRY)
                self._wanted.set()
            else:
                self.problem = ""
                self._configured_for = uplink
                self._pending = self._wanted.is_set()
                self._readiness.trigger()
                self._learned.trigger()
            await rest(took, times=RESTS, longest=LONGEST_REST)

    async def reread_passwords(self) -> None:
        """Have BIRD take passwords that changed in files."""
        if self._goes_on:
            return
        try:
            await self._speaker.reread_passwords()
        except RoutingError as error:
            self._refused(error)

    @property
    def _goes_on(self) -> bool:
        """Whether BIRD keeps what the last agent gave it, since part of what is known may be older than that.

        So it is until the store has told of everything. Where the uplink moved meanwhile, sessions that are known
        from the file are better than none.
        """
        return bool(self._state.recalled) and self._state.uplink == self._configured_for

    async def _until_stood_in(self) -> None:
        """Wait until the kernel has the routes of ours that keep packets on their way while BIRD changes its own.

        The loop, which brings them there, waits for nothing of BIRD's. But it may not come to rest: then sessions
        with new nodes count for more than a packet.
        """
        state = self._state
        try:
            async with asyncio.timeout(SETTLING):
                while state.transitional and not self._reconciler.at_rest:
                    await self._reconciler.settled()
        except TimeoutError:
            log.error(
                "BIRD changes its routes though ours may not be there to stand in for them: packets may be lost",
                blocks=len(state.transitional),
                waited_seconds=SETTLING,
            )

    def _is_late(self, stood_in: Collection[Network]) -> bool:
        """Tell whether a plan came too late, so that another one has to be made: of what is known by now.

        Routes of ours may stand in for what that one changes by now, and no more for what this one does. Where the
        cluster changes all the time, a late plan is taken in the end.
        """
        now = time.monotonic()
        transitional = self._state.transitional
        if not (self._wanted.is_set() or transitional != stood_in) or not (stood_in or transitional):
            self._late_since = None
            return False
        self._late_since = self._late_since or now
        late = now - self._late_since < SETTLING
        if not late:
            self._late_since = None
        return late

    @property
    def _told(self) -> tuple[Collection[Network] | None, Collection[str]]:
        """Which Services' addresses are told of, and which nodes take turns with this one."""
        node = self._state.node
        return self.advertising.networks(node), self.advertising.partners(node)

    def _snapshot(self) -> Callable[[], BgpPlan]:
        """Return what makes a plan of what is known now, in another thread if need be."""
        changed, self._changed = self._changed, set()
        networks, partners = self._told
        view, uplink = self._state.view, self._state.uplink
        return lambda: self._planning.plan(
            view, self._speaker.running, changed=changed, uplink=uplink, services=networks, partners=partners
        )

    def _refused(self, error: RoutingError) -> None:
        if error.message != self.problem:
            log.error("BIRD keeps its former configuration", problem=error.message, hint=error.hint)
        self.problem = error.message
