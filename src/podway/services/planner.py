"""From changes of Services and their endpoints to changes of one node's entries. Pure, and incremental.

planner = ServicePlanner("node1")
for obj in objects:
    planner.put(obj)
delta = planner.settle()

Facts come in any order; `settle` then costs what the Services that they are about have, not what there is.

A Service's frontends are its addresses in the cluster, and those of outside that clients in the cluster use like
them: `externalIPs`, a load balancer's whose mode is not Proxy, and the node's own with a node port. Who is in the
cluster is never from outside, so `externalTrafficPolicy` says nothing of these (k/k #108526). Where that is Local,
clients outside have other backends: another planner says which, by `outside_frontends`.

Where two Services claim the same address and port, one has it: a cluster's address before a load balancer's, and
that before an external one, then the older Service, then the one whose name comes first.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from podway.api.addresses import Address
from podway.api.fields import parse_legacy_address
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service, ServicePort
from podway.api.resource import Key, Resource
from podway.services.choice import Where, choose
from podway.services.endpoints import Candidate, Offer, candidates, offer_of_slice, offers_of_pods, selects
from podway.services.maps import (
    NOBODY,
    NOTHING,
    PROTOCOLS,
    Backend,
    Choice,
    Delta,
    Entries,
    Frontend,
    FrontendFlag,
    FrontendKey,
    packed,
)

ZONE_LABEL = "topology.kubernetes.io/zone"

WORK = 500
"""Candidates and frontends of one Service that are worked at at once: some milliseconds."""

GATHERED = 1000
"""Backends that are gathered at once, or those of one set."""

ServiceName = tuple[str, str]
"""Namespace and name."""


class SetName(NamedTuple):
    """A set of backends: of a Service's port, in a family, for a traffic policy."""

    service: ServiceName
    port: str
    protocol: str
    version: int
    local: bool
    fence: tuple[str, ...] = ()
    """`loadBalancerSourceRanges`: another fence is another set, so that whoever reads frontends hears of it."""


class _Set:
    """A set of backends as it is written: by its places from 1 on."""

    __slots__ = ("number", "places")

    def __init__(self, number: int, places: list[tuple[int, Backend]]) -> None:
        self.number = number
        self.places = places


_Rank = tuple[int, str, ServiceName]


class _Claim(NamedTuple):
    """What a Service wants a frontend to be; the smaller `rank` has it."""

    rank: _Rank
    frontend: Frontend


class _State:
    """What is known of a Service, and what came of it."""

    __slots__ = ("claims", "offers", "service", "sets")

    def __init__(self) -> None:
        self.service: Service | None = None
        self.offers: dict[str, Offer | None] = {}
        """Of its slices, by their names."""
        self.sets: dict[SetName, _Set] = {}
        self.claims: dict[FrontendKey, _Claim] = {}


class WantedFrontend(NamedTuple):
    """A frontend that a Service asks for: its port, and whether only endpoints of the node are behind it."""

    key: FrontendKey
    port: ServicePort
    version: int
    local: bool
    kind: str


FrontendsOf: TypeAlias = Callable[[Service], Iterable[WantedFrontend]]

_RANKS = {"cluster": 0, "load balancer": 1, "external": 2, "node port": 3}


def _rank(one: WantedFrontend, service: Service) -> _Rank:
    name = (service.metadata.namespace, service.metadata.name)
    return (_RANKS[one.kind], service.metadata.creation_timestamp, name)


