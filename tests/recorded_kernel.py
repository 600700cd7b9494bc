"""A kernel in memory: the objects of every kind, changed by the engine that changes a real one.

It refuses what it is told to refuse, and others may change it behind the agent's back. Who needs to know what a
real kernel does asks one: this serves tests of what drives it.
"""

import errno
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from podway.api.addresses import Address, Family, Network
from podway.errors import KernelError
from podway.kernel import engine
from podway.kernel.engine import Compared, Report
from podway.kernel.flow import Entries, FlowEndpoint, FlowWrites
from podway.plan.changes import KINDS, Change
from podway.plan.objects import NodePlan, Route
from podway.policy.maps import Columns, Prefix, RuleKey
from podway.policy.names import Bearer
from podway.services.maps import Delta as ServiceDelta
from podway.services.maps import Entries as ServiceEntries
from podway.services.maps import Maps as ServiceMaps
from podway.services.node_maps import NodeDelta, NodeKey, NodeValue


class RecordedKind:
    """One kind of kernel object (podway.kernel.engine.Kind)."""

    compared: Compared = False

    def __init__(self, name: str, kernel: "RecordedKernel") -> None:
        self.name = name
        self.repairs_only = name == "link"
        self.objects: dict[Any, Any] = {}
        self._field = KINDS[name]
        self._kernel = kernel

    def wanted(self, plan: NodePlan) -> Mapping[Any, Any]:
        return {obj.key: obj for obj in getattr(plan, self._field)}

    def list(self, plan: NodePlan) -> Mapping[Any, Any]:
        if self.name == "sysctl":  # of which only those that the plan names are looked at
            return {key: value for key, value in self.objects.items() if key in self.wanted(plan)}
        return dict(self.objects)

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        failures = {}
        for position, change in enumerate(changes):
            if self._kernel.refuses(change):
                failures[position] = KernelError(f"{change.action} {change.want or change.have}", errno.EPERM)
                continue
            self._kernel.log.append(change)
            if change.want is None:
                self.objects.pop(change.key, None)
            else:
                self.objects[change.key] = change.want
        return failures


class RecordedFlows:
    """Implements podway.kernel.interface.FlowDoor: maps in memory, which outlive who wrote them.

    `log` has every write; `refuses` says why the engine cannot be had, `unsupported` that no kernel like it can.
    `load` is what is to be done first, once.
    """

    unsupported = ""

    def __init__(self) -> None:
        self.is_open = False
        self.refuses: Callable[[], KernelError | None] = lambda: None
        self.log: list[FlowWrites] = []
        self.load: Callable[[], None] | None = None
        self.ways = 0
        self.limits: frozenset[str] = frozenset()
        self.openings = 0
        self.services = ServiceMaps()
        self.resolvers: dict[Address, float] = {}
        self.names: dict[Bearer, float] = {}
        self._rules: dict[RuleKey, Columns] = {}
        self._sets: dict[int, int] = {}
        self._identities: dict[Prefix, int] = {}
        self._endpoints: dict[Address, FlowEndpoint] = {}
        self._pools: frozenset[Network] = frozenset()

    def why_not(self) -> str:
        return self.unsupported

    def is_attached(self) -> bool:
        return bool(self.log)

    def loading(self, wires: Iterable[str], pods: Iterable[str]) -> Callable[[], None] | None:
        load, self.load = self.load, None
        return load

    def open(self, wires: Iterable[str], pods: Iterable[str], fill: Callable[[], None]) -> None:
        if error := self.refuses():
            raise error
        self.is_open = True
        fill()
        self.openings += 1

    def limited(self) -> frozenset[str]:
        return self.limits

    def close(self) -> None:
        self.is_open = False

    stop = close

    def read(self) -> Generator[None, None, Entries]:
        yield
        return self.entries

    @property
    def entries(self) -> Entries:
        """What the maps say."""
        return Entries(
            dict(self._rules), dict(self._sets), dict(self._identities), dict(self._endpoints), self._pools
        )

    def forget_endpoints(self) -> None:
        """Be as maps of another layout are at first, before anybody has filled them."""
        self._endpoints = {}

    def name_maps(self) -> "RecordedFlows":
        assert self.is_open
        return self

    def listen(self, resolvers: Iterable[Address], until: float) -> None:
        self.resolvers = dict.fromkeys(resolvers, until)

    def remember(self, until: Mapping[Bearer, float]) -> None:
        self.names.update(until)
        self.names = {bearer: time for bearer, time in self.names.items() if time}

    def remembered(self) -> Mapping[Bearer, float]:
        return dict(self.names)

    def write(self, changes: FlowWrites) -> Iterator[None]:
        assert self.is_open
        if changes.empty:
            return
        self.log.append(changes)
        self._rules.update(changes.rules)
        yield
        self._sets.update(changes.rule_sets)
        self._identities.update(changes.identities)
        self._endpoints.update(changes.endpoints)
        self._pools = self._pools - changes.gone_pools | changes.pools
        gone: tuple[tuple[dict[Any, Any], tuple[Any, ...]], ...] = (
            (self._endpoints, changes.gone_endpoints),
            (self._identities, changes.gone_identities),
            (self._rules, changes.gone_rules),
            (self._sets, changes.gone_rule_sets),
        )
        for entries, keys in gone:
            for key in keys:
                del entries[key]

    def read_services(self) -> Generator[None, None, ServiceEntries]:
        yield
        return ServiceMaps(self.services.entries).entries

    def write_services(self, delta: ServiceDelta) -> Generator[None, None, None]:
        assert self.is_open
        yield
        self.services.apply(delta)

    def look_again(self, *, ways: bool = False) -> None:
        self.ways += ways


