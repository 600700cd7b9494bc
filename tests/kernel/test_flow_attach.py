"""Where a pod's flow programs hang: beside what others put on its link, and put back when they were taken off."""

import contextlib
import os
from collections.abc import Iterator
from ipaddress import ip_address

import msgspec
import pytest

from podway.kernel import netns
from podway.kernel.bpf import flow_programs, tcx
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import Hook, Reason
from podway.kernel.flow import FlowEndpoint, FlowWrites
from podway.kernel.node import Kernel
from podway.kernel.rtnl import links, tc
from podway.plan.objects import NodePlan, PodWiring
from podway.plan.wiring import flow_programs as programs_of
from podway.policy.maps import EndpointRules
from tests.kernel.attach_lab import NODE, lease_of, opened_kernel, plan_of, talk
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel

V4 = ip_address("10.244.1.7")
NEXT, DROP = (bytes.fromhex(f"b7000000{action}9500000000000000") for action in ("ffffffff", "02000000"))
"""r0 = -1 (TC_ACT_UNSPEC) or 2 (TC_ACT_SHOT); exit"""
SCHED_CLS = 3
CLSACT, TCX = {Hook.FROM_POD: "clsact", Hook.TO_POD: "clsact"}, {Hook.FROM_POD: "tcx", Hook.TO_POD: "tcx"}


@pytest.fixture
def kernel(node: TestNamespace) -> Iterator[Kernel]:
    """A node whose flow engine works, and knows no pod."""
    with opened_kernel(node) as kernel:
        kernel.flow.open((), (), lambda: None)
        yield kernel
        kernel.flow.stop()


def wiring(*, limited: bool = False) -> PodWiring:
    plan = plan_of(lease_of(V4, attach="routed"), lan=())
    return msgspec.structs.replace(plan, programs=programs_of(plan.link.name), limited=limited)


@contextlib.contextmanager
def foreign(code: bytes) -> Iterator[int]:
    """A program of somebody else's."""
    fd = bpf.checked("load", bpf.library().bpf_prog_load(SCHED_CLS, b"foreign", b"GPL", code, 2, None))
    try:
        yield fd
    finally:
        os.close(fd)


def hung(kernel: Kernel, plan: PodWiring) -> dict[Hook, str]:
    """On what each of the engine's programs hangs."""
    index = links.find(kernel.connection, plan.link.name).index
    found = flow_programs.attached(kernel.connection, [index])
    assert len(found) == len({one.place for one in found}), "no packet is looked at twice"
    return {one.place.hook: "clsact" if one.filter else "tcx" for one in found}


def repaired(kernel: Kernel, plan: PodWiring) -> int:
    """Put right what differs of the programs; how many they were."""
    wanted = NodePlan(links=(plan.link,), programs=plan.programs)
    found = kernel.diff(wanted, of={"flow program"})
    assert kernel.carry_out(found, lambda: wanted).failures == ()
    assert kernel.diff(wanted, of={"flow program"}) == []
    return len(found)


def know(kernel: Kernel, plan: PodWiring) -> None:
    """Tell the engine of the pod, which has no policy."""
    for _ in kernel.flow.write(FlowWrites({}, {}, {}, {V4: FlowEndpoint(plan.link.name, EndpointRules())})):
        pass


def test_a_new_pod_is_judged_on_clsact(kernel: Kernel, node: TestNamespace, pod: TestNamespace) -> None:
    plan = wiring()
    kernel.wire(plan, pod.fd)
    assert hung(kernel, plan) == CLSACT
    with pytest.raises(TimeoutError):
        talk(pod, V4, node, NODE[0], within=0.3)
    assert kernel.flow.counters()[Reason.NOT_OWN_SOURCE]
    know(kernel, plan)
    talk(pod, V4, node, NODE[0])
    assert repaired(kernel, plan) == 0


@pytest.mark.parametrize(
    "what", ["filter del dev {} ingress", "filter del dev {} egress", "qdisc del dev {} clsact"]
)
def test_what_somebody_took_off_is_put_back(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, what: str
) -> None:
    plan = wiring()
    kernel.wire(plan, pod.fd)
    know(kernel, plan)
    node.sh(f"tc {what.format(plan.link.name)}")
    whole = "qdisc" in what
    assert repaired(kernel, plan) == (2 if whole else 1)
    assert hung(kernel, plan) == (TCX if whole else CLSACT), "no qdisc comes to a link that is up"
    talk(pod, V4, node, NODE[0])


