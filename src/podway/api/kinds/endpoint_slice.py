"""EndpointSlice (discovery.k8s.io/v1): some of the endpoints behind a Service, of one family."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import msgspec

from podway.api.columns import AGE, LABELS, NAME, NAMESPACE, Column
from podway.api.fields import Problem, check_port, parse_legacy_address
from podway.api.meta import Record
from podway.api.resource import Names, Resource

SERVICE_LABEL = "kubernetes.io/service-name"
"""The label by which a slice belongs to the Service of this name."""


class EndpointConditions(Record, frozen=True, kw_only=True):
    """How an endpoint is; what is not said is: ready, serving as it is ready, not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(Record, frozen=True, kw_only=True):
    """A zone whose traffic an endpoint is for."""

    name: str = ""


class ForNode(Record, frozen=True, kw_only=True):
    """A node whose traffic an endpoint is for."""

    name: str = ""


class EndpointHints(Record, frozen=True, kw_only=True):
    """Whose traffic an endpoint is for."""

    for_zones: tuple[ForZone, ...] = ()
    for_nodes: tuple[ForNode, ...] = ()


class TargetReference(Record, frozen=True, kw_only=True):
    """What an endpoint is: mostly a Pod."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class Endpoint(Record, frozen=True, kw_only=True):
    """One that serves; of several addresses all but the first are passed over, as the API has it."""

    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str = ""
    target_ref: TargetReference | None = None
    node_name: str = ""
    zone: str = ""
    hints: EndpointHints | None = None
    deprecated_topology: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether new connections are for it."""
        return self.conditions.ready is not False

    @property
    def serving(self) -> bool:
        """Whether it answers, be it about to end or not."""
        said = self.conditions.serving
        return self.ready if said is None else said

    @property
    def terminating(self) -> bool:
        """Whether it is about to end."""
        return bool(self.conditions.terminating)


class EndpointPort(Record, frozen=True, kw_only=True):
    """A port of all endpoints of a slice; it belongs to the Service's port of the same name."""

    name: str = ""
    protocol: str = "TCP"
    port: int | None = None
    app_protocol: str = ""


def _service(piece: "EndpointSlice") -> Iterable[Hashable]:
    name = piece.service
    return (name,) if name else ()


class EndpointSlice(Resource, frozen=True, kw_only=True):
    """A part of what serves behind a Service."""

    KIND: ClassVar = "EndpointSlice"
    NAMESPACED: ClassVar = True
    NAMES: ClassVar = Names("endpointslices")
    COLUMNS: ClassVar = (
        NAMESPACE,
        NAME,
        Column("ADDRESSTYPE", lambda piece, _: piece.address_type),
        Column("PORTS", lambda piece, _: ",".join(str(port.port or "-") for port in piece.ports or ()) or "-"),
        Column("ENDPOINTS", lambda piece, _: _few([e.addresses[0] for e in piece.endpoints or () if e.addresses])),
        AGE,
        LABELS,
    )
    IN_VIEW: ClassVar = True
    INDICES: ClassVar[Mapping[str, Callable[[Any], Iterable[Hashable]]]] = MappingProxyType({"service": _service})

    api_version: Literal["discovery.k8s.io/v1"] = "discovery.k8s.io/v1"
    kind: Literal["EndpointSlice"] = "EndpointSlice"
    address_type: str = ""
    # An API server writes null for an empty list.
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None

    @property
    def service(self) -> tuple[str, str] | None:
        """Namespace and name of the Service that it belongs to; None if its label names none."""
        name = self.metadata.labels.get(SERVICE_LABEL)
        return (self.metadata.namespace, name) if name else None

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in addresses and ports."""
        if self.address_type in ("IPv4", "IPv6"):
            for index, endpoint in enumerate(self.endpoints or ()):
                for number, text in enumerate(endpoint.addresses):
                    yield from _address(f"endpoints[{index}].addresses[{number}]", text, self.address_type)
        for index, port in enumerate(self.ports or ()):
            if port.port is not None:
                yield from check_port(f"ports[{index}].port", port.port)


def _address(where: str, text: str, family: str) -> Iterator[Problem]:
    try:
        if f"IPv{parse_legacy_address(text).version}" == family:
            return
    except ValueError:
        pass
    yield where, f"{text!r} is not an {family} address", "write one address of the slice's addressType"


def _few(texts: list[str]) -> str:
    shown = ",".join(texts[:3])
    return (f"{shown} + {len(texts) - 3} more" if len(texts) > 3 else shown) or "-"
