"""What Services and settings of theirs may say today: what would be passed over is refused when written. Pure.

In a store such things may be all the same, written by another Kubernetes; planners then go by the default.
"""

from collections.abc import Iterator, Sequence

from podway.api.fields import PROTOCOLS, Problem, parse_legacy_address
from podway.api.kinds.endpoint_slice import SERVICE_LABEL, EndpointSlice
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.service import Service
from podway.api.resource import Resource, invalid

_CHOICES = {
    "type": ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    "session_affinity": ("None", "ClientIP"),
    "internal_traffic_policy": ("Cluster", "Local"),
    "external_traffic_policy": ("Cluster", "Local"),
    "traffic_distribution": ("PreferClose", "PreferSameZone", "PreferSameNode"),
    "ip_family_policy": ("SingleStack", "PreferDualStack", "RequireDualStack"),
}


def check_change(new: Resource, others: Sequence[Resource], old: Resource | None) -> None:
    """Check that a Service or slice is understood, and its addresses its own; that they can be served.

    Raises InvalidObject.
    """
    match new:
        case Service():
            problems = _of_service(new, others)
        case EndpointSlice():
            problems = _of_slice(new)
        case NetworkConfig():
            problems = _of_settings(new)
        case _:
            return
    for problem in problems:
        raise invalid(new, *problem)


def _of_service(service: Service, others: Sequence[Resource]) -> Iterator[Problem]:
    for field, choices in _CHOICES.items():
        value = getattr(service.spec, field)
        if value and value not in choices:
            head, *rest = field.split("_")
            name = head + "".join(word.capitalize() for word in rest).replace("Ip", "IP")
            yield f"spec.{name}", f"{value!r} is not possible", f"write {', '.join(choices)}"
    for index, port in enumerate(service.spec.ports):
        yield from _protocol(f"spec.ports[{index}].protocol", port.protocol)
    if not service.spec.ports and not service.is_headless and service.spec.type != "ExternalName":
        yield "spec.ports", "is missing", "name a port at least; a Service without any has `clusterIP: None`"
    own = set(service.cluster_addresses)
    for other in others:
        for address in own.intersection(other.cluster_addresses) if isinstance(other, Service) else ():
            whose = f"{other.metadata.namespace}/{other.metadata.name}"
            yield "spec.clusterIP", f"{address} is the address of Service {whose}", "choose another one"


def _of_settings(config: NetworkConfig) -> Iterator[Problem]:
    if config.spec.services != "off" and config.spec.data_path == "kernel":
        hint = "write `dataPath: ebpf` or `auto` beside it, or `services: off`"
        yield "spec.services", "needs the flow engine, and dataPath is kernel", hint


def _of_slice(piece: EndpointSlice) -> Iterator[Problem]:
    if piece.address_type not in ("IPv4", "IPv6", "FQDN"):
        yield "addressType", f"{piece.address_type!r} is not possible", "write IPv4 or IPv6"
    if not piece.service:
        hint = f"name its Service by the label {SERVICE_LABEL}"
        yield "metadata.labels", "it belongs to no Service", hint
    for index, endpoint in enumerate(piece.endpoints or ()):
        if not endpoint.addresses:
            yield f"endpoints[{index}].addresses", "is empty", "write the endpoint's address"
        for number, text in enumerate(endpoint.addresses):
            if piece.address_type != "FQDN" and parse_legacy_address(text).is_loopback:
                where = f"endpoints[{index}].addresses[{number}]"
                yield where, f"{text} is loopback", "write the address of a pod, a node or an outside host"
    for index, port in enumerate(piece.ports or ()):
        yield from _protocol(f"ports[{index}].protocol", port.protocol)


def _protocol(where: str, protocol: str) -> Iterator[Problem]:
    if protocol not in PROTOCOLS:
        yield where, f"{protocol!r} is no protocol of Services", f"write {', '.join(PROTOCOLS)}"
