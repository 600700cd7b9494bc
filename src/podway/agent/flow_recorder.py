"""Records what the node's flow engine tells: takes it from the ring, keeps it as history, and answers for it.

All work is done in one thread beside the loop, a few times a second; of the loop it asks only whose addresses are,
and what rules mean, which are look-ups in tables. No ADD waits for it: what takes long (sealing a block, a survey,
a query) lets others go first again and again, and most of it does not hold the interpreter at all.

An event's room in the ring is given back when the event is written. So an agent that is killed leaves what it did
not write, and of what it wrote twice the second is known as such.
"""

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, TypeVar

import msgspec
import structlog

from podway.agent.flow_exports import FlowExports
from podway.agent.options import AgentOptions
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.meta import LabelSelector
from podway.api.resource import Key, subject
from podway.channel.admin import Method
from podway.errors import InvalidInput, PodwayError
from podway.flows import reasons
from podway.flows.dashboard import Dashboard
from podway.flows.learn import Asked, Learner, Meant, thinned
from podway.flows.query import BY, Answer, By, Query, Sums, find, sums
from podway.flows.record import Frontend, Rule, Who
from podway.flows.store import FlowStore
from podway.flows.tally import Tally
from podway.kernel.flow_events import EVENT_SIZE, Counted, DropTracer, FlowEvents, drop_reasons
from podway.kernel.node import Kernel
from podway.policy.maps import LOOPBACK, OWN_NODE, Prefix, RuleName
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

T = TypeVar("T")

PAUSE = 0.1
"""Seconds between looks into the ring, if nothing wakes us before."""
BREATH = 0.02
"""Seconds between looks at least."""
SURVEY = 10.0
"""Seconds between surveys of the table, at least; each rests a hundred times as long as the one before it took."""
REST = 100
BUDGET = 3.0
"""Seconds that a query may take; then it answers with what it has."""
AT_A_TIME = 500
"""Addresses, and rules, that the loop looks up before others go first."""
NAMES = 4
"""Names of DNS that are kept of an address, the first of the alphabet."""
AT_ONCE = 2
"""Queries that are worked at together; others wait."""

_OWN_RULES = {
    OWN_NODE: Rule("(own node)", "a node's processes always reach its pods"),
    LOOPBACK: Rule("(loopback)", "a pod always reaches itself"),
}


