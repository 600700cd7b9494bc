"""Services served: what the planner of Services says, brought to the maps of the node's flow engine.

It has the life that policies have (podway.reconcile.enforcement), and its place behind them in the loop: told of
each change; what was told is settled and written in portions; who starts compares the maps with everything, and
takes numbers and places from there; audits compare again, and undo what others changed.

What is not known is left alone. Until Services, endpoints and pods are listed, what an agent before this one wrote
goes on to lead connections; so does a Service whose object cannot be read, by its last good state.

The node's own processes are served by the same facts, where settings ask for it (podway.reconcile.node_serving).

Where no Services are to be served, or not any more, the maps are emptied: then a pod's packets to them are the
stack's, and another proxy's.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import structlog

from podway.api.addresses import Address
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.relevance import alters_services
from podway.errors import KernelError
from podway.kernel.interface import FlowDoor, ServicesDoor
from podway.plan.services import node_port_addresses
from podway.reconcile.map_keeper import RETRY, SLICE, MapKeeper, not_as_planned
from podway.reconcile.node_serving import NodeServing
from podway.reconcile.state import NodeState
from podway.services.maps import NO_CHANGE, NOTHING, Delta, Entries
from podway.services.node_maps import NodeDelta
from podway.services.planner import ServicePlanner, outside_frontends, wanted_frontends

log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V")

PORTION = 50
"""Objects that are put, and Services that are settled, at once: some milliseconds."""

_KINDS = (Service, EndpointSlice, Pod, Node)


class Wrong(NamedTuple):
    """What an audit found: changes that put right what serves pods, and what serves the node's own processes."""

    pods: Delta = Delta()
    node: NodeDelta = NodeDelta()

    @property
    def empty(self) -> bool:
        """Whether all is as it should be."""
        return self.pods.empty and self.node.empty


