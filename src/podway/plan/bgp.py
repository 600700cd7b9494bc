"""Who a node speaks BGP with, and which routes may pass.

Nodes form a full mesh: every node tells every other about its own blocks, and nobody passes on what
another has told. Each family has sessions of its own between the nodes' addresses of that family, so next
hops, source addresses and failures never cross families.
"""

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.resources import BgpSettings, IPPool, Node
from podway.errors import InvalidObject

PEER_NAME_LENGTH = 63
"""BIRD's symbols have at most 64 characters (SYM_MAX_LEN in conf/conf.h)."""


class Bfd(msgspec.Struct, frozen=True):
    """How fast a silent neighbour is noticed (RFC 5880): after `interval` times `multiplier` milliseconds."""

    interval: int
    multiplier: int


class BgpPool(msgspec.Struct, frozen=True, order=True):
    """Which prefixes are blocks: those of exactly this length inside the pool."""

    network: Network
    block_prefix: int


class BgpPeer(msgspec.Struct, frozen=True, gc=False):
    """One session: with this node, at this address. `name` is the session's name in BIRD."""

    name: str
    node: str
    address: Address
    asn: int

    @property
    def family(self) -> Family:
        """The family of the session and of the routes it carries."""
        return Family.of(self.address)


class BgpPlan(msgspec.Struct, frozen=True):
    """Everything that one node's BGP speaker must know. `addresses` holds the node's own, one a family."""

    node: str
    router_id: IPv4Address
    asn: int
    port: int
    addresses: tuple[Address, ...]
    pools: tuple[BgpPool, ...]
    peers: tuple[BgpPeer, ...]
    bfd: Bfd | None = None

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that are routed, IPv4 first."""
        return tuple(Family.of(address) for address in self.addresses)

    def address(self, family: Family) -> Address:
        """Return the node's own address of a routed family."""
        return next(address for address in self.addresses if address.version == family)


def plan_bgp(name: str, nodes: Sequence[Node], pools: Iterable[IPPool], bgp: BgpSettings) -> BgpPlan:
    """Return the BGP plan of the node called `name`; the order of `nodes` and `pools` does not matter.

    A family is routed if the node has an address and the cluster a pool of it. A disabled pool counts:
    pods may still live in it. Raises InvalidObject if the node is not among `nodes`.
    """
    own = next((node for node in nodes if node.metadata.name == name), None)
    if own is None:
        raise InvalidObject(
            f"Node/{name}", "", "is not in the cluster", hint="The agent registers its node when it starts."
        )
    blocks = {BgpPool(pool.network, pool.block_prefix) for pool in pools}
    families = [
        family
        for family in Family
        if own.internal_address(family) and any(pool.network.version == family for pool in blocks)
    ]
    return BgpPlan(
        node=name,
        router_id=_router_id(own),
        asn=bgp.asn,
        port=bgp.port,
        addresses=tuple(address for family in families if (address := own.internal_address(family))),
        pools=tuple(
            sorted(
                (pool for pool in blocks if Family.of(pool.network) in families),
                key=lambda pool: (pool.network.version, pool.network),
            )
        ),
        peers=tuple(_peers(own, nodes, families, bgp.asn)),
        bfd=Bfd(bgp.bfd_interval, bgp.bfd_multiplier) if bgp.bfd else None,
    )


def _peers(own: Node, nodes: Sequence[Node], families: Sequence[Family], asn: int) -> list[BgpPeer]:
    # Every node has a session with every other: in a large cluster this is where planning takes its time.
    endings = [(family, f".{family.label.lower()}") for family in families]
    peers = []
    for node in sorted(nodes, key=lambda node: node.metadata.name):
        if node is not own:
            name = node.metadata.name
            for family, ending in endings:
                address = node.internal_address(family)
                if address is not None:
                    session = name + ending if len(name) + len(ending) <= PEER_NAME_LENGTH else str(address)
                    peers.append(BgpPeer(session, name, address, asn))
    return peers


def _router_id(node: Node) -> IPv4Address:
    """RFC 6286: any number that is unique in the AS and not 0; the IPv4 address where there is one."""
    address = node.internal_address(Family.IPV4)
    if isinstance(address, IPv4Address):
        return address
    digest = hashlib.sha256(node.metadata.name.encode()).digest()
    return IPv4Address(int.from_bytes(digest[:4], "big") or 1)
