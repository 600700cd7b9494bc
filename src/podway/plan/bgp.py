"""Who a node speaks BGP with, and which routes may pass.

Each family has sessions of its own between the nodes' addresses of that family, so next hops, source addresses
and failures never cross families. Every node advertises its own blocks; only reflectors pass on what another
node has told (podway.plan.topology), and nobody what an outside peer has told.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import cast

import msgspec

from podway.api.addresses import Address, Family, Network, collapsed
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.cached import cached_property
from podway.cluster.view import ClusterView
from podway.errors import InvalidObject
from podway.plan.fabric import OverlayNextHop, overlay_hops, share_subnet
from podway.plan.outside import MAX_NAME, OutsidePeer, outside_peers
from podway.plan.reflectors import Candidates
from podway.plan.topology import RunningTopology, Topology, asn_of, topology, unready
from podway.plan.uplink import Uplink


class Bfd(msgspec.Struct, frozen=True):
    """How fast a silent neighbour is noticed (RFC 5880): after `interval` times `multiplier` milliseconds."""

    interval: int
    multiplier: int


class BgpPool(msgspec.Struct, frozen=True, order=True):
    """Which prefixes are blocks: those of exactly this length inside the pool."""

    network: Network
    block_prefix: int


class BgpPeer(msgspec.Struct, frozen=True, gc=False):
    """One session: with this node, at this address. `name` is the session's name in BIRD.

    `direct`: the nodes share a subnet. `kept`: it belongs to a former topology, and stands until all nodes are
    ready for the new one. `lost`: it is one with a reflector that this node says it has lost.
    """

    name: str
    node: str
    address: Address
    asn: int
    direct: bool = True
    kept: bool = False
    lost: bool = False

    @property
    def family(self) -> Family:
        """The family of the session and of the routes it carries."""
        return Family.of(self.address)


class BgpSection(msgspec.Struct, frozen=True, gc=False):
    """What one other node makes of a node's plan: the sessions with it, and by what it is reached.

    `overlay_next_hops` are the pool's network, the next hop of routes in it, and the overlay next hop to it.
    """

    peers: tuple[BgpPeer, ...] = ()
    overlay_next_hops: tuple[tuple[Network, Address, OverlayNextHop], ...] = ()


class BgpPlan(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that one node's BGP speaker must know. `addresses` holds the node's own, one a family.

    `pools` are distributed by BGP; a disabled one counts, since pods may still live in it. `ours` are the ranges
    of all pools and the nodes' own networks, of which outside peers may tell nothing but blocks (empty if there
    are no such peers). `services` are Services' addresses, and ranges of them, that outside peers are told of
    (None: there are no such peers, or no such addresses). `reflectors` are all nodes that reflect. `topology` is
    the name of what the cluster's settings ask for, and `waits_for` names the nodes for whose sake something of a
    former topology is kept.
    `sections` are what other nodes make of it, by their names and in the order of these: of one that has no part
    in it there is none, and of one that did not change it is the same object from one plan to the next.
    `subnets` are those of the node on its `uplink`, a device; none where the device is not known. `partners` are
    addresses of nodes on its segment whose death it has to notice, whether it has sessions with them or not.
    """

    node: str
    router_id: IPv4Address
    asn: int
    port: int
    addresses: tuple[Address, ...]
    pools: tuple[BgpPool, ...]
    ours: tuple[Network, ...] = ()
    services: tuple[Network, ...] | None = None
    sections: Mapping[str, BgpSection] = {}
    outside: tuple[OutsidePeer, ...] = ()
    reflects: bool = False
    reflectors: frozenset[str] = frozenset()
    topology: str = ""
    waits_for: tuple[str, ...] = ()
    bfd: Bfd
    nodes_bfd: bool = True
    partners: tuple[Address, ...] = ()
    subnets: tuple[Network, ...] = ()
    uplink: str = ""

    @cached_property
    def peers(self) -> tuple[BgpPeer, ...]:
        """The sessions with other nodes, in the order of their names."""
        return tuple(peer for section in self.sections.values() for peer in section.peers)

    @cached_property
    def overlay_next_hops(self) -> Mapping[Network, Mapping[Address, OverlayNextHop]]:
        """Which next hops are reached by which overlay next hop, for each pool that has any."""
        found: dict[Network, dict[Address, OverlayNextHop]] = {}
        for section in self.sections.values():
            for network, hop, next_hop in section.overlay_next_hops:
                found.setdefault(network, {})[hop] = next_hop
        return found

    @property
    def watched(self) -> tuple[Address, ...]:
        """The addresses of partners for which there is no BFD besides."""
        noticed = {peer.address for peer in self.peers} if self.partners and self.nodes_bfd else set()
        return tuple(address for address in self.partners if address not in noticed)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the node has an address of, IPv4 first."""
        return tuple(Family.of(address) for address in self.addresses)

    def address(self, family: Family) -> Address:
        """Return the node's own address of a family."""
        return next(address for address in self.addresses if address.version == family)


