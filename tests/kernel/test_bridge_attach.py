"""Pods on a real bridge: packets pass, forged frames do not, and what anybody changes is told and put right."""

import json
import socket
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address

import pytest

from podway.api.addresses import Address
from podway.errors import KernelError
from podway.kernel import netns
from podway.kernel.node import Kernel
from podway.plan.objects import BRIDGE_DEVICE
from tests.kernel import attach_lab
from tests.kernel.attach_lab import NODE, OTHER4, OTHER6, V4, V6, node_plan, opened_kernel, plan_of, talk
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel

GATEWAYS = (ip_address("10.244.1.1"), ip_address("fd00:10:244::41"))

lease_of = partial(attach_lab.lease_of, attach="bridge")


@pytest.fixture
def kernel(node: TestNamespace) -> Iterator[Kernel]:
    with opened_kernel(node) as kernel:
        assert kernel.apply(node_plan()).failures == ()
        yield kernel


def silent(sender: TestNamespace, source: Address, receiver: TestNamespace, target: Address) -> bool:
    """Tell whether a datagram does not arrive."""
    with sender.udp(source) as one, receiver.udp(target, timeout=0.3) as other:
        one.sendto(b"x", other.getsockname())
        try:
            other.recv(16)
        except TimeoutError:
            return True
    return False


def frame_arrives(
    sender: TestNamespace, source: str, receiver: TestNamespace, target: str, within: float = PATIENCE
) -> bool:
    """Tell whether an Ethernet frame with these hardware addresses arrives within so many seconds."""
    frame = bytes.fromhex(f"{target}{source}88b5".replace(":", "")) + b"podway".ljust(46, b"\0")
    with packet_socket(sender) as one, packet_socket(receiver) as other:
        other.settimeout(within)
        one.send(frame)
        try:
            return bool(other.recvfrom(100)[1][2] == socket.PACKET_HOST)
        except TimeoutError:
            return False


def packet_socket(namespace: TestNamespace) -> socket.socket:
    """Open a packet socket on a pod's eth0 for the protocol number of local experiments (IEEE 802, 88b5)."""
    sock = netns.run(namespace.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)))
    sock.bind(("eth0", 0x88B5))
    return sock


def hops(namespace: TestNamespace, address: Address) -> int:
    """Return how many routers a packet to an address passes."""
    flag = "-6" if address.version == 6 else "-4"
    for ttl in (1, 2, 3):
        if not namespace.run(
            "ping", flag, "-n", "-c", "1", "-W", f"{PATIENCE:g}", "-t", str(ttl), str(address), check=False
        ).returncode:
            return ttl - 1
    raise AssertionError(f"{address} does not answer")


@pytest.fixture
def other(new_netns: Callable[[], TestNamespace]) -> TestNamespace:
    return new_netns()


def test_pods_of_a_bridge_reach_each_other_without_a_router(
    kernel: Kernel, pod: TestNamespace, other: TestNamespace
) -> None:
    kernel.wire(plan_of(lease_of(V4, V6)), pod.fd)
    kernel.wire(plan_of(lease_of(OTHER4, OTHER6, container="other")), other.fd)
    assert (hops(pod, OTHER4), hops(pod, OTHER6)) == (0, 0)


def test_both_ends_stand_as_planned(kernel: Kernel, node: TestNamespace, pod: TestNamespace) -> None:
    lease = lease_of(V4, V6)
    plan = plan_of(lease)
    kernel.wire(plan, pod.fd)
    assert kernel.check_pod(pod.fd, plan.pod) == []
    assert (kernel.leases(), kernel.orphans()) == ([lease], [])
    assert kernel.diff(node_plan(plan)) == []
    routes = {route["dst"]: route.get("gateway") for route in json.loads(pod.sh("ip -j route"))}
    assert routes == {"default": "10.244.1.1", "10.244.1.0/24": None}
    inside = {f"{a['local']}/{a['prefixlen']}" for a in json.loads(pod.sh("ip -j addr show eth0"))[0]["addr_info"]}
    assert {"10.244.1.7/24", "fd00:10:244::47/122"} < inside
    shown = json.loads(node.sh(f"ip -d -j addr show {BRIDGE_DEVICE}"))[0]
    assert {a["local"] for a in shown["addr_info"]} == {*map(str, GATEWAYS), "fe80::1"}
    # The blocks stay what the node tells the others of: no connected route stands beside their own.
    assert node.sh("ip -j route show 10.244.1.0/24 | grep -c blackhole").strip() == "1"
    assert len(json.loads(node.sh("ip -j route show 10.244.1.0/24"))) == 1
    assert "tentative" not in pod.sh("ip addr") + node.sh("ip addr")


