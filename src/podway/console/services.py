"""Services as the console shows them: addresses, ports, and who is behind each. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service, port_text
from podway.api.resource import Resource, of_kind
from podway.console.network import Shown
from podway.services.endpoints import Candidate, Offer, candidates, offer_of_slice, offers_of_pods
from podway.services.maps import unpacked

NAMED = 200
"""Backends of one port that are told; the rest is counted."""


class Backend(Shown, frozen=True):
    """One that serves a port. `state` is ready, terminating (still serving), or not ready."""

    address: str
    port: int
    node: str
    state: str
    pod: str = ""


class ShownPort(Shown, frozen=True):
    """A port of a Service, and its backends of both families."""

    text: str
    name: str
    ready: int
    count: int
    backends: tuple[Backend, ...]


class ShownService(Shown, frozen=True):
    """A Service. `source` says of what its backends were read: of slices, or of the pods that it selects."""

    namespace: str
    name: str
    type: str
    addresses: tuple[str, ...]
    outside: tuple[str, ...]
    ports: tuple[ShownPort, ...]
    source: str
    affinity: int
    policy: str


def services(objects: Iterable[Resource]) -> tuple[ShownService, ...]:
    """Return all Services with their backends."""
    known = tuple(objects)
    pods: defaultdict[str, list[Pod]] = defaultdict(list)
    names: dict[str, str] = {}
    for pod in of_kind(Pod, known):
        pods[pod.metadata.namespace].append(pod)
        names |= {str(ip_address(text)): f"{pod.metadata.namespace}/{pod.metadata.name}" for text in pod.held}
    slices: defaultdict[tuple[str, str], list[Offer]] = defaultdict(list)
    for piece in of_kind(EndpointSlice, known):
        offer = offer_of_slice(piece)
        if piece.service is not None and offer is not None:
            slices[piece.service].append(offer)
    found = []
    for service in of_kind(Service, known):
        where = (service.metadata.namespace, service.metadata.name)
        offers = slices.get(where) or list(offers_of_pods(service, pods[where[0]]))
        found.append(_shown(service, offers, names, of_slices=where in slices))
    return tuple(found)


def _shown(service: Service, offers: list[Offer], names: dict[str, str], *, of_slices: bool) -> ShownService:
    spec = service.spec
    policy = [f"internal {spec.internal_traffic_policy}"] if spec.internal_traffic_policy != "Cluster" else []
    policy += [f"external {spec.external_traffic_policy}"] if spec.external_traffic_policy != "Cluster" else []
    return ShownService(
        service.metadata.namespace,
        service.metadata.name,
        "headless" if service.is_headless else spec.type,
        tuple(map(str, service.cluster_addresses)),
        service.outside_addresses,
        tuple(_ports(service, offers, names)),
        "slices" if of_slices else "pods",
        service.affinity_seconds,
        ", ".join(policy),
    )


def _ports(service: Service, offers: list[Offer], names: dict[str, str]) -> Iterator[ShownPort]:
    for port in service.spec.ports:
        every = [_backend(one, names) for version in (4, 6) for one in candidates(port, version, offers)]
        every.sort(key=lambda one: (one.state != "ready", one.pod, one.address))
        ready = sum(one.state == "ready" for one in every)
        yield ShownPort(port_text(port), port.name, ready, len(every), tuple(every[:NAMED]))


def _backend(one: Candidate, names: dict[str, str]) -> Backend:
    address = str(unpacked(one.address))
    state = "ready" if one.ready else "terminating" if one.last_resort else "not ready"
    return Backend(address, one.port, one.node, state, names.get(address, ""))
