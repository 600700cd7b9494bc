"""deploy/crds.yaml before a real API server: it takes what `problems` takes, and refuses what CEL can judge."""

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podway.api.checked import RejectedObject, check
from podway.api.crd import definition, own_kinds
from podway.api.encode import to_builtins
from podway.api.kinds.address_block import AddressBlock, block_name
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.resource import Resource, api_version
from tests.kubernetes import Answer, ApiServer

pytestmark = pytest.mark.kernel

Kind = type[Resource]


def body(kind: Kind, spec: Any, name: str = "x", **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": api_version(kind),
        "kind": kind.KIND,
        "metadata": {"name": kind.ONLY or name},
        "spec": spec,
        **more,
    }


def is_right(kind: Kind, document: dict[str, Any]) -> bool:
    """Tell whether Podway takes an object."""
    name = document["metadata"]["name"]
    return not isinstance(check((kind.KIND, "", name), msgspec.json.encode(document)), RejectedObject)


def refusal(server: ApiServer, kind: Kind, document: dict[str, Any]) -> str:
    """Return why the API server refuses an object, "" if it takes it. It stores nothing."""
    path = f"/apis/{api_version(kind)}/{kind.NAMES.plural}?dryRun=All&fieldValidation=Strict"
    try:
        server.ask("POST", path, document)
    except Answer as answer:
        if answer.status not in (400, 422):
            raise
        return str(answer.document["message"])
    return ""


PEER = {"address": "10.0.0.1", "asn": 64512}
AUTHORITY = {"certificate": "c", "privateKey": "k", "notBefore": "2026-01-01T00:00:00Z"}
AUTHORITY |= {"notAfter": "2027-01-01T00:00:00Z"}

