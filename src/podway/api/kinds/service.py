"""Service (v1): addresses and ports behind which the pods of an application are reached.

Every field of the API is here. What an object says that is none of what its API has (a protocol, a traffic policy)
is passed over when it is read: planners take it for what the API's default says, or serve that port not at all.
`podway apply` refuses it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import msgspec

from podway.api.addresses import Address
from podway.api.columns import AGE, LABELS, NAME, NAMESPACE, Column
from podway.api.fields import (
    LABEL,
    Problem,
    check_labels,
    check_port,
    check_port_name,
    parse_block,
    parse_legacy_address,
)
from podway.api.meta import Record
from podway.api.resource import Names, Resource
from podway.api.status import Condition

NO_ADDRESS = "None"
"""What `clusterIP` says of a headless Service."""

HEADLESS_LABEL = "service.kubernetes.io/headless"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
"""Labels (of whatever value) by which a Service says that it is not for a cluster's own proxies."""

MOST_ENDPOINTS = 1 << 16
"""Endpoints of a Service's port and family that a node's own processes are led to; more are left out."""

AFFINITY_SECONDS = 10800
MOST_AFFINITY_SECONDS = 86400


class ServicePort(Record, frozen=True, kw_only=True):
    """A port of a Service. `target_port` is a number, or a name that each pod's port is found by; 0: the same."""

    name: str = ""
    protocol: str = "TCP"
    app_protocol: str = ""
    port: int
    target_port: int | str = 0
    node_port: int = 0


class ClientIPConfig(Record, frozen=True, kw_only=True):
    """For how long a client that makes no connection is remembered."""

    timeout_seconds: int = AFFINITY_SECONDS


class SessionAffinityConfig(Record, frozen=True, kw_only=True):
    """More of `sessionAffinity`."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Record, frozen=True, kw_only=True):
    """What a Service is asked to be."""

    type: str = "ClusterIP"
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = msgspec.field(default_factory=dict)
    # Kubernetes writes these with capitals that no rule gives.
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    external_ips: tuple[str, ...] = msgspec.field(default=(), name="externalIPs")
    load_balancer_ip: str = msgspec.field(default="", name="loadBalancerIP")
    external_name: str = ""
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    traffic_distribution: str = ""
    health_check_node_port: int = 0
    publish_not_ready_addresses: bool = False
    ip_families: tuple[str, ...] = ()
    ip_family_policy: str = ""
    load_balancer_class: str = ""
    load_balancer_source_ranges: tuple[str, ...] = ()
    allocate_load_balancer_node_ports: bool = True


class PortStatus(Record, frozen=True, kw_only=True):
    """What a load balancer says of a port."""

    port: int = 0
    protocol: str = "TCP"
    error: str = ""


class LoadBalancerIngress(Record, frozen=True, kw_only=True):
    """An address of a load balancer. Where `ip_mode` is `Proxy`, nobody but it may answer in its name."""

    ip: str = ""
    hostname: str = ""
    ip_mode: str = "VIP"
    ports: tuple[PortStatus, ...] = ()


class LoadBalancerStatus(Record, frozen=True, kw_only=True):
    """The addresses that a Service has of a load balancer."""

    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(Record, frozen=True, kw_only=True):
    """What is observed of a Service."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()
    conditions: tuple[Condition, ...] = ()


