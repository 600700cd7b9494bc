"""What `podway get` can show, and in which columns. A new kind of row is one more entry in VIEWS."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from podway.api.identity import ClusterAuthority
from podway.api.peers import BGPPeer, Secret
from podway.api.resources import (
    AGENT_SEEN,
    AddressBlock,
    IPPool,
    Namespace,
    NetworkConfig,
    Node,
    Pod,
    Resource,
    key,
)
from podway.cli.output import age, age_of

SILENT_AFTER = 30.0
"""Seconds without a sign after which `podway get nodes` doubts that an agent lives: three heartbeats."""


class Cluster:
    """All objects, for columns that look beyond their own row.

    `ask` tells of which nodes agents know already that they are gone (podway.cli.agents.doubts).
    """

    def __init__(self, objects: Iterable[Resource], ask: Callable[[], Mapping[str, str]] = dict) -> None:
        self.objects = tuple(objects)
        self._ask = ask

    @cached_property
    def doubts(self) -> Mapping[str, str]:
        """What agents say of nodes that seem to be gone; asked only if a column shows it."""
        return self._ask()

    @cached_property
    def blocks(self) -> tuple[AddressBlock, ...]:
        """All address blocks."""
        return tuple(obj for obj in self.objects if isinstance(obj, AddressBlock))


@dataclass(frozen=True)
class Column:
    """A column: its header, and how a row's text is made. `wide` columns appear with -o wide only."""

    header: str
    text: Callable[[Any, Cluster], str]
    wide: bool = False


@dataclass(frozen=True)
class View:
    """Rows of one kind: objects of the store, or what the function named by `source` finds out.

    `source` is `module:function`, imported when it is needed; the function takes the GlobalOptions and the
    NAMEs of the command line and returns Structs. `row_kind` is their kind in JSON and YAML.
    """

    names: tuple[str, ...]
    """What people may call it; the first is the usual name."""
    columns: tuple[Column, ...]
    kind: type[Resource] | None = None
    source: str = ""
    row_kind: str = ""
    identity: Callable[[Any], Hashable] = key
    """What makes two rows the same one at two times."""


def _labels(obj: Resource, _: Cluster) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(obj.metadata.labels.items()))


def _node_addresses(node: Node, _: Cluster) -> str:
    return ",".join(map(str, node.internal_addresses))


def _node_subnets(node: Node, _: Cluster) -> str:
    return ",".join(str(interface.network) for interface in node.interface_addresses)


def _node_blocks(node: Node, cluster: Cluster) -> str:
    return ",".join(block.spec.cidr for block in cluster.blocks if block.spec.node == node.metadata.name)


def _agent(node: Node, cluster: Cluster) -> str:
    seen = node.metadata.annotations.get(AGENT_SEEN, "")
    if not seen.isdecimal():
        return "never seen"
    if doubt := cluster.doubts.get(node.metadata.name):
        return doubt
    silence = time.time() - int(seen)
    return "alive" if silence < SILENT_AFTER else f"silent for {age(silence)}"


def _pool_usage(pool: IPPool, cluster: Cluster) -> str:
    blocks = [block for block in cluster.blocks if block.spec.pool == pool.metadata.name]
    nodes = {block.spec.node for block in blocks}
    bits = pool.block_prefix - pool.network.prefixlen
    return f"{len(nodes)}/{len(blocks)} of {f'2^{bits}' if bits > 20 else 2**bits}"


def _pool_form(pool: IPPool, _: Cluster) -> str:
    spec = pool.spec
    always = spec.when == "always" or spec.encapsulation == "none"
    return spec.encapsulation if always else f"{spec.encapsulation} {spec.when}"


def _pool_state(pool: IPPool, _: Cluster) -> str:
    return "disabled" if pool.spec.disabled else "in use"


def _pod_addresses(pod: Pod, _: Cluster) -> str:
    return ",".join(map(str, pod.addresses))


def _peer_nodes(peer: BGPPeer, _: Cluster) -> str:
    return peer.spec.node or ("selected" if peer.spec.node_selector else "all")


def _bfd(config: NetworkConfig, _: Cluster) -> str:
    bgp = config.spec.bgp
    return f"{bgp.bfd_interval}ms x {bgp.bfd_multiplier}" if bgp.bfd else "off"


def _next_hops(route: Any, _: Cluster) -> str:
    ways = ", ".join(f"{hop.gateway} dev {hop.device}".strip() for hop in route.next_hops)
    return ways or ("blackhole" if route.told_by == "own" else "-")


def _told_by(route: Any, _: Cluster) -> str:
    if route.told_by.isdecimal():
        return f"other (proto {route.told_by})"
    return f"{route.told_by} {route.session}".strip() if route.told_by == "bgp" else str(route.told_by)


def _since(row: Any, _: Cluster) -> str:
    return age(time.time() - row.since.timestamp()) if row.since else "-"


NAME = Column("NAME", lambda obj, _: obj.metadata.name)
NAMESPACE = Column("NAMESPACE", lambda obj, _: obj.metadata.namespace)
AGE = Column("AGE", lambda obj, _: age_of(obj.metadata.creation_timestamp))
LABELS = Column("LABELS", _labels, wide=True)

