"""Parsing of requests, without a process: whatever comes in, a typed request or a CniError comes out."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.lease import ALIAS_BYTES, Attachment, Lease
from podway.cni import spec
from podway.cni.answers import render_error
from podway.cni.arguments import PodReference, parse_arguments
from podway.cni.frames import REQUEST_HEADER, FrameError, decode_request
from podway.cni.names import MAX_NETNS, MAX_NETWORK
from podway.cni.request import Add, Delete, GarbageCollect, answer_version, parse
from podway.errors import CniError

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
}
CONFIG = {"cniVersion": "1.1.0", "name": "podway", "type": "podway"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
result_like = st.fixed_dictionaries(
    {},
    optional={
        "cniVersion": st.sampled_from([*spec.VERSIONS, "9"]) | json_values,
        "interfaces": st.lists(st.just({"name": "a"}) | json_values, max_size=2) | json_values,
        "ips": st.lists(
            st.fixed_dictionaries(
                {"address": st.sampled_from(["10.0.0.1/32", "::1", "x"]) | json_values},
                optional={"interface": st.integers(-2, 2) | json_values, "gateway": json_values},
            ),
            max_size=2,
        ),
        "routes": st.lists(st.fixed_dictionaries({"dst": st.just("0.0.0.0/0") | json_values}), max_size=2),
        "dns": json_values,
    },
)
configs = st.fixed_dictionaries(
    {"cniVersion": st.sampled_from(spec.VERSIONS) | json_values, "name": st.just("podway") | json_values},
    optional={
        "type": st.just("podway") | json_values,
        "ipMasq": json_values,
        "ipam": json_values,
        "ipv4Pools": st.lists(st.text(max_size=3)) | json_values,
        "capabilities": st.dictionaries(st.sampled_from(["ips", "mac", "a.b"]), st.booleans()) | json_values,
        "runtimeConfig": st.fixed_dictionaries({"ips": json_values, "bandwidth": json_values}) | json_values,
        "prevResult": result_like | json_values,
        "cni.dev/valid-attachments": json_values,
        "dns": json_values,
        "odd": json_values,
    },
)
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
environments = st.fixed_dictionaries(
    {"CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]) | texts},
    optional={
        "CNI_CONTAINERID": st.just("c1") | texts,
        "CNI_IFNAME": st.just("eth0") | texts,
        "CNI_NETNS": st.just("/run/netns/x") | texts,
        "CNI_ARGS": st.just("IgnoreUnknown=1;IP=10.0.0.1") | texts,
    },
)


@given(environments, st.binary(max_size=50) | configs.map(lambda c: json.dumps(c).encode()))
def test_anything_is_a_request_or_an_error_that_can_be_told(environment: dict[str, str], stdin: bytes) -> None:
    try:
        request = parse(environment, stdin)
    except CniError as error:
        told = json.loads(render_error(error, answer_version(stdin)))
        assert told["code"] in set(spec.Code)
        assert told["cniVersion"] in spec.VERSIONS
        assert told["msg"]
        assert told["details"]
    else:
        assert request.version in spec.VERSIONS


@given(st.binary(max_size=60) | st.binary(max_size=30).map(lambda b: REQUEST_HEADER.pack(spec.MAGIC, 9, 9, 0) + b))
def test_any_frame_is_read_or_refused(frame: bytes) -> None:
    try:
        request = decode_request(frame)
    except FrameError:
        return
    json.dumps(request.environment).encode()


@given(
    st.text("abcXYZ019_.-", min_size=1, max_size=MAX_NETWORK - 1).map(lambda name: "n" + name),
    st.text(st.characters(codec="utf-8", categories=["L", "N"]), max_size=MAX_NETNS // 4).map(lambda p: f"/{p}"),
    st.text("ab-", max_size=200).map(lambda name: f"p{name}"),
)
def test_what_passes_fits_into_the_lease(network: str, netns: str, pod: str) -> None:
    environment = {**ENVIRONMENT, "CNI_NETNS": netns, "CNI_ARGS": f"K8S_POD_NAMESPACE=n;K8S_POD_NAME={pod}"}
    request = parse(environment, json.dumps({**CONFIG, "name": network}).encode())
    assert isinstance(request, Add)
    lease = Lease(request.attachment, str(request.pod), request.network, request.netns, ())
    assert len(lease.alias.encode()) <= ALIAS_BYTES
    read = Lease.from_kernel(lease.attachment.altname, lease.alias, ())
    assert read is not None
    assert (read.network, read.netns) == (network, netns)


def test_a_path_too_long_for_the_lease_is_refused() -> None:
    with pytest.raises(CniError, match="CNI_NETNS: the path is too long"):
        parse({**ENVIRONMENT, "CNI_NETNS": "/" + "x" * MAX_NETNS}, json.dumps(CONFIG).encode())


@pytest.mark.parametrize(
    "config",
    [{"name": "podway"}, {"cniVersion": "9.9.9", "name": "podway", "odd": 1, "ipMasq": True, "prevResult": []}],
)
def test_delete_asks_for_no_more_than_it_needs(config: dict[str, Any]) -> None:
    environment = {**ENVIRONMENT, "CNI_COMMAND": "DEL", "CNI_NETNS": "", "CNI_ARGS": "garbage"}
    assert parse(environment, json.dumps(config).encode()) == Delete(
        version=spec.CURRENT, network="podway", attachment=Attachment("c1", "eth0")
    )


@pytest.mark.parametrize(
    "extra",
    [
        {"ipam": {}, "ipMasq": False, "args": {"cni": {"x": 1}}, "dns": {"domain": "cluster.local"}},
        {"example.org/anything": [1, 2], "cni.dev/attachments": None},
        {"capabilities": {"ips": True, "io.kubernetes.cri.pod-annotations": True, "mac": False}},
        {"runtimeConfig": {"ips": None, "portMappings": []}, "prevResult": None},
    ],
)
def test_keys_of_the_specification_and_of_other_domains_pass(extra: dict[str, Any]) -> None:
    assert isinstance(parse(ENVIRONMENT, json.dumps({**CONFIG, **extra}).encode()), Add)


def test_gc_reads_its_list() -> None:
    listed = [{"containerID": "a", "ifname": "eth0", "extra": 1}, {"containerID": "b", "ifname": "net1"}]
    config = {**CONFIG, "cni.dev/valid-attachments": listed}
    request = parse({"CNI_COMMAND": "GC"}, json.dumps(config).encode())
    assert isinstance(request, GarbageCollect)
    assert request.valid == {Attachment("a", "eth0"), Attachment("b", "net1")}


@pytest.mark.parametrize("text", ["IgnoreUnknown=true;A=1", "IgnoreUnknown=1;IP=;K8S_POD_UID=;", ""])
def test_arguments_that_say_nothing_of_ours(text: str) -> None:
    assert parse_arguments(text).pod == PodReference()


@pytest.mark.parametrize(
    "text", ["A=1", "IgnoreUnknown=0;A=1", "IgnoreUnknown=maybe", "=1", "IP=1=2", "IP=10.0.0.1,x"]
)
def test_arguments_that_libcni_would_refuse(text: str) -> None:
    with pytest.raises(CniError, match="CNI_ARGS"):
        parse_arguments(text)


def test_addresses_come_with_or_without_prefix_and_from_both_places() -> None:
    config = {**CONFIG, "runtimeConfig": {"ips": ["10.0.0.7", "fd00::7"]}}
    environment = {**ENVIRONMENT, "CNI_ARGS": "IP=10.0.0.7/16"}
    request = parse(environment, json.dumps(config).encode())
    assert isinstance(request, Add)
    assert [str(address) for address in request.addresses] == ["10.0.0.7", "fd00::7"]


@pytest.mark.parametrize(
    ("bandwidth", "limited"),
    [(None, False), ({}, False), ({"egressRate": 0}, False), ({"ingressRate": 8000, "ingressBurst": 80}, True)],
)
def test_it_is_told_of_a_limit_that_another_plugin_sets(bandwidth: object, *, limited: bool) -> None:
    config = {**CONFIG, "capabilities": {"bandwidth": True}, "runtimeConfig": {"bandwidth": bandwidth}}
    request = parse(ENVIRONMENT, json.dumps(config).encode())
    assert isinstance(request, Add)
    assert request.limited is limited


def test_a_limit_that_is_no_number_is_named() -> None:
    config = {**CONFIG, "runtimeConfig": {"bandwidth": {"egressRate": "8M"}}}
    with pytest.raises(CniError, match=r"runtimeConfig\.bandwidth"):
        parse(ENVIRONMENT, json.dumps(config).encode())


def test_deep_nesting_is_no_crash() -> None:
    deep = b'{"cniVersion":"1.1.0","args":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(CniError) as caught:
        parse(ENVIRONMENT, deep)
    assert caught.value.code in (spec.Code.DECODING_FAILURE, spec.Code.INVALID_CONFIG)


def test_a_config_list_in_place_of_a_plugin_is_named() -> None:
    with pytest.raises(CniError, match="plugins: unknown field"):
        parse(ENVIRONMENT, msgspec.json.encode({**CONFIG, "plugins": []}))
