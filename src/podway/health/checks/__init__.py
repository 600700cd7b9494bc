"""All checks, by theme. Importing this package registers them."""

from collections.abc import Mapping
from typing import TypeVar

from podway.health.checks import (
    addresses,
    agent,
    bgp,
    bridge,
    cluster,
    encapsulation,
    firewall,
    host,
    kube_proxy,
    limits,
    paths,
    plan,
    policies,
    routes,
    runtime,
    services,
    uplink,
)
from podway.health.facts import ClusterFacts, NodeFacts
from podway.health.finding import CLUSTER_CHECKS, NODE_CHECKS, Check

THEMES = (
    uplink,
    host,
    limits,
    paths,
    firewall,
    bridge,
    addresses,
    routes,
    plan,
    policies,
    services,
    kube_proxy,
    encapsulation,
    runtime,
    agent,
    bgp,
    cluster,
)


_PLACE = {theme.__name__: place for place, theme in enumerate(THEMES)}
F = TypeVar("F")


def of_nodes() -> tuple[Check[NodeFacts], ...]:
    """Return the checks of one node's facts."""
    return _ordered(NODE_CHECKS)


def of_clusters() -> tuple[Check[ClusterFacts], ...]:
    """Return the checks of all nodes' answers."""
    return _ordered(CLUSTER_CHECKS)


def every() -> tuple[Check[NodeFacts] | Check[ClusterFacts], ...]:
    """Return all checks, those of nodes first."""
    return (*of_nodes(), *of_clusters())


def _ordered(registry: Mapping[str, Check[F]]) -> tuple[Check[F], ...]:
    """Return checks in the order of themes, and in each as they stand in its module."""
    return tuple(sorted(registry.values(), key=lambda check: _PLACE[check.judge.__module__]))
