"""Brings the kernel to the plan, and back to it when somebody else changes what is ours."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog

from podway.agent import saved_sysctls
from podway.agent.options import AgentOptions
from podway.agent.state import NodeState
from podway.agent.steps import rest
from podway.errors import AgentError, PodwayError
from podway.kernel.engine import Report
from podway.kernel.node import Kernel
from podway.plan.bridge import BRIDGE_NETFILTER
from podway.plan.changes import Change, between
from podway.plan.node import ACCEPT_RA, ALL_RP_FILTER, NEIGHBOUR_LIMITS, HostFacts
from podway.plan.objects import NodePlan
from podway.plan.overlays import RP_FILTER

log = structlog.get_logger(__name__)

SETTLE = 0.05
"""Seconds to wait after a kernel event before looking: changes come in bursts."""

ECHO = 0.5
"""The same after an event that our own work most likely caused: the kernel does not always name the author."""

STEP = 0.004
"""Seconds of an audit after which others go first."""

REMEMBERED_REPAIRS = 100


class Repair(msgspec.Struct, frozen=True):
    """Something that was not as planned though nobody had changed the plan. `at` is seconds since 1970."""

    at: float
    what: str


class Reconciler:
    """Applies the node's plan. `repairs` remembers the latest changes that others made and it undid.

    `failures_changed` is called when the kernel refuses something else than before.
    """

    def __init__(
        self, kernel: Kernel, state: NodeState, options: AgentOptions, *, failures_changed: Callable[[], None]
    ) -> None:
        self._kernel = kernel
        self._state = state
        self._run_dir = options.run_dir
        self._interval = options.resync_interval
        self._failures_changed = failures_changed
        self._wanted = asyncio.Event()
        self._due = self._full_due = asyncio.get_running_loop().time() + self._interval
        self._full = False
        self._applied = NodePlan()
        self._audits: list[set[tuple[str, Any]]] = []
        """For each look that goes on, what was carried out since it began."""
        self.repairs: deque[Repair] = deque(maxlen=REMEMBERED_REPAIRS)
        self.failures: tuple[str, ...] = ()
        """What the kernel refused at the last attempt."""

    def apply(self) -> Report:
        """Bring the kernel to the plan now, after the plan changed."""
        self.learn_facts()
        report = self._carry_out(self._state.plan())
        for change in report.changes:
            log.debug("applied", change=str(change))
        return report

    def carry_out(self, delta: tuple[Change, ...]) -> None:
        """Bring the kernel to a plan that is known to differ from the last one by this alone."""
        for audit in self._audits:
            audit.update(_keys(delta))
        self._state.touch(*(" ".join(change.key) for change in delta if change.kind == "forwarding entry"))
        self._state.touch(*{change.key.table for change in delta if change.kind == "nft element"})
        report = self._kernel.carry_out(delta)
        for failure in report.failures:
            log.info("to be looked at again", problem=failure.message)
        if report.failures:
            self.trigger()

    async def differences(self, *, full: bool = True) -> list[Change]:
        """Return what differs from the plan, found in slices: requests come first.

        What our own work meanwhile made differ, from the plan as it was when the look began, is left out.
        """
        altered: set[tuple[str, Any]] = set()
        found: list[Change] = []
        began = turn = self._state.now()
        self._audits.append(altered)
        try:
            for change in self._kernel.audit(self._state.plan(), full=full):
                if change is not None:
                    found.append(change)
                if self._state.now() - turn > STEP:
                    await asyncio.sleep(0)
                    turn = self._state.now()
        finally:
            self._audits.remove(altered)
        return [
            change
            for change in found
            if (change.kind, change.key) not in altered
            and not any(self._state.touched(device, since=began) for device in _devices(change))
        ]

    async def _differs(self, *, full: bool) -> bool:
        """Tell whether there may be something to repair; what cannot be compared is for `repair` to tell of."""
        try:
            return bool(await self.differences(full=full))
        except PodwayError:
            return True

    def repair(self, before: NodePlan | None = None) -> Report:
        """Compare the kernel with the plan, and undo what others changed. `before` is the plan before they did.

        What follows from a setting of theirs that the plan takes into account is no repair, nor is the removal of
        what the plan had when it was last applied (say, of the bridge after its last pod) and of rules about that.
        """
        before = before or self._state.plan()
        self.learn_facts()
        after = self._state.plan()
        expected = _keys(between(before, after)) if after != before else set()
        if after != self._applied:  # what our own plan no longer has goes by our own doing
            own = between(self._applied, after)
            expected |= _keys(change for change in own if change.action == "remove" or change.kind == "nft table")
        report = self._carry_out(after)
        for change in report.changes:
            if (change.kind, change.key) not in expected:
                self.note(str(change))
        return report

    def _carry_out(self, plan: NodePlan) -> Report:
        try:
            saved_sysctls.remember(self._run_dir, self._kernel, plan)
        except AgentError as error:  # pods need the plan all the same
            applied = self._kernel.apply(plan)
            report = Report(applied.changes, (*applied.failures, error))
        else:
            report = self._kernel.apply(plan)
        self._applied = plan
        self._note_failures(report)
        return report

    def learn_facts(self) -> bool:
        """Take over what the plan depends on and is not ours to set; tell whether it changed."""
        known, device = self._state.facts, self._state.uplink.device
        accept_ra, rp_filter = ACCEPT_RA.format(device=device), RP_FILTER.format(device=device)
        values = self._kernel.sysctls([ALL_RP_FILTER, accept_ra, rp_filter, *BRIDGE_NETFILTER, *NEIGHBOUR_LIMITS])
        self._state.facts = HostFacts(
            all_rp_filter=values.get(ALL_RP_FILTER, ""),
            accept_ra=values.get(accept_ra, ""),
            rp_filter=values.get(rp_filter, ""),
            neighbours=tuple(values[path] for path in NEIGHBOUR_LIMITS if path in values),
            bridge_netfilter=tuple(path for path in BRIDGE_NETFILTER if path in values),
        )
        return self._state.facts != known

    def note(self, what: str) -> None:
        """Log and remember a repair, told in words."""
        log.warning("repaired", change=what)
        self.repairs.append(Repair(time.time(), what))

    def trigger(self, within: float = SETTLE, *, full: bool = True) -> None:
        """Ask for a comparison within so many seconds: something of ours may have been changed.

        Without `full` the kinds are left out of which a node may hold thousands: pods come and go
        often, and all that stands on their links goes with these.
        """
        self._full = self._full or full
        due = asyncio.get_running_loop().time() + within
        if due < self._due:
            self._due = due
            self._wanted.set()

    async def run(self) -> None:
        """Compare when asked, and now and then unasked, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._until_due()
            began = clock()
            full = self._full or began >= self._full_due
            if full:
                self._full_due = began + self._interval
            self._due, self._full = self._full_due, False
            before = self._state.plan()
            if self.learn_facts():
                self.repair(before)
            elif self.failures or await self._differs(full=full):
                self.repair()
            await rest(clock() - began)

    async def _until_due(self) -> None:
        clock = asyncio.get_running_loop().time
        while (delay := self._due - clock()) > 0:
            self._wanted.clear()
            try:
                async with asyncio.timeout(delay):
                    await self._wanted.wait()
            except TimeoutError:
                return

    def _note_failures(self, report: Report) -> None:
        said = tuple(str(failure) for failure in report.failures)
        for failure in report.failures:
            if str(failure) not in self.failures:
                log.error("kernel refused", problem=failure.message, hint=failure.hint)
        if said != self.failures:
            self.failures = said
            self._failures_changed()


def _devices(change: Change) -> Iterable[str]:
    """Return the names of devices that a change may be about."""
    obj = change.have if change.want is None else change.want
    return (getattr(obj, "device", ""), getattr(obj, "name", ""), *getattr(obj, "path", "").split("/"))


def _keys(changes: Iterable[Change]) -> set[tuple[str, Any]]:
    return {(change.kind, change.key) for change in changes}
