"""Which pods' packets would take another way. Pure.

Pods of one node with addresses of one block share their ways, so ways are compared between such groups, with
one pod to stand for its group.
"""

from collections.abc import Iterator, Mapping
from itertools import islice, product

import msgspec

from podway.api.addresses import Address
from podway.api.lease import Lease
from podway.cluster.view import ClusterView
from podway.plan.mtu import pod_mtu
from podway.plan.path import End, PlannedHop, Site, plan_path
from podway.preview.preview import Comparison

MOST = 2_000
"""How many pairs of groups are looked at."""


class PlannedPath(msgspec.Struct, frozen=True):
    """How a packet goes: the hops, and the MTU of the two pods' links in bytes."""

    hops: tuple[PlannedHop, ...]
    mtus: tuple[int, ...]

    @property
    def arrives(self) -> bool:
        """Whether it gets there."""
        return bool(self.hops) and self.hops[-1].disposition == "delivered"

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes it another way for packets, whoever tells the routes."""
        hops = tuple(
            (
                hop.node,
                hop.pod,
                hop.entry,
                hop.exit,
                hop.disposition,
                hop.encapsulation,
                hop.route and hop.route.gateway,
            )
            for hop in self.hops
        )
        return (hops, self.mtus)

    def __str__(self) -> str:
        """Return the way on one line: `default/a > node1 [vxlan] > node2 > default/b (MTU 1450)`."""
        if not self.hops:
            return "none"
        places = [
            f"{hop.pod or hop.node}{f' [{hop.encapsulation}]' if hop.encapsulation != 'none' else ''}"
            for hop in self.hops
        ]
        end = (
            ""
            if self.arrives
            else f" > {'discarded there' if self.hops[-1].disposition == 'discarded' else 'lost'}"
        )
        return f"{' > '.join(places)}{end} (MTU {min(self.mtus)})"


class Group(msgspec.Struct, frozen=True):
    """Pods of one node with addresses of one block (a CIDR; empty: of none of the node's), and one of them."""

    node: str
    block: str
    pods: int
    first: End
    second: End | None
    """Another of them, if there is one."""


class PathChange(msgspec.Struct, frozen=True):
    """Another way for `pairs` ordered pairs of addresses; `before` and `after` are those of one such pair."""

    source: Group
    target: Group
    pairs: int
    before: PlannedPath
    after: PlannedPath


class PathChanges(msgspec.Struct, frozen=True):
    """The changes found; `complete` if all groups were looked at."""

    changes: tuple[PathChange, ...]
    complete: bool

    @property
    def pairs(self) -> int:
        """How many ordered pairs of pod addresses are concerned."""
        return sum(change.pairs for change in self.changes)


def planned_path(view: ClusterView, comparison: Comparison, source: End, target: End) -> PlannedPath:
    """Return the way of packets from one pod to another, in one of the two views; no hop from a node not in it."""
    ends = {(end.node, end.pod, end.address) for end in (source, target)}
    sites = {
        end.node: Site(comparison.uplink(end.node), _leases(comparison.sites, end.node, ends))
        for end in (source, target)
    }
    mtus = tuple(
        pod_mtu(view, comparison.uplink(end.node), _addresses(sites[end.node], end)) for end in (source, target)
    )
    return PlannedPath(plan_path(view, sites, source, target) if source.node in view.nodes else (), mtus)


def changed_paths(comparison: Comparison) -> PathChanges:
    """Return between which groups of pods the way changes."""
    candidates = _candidates(comparison)
    looked = list(islice(candidates, MOST))
    found = []
    for source, target in looked:
        to = target.first if source != target else target.second
        if to is None or source.first.address.version != to.address.version:
            continue
        before, after = (
            planned_path(view, comparison, source.first, to) for view in (comparison.before, comparison.after)
        )
        if before.shape != after.shape:
            pairs = source.pods * (target.pods - (source == target))
            found.append(PathChange(source, target, pairs, before, after))
    return PathChanges(tuple(found), next(candidates, None) is None)


def _candidates(comparison: Comparison) -> Iterator[tuple[Group, Group]]:
    """Yield the pairs of groups between which the way can differ at all."""
    one, other = comparison.before, comparison.after
    groups = groups_of(comparison)
    if (one.config.mtu, one.config.vxlan) != (other.config.mtu, other.config.vxlan):
        yield from product(groups, groups)
        return
    came_or_went = one.nodes.keys() ^ other.nodes.keys()
    moved = {
        view.blocks[name].spec.cidr for view in (one, other) for name in comparison.moved if name in view.blocks
    }
    touched = [group for group in groups if group.block in moved or group.node in came_or_went]
    yield from product(groups, touched)
    for source, target in product((group for group in groups if group.node in came_or_went), groups):
        if target not in touched:
            yield source, target


def groups_of(comparison: Comparison) -> tuple[Group, ...]:
    """Return all pods that hold a lease, in groups."""
    members: dict[tuple[str, str, int], list[End]] = {}
    for node, site in sorted(comparison.sites.items()):
        blocks = comparison.before.blocks_of(node)
        for lease in site.leases:
            for address in lease.addresses:
                block = next((b.spec.cidr for b in blocks if address in b.network), "")
                pod = lease.pod or lease.attachment.container
                members.setdefault((node, block, address.version), []).append(End(address, node, pod))
    return tuple(
        Group(node, block, len(ends), ends[0], ends[1] if len(ends) > 1 else None)
        for (node, block, _), ends in members.items()
    )


def _addresses(site: Site, end: End) -> tuple[Address, ...]:
    """Return all addresses of a pod: the MTU of its link serves the pools of all."""
    return next((lease.addresses for lease in site.leases if end.address in lease.addresses), (end.address,))


def _leases(sites: Mapping[str, Site], node: str, ends: set[tuple[str, str, Address]]) -> tuple[Lease, ...]:
    """Return the leases of the two pods alone: the others of the node are not on the way."""
    wanted = {address for where, _, address in ends if where == node}
    leases = sites.get(node, Site()).leases
    return tuple(lease for lease in leases if not wanted.isdisjoint(lease.addresses))
