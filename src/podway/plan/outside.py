"""Sessions with BGP speakers outside the cluster, such as top-of-rack switches."""

from collections.abc import Iterator
from ipaddress import ip_address

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.peers import Advertisement, BGPPeer, PasswordSource, PrefixRule
from podway.cluster.view import ClusterView

PREFIX = "peer:"
"""What the names of these sessions begin with in BIRD; a node's name cannot contain a colon."""

MAX_NAME = 63
"""BIRD's symbols have at most 64 characters (SYM_MAX_LEN in conf/conf.h)."""


class Prefixes(msgspec.Struct, frozen=True):
    """Prefixes inside a network, of lengths from `shortest` to `longest`, and whether they may pass."""

    network: Network
    shortest: int
    longest: int
    accept: bool


class OutsidePeer(msgspec.Struct, frozen=True, kw_only=True):
    """One session with a BGPPeer. `ttl` is that of our packets, 0 if the peer is on the node's own segment.

    The password is not here: a plan is shown to people.
    """

    name: str
    peer: str
    address: Address
    local: Address
    asn: int
    port: int
    password: PasswordSource | None = None
    bfd: bool = False
    ttl: int = 0
    ttl_security: bool = False
    communities: tuple[tuple[int, ...], ...] = ()
    advertise: Advertisement = "blocks"
    imports: tuple[Prefixes, ...] = ()
    exports: tuple[Prefixes, ...] = ()

    @property
    def family(self) -> Family:
        """The family of the session and of the routes it carries."""
        return Family.of(self.address)


def outside_peers(view: ClusterView, node: str) -> Iterator[OutsidePeer]:
    """Yield a node's sessions, in the order of the objects' names.

    A peer of a family that the node has no address of is left out, and so is one at the address of another.
    """
    here = view.nodes[node]
    taken: set[Address] = set(here.internal_addresses)
    for _, peer in sorted(view.peers.items()):
        own = here.internal_address(peer.family)
        if own is None or peer.address in taken or not peer.speaks_with(node, here.metadata.labels):
            continue
        taken.add(peer.address)
        yield _session(peer, ip_address(peer.spec.source_address) if peer.spec.source_address else own)


def _session(peer: BGPPeer, local: Address) -> OutsidePeer:
    spec, name = peer.spec, PREFIX + peer.metadata.name
    return OutsidePeer(
        name=name if len(name) <= MAX_NAME else f"{PREFIX}{peer.address}",
        peer=peer.metadata.name,
        address=peer.address,
        local=local,
        asn=spec.asn,
        port=spec.port,
        password=spec.password,
        bfd=spec.bfd,
        ttl=spec.multihop,
        ttl_security=spec.ttl_security,
        communities=tuple(tuple(map(int, text.split(":"))) for text in spec.communities),
        advertise=spec.advertise,
        imports=tuple(map(_prefixes, spec.imports)),
        exports=tuple(map(_prefixes, spec.exports)),
    )


def _prefixes(rule: PrefixRule) -> Prefixes:
    return Prefixes(rule.network, *rule.lengths, rule.action == "accept")
