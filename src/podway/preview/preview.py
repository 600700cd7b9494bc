"""What a change of the cluster's objects does to every node, before anybody makes it. Pure.

Both sides are planned with the planner that the agents use, and compared with the comparison that the kernel
engine uses.
"""

import difflib
from collections.abc import Hashable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from podway.api.addresses import Address
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
from podway.bgp.outside import outside_session
from podway.bgp.render import render
from podway.cluster.view import ClusterView
from podway.plan.bgp import BgpPlan, plan_bgp
from podway.plan.changes import Change, between, compare
from podway.plan.fabric import encapsulation_of, planned_modes, pool_of
from podway.plan.learned import learned_route
from podway.plan.mtu import pool_mtu
from podway.plan.node import plan_node
from podway.plan.objects import NodePlan, Route
from podway.plan.path import Site
from podway.plan.topology import Topology, topology
from podway.plan.uplink import Uplink
from podway.preview.settle import Settled, settle

_LOG = Path("bird.log")


class Session(msgspec.Struct, frozen=True):
    """One BGP session of a node, as its BIRD is told to hold it."""

    name: str
    peer: Address
    peer_asn: int
    local: Address
    asn: int
    port: int
    bfd: str
    options: str = ""
    """How BIRD is told of a session with an outside peer, whose filters are its own."""

    def __str__(self) -> str:
        return f"BGP session {self.name} with {self.peer}"


class NodeChange(msgspec.Struct, frozen=True):
    """What changes on one node.

    `kernel` are objects of the agent's, `learned` routes that BIRD writes, `sessions` BIRD's sessions and
    `bird` other lines of the configuration of one that stays, each after `+` or `-`.
    """

    node: str
    membership: Literal["stays", "joins", "leaves"] = "stays"
    kernel: tuple[Change, ...] = ()
    learned: tuple[Change, ...] = ()
    sessions: tuple[Change, ...] = ()
    bird: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    """What changes for the pools' packets and pods, in words."""

    @property
    def changes(self) -> tuple[Change, ...]:
        """All objects that change."""
        return (*self.kernel, *self.learned, *self.sessions)

    @property
    def restarting(self) -> int:
        """How many sessions go down and come back: what a peer was told at the start changes."""
        starts = {"peer", "peer_asn", "local", "asn", "port"}
        return sum(
            any(field in starts for field, _, _ in change.altered)
            for change in self.sessions
            if change.action == "replace"
        )

    def __bool__(self) -> bool:
        return bool(self.kernel or self.learned or self.sessions or self.bird)


class Comparison:
    """Two views of a cluster, with what their agents make of each, and the difference for any node.

    `sites` are what is known of the nodes (uplinks and leases), the same before and after.
    """

    def __init__(self, before: ClusterView, after: ClusterView, sites: Mapping[str, Site]) -> None:
        self.sites = sites
        self.settled_before: Settled = settle(before, sites)
        self.settled_after: Settled = settle(after, sites)
        self.before = self.settled_before.view
        self.after = self.settled_after.view

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of both views, in the order of their names."""
        return tuple(sorted(self.before.nodes.keys() | self.after.nodes.keys()))

    @cached_property
    def moved(self) -> tuple[str, ...]:
        """The blocks to which the way changes for some node, by name."""
        return tuple(
            name
            for name in sorted(self.before.blocks.keys() | self.after.blocks.keys())
            if _way(self.before, name) != _way(self.after, name)
        )

    @property
    def claimed(self) -> tuple[AddressBlock, ...]:
        """The blocks that nodes claim by themselves because of the change."""
        return tuple(
            block for block in self.settled_after.claimed if block.metadata.name not in self.before.blocks
        )

    @property
    def returned(self) -> tuple[AddressBlock, ...]:
        """The blocks that go back to their pools by themselves because of the change."""
        return tuple(block for block in self.settled_after.returned if block.metadata.name in self.before.blocks)

    @property
    def unserved(self) -> tuple[tuple[str, str], ...]:
        """Nodes that want a block of a pool, and find none left, because of the change: (node, pool)."""
        before = set(self.settled_before.unserved)
        return tuple(pair for pair in self.settled_after.unserved if pair not in before)

    def of(self, node: str) -> NodeChange:
        """Return what changes on a node."""
        before, after = self._bgp(self.before, node), self._bgp(self.after, node)
        return NodeChange(
            node,
            "joins" if node not in self.before.nodes else "leaves" if node not in self.after.nodes else "stays",
            kernel=between(self._plan(self.before, node), self._plan(self.after, node)),
            learned=self._learned(node),
            sessions=tuple(compare("session", _sessions(before), _sessions(after))),
            bird=_lines_between(before, after),
            pools=tuple(self._pools(node)),
        )

    def uplink(self, node: str) -> Uplink:
        """Return a node's uplink; where its agent did not tell, what its object says of it."""
        uplink = self.sites.get(node, Site()).uplink
        if uplink is not None:
            return uplink
        known = self.before.nodes.get(node) or self.after.nodes[node]
        return Uplink("UPLINK", 0, known.interface_addresses)

    def _pools(self, node: str) -> Iterator[str]:
        """Say of each pool how its packets leave the node, and its pods' MTU, if these change."""
        uplink = self.uplink(node)
        told = [
            {
                name: (_modes(view, node, name), pool_mtu(view, uplink, pool), pool.spec.distribution)
                for name, pool in view.pools.items()
                if node in view.nodes
            }
            for view in (self.before, self.after)
        ]
        for name in sorted(told[0].keys() & told[1].keys()):
            (modes, mtu, distribution), (new_modes, new_mtu, new_distribution) = (one[name] for one in told)
            words = [
                *([f"packets to other nodes {modes} -> {new_modes}"] if modes != new_modes else []),
                *([f"pods' MTU {mtu} -> {new_mtu}"] if mtu != new_mtu else []),
                *(
                    [f"routes distributed by {distribution} -> {new_distribution}"]
                    if distribution != new_distribution
                    else []
                ),
            ]
            if words:
                yield f"IPPool/{name}: {', '.join(words)}"

    def _plan(self, view: ClusterView, node: str) -> NodePlan:
        if node not in view.nodes:
            return NodePlan()
        return plan_node(view, node, self.uplink(node), self.sites.get(node, Site()).leases)

    def _learned(self, node: str) -> tuple[Change, ...]:
        lives_on = node in self.before.nodes and node in self.after.nodes
        names = self.moved if lives_on else self.before.blocks.keys() | self.after.blocks.keys()
        uplink = self.uplink(node)

        def routes(view: ClusterView) -> Mapping[Hashable, Route]:
            blocks = (view.blocks[name] for name in names if name in view.blocks)
            found = (learned_route(view, node, uplink, block) for block in blocks)
            return {route.key: route for route in found if route}

        return tuple(compare("learned route", routes(self.before), routes(self.after)))

    @cached_property
    def _concerned(self) -> frozenset[str]:
        """The nodes whose sessions with others can differ: all, if what all sessions share does."""
        one, other = self.before, self.after
        kinds = {msgspec.structs.replace(target, name="") for target in self._targets.values()}
        if one.config.bgp != other.config.bgp or _families(one) != _families(other) or len(kinds) > 1:
            return frozenset(self.nodes)
        return frozenset(
            name
            for name in one.nodes.keys() | other.nodes.keys()
            if (node := one.nodes.get(name)) is not (new := other.nodes.get(name))
            and (node is None or new is None or _place(node) != _place(new))
        )

    @cached_property
    def _targets(self) -> Mapping[int, Topology]:
        return {id(view): topology(view) for view in (self.before, self.after)}

    def _bgp(self, view: ClusterView, node: str) -> BgpPlan | None:
        """Plan a node's BGP as far as it can differ: a full mesh has as many sessions as nodes, on each."""
        if node not in view.nodes:
            return None
        every = node in self._concerned
        return plan_bgp(view, node, target=self._targets[id(view)], only=None if every else self._concerned)


