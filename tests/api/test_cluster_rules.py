from typing import Any

import msgspec
import pytest

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.meta import LabelSelector, Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change, check_deletion
from podway.errors import InvalidObject
from tests import builders
from tests.builders import pool


def node(name: str, interfaces: str) -> Node:
    return builders.node(name, *interfaces.split(","))


def block(cidr: str, pool: str = "p", node: str = "n1") -> AddressBlock:
    return builders.block(cidr, pool, node)


def pod(name: str, node: str = "n1", ip: str = "") -> Pod:
    return builders.pod(name, node, *filter(None, [ip]), namespace="x", phase="Pending")


def config(mtu: int) -> NetworkConfig:
    return builders.config(mtu=mtu)


NODE = node("n1", "192.168.7.1/24,fd00:7::1/64")
POOL = pool("p", "10.244.0.0/16")
POOL6 = pool("six", "fd00:10:244::/56")
BLOCK = block("10.244.1.0/24")
CLUSTER = (NODE, POOL, POOL6, BLOCK, pod("web", ip="10.244.1.5"))


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (pool("q", "10.245.0.0/16"), None),
        (pool("q", "fd00:10:245::/56"), None),
        (POOL, POOL),
        (pool("p", "10.244.0.0/16", block_size=24, disabled=True, excluded=("10.244.1.0/24",)), POOL),
        (pool("six", "fd00:99::/56"), POOL6),  # none of its blocks is claimed
        (node("n2", "192.168.7.2/24"), None),
        (NODE, NODE),
        (block("10.244.2.0/24", node="n2"), None),
        (config(1280), None),
        (pod("web"), pod("web", node="")),
        (pool("s", "fd00:99::/64", use="services", node_selector=LabelSelector()), None),
        (pool("s", "192.168.7.64/26", use="services", advertise="layer2"), None),  # of the nodes' own segment
        (pool("s", "192.168.7.0/24", use="services", advertise="layer2", excluded=("192.168.7.1",)), None),
    ],
)
def test_changes_that_fit(new: Resource, old: Resource | None) -> None:
    check_change(new, CLUSTER, old=old)


@pytest.mark.parametrize(
    ("new", "old", "field", "words"),
    [
        (pool("q", "10.244.128.0/17"), None, "spec.cidr", ["10.244.128.0/17", "10.244.0.0/16", "IPPool/p"]),
        (pool("q", "10.0.0.0/8"), None, "spec.cidr", ["IPPool/p"]),
        (pool("q", "192.168.0.0/16"), None, "spec.cidr", ["192.168.7.0/24", "Node/n1"]),
        (pool("p", "10.250.0.0/16"), POOL, "spec.cidr", ["10.244.0.0/16", "n1", "Pod/x/web"]),
        (pool("p", "10.244.0.0/16", block_size=26), POOL, "spec.blockSize", ["from 24 to 26", "disabled"]),
        (pool("p", "10.244.0.0/16", use="services"), POOL, "spec.use", ["from pods to services", "n1"]),
        (pool("s", "10.244.3.0/28", use="services"), None, "spec.cidr", ["IPPool/p"]),
        (pool("s", "192.168.7.64/26", use="services"), None, "spec.cidr", ["192.168.7.0/24", "Node/n1"]),
        (
            pool("s", "192.168.7.0/28", use="services", advertise="layer2"),
            None,
            "spec.cidr",
            ["192.168.7.1/32", "Node/n1", "spec.excluded"],
        ),
        (node("n2", "10.244.9.1/16"), None, "status.addresses", ["10.244.0.0/16", "IPPool/p"]),
        (node("n2", "192.168.7.1/24"), None, "status.addresses", ["192.168.7.1", "Node/n1"]),
        (config(1279), None, "spec.mtu", ["1280", "IPPool/six"]),
        (block("10.250.0.0/24"), None, "spec.cidr", ["IPPool/p", "/24"]),
        (block("10.244.2.0/25"), None, "spec.cidr", ["blocks of /24"]),
        (block("fd00::/122"), None, "spec.cidr", ["IPPool/p"]),
        (block("10.244.2.0/24", pool="q"), None, "spec.pool", ["IPPool/q does not exist"]),
        (block("10.244.1.0/24", node="n2"), BLOCK, "spec", ["cannot be changed"]),
        (pod("web", node="n2"), pod("web", node="n1"), "spec.nodeName", ["Node/n1"]),
    ],
)
def test_changes_that_do_not_fit(new: Resource, old: Resource | None, field: str, words: list[str]) -> None:
    with pytest.raises(InvalidObject) as caught:
        check_change(new, CLUSTER, old=old)
    assert caught.value.field == field
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


def test_ipv6_pool_beside_a_small_mtu() -> None:
    with pytest.raises(InvalidObject, match=r"spec\.cidr.*1280.*NetworkConfig/default"):
        check_change(POOL6, [config(1000)])
    check_change(POOL, [config(1000)])
    check_change(pool("s", "fd00:99::/64", use="services"), [config(1000)])  # no pod has an address of it


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (POOL, ["1 of its blocks", "n1", "Pod/x/web", "spec.disabled"]),
        (BLOCK, ["Node/n1"]),
        (NODE, ["Pod/x/web"]),
        (Namespace(metadata=Metadata(name="x")), ["Pod/x/web"]),
    ],
)
def test_deletions_of_what_is_needed(obj: Resource, words: list[str]) -> None:
    with pytest.raises(InvalidObject) as caught:
        check_deletion(obj, CLUSTER)
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


def test_a_pool_for_services_has_no_blocks() -> None:
    with pytest.raises(InvalidObject, match="is for Services"):
        check_change(block("192.0.2.0/28", pool="s"), [pool("s", "192.0.2.0/28", use="services"), NODE])


def test_deletions_of_what_nothing_needs() -> None:
    check_deletion(POOL6, CLUSTER)
    check_deletion(BLOCK, [POOL])
    check_deletion(NODE, [POOL, BLOCK])
    check_deletion(POOL, [NODE])
    check_deletion(pod("web"), CLUSTER)
    check_deletion(config(0), CLUSTER)


def test_every_pair_of_overlapping_pools_is_found_both_ways() -> None:
    small = msgspec.structs.replace(POOL, metadata=Metadata(name="small"), spec=IPPoolSpec(cidr="10.244.3.0/24"))
    for one, other in ((POOL, small), (small, POOL)):
        with pytest.raises(InvalidObject, match=f"IPPool/{other.metadata.name}"):
            check_change(one, [other])


PARTED = LabelSelector(match_labels={"team": "a"})


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        ({"cidr": "fd00::/56"}, True),
        ({"cidr": "fd00::/56", "attach": "bridge"}, False),
        ({"cidr": "10.1.0.0/16"}, False),
        ({"cidr": "fd00::/56", "disabled": True}, False),
        ({"cidr": "fd00::/56", "namespace_selector": PARTED}, False),
    ],
    ids=["the other family", "of one mind", "the same family", "disabled", "other pods"],
)
def test_pools_of_the_same_pods_have_one_attach(other: dict[str, Any], refused: bool) -> None:
    bridged, beside = pool("p", "10.0.0.0/16", attach="bridge"), pool("q", **other)
    for new, rest in ((bridged, beside), (beside, bridged)):
        if not refused:
            check_change(new, [rest])
            continue
        with pytest.raises(InvalidObject, match=f"in IPPool/{rest.metadata.name}, which serves") as caught:
            check_change(new, [rest])
        assert caught.value.field == "spec.attach"
