"""The loop that keeps a node's kernel as it is wanted.

## Mechanism

Facts change: the cluster's objects, the uplink, pods, settings of the host, what the node may send. Whoever
changes one writes it into the node's state and calls `wake`; nobody plans, and nobody touches the kernel but
through this loop. The loop then does as little as it can, again and again, until nothing is left:

1. **Plan.** Every scope of the plan (podway.plan.node) has its inputs. A scope whose inputs changed is dirty; of
   pods and of other nodes, single ones are. What is dirty is planned in portions, in the order of the scopes, and
   compared with what was wanted before (podway.reconcile.wanted): the difference is a delta. Before that, and
   again between portions, come policies: they have a planner of their own, which is told facts and says what
   changes (podway.reconcile.enforcement).
2. **Carry out.** The delta's additions and replacements go to the kernel at once, without a look at what it holds.
   Removals wait until nothing is dirty any more: a device goes after the routes that led through it have moved,
   whichever scope these are of, and what is wanted again by then stays.
3. **Pause.** After each portion (some milliseconds) whoever is ready goes first. What takes the kernel longer than
   that, the removal of elements of nftables sets, is left to a thread: the loop of the agent goes on, and this
   one when it is done.

So a node that joins a cluster of 5,000 costs the others a plan of that one node and a handful of writes; a pool
that changes costs all of it, in portions. The very first time there is no delta: the kernel is compared with
everything that is wanted, since it may hold it all already (an agent that starts again writes nothing).

**Audits** find what somebody else changed. The kernel's events say that something of ours did, and now and then
all of it is compared unasked, for of some changes the kernel is silent. An audit reads and compares in slices of a
few milliseconds. A difference that our own work made while it went on is none, so every delta tells the audits
that go on what it altered, and what the plugin's requests make and remove is remembered for a moment. What is left
is put right, and told.

## Order

- **A change never waits for an audit.** What comes of it is planned and carried out between two slices.
- **An ADD never waits for the loop.** It wires its pod by itself, since that pod's objects are all its own, and
  gives what it made to the loop as wanted already. All that it can have to wait for is one portion or one slice,
  since from then on it has the right of way: between two of them the loop waits until no request is under way
  (podway.reconcile.steps), though not for long. Where the kernel lets an ADD wait, a thread does
  (podway.kernel.pod_wirer).
- **Pods' ends first.** The MTU of a pod's own end follows before the host's (podway.reconcile.pod_ends).
- **Own writes cause no look.** Netlink names the author of a change, and the agent's own are not heard
  (podway.kernel.events). Where the kernel does not (forwarding entries), an event about what was written
  a moment ago is taken for its echo, and looked at later.
- **What was refused is not forgotten.** A change that the kernel refuses leads to an audit, which compares
  everything and says what cannot be had; it is tried again with every audit.
- **What must be in the kernel before something is said or done** (that this node accepts an encapsulation; that
  BIRD changes routes for which ours stand in) waits for `settled`. The loop itself waits for nobody.

## Alternatives

*Plan all and compare all at each event* is simplest, and was what Podway did first: at 5,000 nodes an event
took two seconds in which no pod was served. *A callback from each source of change to each part of the plan*
does less, but the order of calls then is nowhere to be read, and a missing one shows only as a wrong kernel.
*Marking scopes dirty by hand* has the same fault; so their inputs are compared instead, and only the keys of
the two large scopes are marked. *To let others go first for one turn of the event loop* between two steps is
not enough: an ADD hears of a thread's answer in one turn and goes on in the next, a dozen in all, and beside an
audit each of them had a slice in it, which made 5 ms of an ADD 50. *A thread for audits* would need locks
around all that a plan depends on; slices need none, for facts change only between two of them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog

from podway.api.lease import Attachment, Lease
from podway.cluster.change import Change as ClusterChange
from podway.errors import AgentError, KernelError, PodwayError
from podway.kernel.engine import Report
from podway.kernel.interface import NodeKernel
from podway.plan.changes import KINDS, Change
from podway.plan.objects import NFT_SERVICES_TABLE, NodePlan, PodWiring, Sysctl, is_unreachable
from podway.reconcile import saved_sysctls
from podway.reconcile.enforcement import Enforcement
from podway.reconcile.enforcement import described as described_policies
from podway.reconcile.host import read_host
from podway.reconcile.planning import Planning
from podway.reconcile.pod_ends import PodEnds
from podway.reconcile.repairs import Repairs
from podway.reconcile.serving import Serving
from podway.reconcile.serving import described as described_services
from podway.reconcile.state import NodeState
from podway.reconcile.steps import LONGEST_REST, REST, RightOfWay
from podway.reconcile.wanted import ObjectKey

log = structlog.get_logger(__name__)

T = TypeVar("T")

SETTLE = 0.05
"""Seconds to wait after a kernel event before looking: changes come in bursts."""

ECHO = 0.5
"""The same after an event that our own work most likely caused: the kernel does not always name the author."""

HOLD, LONGEST_HOLD = 1.0, 3.0
"""Seconds that an audit waits at most until it is known where the uplink is, and that repairs are put off at most
where that is asked again and again."""

STEP = 0.004
"""Seconds of an audit after which others go first."""

REMOVALS = 100
"""Objects that are removed at once."""

SLOW_KIND, SLOW_REMOVALS = "nft element", 8
"""A kind whose removals take the kernel long, and how many of them are removed at once.