def test_filters_of_others_stay(kernel: Kernel, node: TestNamespace, pod: TestNamespace) -> None:
    plan = wiring()
    kernel.wire(plan, pod.fd)
    know(kernel, plan)
    index = links.find(kernel.connection, plan.link.name).index
    with foreign(DROP) as fd:
        kernel.connection.transact([tc.put(index, "ingress", "foreign", fd, None)])
    assert repaired(kernel, plan) == 0
    with pytest.raises(TimeoutError):
        talk(pod, V4, node, NODE[0], within=0.3)
    wanted = NodePlan(links=(plan.link,))
    assert kernel.carry_out(kernel.diff(wanted, of={"flow program"}), lambda: wanted).failures == ()
    assert [one.name for one in tc.filters(kernel.connection, index, "ingress")] == ["foreign"]


def test_who_comes_first_on_tcx_has_ours_go_ahead_of_it(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    """A program on tcx sees packets before all filters, and might accept what ours would not."""
    plan = wiring()
    kernel.wire(plan, pod.fd)
    know(kernel, plan)
    index = links.find(kernel.connection, plan.link.name).index
    with foreign(NEXT) as fd:
        other = bpf.program_id(fd)
        netns.run(node.fd, lambda: tcx.put(index, "ingress", fd, None, label="foreign", last=True))
    assert repaired(kernel, plan) == 1
    assert hung(kernel, plan) == {Hook.FROM_POD: "tcx", Hook.TO_POD: "clsact"}
    assert netns.run(node.fd, lambda: tcx.programs(index, "ingress"))[1:] == [other]
    talk(pod, V4, node, NODE[0])


def test_a_pod_whose_bandwidth_another_plugin_limits_has_place_for_its_qdisc(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    plan = wiring(limited=True)
    kernel.wire(plan, pod.fd)
    assert hung(kernel, plan) == TCX
    node.sh("ip link add other type ifb; tc qdisc add dev other root tbf rate 8mbit burst 32kb latency 50ms")
    assert kernel.flow.limited() == frozenset()
    node.sh(f"tc qdisc add dev {plan.link.name} ingress")
    assert repaired(kernel, plan) == 0
    assert kernel.flow.limited() == {plan.link.name}
    node.sh(f"tc qdisc del dev {plan.link.name} ingress")
    assert kernel.flow.limited() == frozenset()
    node.sh(f"tc qdisc add dev {plan.link.name} root tbf rate 8mbit burst 32kb latency 50ms")
    assert kernel.flow.limited() == {plan.link.name}


@pytest.mark.parametrize("what", ["_CLSACT", "_BPF"])
def test_a_kernel_without_clsact_or_filters_for_it_has_tcx(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As one answers that was built so."""
    monkeypatch.setattr(tc, what, "unheard-of")
    plan = wiring()
    kernel.wire(plan, pod.fd)
    assert hung(kernel, plan) == TCX
    know(kernel, plan)
    talk(pod, V4, node, NODE[0])


def test_the_next_agent_goes_on_with_the_same_programs(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    plan = wiring()
    kernel.wire(plan, pod.fd)
    know(kernel, plan)
    index = links.find(kernel.connection, plan.link.name).index
    before = flow_programs.attached(kernel.connection, [index])
    with Kernel.open(node.fd) as following:
        kernel.flow.close()
        following.flow.open((), [plan.link.name], lambda: None)
        assert following.flow.writes == 0
        assert flow_programs.attached(kernel.connection, [index]) == before
        assert repaired(following, plan) == 0
        talk(pod, V4, node, NODE[0])


def test_another_build_takes_their_place_on_clsact(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace
) -> None:
    plan = wiring()
    kernel.wire(plan, pod.fd)
    know(kernel, plan)
    index = links.find(kernel.connection, plan.link.name).index
    before = {one.build for one in flow_programs.attached(kernel.connection, [index])}
    places = [flow_programs.Place(index, hook) for hook in (Hook.FROM_POD, Hook.TO_POD)]
    with flow_programs.take_over(kernel.connection, places, sizes={"flows": 270_000}) as engine:
        assert hung(kernel, plan) == CLSACT
        after = {one.build for one in flow_programs.attached(kernel.connection, [index])}
        assert after == {engine.build} != before
        talk(pod, V4, node, NODE[0])
