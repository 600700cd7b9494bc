"""Clusters that exist nowhere, and their snapshots."""

from collections.abc import Iterable

from podway.api.resource import Resource
from podway.cluster.view import ClusterView
from podway.plan.node import plan_node
from podway.plan.objects import NodePlan
from podway.plan.path import Site
from podway.preview.simulate import World
from podway.preview.snapshot import Snapshot
from tests.builders import pod


def plan_of(view: ClusterView, node: str, site: Site) -> NodePlan:
    """Plan a node that has an uplink."""
    assert site.uplink is not None
    return plan_node(view, node, site.uplink, site.leases)


def snapshot_of(world: World, more: Iterable[Resource] = ()) -> Snapshot:
    view = world.view
    pods = [
        pod(lease.pod.partition("/")[2], node, *map(str, lease.addresses))
        for node, site in world.sites.items()
        for lease in site.leases
    ]
    objects = (*view.nodes.values(), *view.pools.values(), *view.blocks.values(), *pods, *more)
    return Snapshot("2026-01-01T00:00:00Z", objects, world.sites, {})
