from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from podway.api.addresses import Family
from podway.api.fields import parse_interface
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import BgpSettings, NetworkConfig, NetworkConfigSpec
from podway.api.kinds.node import INTERFACE_ADDRESSES, Node
from podway.api.kinds.pod import Container, ContainerPort, Pod, PodAddress, PodSpec, PodStatus
from podway.api.meta import LabelSelector, Metadata, SelectorRequirement
from podway.api.resource import Resource
from podway.api.validate import problems, validate
from podway.errors import InvalidObject
from tests import builders


def pool(cidr: str = "10.244.0.0/16", **spec: Any) -> IPPool:
    return builders.pool("p", cidr, **spec)


def config(name: str = "default", mtu: int = 0, **bgp: Any) -> NetworkConfig:
    return NetworkConfig(metadata=Metadata(name=name), spec=NetworkConfigSpec(bgp=BgpSettings(**bgp), mtu=mtu))


def node(*addresses: str, interfaces: str = "") -> Node:
    return Node(
        metadata=Metadata(name="n", annotations={INTERFACE_ADDRESSES: interfaces}),
        status=builders.node_status(*addresses),
    )


def block(cidr: str, name: str | None = None) -> AddressBlock:
    return AddressBlock(
        metadata=Metadata(name=name or block_name(ip_network(cidr))),
        spec=AddressBlockSpec(cidr=cidr, pool="p", node="n"),
    )


def selecting(**selector: Any) -> IPPool:
    return pool(node_selector=LabelSelector(**selector))


@pytest.mark.parametrize(
    "obj",
    [
        pool(),
        pool(block_size=16),
        pool(block_size=30),
        pool("fd00:10:244::/48"),
        pool("fd00::/64", block_size=126),
        pool("10.0.0.0/24", excluded=("10.0.0.7", "10.0.0.128/25")),
        pool(cooldown_seconds=0),
        selecting(
            match_labels={"a.b/c_d.e": "F"},
            match_expressions=(SelectorRequirement(key="a", operator="NotIn", values=("", "b")),),
        ),
        config(),
        config(mtu=576, asn=4200000000, port=65535, bfd_interval=10, bfd_multiplier=255),
        node("10.0.0.1", "fd00::1", interfaces="10.0.0.1/24,fd00::1/64"),
        block("10.244.0.0/24"),
        block("fd00::/122"),
        Namespace(metadata=Metadata(name="a" * 63)),
        Pod(metadata=Metadata(name="web.0-a", namespace="x")),
    ],
)
def test_right_objects(obj: Resource) -> None:
    validate(obj)


