"""What may serve behind a Service: read of EndpointSlices or, where there are none, of pods. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from podway.api.fields import parse_legacy_address
from podway.api.kinds.endpoint_slice import Endpoint, EndpointSlice
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service, ServicePort
from podway.services.maps import packed

FINISHED = ("Succeeded", "Failed")


class Candidate(NamedTuple):
    """One that may serve a port: where, how it is, and for whose traffic (None: nothing is said)."""

    address: bytes
    port: int
    ready: bool
    serving: bool
    terminating: bool
    node: str = ""
    nodes: tuple[str, ...] | None = None
    zones: tuple[str, ...] | None = None

    @property
    def last_resort(self) -> bool:
        """Whether it is used where nobody is ready: it still serves, though it is about to end (KEP-1669)."""
        return self.serving and self.terminating


PortName = tuple[str, str]
"""A port's name and protocol: by these the ports of slices belong to those of a Service."""


class Offer(NamedTuple):
    """What a slice has: the family of its addresses, its ports, and its endpoints (with port 0)."""

    version: int
    ports: Mapping[PortName, int]
    endpoints: tuple[Candidate, ...]


def offer_of_slice(piece: EndpointSlice) -> Offer | None:
    """Return what a slice has; None if it has no addresses (type FQDN) or is of a family that nobody knows."""
    if piece.address_type not in ("IPv4", "IPv6"):
        return None
    version = 4 if piece.address_type == "IPv4" else 6
    ports = {(port.name, port.protocol): port.port for port in piece.ports or () if port.port is not None}
    read = (_read(endpoint) for endpoint in piece.endpoints or () if endpoint.addresses)
    # An IPv4-mapped address in a slice of IPv6 is IPv4 to the kernel, and nothing that a client of IPv6 reaches.
    return Offer(version, ports, tuple(one for one in read if _version(one.address) == version))


def _version(address: bytes) -> int:
    return 4 if address.startswith(b"\0\0\0\0\0\0\0\0\0\0\xff\xff") else 6


def _read(endpoint: Endpoint) -> Candidate:
    hints = endpoint.hints
    return Candidate(
        packed(parse_legacy_address(endpoint.addresses[0])),
        0,
        endpoint.ready,
        endpoint.serving,
        endpoint.terminating,
        endpoint.node_name,
        tuple(one.name for one in hints.for_nodes) or None if hints else None,
        tuple(one.name for one in hints.for_zones) or None if hints else None,
    )


def candidates(port: ServicePort, version: int, offers: Iterable[Offer]) -> list[Candidate]:
    """Return who may serve a port in a family, each address and port once.

    One that moves from a slice to another is in both for a while, and they may disagree: the better word is heard,
    since it is heard where there is only one of them, too.
    """
    name = (port.name, port.protocol)
    found: dict[tuple[bytes, int], Candidate] = {}
    for offer in offers:
        number = offer.ports.get(name)
        if offer.version != version or number is None:
            continue
        for one in offer.endpoints:
            where = (one.address, number)
            former = found.get(where)
            if former is None or _rank(one) > _rank(former):
                found[where] = one._replace(port=number)
    return list(found.values())


def _rank(one: Candidate) -> tuple[bool, bool, bool]:
    return (one.ready, one.serving, not one.terminating)


def offers_of_pods(service: Service, pods: Iterable[Pod]) -> Iterator[Offer]:
    """Yield what pods have to offer that a Service selects, as Kubernetes' controller would write it into slices.

    A pod is ready while its phase is Running: a cluster whose pods say more has the controller, and so slices.
    """
    for pod in pods:
        if pod.status.phase in FINISHED or not selects(service, pod):
            continue
        terminating = bool(pod.metadata.deletion_timestamp)
        serving = pod.status.phase == "Running" or service.spec.publish_not_ready_addresses
        ready = serving and (not terminating or service.spec.publish_not_ready_addresses)
        ports = {
            (port.name, port.protocol): number
            for port in service.spec.ports
            if (number := target_port(port, pod)) is not None
        }
        for address in pod.addresses:
            one = Candidate(packed(address), 0, ready, serving, terminating, pod.spec.node_name)
            yield Offer(address.version, ports, (one,))


def selects(service: Service, pod: Pod) -> bool:
    """Tell whether a pod is one of a Service's. A Service without a selector selects none."""
    wanted = service.spec.selector.items()
    return (
        bool(wanted)
        and pod.metadata.namespace == service.metadata.namespace
        and wanted <= pod.metadata.labels.items()
    )


def target_port(port: ServicePort, pod: Pod) -> int | None:
    """Return the number that a Service's port has at a pod; None if the pod has no port of that name."""
    if isinstance(port.target_port, int):
        return port.target_port or port.port
    return next(
        (
            one.container_port
            for one in pod.spec.ports
            if (one.name, one.protocol) == (port.target_port, port.protocol)
        ),
        None,
    )