def plan_bgp(
    view: ClusterView,
    node: str,
    running: RunningTopology | None = None,
    *,
    target: Topology | None = None,
    only: Collection[str] | None = None,
    uplink: Uplink | None = None,
    services: Collection[Network] | None = None,
    partners: Collection[str] = (),
) -> BgpPlan:
    """Return a node's BGP plan, of all that is known: see BgpPlanning.plan.

    `target` saves the work of finding the view's topology; `only` leaves out all nodes but these.
    """
    planning = BgpPlanning(node, target, only)
    return planning.plan(view, running, uplink=uplink, services=services, partners=partners)


class BgpPlanning:
    """A node's BGP plan, kept in step with the cluster.

    What another node makes of it is one section, which is planned anew only if that node changed, or the ground of
    all sections: the node's own object, pools, settings, the topology.
    """

    def __init__(self, node: str, target: Topology | None = None, only: Collection[str] | None = None) -> None:
        self._node = node
        self._target = target
        self._only = only
        self._candidates = Candidates()
        self._ground: tuple[object, ...] = ()
        self._reflectors: frozenset[str] = frozenset()
        self._former: frozenset[str] = frozenset()
        """Nodes with which the last plan kept sessions that BIRD had."""
        self._sections: dict[str, BgpSection] = {}

    def plan(
        self,
        view: ClusterView,
        running: RunningTopology | None = None,
        *,
        changed: Collection[str] | None = None,
        uplink: Uplink | None = None,
        services: Collection[Network] | None = None,
        partners: Collection[str] = (),
    ) -> BgpPlan:
        """Return the plan. Raises InvalidObject if the node is not in the cluster.

        `changed` names the nodes whose objects changed since the last plan (None: not known), besides the own one.
        `running` is what the node's BIRD does already: nothing of that ends before all nodes are ready for what
        comes. Without an `uplink` the plan says nothing of the node's devices. `services` are Services' addresses,
        and ranges of them, that the node is to tell of; None says that it is not known yet, and then it goes on
        with those of `running`. `partners` are nodes that take this one's place, or whose place it takes: it has
        to notice when they die.
        """
        node = self._node
        own = view.nodes.get(node)
        if own is None:
            raise InvalidObject(
                f"Node/{node}", "", "is not in the cluster", hint="The agent registers its node when it starts."
            )
        if changed is None:
            self._candidates.forget()
            self._ground = ()
        else:
            self._candidates.follow(view.nodes, {*changed, node})
        target = self._target or topology(view, self._candidates)
        told_of = (running.services if running else ()) if services is None else services
        known_by = running.router_id if running else None
        waits_for = tuple(sorted(unready(view, target))) if running else ()
        if running is None or not waits_for:
            running = RunningTopology()
        outside = tuple(outside_peers(view, node))
        addresses = tuple(address for family in Family if (address := own.internal_address(family)))
        versions = {address.version for address in addresses}
        pools = [pool for pool in _pools(view, running) if pool.network.version in versions]
        pools.sort(key=lambda pool: (pool.network.version, pool.network))
        sections = self._advanced(view, own, target, running, pools, changed or (), uplink.mtu if uplink else 0)
        bgp = view.config.bgp
        plan = BgpPlan(
            node=node,
            router_id=_router_id(view, own, known_by),
            asn=asn_of(view, own),
            port=bgp.port,
            addresses=addresses,
            pools=tuple(pools),
            ours=tuple(_ours(view)) if outside else (),
            services=_services(view, versions, told_of) if outside else None,
            sections=sections,
            outside=outside,
            reflects=node in target.reflectors or running.reflects,
            reflectors=target.reflectors,
            topology=target.name,
            waits_for=waits_for,
            bfd=Bfd(bgp.bfd_interval, bgp.bfd_multiplier),
            nodes_bfd=bgp.bfd,
            partners=_partners(view, node, partners),
            subnets=uplink.subnets if uplink else (),
            uplink=uplink.device if uplink else "",
        )
        if waits_for and not any(_kept(view, own, target, running, plan.peers)):
            plan = msgspec.structs.replace(plan, waits_for=())
        return plan

    def _advanced(
        self,
        view: ClusterView,
        own: Node,
        target: Topology,
        running: RunningTopology,
        pools: Sequence[BgpPool],
        changed: Collection[str],
        mtu: int,
    ) -> Mapping[str, BgpSection]:
        """Return the sections as they are by now, each planned anew of which something else came."""
        networks = frozenset(pool.network for pool in pools)
        joined = target.kind == "mesh" or own.metadata.name in target.reflectors
        words = (own.internal_addresses, own.interface_addresses, own.accepts, own.sends, own.lost)
        ground = (words, joined, target.kind, networks, view.pools, view.config.bgp.asn, mtu)
        section = _Sections(view, own, target, running, networks, mtu)
        sections = dict(self._sections)
        dirty: Iterable[str]
        if ground == self._ground:
            dirty = {*changed, *(target.reflectors ^ self._reflectors), *(running.nodes ^ self._former)}
        else:
            # Where nothing is encapsulated, most nodes have no part in the plan of one that is no reflector.
            dirty = view.nodes if joined or section.encapsulates else target.reflectors | running.nodes
            dirty, sections = dirty if self._only is None else self._only, {}
        self._ground = ()  # what fails to be planned is planned anew
        added = False
        for name in dirty:
            there = view.nodes.get(name)
            planned = section.of(name, there) if there is not None and there is not own else _NONE
            if planned is not _NONE:
                added = added or name not in sections
                sections[name] = planned
            else:
                sections.pop(name, None)
        if added:
            sections = {name: sections[name] for name in sorted(sections)}
        self._ground, self._sections = ground, sections
        self._reflectors, self._former = target.reflectors, running.nodes
        return sections