class ServicePlanner:
    """What one node needs of the cluster's Services.

    A planner can start beside entries that another one has left (`former`): what means the same then gets the same
    number and place, so that nothing has to be written, and connections stay with their backends.
    """

    def __init__(self, node: str, former: Entries = NOTHING, wanted: "FrontendsOf | None" = None) -> None:
        """Begin beside what was left. `wanted` says which frontends a Service has: `wanted_frontends`, if None."""
        self._node = node
        self._wanted = wanted or wanted_frontends
        self._where = Where(node)
        self._former = former
        self._last_set = max((number for number, _ in former.choices), default=NOBODY)
        self._last_backend = max(former.backends, default=NOBODY)
        self._heirs: dict[FrontendKey, ServiceName] = {}
        self._taken: set[int] = set()
        """Sets that were the former planner's, and are ours."""
        self._states: dict[ServiceName, _State] = {}
        self._slices: dict[tuple[str, str], ServiceName] = {}
        """Of which Service each slice is, by the slice's name."""
        self._pods: dict[str, dict[str, Pod]] = {}
        self._of_pods: dict[str, set[ServiceName]] = {}
        """Services, by their namespaces, whose endpoints are pods that they select."""
        self._claims: dict[FrontendKey, dict[ServiceName, _Claim]] = {}
        self._frontends: dict[FrontendKey, Frontend] = {}
        self._dirty: set[ServiceName] = set()

    # What is told.

    def put(self, obj: Resource) -> None:
        """Take an object, or its new state; kinds that Services do not depend on are passed over."""
        match obj:
            case Service():
                name = (obj.metadata.namespace, obj.metadata.name)
                self._state(name).service = obj
                self._dirty.add(name)
            case EndpointSlice():
                self._put_slice((obj.metadata.namespace, obj.metadata.name), obj)
            case Pod():
                self._put_pod((obj.metadata.namespace, obj.metadata.name), obj)
            case Node() if obj.metadata.name == self._node:
                self._put_zone(zone_of(obj))
            case _:
                pass

    def drop(self, wanted: Key) -> None:
        """Take an object's end; nothing happens if it is not known."""
        kind, namespace, name = wanted
        if kind == Service.KIND and (namespace, name) in self._states:
            self._states[namespace, name].service = None
            self._dirty.add((namespace, name))
        elif kind == EndpointSlice.KIND:
            self._put_slice((namespace, name), None)
        elif kind == Pod.KIND:
            self._put_pod((namespace, name), None)
        elif kind == Node.KIND and name == self._node:
            self._put_zone("")

    def _state(self, name: ServiceName) -> _State:
        return self._states.setdefault(name, _State())

    def _put_slice(self, name: tuple[str, str], piece: EndpointSlice | None) -> None:
        before = self._slices.pop(name, None)
        after = piece.service if piece else None
        if before is not None and before != after:
            self._states[before].offers.pop(name[1], None)
            self._dirty.add(before)
        if piece is not None and after is not None:
            self._slices[name] = after
            self._state(after).offers[name[1]] = offer_of_slice(piece)
            self._dirty.add(after)

    def _put_pod(self, name: tuple[str, str], pod: Pod | None) -> None:
        known = self._pods.setdefault(name[0], {})
        before = known.pop(name[1], None)
        if pod is not None:
            known[name[1]] = pod
        for service in self._of_pods.get(name[0], ()):
            asked = self._states[service].service
            if asked and any(one and selects(asked, one) for one in (before, pod)):
                self._dirty.add(service)

    def _put_zone(self, zone: str) -> None:
        if zone != self._where.zone:
            self._where = Where(self._node, zone)
            self._dirty.update(self._states)

    # What comes of it.

    def settle(self) -> Delta:
        """Return what changes since the last call."""
        steps = self.settling(len(self._dirty) + 1)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: Delta = end.value
                return found

    def settling(self, portion: int) -> Generator[None, None, Delta]:
        """Do as `settle` does, so many Services at once, or a part of a large one.

        Yields after each, where others may put and drop.
        """
        change = _Change()
        dirty, self._dirty = self._dirty, set()
        if self._former.frontends:
            self._heirs = self._find_heirs(dirty)
        for number, name in enumerate(sorted(dirty), 1):
            if name in self._states:
                yield from self._settle(name, change)
            if not number % portion:
                yield
        self._former, self._heirs = NOTHING, {}  # what of it means nothing by now goes from the data path
        return change.delta

    def _find_heirs(self, names: Iterable[ServiceName]) -> dict[FrontendKey, ServiceName]:
        """Return who will have each frontend that the former planner wrote: its set is theirs, not a rival's."""
        best: dict[FrontendKey, _Rank] = {}
        for name in names:
            service = self._states[name].service
            if service is None:
                continue
            for one in self._wanted(service):
                rank = _rank(one, service)
                if one.key in self._former.frontends and (one.key not in best or rank < best[one.key]):
                    best[one.key] = rank
        return {where: rank[2] for where, rank in best.items()}

    @property
    def entries(self) -> Entries:
        """All that there is to be written."""
        steps = self.gathered()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: Entries = end.value
                return found

    def gathered(self) -> Generator[None, None, Entries]:
        """Return `entries`; yields now and then. What is settled in such a pause is in there in parts."""
        choices: dict[Choice, int] = {}
        backends: dict[int, Backend] = {}
        done = 0
        for state in tuple(self._states.values()):
            for one in tuple(state.sets.values()):
                choices[one.number, 0] = len(one.places)
                for place, (number, backend) in enumerate(one.places, 1):
                    choices[one.number, place] = number
                    backends[number] = backend
                done += 1 + len(one.places)
                if done >= GATHERED:
                    done = 0
                    yield
        return Entries(dict(self._frontends), choices, backends)

    def counts(self) -> tuple[int, int]:
        """Return how many frontends and backends there are."""
        sets = (one for state in self._states.values() for one in state.sets.values())
        return len(self._frontends), sum(len(one.places) for one in sets)

    def service(self, name: ServiceName) -> Service | None:
        """Return a Service that is known."""
        state = self._states.get(name)
        return state.service if state else None

    def holder(self, frontend: FrontendKey) -> ServiceName | None:
        """Return the Service that has an address and port."""
        claims = self._claims.get(frontend)
        return min(claims, key=lambda name: claims[name].rank) if claims else None

    def fence(self, frontend: FrontendKey) -> tuple[str, ...]:
        """Return the networks from which clients outside may come to an address and port; none: everywhere."""
        holder = self.holder(frontend)
        service = self.service(holder) if holder else None
        if service is None or not service.spec.load_balancer_source_ranges:
            return ()
        of_balancers = {packed(address) for address in _balancers(service)}
        inside = {packed(address) for address in service.cluster_addresses}
        return fence_of(service) if frontend.address in of_balancers - inside else ()

    def candidates(self, name: ServiceName, port: ServicePort, version: int) -> list[Candidate]:
        """Return all that may serve a Service's port in a family."""
        return candidates(port, version, self.offers(name))

    @property
    def where(self) -> Where:
        """The node, and its zone."""
        return self._where

    def offers(self, name: ServiceName) -> Iterator[Offer]:
        """Yield what slices or, where there are none, pods have to offer to a Service that is known."""
        state = self._states[name]
        if state.offers:
            # In the order of the slices' names, so that equal facts give equal places.
            yield from (offer for _, offer in sorted(state.offers.items()) if offer is not None)
        elif state.service is not None:
            yield from offers_of_pods(state.service, self._pods.get(name[0], {}).values())

    def _settle(self, name: ServiceName, change: "_Change") -> Iterator[None]:
        state = self._states[name]
        service = state.service
        by_pods = service is not None and not state.offers and bool(service.spec.selector)
        derived = self._of_pods.setdefault(name[0], set())
        (derived.add if by_pods else derived.discard)(name)
        wanted = tuple(self._wanted(service)) if service else ()
        offers = tuple(self.offers(name)) if wanted else ()
        sets: dict[SetName, _Set] = {}
        flags: dict[SetName, FrontendFlag] = {}
        claims: dict[FrontendKey, _Claim] = {}
        done = 0
        for one in wanted:
            assert service is not None
            fence = fence_of(service) if one.kind == "load balancer" else ()
            set_name = SetName(name, one.port.name, one.port.protocol, one.version, one.local, fence)
            if set_name not in sets:  # once, however many addresses the Service has
                found = candidates(one.port, one.version, offers)
                chosen = choose(found, self._where, local=one.local)
                sets[set_name] = state.sets.get(set_name) or self._new_set(name, one.key)
                self._fill(sets[set_name], _usable(one.port, chosen.used), change)
                flags[set_name] = FrontendFlag.DROP if chosen.elsewhere else FrontendFlag(0)
                done += len(found)
            rank = _rank(one, service)
            flag = flags[set_name] | (FrontendFlag.OUTSIDE if one.kind != "cluster" else FrontendFlag(0))
            frontend = Frontend(sets[set_name].number, service.affinity_seconds, flag)
            claims[one.key] = _Claim(rank, frontend)
            if one.kind == "cluster":
                claims[FrontendKey(one.key.address)] = _Claim(rank, Frontend(NOBODY))
            done += 1
            if done >= WORK:
                done = 0
                yield
        for set_name, former in state.sets.items():
            if set_name not in sets:
                self._fill(former, (), change)
                change.gone_choice(former.number, 0)
        before, state.sets, state.claims = state.claims, sets, claims
        for number, key in enumerate(before.keys() | claims.keys(), 1):
            if before.get(key) != claims.get(key):
                self._claim(key, name, claims.get(key), change)
            if not number % WORK:
                yield
        if state.service is None and not state.offers:  # as they are now: it may have come back in a pause
            del self._states[name]

    def _claim(self, key: FrontendKey, name: ServiceName, claim: _Claim | None, change: "_Change") -> None:
        claims = self._claims.setdefault(key, {})
        if claim is None:
            claims.pop(name, None)
        else:
            claims[name] = claim
        best = min(claims.values()).frontend if claims else None
        if best is None:
            del self._claims[key]
        if best == self._frontends.get(key):
            return
        if best is None:
            del self._frontends[key]
            change.gone_frontends.append(key)
        else:
            self._frontends[key] = change.frontends[key] = best

    def _new_set(self, name: ServiceName, frontend: FrontendKey) -> _Set:
        """Return an empty set; where another planner had one behind the frontend, that one with its places."""
        left = self._former.frontends.get(frontend) if self._heirs.get(frontend) == name else None
        if left is None or left.backends in self._taken or left.backends == NOBODY:
            self._last_set += 1
            return _Set(self._last_set, [])
        self._taken.add(left.backends)
        places = []
        for place in range(1, self._former.choices.get((left.backends, 0), 0) + 1):
            number = self._former.choices.get((left.backends, place), NOBODY)
            backend = self._former.backends.get(number)
            if backend is None or backend.backends != left.backends:
                break
            places.append((number, backend))
        return _Set(left.backends, places)

    def _fill(self, one: _Set, wanted: Iterable[tuple[bytes, int]], change: "_Change") -> None:
        """Have a set hold these addresses and ports; who stays keeps its number and, mostly, its place."""
        missing = dict.fromkeys(wanted)
        places, holes, before = one.places, [], len(one.places)
        for place, (number, backend) in enumerate(places):
            if missing.pop((backend.address, backend.port), NOBODY) is None:
                continue
            change.gone_backends.append(number)
            holes.append(place)
        for address, port in missing:
            self._last_backend += 1
            backend = Backend(one.number, address, port)
            change.backends[self._last_backend] = backend
            if holes:
                place = holes.pop(0)
                places[place] = (self._last_backend, backend)
            else:
                place = len(places)
                places.append((self._last_backend, backend))
            change.choices[one.number, place + 1] = self._last_backend
        for place in reversed(holes):  # the last one moves into each hole that is left
            last = places.pop()
            change.gone_choice(one.number, len(places) + 1)
            if place < len(places):
                places[place] = last
                change.choices[one.number, place + 1] = last[0]
        if len(places) != before or not before:
            change.choices[one.number, 0] = len(places)