class RecordedServices:
    """Implements podway.kernel.interface.ServicesDoor: entries in memory.

    `missing` says that a table is not there. `clients` are remembered with these backends, by what they stay with;
    what is to be struck out of that is refused while `refuses_to_forget`.
    """

    def __init__(self) -> None:
        self.entries: dict[NodeKey, NodeValue] = {}
        self.missing = False
        self.refuses_to_forget = False
        self.clients: dict[NodeKey, set[NodeValue]] = {}

    def read(self, families: Iterable[Family]) -> Generator[None, None, Mapping[NodeKey, NodeValue]]:
        if self.missing:
            raise KernelError("read", errno.ENOENT)
        yield
        return {key: value for key, value in self.entries.items() if key.version in set(families)}

    def write(self, delta: NodeDelta) -> Generator[None, None, None]:
        yield
        for key, value in delta.put.items():
            assert self.entries.get(key, value) == value or key in delta.stale, key
            self.entries[key] = value
        for key in delta.gone:
            del self.entries[key]
        if delta.left and self.refuses_to_forget:
            raise KernelError("dump", errno.ENOBUFS)
        for key, left in delta.left.items():
            self.clients.setdefault(key, set()).intersection_update(left)


class RecordedKernel:
    """Implements podway.kernel.interface.NodeKernel. `log` has every change in its order."""

    def __init__(self) -> None:
        self.flow = RecordedFlows()
        self.services = RecordedServices()
        self.log: list[Change] = []
        self.refuses: Callable[[Change], bool] = lambda change: False
        self.auditing: Callable[[], bool] = lambda: False
        """While this is true, audits do not come to their end."""
        self.settings: dict[str, str] = {}
        self.learned: dict[Network, str] = {}
        """BIRD's routes: the device by which each destination is reached."""
        self.kinds = {name: RecordedKind(name, self) for name in self._order()}

    @staticmethod
    def _order() -> list[str]:
        """Return the kinds in the order in which a real kernel's are applied: rules before what they guard."""
        rules = ["nft table", "nft element"]
        return [*rules, *(name for name in KINDS if name not in {*rules, "route"}), "route"]

    @property
    def routes(self) -> dict[str, Route]:
        """The best route of ours to each destination."""
        worst_first = sorted(self.kinds["route"].objects.values(), key=lambda route: -(route.metric or 0))
        return {str(route.destination): route for route in worst_first}

    def apply(self, plan: NodePlan, *, removes: bool = True) -> Report:
        return engine.apply(self.kinds.values(), plan, removes=removes)

    def carry_out(
        self, changes: Iterable[Change], plan: Callable[[], NodePlan], *, removes: bool = True
    ) -> Report:
        return engine.carry_out(list(self.kinds.values()), changes, plan)

    def audit(self, plan: NodePlan, *, full: bool = True) -> Iterator[Change | None]:
        while self.auditing():
            yield None
        yield from engine.audit(self.kinds.values(), plan)

    def diff(self, plan: NodePlan, *, of: Collection[str] | None = None) -> list[Change]:
        kinds = [kind for kind in self.kinds.values() if of is None or kind.name in of]
        return [change for kind in kinds for change in engine.diff(kind, plan)]

    def sysctls(self, paths: Iterable[str]) -> dict[str, str]:
        return {path: self.settings[path] for path in paths if path in self.settings}

    def foreign_addresses(self) -> tuple[Address, ...]:
        return ()

    def mtus(self) -> dict[str, int]:
        return {link.name: link.mtu for link in self.kinds["link"].objects.values()}

    def set_pod_mtu(self, pod_netns: int, ifname: str, mtu: int, *, was: int) -> None:
        raise AssertionError("there are no pods' ends here")

    def gateway_devices(self, protocol: int, lengths: Collection[tuple[int, int]]) -> Mapping[Network, str]:
        if protocol == 12:
            return dict(self.learned)
        return {route.destination: route.device for route in self.routes.values() if route.gateway is not None}