RIGHT: list[tuple[Kind, Any]] = [
    (IPPool, {"cidr": "10.244.0.0/16"}),
    (IPPool, {"cidr": "fd00::/64", "encapsulation": "vxlan", "when": "cross-subnet"}),
    (IPPool, {"cidr": "10.0.0.0/28", "blockSize": 30, "excluded": ["10.0.0.1", "10.0.0.8/30"]}),
    (IPPool, {"cidr": "10.0.0.0/16", "nodeSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}),
    (IPPool, {"cidr": "192.0.2.8/32", "use": "services"}),
    (IPPool, {"cidr": "2001:db8::/112", "use": "services", "advertise": "layer2", "excluded": ["2001:db8::1"]}),
    (IPPool, {"cidr": "192.0.2.0/24", "use": "services", "advertise": "pool", "namespaceSelector": {}}),
    (IPPool, {"cidr": "10.244.0.0/16", "use": "pods", "advertise": "addresses", "natOutgoing": False}),
    (BGPPeer, PEER),
    (BGPPeer, {**PEER, "import": [{"cidr": "0.0.0.0/0", "action": "accept", "maxLength": 24}]}),
    (BGPPeer, {**PEER, "password": {"secret": {"namespace": "a", "name": "b", "key": "c"}}}),
    (BGPPeer, {**PEER, "node": "n1", "sourceAddress": "10.0.0.2", "communities": ["65000:1", "1:2:3"]}),
    (BGPPeer, {"address": "2001:db8::1", "asn": 4200000000, "multihop": 3, "ttlSecurity": True}),
    (NetworkConfig, {}),
    (NetworkConfig, {"mtu": 1400, "bgp": {"asn": 64600, "reflectors": {"count": 2}}, "vxlan": {"vni": 7}}),
    (NetworkConfig, {"channel": {"certificateLifetimeSeconds": 10, "authorityLifetimeSeconds": 60}}),
    (ClusterAuthority, {"cluster": "u", "authorities": [AUTHORITY]}),
]


@pytest.mark.parametrize(("kind", "spec"), RIGHT)
def test_what_is_right_is_taken(api_server: ApiServer, kind: Kind, spec: Any) -> None:
    document = body(kind, spec)
    assert is_right(kind, document)
    assert refusal(api_server, kind, document) == ""


WRONG: list[tuple[Kind, Any, str]] = [
    (IPPool, {"cidr": "10.244.0.1/16"}, "bits after the prefix"),
    (IPPool, {"cidr": "10.244.0.0"}, "is no network"),
    (IPPool, {}, "spec.cidr: Required"),
    (IPPool, {"cidr": "127.0.0.0/16"}, "loopback"),
    (IPPool, {"cidr": "0.0.0.0/0"}, "another use"),
    (IPPool, {"cidr": "10.0.0.0/28"}, "state blockSize"),
    (IPPool, {"cidr": "10.0.0.0/16", "blockSize": 31}, "between the pool's"),
    (IPPool, {"cidr": "10.0.0.0/16", "blockSize": 15}, "between the pool's"),
    (IPPool, {"cidr": "10.0.0.0/16", "excluded": ["10.1.0.1"]}, "inside the pool"),
    (IPPool, {"cidr": "10.0.0.0/16", "excluded": ["10.0.0.x"]}, "inside the pool"),
    (IPPool, {"cidr": "fd00::/64", "encapsulation": "ipip"}, "RFC 2003"),
    (IPPool, {"cidr": "10.0.0.0/16", "when": "cross-subnet"}, "encapsulation is none"),
    (IPPool, {"cidr": "10.0.0.0/16", "encapsulation": "gre"}, "Unsupported value"),
    (IPPool, {"cidr": "10.0.0.0/16", "cooldownSeconds": -1}, "cooldownSeconds"),
    (IPPool, {"cidr": "10.0.0.0/16", "colour": "red"}, "unknown field"),
    (IPPool, {"cidr": "10.0.0.0/16", "use": "nodes"}, "Unsupported value"),
    (IPPool, {"cidr": "10.0.0.0/16", "advertise": "layer2"}, "is for Services"),
    *(
        (IPPool, {"cidr": "10.0.0.0/16", "use": "services", **more}, "these are for pods")
        for more in (
            {"blockSize": 24},
            {"cooldownSeconds": 0},
            {"distribution": "store"},
            {"encapsulation": "vxlan"},
            {"attach": "bridge"},
            {"natOutgoing": False},
            {"ranges": "podCIDRs"},
        )
    ),
    (
        IPPool,
        {"cidr": "10.0.0.0/16", "nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        "In and NotIn need",
    ),
    (BGPPeer, {"address": "10.0.0.0/8", "asn": 64512}, "is no IPv4 or IPv6 address"),
    (BGPPeer, {"address": "224.0.0.5", "asn": 64512}, "no address of a host"),
    (BGPPeer, {"address": "10.0.0.1", "asn": 23456}, "is reserved"),
    (BGPPeer, {"address": "10.0.0.1", "asn": 4294967296}, "spec.asn"),
    (BGPPeer, {**PEER, "port": 0}, "spec.port"),
    (BGPPeer, {**PEER, "node": "n", "nodeSelector": {}}, "keep one of them"),
    (BGPPeer, {**PEER, "sourceAddress": "10.0.0.2"}, "sourceAddress"),
    (BGPPeer, {**PEER, "node": "n", "sourceAddress": "fd00::1"}, "sourceAddress"),
    (BGPPeer, {**PEER, "password": {}}, "either a file or a secret"),
    (BGPPeer, {**PEER, "password": {"file": "key"}}, "password.file"),
    (BGPPeer, {**PEER, "communities": ["65000"]}, "communities"),
    (BGPPeer, {**PEER, "multihop": 255, "ttlSecurity": True}, "RFC 5082"),
    (BGPPeer, {**PEER, "export": [{"cidr": "fd00::/8", "action": "accept"}]}, "family"),
    (BGPPeer, {**PEER, "import": [{"cidr": "fd00::/8", "action": "accept"}]}, "family"),
    (BGPPeer, {**PEER, "import": [{"cidr": "10.0.0.0/8", "action": "accept", "minLength": 7}]}, "lengths"),
    (BGPPeer, {**PEER, "import": [{"cidr": "10.0.0.0/8", "action": "accept", "maxLength": 33}]}, "lengths"),
    (NetworkConfig, {"mtu": 500}, "576"),
    (NetworkConfig, {"bgp": {"asn": 0}}, "is reserved"),
    (NetworkConfig, {"bgp": {"bfdInterval": 5}}, "bfdInterval"),
    (NetworkConfig, {"vxlan": {"port": 3784}}, "BFD"),
    (NetworkConfig, {"channel": {"authorityLifetimeSeconds": 3600}}, "6 times"),
    (ClusterAuthority, {"cluster": "u", "authorities": []}, "authorities"),
    (ClusterAuthority, {"cluster": "u", "authorities": [{**AUTHORITY, "privateKey": "(redacted)"}]}, "redacted"),
    (AddressBlock, {"cidr": "10.0.0.0/24", "pool": "P", "node": "n"}, "spec.pool"),
    (AddressBlock, {"cidr": "10.0.0.0/24", "pool": "p", "node": "n"}, "the name is that of the block"),
]


@pytest.mark.parametrize(("kind", "spec", "why"), WRONG)
def test_what_is_wrong_is_refused_and_told_why(api_server: ApiServer, kind: Kind, spec: Any, why: str) -> None:
    document = body(kind, spec)
    assert not is_right(kind, document)
    assert why in refusal(api_server, kind, document)


def test_settings_have_one_name(api_server: ApiServer) -> None:
    document = body(NetworkConfig, {})
    document["metadata"]["name"] = "other"
    assert "is named default" in refusal(api_server, NetworkConfig, document)


def networks_of(bits: int) -> st.SearchStrategy[str]:
    parts = st.tuples(st.integers(0, 2**bits - 1), st.integers(8, bits))
    return parts.map(
        lambda part: str((ipaddress.IPv4Network if bits == 32 else ipaddress.IPv6Network)(part, False))
    )


networks = networks_of(32) | networks_of(128)
pools = st.fixed_dictionaries(
    {"cidr": networks},
    optional={
        "blockSize": st.integers(0, 128),
        "excluded": st.lists(networks | st.ip_addresses().map(str), max_size=2),
        "encapsulation": st.sampled_from(["none", "vxlan", "ipip"]),
        "when": st.sampled_from(["always", "cross-subnet"]),
        "cooldownSeconds": st.integers(-1, 100),
    },
)
rules = st.fixed_dictionaries(
    {"cidr": networks, "action": st.sampled_from(["accept", "reject"])},
    optional={"minLength": st.integers(0, 130), "maxLength": st.integers(0, 130)},
)
peers = st.fixed_dictionaries(
    {"address": st.ip_addresses().map(str), "asn": st.integers(0, 2**32)},
    optional={
        "node": st.sampled_from(["", "n1"]),
        "sourceAddress": st.just("") | st.ip_addresses().map(str),
        "multihop": st.integers(-1, 256),
        "ttlSecurity": st.booleans(),
        "import": st.lists(rules, max_size=2),
        "communities": st.lists(st.sampled_from(["1:2", "1:2:3", "70000:1", "1", ""]), max_size=2),
    },
)
blocks = st.fixed_dictionaries({"cidr": networks, "pool": st.just("p"), "node": st.sampled_from(["n1", "N"])})


SPECS: tuple[tuple[Kind, st.SearchStrategy[Any]], ...] = (
    (IPPool, pools),
    (BGPPeer, peers),
    (AddressBlock, blocks),
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.one_of([st.tuples(st.just(kind), spec) for kind, spec in SPECS]))
def test_the_api_server_refuses_nothing_that_podway_takes(api_server: ApiServer, drawn: tuple[Kind, Any]) -> None:
    """The other way round need not be: CEL cannot judge all, and Podway rejects the rest when it reads."""
    kind, spec = drawn
    name = block_name(ipaddress.ip_network(spec["cidr"])) if kind is AddressBlock else "x"
    document = body(kind, spec, name)
    why = refusal(api_server, kind, document)
    if is_right(kind, document):
        assert why == ""


def test_explain_tells_what_the_types_tell(api_server: ApiServer) -> None:
    told = api_server.kubectl("explain", "ippools.spec.cooldownSeconds")
    assert "how long a freed address" in told
    told = api_server.kubectl("explain", "bgppeers.spec.advertise")
    assert "What a peer is told" in told
    assert "aggregates" in told


def test_kubectl_shows_the_columns(api_server: ApiServer) -> None:
    pool = body(IPPool, {"cidr": "10.244.0.0/16", "encapsulation": "vxlan"})
    api_server.ask("POST", "/apis/podway.io/v1/ippools", pool)
    try:
        header, row = api_server.kubectl("get", "ippools").splitlines()
        assert header.split() == ["NAME", "CIDR", "BLOCK", "DISTRIBUTION", "ENCAPSULATION", "ATTACH", "AGE"]
        assert row.split()[:3] == ["x", "10.244.0.0/16", "vxlan"]
    finally:
        api_server.ask("DELETE", "/apis/podway.io/v1/ippools/x")


def test_a_status_is_written_apart(api_server: ApiServer) -> None:
    """Conditions of the controller neither come with the object nor go with it."""
    path = "/apis/podway.io/v1/ippools"
    condition = {"type": "Accepted", "status": "False", "reason": "Overlaps", "message": "IPPool/y has it"}
    condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    status = {"conditions": [condition]}
    made = api_server.ask("POST", path, body(IPPool, {"cidr": "10.244.0.0/16"}, status=status))
    try:
        assert "status" not in made
        content = "application/merge-patch+json"
        judged = api_server.ask("PATCH", f"{path}/x/status", {"status": status}, content=content)
        assert judged["status"] == status
    finally:
        api_server.ask("DELETE", f"{path}/x")


def test_each_own_kind_is_defined_and_no_other() -> None:
    assert {kind.KIND for kind in own_kinds()} == {
        *("AddressBlock", "BGPPeer", "ClusterAuthority", "IPPool", "NetworkConfig", "NodeCertificate")
    }
    for kind in own_kinds():
        assert definition(kind)["spec"]["names"]["kind"] == kind.KIND


def test_what_podway_writes_is_what_the_schema_has(api_server: ApiServer) -> None:
    document = body(IPPool, {"cidr": "10.0.0.0/16", "blockSize": 26, "attach": "bridge"})
    pool = msgspec.json.decode(msgspec.json.encode(document), type=IPPool)
    assert refusal(api_server, IPPool, to_builtins(pool)) == ""
