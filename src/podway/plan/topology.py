"""Which nodes have sessions with each other, and how a cluster goes from one such topology to another.

In a full mesh every node has a session with every other: N * (N - 1) / 2 of them, each with BGP's and BFD's
timers. With route reflectors (RFC 4456) every node has sessions with the reflectors only, and these pass on
what each tells.

Topologies are exchanged make before break, without a coordinator. Every agent opens the sessions of the new
one and keeps those of the former, and a reflector goes on reflecting, until all nodes say (BGP_READY) that
they have what the new one needs. What stands is read from the running BIRD's configuration (`Standing`), so
an agent that is restarted meanwhile goes on where it was. The same holds for a pool that BGP is to tell no
more: it is told until all nodes are ready. A node that cannot say so leaves more sessions than needed, never
fewer.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Network
from podway.api.resources import BGP_READY, Node
from podway.cluster.view import ClusterView
from podway.plan.reflectors import reflectors

Kind: TypeAlias = Literal["mesh", "reflectors", "none"]


class Topology(msgspec.Struct, frozen=True):
    """Who speaks with whom. `name` differs wherever two clusters need different sessions or pools of BGP."""

    kind: Kind
    reflectors: frozenset[str]
    name: str

    def joins(self, one: str, other: str) -> bool:
        """Tell whether two different nodes have a session."""
        match self.kind:
            case "mesh":
                return True
            case "reflectors":
                return one in self.reflectors or other in self.reflectors
            case "none":
                return False


class Standing(msgspec.Struct, frozen=True):
    """What a node's BIRD does already: nodes it has sessions with, whether it reflects, and the pools it tells."""

    nodes: frozenset[str] = frozenset()
    reflects: bool = False
    pools: frozenset[Network] = frozenset()


def topology(view: ClusterView) -> Topology:
    """Return the topology that a cluster's settings ask for.

    Nodes of different AS are joined by a mesh, whatever their number: reflectors serve one AS.
    """
    bgp = view.config.bgp
    kind: Kind = "mesh" if bgp.topology == "auto" else bgp.topology
    many = bgp.topology == "auto" and len(view.nodes) > bgp.mesh_limit
    chosen: frozenset[str] = frozenset()
    if (many or kind == "reflectors") and _one_as(view):
        kind, chosen = "reflectors", reflectors(view.nodes.values(), bgp.reflectors)
    elif kind == "reflectors":
        kind = "mesh"
    told = sorted(str(pool.network) for pool in view.pools.values() if pool.spec.distribution == "bgp")
    digest = hashlib.sha256(repr((kind, sorted(chosen), told)).encode()).hexdigest()
    return Topology(kind, chosen, f"{kind}-{digest[:12]}")


def _one_as(view: ClusterView) -> bool:
    own = {node.asn for node in view.nodes.values()}
    return len(own) == 1 or own == {None, view.config.bgp.asn}


def asn_of(view: ClusterView, node: Node) -> int:
    """Return a node's AS number: its own, else the cluster's."""
    own = node.asn
    return view.config.bgp.asn if own is None else own


def unready(view: ClusterView, target: Topology) -> Iterator[str]:
    """Yield the nodes that do not say that they have the sessions which a topology needs."""
    for name, node in view.nodes.items():
        if node.metadata.annotations.get(BGP_READY) != target.name:
            yield name