class _Change:
    """A delta that is being made."""

    def __init__(self) -> None:
        self.frontends: dict[FrontendKey, Frontend] = {}
        self.choices: dict[Choice, int] = {}
        self.backends: dict[int, Backend] = {}
        self.gone_frontends: list[FrontendKey] = []
        self.gone_choices: dict[Choice, None] = {}
        self.gone_backends: list[int] = []

    def gone_choice(self, number: int, place: int) -> None:
        self.choices.pop((number, place), None)
        self.gone_choices[number, place] = None

    @property
    def delta(self) -> Delta:
        # One Service may leave an address to another one in the same turn, so what was put last counts.
        gone = [key for key in dict.fromkeys(self.gone_frontends) if key not in self.frontends]
        return Delta(
            self.frontends,
            self.choices,
            self.backends,
            tuple(gone),
            tuple(choice for choice in self.gone_choices if choice not in self.choices),
            tuple(self.gone_backends),
        )


def zone_of(node: Node) -> str:
    """Return the zone that a node is in; empty if nobody says."""
    return node.metadata.labels.get(ZONE_LABEL, "")


def wanted_frontends(service: Service, node_ports: Iterable[Address] = ()) -> Iterator[WantedFrontend]:
    """Yield the frontends that clients in the cluster use of a Service; none if it is not for us.

    `node_ports` are the node's addresses with which node ports are served.
    """
    if not is_served(service):
        return
    seen: set[Address] = set()
    local = service.spec.internal_traffic_policy == "Local"
    yield from _frontends("cluster", service.cluster_addresses, seen, service, local=local)
    yield from _of_outside(service, node_ports, seen, local=False)