VIEWS: tuple[View, ...] = (
    View(
        ("nodes", "node", "no"),
        (
            NAME,
            Column("ADDRESSES", _node_addresses),
            Column("BLOCKS", _node_blocks),
            Column("AGENT", _agent),
            AGE,
            Column("SUBNETS", _node_subnets, wide=True),
            Column("ACCEPTS", lambda node, _: ",".join(sorted(node.accepts)) or "none", wide=True),
            Column("SENDS", lambda node, _: ",".join(sorted(node.sends)) or "none", wide=True),
            LABELS,
        ),
        Node,
    ),
    View(
        ("pods", "pod", "po"),
        (
            NAMESPACE,
            NAME,
            Column("NODE", lambda pod, _: pod.spec.node_name),
            Column("IPS", _pod_addresses),
            Column("PHASE", lambda pod, _: pod.status.phase),
            AGE,
            LABELS,
        ),
        Pod,
    ),
    View(
        ("pools", "pool", "ippools", "ippool"),
        (
            NAME,
            Column("CIDR", lambda pool, _: pool.spec.cidr),
            Column("BLOCK", lambda pool, _: f"/{pool.block_prefix}"),
            Column("NODES/BLOCKS", _pool_usage),
            Column("ROUTES BY", lambda pool, _: pool.spec.distribution),
            Column("FORM", _pool_form),
            Column("ATTACH", lambda pool, _: pool.spec.attach),
            Column("STATE", _pool_state, wide=True),
            Column("EXCLUDED", lambda pool, _: ",".join(pool.spec.excluded), wide=True),
            LABELS,
        ),
        IPPool,
    ),
    View(
        ("blocks", "block", "addressblocks", "addressblock"),
        (
            Column("CIDR", lambda block, _: block.spec.cidr),
            Column("POOL", lambda block, _: block.spec.pool),
            Column("NODE", lambda block, _: block.spec.node),
            AGE,
            Column("NAME", lambda block, _: block.metadata.name, wide=True),
        ),
        AddressBlock,
    ),
    View(("namespaces", "namespace", "ns"), (NAME, AGE, LABELS), Namespace),
    View(
        ("bgppeers", "bgppeer"),
        (
            NAME,
            Column("ADDRESS", lambda peer, _: peer.spec.address),
            Column("AS", lambda peer, _: str(peer.spec.asn)),
            Column("NODES", _peer_nodes),
            Column("ADVERTISE", lambda peer, _: peer.spec.advertise),
            Column("BFD", lambda peer, _: "on" if peer.spec.bfd else "off"),
            AGE,
            Column("PASSWORD", lambda peer, _: "yes" if peer.spec.password else "no", wide=True),
        ),
        BGPPeer,
    ),
    View(
        ("secrets", "secret"),
        (
            NAMESPACE,
            NAME,
            Column("TYPE", lambda secret, _: secret.type),
            Column("KEYS", lambda secret, _: ",".join(sorted(secret.keys))),
            AGE,
        ),
        Secret,
    ),
    View(
        ("config", "configs", "networkconfig", "networkconfigs"),
        (
            NAME,
            Column("ASN", lambda config, _: str(config.spec.bgp.asn)),
            Column("BFD", _bfd),
            Column("MTU", lambda config, _: str(config.spec.mtu) if config.spec.mtu else "auto"),
            AGE,
        ),
        NetworkConfig,
    ),
    View(
        ("authority", "authorities", "clusterauthority", "clusterauthorities"),
        (
            NAME,
            Column("CLUSTER", lambda authority, _: authority.spec.cluster),
            Column("TRUSTED", lambda authority, _: str(len(authority.spec.authorities))),
            Column("UNTIL", lambda authority, _: f"{authority.spec.authorities[-1].not_after:%Y-%m-%d %H:%M} UTC"),
            AGE,
        ),
        ClusterAuthority,
    ),
    View(
        ("peers", "peer"),
        (
            Column("ON", lambda row, _: row.on),
            Column("PEER", lambda row, _: row.node or row.peer),
            Column("ROLE", lambda row, _: row.role),
            Column("ADDRESS", lambda row, _: row.address),
            Column("AS", lambda row, _: str(row.asn)),
            Column("STATE", lambda row, _: row.state),
            Column("BFD", lambda row, _: row.bfd or "off"),
            Column("SINCE", _since),
            Column("ROUTES", lambda row, _: f"{row.imported} in, {row.exported} out"),
            Column("SESSION", lambda row, _: row.name, wide=True),
            Column("LAST ERROR", lambda row, _: row.last_error),
        ),
        source="podway.cli.agents:peers",
        row_kind="BGPSession",
        identity=lambda row: (row.on, row.name),
    ),
    View(
        ("routes", "route"),
        (
            Column("ON", lambda row, _: row.on),
            Column("BLOCK", lambda row, _: row.network),
            Column("NODE", lambda row, _: row.node or "-"),
            Column("TOLD BY", _told_by),
            Column("FORM", lambda row, _: row.form if row.told_by != "own" else "-"),
            Column("VIA", _next_hops),
            Column("KERNEL", lambda row, _: "yes" if row.in_kernel else "no"),
            Column("SINCE", _since, wide=True),
            Column("POOL", lambda row, _: row.pool or "-", wide=True),
        ),
        source="podway.cli.agents:routes",
        row_kind="Route",
        identity=lambda row: (row.on, row.network),
    ),
)

VIEW_BY_NAME = {name: view for view in VIEWS for name in view.names}