@pytest.mark.parametrize(
    ("obj", "field", "words"),
    [
        (pool("10.244.0.1/16"), "spec.cidr", "did you mean 10.244.0.0/16"),
        (pool("10.244.0.0"), "spec.cidr", "no prefix length"),
        (pool("ten"), "spec.cidr", "no prefix length"),
        (pool("10.244.0.0/33"), "spec.cidr", "not an IPv4 or IPv6 network"),
        (pool(""), "spec.cidr", "''"),
        (pool("127.0.0.0/8"), "spec.cidr", "loopback"),
        (pool("169.254.0.0/16"), "spec.cidr", "link-local"),
        (pool("224.0.0.0/8"), "spec.cidr", "multicast"),
        (pool("0.0.0.0/0"), "spec.cidr", "RFC 1122"),
        (pool("fe80::/64"), "spec.cidr", "link-local"),
        (pool("ff00::/16"), "spec.cidr", "multicast"),
        (pool("::/0"), "spec.cidr", "RFC 4291"),
        (pool("10.0.0.0/31"), "spec.cidr", "too small"),
        (pool("fd00::/127"), "spec.cidr", "too small"),
        (pool("10.0.0.0/26"), "spec.blockSize", "/24 (the default)"),
        (pool(block_size=15), "spec.blockSize", "between the pool's, 16, and 30"),
        (pool(block_size=31), "spec.blockSize", "and 30 in IPv4"),
        (pool(block_size=0), "spec.blockSize", "/0"),
        (pool("fd00::/64", block_size=127), "spec.blockSize", "and 126 in IPv6"),
        (pool(excluded=("10.244.0.0/24", "10.245.0.1")), "spec.excluded[1]", "not inside"),
        (pool(excluded=("10.0.0.0/8",)), "spec.excluded[0]", "not inside"),
        (pool(excluded=("fd00::1",)), "spec.excluded[0]", "not inside"),
        (pool(excluded=("10.244.0.1/24",)), "spec.excluded[0]", "did you mean"),
        (pool(excluded=("x",)), "spec.excluded[0]", "'x'"),
        (pool(excluded=("10.244.0.0/17", "10.244.128.0/17")), "spec.excluded", "no address"),
        (pool(cooldown_seconds=-1), "spec.cooldownSeconds", "negative"),
        (selecting(match_labels={"-a": "b"}), "spec.nodeSelector.matchLabels[-a]", "label key"),
        (selecting(match_labels={"a": "b c"}), "spec.nodeSelector.matchLabels[a]", "label value"),
        (
            selecting(match_expressions=(SelectorRequirement(key="a", operator="In"),)),
            "spec.nodeSelector.matchExpressions[0].values",
            "needs values",
        ),
        (
            selecting(match_expressions=(SelectorRequirement(key="a", operator="Exists", values=("b",)),)),
            "spec.nodeSelector.matchExpressions[0].values",
            "takes no values",
        ),
        (config("other"), "metadata.name", "named default"),
        (config(asn=0), "spec.bgp.asn", "RFC 7607"),
        (config(asn=23456), "spec.bgp.asn", "RFC 6793"),
        (config(asn=65535), "spec.bgp.asn", "RFC 7300"),
        (config(asn=1 << 32), "spec.bgp.asn", "out of range"),
        (config(asn=-1), "spec.bgp.asn", "out of range"),
        (config(port=0), "spec.bgp.port", "out of range"),
        (config(bfd_interval=0), "spec.bgp.bfdInterval", "out of range"),
        (config(bfd_multiplier=256), "spec.bgp.bfdMultiplier", "out of range"),
        (config(mtu=100), "spec.mtu", "576"),
        (config(mtu=70000), "spec.mtu", "65535"),
        (node("10.0.0.300"), "status.addresses[0].address", "not an IPv4 or IPv6 address"),
        (node("10.0.0.1", "10.0.0.2"), "status.addresses", "more than one InternalIP of IPv4"),
        (node(interfaces="eth0"), f"metadata.annotations[{INTERFACE_ADDRESSES}]", "'eth0'"),
        (block("10.0.0.0/24", "mine"), "metadata.name", "10-0-0-0-24"),
        (
            AddressBlock(metadata=Metadata(name="x"), spec=AddressBlockSpec(cidr="x", pool="p", node="n")),
            "spec.cidr",
            "'x'",
        ),
        (Namespace(metadata=Metadata(name="a.b")), "metadata.name", "RFC 1123 label"),
        (Namespace(metadata=Metadata(name="a", namespace="b")), "metadata.namespace", "no namespace"),
        (Namespace(metadata=Metadata(name="a", labels={"a/b/c": ""})), "metadata.labels[a/b/c]", "label key"),
        (Pod(metadata=Metadata(name="web")), "metadata.namespace", "empty"),
        (Pod(metadata=Metadata(name="Web", namespace="x")), "metadata.name", "RFC 1123 subdomain"),
        (Pod(metadata=Metadata(name="a" * 254, namespace="x")), "metadata.name", "253"),
        (Pod(metadata=Metadata(name="web\n", namespace="x")), "metadata.name", "RFC 1123"),
        (
            Pod(
                metadata=Metadata(name="w", namespace="x"),
                spec=PodSpec(containers=(Container(ports=(ContainerPort(container_port=70000),)),)),
            ),
            "spec.containers[0].ports[0].containerPort",
            "70000",
        ),
        (
            Pod(
                metadata=Metadata(name="w", namespace="x"),
                spec=PodSpec(init_containers=(Container(ports=(ContainerPort(container_port=0),)),)),
            ),
            "spec.initContainers[0].ports[0].containerPort",
            "0",
        ),
        (
            Pod(metadata=Metadata(name="w", namespace="x"), status=PodStatus(pod_ips=(PodAddress(ip="x"),))),
            "status.podIPs[0].ip",
            "'x'",
        ),
    ],
)
def test_wrong_objects(obj: Resource, field: str, words: str) -> None:
    with pytest.raises(InvalidObject) as caught:
        validate(obj)
    assert caught.value.subject.startswith(f"{obj.KIND}/")
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.hint


def test_all_problems_are_told() -> None:
    found = [problem.field for problem in problems(pool("10.0.0.1/8", cooldown_seconds=-5))]
    assert found == ["spec.cooldownSeconds", "spec.cidr"]


@given(st.sampled_from(Family), st.data())
def test_a_pool_passes_if_and_only_if_it_can_be_cut_into_blocks_of_four(
    family: Family, data: st.DataObject
) -> None:
    within = family.network(*{Family.IPV4: (10 << 24, 8), Family.IPV6: (0xFD << 120, 8)}[family])
    prefix = data.draw(st.integers(8, family.bits))
    host = family.bits - prefix
    base = data.draw(st.integers(int(within[0]), int(within[-1]))) >> host << host
    size = data.draw(st.none() | st.integers(prefix - 1, family.bits))
    candidate = pool(str(family.network(base, prefix)), block_size=size)
    cut = prefix <= candidate.block_prefix <= family.bits - 2
    assert cut == (not list(problems(candidate)))


@given(
    st.one_of(st.ip_addresses().map(str), st.text(alphabet="0123456789abf.:%/", max_size=20)), st.text(max_size=3)
)
@example("10.0.0.1", "08")
@example("::1", "24")
@example("1.2.3.4", "33")
@example("1.2.3.4", "255.255.0.0")
def test_interface_addresses_are_read_as_the_library_reads_them(address: str, length: str) -> None:
    for text in (address, f"{address}/{length}", f"{address}/{len(length) * 8}"):
        try:
            expected = None if "%" in text else ip_interface(text)
        except ValueError:
            expected = None
        if expected is None:
            with pytest.raises(ValueError, match=r"zone|interface"):
                parse_interface(text)
        else:
            assert parse_interface(text) == expected
