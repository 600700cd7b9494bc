"""Policies in force: what the planner of policies says, brought to the maps of the node's flow engine.

Scopes of the plan are functions of facts, and what they give is compared. The planner of policies
(podway.policy.planner) is told facts one by one, remembers what came of them, and says what changes: one event in
a cluster of thousands of pods changes a few entries of many thousands, in an order that matters. So it has its
place beside the scopes in the loop (podway.reconcile.reconciler), with the same life:

- **Told** of each change of pods, namespaces, nodes and policies; nothing is done then but to note it.
- **Portions.** What was told is settled and written, before scopes are planned and carried out: programs are hung
  on a pod's link when the maps know the pod.
- **First comparison.** An agent that starts reads the maps. Its planner takes the numbers of identities and rule
  sets from there, so that what is right already is not written, and no number that is in use gets another meaning.
- **Audits** compare all that was written with the maps, in slices, and undo what others changed.

What is not known is closed. A NetworkPolicy that cannot be read isolates its namespace, unless its last good state
is known. A pod whose object is gone, finished or not to be read has a rule set that is never
written. One of which the store says that there is no object has no policy, for none can select it; an agent that
starts finds in the maps which of the two a pod was.

An agent that starts while the store is away knows the cluster from the file of the last one, which may be older
than what that one wrote into the maps. So these stay as they are until the store has listed everything: nobody's
rules or identity change by the file, nothing is added and nothing taken away; a pod that comes is cut off until
then.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Set
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from podway.api.addresses import Address
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.lease import Attachment, Lease, shorten
from podway.api.resource import Key
from podway.cluster.change import Change
from podway.cluster.relevance import alters_policy
from podway.errors import AgentError, KernelError, StoreForbidden, StoreUnavailable, UnsupportedSystem
from podway.kernel.flow import Entries, FlowEndpoint, FlowWrites
from podway.kernel.interface import FlowDoor
from podway.plan.node import wires
from podway.policy.in_doubt import stand_in
from podway.policy.lookup import PolicyMaps
from podway.policy.maps import CLOSED, NO_RULES, Columns, Delta, EndpointRules, PodName, RuleKey
from podway.policy.names import Answer, Bearer
from podway.policy.planner import PolicyPlanner
from podway.reconcile.loading import ProgramLoader
from podway.reconcile.map_keeper import RETRY, SLICE, MapKeeper, not_as_planned
from podway.reconcile.naming import Naming
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

T = TypeVar("T")

SOON = 1.0
"""Seconds until what was refused once is tried again."""

INTERRUPTED = 3
"""Audits that others' writes made worthless, after which one is made without a pause."""

MANY = 100
"""Pods that are gone and remembered all the same, the newest."""

_JUDGED_BY = (Namespace, Node, NetworkPolicy, ClusterNetworkPolicy, Pod)
_OPEN, _SHUT = EndpointRules(NO_RULES, NO_RULES), EndpointRules(CLOSED, CLOSED)

FindPod = Callable[[str, str], Awaitable[Pod | None]]
"""Asks the store for a pod by namespace and name; None if there is none. Raises StoreError."""


