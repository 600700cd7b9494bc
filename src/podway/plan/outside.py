"""Sessions with BGP speakers outside the cluster, such as top-of-rack switches."""

from collections.abc import Iterator, Mapping
from ipaddress import ip_address

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.kinds.bgp_peer import MAX_PREFIXES, Advertisement, BGPPeer, PasswordSource, PrefixRule
from podway.api.kinds.node import Node
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
    max_prefixes: int = MAX_PREFIXES
    imports: tuple[Prefixes, ...] = ()
    exports: tuple[Prefixes, ...] = ()

    @property
    def family(self) -> Family:
        """The family of the session and of the routes it carries."""
        return Family.of(self.address)


def outside_peers(view: ClusterView, node: str) -> Iterator[OutsidePeer]:
    """Yield a node's sessions, in the order of the objects' names.

    A peer of a family that the node has no address of is left out, and so is one at the address of another, or of
    a node: nodes have sessions with each other without it, and BIRD knows a neighbour by its address.
    """
    here = view.nodes[node]
    for peer, obstacle in _wanted(view, here):
        own = here.internal_address(peer.family)
        if own is not None and not obstacle:
            yield _session(peer, ip_address(peer.spec.source_address) if peer.spec.source_address else own)


def left_out(view: ClusterView, node: str) -> Mapping[str, str]:
    """Return the peers that a node ought to have a session with and has none, by name, and why, in words.

    A node's new labels, or addresses, may bring that about, which nobody was asked to allow.
    """
    here = view.nodes.get(node)
    return {peer.metadata.name: why for peer, why in _wanted(view, here) if why} if here else {}


def _wanted(view: ClusterView, here: Node) -> Iterator[tuple[BGPPeer, str]]:
    """Yield a node's peers of its families, in the order of their names, and what keeps it from a session."""
    own = (*here.internal_addresses, *(interface.ip for interface in here.interface_addresses))
    taken: dict[Address, str] = dict.fromkeys(own, f"Node/{here.metadata.name}")
    for name, peer in sorted(view.peers.items()):
        if not peer.speaks_with(here.metadata.name, here.metadata.labels):
            continue
        if here.internal_address(peer.family) is None:
            continue
        nodes = sorted(view.nodes.names("address", str(peer.address)) - {here.metadata.name})
        if nodes:
            yield peer, f"its address, {peer.address}, is that of Node/{nodes[0]}"
        elif peer.address in taken:
            yield peer, f"its address, {peer.address}, is that of {taken[peer.address]} on this node"
        else:
            taken[peer.address] = f"BGPPeer/{name}"
            yield peer, ""


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
        max_prefixes=spec.max_prefixes,
        imports=tuple(map(_prefixes, spec.imports)),
        exports=tuple(map(_prefixes, spec.exports)),
    )


def _prefixes(rule: PrefixRule) -> Prefixes:
    return Prefixes(rule.network, *rule.lengths, rule.action == "accept")
