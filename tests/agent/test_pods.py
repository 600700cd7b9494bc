"""Pods' requests without a kernel: what is left of one that failed in the middle."""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any, cast

from podway.agent.pods import PodNetwork
from podway.api.lease import Attachment, Lease
from podway.errors import KernelError
from podway.reconcile.enforcement import Enforcement
from podway.reconcile.state import NodeState
from tests.policy.clusters import IPS, pod
from tests.reconcile.test_enforcement import DENY, WEB, Node

OTHER = pod("x", "other", IPS[0], uid="9")


class FullKernel:
    """A kernel that makes a pod's link and then has no memory left for the rest."""

    def has_link(self, _name: str) -> bool:
        return False

    def release(self, _wiring: Any) -> None:
        pass

    def wire(self, _wiring: Any, _netns: int, *, on_stage: Callable[[str], None]) -> None:
        on_stage("created")
        raise KernelError("set link up", errno.ENOMEM)


class Ends:
    @contextlib.contextmanager
    def opened(self, _lease: Lease) -> Iterator[int]:
        yield -1

    def forget(self, _attachment: Attachment) -> None:
        pass


class Loop:
    """The loop's enforcement, driven by hand."""

    def __init__(self, enforcement: Enforcement) -> None:
        self.enforcement = enforcement

    def wake(self) -> None:
        self.enforcement.bring()


def pods(state: NodeState, enforcement: Enforcement) -> PodNetwork:
    nobody = cast("Any", None)
    return PodNetwork(
        state, cast("Any", FullKernel()), nobody, cast("Any", Ends()), nobody, cast("Any", Loop(enforcement)),
        nobody, nobody,
    )  # fmt: skip


def test_a_pod_that_could_not_be_wired_again_keeps_no_rules_for_the_next_with_its_address() -> None:
    async def scenario() -> None:
        node = Node(WEB, DENY)
        lease = node.lease(WEB)
        network = pods(node.state, node.agent)
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