def _way(view: ClusterView, name: str) -> tuple[object, ...] | None:
    block = view.blocks.get(name)
    pool = pool_of(view, block) if block else None
    if block is None or pool is None or block.spec.node not in view.nodes:
        return None
    spec = pool.spec
    settings = (spec.distribution, spec.encapsulation, spec.when, spec.attach)
    return (block.spec.cidr, block.spec.node, view.nodes[block.spec.node].internal_addresses, *settings)


def _modes(view: ClusterView, node: str, pool: str) -> str:
    """Return in words the modes in which a node sends a pool's packets to the others."""
    modes = planned_modes(view, node).get(pool, frozenset({"none"}))
    names = sorted({encapsulation_of(mode) for mode in modes})
    return " or ".join("as they are" if name == "none" else f"in {name}" for name in names)


def _families(view: ClusterView) -> frozenset[int]:
    return frozenset(pool.network.version for pool in view.pools.values() if pool.spec.distribution == "bgp")


def _place(node: Node) -> tuple[object, ...]:
    return (node.internal_addresses, node.interface_addresses, node.asn)


def _sessions(plan: BgpPlan | None) -> Mapping[Hashable, Session]:
    if plan is None:
        return {}
    times = f"{plan.bfd.interval} ms x {plan.bfd.multiplier}"
    bfd = times if plan.nodes_bfd else "off"
    sessions: dict[Hashable, Session] = {
        peer.name: Session(peer.name, peer.address, peer.asn, plan.address(peer.family), plan.asn, plan.port, bfd)
        for peer in plan.peers
    }
    return sessions | {
        peer.name: Session(
            peer.name,
            peer.address,
            peer.asn,
            peer.local,
            plan.asn,
            peer.port,
            times if peer.bfd else "off",
            " ".join(outside_session(plan, peer, None).split()),
        )
        for peer in plan.outside
    }


def _without_sessions(plan: BgpPlan) -> BgpPlan:
    sections = {name: msgspec.structs.replace(section, peers=()) for name, section in plan.sections.items()}
    return msgspec.structs.replace(plan, sections=sections, outside=())


def _lines_between(before: BgpPlan | None, after: BgpPlan | None) -> tuple[str, ...]:
    """Return the lines that BIRD's configuration loses and gains, apart from its sessions and comments."""
    if before is None or after is None:
        return ()
    one, other = (render(_without_sessions(plan), _LOG).splitlines() for plan in (before, after))
    if one == other:
        return ()
    lines = difflib.unified_diff(one, other, n=0, lineterm="")
    return tuple(
        f"{line[0]} {text}"
        for line in lines
        if line[:1] in "+-" and line[:3] not in ("---", "+++") and (text := line[1:].strip()) and text[0] != "#"
    )
