"""Pools' modes and the VXLAN network: what is refused, and how it is said."""

from typing import Any

import pytest

from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig, VxlanSettings
from podway.api.kinds.node import SENDS, Node
from podway.api.meta import Metadata
from podway.api.rules import check_change
from podway.api.validate import problems
from podway.errors import InvalidObject
from tests import builders

DEFAULT = Metadata(name="default")


def pool(cidr: str = "10.244.0.0/16", **spec: Any) -> IPPool:
    return builders.pool("default", cidr, **spec)


def node(name: str, *interfaces: str, **notes: str) -> Node:
    return builders.node(name, *interfaces, notes=notes)


def config(**vxlan: int) -> NetworkConfig:
    return builders.config(vxlan=VxlanSettings(**vxlan))


ONE, NEAR, FAR = node("one", "172.30.1.1/24"), node("near", "172.30.1.2/24"), node("far", "172.30.2.1/24")
SIX = node("six", "fd00::1/64")


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (pool("fd00:244::/56", encapsulation="ipip"), "spec.encapsulation"),
        (pool(when="cross-subnet"), "spec.when"),
        (config(vni=0), "spec.vxlan.vni"),
        (config(vni=1 << 24), "spec.vxlan.vni"),
        (config(port=0), "spec.vxlan.port"),
        (config(port=65536), "spec.vxlan.port"),
        (config(port=3784), "spec.vxlan.port"),
    ],
)
def test_what_cannot_be_right_by_itself_is_refused(obj: Any, field: str) -> None:
    (problem,) = problems(obj)
    assert problem.field == field
    assert problem.hint


@pytest.mark.parametrize(
    "obj",
    [
        pool(encapsulation="ipip", when="cross-subnet"),
        pool("fd00:244::/56", encapsulation="vxlan"),
        config(vni=1, port=8472),
    ],
)
def test_what_can_be_right_is_not(obj: Any) -> None:
    assert list(problems(obj)) == []


@pytest.mark.parametrize(
    ("wanted", "nodes", "words"),
    [
        (pool(distribution="store"), [ONE, FAR], "different subnets"),
        (pool(encapsulation="ipip"), [ONE, SIX], "Node/six has no IPv4 address"),
        (pool("fd00:244::/56"), [ONE], "Node/one has no IPv6 address"),
        (pool("fd00:244::/56", encapsulation="vxlan"), [ONE], "Node/one has no IPv6 address"),
    ],
)
def test_what_the_nodes_do_not_allow_is_refused(wanted: IPPool, nodes: list[Node], words: str) -> None:
    with pytest.raises(InvalidObject, match=words) as refused:
        check_change(wanted, nodes)
    assert "vxlan" in refused.value.hint
    check_change(wanted, nodes, old=wanted)  # nodes that came since do not forbid other changes


def test_what_the_nodes_allow_is_not() -> None:
    check_change(pool(distribution="store"), [ONE, NEAR])
    check_change(pool(distribution="store", encapsulation="vxlan", when="cross-subnet"), [ONE, FAR])
    check_change(pool("fd00:244::/56", distribution="store", encapsulation="vxlan"), [ONE])
    check_change(pool(), [ONE, FAR])


@pytest.mark.parametrize("settings", [{"vni": 7}, {"port": 8472}])
@pytest.mark.parametrize("user", [pool(encapsulation="vxlan"), node("late", "172.30.1.9/24", **{SENDS: "vxlan"})])
def test_the_vxlan_network_does_not_change_under_its_users(settings: dict[str, int], user: Any) -> None:
    with pytest.raises(InvalidObject, match="cannot change") as refused:
        check_change(config(**settings), [user], old=config())
    assert "another encapsulation" in refused.value.hint
    check_change(config(**settings), [ONE, pool()], old=config())
