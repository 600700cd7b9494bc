"""Which nodes have sessions with each other, and how a cluster goes from one such topology to another.

In a full mesh every node has a session with every other: N * (N - 1) / 2 of them, each with BGP's and BFD's
timers. With route reflectors (RFC 4456) every node has sessions with the reflectors only, and these pass on
what each tells.

Topologies are exchanged make before break, without a coordinator. Every agent opens the sessions of the new one
and keeps those of the former, and a reflector goes on reflecting, until all nodes say (BGP_READY) that they have
what the new one needs; reflectors that most have lost are not waited for. What stands is read from the running
BIRD's configuration (`RunningTopology`), so an agent that is restarted meanwhile goes on where it was. The same
holds for a pool that BGP is to advertise no more: it is advertised until all nodes are ready. A node that cannot
say so leaves more sessions than needed, never fewer.
"""

import hashlib
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Network
from podway.api.kinds.node import BGP_READY, Node
from podway.cluster.view import ClusterView
from podway.plan.reflectors import Candidates, lost_by

Kind: TypeAlias = Literal["mesh", "reflectors", "none"]


class Topology(msgspec.Struct, frozen=True):
    """Who speaks with whom. `name` differs wherever two clusters need different sessions or pools of BGP.

    `lost` are the reflectors that half of the other nodes, or more, have lost.
    """

    kind: Kind
    reflectors: frozenset[str]
    name: str
    lost: frozenset[str] = frozenset()

    def joins(self, one: str, other: str) -> bool:
        """Tell whether two different nodes have a session."""
        match self.kind:
            case "mesh":
                return True
            case "reflectors":
                return one in self.reflectors or other in self.reflectors
            case "none":
                return False


class RunningTopology(msgspec.Struct, frozen=True):
    """What a node's BIRD does already: nodes it has sessions with, whether it reflects, and the pools it tells,
    and the addresses of Services, and ranges of them.

    `router_id` is the number by which it is known in its sessions, None without a BIRD.
    """

    nodes: frozenset[str] = frozenset()
    reflects: bool = False
    pools: frozenset[Network] = frozenset()
    router_id: IPv4Address | None = None
    services: frozenset[Network] = frozenset()


def topology(view: ClusterView, candidates: Candidates | None = None) -> Topology:
    """Return the topology that a cluster's settings ask for.

    Nodes of different AS are joined by a mesh, whatever their number: reflectors serve one AS. Who asks again and
    again has `candidates`, which follow the view's nodes.
    """
    bgp = view.config.bgp
    kind: Kind = "mesh" if bgp.topology == "auto" else bgp.topology
    many = bgp.topology == "auto" and _too_many(view)
    chosen: frozenset[str] = frozenset()
    if (many or kind == "reflectors") and _one_as(view):
        kind, chosen = "reflectors", (candidates or Candidates()).reflectors(view.nodes, bgp.reflectors)
    elif kind == "reflectors":
        kind = "mesh"
    told = sorted(str(pool.network) for pool in view.pools.values() if pool.spec.distribution == "bgp")
    digest = hashlib.sha256(repr((kind, sorted(chosen), told)).encode()).hexdigest()
    return Topology(kind, chosen, f"{kind}-{digest[:12]}", frozenset(_lost(view, chosen)))


def _too_many(view: ClusterView) -> bool:
    """Tell whether there are too many nodes for a mesh.

    Between the limit and a fifth less what stands stays, as most nodes have said (BGP_READY): a cluster whose size
    swings about the limit does not switch at each node.
    """
    limit, count = view.config.bgp.mesh_limit, len(view.nodes)
    if count > limit or count <= limit - max(1, limit // 5):
        return count > limit
    words = [word for word in view.nodes.indexed("ready") if str(word).startswith("reflectors-")]
    return 2 * sum(view.nodes.count("ready", word) for word in words) > count


def _lost(view: ClusterView, chosen: frozenset[str]) -> Iterator[str]:
    for name in chosen & view.nodes.indexed("lost"):
        if 2 * len(lost_by(view.nodes, str(name)) - {name}) >= len(view.nodes) - 1:
            yield str(name)


def _one_as(view: ClusterView) -> bool:
    texts = view.nodes.indexed("asn")
    own: set[int | None] = {int(str(text)) for text in texts}
    if sum(view.nodes.count("asn", text) for text in texts) < len(view.nodes):
        own.add(None)
    return len(own) == 1 or own == {None, view.config.bgp.asn}


def asn_of(view: ClusterView, node: Node) -> int:
    """Return a node's AS number: its own, else the cluster's."""
    own = node.asn
    return view.config.bgp.asn if own is None else own


def unready(view: ClusterView, target: Topology) -> Iterator[str]:
    """Yield the nodes that do not say that they have the sessions which a topology needs."""
    if view.nodes.count("ready", target.name) == len(view.nodes):
        return
    for name, node in view.nodes.items():
        if node.metadata.annotations.get(BGP_READY) != target.name and name not in target.lost:
            yield name