class Service(Resource, frozen=True, kw_only=True):
    """One name, and addresses and ports, for a changing set of pods."""

    KIND: ClassVar = "Service"
    NAMESPACED: ClassVar = True
    NAMES: ClassVar = Names("services", short=("svc",))
    NAME_FORM: ClassVar = LABEL
    COLUMNS: ClassVar = (
        NAMESPACE,
        NAME,
        Column("TYPE", lambda service, _: service.spec.type),
        Column("CLUSTER-IP", lambda service, _: ",".join(_addresses(service)) or "-"),
        Column("EXTERNAL-IP", lambda service, _: ",".join(service.outside_addresses) or "-"),
        Column("PORTS", lambda service, _: ",".join(map(port_text, service.spec.ports)) or "-"),
        Column("SELECTOR", lambda service, _: _selector(service), wide=True),
        AGE,
        LABELS,
    )
    COMPLETE: ClassVar = True
    IN_VIEW: ClassVar = True
    INDICES: ClassVar[Mapping[str, Callable[[Any], Iterable[Hashable]]]] = MappingProxyType(
        {
            "given": lambda service: (True,) if service.status.load_balancer.ingress else (),
            "address": lambda service: service.reached_at,
        }
    )

    api_version: Literal["v1"] = "v1"
    kind: Literal["Service"] = "Service"
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()

    @property
    def is_headless(self) -> bool:
        """Whether it is only a name: it has no address of its own on purpose."""
        return NO_ADDRESS in (self.spec.cluster_ip, *self.spec.cluster_ips)

    @property
    def is_others(self) -> bool:
        """Whether its labels say that it is for another proxy, or for none."""
        return HEADLESS_LABEL in self.metadata.labels or PROXY_NAME_LABEL in self.metadata.labels

    @property
    def cluster_addresses(self) -> tuple[Address, ...]:
        """The addresses within the cluster, in the order of its families; none of what has none."""
        if self.is_headless or self.spec.type == "ExternalName":
            return ()
        # Addresses that are no addresses are a problem of the object's, so there are none here.
        return tuple(map(parse_legacy_address, _addresses(self)))

    @property
    def outside_addresses(self) -> tuple[str, ...]:
        """The addresses by which it is reached from outside, as they are written: external and load balancers'."""
        ingress = self.status.load_balancer.ingress if self.spec.type == "LoadBalancer" else ()
        return (*self.spec.external_ips, *(one.ip or one.hostname for one in ingress if one.ip or one.hostname))

    @property
    def reached_at(self) -> tuple[str, ...]:
        """All its addresses, in and out of the cluster, each once, as Python writes them."""
        external = map(parse_legacy_address, self.spec.external_ips)
        every = (*self.cluster_addresses, *external, *self.load_balancer_addresses)
        return tuple(dict.fromkeys(map(str, every)))

    @property
    def load_balancer_addresses(self) -> tuple[Address, ...]:
        """The addresses that a load balancer gave it, whatever type it has by now."""
        return tuple(parse_legacy_address(one.ip) for one in self.status.load_balancer.ingress if one.ip)

    @property
    def affinity_seconds(self) -> int:
        """For how long a client stays with its backend; 0: each connection goes to any."""
        if self.spec.session_affinity != "ClientIP":
            return 0
        config = self.spec.session_affinity_config
        return config.client_ip.timeout_seconds if config and config.client_ip else AFFINITY_SECONDS

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in ports, addresses and times, as Kubernetes' API server does."""
        spec = self.spec
        yield from check_labels("spec.selector", spec.selector)
        names: set[str] = set()
        numbers: set[tuple[str, int]] = set()
        for index, port in enumerate(spec.ports):
            where = f"spec.ports[{index}]"
            yield from _port(where, port)
            if len(spec.ports) > 1 and not port.name:
                yield f"{where}.name", "is missing", "name each port of a Service that has several"
            if port.name in names:
                yield f"{where}.name", f"{port.name!r} is another port's name", "give each port its own"
            if (port.protocol, port.port) in numbers:
                problem = f"{port.protocol} port {port.port} is there already"
                yield f"{where}.port", problem, "remove one of them"
            names.add(port.name)
            numbers.add((port.protocol, port.port))
        for field, texts in (
            ("clusterIP", [spec.cluster_ip] if spec.cluster_ip else []),
            ("clusterIPs", spec.cluster_ips),
            ("externalIPs", spec.external_ips),
        ):
            for number, text in enumerate(texts):
                where = "spec.clusterIP" if field == "clusterIP" else f"spec.{field}[{number}]"
                if text != NO_ADDRESS or field == "externalIPs":
                    yield from _address(where, text)
        for number, one in enumerate(self.status.load_balancer.ingress):
            if one.ip:
                yield from _address(f"status.loadBalancer.ingress[{number}].ip", one.ip)
        for number, text in enumerate(spec.load_balancer_source_ranges):
            try:
                parse_block(text.strip())
            except ValueError as error:
                where = f"spec.loadBalancerSourceRanges[{number}]"
                yield where, str(error), "write a network such as 192.0.2.0/24"
        if not 0 <= self.affinity_seconds <= MOST_AFFINITY_SECONDS:
            where = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            problem = f"{self.affinity_seconds} is out of range"
            yield where, problem, f"write seconds, between 1 and {MOST_AFFINITY_SECONDS}"


def port_text(port: ServicePort) -> str:
    """Return a port as `kubectl get` writes it: `80/TCP`, `80:30080/TCP`."""
    return f"{port.port}{f':{port.node_port}' if port.node_port else ''}/{port.protocol}"


def _addresses(service: Service) -> tuple[str, ...]:
    first = (service.spec.cluster_ip,) if service.spec.cluster_ip else ()
    return service.spec.cluster_ips or first


def _selector(service: Service) -> str:
    return ",".join(f"{name}={value}" for name, value in service.spec.selector.items()) or "-"


def _port(where: str, port: ServicePort) -> Iterator[Problem]:
    yield from check_port(f"{where}.port", port.port)
    if isinstance(port.target_port, str):
        yield from check_port_name(f"{where}.targetPort", port.target_port)
    elif port.target_port:
        yield from check_port(f"{where}.targetPort", port.target_port)
    if port.node_port:
        yield from check_port(f"{where}.nodePort", port.node_port)


def _address(where: str, text: str) -> Iterator[Problem]:
    try:
        parse_legacy_address(text)
    except ValueError:
        yield where, f"{text!r} is not an IPv4 or IPv6 address", "write one address, without a prefix length"
