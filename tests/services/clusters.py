"""Services, slices and pods for tests, and random ones."""

from typing import Any

import msgspec
from hypothesis import strategies as st

from podway.api.kinds.endpoint_slice import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForNode,
    ForZone,
)
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Container, ContainerPort, Pod, PodAddress, PodSpec, PodStatus
from podway.api.kinds.service import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from podway.api.meta import Metadata

SERVED = (EndpointPort(port=8080),)
NODE, OTHER, ZONE = "node1", "node2", "a"
VIP, VIP6 = "10.96.0.10", "fd00:96::10"


def service(
    name: str = "web", *ports: ServicePort, labels: Any = None, ingress: Any = (), created: str = "", **spec: Any
) -> Service:
    spec.setdefault("cluster_ips", (VIP,))
    return Service(
        metadata=Metadata(name=name, namespace="shop", labels=labels or {}, creation_timestamp=created),
        spec=ServiceSpec(ports=ports or (ServicePort(port=80),), **spec),
        status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=tuple(ingress))),
    )


def endpoint(
    address: str,
    node: str = NODE,
    *,
    ready: bool | None = None,
    serving: bool | None = None,
    terminating: bool | None = None,
    zones: Any = (),
    nodes: Any = (),
) -> Endpoint:
    hints = EndpointHints(
        for_zones=tuple(ForZone(name=one) for one in zones), for_nodes=tuple(ForNode(name=one) for one in nodes)
    )
    return Endpoint(
        addresses=(address,),
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=terminating),
        node_name=node,
        hints=hints if zones or nodes else None,
    )


def piece(
    name: str, *endpoints: Endpoint, of: str = "web", ports: Any = SERVED, kind: str = "IPv4"
) -> EndpointSlice:
    return EndpointSlice(
        metadata=Metadata(name=name, namespace="shop", labels={"kubernetes.io/service-name": of}),
        address_type=kind,
        endpoints=endpoints or None,
        ports=ports,
    )


def node(zone: str = ZONE, name: str = NODE) -> Node:
    labels = {"topology.kubernetes.io/zone": zone} if zone else {}
    return Node(metadata=Metadata(name=name, labels=labels))


def pod(
    name: str, *addresses: str, phase: str = "Running", ends: bool = False, ports: Any = (), where: str = NODE
) -> Pod:
    return Pod(
        metadata=Metadata(
            name=name,
            namespace="shop",
            labels={"app": "web"},
            deletion_timestamp="2026-01-01T00:00:00Z" if ends else "",
        ),
        spec=PodSpec(
            node_name=where,
            containers=(
                Container(
                    ports=tuple(
                        ContainerPort(name=n, container_port=number, protocol=how) for n, number, how in ports
                    )
                ),
            ),
        ),
        status=PodStatus(phase=phase, pod_ips=tuple(PodAddress(ip=one) for one in addresses)),
    )


_SAID = st.sampled_from([None, True, False])
_NAMES = st.sampled_from(["web", "api"])
_ADDRESSES = {"IPv4": [f"10.1.0.{n}" for n in range(1, 6)], "IPv6": [f"fd00:1::{n}" for n in range(1, 4)]}
_PLACES = st.sampled_from([NODE, OTHER, ""])


@st.composite
def _endpoints(draw: st.DrawFn, kind: str) -> Endpoint:
    zones = draw(st.sampled_from([(), ("a",), ("a",), ("b",), ("a", "b")]))
    nodes = draw(st.sampled_from([(), (NODE,), (NODE,), (OTHER,)]))
    return endpoint(
        draw(st.sampled_from(_ADDRESSES[kind])),
        draw(_PLACES),
        ready=draw(_SAID),
        serving=draw(_SAID),
        terminating=draw(_SAID),
        zones=zones,
        nodes=nodes,
    )


_SERVED = [
    EndpointPort(port=8080),
    EndpointPort(name="a", port=8080),
    EndpointPort(name="a", port=8081),
    EndpointPort(name="b", protocol="UDP", port=53),
    EndpointPort(name="b", protocol="SCTP", port=80),
    EndpointPort(name="c"),
]
_OFFERED = [
    (ServicePort(port=80, node_port=30080),),
    (ServicePort(name="a", port=80, node_port=30080), ServicePort(name="b", port=53, protocol="UDP")),
    (ServicePort(name="a", port=80, target_port="named"), ServicePort(name="b", port=80, protocol="SCTP")),
    (ServicePort(name="a", port=443, protocol="QUIC"), ServicePort(name="c", port=81)),
]


@st.composite
def _slices(draw: st.DrawFn) -> EndpointSlice:
    kind = draw(st.sampled_from(["IPv4", "IPv4", "IPv6", "FQDN"]))
    return piece(
        draw(st.sampled_from(["s1", "s2", "s3"])),
        *draw(st.lists(_endpoints(kind if kind in _ADDRESSES else "IPv4"), max_size=4)),
        of=draw(_NAMES),
        ports=draw(st.sampled_from([None, (), *((one,) for one in _SERVED), tuple(_SERVED[1:4:2])])),
        kind=kind,
    )


_services = st.builds(
    service,
    _NAMES,
    labels=st.sampled_from([{}, {}, {}, {"service.kubernetes.io/headless": ""}]),
    cluster_ips=st.sampled_from([(VIP,), (VIP, VIP6), ("010.96.0.11",), ("None",), ()]),
    type=st.sampled_from(["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
    external_traffic_policy=st.sampled_from(["Cluster", "Local"]),
    external_ips=st.sampled_from([(), ("192.0.2.1",), (VIP,)]),
    ingress=st.sampled_from(
        [(), (LoadBalancerIngress(ip="192.0.2.1"),), (LoadBalancerIngress(ip="192.0.2.2", ip_mode="Proxy"),)]
    ),
    load_balancer_source_ranges=st.sampled_from([(), ("203.0.113.0/24", " 2001:db8::/32 "), ("203.0.113.7/32",)]),
    internal_traffic_policy=st.sampled_from(["Cluster", "Cluster", "Local"]),
    session_affinity=st.sampled_from(["None", "ClientIP"]),
    publish_not_ready_addresses=st.booleans(),
    selector=st.sampled_from([{}, {"app": "web"}]),
    created=st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
).flatmap(lambda made: st.sampled_from(_OFFERED).map(lambda ports: _with_ports(made, ports)))


def _with_ports(made: Service, ports: tuple[ServicePort, ...]) -> Service:
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, ports=ports))


_pods = st.builds(
    pod,
    st.sampled_from(["p1", "p2"]),
    st.sampled_from(["10.1.0.7", "10.1.0.8"]),
    phase=st.sampled_from(["Pending", "Running", "Running", "Succeeded"]),
    ends=st.booleans(),
    ports=st.sampled_from([(), (("named", 9000, "TCP"),)]),
    where=st.sampled_from([NODE, OTHER]),
)

objects = st.one_of(_services, _slices(), _slices(), _pods, st.sampled_from(["", "a", "b"]).map(node))
events = st.lists(st.tuples(st.sampled_from(["put", "put", "put", "drop"]), objects), max_size=14)