class FlowRecorder:
    """Keeps the history of one node's flows."""

    def __init__(self, options: AgentOptions, state: NodeState, kernel: Kernel, reconciler: Reconciler) -> None:
        self._options = options
        self._state = state
        self._kernel = kernel
        self._reconciler = reconciler
        self._store: FlowStore | None = None
        self._events: FlowEvents | None = None
        self._learner = Learner()
        self._block = -1
        self._tail: frozenset[bytes] = frozenset()
        self._worker = ThreadPoolExecutor(1, "flows")
        self._readers = ThreadPoolExecutor(AT_ONCE, "flow queries")
        self.exports = FlowExports(options.flow_exports, options.node, options.flow_dir)
        self._changed = asyncio.Event()
        """The engine was opened or closed, or what was done with it ended."""
        kernel.flow.on_change = self._changed.set
        self._kernel_reasons: Mapping[int, str] = {}
        """Why the kernel may drop packets, by its numbers, as far as that is told."""
        self._drops_problem = ""
        self._tracing = False
        """Whether the kernel tells by now what it drops itself."""
        self._recorded = 0
        self._counted = Counted()
        self.tally = Tally()
        self.dashboard = Dashboard()

    @property
    def methods(self) -> Mapping[str, Method]:
        """What is answered on the agent's socket, by name."""
        return {
            "flows.find": Method(self.find, remote=True),
            "flows.sums": Method(self.sums, remote=True),
            "flows.status": Method(self.status, remote=True),
        }

    @property
    def entries(self) -> int:
        """How many entries the table of flows had at the latest survey, two for each flow."""
        events = self._events
        return events.entries if events else 0

    @property
    def counted(self) -> Counted:
        """What the engine counted since it began, as of the latest survey."""
        return self._counted

    # Questions.

    async def status(self) -> dict[str, Any]:
        """Return whether flows are recorded, what is kept of them, and what was lost."""
        store = self._store.status() if self._store else {}
        events = self._events
        if events is not None:
            self._counted = events.counted()
        return {
            "recording": events is not None,
            "why_not": self._why_not(),
            "flows": self.entries // 2,
            "made": self._counted.made,
            "dropped": self._counted.dropped,
            "recorded": self._recorded,
            "events": dict(self.tally.events),
            "lost": self._counted.lost,
            "unreadable": events.unreadable if events else 0,
            "kernel_drops": {
                "traced": self._tracing,
                "problem": self._drops_problem,
                "withheld": self._counted.withheld,
            },
            "exports": self.exports.status(),
            **store,
        }

    def _why_not(self) -> str:
        if self._events is not None:
            return ""
        if not self._options.flow_history:
            return "this agent keeps no history of flows (--flow-history 0)"
        if self._state.view.config.data_path == "kernel":
            return "the flow engine, which tells of flows, is off"
        return self._reconciler.enforcement.problem or "the flow engine does not work yet"

    async def find(self, selector: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        """Return the newest records that are asked for (podway.flows.query.Answer), oldest first.

        `selector` is a label selector of pods, of which either end is to be one.
        """
        query = self._query(selector, params)
        store = self._store
        if query is None or store is None:
            return await self._answer(lambda _: Answer((), store.next if store else 0))
        return await self._answer(
            lambda pause: find(query, store.blocks(query.since, query.until or float("inf")), store.next, pause)
        )

    async def sums(self, by: By, selector: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        """Return sums of all records that are asked for (podway.flows.query.Sums)."""
        if by not in BY:
            raise InvalidInput(f"--by: {by!r} is none", hint=f"there are {', '.join(BY)}")
        query = self._query(selector, params)
        store = self._store
        if query is None or store is None:
            return await self._answer(lambda _: Sums(()))
        return await self._answer(
            lambda pause: sums(query, by, store.blocks(query.since, query.until or float("inf")), pause)
        )

    async def _answer(self, work: Callable[[Callable[[], bool]], Answer | Sums]) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            deadline = time.monotonic() + BUDGET

            def pause() -> bool:
                time.sleep(0)
                return time.monotonic() > deadline

            found = work(pause)
            # Piece by piece, for who encodes all of it at once holds the interpreter as long as that takes.
            many = found.records if isinstance(found, Answer) else found.rows
            pieces = []
            for one in many:
                pieces.append(msgspec.json.encode(one))
                if not len(pieces) % 100:
                    time.sleep(0)
            told = {name: getattr(found, name) for name in found.__struct_fields__}
            told["records" if isinstance(found, Answer) else "rows"] = msgspec.Raw(b"[%b]" % b",".join(pieces))
            return told

        found = await asyncio.get_running_loop().run_in_executor(self._readers, answer)
        return {**found, "note": self._why_not(), "now": time.time(), "lost": self._counted.lost}

    def _query(self, selector: dict[str, Any] | None, params: Mapping[str, Any]) -> Query | None:
        """Return a query with the pods that labels select; None if there are none."""
        query = Query.of(params)
        if selector is None:
            return query
        try:
            wanted = msgspec.convert(selector, LabelSelector)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"selector: {error}") from error
        pods = tuple(
            f"{pod.metadata.namespace}/{pod.metadata.name}"
            for pod in self._state.view.namespaced_table(Pod).values()
            if wanted.matches(pod.metadata.labels)
        )
        return msgspec.structs.replace(query, selected=pods) if pods else None

    # The loop's share.

    async def run(self) -> None:
        """Record whenever the engine is at work, for ever."""
        if not self._options.flow_history:
            await asyncio.Event().wait()
        if (
            self._store is None and self._options.flow_dir.exists()
        ):  # what there is can be asked for, also where no engine works now
            await self._open()
        while True:
            opening = self._kernel.flow.opening
            events = self._kernel.flow.events()
            if events is None:
                await self._changed.wait()
                self._changed.clear()
                continue
            if self._store is None:
                events.close()
                await self._open()
                continue
            await self._record(events, opening)

    async def _open(self) -> None:
        store = await asyncio.to_thread(
            FlowStore, self._options.flow_dir, self._options.node, self._options.flow_history
        )
        self._tail = store.tail()
        self._learner.remember(b"".join(self._tail))
        self._store = store
        self.exports.trigger(store)

    async def _record(self, events: FlowEvents, opening: object) -> None:
        """Have a thread record what one engine tells, as long as that is the one at work."""
        loop = asyncio.get_running_loop()
        stop, told = os.pipe()
        self._events = events
        drops: DropTracer | None = None
        work: asyncio.Future[None] | None = None
        try:
            drops = await self._trace_drops()
            self._tracing = drops is not None
            work = loop.run_in_executor(self._worker, self._work, events, stop, loop)
            work.add_done_callback(lambda _: self._changed.set())
            while self._kernel.flow.opening is opening and not work.done():
                await self._changed.wait()
                self._changed.clear()
        finally:
            os.close(told)
            try:
                if work is not None:
                    await asyncio.shield(work)
            finally:
                self._events, self._tracing = None, False
                if drops is not None:
                    await asyncio.to_thread(drops.close)
                os.close(stop)
                events.close()

    async def _trace_drops(self) -> DropTracer | None:
        """Have the kernel tell what it drops itself; None, and the reason in `status`, if it cannot."""
        try:
            known = await asyncio.to_thread(drop_reasons)
            wanted = {known[name]: name for name in reasons.KERNEL_DROPS if name in known}
            netns = os.stat("/proc/self/ns/net").st_ino
            no_route = known.get(reasons.NO_ROUTE, 0)
            found = self._kernel.flow.trace_drops(netns, wanted, no_route)
            begun = asyncio.get_running_loop().run_in_executor(None, found.begin)
            try:
                await asyncio.shield(begun)
            except BaseException:
                await asyncio.wait([begun])  # no thread can be stopped, and this one uses what is closed
                found.close()
                raise
        except PodwayError as error:
            self._drops_problem = error.message
            log.warning("what the kernel drops itself is not recorded", problem=error.message)
            return None
        self._kernel_reasons, self._drops_problem = wanted, ""
        return found

    async def _meaning(self, asked: Asked) -> Meant:
        """Return what is known of addresses, rules and devices."""
        if self._store is not None:
            self.exports.trigger(self._store)
        state = self._state
        leases = {str(address): lease.pod for lease in state.leases.values() for address in lease.addresses}
        addresses: dict[str, Who] = {}
        services: dict[str, tuple[Frontend, ...]] = {}
        for done, text in enumerate(asked.addresses, 1):
            if (who := self._owner(text, leases)) is not None:
                addresses[text] = who
            if (who is None or who.kind != "pod") and (fronts := self._frontends(text)):
                services[text] = fronts
            if not done % AT_A_TIME:
                await asyncio.sleep(0)
        planner = self._reconciler.enforcement.planner
        rules = {number: rule for number, rule in _OWN_RULES.items() if number in asked.rules}
        for done, number in enumerate(asked.rules - rules.keys(), 1):
            if not done % AT_A_TIME:
                await asyncio.sleep(0)
            name = planner.rule_name(number) if planner else None
            if name is not None:
                rules[number] = self._rule(name)
        devices = self._kernel.flow.devices() if asked.devices else {}
        for number in asked.devices - devices.keys():  # newer than the latest look
            with contextlib.suppress(OSError):
                devices[number] = socket.if_indextoname(number)
        return Meant(addresses, rules, devices, self._kernel_reasons, services)

    def _owner(self, text: str, leases: Mapping[str, str]) -> Who | None:
        view, node = self._state.view, self._state.node
        if text in leases:
            namespace, _, name = leases[text].rpartition("/")
            known = view.namespaced_table(Pod).get((namespace, name))
            return Who("pod", name, namespace, node, known.workload if known else "")
        for pod in view.namespaced_table(Pod).select("address", text):
            return Who("pod", pod.metadata.name, pod.metadata.namespace, pod.spec.node_name, pod.workload)
        for found in view.nodes.select("address", text):
            return Who("node", found.metadata.name, "", found.metadata.name)
        learned = self._reconciler.enforcement.naming.known
        if names := learned.names_of(Prefix.host_of(ip_address(text))) if len(learned) else ():
            return Who(names=tuple(sorted(names)[:NAMES]))
        return None

    def _frontends(self, text: str) -> tuple[Frontend, ...]:
        """Return the ports of Services that an address has."""
        found = self._state.view.namespaced_table(Service).select("address", text)
        return tuple(
            Frontend(one.metadata.namespace, one.metadata.name, port.protocol.lower(), port.port, port.name)
            for one in found
            for port in one.spec.ports
        )

    def _rule(self, name: RuleName) -> Rule:
        revision = self._revision(name.policy)
        if name.place is None:
            return Rule(subject(name.policy), "", revision, tuple(map(subject, name.policies)))
        named = f" ({name.name})" if name.name else ""
        return Rule(subject(name.policy), f"{name.direction}[{name.place}]{named}", revision)

    def _revision(self, policy: Key) -> str:
        found = self._state.view.find(policy)
        return found.metadata.resource_version if isinstance(found, NetworkPolicy | ClusterNetworkPolicy) else ""

    # What follows runs in the thread.

    def _work(self, events: FlowEvents, stop: int, loop: asyncio.AbstractEventLoop) -> None:
        """Take what comes until `stop` is readable."""
        store = self._store
        assert store is not None
        next_survey = time.monotonic() + SURVEY
        wakers = select.poll()  # not select, which takes no descriptor from 1024 on: select(2), BUGS
        wakers.register(stop, select.POLLIN)
        wakers.register(events.fd, select.POLLIN)
        stopping = select.poll()
        stopping.register(stop, select.POLLIN)
        while True:
            ready = [fd for fd, _ in wakers.poll(1000 * PAUSE)]
            self._take(events, store, loop)
            if stop in ready:  # closed at its other end: POLLHUP
                return
            if store.is_due:
                store.seal()
            if time.monotonic() > next_survey:
                began = time.monotonic()
                self._survey(events, store, loop, lambda: bool(stopping.poll(0)))
                now = time.monotonic()
                next_survey = max(began + SURVEY, now + REST * (now - began))
                self._counted = events.counted()
            time.sleep(BREATH)

    def _survey(
        self,
        events: FlowEvents,
        store: FlowStore,
        loop: asyncio.AbstractEventLoop,
        is_over: Callable[[], bool],
    ) -> None:
        """Tell what a survey tells; `is_over` ends it early: another agent looks at the same table by then."""
        steps, last = events.survey(time.monotonic_ns()), time.monotonic()
        over: bool | None = None  # what a generator is sent before its first step
        while True:
            try:
                steps.send(over)
            except StopIteration as end:
                self._keep(end.value, store, loop)
                return
            time.sleep(0)
            over = is_over()
            if time.monotonic() - last > PAUSE:
                self._take(events, store, loop)
                last = time.monotonic()

    def _take(self, events: FlowEvents, store: FlowStore, loop: asyncio.AbstractEventLoop) -> None:
        data = events.peek()
        if self._tail and data:  # what an agent before us wrote, and did not live to take out of the ring
            pieces = (data[at : at + EVENT_SIZE] for at in range(0, len(data), EVENT_SIZE))
            data = b"".join(piece for piece in pieces if piece not in self._tail)
        self._tail = frozenset()
        self._keep(thinned(data), store, loop)
        events.advance()

    def _keep(self, data: bytes, store: FlowStore, loop: asyncio.AbstractEventLoop) -> None:
        if not data:
            return
        if store.first != self._block:
            self._learner.begin()
            self._block = store.first
        asked = self._learner.ask(data)
        meant = asyncio.run_coroutine_threadsafe(self._meaning(asked), loop).result()
        offset = time.time_ns() - time.monotonic_ns()
        names = self._learner.learn(data, store.count, offset, asked, meant)
        store.append(data, names)
        self._recorded += len(data) // EVENT_SIZE
        self.tally.take(data)
        self.dashboard.take(data)