class Enforcement(MapKeeper):
    """Keeps the flow engine's maps in step with the cluster's policies, where NetworkConfig asks for that."""

    DOING = "enforced policies"
    FALLS_SHORT = "policies are not enforced as they should be"

    def __init__(self, flow: FlowDoor, state: NodeState, wake: Callable[[], None] = lambda: None) -> None:
        """Take the engine and the node's state, and what is called when there is something to do unasked."""
        super().__init__(flow, state)
        self._loader = ProgramLoader(flow, wake)
        self._planner: PolicyPlanner | None = None
        self._dirty = False
        self._anew = False
        """Whether the planner has missed changes: another one has to be made."""
        self._maps = PolicyMaps()
        """What the planner wants written."""
        self._endpoints: dict[Address, FlowEndpoint] = {}
        self._pools: frozenset[Any] = frozenset()
        """Both as they were written."""
        self._limited: frozenset[str] = frozenset()
        """The links on which somebody limits what passes, as they were at the latest look."""
        self._entering: dict[Attachment, Lease] = {}
        self._asking: dict[object, _Asked] = {}
        """For whom the store is asked; those leave of whom something is heard meanwhile."""
        self._absent: dict[PodName, EndpointRules | None] = {}
        """Rules of pods of which the planner does not know; None where the store could not be asked for it."""
        self._unread: dict[Key, NetworkPolicy | ClusterNetworkPolicy] = {}
        """Policies that cannot be read."""
        self._mending = False
        """Whether what is being written is what a comparison found."""
        self._refusals = 0
        """How often in a row something was refused that is not written yet."""
        self._interrupted = 0
        self._failed = False
        """Whether a mistake of ours is why nothing is enforced: nobody is let in then, whatever judges so far."""
        self._lacking = False
        """Whether the engine could not be had when that was tried last."""
        self._as_left = False
        """Whether the maps stay as another agent left them: the cluster is known only from its file, which may be
        older."""
        self.naming = Naming(flow)
        """What is known of the names of domains that policies have."""
        self._kept = False
        """Whether an engine stays at work because nobody can tell whether it is to."""

    @property
    def wanted(self) -> bool:
        """Whether the cluster's settings ask for the engine; if they cannot be read, whether it worked before."""
        return self._state.view.enforces and (self._kept or not self._state.view.unsettled)

    @property
    def in_force(self) -> bool:
        """Whether policies are enforced."""
        return self._flow.is_open and self._planner is not None

    @property
    def maps(self) -> PolicyMaps:
        """The entries in force, as the planner knows them."""
        return self._maps

    @property
    def planner(self) -> PolicyPlanner | None:
        """Who knows whose rule a number is; None while policies are not enforced."""
        return self._planner

    @property
    def shut(self) -> tuple[str, ...]:
        """The pods that are cut off because it is not known what they are."""
        pods = (each.pod for each in self._state.leases.values() if self._rules_of(each.pod) == _SHUT)
        return tuple(sorted(pods)) if self.in_force else ()

    @property
    def as_left(self) -> bool:
        """Whether the maps stay as another agent left them, until the store has told of everything."""
        return self._as_left

    @property
    def shortfall(self) -> str:
        """What is not as it should be, in words; empty if all is."""
        if self.problem or not self._as_left:
            return self.problem
        return (
            "the store has not answered since this agent started: pods are judged as they were before, and one "
            "that comes is cut off until it does"
        )

    @property
    def pending(self) -> bool:
        """Whether something was told that is not written, or was refused."""
        return self.busy or self._refusals > 0

    @property
    def busy(self) -> bool:
        """Whether there is something to write now; what was refused waits for an audit."""
        return self._dirty or self._anew or self._work is not None

    @property
    def _is_to_come(self) -> bool:
        """Whether policies will be enforced; where that is left to the node, only if nothing is in the way."""
        if not self.wanted or self.in_force or self._can_do_without:
            return False
        return self._state.view.config.data_path == "ebpf" or not (self._lacking or self._failed)

    @property
    def fallback(self) -> str:
        """Why the node does without the engine, where settings let it (`auto`); empty if it does not.

        It does not where an engine is at work, if another agent's, or is about to be.
        """
        state = self._state
        if not self.wanted or state.view.config.data_path != "auto" or self._planner or self._failed:
            return ""
        return "" if state.engine or self._is_to_come else self.problem or self._flow.why_not()

    @property
    def retry(self) -> float:
        """In how many seconds an audit should try again what is not in force; 0 if all is."""
        if not self.problem:
            return 0.0
        if self._planner is None and (left := self._again - self._state.now()) > 0:
            return left
        return SOON if self._refusals == 1 else RETRY

    def status(self) -> dict[str, Any]:
        """Return what `podway status` tells."""
        return {
            "wanted": self._state.view.config.data_path,
            "in_force": "ebpf" if self.in_force else "kernel",
            "problem": self.shortfall,
            "fallback": self.fallback,
            "pending": self.pending or self._is_to_come,
            "shut": list(self.shut),
            "rule_sets": len(self._maps.rule_sets),
            "rules": len(self._maps.rules),
            "identities": len(self._maps.identities),
            "names": len(self.naming),
            "names_missed": self.naming.missed,
        }

    # What changes.

    def heard(self, changes: Iterable[Change[Any]]) -> bool:
        """Take changes of the cluster; tell whether there is anything to do for it."""
        if self._state.view.unjudged:
            # The store's pods and policies are not followed, or not yet: a planner misses what they do.
            self._anew = self._planner is not None
            return self._anew
        if self._as_left:
            return False
        if self._planner is None:
            return self.wanted and self._state.now() >= self._again
        with self._contained():
            for change in changes:
                if change.kind == Pod.KIND:
                    self._asking = {one: asked for one, asked in self._asking.items() if not asked.told_by(change)}
                if alters_policy(change):
                    self._dirty = True
                    if change.new is None:
                        self._planner.drop(change.key)
                    else:
                        self._planner.put(change.new)
            self._close_in_doubt()
        return self._dirty or self._failed

    def listen(self, now: float) -> None:
        """Say for a while that answers of DNS are heard, if any rule needs them. Raises KernelError."""
        if self._planner is not None and self._flow.is_open and self._planner.naming:
            self.naming.listen(self._state.view, now)

    def hear(self, answer: Answer, at: float) -> None:
        """Take an answer of DNS to a pod, which was given at a time (CLOCK_MONOTONIC, seconds)."""
        with self._contained():
            if self._planner is not None and self.naming.hear(self._planner, answer, at):
                self._dirty = not self._as_left

    def names_due(self, now: float) -> Mapping[Bearer, float]:
        """Return the names whose time is over, and what that was, if policies are enforced."""
        return self.naming.known.due(now) if self.in_force and not self._as_left else {}

    def fade(self, due: Mapping[Bearer, float], used: Set[Bearer], now: float) -> bool:
        """Forget names that are due, but for those in use and those that were heard of meanwhile.

        Tells whether there is anything to write for it.
        """
        with self._contained():
            if self._planner is not None and not self._as_left:
                self.naming.keep(used, now)
                known = self.naming.known
                gone = frozenset(
                    one for one, until in due.items() if one not in used and known.until(one) == until
                )
                self.naming.forget(self._planner, gone)
                self._dirty = self._dirty or bool(gone)
        return self.busy

    def all_listed(self) -> None:
        """The store has told of everything: the maps need not stay any more as another agent left them."""
        self._anew = self._anew or self._as_left

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Have another planner made if this one fails in the middle of something: who knows what it knows.

        A mistake of ours ends here: the loop that keeps routes and pods must not pay for it. Who asks for
        something looks afterwards whether there is a planner.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.fail(error)
        except BaseException:
            self._lose_track()
            raise

    def fail(self, error: Exception, pause: float = SOON) -> None:
        """See MapKeeper.fail: nobody new is let in until then."""
        super().fail(error, pause)
        self._failed, self._state.engine = True, self._is_attached()

    def _close_in_doubt(self) -> None:
        """Go by what stands in for policies that cannot be read, and never could be."""
        assert self._planner is not None
        view = self._state.view
        unread = {
            wanted: policy
            for wanted, one in view.rejected.items()
            if view.find(wanted) is None and (policy := stand_in(one)) is not None
        }
        for wanted, policy in unread.items():
            if self._unread.get(wanted) != policy:
                self._planner.put(policy)
        for wanted in self._unread.keys() - unread.keys():
            known = view.find(wanted)
            if known is None:
                self._planner.drop(wanted)
            else:
                self._planner.put(known)
        self._dirty = self._dirty or unread != self._unread
        self._unread = unread

    async def admit(self, pod: str, uid: str, find: FindPod) -> None:
        """See to it that the rules of a pod, `<namespace>/<name>`, are known and written before it is wired.

        Who is known already waits for nobody. Raises AgentError if nothing can be enforced, and StoreError if the
        store has to be asked for the pod and is away: not where there is no policy, which could select it.
        """
        if self._loader.under_way:
            await self._loader.wait()
            self._choose()
        name = _name(pod)
        if self._judging(pod) is None or name is None:
            return
        known = self._state.view.find((Pod.KIND, *name))
        if known is None or (uid and known.metadata.uid and known.metadata.uid != uid):
            self._asking[asked := object()] = _Asked(name, known.metadata.uid if known else "")
            try:
                found, rules = await self._find(name, find, known=known is not None)
            finally:
                untold = self._asking.pop(asked, None) is not None
            planner = self._judging(pod)  # the loop has gone on meanwhile
            if planner is None:
                return
            if not untold:  # what was heard since is newer than the answer
                if self._state.view.find((Pod.KIND, *name)) is None:
                    self._absent[name] = _SHUT
            elif found is not None and self._as_left:
                self._absent[name] = _SHUT
                self._maps.endpoints.pop(name, None)  # another pod's, that had its name before
            elif found is not None:
                with self._contained():
                    planner.put(found)
                    self._dirty = True
                    self._absent.pop(name, None)
            elif known is None:
                self._absent.pop(name, None)
                self._absent[name] = rules  # the newest
        for _ in self.portions():
            await asyncio.sleep(0)
        self._judging(pod)

    async def _find(self, name: PodName, find: FindPod, *, known: bool) -> tuple[Pod | None, EndpointRules | None]:
        """Ask the store for a pod; return it, and what `_absent` has if there is none. Raises StoreError."""
        try:
            return await find(*name), _OPEN
        except StoreForbidden:
            raise  # it answers, and the next pod would be let in unjudged, too
        except StoreUnavailable:
            if known or self._as_left or self._there_are_policies:
                raise
            return None, None

    def _judging(self, pod: str) -> PolicyPlanner | None:
        """Return the planner, None if nothing is to be enforced. Raises AgentError if it is, and cannot be."""
        self._await_listing(pod)
        if not self._state.engine and not self._failed:
            return None
        if self._planner is None:
            raise AgentError(
                f"pod {pod or '-'}: policies cannot be enforced on this node: {self.problem}",
                hint="mend that, or have policies not enforced: podway set config default dataPath=kernel",
            )
        return self._planner

    def _await_listing(self, pod: str) -> None:
        """Raise AgentError while policies are to be enforced and it is not known yet what there are."""
        if self.wanted and self._state.view.unjudged and not self._can_do_without:
            raise AgentError(
                f"pod {pod or '-'}: policies cannot be enforced on this node yet: {self._unlisted}",
                hint="they are listed as soon as the store answers; see `podway status` on this node",
            )

    @property
    def _can_do_without(self) -> bool:
        """Whether the settings leave it to the node, whose kernel cannot have the engine."""
        return self._state.view.config.data_path == "auto" and bool(self._flow.why_not())

    @property
    def _unlisted(self) -> str:
        return f"not listed yet: {', '.join(sorted(self._state.view.unjudged))}"

    def enter(self, lease: Lease) -> None:
        """Have a pod judged whose link has just been made, before anything can pass there.

        Raises KernelError, and AgentError if nothing can be enforced any more.
        """
        if self._judging(lease.pod) is None:
            return
        if lease.attachment not in self._state.leases and not self._is_known(lease.pod):
            # All was compiled anew since it was admitted, of what is known; the store has to be asked once more.
            raise AgentError(
                f"pod {lease.pod}: its policies are not known any more: the agent began anew meanwhile",
                hint="the runtime repeats its ADD",
            )
        self._entering[lease.attachment] = lease
        for address in lease.addresses:
            self._endpoints.pop(address, None)  # its link has another number than the former one
        self.bring(strict=True)
        self._judging(lease.pod)

    def _is_known(self, pod: str) -> bool:
        """Tell whether it is known what rules a pod has, or that it has none."""
        name = _name(pod)
        if name is None or name in self._absent or name in self._maps.endpoints:
            return True
        wanted = (Pod.KIND, *name)
        return self._state.view.find(wanted) is not None or wanted in self._state.view.rejected

    def entered(self, attachment: Attachment) -> bool:
        """The pod's lease is among the node's now, or will never be; tell whether anything was written for it."""
        return self._entering.pop(attachment, None) is not None

    # The loop's share.

    def start(self) -> None:
        """Compare the maps with everything, as an agent starts."""
        self._choose(starts=True)
        self.bring()

    def bring(self, *, strict: bool = False) -> None:
        """Write at once all that is to be written. With `strict` raises the KernelError of what cannot be."""
        for _ in self.portions(strict=strict):
            pass

    def portions(self, *, strict: bool = False) -> Iterator[None]:
        """Write what is to be written, in bounded steps; yields after each. Others may do so in between."""
        self._choose()
        yield from self._steps(strict=strict)

    def _take_up(self) -> Iterator[None] | None:
        if self._work is None and self._planner is not None:
            with self._contained():
                writes = self._due()
                self._work = None if writes.empty else self._flow.write(writes)
        return self._work

    def _finish(self) -> None:
        if self._mending:
            self._all_right()
        self._mending = False

    def _refuse(self, error: KernelError) -> None:
        """Remember that not all that is wanted is in the maps: an audit will find what."""
        self._mending = False
        self._refusals += 1
        self.note(error)

    def _lose_track(self) -> None:
        self._mending, self._anew = False, True

    def audit(self) -> Generator[None, None, FlowWrites | None]:
        """Compare the maps with all that is wanted, in slices; yields after each, where others may go first.

        Returns what differs; None if nobody can tell, since something was written meanwhile. Raises KernelError.
        """
        before, planner = self._written, self._planner
        if planner is None or self.busy:
            return None
        if self._interrupted < INTERRUPTED:
            for _ in (reading := _Returned(self._flow.read())):
                yield
                if self._planner is not planner:
                    return None  # the engine was ended, and perhaps begun again: these are other maps
            for _ in (comparing := _Returned(self._compared(reading.value))):
                yield
                if self._planner is not planner:
                    return None
            wrong = comparing.value
        else:  # there is always something to write, and what was refused must not wait for ever
            wrong = _in_one_go(self._compared(_in_one_go(self._flow.read())))
        if self._written != before or self.busy:
            self._interrupted += 1
            return None
        self._interrupted = 0
        return wrong

    def mend(self, wrong: FlowWrites | None) -> str:
        """Put right what an audit found, if anything; say what it was."""
        if wrong is None:
            return ""
        if wrong.empty:
            self._all_right()
            return ""
        ours = self._refusals > 0
        self._endpoints, self._pools = self._wanted_endpoints(), self._wanted_pools()
        self._written += 1
        self._work, self._mending = self._flow.write(wrong), True
        self.bring()
        return "" if ours or self._refusals else f"{described(wrong)}: put right"

    def _all_right(self) -> None:
        self._refusals, self.problem = 0, ""

    def repair(self) -> str:
        """Audit and mend at once. What the kernel refuses is in `problem`."""
        self.bring()
        try:
            return self.mend(_in_one_go(self.audit()))
        except KernelError as error:
            self.note(error)
            return ""

    def look_for_limits(self) -> None:
        """Have the packets of pods whose links somebody limits, or does not limit any more, go the right way."""
        if self._planner is None:
            return
        try:
            limited = self._flow.limited()
        except KernelError as error:
            self.note(error)
            return
        if limited != self._limited:
            self._limited = limited
            self.bring()
            self.ways_changed()

    def ways_changed(self) -> None:
        """Have the engine look up anew how packets go on: routes, neighbours or devices changed."""
        if self._flow.is_open:
            self._flow.look_again(ways=True)

    # Beginning and end.

    def _choose(self, *, starts: bool = False) -> None:
        """Begin or end to enforce, as the settings ask; an agent that `starts` may find another one's engine."""
        kept, unsettled = self._kept, self._state.view.unsettled
        self._kept = unsettled and (kept or self._state.engine or (starts and self._is_attached()))
        if self._kept and not kept:
            log.error("the NetworkConfig cannot be read: policies stay enforced, as they were before")
        if not self.wanted:
            if self._state.engine or self.problem:
                log.info("policies are not enforced any more", data_path="kernel")
            if self._flow.is_open or starts:
                self._stop()
            self._end()
            self._absent.clear()  # who begins to judge lists all anew
            self._state.engine, self.problem, self._failed, self._lacking = False, "", False, False
            return
        if self._anew:
            self._end()
        if self._planner is None and self._state.view.unjudged:
            if self.problem != self._unlisted:
                self._state.engine, self.problem, self._lacking = self._is_attached(), self._unlisted, False
                log.info("policies will be enforced once they are known", problem=self.problem)
        elif self._planner is None and self._state.now() >= self._again:
            known = self._loader.under_way
            if self._loader.ready(*self._devices()):
                self._begin()
            elif not known:  # what another agent left goes on to judge meanwhile
                self._state.engine = self._is_attached()
                self.problem = self.problem if self._lacking else ""

    def _stop(self) -> None:
        """Have nothing judge any more, before programs are taken off one by one, of which some know half."""
        try:
            self._flow.stop()
        except KernelError as error:
            log.warning("the flow engine could not be stopped at once", problem=error.message)

    def _devices(self) -> tuple[Iterable[str], Iterable[str]]:
        """Return on which devices the engine works: those that lead out of the node, and pods' links."""
        return wires(self._state.facts()), [lease.attachment.link for lease in self._state.leases.values()]

    def _begin(self) -> None:
        self._failed, self._lacking = False, True
        try:
            self._flow.open(*self._devices(), self._fill)
        except (KernelError, UnsupportedSystem) as error:
            self._end()
            self.note(error)
            self._again = self._state.now() + RETRY
            # What another agent left goes on to judge, and nobody is let through because we cannot.
            self._state.engine = self._is_attached()
            return
        except Exception as error:  # noqa: BLE001 - a mistake of ours: no half of an engine stays
            self.fail(error, RETRY)
            return
        except BaseException:
            self._end()
            self._again = self._state.now() + RETRY
            self._state.engine = self._is_attached()
            raise
        if not self._refusals:
            self.problem = ""
        self._state.engine, self._lacking = True, False
        log.info("policies are enforced", rule_sets=len(self._maps.rule_sets), rules=len(self._maps.rules))

    def _is_attached(self) -> bool:
        try:
            return self._flow.is_attached()
        except UnsupportedSystem:
            return False
        except KernelError:
            return True  # nobody can tell: what may be at work is not taken off

    def _end(self) -> None:
        self._flow.close()
        self._planner, self._maps, self._work = None, PolicyMaps(), None
        self._dirty = self._anew = self._mending = self._as_left = False
        self._refusals = self._interrupted = 0
        self._endpoints.clear()
        self._pools = frozenset()

    def _fill(self) -> None:
        """Bring the maps to what is wanted, whatever another agent left in them."""
        left = _in_one_go(self._flow.read())
        self._limited = self._flow.limited()
        self._compile(left)
        wrong = _in_one_go(self._compared(left))
        self._endpoints, self._pools = self._wanted_endpoints(), self._wanted_pools()
        try:
            self.listen(self._state.now())
            for _ in self._flow.write(wrong):
                pass
        except KernelError as error:
            # What it is about stays closed, and is tried again: no reason to have all the rest go unjudged.
            self._refuse(error)

    def _compile(self, left: Entries) -> None:
        """Make a planner that knows the whole cluster, and takes numbers from what another one left."""
        before, self._absent = self._absent, {}
        self._asking.clear()  # an answer that is under way is no newer than what is known by now
        former = PolicyMaps()
        former.rules, former.rule_sets = dict(left.rules), dict(left.rule_sets)
        former.identities = dict(left.identities)
        for lease in (*self._state.leases.values(), *self._entering.values()):
            name = _name(lease.pod)
            there = [left.endpoints[address] for address in lease.addresses if address in left.endpoints]
            if name is not None and there:
                rules = former.endpoints[name] = there[0].rules
                self._absent[name] = _OPEN if rules == _OPEN else _SHUT
            if name in before:  # maps do not tell who has no object from who is open until there is a policy
                self._absent[name] = before[name]
        self._planner = PolicyPlanner(self._state.node, former.left)
        for kind in _JUDGED_BY:
            for obj in self._state.view.tables[kind.KIND].values():
                self._planner.put(obj)
        self._unread = {}
        self._close_in_doubt()
        self.naming.recall(self._planner)
        told = self._planner.settle()
        self._as_left = bool(self._state.recalled) and bool(left.endpoints or not self._state.leases)
        if self._as_left:
            self._maps, self._pools = former, left.pools
        else:
            self._maps = PolicyMaps()
            self._maps.apply(told)
        self._dirty = False

    # What is to be written.

    def _due(self) -> FlowWrites:
        assert self._planner is not None
        delta: Delta | None = None
        if self._dirty:
            self._dirty = False
            delta = self._planner.settle()
            self._maps.apply(delta)
            for name in delta.deleted_endpoints:
                self._absent[name] = _SHUT
            for name in delta.endpoints:
                self._absent.pop(name, None)
        if len(self._absent) > 2 * len(self._state.leases) + MANY:
            here = {_name(lease.pod) for lease in (*self._state.leases.values(), *self._entering.values())}
            here |= set(list(self._absent)[-MANY:])  # of whom some are admitted, and not wired yet
            self._absent = {name: rules for name, rules in self._absent.items() if name in here}
        endpoints, pools = self._wanted_endpoints(), self._wanted_pools()
        put = {where: one for where, one in endpoints.items() if self._endpoints.get(where) != one}
        if any(one.names for one in put.values()):
            try:
                self.listen(self._state.now())
            except KernelError as error:  # said again with the next beat; names then allow nothing new
                self.note(error)
        writes = FlowWrites(
            rules=delta.rules if delta else {},
            rule_sets=delta.rule_sets if delta else {},
            identities=delta.identities if delta else {},
            endpoints=put,
            pools=pools - self._pools,
            gone_endpoints=tuple(self._endpoints.keys() - endpoints.keys()),
            gone_identities=delta.deleted_identities if delta else (),
            gone_rules=delta.deleted_rules if delta else (),
            gone_rule_sets=delta.deleted_rule_sets if delta else (),
            gone_pools=self._pools - pools,
        )
        self._endpoints, self._pools = endpoints, pools
        self._written += not writes.empty
        return writes

    def _compared(self, have: Entries) -> Generator[None, None, FlowWrites]:
        """Find what differs between the maps and all that is wanted; yields now and then."""
        want, endpoints, pools = self._maps, self._wanted_endpoints(), self._wanted_pools()
        rules: dict[RuleKey, Columns] = {}
        gone: list[RuleKey] = []
        for number, (key, said) in enumerate(tuple(want.rules.items())):
            if have.rules.get(key) != said:
                rules[key] = said
            if number % SLICE == SLICE - 1:
                yield
        for number, key in enumerate(have.rules):
            if key not in want.rules:
                gone.append(key)
            if number % SLICE == SLICE - 1:
                yield
        touched = {key.rule_set for key in (*rules, *gone)}
        sets = {
            number: lengths
            for number, lengths in want.rule_sets.items()
            if number in touched or number not in have.rule_sets or lengths & ~have.rule_sets[number]
        }
        return FlowWrites(
            rules=rules,
            rule_sets=sets,
            identities={one: n for one, n in want.identities.items() if have.identities.get(one) != n},
            endpoints={one: what for one, what in endpoints.items() if have.endpoints.get(one) != what},
            pools=pools - have.pools,
            gone_endpoints=tuple(have.endpoints.keys() - endpoints.keys()),
            gone_identities=tuple(have.identities.keys() - want.identities.keys()),
            gone_rules=tuple(gone),
            gone_rule_sets=tuple(have.rule_sets.keys() - want.rule_sets.keys()),
            gone_pools=have.pools - pools,
            compared=True,
        )

    def _wanted_endpoints(self) -> dict[Address, FlowEndpoint]:
        found: dict[Address, FlowEndpoint] = {}
        naming = self._planner.naming if self._planner is not None else frozenset()
        for attachment, lease in {**self._state.leases, **self._entering}.items():
            rules = self._rules_of(lease.pod)
            link = attachment.link
            bridged, limited = lease.attach == "bridge", link in self._limited
            named = rules.egress in naming or rules.egress_audit in naming
            endpoint = FlowEndpoint(link, rules, bridged, limited, named)
            found.update(dict.fromkeys(lease.addresses, endpoint))
        return found

    def _wanted_pools(self) -> frozenset[Any]:
        return (
            self._pools if self._as_left else frozenset(pool.network for pool in self._state.view.pools.values())
        )

    def _rules_of(self, pod: str) -> EndpointRules:
        name = _name(pod)
        if name is None:
            return _OPEN  # no runtime of Kubernetes made it
        known = self._maps.endpoints.get(name)
        if known is not None:
            return known
        if "~" in pod:  # the kernel has but a part of the name (podway.api.lease.shorten)
            every = self._maps.endpoints.items()
            return next((rules for one, rules in every if _is_short_for(pod, one)), _SHUT)
        wanted = (Pod.KIND, *name)
        if self._state.view.find(wanted) is not None or wanted in self._state.view.rejected:
            return _SHUT  # finished, or said to be on another node, or not to be read
        rules = self._absent.get(name, _OPEN)
        if rules is None:
            return _SHUT if self._there_are_policies else _OPEN
        return rules

    @property
    def _there_are_policies(self) -> bool:
        """Whether a pod of which nothing is known might be selected by a policy."""
        tables = self._state.view.tables
        return bool(self._unread or tables[NetworkPolicy.KIND] or tables[ClusterNetworkPolicy.KIND])


