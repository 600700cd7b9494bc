"""Switches a running node from one tunnel mode to another, as podway.plan.switching decides."""

import asyncio
import math
import time
import uuid
from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec
import structlog

from podway.agent.contact import StoreContact
from podway.agent.membership import Membership
from podway.api.addresses import Address, Network
from podway.api.kinds.address_block import block_name
from podway.api.kinds.node import ACCEPTS, ANNOUNCEMENT, SENDS, Node
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.errors import KernelError, StoreError
from podway.kernel.interface import NodeKernel
from podway.kernel.network import RTPROT_BIRD
from podway.plan.fabric import (
    TUNNELS,
    TunnelMode,
    accepted_modes,
    endpoint,
    mode_of_device,
    planned_modes,
    pool_modes,
    required_modes,
)
from podway.plan.node import decapsulation
from podway.plan.objects import ROUTE_PROTOCOL
from podway.plan.sent_modes import NOTHING_SENT, SentModes
from podway.plan.switching import (
    DECAPSULATION_KINDS,
    InstalledModes,
    alters_ways,
    concerns,
    impossible,
    lingering,
    missing_modes,
    missing_routes,
    modes_to_advertise,
    needs_look,
    redirected,
    sent_modes,
    unconverged,
    waiting,
    with_changed,
)
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState
from podway.reconcile.steps import rest

log = structlog.get_logger(__name__)

FIRST_LOOK, LONGEST_LOOK = 0.05, 1.0
"""Seconds between looks at the kernel's routes while they change: doubled from the first to the longest."""

CALM_LOOK = 5.0
"""Seconds until a look after nodes came or went: the last one that needed a tunnel mode may be among them. And
while routes of BIRD's are left in a pool that the store distributes: then ours need not be guarded any more."""

LOOK_ANYWAY = 30.0
"""Seconds between looks though nothing seems to change: the last node that needed a tunnel mode may have left."""

REPAIR_GRACE = 2.0
"""Seconds that the parts of an accepted mode may be missing from the kernel before the node says so."""

WITHDRAWN_AFTER = 5.0
"""Seconds after which a route of BIRD's that is missing while it is to change was taken back for good.

The kernel tells of a new device's address only when a work item of its own has run (addrconf_dad_work). A BIRD
that is to lead its routes there, and has not heard of it, takes them out until it is told again
(podway.agent.learned).
"""

IN_FLIGHT = 0.5
"""Seconds that a packet may be in flight: so long a tunnel mode stays advertised after its last route."""

HEARD = 1.0
"""Seconds after which all nodes have heard of a new address of this one, and take tunnelled packets from it."""


class Advertised(NamedTuple):
    """All that others may think that a node accepts, and all that it still may send."""

    accepts: frozenset[str]
    sends: frozenset[str]


