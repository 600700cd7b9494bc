"""Which nodes tell the world of which Services' addresses. Pure.

An address that a Service has of a pool for Services is told of by nodes that take its packets to an endpoint: all
of them with `externalTrafficPolicy: Cluster` while the Service has an endpoint that is used, with Local those that
have a ready one themselves (which a load balancer's health check says, too: KEP-1669). Of these a pool's
`nodeSelector` and the label EXCLUDED leave out some, and so does what it takes to tell: a BGP peer outside, or a
place in the segment whose subnet the address is of. There one node answers for it: the first by rendezvous
hashing, so that all agree without a word, and one that goes leaves the others' addresses where they are.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from podway.api.addresses import Address, Network, host_network
from podway.api.fields import parse_legacy_address
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.ip_pool import Advertise, IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import INTERFACE_ADDRESSES, Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.services.endpoints import Offer, candidates, offer_of_slice, offers_of_pods, selects
from podway.services.outside import ServiceName, is_of_our_class, pool_of

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
"""The label by which a node says that load balancers are to leave it out, whatever its value (KEP-1143)."""


TURNS = 8
"""How many nodes of a segment take turns for an address at most: each of them watches the others."""


class Reach(msgspec.Struct, frozen=True):
    """An address of a Service, and the nodes that tell of it, by name.

    On a segment the first of them does that lives.
    """

    service: ServiceName
    address: Address
    pool: str
    advertise: Advertise
    nodes: tuple[str, ...] = ()


class _Way(msgspec.Struct, frozen=True):
    """Of an address what does not follow from which nodes there are. `led` are the names of the nodes that lead
    packets to an endpoint; None stands for all."""

    service: ServiceName
    address: Address
    pool: IPPool
    led: frozenset[str] | None


_About = TypeVar("_About", bound="_Way | Reach")


class _Tellers:
    """Which nodes may tell of a pool's addresses by BGP: found once for all its addresses.

    Thousands of addresses share one tuple of thousands of names, so whether they have the same is seen at once.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], tuple[str, ...]] = {}

    def of(self, view: ClusterView, pool: IPPool, version: int) -> tuple[str, ...]:
        """Return the nodes, by name, that may tell of addresses of this IP version."""
        about = (pool.metadata.name, version)
        if about not in self._of:
            self._of[about] = tuple(name for name in view.nodes if _speaks(view, name, version, pool))
        return self._of[about]

    def renew(self, view: ClusterView) -> None:
        """Look again, since nodes changed; a tuple that would be the same stays."""
        former, self._of = self._of, {}
        for (name, version), before in former.items():
            if self.of(view, view.service_pools[name], version) == before:
                self._of[name, version] = before


def reaches(view: ClusterView, service: Service) -> Iterator[Reach]:
    """Yield each address of a Service that nodes are to tell of, with who does; of no other pools' addresses."""
    tellers = _Tellers()
    return (_reach(view, way, tellers) for way in _ways(view, service))


def all_reaches(view: ClusterView) -> Iterator[Reach]:
    """Yield what `reaches` yields of all Services."""
    tellers = _Tellers()
    return (_reach(view, way, tellers) for way in _all_ways(view))


def _ways(view: ClusterView, service: Service) -> Iterator[_Way]:
    if not is_of_our_class(service) or service.is_others:
        return
    pools = view.service_pools.values()
    for one in service.status.load_balancer.ingress:
        address = parse_legacy_address(one.ip) if one.ip and one.ip_mode != "Proxy" else None
        pool = pool_of(address, pools) if address else None
        if address is not None and pool is not None:
            yield _Way(_name(service), address, pool, _led(view, service, address.version))


def _all_ways(view: ClusterView) -> Iterator[_Way]:
    for service in view.namespaced_table(Service).select("given", True) if view.service_pools else ():
        yield from _ways(view, service)