class _Asked(NamedTuple):
    """A pod for which the store is asked, and the uid of its namesake that was known before, or none."""

    name: PodName
    former: str

    def told_by(self, change: Change[Any]) -> bool:
        """Tell whether a change says something newer than the answer will: not if it is about the namesake."""
        obj = change.new or change.old
        return change.key[1:] == self.name and not (self.former and obj and obj.metadata.uid == self.former)


class _Returned(Generic[T]):
    """A generator to be iterated over, with what it returned in `value` at the end."""

    def __init__(self, steps: Generator[None, None, T]) -> None:
        self._steps = steps
        self.value: T

    def __iter__(self) -> Iterator[None]:
        self.value = yield from self._steps


def _in_one_go(steps: Generator[None, None, T]) -> T:
    """Return what a generator that may pause returns, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def described(wrong: FlowWrites) -> str:
    """Say what of the flow engine's maps is not as it should be."""
    counts = {
        "rules": len(wrong.rules) + len(wrong.gone_rules),
        "rule sets": len(wrong.rule_sets) + len(wrong.gone_rule_sets),
        "identities": len(wrong.identities) + len(wrong.gone_identities),
        "pods' addresses": len(wrong.endpoints) + len(wrong.gone_endpoints),
        "pools": len(wrong.pools) + len(wrong.gone_pools),
    }
    return not_as_planned("flow engine", counts)


def _is_short_for(cut: str, name: PodName) -> bool:
    return shorten("/".join(name), len(cut.encode())) == cut


def _name(pod: str) -> PodName | None:
    """Return namespace and name of a lease's pod, None if the runtime did not say."""
    namespace, _, name = pod.partition("/")
    return (namespace, name) if name else None
