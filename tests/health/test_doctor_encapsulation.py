"""What stands in the way of encapsulated packets: caused in a lab, named, and gone when it is repaired."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from typing import Any

import msgspec
import pytest

from podway.api.addresses import Family
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.node import Node
from podway.api.meta import Metadata
from podway.cluster.view import ClusterView
from podway.health.checks.encapsulation import bare_far, fabric, small_mtu, switch
from podway.health.facts import ClusterFacts, Heard, NodeFacts, NodeSummary
from podway.lab import names
from podway.plan.uplink import Uplink
from podway.store.base import Listing
from tests.builders import node
from tests.health.health_lab import HealthLab, sh
from tests.patience import PATIENCE


@contextmanager
def vxlan(lab: HealthLab, *, wait: bool = True) -> Iterator[None]:
    """Have the lab's IPv4 pool cross in VXLAN while the block runs."""
    before = _pool(lab).spec
    try:
        _write(lab, msgspec.structs.replace(before, encapsulation="vxlan"))
        if wait:
            deadline = time.monotonic() + PATIENCE
            while "vxlan" not in lab.podway("get", "routes", "node1").stdout:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield
    finally:
        _write(lab, before)
        deadline = time.monotonic() + PATIENCE
        while wait and "podway-vxlan" in lab.sh(
            "node1", "ip -o link"
        ):  # it goes once no node sends to it any more
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _pool(lab: HealthLab) -> IPPool:
    listing: Listing[IPPool] = lab.store(lambda store: store.list(IPPool))
    return next(pool for pool in listing.items if pool.family is Family.IPV4)


def _write(lab: HealthLab, spec: IPPoolSpec) -> None:
    changed = msgspec.structs.replace(_pool(lab), spec=spec)
    lab.store(lambda store: store.update(changed))


@pytest.mark.kernel
def test_an_overlay_that_works_is_no_finding(lab: HealthLab) -> None:
    with vxlan(lab):
        lab.wait_healthy()


@pytest.mark.kernel
def test_another_vxlan_device_has_the_clusters_numbers(lab: HealthLab) -> None:
    lab.sh("node1", "ip link add vx9 type vxlan id 4096 dstport 4789 dev eth0; ip link set vx9 up")
    try:
        with vxlan(lab, wait=False):
            lab.finding("vxlan-taken", "node1: vx9", "VNI 4096 and port 4789", "ip link delete vx9")
            lab.sh("node1", "ip link del vx9")
            lab.wait_healthy()
    finally:
        lab.sh("node1", "ip link del vx9 2>/dev/null || true")


@pytest.mark.kernel
def test_a_filter_for_vxlan(lab: HealthLab) -> None:
    with vxlan(lab):
        lab.sh(
            "node2", "nft 'table ip x { chain i { type filter hook input priority 0; udp dport 4789 drop; }; }'"
        )
        try:
            lab.finding("firewall", "node2: nft ip x i", "VXLAN (UDP 4789) from other nodes")
        finally:
            lab.sh("node2", "nft delete table ip x")


@pytest.mark.kernel
def test_a_pod_with_a_larger_mtu_than_fits(lab: HealthLab) -> None:
    inside = names.pod_netns(lab.name, "default", "pod1")
    with vxlan(lab):
        sh(inside, "ip link set eth0 mtu 1500")
        try:
            lab.finding("pod-mtu", "node1: pod default/pod1", "an MTU of 1500, and 1450 fit", "mtu 1450")
        finally:
            sh(inside, "ip link set eth0 mtu 1450")


@pytest.mark.kernel
def test_a_switch_that_waits_for_a_node_whose_agent_is_gone(lab: HealthLab) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(node.accepts for node in lab.store(lambda store: store.list(Node)).items):
        assert time.monotonic() < deadline, "a node still says that it takes what no pool asks for"
        time.sleep(0.1)
    lab.stop_agent("node2")
    try:
        with vxlan(lab, wait=False):
            lab.finding("switch", "node1", "waits for node2 to accept vxlan", "the agent of node2 does not answer")
    finally:
        lab.start_missing_agents()


def _view(peers: tuple[BGPPeer, ...] = (), **pool: Any) -> ClusterView:
    nodes = (node("a", "192.0.2.1/25"), node("b", "192.0.2.2/25"), node("c", "192.0.2.129/25"))
    told = IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/8", **pool))
    return ClusterView.of([*nodes, told, *peers])


def test_routers_that_nobody_tells_of_pods() -> None:
    spec = BGPPeerSpec(address="192.0.2.126", asn=65000, node="a")
    peer = BGPPeer(metadata=Metadata(name="tor"), spec=spec)
    assert bare_far(_view(), "a") == {"p": "bgp"}
    assert bare_far(_view((peer,)), "a") == {}
    assert bare_far(_view((peer,)), "b") == {"p": "bgp"}
    assert bare_far(_view((peer,), distribution="store"), "a") == {"p": "store"}
    assert bare_far(_view(encapsulation="vxlan", when="cross-subnet"), "a") == {}

    def told(name: str, teller: str) -> Heard:
        return Heard(NodeSummary(node=name, version="1", at=0.0, pod_mtu=1500, bare_far={"p": teller}), 0.0)

    [problem] = fabric(ClusterFacts({name: told(name, "bgp") for name in "abcde"}))
    assert problem.subject == "IPPool/p"
    assert "from a, b, c and 2 more cross without encapsulation" in problem.found
    assert problem.severity == "warning"
    [problem] = fabric(ClusterFacts({"a": told("a", "store")}))
    assert problem.severity == "error"
    assert "distribution=bgp" in problem.advice


def test_too_small_an_mtu_for_ipv6(node_facts: Callable[..., NodeFacts]) -> None:
    pool = IPPool(metadata=Metadata(name="six"), spec=IPPoolSpec(cidr="fd10::/48", encapsulation="vxlan"))
    for mtu, words in ((1350, []), (1329, ["eth0 has an MTU of 1329, of which vxlan leaves 1279"])):
        uplink = Uplink("eth0", mtu, (ip_interface("192.0.2.1/24"),))
        facts = node_facts(uplink=uplink, memory={"view": ClusterView.of([pool])})
        found = list(small_mtu(facts))
        assert [problem.found for problem in found] == words
        assert all("to 1330" in problem.advice for problem in found)


def test_whom_a_switch_waits_for_is_looked_up() -> None:
    words = "IPPool/p: waits for c to accept vxlan; until then c gets none"
    summary = NodeSummary(node="a", version="1", at=0.0, pod_mtu=1500, pending=(words,))
    [problem] = switch(ClusterFacts({"a": Heard(summary, 0.0)}, silent={"c": "no answer"}))
    assert problem.found == f"{words}; the agent of c does not answer"
    assert "start the agent of c" in problem.advice