def test_a_routed_and_a_bridged_pod_of_one_block_reach_each_other(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, other: TestNamespace
) -> None:
    """The bridged one asks on its LAN for the routed one, and the node answers, without any delay."""
    bridged, routed = plan_of(lease_of(V4, V6)), plan_of(lease_of(OTHER4, OTHER6, container="r", attach="routed"))
    kernel.wire(bridged, pod.fd)
    kernel.wire(routed, other.fd)
    assert kernel.diff(node_plan(bridged, routed)) == []
    for family in ("ipv4", "ipv6"):  # proxies' answers are delayed by chance, usually: neigh(7), proxy_delay
        assert node.sh(f"cat /proc/sys/net/{family}/neigh/{BRIDGE_DEVICE}/proxy_delay") == "0\n"
    for _ in range(4):
        talk(pod, V4, other, OTHER4)
        talk(pod, V6, other, OTHER6)
        pod.sh("ip neigh flush dev eth0; ip -6 neigh flush dev eth0")
    talk(other, OTHER4, pod, V4)
    talk(other, OTHER6, pod, V6)
    assert (hops(pod, OTHER4), hops(other, V4)) == (1, 1)


def test_the_node_does_not_answer_for_addresses_that_no_pod_has(kernel: Kernel, pod: TestNamespace) -> None:
    kernel.wire(plan_of(lease_of(V4)), pod.fd)
    pod.run("ping", "-n", "-c", "1", "-W", "0.2", "10.244.1.99", check=False)
    assert "lladdr" not in pod.sh("ip neigh show 10.244.1.99")


@pytest.mark.parametrize(("source", "arrives"), [("own", True), ("other", False), ("unknown", False)])
def test_only_frames_from_the_pods_own_hardware_address_pass(
    kernel: Kernel, pod: TestNamespace, other: TestNamespace, source: str, arrives: bool
) -> None:
    mine, victim = plan_of(lease_of(V4)), plan_of(lease_of(OTHER4, container="other"))
    kernel.wire(mine, pod.fd)
    kernel.wire(victim, other.fd)
    macs = {"own": mine.pod.mac, "other": victim.pod.mac, "unknown": "02:00:00:00:00:99"}
    within = PATIENCE if arrives else 0.3
    assert frame_arrives(pod, macs[source], other, victim.pod.mac, within) is arrives
    talk(other, OTHER4, pod, V4)  # nothing was drawn to the wrong port