def outside_frontends(service: Service, node_ports: Iterable[Address] = ()) -> Iterator[WantedFrontend]:
    """Yield the frontends behind which clients outside find others than who is in the cluster: of this node only.

    `node_ports` are the node's addresses with which node ports are served.
    """
    if service.spec.external_traffic_policy == "Local":
        yield from frontends_from_outside(service, node_ports)


def frontends_from_outside(service: Service, node_ports: Iterable[Address] = ()) -> Iterator[WantedFrontend]:
    """Yield all frontends that are for clients outside, whoever is behind them.

    `node_ports` are the node's addresses with which node ports are served.
    """
    if is_served(service):
        local = service.spec.external_traffic_policy == "Local"
        yield from _of_outside(service, node_ports, set(service.cluster_addresses), local=local)


def fence_of(service: Service) -> tuple[str, ...]:
    """Return the networks from which clients outside may come to a Service's load balancers; none: everywhere."""
    return tuple(sorted({text.strip() for text in service.spec.load_balancer_source_ranges}))


def is_served(service: Service) -> bool:
    """Tell whether a Service is for us, and more than a name."""
    return not (service.is_others or service.is_headless or service.spec.type == "ExternalName")


def _of_outside(
    service: Service, node_ports: Iterable[Address], seen: set[Address], *, local: bool
) -> Iterator[WantedFrontend]:
    balancers = tuple(_balancers(service))
    yield from _frontends("load balancer", balancers, seen, service, local=local)
    external = tuple(map(parse_legacy_address, service.spec.external_ips))
    yield from _frontends("external", external, seen, service, local=local)
    if service.spec.type in ("NodePort", "LoadBalancer"):
        versions = {address.version for address in service.cluster_addresses}
        for address in node_ports:
            for port in service.spec.ports if address.version in versions else ():
                number = PROTOCOLS.get(port.protocol)
                if number is not None and port.node_port:
                    key = FrontendKey(packed(address), number, port.node_port)
                    yield WantedFrontend(key, port, address.version, local, "node port")


