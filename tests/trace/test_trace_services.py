"""Traces to Services: which backend is followed, and what is said where there is none."""

from typing import Any

import pytest

from podway.api.addresses import Family
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.service import ServicePort
from podway.api.meta import Metadata
from podway.errors import InvalidInput
from podway.probe.build import Protocol
from podway.trace.names import Subject
from podway.trace.services import Way, find_service, served_by, way
from tests.services.clusters import NODE, OTHER, VIP, VIP6, endpoint, node, piece, pod, service

CLIENT = Subject("pod shop/client", NODE, "shop/client", ())
SERVED = NetworkConfig(
    metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path="ebpf", services="pods")
)
PODS = (pod("a", "10.1.0.1", "fd00:1::1"), pod("b", "10.1.0.2"))
DUAL = service("web", ServicePort(port=80, target_port=8080), selector={"app": "web"}, cluster_ips=(VIP, VIP6))


def _way(wanted: Any, *objects: Any, text: str = "web", source: Subject = CLIENT, **asked: Any) -> Way:
    return way(wanted, text, source, (SERVED, node(), wanted, *objects), **{"protocol": None, **asked})


def test_one_backend_is_followed_in_each_family_that_it_has() -> None:
    found = _way(DUAL, *PODS)
    assert (found.target.pod, found.protocol, found.port) == ("shop/a", Protocol.TCP, 8080)
    assert sorted(map(str, found.target.addresses)) == ["10.1.0.1", "fd00:1::1"]
    four, six = found.through[Family.IPV4], found.through[Family.IPV6]
    assert (four.address, four.port, four.backend, four.backend_port, four.choices) == (
        VIP,
        80,
        "10.1.0.1",
        8080,
        2,
    )
    assert (six.address, six.backend, six.choices, six.problem) == (VIP6, "fd00:1::1", 1, "")


def test_an_address_means_only_itself() -> None:
    assert find_service(VIP6, (DUAL,)) == DUAL
    assert find_service("10.9.9.9", (DUAL,)) is None
    assert set(_way(DUAL, *PODS, text=VIP6).through) == {Family.IPV6}


def test_who_is_not_served_by_podway_is_told() -> None:
    told = _way(DUAL, *PODS, source=Subject("node node1", NODE, "", ())).through[Family.IPV4].problem
    assert told == "Podway serves pods: node node1 is led by another proxy, if any"
    off = way(DUAL, "web", CLIENT, (node(), DUAL, *PODS), protocol=None).through[Family.IPV4].problem
    assert "is off" in off


def test_a_node_without_the_flow_engine_serves_nobody() -> None:
    way = _way(DUAL, *PODS).through[Family.IPV4]
    assert served_by(NODE, way, {OTHER: "no tcx"}) == way
    told = served_by(NODE, way, {NODE: "no tcx"})
    assert told is not None
    assert told.problem == "Podway serves none on node node1, another proxy may: no tcx"
    assert served_by(NODE, None, {NODE: "no tcx"}) is None


def test_where_there_is_no_way_the_reasons_are_told() -> None:
    with pytest.raises(InvalidInput, match=r"no backend that node1 uses: not ready"):
        _way(service(), piece("one", endpoint("10.1.0.1", ready=False)))
    with pytest.raises(InvalidInput, match=r"no backend that node1 uses: no endpoints"):
        _way(service())
    with pytest.raises(InvalidInput, match=r"no such port to trace to") as caught:
        _way(DUAL, *PODS, port=81)
    assert caught.value.hint == "it has 80/TCP"
    with pytest.raises(InvalidInput, match=r"headless"):
        _way(service(cluster_ips=("None",)))


def test_names_are_found_as_people_write_them() -> None:
    for text in ("web", "shop/web", "service/web", "service/shop/web", "svc/web"):
        assert find_service(text, (DUAL,)) == DUAL
    assert find_service("nobody", (DUAL,)) is None