def test_a_source_that_is_not_on_the_bridge_is_dropped(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    kernel.wire(plan_of(lease_of(V4)), pod.fd)
    talk(pod, V4, node, NODE[0])
    pod.sh("ip addr add 10.244.1.99/32 dev eth0; ip addr add 203.0.113.9/32 dev eth0")
    assert silent(pod, ip_address("10.244.1.99"), node, NODE[0])
    assert silent(pod, ip_address("203.0.113.9"), node, NODE[0])


def test_what_a_pod_sends_to_itself_by_the_bridge_comes_back(kernel: Kernel, pod: TestNamespace) -> None:
    """As it does by a Service of which the pod is the only endpoint."""
    wiring = plan_of(lease_of(V4))
    kernel.wire(wiring, pod.fd)
    assert frame_arrives(pod, wiring.pod.mac, pod, wiring.pod.mac)


def test_release_takes_what_stands_on_the_bridge(kernel: Kernel, node: TestNamespace, pod: TestNamespace) -> None:
    wiring = plan_of(lease_of(V4, V6))
    kernel.wire(wiring, pod.fd)
    kernel.release(wiring)
    assert kernel.unwire(wiring.link.name)
    kernel.release(wiring)
    assert (kernel.leases(), kernel.orphans()) == ([], [])
    assert kernel.diff(node_plan()) == []
    assert "eth0" not in pod.sh("ip link")


def test_a_bridge_that_is_not_ours_gets_no_pod(kernel: Kernel, node: TestNamespace, pod: TestNamespace) -> None:
    node.sh("ip link del cni0; ip link add cni0 type bridge")
    with pytest.raises(KernelError, match="cni0: it is a device that is not Podway's"):
        kernel.wire(plan_of(lease_of(V4)), pod.fd)
    assert "pway" not in node.sh("ip link")


TAMPERINGS = {
    "ip link set {link} nomaster": "port {link} of cni0 is missing",
    "ip link add br9 type bridge; ip link set {link} master br9": "port {link} of cni0 is altered",
    "bridge link set dev {link} learning on": "port {link} of cni0 is altered",
    "bridge link set dev {link} locked off": "port {link} of cni0 is altered",
    "bridge link set dev {link} hairpin off": "port {link} of cni0 is altered",
    "bridge fdb del {mac} dev {link} master": "port {link} of cni0 is altered",
    "bridge fdb add 02:00:00:00:00:99 dev {link} master static": "port {link} of cni0 is altered",
    "ip addr del 10.244.1.1/32 dev cni0": "address 10.244.1.1/32 on cni0 is missing",
    "ip -6 addr del fd00:10:244::41/128 dev cni0": "address fd00:10:244::41/128 on cni0 is missing",
    "ip route del 10.244.1.7": "route 10.244.1.7/32 dev cni0",
    "ip neigh del 10.244.1.7 dev cni0": "neighbour 10.244.1.7 on cni0 is missing",
    "ip neigh del 10.244.1.7 dev {link}": "neighbour 10.244.1.7 on {link} is missing",
    "ip neigh del proxy 10.244.1.8 dev cni0": "proxy for 10.244.1.8 on cni0 is missing",
    "ip -6 neigh del proxy fd00:10:244::48 dev cni0": "proxy for fd00:10:244::48 on cni0 is missing",
    "ip neigh add proxy 10.244.1.99 dev cni0": "proxy for 10.244.1.99 on cni0 is not in the plan",
    "ip link set {routed} master cni0": "port {routed} of cni0",
    "ip link set cni0 down": "device cni0",
    "ip link set cni0 mtu 1400": "device cni0",
    "ip link del cni0": "device cni0 is missing",
    "sysctl -qw net.ipv6.conf.cni0.proxy_ndp=0": "sysctl net/ipv6/conf/cni0/proxy_ndp",
}


@pytest.mark.parametrize("command", TAMPERINGS)
def test_tampering_is_told_and_put_right(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, other: TestNamespace, command: str
) -> None:
    bridged, routed = plan_of(lease_of(V4, V6)), plan_of(lease_of(OTHER4, OTHER6, container="r", attach="routed"))
    kernel.wire(bridged, pod.fd)
    kernel.wire(routed, other.fd)
    plan = node_plan(bridged, routed)
    names = {"link": bridged.link.name, "routed": routed.link.name, "mac": bridged.pod.mac}
    node.sh(command.format(**names))
    told = "\n".join(change.difference for change in kernel.diff(plan))
    assert TAMPERINGS[command].format(**names) in told
    assert kernel.apply(plan).failures == ()
    assert kernel.diff(plan) == []
    writes = kernel.writes
    assert kernel.apply(plan).changes == ()
    assert kernel.writes == writes
    talk(pod, V4, other, OTHER4)
    talk(pod, V6, node, NODE[1])