def advertised(reaches: Iterable[Reach], pools: Mapping[str, IPPool], node: str) -> frozenset[Network]:
    """Return what a node tells by BGP: addresses, or whole pools."""
    return frozenset(
        pools[one.pool].network if one.advertise == "pool" else host_network(one.address)
        for one in reaches
        if one.advertise != "layer2" and _has(one.nodes, node)
    )


class Told:
    """Who tells of which addresses in a cluster of these objects."""

    def __init__(self, objects: Iterable[Resource]) -> None:
        self._reaches = _by_service(all_reaches(ClusterView.of(objects)))

    def of(self, service: Service) -> tuple[Reach, ...]:
        """Return the addresses of a Service that nodes are to tell of, and which do."""
        return self._reaches.get(_name(service), ())


def summary(reaches: Iterable[Reach]) -> str:
    """Return in a few words who tells of a Service's addresses: `node1 + 2 more (BGP)`, `node2 (layer 2)`."""
    found = dict.fromkeys(
        f"{shown} ({'layer 2' if one.advertise == 'layer2' else 'BGP'})"
        for one in reaches
        if (shown := _few(one.nodes[:1] if one.advertise == "layer2" else one.nodes))
    )
    return ", ".join(found) or "-"


def lines(reaches: Iterable[Reach]) -> Iterator[str]:
    """Yield for people who tells of each address."""
    for one in reaches:
        text = f"{one.address} of IPPool/{one.pool}"
        if not one.nodes:
            yield f"{text}: nobody"
        elif one.advertise == "layer2":
            others = f", then {_few(one.nodes[1:])}" if one.nodes[1:] else ""
            yield f"{text}: {one.nodes[0]} answers ARP and neighbour discovery{others}"
        else:
            whole = ", the whole pool" if one.advertise == "pool" else ""
            yield f"{text}: {_few(one.nodes)} by BGP{whole}"


def _few(nodes: Sequence[str]) -> str:
    more = f" + {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"{', '.join(nodes[:3])}{more}"


