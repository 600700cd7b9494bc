"""Pods on real veth pairs: packets pass at once, a failure leaves nothing, leases read back."""

import errno
import json
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address

import msgspec
import pytest

from podway.api.addresses import link_local
from podway.errors import InvalidInput, KernelError
from podway.kernel import sysctls
from podway.kernel.netlink import Connection
from podway.kernel.node import Kernel
from podway.kernel.rtnl import links
from tests.kernel import attach_lab
from tests.kernel.attach_lab import NODE, opened_kernel, talk
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel

V4, V6 = ip_address("10.244.1.7"), ip_address("fd00:10:244::7")

lease_of = partial(attach_lab.lease_of, attach="routed")
plan_of = partial(attach_lab.plan_of, lan=())


@pytest.fixture
def kernel(node: TestNamespace) -> Iterator[Kernel]:
    with opened_kernel(node) as kernel:
        yield kernel


def test_a_pod_that_flushed_its_neighbours_still_reaches_its_gateway(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    kernel.wire(plan_of(lease_of(V4, V6)), pod.fd)
    for namespace in (pod, node):
        namespace.sh("ip neigh flush all nud permanent; ip -6 neigh flush all nud permanent")
        assert namespace.sh("ip neigh show nud permanent") == ""
    talk(pod, V4, node, NODE[0])
    talk(pod, V6, node, NODE[1])


def test_both_ends_stand_as_planned(kernel: Kernel, node: TestNamespace, pod: TestNamespace) -> None:
    lease = lease_of(V4, V6)
    plan = plan_of(lease, mtu=1400)
    kernel.wire(plan, pod.fd)
    assert kernel.check_pod(pod.fd, plan.pod) == []
    assert kernel.leases() == [lease]
    assert kernel.orphans() == []
    for sysctl in plan.sysctls:
        assert node.sh(f"cat /proc/sys/{sysctl.path}").strip() == sysctl.value
    # No address but ours on either end, and none that waits for duplicate-address detection.
    inside = {a["local"] for a in json.loads(pod.sh("ip -j addr show eth0"))[0]["addr_info"]}
    assert inside == {str(V4), str(V6), str(link_local(plan.pod.mac).ip)}
    host = {a["local"] for a in json.loads(node.sh(f"ip -j addr show {plan.link.name}"))[0]["addr_info"]}
    assert host == {"169.254.1.1", "fe80::1"}
    assert "tentative" not in pod.sh("ip addr") + node.sh("ip addr")


def test_a_pod_of_one_family_has_nothing_of_the_other(kernel: Kernel, pod: TestNamespace) -> None:
    kernel.wire(plan_of(lease_of(V4)), pod.fd)
    assert pod.sh("ip -6 addr show eth0") == ""


def test_a_spoofed_source_is_dropped(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, new_netns: Callable[[], TestNamespace]
) -> None:
    other, target = new_netns(), ip_address("10.244.1.8")
    kernel.wire(plan_of(lease_of(V4)), pod.fd)
    kernel.wire(plan_of(lease_of(target, container="other")), other.fd)
    talk(pod, V4, other, target)
    pod.sh("ip addr add 10.244.1.99/32 dev eth0")
    with pod.udp("10.244.1.99") as liar, other.udp(target, timeout=0.3) as victim:
        liar.sendto(b"x", victim.getsockname())
        with pytest.raises(TimeoutError):
            victim.recv(16)


def test_unwire_takes_everything_and_says_if_it_was_there(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    lease = lease_of(V4, V6)
    kernel.wire(plan_of(lease), pod.fd)
    assert kernel.unwire(lease.attachment.link) is True
    assert kernel.unwire(lease.attachment.link) is False
    assert (kernel.leases(), kernel.orphans()) == ([], [])
    assert "eth0" not in pod.sh("ip link")
    assert "169.254" not in node.sh("ip addr")


def test_unwire_refuses_what_is_not_ours(kernel: Kernel, node: TestNamespace) -> None:
    node.sh("ip link add uplink type veth peer name far")
    with pytest.raises(InvalidInput):
        kernel.unwire("uplink")
    assert "uplink" in node.sh("ip link")


def test_a_taken_interface_name_is_told_and_left_alone(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    pod.sh("ip link add eth0 type veth peer name other")
    with pytest.raises(KernelError, match="interface eth0 in the pod's network namespace") as caught:
        kernel.wire(plan_of(lease_of(V4)), pod.fd)
    assert caught.value.errno == errno.EEXIST
    assert "eth0@other" in pod.sh("ip link")
    assert "pway" not in node.sh("ip link")


def test_wiring_an_attachment_twice_leaves_the_first_as_it_was(
    kernel: Kernel, pod: TestNamespace, new_netns: Callable[[], TestNamespace]
) -> None:
    first = lease_of(V4)
    kernel.wire(plan_of(first), pod.fd)
    again = lease_of(ip_address("10.244.1.9"), netns="/run/netns/y")
    with pytest.raises(KernelError, match=f"link {first.attachment.link} in the node's") as caught:
        kernel.wire(plan_of(again), new_netns().fd)
    assert caught.value.errno == errno.EEXIST
    assert kernel.leases() == [first]


def test_a_committed_lease_survives_the_loss_of_its_routes(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    """The kernel itself drops routes with the preferred source they name: no pod may be lost by that."""
    lease = lease_of(V4)
    kernel.wire(plan_of(lease), pod.fd)
    node.sh("ip addr del 192.0.2.1/32 dev lo")
    assert "10.244.1.7" not in node.sh("ip route")
    assert kernel.leases() == [lease]


TAMPERINGS = {
    "ip link set eth0 mtu 1400": "eth0: MTU is 1400, should be 1500",
    "ip addr del 10.244.1.7/32 dev eth0": "eth0: address 10.244.1.7/32 is missing",
    "ip -6 addr del fd00:10:244::7/128 dev eth0": "eth0: address fd00:10:244::7/128 is missing",
    "ip route del default": "route default via 169.254.1.1 dev eth0 is missing",
    "ip -6 route del default": "route default via fe80::1 dev eth0 is missing",
    "ip neigh del 169.254.1.1 dev eth0": "neighbour 169.254.1.1 on eth0 is missing",
    "ip neigh replace fe80::1 lladdr 02:00:00:00:00:99 dev eth0": "MAC is 02:00:00:00:00:99, should be 02:70:77",
    "ip link set eth0 down": "eth0: is down",
    "ip link del eth0": "eth0: the interface is missing",
    "ip route replace default via 169.254.1.1 dev eth0 src 127.0.0.1": "route default via 169.254.1.1 dev eth0 is "
    "altered",
    "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:98": "eth0: MAC is 02:00:00:00:00:98",
}


@pytest.mark.parametrize("command", TAMPERINGS)
def test_tampering_in_the_pod_is_told_in_words(kernel: Kernel, pod: TestNamespace, command: str) -> None:
    plan = plan_of(lease_of(V4, V6))
    kernel.wire(plan, pod.fd)
    pod.sh(command)
    assert TAMPERINGS[command] in "\n".join(kernel.check_pod(pod.fd, plan.pod))


def test_what_others_add_to_a_pod_is_theirs(kernel: Kernel, pod: TestNamespace) -> None:
    plan = plan_of(lease_of(V4))
    kernel.wire(plan, pod.fd)
    pod.sh("ip addr add 10.9.9.9/32 dev eth0; ip route add 10.9.0.0/16 dev eth0")
    pod.sh("ip link add x0 type veth peer name y0")
    assert kernel.check_pod(pod.fd, plan.pod) == []


def test_two_interfaces_of_one_container(kernel: Kernel, pod: TestNamespace) -> None:
    first, second = lease_of(V4), lease_of(ip_address("10.244.1.8"), ifname="net1")
    kernel.wire(plan_of(first), pod.fd)
    plan = plan_of(second)
    pod_end = msgspec.structs.replace(plan.pod, routes=())  # eth0 has the default route
    kernel.wire(msgspec.structs.replace(plan, pod=pod_end), pod.fd)
    assert sorted(kernel.leases(), key=lambda lease: lease.attachment) == [first, second]
    with Connection(pod.fd) as inside:
        assert {link.name for link in links.dump(inside)} == {"lo", "eth0", "net1"}


def test_settings_are_read_from_the_nodes_namespace(kernel: Kernel, node: TestNamespace) -> None:
    paths = ["net/ipv4/ip_forward", "net/ipv4/tcp_rmem", "net/ipv4/nosuch"]
    found = kernel.sysctls(paths)
    assert found["net/ipv4/ip_forward"] == "1"
    assert len(found["net/ipv4/tcp_rmem"].split(" ")) == 3
    assert "net/ipv4/nosuch" not in found
    outside = sysctls.read(["net/ipv4/ip_forward"])
    node.sh("echo 0 > /proc/sys/net/ipv4/ip_forward")
    assert kernel.sysctls(paths)["net/ipv4/ip_forward"] == "0"
    assert sysctls.read(["net/ipv4/ip_forward"]) == outside
