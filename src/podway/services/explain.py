"""What a Service means: its frontends, what may serve behind them, and on which nodes each is used or why not.

Nothing is asked of a data path: what is explained is what the cluster's objects mean. Pure.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from podway.api.addresses import Address
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.resource import Resource, of_kind
from podway.services.choice import Where, choose
from podway.services.endpoints import Candidate
from podway.services.maps import unpacked
from podway.services.planner import (
    ServiceName,
    ServicePlanner,
    WantedFrontend,
    fence_of,
    frontends_from_outside,
    serves,
    wanted_frontends,
    zone_of,
)

EACH_NODE: tuple[Address, ...] = (IPv4Address(0), IPv6Address(0))
"""What stands for the addresses of each node."""


class NotUsed(msgspec.Struct, frozen=True):
    """Nodes on which a backend is not used, and why."""

    nodes: tuple[str, ...]
    why: str


class Backend(msgspec.Struct, frozen=True, rename="camel"):
    """One that may serve: where, which pod it is (empty: none), and on which nodes connections are led to it."""

    address: str
    port: int
    pod: str
    node: str
    used_on: tuple[str, ...]
    not_used: tuple[NotUsed, ...] = ()


class Frontend(msgspec.Struct, frozen=True, rename="camel"):
    """An address and port of a Service, and what is behind it.

    `kind` says whose address it is: `cluster`, `load balancer`, `external`, or `node port`, where it is 0.0.0.0 or
    ::, for those of each node. `taken_by` names another Service that has it (empty: none), `affinity` is for how
    many seconds a client stays with its backend (0: not at all), and `from_networks` where a client must be (none:
    anywhere).
    """

    address: str
    protocol: str
    port: int
    port_name: str
    kind: str
    backends: tuple[Backend, ...]
    taken_by: str = ""
    affinity: int = 0
    from_networks: tuple[str, ...] = ()

    @property
    def ready(self) -> int:
        """How many of the backends any node uses."""
        return sum(bool(one.used_on) for one in self.backends)


class Explained(msgspec.Struct, frozen=True, rename="camel"):
    """A Service's frontends; none, and why, where it is not served.

    `frontends` are for clients in the cluster, `from_outside` for others, where these are served.
    """

    frontends: tuple[Frontend, ...]
    why_none: str = ""
    from_outside: tuple[Frontend, ...] = ()


class Explainer:
    """Explains many Services of one cluster."""

    def __init__(self, objects: Iterable[Resource]) -> None:
        known = tuple(objects)
        self._planner = ServicePlanner("")
        self._places = {
            node.metadata.name: Where(node.metadata.name, zone_of(node)) for node in of_kind(Node, known)
        }
        self._serves_outside = any(one.spec.services == "all" for one in of_kind(NetworkConfig, known))
        self._pods: dict[Address, Pod] = {}
        self._services = {_name(one): one for one in of_kind(Service, known)}
        for pod in of_kind(Pod, known):
            if not pod.spec.host_network and pod.status.phase not in ("Succeeded", "Failed"):
                self._pods.update(dict.fromkeys(pod.addresses, pod))
        for obj in known:
            if isinstance(obj, Service | EndpointSlice | Pod):
                self._planner.put(obj)
        self._planner.settle()

    @property
    def services(self) -> Sequence[Service]:
        """All Services."""
        return tuple(self._services.values())

    def explain(self, service: Service, nodes: Iterable[str] = ()) -> Explained:
        """Explain a Service of these objects, for connections from these nodes (none: all that there are)."""
        if why := why_not_served(service):
            return Explained((), why)
        places = [self._places.get(node, Where(node)) for node in nodes] or list(self._places.values())
        inside, outside = wanted_frontends(service), frontends_from_outside(service, EACH_NODE)
        return Explained(
            tuple(self._frontend(service, one, places) for one in inside),
            "",
            tuple(self._frontend(service, one, places) for one in outside) if self._serves_outside else (),
        )

    def candidates(self, service: Service, wanted: WantedFrontend) -> list[Candidate]:
        """Return all that may serve behind one of a Service's frontends."""
        return self._planner.candidates(_name(service), wanted.port, wanted.version)

    def pod_at(self, one: Candidate) -> Pod | None:
        """Return the pod that a candidate is; None if it is none."""
        return self._pods.get(ip_address(unpacked(one.address)))

    def taken_by(self, service: Service, wanted: WantedFrontend) -> ServiceName | None:
        """Return the other Service that has one of a Service's frontends; None if it has it itself."""
        holder = self._planner.holder(wanted.key)
        return holder if holder and holder != _name(service) else None

    def at(self, address: Address) -> Service | None:
        """Return the Service that has an address."""
        for service in self._services.values():
            for one in wanted_frontends(service):
                if unpacked(one.key.address) == str(address) and self.taken_by(service, one) is None:
                    return service
        return None

    def _frontend(self, service: Service, wanted: WantedFrontend, places: Sequence[Where]) -> Frontend:
        every = self.candidates(service, wanted)
        used: dict[Candidate, list[str]] = {one: [] for one in every}
        reasons: dict[Candidate, dict[str, list[str]]] = {one: {} for one in every}
        for place in places:
            chosen = choose(every, place, local=wanted.local)
            left_out = [*chosen.left_out]
            for one in chosen.used:
                if serves(wanted.port, one):
                    used[one].append(place.node)
                else:
                    left_out.append(
                        (one, f"SCTP is not translated, and port {one.port} is not {wanted.port.port}")
                    )
            for one, why in left_out:
                reasons[one].setdefault(why, []).append(place.node)
        taken = self.taken_by(service, wanted)
        return Frontend(
            unpacked(wanted.key.address),
            wanted.port.protocol,
            wanted.key.port,
            wanted.port.name,
            wanted.kind,
            tuple(
                Backend(
                    unpacked(one.address),
                    one.port,
                    _pod_name(self.pod_at(one)),
                    one.node,
                    tuple(used[one]),
                    tuple(NotUsed(tuple(nodes), why) for why, nodes in reasons[one].items()),
                )
                for one in every
            ),
            "/".join(taken) if taken else "",
            service.affinity_seconds,
            fence_of(service) if wanted.kind == "load balancer" else (),
        )