def partner_address(view: ClusterView, node: str, partner: str) -> Address | None:
    """Return by which address a node notices another one's death; None if they share no family."""
    own, other = view.nodes.get(node), view.nodes.get(partner)
    if own is None or other is None:
        return None
    shared = [family for family in Family if own.internal_address(family) and other.internal_address(family)]
    return other.internal_address(shared[0]) if shared else None


def _partners(view: ClusterView, node: str, partners: Iterable[str]) -> tuple[Address, ...]:
    return tuple(sorted(filter(None, (partner_address(view, node, name) for name in partners)), key=str))


def _services(view: ClusterView, versions: Collection[int], told: Iterable[Network]) -> tuple[Network, ...] | None:
    if not any(pool.spec.advertise != "layer2" for pool in view.service_pools.values()):
        return None
    own = (network for network in told if network.version in versions)
    return tuple(sorted(own, key=lambda network: (network.version, network)))


def _kept(
    view: ClusterView, own: Node, target: Topology, running: RunningTopology, peers: Iterable[BgpPeer]
) -> Iterator[bool]:
    """Yield whether something stands only until all nodes are ready: a session, reflecting, or a pool."""
    yield any(peer.kept for peer in peers)
    yield running.reflects and own.metadata.name not in target.reflectors
    yield any(pool.spec.distribution != "bgp" and pool.network in running.pools for pool in view.pools.values())


def _pools(view: ClusterView, running: RunningTopology) -> Iterator[BgpPool]:
    for pool in view.pools.values():
        if pool.spec.distribution == "bgp" or pool.network in running.pools:
            yield BgpPool(pool.network, pool.block_prefix)


def _ours(view: ClusterView) -> Iterator[Network]:
    subnets = cast("frozenset[Network]", view.nodes.indexed("subnet"))
    yield from collapsed(subnets | {pool.network for pool in view.table(IPPool).values()})


class _Sections:
    """What all sections of one plan have in common."""

    # Plain: in a large cluster it is asked of thousands of nodes.

    def __init__(
        self,
        view: ClusterView,
        own: Node,
        target: Topology,
        running: RunningTopology,
        networks: Collection[Network],
        mtu: int,
    ) -> None:
        self._own, self._target, self._running, self._mtu = own, target, running, mtu
        self._default_asn = view.config.bgp.asn
        families = [family for family in Family if any(network.version == family for network in networks)]
        self._ways = [
            (family, f".{family.label.lower()}") for family in families if own.internal_address(family) is not None
        ]
        self._encapsulated = [
            pool for pool in view.pools.values() if pool.spec.encapsulation != "none" and pool.network in networks
        ]

    @property
    def encapsulates(self) -> bool:
        """Whether any other node may be reached by an overlay next hop."""
        return bool(self._encapsulated)

    def of(self, name: str, there: Node) -> BgpSection:
        """Return another node's section."""
        wanted = self._target.joins(self._own.metadata.name, name)
        sessions = tuple(self._sessions(name, there, wanted)) if wanted or name in self._running.nodes else ()
        hops = tuple(overlay_hops(self._encapsulated, self._own, there, self._mtu)) if self._encapsulated else ()
        return BgpSection(sessions, hops) if sessions or hops else _NONE

    def _sessions(self, name: str, there: Node, wanted: bool) -> Iterator[BgpPeer]:
        own, asn = self._own, there.asn
        for family, ending in self._ways:
            address = there.internal_address(family)
            if address is not None:
                yield BgpPeer(
                    name + ending if len(name) + len(ending) <= MAX_NAME else str(address),
                    name,
                    address,
                    self._default_asn if asn is None else asn,
                    not own.interface_addresses or share_subnet(own, there, family),
                    not wanted,
                    name in own.lost,
                )


_NONE = BgpSection()


def _router_id(view: ClusterView, node: Node, known_by: IPv4Address | None) -> IPv4Address:
    """RFC 6286: any number that is unique in the AS and not 0; the IPv4 address where there is one.

    BIRD begins all sessions anew when it changes, so what BIRD has stays though the node got or lost its IPv4
    address, for as long as that is no other node's.
    """
    if known_by is not None and view.nodes.names("address", str(known_by)) <= {node.metadata.name}:
        return known_by
    address = node.internal_address(Family.IPV4)
    if isinstance(address, IPv4Address):
        return address
    digest = hashlib.sha256(node.metadata.name.encode()).digest()
    return IPv4Address(int.from_bytes(digest[:4], "big") or 1)