From a set with ranges one is removed by comparing it with each of thousands (nft_pipapo_remove in
net/netfilter/nft_set_pipapo.c): 30 to 45 ms at 5,000 nodes. To add one takes a hundredth of that.
"""

_RULES = ("nft table", "nft element")
_ORDER = {kind: rank for rank, kind in enumerate((*_RULES, *(kind for kind in KINDS if kind not in _RULES)))}
"""Kinds are removed in the opposite order: rules come before what they guard, and go after it."""


_LEADING = frozenset({"device", "address", "neighbour", "forwarding entry", "IPIP tunnel", "route"})
"""Kinds by which packets find their ways."""


class Reconciler:
    """Brings the kernel to what the node's state asks for. `repairs` are what others changed and it undid."""

    def __init__(
        self, kernel: NodeKernel, state: NodeState, ends: PodEnds, *, run_dir: Path, audit_interval: float
    ) -> None:
        """Take what it works on; `audit_interval` is in seconds."""
        self._kernel = kernel
        self._state = state
        self._ends = ends
        self._run_dir = run_dir
        self._interval = audit_interval
        self._planning = Planning()
        self._removals: dict[ObjectKey, Change] = {}
        """What is wanted no more and is still there."""
        self._refused: set[ObjectKey] = set()
        """What the kernel refused of a delta: an audit will find it, and nobody else changed it."""
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._awake = True
        self._due = self._full_due = asyncio.get_running_loop().time() + self._interval
        self._full = False
        self._catches_up = False
        """Whether a comparison is due that takes away what the last agent's file did not tell of."""
        self._held: float | None = None
        """Until when no audit is to begin, and what one found is not to be acted on."""
        self._put_off: float | None = None
        """Since when what audits found has been put off, if it has."""
        self._audits: list[set[ObjectKey]] = []
        """For each look that goes on, what was carried out since it began."""
        self._listeners: list[asyncio.Event] = []
        self.enforcement = Enforcement(kernel.flow, state, self.wake)
        """Brings policies into force, ahead of what is planned: nobody is let through before them."""
        self.serving = Serving(kernel.flow, kernel.services, state)
        """Serves Services, behind the policies that judge what is sent to them."""
        self.repairs = Repairs()
        self.way = RightOfWay()
        """Whom the loop lets go first between two steps."""
        self.failures: tuple[str, ...] = ()
        """What the kernel refused at the last attempt."""

    def plan(self) -> NodePlan:
        """Return all that is wanted now, as far as it has been planned."""
        return self._planning.wanted.plan()

    def wake(self) -> None:
        """Say that something changed in the node's state on which its plan depends."""
        self._awake = True
        self._settled.clear()
        self._wanted.set()

    def heard(self, changes: Iterable[ClusterChange[Any]]) -> None:
        """Say that the cluster changed, and how; the state's view has the changes already."""
        told = tuple(changes)
        self._planning.heard(self._state.view, self._state.node, told)
        self.enforcement.heard(told)
        self.serving.heard(told)
        self.wake()

    def heard_of_policies(self, changes: Iterable[ClusterChange[Any]]) -> None:
        """Say that the cluster changed in what alters no plan.

        It may alter what connections are judged by, or where they are led.
        """
        told = tuple(changes)
        judged, served = self.enforcement.heard(told), self.serving.heard(told)
        if judged or served:
            self.wake()

    def all_listed(self) -> None:
        """Say that the store has told of everything; until then it was known only from the last agent's file."""
        self.enforcement.all_listed()
        self._catches_up = True
        self.trigger(0.0)
        self.wake()

    def adopt(self, attachment: Attachment, wiring: PodWiring) -> None:
        """Take what was made for a pod already for wanted."""
        self._planning.adopt(attachment, wiring)
        self._tell_audits(self._planning.silent())
        self.wake()

    async def settled(self) -> None:
        """Wait until the kernel was brought to the state as it is now; what it refused is in `failures`."""
        self.wake()
        await self._settled.wait()

    @property
    def at_rest(self) -> bool:
        """Whether the kernel was brought to the state as it is now; what it refused is in `failures`."""
        return self._settled.is_set()

    def tell_failures(self, listener: asyncio.Event) -> None:
        """Set an event from now on whenever `failures` change."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Compare the kernel with everything that is wanted, and bring it there, at once, as an agent starts."""
        self._read_host()
        self.enforcement.start()
        self._planning.all(self._state.facts())
        self._fit(self._state.leases.values(), {link.name: link.mtu for link in self.plan().links})
        self._apply()

    def bring(self) -> None:
        """Bring the kernel to the state at once, without a pause: for who cannot wait."""
        for slow in self._portions():
            self._carry_out(slow)

    def repair(self) -> Report:
        """Compare the kernel with all that is wanted, and undo what others changed, at once."""
        self.bring()
        if wrong := self.enforcement.repair():
            self.repairs.note(wrong)
        report = self._apply()
        if not self._catches_up:
            self._note_repairs(report.changes)
        if not report.failures:
            self._refused.clear()
            self._catches_up = False
        return report

    def _note_repairs(self, changes: Collection[Change]) -> None:
        for change in changes:
            # What was refused before, or is about to go, went along with a repair: nobody else changed it.
            each = (change.kind, change.key)
            if each not in self._refused and each not in self._removals:
                self.repairs.note(str(change))
        self._refused -= {(change.kind, change.key) for change in changes}

    async def differences(self, *, full: bool = True) -> list[Change]:
        """Return what differs from the plan, found in slices: requests come first.

        What our own work meanwhile made differ, from the plan as it was when the look began, is left out.
        """
        return await self._audit(full=full, pause=self.way.give, turn_over=_turn)

    async def _audit(
        self,
        *,
        full: bool,
        pause: Callable[[], Awaitable[None]],
        turn_over: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Change]:
        """Compare in slices, with a `pause` between them; at the end let others have two turns (`turn_over`)."""
        altered: set[ObjectKey] = set(self._removals)
        found: list[Change] = []
        began = turn = self._state.now()
        removes = not self._state.recalled
        self._audits.append(altered)
        try:
            for change in self._kernel.audit(self.plan(), full=full):
                if change is not None:
                    found.append(change)
                if self._state.now() - turn > STEP:
                    await pause()
                    turn = self._state.now()
            for _ in range(2):  # the kernel's events of until now are read, behind those who were here before
                await (turn_over or pause)()
            # Pods that came or went meanwhile: their requests made and removed what is theirs.
            self._planning.look(self._state.facts())
            self._tell_audits(self._planning.silent())
        finally:
            # This one, not another look's that is equal to it as long as nothing was carried out.
            self._audits = [each for each in self._audits if each is not altered]
        return [
            change
            for change in found
            if (change.kind, change.key) not in altered
            and (change.want is not None or (removes and not self._state.recalled))
            and not any(self._state.touched(device, since=began) for device in change.devices)
        ]

    def trigger(self, within: float = SETTLE, *, full: bool = True) -> None:
        """Ask for an audit within so many seconds: something of ours may have been changed.

        Without `full` the kinds are left out of which a node may hold thousands: pods come and go
        often, and all that stands on their links goes with these.
        """
        self._full = self._full or full
        due = asyncio.get_running_loop().time() + within
        if due < self._due:
            self._due = due
            self._wanted.set()

    def hold(self) -> None:
        """Have audits wait, but not for ever: the uplink may have moved, and what stands on it with it.

        A plan that does not know it yet calls a program on a renamed device foreign, and what went with a device
        missing: an audit would make of the move something that somebody did, and undo it.
        """
        if self._held is None:
            now = asyncio.get_running_loop().time()
            since = min(now, self._due) if self._put_off is None else self._put_off
            self._held = min(now + HOLD, since + LONGEST_HOLD)

    def release(self) -> None:
        """Have audits go on: it is known where the uplink is."""
        self._held = None
        self._wanted.set()

    async def run(self) -> None:
        """Plan and carry out when woken; audit when asked, and now and then unasked; for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._until_due()
            if self._awake:
                await self._work()
                continue
            began = clock()
            full = self._full or began >= self._full_due
            if full:
                self._full_due = began + self._interval
            self._due, self._full = self._full_due, False
            if self._read_host():
                self.bring()
            self.enforcement.look_for_limits()
            if full:
                await self._look_at_policies()
                await self._look_at_services()
            await self._look(full=full)
            await self._rest(clock() - began)

    async def _look_at_policies(self) -> None:
        """Audit what policies have in the kernel, and put right what differs; try again what could not be had."""
        worked = self._state.engine
        self.enforcement.bring()
        if self._state.engine != worked:
            self.wake()
        try:
            wrong = await self._in_slices(self.enforcement.audit(), self._work)
            if mended := self.enforcement.mend(wrong):
                self.repairs.note(mended)
        except KernelError as error:
            self.enforcement.note(error)
        finally:
            self._try_policies_again()

    async def _look_at_services(self) -> None:
        """Audit what Services have in the kernel, and put right what differs; try again what could not be had."""
        if self.serving.busy:  # it failed before, and is to begin anew by now
            self.wake()
        try:
            wrong = await self._in_slices(self.serving.audit(), self._work)
            if mended := await self._in_slices(self.serving.mend(wrong), self._work):
                self.repairs.note(mended)
        except KernelError as error:
            log.warning("the maps of Services cannot be compared", problem=error.message)
        except Exception as error:  # noqa: BLE001 - a mistake of ours, which the rest of the loop must not pay for
            self.serving.fail(error)
        finally:
            self._try_policies_again()

    def _try_policies_again(self) -> None:
        for seconds in (self.enforcement.retry, self.serving.retry):
            if seconds:
                self.trigger(seconds)

    async def policy_differences(self) -> tuple[str, ...]:
        """Return in words what policies should have in the kernel and have not, found in slices."""
        wrong = await self._in_slices(self.enforcement.audit(), self.way.give)
        services = await self._in_slices(self.serving.audit(), self.way.give)
        return (
            *(() if wrong is None or wrong.empty else (described_policies(wrong),)),
            *(() if services is None or services.empty else (described_services(services),)),
        )

    @staticmethod
    async def _in_slices(audit: Generator[None, None, T | None], pause: Callable[[], Awaitable[None]]) -> T | None:
        while True:
            try:
                next(audit)
            except StopIteration as end:
                found: T | None = end.value
                return found
            await pause()

    async def _work(self) -> None:
        """Bring the kernel to the state if something came of it, and let others go first in any case."""
        if self._awake:
            for slow in self._portions():
                if slow:
                    problem = self._prepare(slow)
                    report = await asyncio.to_thread(self._perform, slow)
                    self._conclude(slow, report, problem)
                else:
                    await self.way.give()
        else:
            await self.way.give()

    async def _rest(self, took: float) -> None:
        """Rest after an audit that took so many seconds, but for what cannot wait."""
        clock = asyncio.get_running_loop().time
        end = clock() + min(LONGEST_REST, REST * took)
        while not self._awake and (left := end - clock()) > 0:
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wanted.wait()

    async def _until_due(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._awake and (delay := max(self._due, self._held or 0.0) - clock()) > 0:
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wanted.wait()

    def _portions(self) -> Iterator[Sequence[Change]]:
        """Bring the kernel to the state in bounded steps; yield after each.

        What is yielded, if anything, takes the kernel long: it is carried out by the caller before the next step.
        """
        self._awake = False
        self._read_host()
        yield from _pauses(self.enforcement.portions())
        yield from _pauses(self.serving.portions())
        self._try_policies_again()
        while (delta := self._planning.step(self._state.facts())) is not None:
            self._forward(delta)
            yield ()
            if self.enforcement.busy:
                yield from _pauses(self.enforcement.portions())
            if self.serving.busy:
                yield from _pauses(self.serving.portions())
        self._try_policies_again()
        yield from self._remove()
        if not (self._awake or self._planning.dirty or self.enforcement.busy or self.serving.busy):
            self._settled.set()

    def _remove(self) -> Iterator[Sequence[Change]]:
        """Remove what is wanted no more, as `_portions` does."""
        gone = sorted(self._removals, key=self._turn)
        for start in range(0, len(gone), REMOVALS):
            quick = [each for each in gone[start : start + REMOVALS] if each[0] != SLOW_KIND]
            self._carry_out(self._no_more_wanted(quick))
            yield ()
        slow = [each for each in gone if each[0] == SLOW_KIND]
        for start in range(0, len(slow), SLOW_REMOVALS):
            yield self._no_more_wanted(slow[start : start + SLOW_REMOVALS])
            if self._awake:
                return  # what is wanted now comes first; the rest is taken up behind it

    def _turn(self, each: ObjectKey) -> tuple[int, bool]:
        """Return when something is removed: what makes packets unreachable goes ahead of the ways before it."""
        return -_ORDER[each[0]], not is_unreachable(self._removals[each].have)

    def _no_more_wanted(self, keys: Iterable[ObjectKey]) -> list[Change]:
        """Take these removals, but for those of what is wanted again meanwhile."""
        return [self._removals.pop(each) for each in keys if each in self._removals]

    def _forward(self, delta: Sequence[Change]) -> None:
        """Add and replace what a delta says; keep what it removes for later."""
        changes: list[Change] = []
        for change in delta:
            each = (change.kind, change.key)
            if change.want is None:
                # What was to go already is as it was before.
                former = self._removals.get(each)
                self._removals[each] = former or change
            elif (former := self._removals.pop(each, None)) is None:
                changes.append(change)
            else:  # what it stood on may have gone meanwhile: written again, it costs little
                changes.append(Change(change.kind, change.key, former.have, change.want))
        links = {change.key for change in changes if change.kind == "link"}
        if links:
            planned = {name: self._planning.wanted.get("link", name).mtu for name in links}
            self._fit([each for each in self._state.leases.values() if each.attachment.link in links], planned)
        self._carry_out(changes)

    def _fit(self, leases: Iterable[Lease], planned: dict[str, int]) -> None:
        held = list(leases)
        if held:
            self._ends.fit(held, planned)

    def _carry_out(self, changes: Collection[Change]) -> None:
        if changes:
            problem = self._prepare(changes)
            self._conclude(changes, self._perform(changes), problem)

    def _perform(self, changes: Collection[Change]) -> Report:
        """Have the kernel carry out changes of what is wanted."""
        return self._kernel.carry_out(changes, self.plan, removes=not self._state.recalled)

    def _prepare(self, changes: Collection[Change]) -> AgentError | None:
        """Note what is about to be carried out; return what hindered that."""
        self._tell_audits((*changes, *self._planning.silent()))
        self._state.touch(*(" ".join(change.key) for change in changes if change.kind == "forwarding entry"))
        return self._remember(change.want for change in changes if change.kind == "sysctl" and change.want)

    def _conclude(self, changes: Collection[Change], report: Report, problem: AgentError | None = None) -> None:
        """Take in what became of changes that were carried out."""
        self._lead_anew(report)
        _log_applied(report)
        self._note_repairs(report.found)
        failures = (*report.failures, *([problem] if problem else []))
        for failure in failures:
            log.info("to be looked at again", problem=failure.message)
        if failures:
            self._refused |= {(change.kind, change.key) for change in changes}
        if failures or self.failures:  # what was refused before may be had now, or wanted no more
            self.trigger()

    def _tell_audits(self, changes: Iterable[Change]) -> None:
        """Have the audits that go on leave out what was made or removed since they began."""
        keys = {(change.kind, change.key) for change in changes}
        for audit in self._audits:
            audit.update(keys)

    def _apply(self) -> Report:
        plan = self.plan()
        problem = self._remember(plan.sysctls)
        # A file may be older than what its agent did last: what it does not tell of stays until the store has.
        report = self._kernel.apply(plan, removes=not self._state.recalled)
        self._lead_anew(report)
        _log_applied(report)
        if problem:
            report = Report(report.changes, (*report.failures, problem))
        self._note_failures(report)
        return report

    def _lead_anew(self, report: Report) -> None:
        """Have packets' ways looked up anew that lead through what was changed, and emptied maps filled."""
        if any(change.kind in _LEADING for change in report.changes):
            self.enforcement.ways_changed()
        if any(change.kind == "nft table" and change.key[1] == NFT_SERVICES_TABLE for change in report.changes):
            self.serving.node.loaded()
            self.wake()

    def _remember(self, settings: Iterable[Sysctl]) -> AgentError | None:
        """Note what settings of the whole node were; return what hindered that: pods need them anyway."""
        try:
            saved_sysctls.remember(self._run_dir, self._kernel, NodePlan(sysctls=tuple(settings)))
        except AgentError as error:
            return error
        return None

    def _read_host(self) -> bool:
        """Take over what the plan depends on and is not ours to set; tell whether it changed."""
        state = self._state
        asked = bool(state.view.config.node_port_networks)
        known, state.host = state.host, read_host(self._kernel, state.uplink.device, addresses=asked)
        return state.host != known

    async def _look(self, *, full: bool) -> None:
        """Audit, and put right what differs.

        What cannot be compared, or not be put right, is for `repair`, which tells of all that the kernel refuses.
        """
        catches_up = self._catches_up
        if not self.failures:
            with contextlib.suppress(PodwayError):
                found = await self._audit(full=full, pause=self._work)
                if found and self._is_held:
                    self._put_back(full=full)
                    return
                self._put_off = None
                report = self._perform(found) if found else Report()
                self._lead_anew(report)
                if not self._catches_up:
                    self._note_repairs(report.changes)
                if not report.failures:
                    if full:
                        self._refused.clear()
                    if full and catches_up:  # one that began before took nothing away
                        self._catches_up = False
                    return
        if self._is_held:
            self._put_back(full=full)
        else:
            self._put_off = None
            self.repair()

    def _put_back(self, *, full: bool) -> None:
        """Have an audit done again, since nothing is to be made of what this one found."""
        self._put_off = self._put_off or asyncio.get_running_loop().time()
        self.trigger(full=full)

    @property
    def _is_held(self) -> bool:
        """Whether audits are to wait."""
        return self._held is not None and self._held > asyncio.get_running_loop().time()

    def _note_failures(self, report: Report) -> None:
        said = tuple(str(failure) for failure in report.failures)
        for failure in report.failures:
            if str(failure) not in self.failures:
                log.error("kernel refused", problem=failure.message, hint=failure.hint)
        if said != self.failures:
            self.failures = said
            for listener in self._listeners:
                listener.set()


async def _turn() -> None:
    """Let those go first who are ready, but wait for nobody."""
    await asyncio.sleep(0)


def _pauses(steps: Iterable[None]) -> Iterator[Sequence[Change]]:
    """Yield after each step that nothing is left to carry out for it."""
    for _ in steps:
        yield ()


def _log_applied(report: Report) -> None:
    if log.is_enabled_for(logging.DEBUG):  # to put them into words takes longer than to carry them out
        for change in report.changes:
            log.debug("applied", change=str(change))