def why_not_served(service: Service) -> str:
    """Return why a Service has no frontend; empty if it may have some."""
    if service.spec.type == "ExternalName":
        return "ExternalName: it is a name only"
    if service.is_headless:
        return "headless: its name leads to its endpoints"
    if service.is_others:
        return "its labels say that another proxy serves it"
    return "" if service.cluster_addresses or service.outside_addresses else "it has no address yet"


def summary(explained: Explained) -> str:
    """Return in a few words how many backends are ready: `2 of 3`, for each port where they differ."""
    if not explained.frontends:
        return "-"
    counts: dict[str, list[tuple[int, int]]] = {}
    for one in explained.frontends:
        name = f"{one.port}/{one.protocol}"
        counts.setdefault(name, []).append((one.ready, len(one.backends)))
    # In two families the numbers are the same, mostly: the smaller is told.
    texts = {name: f"{min(found)[0]} of {min(found)[1]}" for name, found in counts.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{name}: {text}" for name, text in texts.items())


def lines(explained: Explained) -> Iterator[str]:
    """Yield it for people: each frontend, and below it each backend with where it is used, or why not."""
    yield from _lines(explained.frontends)


def lines_from_outside(explained: Explained) -> Iterator[str]:
    """Yield the same for clients outside."""
    yield from _lines(explained.from_outside)


def _lines(frontends: Iterable[Frontend]) -> Iterator[str]:
    for one in frontends:
        address = f"[{one.address}]" if ":" in one.address else one.address
        name = f" ({one.port_name})" if one.port_name else ""
        taken = f", but Service {one.taken_by} has it" if one.taken_by else ""
        whose = "of each node" if one.kind == "node port" else "address"
        fenced = f", from {', '.join(one.from_networks)}" if one.from_networks else ""
        yield f"{address}:{one.port}/{one.protocol}{name}, {one.kind} {whose}{fenced}{taken}"
        for backend in one.backends:
            yield f"  {_backend(backend)}"
        if not one.backends:
            yield "  no endpoints: refused"


def _backend(one: Backend) -> str:
    address = f"[{one.address}]" if ":" in one.address else one.address
    who = f" {one.pod}" if one.pod else ""
    where = f" on {one.node}" if one.node else ""
    reasons = "; ".join(
        f"not used{f' on {_few(reason.nodes)}' if one.used_on else ''}: {reason.why}" for reason in one.not_used
    )
    if one.used_on and one.not_used:
        return f"{address}:{one.port}{who}{where}: used on {_few(one.used_on)}; {reasons}"
    return f"{address}:{one.port}{who}{where}: {reasons or 'used'}"


def _few(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:3])
    return f"{shown} and {len(nodes) - 3} more" if len(nodes) > 3 else shown


def _name(service: Service) -> ServiceName:
    return (service.metadata.namespace, service.metadata.name)


def _pod_name(pod: Pod | None) -> str:
    return f"{pod.metadata.namespace}/{pod.metadata.name}" if pod else ""