class EncapsulationSwitch:
    """Keeps true what a node advertises of itself, and its routes in place while it switches tunnel modes."""

    def __init__(
        self,
        kernel: NodeKernel,
        state: NodeState,
        membership: Membership,
        reconciler: Reconciler,
        contact: StoreContact,
    ) -> None:
        self._kernel = kernel
        self._state = state
        self._membership = membership
        self._reconciler = reconciler
        self._contact = contact
        self._wanted = asyncio.Event()
        self._followed = 0
        """How many times changes were followed."""
        self._taken = 0
        """How many times they had been when what was found in the kernel was taken over last."""
        self._later: asyncio.TimerHandle | None = None
        """When to look at what has time."""
        reconciler.tell_failures(self._wanted)
        self._redirected: frozenset[Network] = frozenset()
        """Blocks that became transitional by changes since the last look began."""
        self._learned: frozenset[Network] = frozenset()
        """Transitional blocks of which BIRD had a route."""
        self._missed: dict[Network, float] = {}
        """Those of them where it has none any more, and since when."""
        self._left: SentModes = NOTHING_SENT
        """Modes in which nothing is to be sent any more, though routes still led there at the last look."""
        self._ended: dict[str, float] = {}
        """Modes that are still said though no route is left, and since when."""
        self._advertised: Advertised | None = None
        """What the node has said, until it reads that itself."""
        self._announcement = ""
        """By what the node knows those words when it reads them."""
        self._written = False
        """Whether they are known to be in the store."""
        self._lacking: dict[TunnelMode, float] = {}
        """Modes that the node has said though the kernel lacks a part, and since when."""
        self._addresses: dict[Address, float] = dict.fromkeys(state.uplink.node_addresses, -math.inf)
        """The node's own addresses, and since when it has them; those that it began with for ever."""
        self._new: frozenset[TunnelMode] = frozenset()
        """Modes that are not said yet because outer headers would carry an address that is too new."""

    def follow(self, before: ClusterView, changes: Collection[Change[Any]]) -> None:
        """Take over what the node may send after changes, before they are brought to the kernel.

        What other nodes' changes make it send besides is added at once, and which blocks need a route of ours
        until BIRD's leads another way. What it sends no more, and where BIRD has followed, a look at the kernel
        tells, which has to read all its routes: that may wait, the longer if nodes only came or went, which alters
        no way that is known already.
        """
        state = self._state
        if not self._is_concerned(before, state.view):
            return
        self._followed += 1
        asked = [accepted_modes(v, state.node) for v in (before, state.view)]
        if asked[0] != asked[1] or needs_look(state.node, changes):
            self.refresh()
            return
        state.sent = with_changed(state.view, state.node, state.sent, changes)
        redirections = redirected(before, state.view, state.node, changes)
        # A look tells where BIRD has no route; for one that is transitional already it has told that.
        self._learned |= redirections - state.transitional
        state.transitional |= redirections
        self._redirected |= redirections
        if any(alters_ways(each, state.node) for each in changes):
            self.trigger()
        else:
            self._look_later()

    def refresh(self) -> None:
        """Take over from the kernel what the node may still send, and which blocks need a route of ours."""
        self.trigger()
        self._take(self._look(self._state.view))

    async def _refresh(self) -> None:
        """Do the same beside all else: to read and compare all routes may take longer than an ADD should wait."""
        state = self._state
        if not self._is_concerned(state.view):
            return
        began, self._redirected = self._followed, frozenset()
        found = await asyncio.to_thread(self._look, state.view)
        if self._taken > began:
            return  # there was a newer look meanwhile
        if found is not None and self._followed > began:
            # In which modes nodes are sent to that came meanwhile was added, and is not in what was found.
            found = found.joined(state.sent, self._redirected)
            self._look_later()
        if self._take(found):
            self._reconciler.wake()

    def _take(self, found: "_Found | None") -> bool:
        """Take over what a look found; tell whether anything changed."""
        if found is None:
            return False
        state, self._taken = self._state, self._followed
        before = (state.sent, state.transitional, state.lingering)
        state.sent, self._left = found.sent, found.left
        state.transitional, state.lingering = self._transitional(found), found.lingering
        if state.lingering:
            self._look_later()
        return before != (state.sent, state.transitional, state.lingering)

    def _is_concerned(self, *views: ClusterView) -> bool:
        """Tell whether there is anything to look at, by what is sent already or by what one of the views asks."""
        state = self._state
        return bool(state.sent or state.transitional or any(concerns(view, state.node) for view in views))

    def _look_later(self) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(CALM_LOOK, self.trigger)

    def trigger(self) -> None:
        """Ask for a look at what is said and what is true."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._wanted.set()

    @property
    def has_store_routes(self) -> bool:
        """Whether the kernel is known to have every way that the store tells."""
        state = self._state
        if all(pool.spec.distribution == "bgp" for pool in state.view.pools.values()):
            return True
        found = self._look(state.view)
        installed = found.installed if found else InstalledModes()
        return not any(missing_routes(state.view, state.node, state.uplink, installed))

    def status(self) -> dict[str, object]:
        """Return what the node says, and what it waits for, as plain values."""
        view, node = self._state.view, self._state.node
        here = view.nodes.get(node)
        return {
            "accepts": sorted(here.accepts if here else ()),
            "sends": sorted(here.sends if here else ()),
            "pending": [*waiting(view, node), *self._unfinished()],
            "problems": list(impossible(view, self._state.uplink)),
        }

    async def run(self) -> None:
        """Say what is true when asked, and look again while something changes, for ever."""
        pause = FIRST_LOOK
        while True:
            changing = self._ended or self._lacking or self._new or self._unfinished()
            try:
                async with asyncio.timeout(pause if changing else LOOK_ANYWAY):
                    await self._wanted.wait()
                pause = FIRST_LOOK
            except TimeoutError:
                pause = min(2 * pause, LONGEST_LOOK)
            began = time.monotonic()
            await self._refresh()
            took = time.monotonic() - began
            self._wanted.clear()
            try:
                await self._advertise()
            except (KernelError, StoreError) as error:
                if isinstance(error, StoreError):
                    self._contact.lost(error)
                else:
                    log.error("the kernel cannot be compared with the plan", problem=error.message)
                await asyncio.sleep(LONGEST_LOOK)
                self.trigger()
            await rest(took)

    async def _advertise(self) -> None:
        """Write what is true of this node, if others read something else. Raises KernelError or StoreError."""
        await self._reconciler.settled()  # only what is planned can be found missing
        view, node = self._state.view, self._state.node
        here = view.nodes.get(node)
        if here is None or (self._advertised is not None and self._written):
            return  # the last words first have to come back
        accepts, sends = accepted_modes(view, node), self._sends(here) - self._too_new(here)
        told = {name: here.metadata.annotations.get(name, "") for name in (ACCEPTS, SENDS)}
        words = {ACCEPTS: ",".join(sorted(accepts)), SENDS: ",".join(sorted(sends))}
        # What has been said was in the kernel then, and what others take away since is repaired, or refused.
        sure = told == words and not (self._lacking or self._reconciler.failures)
        if required_modes(view, node) and not sure:
            # What pools ask for is not taken back: the others would send bare what was to be encapsulated.
            missing = self._missing(here) - (here.accepts & pool_modes(view))
            words = {ACCEPTS: ",".join(sorted(accepts - missing)), SENDS: ",".join(sorted(sends - missing))}
        if told != words or self._advertised is not None:
            former = self._advertised or Advertised(here.accepts, here.sends)
            self._advertised = Advertised(
                former.accepts | _words(words[ACCEPTS]), former.sends & _words(words[SENDS])
            )
            self._announcement, self._written = uuid.uuid4().hex[:12], False
            self._state.view = self.as_advertised(view)
            if required_modes(self._state.view, node) != required_modes(view, node):
                # When the words come back they change nothing any more, and nobody would look.
                self._reconciler.wake()
            await self._membership.announce({**words, ANNOUNCEMENT: self._announcement})
            self._written = True

    def as_advertised(self, view: ClusterView) -> ClusterView:
        """Return a view with this node's own last words in it, though they have not come back yet.

        It holds what it has said that it accepts, for others may act on that, and sends nothing that it has taken
        back: who heard that may have removed the mode's device.
        """
        here = view.nodes.get(self._state.node)
        if self._advertised is None or here is None:
            return view
        if here.metadata.annotations.get(ANNOUNCEMENT) == self._announcement:
            self._advertised = None
            self.trigger()
            return view
        accepts, sends = here.accepts | self._advertised.accepts, here.sends & self._advertised.sends
        if (accepts, sends) == (here.accepts, here.sends):
            return view
        words = {ACCEPTS: ",".join(sorted(accepts)), SENDS: ",".join(sorted(sends))}
        metadata = msgspec.structs.replace(here.metadata, annotations={**here.metadata.annotations, **words})
        return view.after(Change.of(here, msgspec.structs.replace(here, metadata=metadata)))

    def _missing(self, here: Node) -> frozenset[str]:
        """Return the modes for which the kernel lacks a part. Raises KernelError.

        But for those that the node has said and that were right a moment ago: they are about to be repaired.
        """
        plan = decapsulation(self._state.facts(), self._reconciler.plan())
        missing = missing_modes(plan, self._kernel.diff(plan, of=DECAPSULATION_KINDS))
        now = time.monotonic()
        self._lacking = {mode: self._lacking.get(mode, now) for mode in missing & (here.accepts | here.sends)}
        return missing - {mode for mode, since in self._lacking.items() if now - since < REPAIR_GRACE}

    def _sends(self, here: Node) -> frozenset[str]:
        """Return what may be sent, and what was sent so recently that packets may be on their way."""
        sends = modes_to_advertise(self._state.view, self._state.sent)
        now = time.monotonic()
        self._ended = {mode: self._ended.get(mode, now) for mode in here.sends - sends}
        return sends | {mode for mode, at in self._ended.items() if now - at < IN_FLIGHT}

    def _too_new(self, here: Node) -> frozenset[TunnelMode]:
        """Return the modes whose outer headers would carry an address that others may not have heard of yet.

        They would take it for a stranger's (podway.plan.senders). A node that sends with no mode yet does not
        wait: until it does, its packets cross bare.
        """
        now, own = time.monotonic(), self._state.uplink.node_addresses
        self._addresses = {address: self._addresses.get(address, now) for address in own}
        carried = {mode: endpoint(mode, own) for mode in TUNNELS if here.sends and mode not in here.sends}
        young = {address for address, since in self._addresses.items() if now - since < HEARD}
        self._new = frozenset(mode for mode, address in carried.items() if address in young)
        return self._new

    def _transitional(self, found: "_Found") -> frozenset[Network]:
        """Return the blocks that need a route of ours now.

        Where BIRD had a route and took it back (a node died), ours goes, too, after WITHDRAWN_AFTER.
        """
        learned = found.installed.learned.keys()
        blocks = frozenset(each for each in found.unconverged if block_name(each) in self._state.view.blocks)
        missed = (blocks & (self._learned | self._missed.keys())) - learned
        now = time.monotonic()
        self._learned = blocks & learned
        self._missed = {network: self._missed.get(network, now) for network in missed}
        return blocks - {network for network, since in self._missed.items() if now - since >= WITHDRAWN_AFTER}

    def _unfinished(self) -> list[str]:
        """Say in words what this node itself has not brought to an end."""
        state = self._state
        told = [f"{len(state.transitional)} blocks wait for their routes by BGP"] if state.transitional else []
        return told + [
            f"IPPool/{name}: {mode} routes are left"
            for name, modes in sorted(self._left.items())
            for mode in sorted(modes)
        ]

    def _look(self, view: ClusterView) -> "_Found | None":
        """Read the kernel's routes to other nodes' blocks, and compare; None if it cannot be done now.

        It touches nothing that changes, so a thread may do it.
        """
        node = self._state.node
        try:
            installed = self._read(view)
        except KernelError as error:
            log.error("routes cannot be read: everything stays as it is", problem=error.message)
            return None
        planned = planned_modes(view, node)
        sent = sent_modes(view, planned, installed)
        left = {name: more for name, modes in sent.items() if (more := modes - planned.get(name, frozenset()))}
        return _Found(installed, sent, left, unconverged(view, node, installed), lingering(view, installed))

    def _read(self, view: ClusterView) -> InstalledModes:
        """Read the kernel's routes to other nodes' blocks: those with a gateway. Raises KernelError."""
        lengths = view.block_lengths | {(pool.network.version, pool.block_prefix) for pool in view.pools.values()}
        learned, own = (
            {
                destination: mode_of_device(device)
                for destination, device in self._kernel.gateway_devices(protocol, lengths).items()
            }
            for protocol in (RTPROT_BIRD, ROUTE_PROTOCOL)
        )
        return InstalledModes(learned=learned, own=own)


class _Found(NamedTuple):
    """What a look at the kernel's routes found."""

    installed: InstalledModes
    sent: SentModes
    left: SentModes
    """What of it is not planned any more."""
    unconverged: frozenset[Network]
    lingering: frozenset[str]

    def joined(self, sent: SentModes, redirections: frozenset[Network]) -> "_Found":
        """Return the same, with further modes that may be sent, and further blocks that BIRD's routes lead to."""
        names = self.sent.keys() | sent.keys()
        return self._replace(
            sent={name: frozenset(self.sent.get(name, ())) | frozenset(sent.get(name, ())) for name in names},
            unconverged=self.unconverged | redirections,
        )


def _words(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))