class Serving(MapKeeper):
    """Keeps the flow engine's maps in step with the cluster's Services, where NetworkConfig has them served."""

    DOING = "served Services"
    FALLS_SHORT = "Services are not served as they should be"

    def __init__(self, flow: FlowDoor, node: ServicesDoor, state: NodeState) -> None:
        super().__init__(flow, state)
        self.node = NodeServing(node, state)
        """Serves the node's own processes, by what serves pods."""
        self._planner: ServicePlanner | None = None
        self._outside: ServicePlanner | None = None
        """Who says what is behind a Service for clients outside, where that is something else."""
        self._node_ports: tuple[Address, ...] = ()
        """With which of the node's addresses node ports are served."""
        self._maps_of = 0
        """Which opening of the engine the maps are of that were compared."""
        self._told: list[Change[Any]] = []
        self._beginning = False
        """Whether what is being written is a beginning, which compares everything."""
        self._refused = False
        self._late_since: float | None = None
        """Since when there is something that the maps do not have, by the state's clock."""

    @property
    def waits(self) -> float:
        """For how many seconds something has waited to be brought to the maps."""
        if self._late_since is None or not (self.busy or self._refused):
            return 0.0
        return self._state.now() - self._late_since

    @property
    def wanted(self) -> bool:
        """Whether the cluster's settings ask for Services to be served."""
        view = self._state.view
        return view.serves and not view.unsettled

    @property
    def in_force(self) -> bool:
        """Whether Services are served."""
        return self._flow.is_open and self._planner is not None and self._maps_of == self._flow.openings

    @property
    def planner(self) -> ServicePlanner | None:
        """Who knows what is behind a Service; None while none are served."""
        return self._planner

    @property
    def busy(self) -> bool:
        """Whether there is something to write now; what was refused waits for an audit."""
        return self._work is not None or bool(self._told) or self._is_to_begin or self._is_node_to_begin

    @property
    def retry(self) -> float:
        """In how many seconds an audit should try again what was refused; 0 if nothing was."""
        return RETRY if self._refused else 0.0

    def status(self) -> dict[str, Any]:
        """Return what `podway status` tells."""
        frontends, backends = self._planner.counts() if self._planner else (0, 0)
        view = self._state.view
        waits = sorted(view.unserved) if self.wanted else []
        problem = self.problem or (f"not listed yet: {', '.join(waits)}" if waits else "")
        if view.config.services != "off" and not self._flow.is_open:
            problem = "the flow engine does not work on this node"
        return {
            "wanted": view.config.services,
            "in_force": ("all" if self.node.in_force else "pods") if self.in_force else "off",
            "problem": problem,
            "pending": self.busy or self._refused,
            "frontends": frontends,
            "backends": backends,
        }

    def heard(self, changes: Iterable[Change[Any]]) -> bool:
        """Take changes of the cluster; tell whether there is anything to do for it."""
        if self._planner is None:
            return self.busy
        if self._state.view.unserved:  # they are not followed any more: the planner misses what they do
            self._maps_of = 0
        else:
            self._told += filter(alters_services, changes)
        return self.busy

    @property
    def _served_node_ports(self) -> tuple[Address, ...]:
        state = self._state
        return node_port_addresses(state.view, state.uplink, state.host)

    @property
    def _is_to_begin(self) -> bool:
        """Whether the maps have to be compared: nobody did since the engine was opened, or settings changed."""
        view = self._state.view
        if not self._flow.is_open or view.unsettled or (self.wanted and view.unserved):
            return False
        if self._state.now() < self._again:
            return False
        if self._planner is not None and self._node_ports != self._served_node_ports:
            return True
        return self.wanted != (self._planner is not None) or self._maps_of != self._flow.openings

    @property
    def _is_node_to_begin(self) -> bool:
        """Whether what serves pods is known, and is to be brought to the node's own maps from the beginning."""
        return self.in_force and self.node.is_to_begin and not self._refused

    def portions(self) -> Iterator[None]:
        """Write what is to be written, in bounded steps; yields after each. Others may do so in between."""
        if not self._flow.is_open:
            self._end()
            self._refused, self.problem = False, ""
            return
        yield from self._steps()

    def _take_up(self) -> Iterator[None] | None:
        if not (self.busy or self._refused):
            self._late_since = None
        elif self._late_since is None:
            self._late_since = self._state.now()
        if self.busy and (self._work is None or (self._is_to_begin and not self._beginning)):
            self._beginning = self._is_to_begin
            if self._beginning:
                self._work = self._begin()
            else:
                self._work = self._begin_node() if self._is_node_to_begin else self._follow()
            self._written += 1
        return self._work

    def _finish(self) -> None:
        self._beginning = False

    def _refuse(self, error: KernelError) -> None:
        self._beginning, self._refused = False, True
        self._again = self._state.now() + RETRY
        self.note(error)

    def _lose_track(self) -> None:
        self._end()
        self._again = self._state.now() + RETRY

    def fail(self, error: Exception, pause: float = RETRY) -> None:
        """See MapKeeper.fail."""
        super().fail(error, pause)
        self._refused = True

    def _end(self) -> None:
        self._planner, self._outside, self._work, self._told, self._beginning = None, None, None, [], False
        self.node.forget()

    def _begin(self) -> Iterator[None]:
        """Compare the maps with all that is wanted, whatever was left in them, and write what differs."""
        self._maps_of, self._told, self._refused = self._flow.openings, [], False
        self._planner = self._outside = None
        self.node.forget()
        left = yield from self._flow.read_services()
        if not self.wanted:
            if any(left):
                yield from self._flow.write_services((yield from compared(NOTHING, left)))
                log.info("Services are not served any more")
            self.problem = ""
            return
        # What is told from here on is put after all that is known now.
        ports = self._node_ports = self._served_node_ports
        planner = self._planner = ServicePlanner(
            self._state.node, left, partial(wanted_frontends, node_ports=ports)
        )
        if self.node.wanted:
            self._outside = ServicePlanner(self._state.node, wanted=partial(outside_frontends, node_ports=ports))
        known: list[Mapping[Any, Resource]] = [self._state.view.tables[kind.KIND] for kind in _KINDS]
        for table in known:
            for number, obj in enumerate(table.values(), 1):
                planner.put(obj)
                if self._outside is not None:
                    self._outside.put(obj)
                if not number % PORTION:
                    yield
        yield from planner.settling(PORTION)
        if self._outside is not None:
            yield from self._outside.settling(PORTION)
        wrong = yield from compared((yield from planner.gathered()), left)
        self.problem = ""
        yield from self._flow.write_services(wrong)
        frontends, backends = planner.counts()
        log.info("Services are served", frontends=frontends, backends=backends)

    def _begin_node(self) -> Iterator[None]:
        """Bring all that serves pods to the node's own maps, too, whatever was left in them."""
        assert self._planner is not None
        outside = (yield from self._outside.gathered()) if self._outside is not None else NOTHING
        yield from self.node.begin((yield from self._planner.gathered()), outside, self._planner.fence)

    def _follow(self) -> Iterator[None]:
        """Settle what was told, and write it."""
        assert self._planner is not None
        told, self._told = self._told, []
        planners = (self._planner, *((self._outside,) if self._outside is not None else ()))
        for change in told:
            for planner in planners:
                if change.new is None:
                    planner.drop(change.key)
                else:
                    planner.put(change.new)
        delta = yield from self._planner.settling(PORTION)
        outside = (yield from self._outside.settling(PORTION)) if self._outside is not None else NO_CHANGE
        try:
            yield from self._flow.write_services(delta)
        except KernelError:
            # An audit compares what serves pods with the planner, and the node's maps with what they were told.
            yield from self.node.change(delta, outside)
            raise
        yield from self.node.change(delta, outside)

    def audit(self) -> Generator[None, None, Wrong | None]:
        """Compare the maps with all that is wanted, in slices; yields after each, where others may go first.

        Returns what differs; None if nobody can tell, since something was written meanwhile. Raises KernelError.
        """
        before, planner = self._written, self._planner
        if not self.in_force or planner is None or self.busy:
            return None
        left = yield from self._flow.read_services()
        wrong = Wrong((yield from compared((yield from planner.gathered()), left)), (yield from self.node.audit()))
        return None if self._written != before or self.busy or not self._flow.is_open else wrong

    def mend(self, wrong: Wrong | None) -> Generator[None, None, str]:
        """Put right what an audit has just found, if anything; return what it was. Yields after each step."""
        if wrong is None:
            return ""
        ours, self._refused, self.problem = self._refused, False, ""
        if wrong.empty:
            return ""
        self._written += 1
        self._work = self._write(wrong)  # what is told meanwhile is written after it
        yield from self.portions()
        return "" if ours or self._refused else f"{described(wrong)}: put right"

    def _write(self, wrong: Wrong) -> Iterator[None]:
        yield from self._flow.write_services(wrong.pods)
        yield from self.node.write(wrong.node)


