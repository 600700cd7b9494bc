"""Nodes as the map shows them: where they stand, how they are, and how they reach each other. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from podway.api.columns import Cluster
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.errors import AgentError

SMALL = 48
"""Up to so many nodes, the routes and sessions of all are shown at once; of more, those of one that is chosen."""

State: TypeAlias = Literal["well", "trouble", "silent", "unknown"]
"""`silent`: its agent does not answer, or shows no life; `unknown`: nobody asked it yet."""

_AGENT = next(column for column in Node.COLUMNS if column.header == "AGENT")


class Shown(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what is sent to the browser: camelCase in JSON."""


class ShownNode(Shown, frozen=True):
    """A node. `agent` is the word of `podway get nodes`; `problems` are in words. Times are seconds since 1970."""

    name: str
    rack: str
    addresses: tuple[str, ...]
    agent: str
    state: State
    problems: tuple[str, ...]
    accepts: tuple[str, ...]
    sends: tuple[str, ...]
    blocks: tuple[str, ...]
    pods: int
    established: int = 0
    sessions: int = 0
    version: str = ""
    started: float = 0.0
    device: str = ""
    mtu: int = 0
    memory: int = 0
    data_path: str = ""


class Session(Shown, frozen=True):
    """One BGP session as one node sees it; `node` is empty for an outside `peer`."""

    on: str
    name: str
    node: str
    peer: str
    role: str
    address: str
    asn: int
    state: str
    since: str
    last_error: str = ""
    bfd: str = ""
    imported: int = 0
    exported: int = 0


class Way(Shown, frozen=True):
    """How one node reaches another's blocks: so many routes, of which so many are in the kernel."""

    source: str
    target: str
    encapsulation: str
    protocol: str
    routes: int
    in_kernel: int


class Pool(Shown, frozen=True):
    """A pool of addresses, and how many blocks of it nodes own."""

    name: str
    cidr: str
    encapsulation: str
    distribution: str
    blocks: int


class Network(Shown, frozen=True):
    """The whole map. `whole` tells whether ways and sessions of all nodes are in it."""

    nodes: tuple[ShownNode, ...]
    pools: tuple[Pool, ...]
    sessions: tuple[Session, ...]
    ways: tuple[Way, ...]
    whole: bool
    data_path: str
    pods: int
    rejected: tuple[str, ...]


def network(
    cluster: Cluster, status: Mapping[str, Any], routes: Mapping[str, Any], rejected: Iterable[str] = ()
) -> Network:
    """Return the map of a cluster; `status` and `routes` are what agents answered, by node.

    `rejected` are objects of the store that are no facts, and why, in words.
    """
    blocks: defaultdict[str, list[str]] = defaultdict(list)
    for block in cluster.of(AddressBlock):
        blocks[block.spec.node].append(block.spec.cidr)
    pods = Counter(pod.spec.node_name for pod in cluster.of(Pod))
    nodes = cluster.of(Node)
    shown = tuple(
        shown_node(node, cluster, status.get(node.metadata.name), blocks[node.metadata.name], pods)
        for node in nodes
    )
    owned = Counter(block.spec.pool for block in cluster.of(AddressBlock))
    pools = tuple(
        Pool(
            pool.metadata.name,
            pool.spec.cidr,
            pool.spec.encapsulation,
            pool.spec.distribution,
            owned[pool.metadata.name],
        )
        for pool in cluster.of(IPPool)
        if not pool.for_services
    )
    whole = len(nodes) <= SMALL
    spec = next((one.spec for one in cluster.of(NetworkConfig)), NetworkConfigSpec())
    return Network(
        shown,
        pools,
        tuple(one for node in status for one in sessions(node, status[node])) if whole else (),
        tuple(one for node in routes for one in ways(node, routes[node])) if whole else (),
        whole,
        spec.data_path,
        sum(pods.values()),
        tuple(rejected),
    )


