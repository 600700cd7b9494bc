"""Who a node speaks BGP with, and which routes may pass.

Each family has sessions of its own between the nodes' addresses of that family, so next hops, source addresses
and failures never cross families. Every node advertises its own blocks; only reflectors pass on what another
node has told (podway.plan.topology), and nobody what an outside peer has told.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address

import msgspec

from podway.api.addresses import Address, Family, Network, collapsed
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.cluster.view import ClusterView
from podway.errors import InvalidObject
from podway.plan.fabric import OverlayNextHop, overlay_next_hops, share_subnet
from podway.plan.outside import MAX_NAME, OutsidePeer, outside_peers
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


class BgpPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one node's BGP speaker must know. `addresses` holds the node's own, one a family.

    `pools` are distributed by BGP; a disabled one counts, since pods may still live in it. `ours` are the ranges
    of all pools and the nodes' own networks, of which outside peers may tell nothing but blocks (empty if there
    are no such peers). `services` are Services' addresses, and ranges of them, that outside peers are told of
    (None: there are no such peers, or no such addresses). `reflectors` are all nodes that reflect. `topology` is
    the name of what the cluster's settings ask for, and `waits_for` names the nodes for whose sake something of a
    former topology is kept.
    `overlay_next_hops` says which next hops are reached by which overlay next hop, for each pool that has any.
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
    peers: tuple[BgpPeer, ...]
    outside: tuple[OutsidePeer, ...] = ()
    reflects: bool = False
    reflectors: frozenset[str] = frozenset()
    topology: str = ""
    waits_for: tuple[str, ...] = ()
    bfd: Bfd
    nodes_bfd: bool = True
    partners: tuple[Address, ...] = ()
    overlay_next_hops: Mapping[Network, Mapping[Address, OverlayNextHop]] = {}
    subnets: tuple[Network, ...] = ()
    uplink: str = ""

    @property
    def watched(self) -> tuple[Address, ...]:
        """The addresses of partners for which there is no BFD besides."""
        noticed = {peer.address for peer in self.peers} if self.nodes_bfd else set()
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
    """Return a node's BGP plan. Raises InvalidObject if the node is not in the cluster.

    `running` is what its BIRD does already: nothing of that ends before all nodes are ready for what comes.
    `target` saves the work of finding the view's topology; `only` leaves out all nodes but these. Without an
    `uplink` the plan says nothing of the node's devices. `services` are Services' addresses, and ranges of them,
    that the node is to tell of; None says that it is not known yet, and then it goes on with those of `running`.
    `partners` are nodes that take this one's place, or whose place it takes: it has to notice when they die.
    """
    own = view.nodes.get(node)
    if own is None:
        raise InvalidObject(
            f"Node/{node}", "", "is not in the cluster", hint="The agent registers its node when it starts."
        )
    target = target or topology(view)
    told_of = (running.services if running else ()) if services is None else services
    known_by = running.router_id if running else None
    waits_for = tuple(sorted(unready(view, target))) if running else ()
    if running is None or not waits_for:
        running = RunningTopology()
    others = view.nodes if only is None else {name: view.nodes[name] for name in only if name in view.nodes}
    outside = tuple(outside_peers(view, node))
    addresses = [address for family in Family if (address := own.internal_address(family))]
    versions = {address.version for address in addresses}
    pools = [pool for pool in _pools(view, running) if pool.network.version in versions]
    pools.sort(key=lambda pool: (pool.network.version, pool.network))
    told = [family for family in Family if any(pool.network.version == family for pool in pools)]
    bgp = view.config.bgp
    peers = tuple(_sessions(view, own, others, target, running, told))
    return BgpPlan(
        node=node,
        router_id=_router_id(view, own, known_by),
        asn=asn_of(view, own),
        port=bgp.port,
        addresses=tuple(addresses),
        pools=tuple(pools),
        ours=tuple(_ours(view)) if outside else (),
        services=_services(view, versions, told_of) if outside else None,
        peers=peers,
        outside=outside,
        reflects=node in target.reflectors or running.reflects,
        reflectors=target.reflectors,
        topology=target.name,
        waits_for=waits_for if any(_kept(view, own, target, running, peers)) else (),
        bfd=Bfd(bgp.bfd_interval, bgp.bfd_multiplier),
        nodes_bfd=bgp.bfd,
        partners=tuple(sorted(filter(None, (partner_address(view, node, name) for name in partners)), key=str)),
        overlay_next_hops=overlay_next_hops(
            view, node, others, {pool.network for pool in pools}, uplink.mtu if uplink else 0
        ),
        subnets=uplink.subnets if uplink else (),
        uplink=uplink.device if uplink else "",
    )


def partner_address(view: ClusterView, node: str, partner: str) -> Address | None:
    """Return by which address a node notices another one's death; None if they share no family."""
    own, other = view.nodes.get(node), view.nodes.get(partner)
    if own is None or other is None:
        return None
    shared = [family for family in Family if own.internal_address(family) and other.internal_address(family)]
    return other.internal_address(shared[0]) if shared else None


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
    subnets = {interface.network for node in view.nodes.values() for interface in node.interface_addresses}
    ranges = subnets | {pool.network for pool in view.table(IPPool).values()}
    yield from collapsed(ranges)


def _sessions(
    view: ClusterView,
    own: Node,
    others: Mapping[str, Node],
    target: Topology,
    running: RunningTopology,
    families: Sequence[Family],
) -> Iterator[BgpPeer]:
    # In a large mesh this is where planning takes its time.
    here = own.metadata.name
    ways = [(family, f".{family.label.lower()}") for family in families if own.internal_address(family)]
    for name in sorted(others):
        wanted = name != here and target.joins(here, name)
        if not wanted and name not in running.nodes:
            continue
        node = others[name]
        for family, ending in ways:
            address = node.internal_address(family)
            if address is not None:
                session = name + ending if len(name) + len(ending) <= MAX_NAME else str(address)
                direct = not own.interface_addresses or share_subnet(own, node, family)
                yield BgpPeer(session, name, address, asn_of(view, node), direct, not wanted, name in own.lost)


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
