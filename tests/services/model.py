"""What Kubernetes says of Services, once more and as plainly as it can be said: the planner's second opinion.

It knows nothing of sets, places, numbers or changes: from all objects it says which endpoints a connection from a
node to an address and port may reach.
"""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service

NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
End = tuple[str, int]


def address(text: str) -> Any:
    """Read an address as old objects have it."""
    if ":" not in text:
        text = ".".join(part.lstrip("0") or "0" for part in text.split("."))
    return ip_address(text)


def reachable(
    objects: Iterable[Any], node: str, node_ports: Iterable[str] = (), *, outside: bool = False
) -> dict[tuple[Any, int, int], tuple[set[End], int, bool]]:
    """Return for each address, protocol and port whom one reaches, affinity, and whether it is dropped else.

    `node_ports` are the addresses at which node ports are asked. `outside`: who asks is no part of the cluster;
    then only what that makes a difference for is told.
    """
    every = list(objects)
    services = [one for one in every if isinstance(one, Service)]
    found: dict[tuple[Any, int, int], list[tuple[Any, Any]]] = {}
    for service in services:
        if any(label in service.metadata.labels for label in OTHERS) or service.spec.type == "ExternalName":
            continue
        if "None" in service.spec.cluster_ips:
            continue
        if outside and service.spec.external_traffic_policy != "Local":
            continue
        places = [(0, address(text)) for text in service.spec.cluster_ips]
        versions = {where.version for _, where in places}
        asked = [where for where in map(address, node_ports) if where.version in versions]
        if service.spec.type == "LoadBalancer":
            places += [
                (1, address(one.ip)) for one in service.status.load_balancer.ingress if one.ip_mode == "VIP"
            ]
        places += [(2, address(text)) for text in service.spec.external_ips]
        if service.spec.type in ("NodePort", "LoadBalancer"):
            places += [(3, where) for where in asked]
        inside = {where for rank, where in places if rank == 0}
        if outside:
            places = [(rank, where) for rank, where in places if where not in inside]
        # The same address in two roles of one Service is its cluster address.
        for rank, where in sorted(places, key=lambda place: -place[0]):
            for port in service.spec.ports:
                number = port.node_port if rank == 3 else port.port
                if port.protocol not in NUMBERS or not number:
                    continue
                local = outside or (rank == 0 and service.spec.internal_traffic_policy == "Local")
                ends, elsewhere = behind(service, port, where.version, local, every, node)
                stays = 10800 if service.spec.session_affinity == "ClientIP" else 0
                order = (rank, service.metadata.creation_timestamp, service.metadata.name)
                key = (where, NUMBERS[port.protocol], number)
                found.setdefault(key, []).append((order, (ends, stays, elsewhere and not ends)))
    return {key: min(claims, key=lambda claim: claim[0])[1] for key, claims in found.items()}


OTHERS = ("service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name")


def behind(
    service: Service, port: Any, version: int, local: bool, every: list[Any], node: str
) -> tuple[set[End], bool]:
    """Return whom one reaches, and whether only the policy Local leaves nobody."""
    ends: dict[End, dict[str, Any]] = {}
    slices = [one for one in every if isinstance(one, EndpointSlice)]
    mine = [one for one in slices if one.metadata.labels["kubernetes.io/service-name"] == service.metadata.name]
    for one in mine:
        _of_slice(ends, one, port, version)
    if not mine and service.spec.selector:
        for pod in every:
            if isinstance(pod, Pod) and pod.status.phase not in ("Succeeded", "Failed"):
                _of_pod(ends, pod, service, port, version)
    chosen, elsewhere = _chosen(ends, local, _zone(every, node), node)
    if port.protocol == "SCTP":
        chosen = {end for end in chosen if end[1] == port.port}
    return chosen, elsewhere


def _of_slice(ends: dict[End, dict[str, Any]], one: EndpointSlice, port: Any, version: int) -> None:
    for served in one.ports or () if one.address_type == f"IPv{version}" else ():
        if (served.name, served.protocol) != (port.name, port.protocol) or served.port is None:
            continue
        for each in one.endpoints or ():
            said = each.conditions
            ready = said.ready is None or said.ready
            facts = {
                "ready": ready,
                "serving": ready if said.serving is None else said.serving,
                "ending": bool(said.terminating),
                "node": each.node_name,
                "nodes": {hint.name for hint in each.hints.for_nodes} if each.hints else set(),
                "zones": {hint.name for hint in each.hints.for_zones} if each.hints else set(),
                "slice": one.metadata.name,
            }
            _take(ends, (str(ip_address(each.addresses[0])), served.port), facts)


def _of_pod(ends: dict[End, dict[str, Any]], pod: Pod, service: Service, port: Any, version: int) -> None:
    number = port.target_port or port.port
    if isinstance(number, str):
        names = {(p.name, p.protocol): p.container_port for c in pod.spec.containers for p in c.ports}
        number = names.get((number, port.protocol))
    alive = pod.status.phase == "Running" or service.spec.publish_not_ready_addresses
    ending = bool(pod.metadata.deletion_timestamp)
    ready = alive and (not ending or service.spec.publish_not_ready_addresses)
    facts = {"ready": ready, "serving": alive, "ending": ending, "node": pod.spec.node_name}
    for text in [entry.ip for entry in pod.status.pod_ips]:
        if number is not None and ip_address(text).version == version:
            _take(ends, (text, number), facts | {"nodes": set(), "zones": set(), "slice": ""})


def _zone(every: list[Any], node: str) -> str:
    nodes = [one for one in every if isinstance(one, Node) and one.metadata.name == node]
    return nodes[0].metadata.labels.get("topology.kubernetes.io/zone", "") if nodes else ""


def _chosen(ends: dict[End, dict[str, Any]], local: bool, zone: str, node: str) -> tuple[set[End], bool]:
    ready = {end for end, facts in ends.items() if facts["ready"]}
    resort = {end for end, facts in ends.items() if facts["serving"] and facts["ending"]}
    if local:
        here = {end for end, facts in ends.items() if facts["node"] == node}
        chosen = ready & here or resort & here
        return chosen, bool(ready or resort) and not chosen
    for_node = {end for end in ready if node in ends[end]["nodes"]}
    for_zone = {end for end in ready if zone and zone in ends[end]["zones"]}
    if for_node and all(ends[end]["nodes"] for end in ready):
        return for_node, False
    if for_zone and all(ends[end]["zones"] for end in ready):
        return for_zone, False
    return ready or resort, False


def _take(ends: dict[End, dict[str, Any]], end: End, facts: dict[str, Any]) -> None:
    """Of two that say something of one endpoint the better word is heard, then the first slice's."""
    order = (not facts["ready"], not facts["serving"], facts["ending"], facts["slice"])
    if end not in ends or order < ends[end]["order"]:
        ends[end] = facts | {"order": order}
