"""Pods' requests without a kernel: what is left of one that failed, and of a pod that goes, in the middle."""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any, cast

import pytest

from podway.agent.pods import PodNetwork
from podway.api.lease import Attachment, Lease
from podway.cluster.change import Change
from podway.cni.arguments import PodReference
from podway.cni.request import Add, Delete
from podway.errors import AgentError, InvalidInput, KernelError
from podway.plan.objects import PodWiring
from podway.reconcile.enforcement import Enforcement
from tests.builders import block, pool
from tests.policy.clusters import IPS, pod
from tests.reconcile.test_enforcement import DENY, WEB, Node
from tests.recorded_kernel import RecordedFlows

REFERENCE = PodReference(namespace="x", name="web")
REQUEST = Add(version="1.1.0", network="podway", attachment=Attachment("c", "eth0"), netns="/run/x", pod=REFERENCE)
OTHER = pod("x", "other", IPS[0], uid="9")


class FullKernel:
    """A kernel that makes a pod's link and then has no memory left for the rest."""

    def __init__(self, flow: RecordedFlows) -> None:
        self.flow = flow
        self.kept: list[Lease] = []
        """Links that it does not remove."""

    def has_link(self, name: str) -> bool:
        return any(lease.attachment.link == name for lease in self.kept)

    def leases(self) -> list[Lease]:
        return self.kept

    def release(self, _wiring: Any) -> None:
        pass

    def wire(self, _wiring: Any, _netns: int, *, on_stage: Callable[[str], None]) -> None:
        on_stage("created")
        raise KernelError("set link up", errno.ENOMEM)


class Ends:
    there = True

    @contextlib.contextmanager
    def opened(self, lease: Lease) -> Iterator[int]:
        if not self.there:
            raise InvalidInput(f"{lease.netns} is gone")
        yield -1

    def enter(self, _attachment: Attachment, _netns: int) -> None:
        self.there = False

    def forget(self, _attachment: Attachment) -> None:
        pass


class Loop:
    """The loop's enforcement, driven by hand."""

    def __init__(self, enforcement: Enforcement) -> None:
        self.enforcement = enforcement

    def wake(self) -> None:
        self.enforcement.bring()

    def adopt(self, _attachment: Attachment, _wiring: PodWiring) -> None:
        pass


class Wirer:
    """Makes a link while `meanwhile` happens."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    async def wire(
        self, _wiring: PodWiring, _netns: int, judge: Callable[[], None], confirm: Callable[[], None]
    ) -> None:
        judge()
        self._meanwhile()
        confirm()


class Blocks:
    def trigger(self) -> None:
        pass


class Remover:
    """Removes links at once."""

    def __init__(self, kernel: FullKernel) -> None:
        self._kernel = kernel

    async def remove(self, name: str) -> bool:
        there = self._kernel.has_link(name)
        self._kernel.kept = [lease for lease in self._kernel.kept if lease.attachment.link != name]
        return there


def pods(node: Node, meanwhile: Callable[[], None] = lambda: None, kernel: FullKernel | None = None) -> PodNetwork:
    nobody = cast("Any", None)
    kernel = kernel or FullKernel(node.flows)
    return PodNetwork(
        node.state, cast("Any", kernel), cast("Any", Wirer(meanwhile)), cast("Any", Remover(kernel)),
        cast("Any", Ends()), cast("Any", Blocks()), cast("Any", Loop(node.agent)), nobody, nobody,
    )  # fmt: skip


def test_a_pod_that_could_not_be_wired_again_keeps_no_rules_for_the_next_with_its_address() -> None:
    async def scenario() -> None:
        node = Node(WEB, DENY)
        lease = node.lease(WEB)
        network = pods(node)
        network.link_vanished(lease.attachment.link)
        assert network.unrepaired
        network._forget(lease.attachment)
        node.drop(WEB)
        node.put(OTHER)
        found = Lease(Attachment("c-new", "eth0"), "x/other", "podway", "/run/x", (ip_address(IPS[0]),))
        node.state.leases[found.attachment] = found
        node.agent.bring()
        assert node.flows.entries.endpoints[ip_address(IPS[0])].link == found.attachment.link

    asyncio.run(scenario())


def pooled(*manifests: Any) -> Node:
    """A node with a block of addresses."""
    node = Node(*manifests)
    for obj in (pool("default", "10.244.0.0/16"), block("10.244.0.0/26", "default", "n1")):
        node.state.follow(node.state.view.after(Change.of(None, obj)))
    return node


@pytest.mark.parametrize("lost", [False, True], ids=["told", "told only that events were lost"])
def test_a_pod_that_goes_while_its_link_is_made_leaves_no_lease(*, lost: bool) -> None:
    """The kernel tells of the link's end before the lease is known: that must not be forgotten."""
    request = REQUEST

    async def scenario() -> None:
        node = pooled(WEB)
        made: list[Lease] = []

        def gone() -> None:
            made.append(*node.agent._entering.values())
            if lost:
                network.look_for_vanished()
            else:
                network.link_vanished(request.attachment.link)

        network, netns = pods(node, gone), -1
        await network.add(request, netns)
        assert made[0].attachment == request.attachment
        assert not node.state.leases
        assert not node.flows.entries.endpoints
        await network.add(request, netns)  # nor is its key taken

    asyncio.run(scenario())


@pytest.mark.parametrize("worked", [False, True], ids=["opened", "opened anew"])
def test_a_pod_whose_link_was_planned_before_the_flow_engine_was_opened_is_refused(*, worked: bool) -> None:
    async def scenario() -> None:
        node = pooled(WEB)
        node.state.engine = worked

        def opened() -> None:
            node.flows.openings += 1
            node.state.engine = True

        network, netns = pods(node, opened), -1
        with pytest.raises(AgentError, match="flow engine was opened"):
            await network.add(REQUEST, netns)
        assert not node.state.leases
        assert [use.leased for use in node.state.book.use(node.state.now())] == [0]

    asyncio.run(scenario())


def test_the_address_of_a_refused_pod_stays_taken_until_its_link_is_gone() -> None:
    async def scenario() -> None:
        node = pooled(WEB)
        kernel = FullKernel(node.flows)

        def committed_and_given_up() -> None:
            [lease] = node.agent._entering.values()
            kernel.kept.append(lease)
            raise asyncio.CancelledError

        network, netns = pods(node, committed_and_given_up, kernel), -1
        with pytest.raises(asyncio.CancelledError):
            await network.add(REQUEST, netns)
        [left] = kernel.kept
        assert node.state.leases == {REQUEST.attachment: left}
        assert node.state.book.owner(left.addresses[0]) == REQUEST.attachment
        await network.delete(Delete(version="1.1.0", network="podway", attachment=REQUEST.attachment))
        assert not kernel.kept
        assert not node.state.leases
        assert node.state.book.owner(left.addresses[0]) is None

    asyncio.run(scenario())