def shown_node(
    node: Node, cluster: Cluster, status: Any, blocks: Sequence[str], pods: Mapping[str, int]
) -> ShownNode:
    """Return a node; `status` is what its agent answered, None if it was not asked."""
    name = node.metadata.name
    agent = _AGENT.text(node, cluster)
    answer = status if isinstance(status, dict) and "error" not in status else None
    problems = troubles(status) if status is not None else ()
    state: State = "well"
    if status is None:
        state = "unknown" if agent == "alive" else "silent"
    elif answer is None:
        state = "silent"
    elif problems:
        state = "trouble"
    told = answer or {}
    peers = told.get("routing", {}).get("peers", ())
    uplink = told.get("uplink", {})
    return ShownNode(
        name,
        node.rack,
        tuple(map(str, node.internal_addresses)),
        agent,
        state,
        problems,
        tuple(sorted(node.accepts)),
        tuple(sorted(node.sends)),
        tuple(blocks),
        pods.get(name, 0),
        sum(peer["state"] == "Established" for peer in peers),
        len(peers),
        told.get("version", ""),
        told.get("started", 0.0),
        uplink.get("device", ""),
        uplink.get("mtu", 0),
        told.get("memory", 0) >> 20 << 20,  # who looks again and again is told of what changed, not of each page
        told.get("data_path", {}).get("in_force", ""),
    )


def troubles(status: Mapping[str, Any]) -> tuple[str, ...]:
    """Return in words what a node's status says is not well; the document is one of `podway status -o json`."""
    return tuple(_troubles(status))


def _troubles(status: Mapping[str, Any]) -> Iterator[str]:
    if "error" in status:
        yield status["error"]
        return
    for part, told in status.items():
        if isinstance(told, dict) and told.get("problem"):
            yield f"{part.replace('_', ' ')}: {told['problem']}"
    rejected = status["store"]["rejected"]
    yield from (f"rejected: {name}: {problem}" for name, problem in rejected.items())
    for peer in status["routing"]["peers"]:
        if peer["state"] != "Established":
            error = f": {peer['last_error']}" if peer.get("last_error") else ""
            yield f"BGP with {peer['node'] or peer.get('peer') or peer['address']} is {peer['state']}{error}"
    yield from (f"the kernel refuses: {words}" for words in status["drift"]["refused"])
    yield from (f"encapsulation: {words}" for words in status["encapsulation"]["problems"])


def sessions(node: str, status: Any) -> Iterator[Session]:
    """Yield the BGP sessions that a node's status tells of."""
    if not isinstance(status, dict) or "error" in status:
        return
    for peer in status["routing"]["peers"]:
        yield Session(
            node,
            peer["name"],
            peer["node"],
            peer.get("peer", ""),
            peer.get("role", "node"),
            str(peer["address"]),
            peer["asn"],
            peer["state"],
            str(peer["since"]),
            peer.get("last_error", ""),
            peer.get("bfd", ""),
            peer.get("imported", 0),
            peer.get("exported", 0),
        )


def ways(node: str, routes: Any) -> Iterator[Way]:
    """Yield how a node reaches the others, by the routes that its agent told."""
    if isinstance(routes, AgentError):
        return
    counts: dict[tuple[str, str, str], list[int]] = {}
    for route in routes:
        if route.get("protocol") != "own" and route.get("node"):
            entry = counts.setdefault(
                (route["node"], route.get("encapsulation", "none"), route["protocol"]), [0, 0]
            )
            entry[0] += 1
            entry[1] += bool(route["in_kernel"])
    for (target, encapsulation, protocol), (total, held) in counts.items():
        yield Way(node, target, encapsulation, protocol, total, held)


class Change(Shown, frozen=True):
    """From a time on a node was so."""

    at: float
    state: State
    words: str


MOST_CHANGES = 50
"""Changes that are remembered of a node."""


class History:
    """How nodes were, ever since the console began to look: what changed, and when it was seen."""

    def __init__(self) -> None:
        self._changes: defaultdict[str, list[Change]] = defaultdict(list)

    def note(self, nodes: Iterable[ShownNode], at: float) -> None:
        """Remember how nodes are at a time."""
        for node in nodes:
            known = self._changes[node.name]
            words = node.problems[0] if node.problems else ""
            if node.state != "unknown" and (
                not known or (known[-1].state, known[-1].words) != (node.state, words)
            ):
                known.append(Change(at, node.state, words))
                del known[:-MOST_CHANGES]

    def of(self, node: str) -> tuple[Change, ...]:
        """Return what changed at a node, oldest first."""
        return tuple(self._changes.get(node, ()))

    @property
    def latest(self) -> tuple[tuple[str, Change], ...]:
        """The latest changes of all nodes, newest first, without what they were at first."""
        every = ((name, one) for name, changes in self._changes.items() for one in changes[1:])
        return tuple(sorted(every, key=lambda pair: -pair[1].at)[:MOST_CHANGES])
