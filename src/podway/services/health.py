"""What a node says to load balancers that ask whether to send it packets. Pure.

Of one Service with `externalTrafficPolicy: Local`, at its `healthCheckNodePort`: whether an endpoint is here that
is ready (KEP-1669); texts and headers are those of Kubernetes' own proxy. Of the node as a whole, at PROXY_PORT:
whether Services are served, and whether the node stays (KEP-3836).
"""

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from podway.api.kinds.node import Node
from podway.api.kinds.service import Service
from podway.services.planner import ServiceName, ServicePlanner, is_served

PROXY_PORT = 10256
"""Where load balancers of clouds ask for the node as a whole."""

LEAVING_TAINT = "ToBeDeletedByClusterAutoscaler"
"""The taint of a node that is about to be removed."""

WEIGHT = "X-Load-Balancing-Endpoint-Weight"
"""The header that says how many endpoints are here."""


class HealthCheck(NamedTuple):
    """A port at which a Service's endpoints on the node are told, of these IP versions."""

    port: int
    service: ServiceName
    versions: tuple[int, ...]


def health_checks(services: Iterable[Service]) -> Iterator[HealthCheck]:
    """Yield the ports that are asked for; of two Services with one port it is the older one's, then by name."""
    taken: set[int] = set()
    for service in sorted(filter(is_checked, services), key=_age):
        port = service.spec.health_check_node_port
        if port not in taken:
            taken.add(port)
            versions = tuple(sorted({address.version for address in service.cluster_addresses}))
            yield HealthCheck(port, (service.metadata.namespace, service.metadata.name), versions)


def is_checked(service: Service) -> bool:
    """Tell whether load balancers ask each node for a Service's endpoints there."""
    spec = service.spec
    return bool(
        spec.type == "LoadBalancer"
        and spec.external_traffic_policy == "Local"
        and spec.health_check_node_port
        and is_served(service)
    )


def _age(service: Service) -> tuple[str, str, str]:
    meta = service.metadata
    return (meta.creation_timestamp, meta.namespace, meta.name)


def endpoints_here(planner: ServicePlanner, name: ServiceName, version: int) -> int:
    """Return how many endpoints of a Service are ready on the planner's node, whatever their ports."""
    service = planner.service(name)
    if service is None:
        return 0
    every = (one for port in service.spec.ports for one in planner.candidates(name, port, version))
    return len({one.address for one in every if one.ready and one.node == planner.where.node})


def told_of(name: ServiceName, count: int, *, serving: bool) -> str:
    """Return the text of the answer for a Service that has so many endpoints here."""
    told = {
        "service": {"namespace": name[0], "name": name[1]},
        "localEndpoints": count,
        "serviceProxyHealthy": serving,
    }
    return json.dumps(told, indent="\t")


def stays(node: Node | None) -> bool:
    """Tell whether a node is one to send new connections to: it is not being removed."""
    if node is None:
        return False
    return not node.metadata.deletion_timestamp and all(one.key != LEAVING_TAINT for one in node.spec.taints)
