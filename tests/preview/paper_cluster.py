"""Clusters that exist nowhere, and their snapshots."""

from collections.abc import Iterable
from typing import Any

from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.pod import Pod, PodAddress, PodSpec, PodStatus
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.cluster.view import ClusterView
from podway.plan.node import plan_node
from podway.plan.objects import NodePlan
from podway.plan.path import Site
from podway.preview.simulate import World
from podway.preview.snapshot import Snapshot


def pool(name: str, cidr: str, **spec: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


def plan_of(view: ClusterView, node: str, site: Site) -> NodePlan:
    """Plan a node that has an uplink."""
    assert site.uplink is not None
    return plan_node(view, node, site.uplink, site.leases)


def snapshot_of(world: World, more: Iterable[Resource] = ()) -> Snapshot:
    view = world.view
    pods = [
        Pod(
            metadata=Metadata(name=lease.pod.partition("/")[2], namespace="default"),
            spec=PodSpec(node_name=node),
            status=PodStatus(phase="Running", pod_ips=tuple(PodAddress(ip=str(ip)) for ip in lease.addresses)),
        )
        for node, site in world.sites.items()
        for lease in site.leases
    ]
    objects = (*view.nodes.values(), *view.pools.values(), *view.blocks.values(), *pods, *more)
    return Snapshot("2026-01-01T00:00:00Z", objects, world.sites, {})