class Advertising:
    """Who tells of which addresses, kept in step with the cluster: a change costs what it is about.

    One of a node has each address asked whether that alters its own; no endpoint is looked at again for it.
    """

    def __init__(self) -> None:
        self._view: ClusterView | None = None
        self._tellers = _Tellers()
        self._ways: dict[ServiceName, tuple[_Way, ...]] = {}
        self._reaches: dict[ServiceName, tuple[Reach, ...]] = {}
        self._missed = True
        """Whether there were changes that were not looked at."""

    @property
    def known(self) -> bool:
        """Whether it is known who tells of what: not before Services and their endpoints are listed."""
        return self._view is not None

    @property
    def reaches(self) -> Iterator[Reach]:
        """Each address that is to be told of."""
        for found in self._reaches.values():
            yield from found

    def networks(self, node: str) -> frozenset[Network] | None:
        """Return what a node tells by BGP; None as long as it is not known."""
        return None if self._view is None else advertised(self.reaches, self._view.service_pools, node)

    def partners(self, node: str) -> frozenset[str]:
        """Return the nodes with which one takes turns to answer on its segment."""
        turns = (one.nodes for one in self.reaches if one.advertise == "layer2" and node in one.nodes)
        return frozenset(name for names in turns for name in names) - {node}

    def answered(self, node: str, dead: Collection[str]) -> frozenset[Address]:
        """Return the addresses for which a node answers on its segment while others are dead."""
        return frozenset(
            one.address
            for one in self.reaches
            if one.advertise == "layer2" and node == next((name for name in one.nodes if name not in dead), None)
        )

    def answerable(self, node: str) -> frozenset[Address]:
        """Return the addresses for which a node may answer, now or when others are dead."""
        return frozenset(one.address for one in self.reaches if one.advertise == "layer2" and node in one.nodes)

    def follow(self, view: ClusterView, changes: Iterable[Change[Any]]) -> bool:
        """Take a newer view, to which these changes led; tell whether anything is told otherwise by anybody."""
        if view.unsettled or (view.serves and view.unserved):
            self._missed = True
            return False  # what is told goes on
        first, self._view = self._view is None, view
        changes = tuple(changes)
        if self._missed or _alters_all(changes):
            before, self._reaches, self._missed = self._reaches, {}, False
            self._tellers = _Tellers()
            self._ways = _by_service(_all_ways(view)) if view.serves else {}
            for name, ways in self._ways.items():
                self._reaches[name] = tuple(_reach(view, way, self._tellers) for way in ways)
            return first or self._reaches != before
        if not view.serves or not view.service_pools:
            return False
        moved = self._settle_nodes(view, frozenset(_moved(changes)))
        altered = {name for name in self._concerned(view, changes) if self._settle(view, name)}
        return moved or bool(altered)

    def _settle(self, view: ClusterView, name: ServiceName) -> bool:
        service = view.namespaced_table(Service).get(name)
        ways = tuple(_ways(view, service)) if service is not None else ()
        if ways == self._ways.get(name, ()):
            return False
        if not ways:
            del self._ways[name]
            return bool(self._reaches.pop(name))
        self._ways[name], before = ways, self._reaches.get(name)
        self._reaches[name] = tuple(_reach(view, way, self._tellers) for way in ways)
        return self._reaches[name] != before

    def _settle_nodes(self, view: ClusterView, names: frozenset[str]) -> bool:
        """Have each address told of as it is to be since these nodes changed."""
        if not names:
            return False
        self._tellers.renew(view)
        altered = False
        for name, before in self._reaches.items():
            pairs = zip(self._ways[name], before, strict=True)
            found = tuple(_reach_after(view, way, reach, names, self._tellers) for way, reach in pairs)
            if any(one is not other for one, other in zip(found, before, strict=True)):
                self._reaches[name], altered = found, True
        return altered

    def _concerned(self, view: ClusterView, changes: Iterable[Change[Any]]) -> set[ServiceName]:
        names: set[ServiceName] = set()
        for change in changes:
            for one in (change.old, change.new):
                match one:
                    case Service() if one.spec.type == "LoadBalancer":
                        names.add(_name(one))
                    case EndpointSlice():
                        names.update(self._balanced(view).intersection([one.service]))
                    case Pod():
                        names.update(self._selecting(view, one))
                    case _:
                        pass
        return names

    def _balanced(self, view: ClusterView) -> frozenset[ServiceName]:
        return view.namespaced_table(Service).names("given", True)

    def _selecting(self, view: ClusterView, pod: Pod) -> Iterator[ServiceName]:
        services = view.namespaced_table(Service)
        for name in self._balanced(view):
            if name[0] == pod.metadata.namespace and selects(services[name], pod):
                yield name


def _alters_all(changes: Iterable[Change[Any]]) -> bool:
    return any(
        change.kind in (IPPool.KIND, NetworkConfig.KIND, BGPPeer.KIND) and not change.only_status
        for change in changes
    )


def _moved(changes: Iterable[Change[Any]]) -> Iterator[str]:
    """Yield the names of the nodes of which something changed that decides on what they tell."""
    for change in changes:
        if change.kind == Node.KIND and _place(change.old) != _place(change.new):
            yield change.key[2]


def _place(node: Node | None) -> tuple[Any, ...] | None:
    return (node.metadata.labels, node.metadata.annotations.get(INTERFACE_ADDRESSES)) if node else None


def _by_service(every: Iterable[_About]) -> dict[ServiceName, tuple[_About, ...]]:
    found: dict[ServiceName, tuple[_About, ...]] = {}
    for one in every:
        found[one.service] = (*found.get(one.service, ()), one)
    return found


def _name(service: Service) -> ServiceName:
    return (service.metadata.namespace, service.metadata.name)


