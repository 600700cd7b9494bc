"""Which nodes tell the world of which Services' addresses. Pure.

An address that a Service has of a pool for Services is told of by nodes that take its packets to an endpoint: all
of them with `externalTrafficPolicy: Cluster` while the Service has an endpoint that is used, with Local those that
have a ready one themselves (which a load balancer's health check says, too: KEP-1669). Of these a pool's
`nodeSelector` and the label EXCLUDED leave out some, and so does what it takes to tell: a BGP peer outside, or a
place in the segment whose subnet the address is of. There one node answers for it: the first by rendezvous
hashing, so that all agree without a word, and one that goes leaves the others' addresses where they are.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

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


def reaches(view: ClusterView, service: Service) -> Iterator[Reach]:
    """Yield each address of a Service that nodes are to tell of, with who does; of no other pools' addresses."""
    if not is_of_our_class(service) or service.is_others:
        return
    pools = view.service_pools.values()
    for one in service.status.load_balancer.ingress:
        address = parse_legacy_address(one.ip) if one.ip and one.ip_mode != "Proxy" else None
        pool = pool_of(address, pools) if address else None
        if address is not None and pool is not None:
            nodes = tuple(_nodes(view, service, address, pool))
            yield Reach(_name(service), address, pool.metadata.name, pool.spec.advertise, nodes)


def all_reaches(view: ClusterView) -> Iterator[Reach]:
    """Yield what `reaches` yields of all Services."""
    for service in view.namespaced_table(Service).select("given", True) if view.service_pools else ():
        yield from reaches(view, service)


def advertised(reaches: Iterable[Reach], pools: Mapping[str, IPPool], node: str) -> frozenset[Network]:
    """Return what a node tells by BGP: addresses, or whole pools."""
    return frozenset(
        pools[one.pool].network if one.advertise == "pool" else host_network(one.address)
        for one in reaches
        if one.advertise != "layer2" and node in one.nodes
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
    """Who tells of which addresses, kept in step with the cluster: a change costs what it is about."""

    def __init__(self) -> None:
        self._view: ClusterView | None = None
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
        if self._missed or _alters_all(changes):
            found = {} if not view.serves else _by_service(all_reaches(view))
            changed = first or found != self._reaches
            self._reaches, self._missed = found, False
            return changed
        if not view.serves or not view.service_pools:
            return False
        altered = {name for name in self._concerned(view, changes) if self._settle(view, name)}
        return bool(altered)

    def _settle(self, view: ClusterView, name: ServiceName) -> bool:
        service = view.namespaced_table(Service).get(name)
        found = tuple(reaches(view, service)) if service is not None else ()
        if found == self._reaches.get(name, ()):
            return False
        if found:
            self._reaches[name] = found
        else:
            del self._reaches[name]
        return True

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
        (change.kind in (IPPool.KIND, NetworkConfig.KIND, BGPPeer.KIND) and not change.only_status)
        or (change.kind == Node.KIND and _place(change.old) != _place(change.new))
        for change in changes
    )


def _place(node: Node | None) -> tuple[Any, ...] | None:
    return (node.metadata.labels, node.metadata.annotations.get(INTERFACE_ADDRESSES)) if node else None


def _by_service(every: Iterable[Reach]) -> dict[ServiceName, tuple[Reach, ...]]:
    found: dict[ServiceName, tuple[Reach, ...]] = {}
    for one in every:
        found[one.service] = (*found.get(one.service, ()), one)
    return found


def _name(service: Service) -> ServiceName:
    return (service.metadata.namespace, service.metadata.name)


def _nodes(view: ClusterView, service: Service, address: Address, pool: IPPool) -> list[str]:
    """Return the nodes that tell of a Service's address of a pool; on a segment in the order of their turns."""
    names = [name for name in leading(view, service, address.version) if _may_tell(view, name, address, pool)]
    if pool.spec.advertise != "layer2":
        return names
    return sorted(names, key=lambda name: _turn(name, address))[:TURNS]


def leading(view: ClusterView, service: Service, version: int) -> list[str]:
    """Return the nodes, by name, that lead what comes from outside to an endpoint of a Service."""
    every = [one for port in service.spec.ports for one in candidates(port, version, _offers(view, service))]
    if service.spec.external_traffic_policy == "Local":
        here = {one.node for one in every if one.ready and not one.terminating}
        return sorted(here & view.nodes.keys())
    return list(view.nodes) if any(one.ready or one.last_resort for one in every) else []


def _may_tell(view: ClusterView, name: str, address: Address, pool: IPPool) -> bool:
    node, selector = view.nodes[name], pool.spec.node_selector
    labels = node.metadata.labels
    if EXCLUDED in labels or not (selector is None or selector.matches(labels)):
        return False
    if pool.spec.advertise == "layer2":
        subnets = (interface.network for interface in node.interface_addresses)
        return any(address.version == subnet.version and address in subnet for subnet in subnets)
    return any(peer.family == address.version and peer.speaks_with(name, labels) for peer in view.peers.values())


def _turn(node: str, address: Address) -> bytes:
    """Return by what nodes are ordered for an address (rendezvous hashing): whoever asks computes the same."""
    return hashlib.sha256(f"{address} {node}".encode()).digest()


def _offers(view: ClusterView, service: Service) -> list[Offer]:
    pieces = view.namespaced_table(EndpointSlice).select("service", _name(service))
    if not pieces:
        return list(offers_of_pods(service, view.namespaced_table(Pod).values()))
    return [offer for piece in pieces if (offer := offer_of_slice(piece)) is not None]
