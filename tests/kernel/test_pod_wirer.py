"""Attachments built beside an event loop: it goes on, and what it has to do is done in its own thread."""

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from ipaddress import ip_address

import pytest

from podway.api.kinds.ip_pool import Attach
from podway.api.lease import Lease
from podway.errors import KernelError
from podway.kernel.netlink import Connection
from podway.kernel.node import Kernel
from podway.kernel.pod_wirer import PodWirer
from podway.kernel.rtnl import links
from podway.plan.objects import PodWiring
from tests.kernel.attach_lab import LAN, V4, V6, lease_of, node_plan, opened_kernel, plan_of
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("attach", ["routed", "bridge"])]

MANY = 12


@pytest.fixture
def kernel(node: TestNamespace) -> Iterator[Kernel]:
    with opened_kernel(node) as kernel:
        assert kernel.apply(node_plan()).failures == ()
        yield kernel


def test_many_at_once_are_all_leases_and_the_loop_goes_on(
    kernel: Kernel, new_netns: Callable[[], TestNamespace], attach: Attach
) -> None:
    pods = [new_netns() for _ in range(MANY)]
    leases = [lease_of(ip_address(f"10.244.1.{n + 10}"), attach=attach, container=f"c{n}") for n in range(MANY)]
    turns: list[int] = []

    async def scenario() -> None:
        wirer = PodWirer(kernel)
        try:
            pairs = zip(leases, pods, strict=True)
            making = asyncio.gather(*(wirer.wire(plan_of(one), pod.fd, nothing, nothing) for one, pod in pairs))
            while not making.done():
                turns.append(len(kernel.orphans()))
                await asyncio.sleep(0)
            await making
        finally:
            wirer.close()

    asyncio.run(scenario())
    assert sorted(kernel.leases(), key=str) == sorted(leases, key=str)
    assert any(turns), "the loop saw links that were being made"
    assert kernel.diff(node_plan(*map(plan_of, leases))) == []


def test_who_judges_is_asked_in_the_loop_before_the_link_is_up(
    kernel: Kernel, pod: TestNamespace, attach: Attach
) -> None:
    lease, seen = lease_of(V4, V6, attach=attach), []

    def judge() -> None:
        link = links.find(kernel.connection, lease.attachment.link)
        seen.append((threading.current_thread(), link.up))

    wire(kernel, lease, pod, judge)
    assert seen == [(threading.main_thread(), False)]
    assert kernel.leases() == [lease]


def test_who_is_not_let_in_leaves_nothing_behind(
    kernel: Kernel, node: TestNamespace, pod: TestNamespace, attach: Attach
) -> None:
    def judge() -> None:
        raise KernelError("write a map", 12)

    with pytest.raises(KernelError, match="write a map"):
        wire(kernel, lease_of(V4, V6, attach=attach), pod, judge)
    assert "eth0" not in pod.sh("ip link")
    assert "pway" not in node.sh("ip link; ip route show table all")
    assert kernel.diff(node_plan()) == []


def test_a_request_that_is_given_up_in_the_middle_leaves_all_or_nothing(
    kernel: Kernel, pod: TestNamespace, new_netns: Callable[[], TestNamespace], attach: Attach
) -> None:
    lease = lease_of(V4, V6, attach=attach)

    async def scenario() -> None:
        wirer = PodWirer(kernel)
        try:
            making = asyncio.create_task(wirer.wire(plan_of(lease), pod.fd, nothing, nothing))
            await asyncio.sleep(0)  # a thread is at it
            making.cancel()
            await asyncio.wait((making,))
            assert making.cancelled()
            assert (kernel.leases(), kernel.orphans()) == ([], [])
            await wirer.wire(plan_of(lease), new_netns().fd, nothing, nothing)  # and its turn is another one's
        finally:
            wirer.close()

    asyncio.run(scenario())
    assert kernel.leases() == [lease]


def test_a_request_that_is_given_up_while_its_link_is_committed_leaves_all_or_nothing(
    kernel: Kernel, pod: TestNamespace, attach: Attach
) -> None:
    lease = lease_of(V4, V6, attach=attach)
    plan = plan_of(lease, lan=() if attach == "routed" else LAN)

    async def scenario() -> bool:
        wirer = PodWirer(kernel)

        def give_up() -> None:
            asyncio.get_running_loop().call_soon(making.cancel)

        try:
            making = asyncio.create_task(wirer.wire(plan, pod.fd, give_up, nothing))
            await asyncio.wait((making,))
            return making.cancelled()
        finally:
            wirer.close()

    # What stands on the bridge, too, is finished without a pause, in which nobody gives it up.
    assert asyncio.run(scenario()) == (attach == "routed")
    assert kernel.leases() == ([] if attach == "routed" else [lease])
    assert kernel.orphans() == []


def test_a_request_that_is_given_up_twice_ends_when_its_thread_has_ended(
    kernel: Kernel, pod: TestNamespace, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, may_go, wire_in_steps = threading.Event(), threading.Event(), kernel.wire_in_steps

    def held(plan: PodWiring, pod_netns: int, connection: Connection | None = None) -> Generator[str, None, None]:
        going.set()
        assert may_go.wait(PATIENCE)
        yield from wire_in_steps(plan, pod_netns, connection)

    monkeypatch.setattr(kernel, "wire_in_steps", held)

    async def scenario() -> None:
        wirer = PodWirer(kernel)
        try:
            plan = plan_of(lease_of(V4, V6, attach=attach))
            making = asyncio.create_task(wirer.wire(plan, pod.fd, nothing, nothing))
            await asyncio.to_thread(going.wait, PATIENCE)
            for _ in range(3):
                making.cancel()
                await asyncio.sleep(0.01)
                assert not making.done(), "its thread is still at it"
            may_go.set()
            await asyncio.wait((making,))
            assert making.cancelled()
        finally:
            may_go.set()
            wirer.close()

    asyncio.run(scenario())
    assert (kernel.leases(), kernel.orphans()) == ([], [])
    assert kernel.diff(node_plan()) == []


def test_what_is_not_confirmed_is_undone(kernel: Kernel, pod: TestNamespace, attach: Attach) -> None:
    lease, seen = lease_of(V4, V6, attach=attach), []

    def confirm() -> None:
        seen.append(kernel.leases())
        raise KernelError("confirm", 11)

    with pytest.raises(KernelError, match="confirm"):
        wire(kernel, lease, pod, nothing, confirm)
    assert seen == [[lease]]
    assert (kernel.leases(), kernel.orphans()) == ([], [])
    assert kernel.diff(node_plan()) == []


def nothing() -> None:
    """Judge nobody, and confirm everything."""


def wire(
    kernel: Kernel,
    lease: Lease,
    pod: TestNamespace,
    judge: Callable[[], None],
    confirm: Callable[[], None] = nothing,
) -> None:
    async def scenario() -> None:
        wirer = PodWirer(kernel)
        try:
            await wirer.wire(plan_of(lease), pod.fd, judge, confirm)
        finally:
            wirer.close()

    asyncio.run(scenario())