def _reach(view: ClusterView, way: _Way, tellers: _Tellers) -> Reach:
    """Return which nodes tell of an address; on a segment in the order of their turns."""
    if way.pool.spec.advertise == "layer2":
        names = (name for name in _present(view, way.led) if _may_answer(view, name, way))
        nodes = tuple(sorted(names, key=lambda name: _turn(name, way.address))[:TURNS])
    else:
        nodes = tellers.of(view, way.pool, way.address.version)
        if way.led is not None:
            nodes = tuple(name for name in sorted(way.led) if _has(nodes, name))
    return Reach(way.service, way.address, way.pool.metadata.name, way.pool.spec.advertise, nodes)


def _reach_after(view: ClusterView, way: _Way, reach: Reach, names: frozenset[str], tellers: _Tellers) -> Reach:
    """Return what `_reach` does after nothing changed but nodes of these names; the same object if it is so."""
    if way.led is not None and names.isdisjoint(way.led):
        return reach
    if reach.advertise != "layer2":
        if way.led is None:
            nodes = tellers.of(view, way.pool, way.address.version)
            return reach if nodes is reach.nodes else msgspec.structs.replace(reach, nodes=nodes)
        found = _reach(view, way, tellers)
        return reach if found == reach else found
    leading = names if way.led is None else names & way.led  # without an endpoint nobody answers
    may = {name for name in _present(view, leading) if _may_answer(view, name, way)}
    was = names.intersection(reach.nodes)
    if was - may:  # those that are behind in the order move up
        return _reach(view, way, tellers)
    if may == was:
        return reach
    order = sorted((*reach.nodes, *(may - was)), key=lambda name: _turn(name, way.address))[:TURNS]
    return reach if tuple(order) == reach.nodes else msgspec.structs.replace(reach, nodes=tuple(order))


def leading(view: ClusterView, service: Service, version: int) -> list[str]:
    """Return the nodes, by name, that lead what comes from outside to an endpoint of a Service."""
    return _present(view, _led(view, service, version))


def _present(view: ClusterView, led: frozenset[str] | None) -> list[str]:
    return list(view.nodes) if led is None else sorted(led & view.nodes.keys())


def _led(view: ClusterView, service: Service, version: int) -> frozenset[str] | None:
    every = [one for port in service.spec.ports for one in candidates(port, version, _offers(view, service))]
    if service.spec.external_traffic_policy == "Local":
        return frozenset(one.node for one in every if one.ready and not one.terminating)
    return None if any(one.ready or one.last_resort for one in every) else frozenset()


def _may_tell(view: ClusterView, name: str, pool: IPPool) -> bool:
    labels, selector = view.nodes[name].metadata.labels, pool.spec.node_selector
    return EXCLUDED not in labels and (selector is None or selector.matches(labels))


def _may_answer(view: ClusterView, name: str, way: _Way) -> bool:
    """Tell whether a node is on the segment that an address is of."""
    address, places = way.address, view.nodes[name].interface_addresses
    here = any(address.version == one.version and address in one.network for one in places)
    return here and _may_tell(view, name, way.pool)


def _speaks(view: ClusterView, name: str, version: int, pool: IPPool) -> bool:
    """Tell whether a node has a peer outside that hears of addresses of an IP version."""
    labels = view.nodes[name].metadata.labels
    peers = view.peers.values()
    return _may_tell(view, name, pool) and any(
        peer.family == version and peer.speaks_with(name, labels) for peer in peers
    )


def _has(names: Sequence[str], name: str) -> bool:
    """Tell whether a name is among others that are in their order."""
    at = bisect_left(names, name)
    return at < len(names) and names[at] == name


def _turn(node: str, address: Address) -> bytes:
    """Return by what nodes are ordered for an address (rendezvous hashing): whoever asks computes the same."""
    return hashlib.sha256(f"{address} {node}".encode()).digest()


def _offers(view: ClusterView, service: Service) -> list[Offer]:
    pieces = view.namespaced_table(EndpointSlice).select("service", _name(service))
    if not pieces:
        return list(offers_of_pods(service, view.namespaced_table(Pod).values()))
    return [offer for piece in pieces if (offer := offer_of_slice(piece)) is not None]
