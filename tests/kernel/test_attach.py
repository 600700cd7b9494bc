"""What holds of a pod's wiring however it is attached: packets pass at once, a failure leaves nothing."""

import os
import signal
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import msgspec
import pytest

from podway.api.kinds.ip_pool import Attach
from podway.errors import KernelError
from podway.kernel.node import Kernel
from podway.plan.objects import PodWiring, Route, Sysctl
from tests.kernel.attach_lab import (
    NODE,
    OTHER4,
    OTHER6,
    V4,
    V6,
    lease_of,
    node_plan,
    opened_kernel,
    plan_of,
    talk,
)
from tests.namespaces import TestNamespace, die
from tests.patience import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("attach", ["routed", "bridge"])]

STAGES = ["created", "host", "pod", "committed"]


@pytest.fixture
def kernel(node: TestNamespace) -> Iterator[Kernel]:
    with opened_kernel(node) as kernel:
        assert kernel.apply(node_plan()).failures == ()
        yield kernel


def test_packets_pass_both_ways_at_once(
    kernel: Kernel,
    node: TestNamespace,
    pod: TestNamespace,
    new_netns: Callable[[], TestNamespace],
    attach: Attach,
) -> None:
    """The first datagram, sent when `wire` has returned, arrives: nobody waits for a neighbour or for DAD."""
    other = new_netns()
    kernel.wire(plan_of(lease_of(V4, V6, attach=attach), mtu=1400), pod.fd)
    talk(pod, V6, node, NODE[1])
    talk(pod, V4, node, NODE[0])
    talk(node, NODE[0], pod, V4)
    kernel.wire(plan_of(lease_of(OTHER4, OTHER6, attach=attach, container="other"), mtu=1400), other.fd)
    talk(other, OTHER6, pod, V6)
    talk(pod, V4, other, OTHER4, size=1400 - 28)
    with pytest.raises(OSError, match="Message too long"):
        talk(pod, V4, other, OTHER4, size=1400 - 27)


BROKEN = {
    "a route that exists": lambda plan: msgspec.structs.replace(plan, routes=plan.routes * 2),
    "a source that is not ours": lambda plan: msgspec.structs.replace(
        plan, routes=(plan.routes[0], msgspec.structs.replace(plan.routes[1], source=ip_address("2001:db8::99")))
    ),
    "a sysctl that is not there": lambda plan: msgspec.structs.replace(
        plan, sysctls=(Sysctl("net/ipv4/conf/nosuch/forwarding", "1"),)
    ),
    "a pod route without a way": lambda plan: msgspec.structs.replace(
        plan,
        pod=msgspec.structs.replace(
            plan.pod, routes=(Route(plan.pod.routes[-1].destination, gateway=ip_address("192.0.2.77")),)
        ),
    ),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_failure_leaves_nothing_behind(
    kernel: Kernel,
    node: TestNamespace,
    pod: TestNamespace,
    attach: Attach,
    spoil: Callable[[PodWiring], PodWiring],
) -> None:
    with pytest.raises(KernelError):
        kernel.wire(spoil(plan_of(lease_of(V4, V6, attach=attach))), pod.fd)
    assert "eth0" not in pod.sh("ip link")
    assert "pway" not in node.sh("ip link; ip route show table all")
    assert kernel.diff(node_plan()) == []


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_there_is_a_lease_or_an_orphan(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, attach: Attach, stage: str
) -> None:
    lease = lease_of(V4, V6, attach=attach)
    child = os.fork()
    if child == 0:
        with Kernel.open(node.fd) as own:
            own.wire(plan_of(lease), pod.fd, on_stage=lambda at: die() if at == stage else None)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    if stage == "committed":
        assert (kernel.leases(), kernel.orphans()) == ([lease], [])
        return
    assert (kernel.leases(), kernel.orphans()) == ([], [lease.attachment.link])
    kernel.unwire(lease.attachment.link)
    kernel.apply(node_plan())
    assert kernel.diff(node_plan()) == []


def test_the_lease_is_known_without_the_bridge_and_vanishes_with_the_pods_namespace(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, attach: Attach
) -> None:
    lease = lease_of(V4, V6, attach=attach)
    kernel.wire(plan_of(lease), pod.fd)
    node.sh("ip link del cni0")
    assert kernel.leases() == [lease]
    pod.remove()
    eventually(lambda: not kernel.leases(), "the lease is gone")
    assert kernel.orphans() == []
