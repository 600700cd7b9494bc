"""Services and EndpointSlices as they are read: mistakes are told with their field; what others wrote is read."""

import json
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from podway.api.decode import decode
from podway.api.fields import parse_legacy_address
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.service import Service
from podway.api.rules import check_change
from podway.api.validate import problems, validate
from podway.errors import InvalidObject

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.1]}]
ports: [{port: 8080}]
"""


def read(text: Any) -> Any:
    (manifest,) = decode(text, source="test")
    return manifest.resource


def wrong(text: Any, *others: Any) -> Any:
    """Return the field and problem of the mistake that `podway apply` would tell of a manifest."""
    with pytest.raises(InvalidObject) as caught:
        apply(read(text), *others)
    assert caught.value.hint
    return caught.value.field, caught.value.problem


def apply(obj: Any, *others: Any) -> None:
    validate(obj)
    check_change(obj, others)


EVERY_FIELD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "type": "LoadBalancer",
        "ports": [
            {
                "name": "http",
                "protocol": "UDP",
                "appProtocol": "kubernetes.io/h2c",
                "port": 80,
                "targetPort": "web",
                "nodePort": 30080,
            },
            {"name": "admin", "port": 81, "targetPort": 8081},
        ],
        "selector": {"app": "web"},
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00:96::10"],
        "externalIPs": ["192.0.2.1"],
        "loadBalancerIP": "192.0.2.2",
        "externalName": "example.org",
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local",
        "trafficDistribution": "PreferSameZone",
        "healthCheckNodePort": 32000,
        "publishNotReadyAddresses": True,
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "PreferDualStack",
        "loadBalancerClass": "example.org/lb",
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "allocateLoadBalancerNodePorts": False,
    },
    "status": {
        "loadBalancer": {
            "ingress": [
                {"ip": "192.0.2.3", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "UDP", "error": "X"}]},
                {"hostname": "lb.example.org"},
            ]
        }
    },
}


def test_every_field_of_a_service_is_read_and_written_back_as_it_was() -> None:
    service = read(json.dumps(EVERY_FIELD))
    apply(service)
    known = {field.encode_name for field in msgspec.structs.fields(type(service.spec))}
    assert known == EVERY_FIELD["spec"].keys()
    written = json.loads(msgspec.json.encode(service))
    assert written["spec"] == EVERY_FIELD["spec"]
    assert written["status"] == EVERY_FIELD["status"]
    assert service.affinity_seconds == 60
    assert service.cluster_addresses == (ip_address("10.96.0.10"), ip_address("fd00:96::10"))


def test_defaults_are_those_of_the_api() -> None:
    service = read(SERVICE)
    apply(service)
    assert service.spec.ports[0].protocol == "TCP"
    assert service.affinity_seconds == 0
    assert read(SERVICE + "  sessionAffinity: ClientIP\n").affinity_seconds == 10800
    (endpoint,) = read(SLICE).endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == (True, True, False)


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ("{ready: false}", (False, False, False)),
        ("{ready: false, serving: true, terminating: true}", (False, True, True)),
        ("{ready: null, serving: null, terminating: null}", (True, True, False)),
        ("{serving: false}", (True, False, False)),
    ],
)
def test_conditions_that_are_not_said(conditions: Any, said: Any) -> None:
    (endpoint,) = read(SLICE.replace("10.244.1.1]", f"10.244.1.1], conditions: {conditions}")).endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == said


@pytest.mark.parametrize(
    ("rest", "field", "problem"),
    [
        ("clusterIp: 10.96.0.1", "spec.clusterIp", "is not a field here"),
        ("ports: [{prot: 80, port: 1}]", "spec.ports[0].prot", "is not a field here"),
        ("ports: [{port: 0}]", "spec.ports[0].port", "0 is out of range"),
        ("ports: [{port: 80, targetPort: 70000}]", "spec.ports[0].targetPort", "70000 is out of range"),
        ("ports: [{port: 80, targetPort: A_B}]", "spec.ports[0].targetPort", "'A_B' is not a port's name"),
        ("ports: [{port: 80, protocol: tcp}]", "spec.ports[0].protocol", "'tcp' is no protocol of Services"),
        ("ports: [{port: 80}, {port: 81}]", "spec.ports[0].name", "is missing"),
        ("ports: [{port: 1, name: a}, {port: 2, name: a}]", "spec.ports[1].name", "'a' is another port's name"),
        ("ports: [{port: 1, name: a}, {port: 1, name: b}]", "spec.ports[1].port", "TCP port 1 is there already"),
        ("ports: []", "spec.ports", "is missing"),
        ("clusterIP: 10.96.0.0/24", "spec.clusterIP", "'10.96.0.0/24' is not an IPv4 or IPv6 address"),
        ("externalIPs: [None]", "spec.externalIPs[0]", "'None' is not an IPv4 or IPv6 address"),
        ("type: Clusterip", "spec.type", "'Clusterip' is not possible"),
        ("internalTrafficPolicy: local", "spec.internalTrafficPolicy", "'local' is not possible"),
        ("ipFamilyPolicy: Dual", "spec.ipFamilyPolicy", "'Dual' is not possible"),
        ("loadBalancerSourceRanges: [10.0.0.1]", "spec.loadBalancerSourceRanges[0]", "no prefix length"),
        (
            "sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "86401 is out of range",
        ),
    ],
)
def test_mistakes_in_a_service(rest: Any, field: Any, problem: Any) -> None:
    name = rest.partition(":")[0]
    kept = "".join(line for line in SERVICE.splitlines(keepends=True) if not line.startswith(f"  {name}:"))
    found = wrong(f"{kept}  {rest}\n")
    assert found[0] == field
    assert problem in found[1]


@pytest.mark.parametrize(
    ("before", "after", "field", "problem"),
    [
        ("IPv4", "IPv5", "addressType", "'IPv5' is not possible"),
        ("IPv4", "IPv6", "endpoints[0].addresses[0]", "'10.244.1.1' is not an IPv6 address"),
        ("[10.244.1.1]", "[]", "endpoints[0].addresses", "is empty"),
        ("10.244.1.1", "127.0.0.1", "endpoints[0].addresses[0]", "127.0.0.1 is loopback"),
        ("port: 8080", "port: 0", "ports[0].port", "0 is out of range"),
        ("port: 8080", "port: 8, protocol: ICMP", "ports[0].protocol", "'ICMP' is no protocol of Services"),
        ("kubernetes.io/service-name", "app", "metadata.labels", "it belongs to no Service"),
    ],
)
def test_mistakes_in_a_slice(before: Any, after: Any, field: Any, problem: Any) -> None:
    found = wrong(SLICE.replace(before, after))
    assert found[0] == field
    assert problem in found[1]


def test_two_services_do_not_get_one_address() -> None:
    other = read(SERVICE.replace("name: web", "name: other").replace("10.96.0.10", "010.96.0.10"))
    assert wrong(SERVICE, other) == ("spec.clusterIP", "10.96.0.10 is the address of Service shop/other")
    apply(read(SERVICE), read(SERVICE))


def test_services_are_not_asked_for_without_what_serves_them() -> None:
    text = "apiVersion: podway.io/v1\nkind: NetworkConfig\nmetadata: {name: default}\nspec: {services: pods}\n"
    assert wrong(text) == ("spec.services", "needs the flow engine, and dataPath is kernel")
    apply(read(text.replace("pods", "pods, dataPath: ebpf")))


def test_what_a_newer_api_may_hold_is_read_and_is_no_broken_object() -> None:
    newer = EVERY_FIELD["spec"] | {
        "type": "New",
        "sessionAffinity": "Cookie",
        "trafficDistribution": "X",
        "new": {},
    }
    newer["ports"] = [{"port": 443, "protocol": "QUIC"}]
    body = json.dumps(EVERY_FIELD | {"spec": newer})
    assert not list(problems(msgspec.json.decode(body, type=Service)))
    nothing = '{"metadata":{"name":"a","namespace":"b"},"addressType":"FQDN","endpoints":null,"ports":null}'
    assert not list(problems(msgspec.json.decode(nothing, type=EndpointSlice)))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("010.000.00.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00:0:0::1", "fd00::1"),
    ],
)
def test_legacy_spellings_of_addresses(text: Any, address: Any) -> None:
    assert parse_legacy_address(text) == ip_address(address)


@pytest.mark.parametrize(
    "text", ["10.0.0", "10.0.0.256", "0x10.0.0.1", "10.0.0.-1", "fe80::1%eth0", "", "10.0.0.\u0661"]
)
def test_what_is_no_address_in_any_spelling(text: Any) -> None:
    with pytest.raises(ValueError, match=r".|^$"):
        parse_legacy_address(text)
