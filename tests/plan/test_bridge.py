"""When a node has a bridge, what is on it, and which MTU all of it has."""

from ipaddress import ip_address, ip_interface

import pytest

from podway.api.kinds.ip_pool import Attach
from podway.api.lease import Attachment, Lease
from podway.cluster.view import ClusterView
from podway.plan.bridge import BRIDGE_NETFILTER
from podway.plan.host_facts import HostFacts
from podway.plan.node import plan_node
from podway.plan.objects import BRIDGE_DEVICE, NodePlan
from podway.plan.uplink import Uplink
from tests.builders import block, pool

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/16"),))
ROUTED_BLOCK, BRIDGED_BLOCK = "10.244.0.0/24", "10.245.0.0/24"


def lease(container: str, address: str, attach: Attach) -> Lease:
    return Lease(
        Attachment(container, "eth0"), "default/web", "podway", "/run/x y", (ip_address(address),), attach
    )


VIEW = ClusterView.of(
    [
        pool("routed", "10.244.0.0/16", encapsulation="vxlan"),
        pool("bridged", "10.245.0.0/16", attach="bridge"),
        block(ROUTED_BLOCK, "routed", "a"),
        block(BRIDGED_BLOCK, "bridged", "a"),
    ]
)


def gateways(plan: NodePlan) -> list[str]:
    return [str(entry.address) for entry in plan.addresses if entry.device == BRIDGE_DEVICE]


def test_a_node_has_a_bridge_for_its_own_blocks_of_pools_that_ask_for_it() -> None:
    assert gateways(plan_node(VIEW, "a", UPLINK, [])) == ["10.245.0.1/32"]
    assert not plan_node(VIEW, "b", UPLINK, []).ports
    assert BRIDGE_DEVICE not in {device.name for device in plan_node(VIEW, "b", UPLINK, []).devices}


def test_a_pod_keeps_its_bridge_when_its_pool_or_its_block_changes() -> None:
    old = lease("old", "10.244.0.9", "bridge")
    assert gateways(plan_node(VIEW, "a", UPLINK, [old])) == ["10.244.0.1/32", "10.245.0.1/32"]
    stray = lease("stray", "10.99.7.9", "bridge")
    assert gateways(plan_node(ClusterView.of([]), "a", UPLINK, [stray])) == ["10.99.7.1/32"]


def test_the_node_answers_on_the_bridge_for_routed_pods_of_its_blocks_only() -> None:
    inside, outside = lease("in", "10.245.0.7", "routed"), lease("out", "10.244.0.7", "routed")
    plan = plan_node(VIEW, "a", UPLINK, [inside, outside])
    assert [str(proxy) for proxy in plan.proxies] == ["proxy for 10.245.0.7 on cni0"]
    assert not plan_node(VIEW, "a", UPLINK, [lease("b", "10.245.0.7", "bridge")]).proxies


def test_all_of_a_bridge_has_the_smallest_mtu_of_its_pools() -> None:
    def mtus(*leases: Lease) -> dict[str, int]:
        plan = plan_node(VIEW, "a", UPLINK, leases)
        bridge = next(device for device in plan.devices if device.name == BRIDGE_DEVICE)
        return {BRIDGE_DEVICE: bridge.mtu} | {link.altname.split(":")[0]: link.mtu for link in plan.links}

    new, old = lease("new", "10.245.0.7", "bridge"), lease("old", "10.244.0.9", "bridge")
    assert mtus(new) == {"cni0": 1500, "pod.new": 1500}
    assert mtus(new, old) == {"cni0": 1450, "pod.new": 1450, "pod.old": 1450}
    routed = lease("r", "10.244.0.8", "routed")
    assert mtus(new, routed) == {"cni0": 1500, "pod.new": 1500, "pod.r": 1450}


def test_rules_see_the_bridge_while_there_is_one_and_the_kernel_can() -> None:
    able = HostFacts(bridge_netfilter=BRIDGE_NETFILTER)
    for node, facts, wanted in (("a", able, {"1"}), ("a", HostFacts(), set()), ("b", able, set())):
        plan = plan_node(VIEW, node, UPLINK, [], facts=facts)
        assert {sysctl.value for sysctl in plan.sysctls if sysctl.path in BRIDGE_NETFILTER} == wanted


@pytest.mark.parametrize("attach", ["routed", "bridge"])
def test_a_lease_is_known_again_with_its_attach(attach: Attach) -> None:
    one = lease("c", "10.245.0.7", attach)
    assert Lease.from_kernel(one.attachment.altname, one.alias, ("10.245.0.7",)) == one