def _frontends(
    kind: str, addresses: Iterable[Address], seen: set[Address], service: Service, *, local: bool
) -> Iterator[WantedFrontend]:
    """Yield a frontend for each port at addresses that were not seen yet."""
    for address in addresses:
        if address in seen:
            continue
        seen.add(address)
        for port in service.spec.ports:
            number = PROTOCOLS.get(port.protocol)
            if number is not None:
                key = FrontendKey(packed(address), number, port.port)
                yield WantedFrontend(key, port, address.version, local, kind)


def _balancers(service: Service) -> Iterator[Address]:
    if service.spec.type == "LoadBalancer":
        for one in service.status.load_balancer.ingress:
            if one.ip and one.ip_mode != "Proxy":
                yield parse_legacy_address(one.ip)


def _usable(port: ServicePort, used: Iterable[Candidate]) -> Iterator[tuple[bytes, int]]:
    for one in used:
        if serves(port, one):
            yield one.address, one.port


def serves(port: ServicePort, one: Candidate) -> bool:
    """Tell whether the data path can lead there.

    SCTP's checksum is over its ports and all data (RFC 9260), so a port of SCTP is not translated.
    """
    return port.protocol != "SCTP" or one.port == port.port


def summary(entries: Entries) -> Mapping[FrontendKey, tuple[tuple[bytes, int], ...]]:
    """Return what connections to each frontend may reach, whatever the numbers are; for tests and for people."""
    found = {}
    for key, frontend in entries.frontends.items():
        count = entries.choices.get((frontend.backends, 0), 0)
        numbers = [entries.choices[frontend.backends, place] for place in range(1, count + 1)]
        found[key] = tuple(sorted((entries.backends[one].address, entries.backends[one].port) for one in numbers))
    return found