def compared(want: Entries, have: Entries) -> Generator[None, None, Delta]:
    """Find what leads from some entries to those that are wanted; yields now and then."""
    frontends, gone_frontends = yield from _differing(want.frontends, have.frontends)
    choices, gone_choices = yield from _differing(want.choices, have.choices)
    backends, gone_backends = yield from _differing(want.backends, have.backends)
    return Delta(frontends, choices, backends, gone_frontends, gone_choices, gone_backends)


def _differing(
    want: Mapping[K, V], have: Mapping[K, V]
) -> Generator[None, None, tuple[dict[K, V], tuple[K, ...]]]:
    put: dict[K, V] = {}
    gone: list[K] = []
    for number, (key, value) in enumerate(want.items(), 1):
        if have.get(key) != value:
            put[key] = value
        if not number % SLICE:
            yield
    for number, key in enumerate(have, 1):
        if key not in want:
            gone.append(key)
        if not number % SLICE:
            yield
    return put, tuple(gone)


def described(wrong: Wrong) -> str:
    """Say what of the maps of Services is not as it should be."""
    pods, node = wrong
    counts = {
        "frontends": len(pods.frontends) + len(pods.gone_frontends),
        "places": len(pods.choices) + len(pods.gone_choices),
        "backends": len(pods.backends) + len(pods.gone_backends),
        "entries of the node's own maps": len(node.put) + len(node.gone),
        "addresses with clients to be forgotten": len(node.left),
    }
    return not_as_planned("Services", counts)
