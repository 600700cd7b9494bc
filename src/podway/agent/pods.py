"""What the CNI plugin's requests do on this node (the handler of podway.cni.server)."""

import asyncio
from contextlib import ExitStack
from functools import partial
from weakref import WeakValueDictionary

import msgspec
import structlog

from podway.agent.blocks import BlockKeeper
from podway.agent.leasing import Leasing
from podway.agent.routing import Routing
from podway.api.addresses import Address, Family
from podway.api.lease import Attachment, Lease
from podway.cni.request import Add, Check, Delete, GarbageCollect
from podway.cni.spec import Code
from podway.errors import AgentError, CniError, InvalidInput, KernelError, PodwayError, PoolExhausted
from podway.kernel.node import Kernel
from podway.kernel.pod_wirer import PodWirer
from podway.kernel.removal import LinkRemover
from podway.plan.node import section_of
from podway.plan.objects import BRIDGE_DEVICE, PodWiring
from podway.plan.ports import port_guard
from podway.reconcile.enforcement import FindPod
from podway.reconcile.pod_ends import PodEnds
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.1, 5.0
"""Seconds until a pod that could not be wired again is tried once more: doubled from the first to the longest."""


class PodNetwork:
    """Attaches and detaches pods."""

    def __init__(
        self,
        state: NodeState,
        kernel: Kernel,
        wirer: PodWirer,
        remover: LinkRemover,
        ends: PodEnds,
        blocks: BlockKeeper,
        reconciler: Reconciler,
        routing: Routing,
        find_pod: FindPod,
    ) -> None:
        self._state = state
        self._kernel = kernel
        self._wirer = wirer
        self._remover = remover
        self._ends = ends
        self._blocks = blocks
        self._leasing = Leasing(state, blocks)
        self._reconciler = reconciler
        self._routing = routing
        self._find_pod = find_pod
        self._turns: WeakValueDictionary[Attachment, asyncio.Lock] = WeakValueDictionary()
        self._entering: dict[str, bool] = {}
        """The links that are being made for an ADD, and whether one may have vanished meanwhile."""
        self._unmended: dict[Attachment, str] = {}
        self._to_mend = asyncio.Event()

    @property
    def unrepaired(self) -> tuple[str, ...]:
        """Which pods have lost their link and could not be wired again yet, and why, in words."""
        return tuple(self._unmended.values())

    async def run(self) -> None:
        """Try again to wire pods that lost their link and could not be wired at once, for ever."""
        pause = FIRST_RETRY
        while True:
            await self._to_mend.wait()
            await asyncio.sleep(pause)
            for attachment in list(self._unmended):
                self.link_vanished(attachment.link)
            pause = min(2 * pause, LONGEST_RETRY) if self._unmended else FIRST_RETRY
            if not self._unmended:
                self._to_mend.clear()

    async def add(self, request: Add, netns: int) -> PodWiring:
        """Wire a pod; return what was made."""
        async with self._turn(request.attachment):
            return await self._add(request, netns)

    async def delete(self, request: Delete) -> None:
        """Unwire a pod. What is gone, or another network's, is none of this request's business."""
        async with self._turn(request.attachment):
            lease = self._state.leases.get(request.attachment)
            if lease is not None and lease.network == request.network:
                await self._remove(lease)

    async def check(self, request: Check, netns: int) -> None:
        """Raise CniError unless the pod's wiring is what ADD made."""
        lease = self._state.leases.get(request.attachment)
        if lease is None or lease.network != request.network:
            raise CniError(
                Code.CHECK_FAILED,
                f"container {request.attachment.container} has no {request.attachment.ifname} on network "
                f"{request.network}",
                hint="DEL and ADD it again",
            )
        wiring = self._state.wiring(lease)
        stated = request.previous.addresses(request.attachment.ifname)
        wrong = [f"address {a} of prevResult is not leased to it" for a in stated if a not in lease.addresses]
        host = section_of(wiring)  # what else there is belongs to other pods
        if host.elements:  # which are read as the table says that holds them
            host = msgspec.structs.replace(host, tables=port_guard(self._state.facts().lan))
        wrong += [change.difference for change in self._kernel.diff(host) if change.action != "remove"]
        wrong += self._kernel.check_pod(netns, wiring.pod)
        if wrong:
            raise CniError(
                Code.CHECK_FAILED,
                f"{lease.pod or lease.attachment.container}: " + "; ".join(wrong),
                hint="DEL and ADD the pod again, or put back what was changed",
            )

    async def collect_garbage(self, request: GarbageCollect) -> None:
        """Remove every attachment of the network that the runtime does not list.

        One that cannot be removed keeps none of the others from going; the first failure is raised at the end.
        """
        stale = [
            attachment
            for attachment, lease in self._state.leases.items()
            if lease.network == request.network and attachment not in request.valid
        ]
        failures: list[PodwayError] = []
        for attachment in stale:
            try:
                await self.delete(Delete(version=request.version, network=request.network, attachment=attachment))
                log.info("garbage collected", container=attachment.container, ifname=attachment.ifname)
            except PodwayError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def status(self) -> None:
        """Raise CniError if an ADD could not be served now, or the pod would not reach other nodes."""
        if not any(self._state.pod_pools(family, "default") for family in Family):
            raise CniError(
                Code.NOT_AVAILABLE,
                f"no IPPool serves node {self._state.node}",
                hint="create one with `podway apply -f`; `podway get pools` shows what there is",
            )
        if problem := self._routing.problem:
            raise CniError(Code.LIMITED_CONNECTIVITY, problem, hint="see `podway status` on this node")

    def _turn(self, attachment: Attachment) -> asyncio.Lock:
        """Return the lock that makes an attachment's requests follow one another."""
        return self._turns.setdefault(attachment, asyncio.Lock())

    async def _add(self, request: Add, netns: int) -> PodWiring:
        attachment = request.attachment
        if held := self._state.leases.get(attachment):
            raise CniError(
                Code.INTERFACE_TAKEN,
                f"container {attachment.container} has {attachment.ifname} already, on network {held.network}",
                hint="DEL it before a second ADD, or use another CNI_IFNAME",
            )
        await self._reconciler.enforcement.admit(str(request.pod), request.pod.uid, self._find_pod)
        try:
            addresses = await self._leasing.lease(
                attachment, namespace=request.pod.namespace, wanted=request.addresses, pools=request.pools
            )
        except PoolExhausted:
            self._blocks.trigger()  # which tells the other nodes that this one is in need
            raise
        try:
            attach = self._state.attach(addresses)
            lease = Lease(attachment, str(request.pod), request.network, request.netns, addresses, attach)
            wiring = self._state.wiring(lease)
            await self._wire_new(lease, msgspec.structs.replace(wiring, limited=request.limited), netns)
        except BaseException:
            if self._reconciler.enforcement.entered(attachment):
                self._reconciler.wake()  # what was written for it goes
            if left := self._left(attachment, addresses):  # if nobody can tell, they stay taken
                self._keep(left, netns)
            else:
                self._state.book.free(addresses, attachment, self._state.now())
            raise
        self._state.leases[attachment] = lease
        self._reconciler.enforcement.entered(attachment)
        self._ends.enter(attachment, netns)
        self._reconciler.adopt(attachment, wiring)
        self._state.touch(attachment.link)
        self._blocks.trigger()
        if self._entering.pop(attachment.link):
            self.link_vanished(attachment.link)
        return wiring

    async def _wire_new(self, lease: Lease, wiring: PodWiring, netns: int) -> None:
        """Wire a pod for its ADD. The loop goes on meanwhile, and knows of the pod's lease only afterwards."""
        link, flow, state = lease.attachment.link, self._kernel.flow, self._state
        planned_for = flow.openings, state.engine

        def confirm() -> None:
            # Without an engine the link has no programs, which it lacks if there is one by now.
            if (flow.openings, state.engine) != planned_for:
                raise AgentError(
                    f"pod {lease.pod}: the flow engine was opened or closed while its link was made",
                    hint="the runtime repeats its ADD",
                )

        self._mend_bridge(wiring)
        state.touch(link)
        self._entering[link] = False
        try:
            judge = partial(self._reconciler.enforcement.enter, lease)
            await self._wirer.wire(wiring, netns, judge, confirm)
        except BaseException:
            del self._entering[link]
            raise

    def _left(self, attachment: Attachment, addresses: tuple[Address, ...]) -> Lease | None:
        """Return what the kernel holds after an ADD that failed: nothing, unless its link could not be removed."""
        if not self._kernel.has_link(attachment.link):
            return None
        held = (lease for lease in self._kernel.leases() if lease.attachment == attachment)
        return next((lease for lease in held if lease.addresses == addresses), None)

    def _keep(self, lease: Lease, netns: int) -> None:
        """Take a link that is left for a lease, as an agent that starts would: a DEL removes it."""
        log.error("the link of a pod that was refused is still there", pod=lease.pod, link=lease.attachment.link)
        self._state.leases[lease.attachment] = lease
        self._ends.enter(lease.attachment, netns)
        self._reconciler.wake()

    def _wire_now(self, lease: Lease, wiring: PodWiring, netns: int) -> None:
        """Wire a pod at once: nothing else is done until it is."""
        self._mend_bridge(wiring)

        def judged(stage: str) -> None:
            if stage == "created":
                self._reconciler.enforcement.enter(lease)

        self._kernel.wire(wiring, netns, on_stage=judged)

    def _mend_bridge(self, wiring: PodWiring) -> None:
        if wiring.away and not self._kernel.has_link(BRIDGE_DEVICE):
            # Somebody has just removed the bridge: the pod need not wait until that is found.
            failures = self._reconciler.repair().failures
            if failures and not self._kernel.has_link(BRIDGE_DEVICE):
                raise failures[0]

    async def _remove(self, lease: Lease) -> None:
        """Remove a pod's link, and free its addresses once it is gone."""
        self._state.leaving.add(lease.attachment)
        try:
            self._release(lease)
            await self._remover.remove(lease.attachment.link)
            self._state.touch(lease.attachment.link)
            self._forget(lease.attachment)
        finally:
            self._state.leaving.discard(lease.attachment)

    def _release(self, lease: Lease) -> None:
        """Take away what stands on the bridge for a pod, which its link's end does not."""
        wiring = self._state.wiring(lease)
        self._kernel.release(wiring)

    def _forget(self, attachment: Attachment) -> None:
        self._state.forget(attachment)
        self._ends.forget(attachment)
        self._reconciler.enforcement.entered(attachment)
        self._unmended.pop(attachment, None)
        self._reconciler.wake()

    def link_vanished(self, link: str) -> None:
        """Act on a pod link that disappeared: free its lease, or wire it again if the pod is still there."""
        if link in self._entering:
            self._entering[link] = True  # it is looked at once its lease is known
            return
        lease = next((one for one in self._state.leases.values() if one.attachment.link == link), None)
        if lease is None or lease.attachment in self._state.leaving:
            return
        if self._kernel.has_link(link):
            self._unmended.pop(lease.attachment, None)
            return
        try:
            there = self._wired_again(lease)
        except PodwayError as error:
            self._put_off(lease, error)
            return
        self._unmended.pop(lease.attachment, None)
        if there:
            self._reconciler.repairs.note(f"link {link} of pod {lease.pod or '-'} was missing: made again")
            return
        try:
            self._release(lease)
        except KernelError as error:  # what stays on the bridge is in no plan any more: the engine removes it
            log.warning("remains of a pod on the bridge", pod=lease.pod, problem=error.message)
        self._forget(lease.attachment)
        log.info("pod gone", pod=lease.pod, addresses=[str(address) for address in lease.addresses])

    def look_for_vanished(self) -> None:
        """Act on pod links that may have disappeared untold."""
        for link in (*self._entering, *(attachment.link for attachment in self._state.leases)):
            self.link_vanished(link)

    def _wired_again(self, lease: Lease) -> bool:
        """Wire a pod whose link is missing; return False if the pod is not there any more. Raises PodwayError."""
        with ExitStack() as stack:
            try:
                netns = stack.enter_context(self._ends.opened(lease))
            except InvalidInput:
                return False
            self._release(lease)
            try:
                self._wire_now(lease, self._state.wiring(lease), netns)
            finally:
                self._reconciler.enforcement.entered(lease.attachment)
        return True

    def _put_off(self, lease: Lease, error: PodwayError) -> None:
        """Note that a pod that is still there could not be wired again: it keeps its lease, and is tried again."""
        told = f"link {lease.attachment.link} of pod {lease.pod or '-'} is missing: {error.message}"
        if told != self._unmended.get(lease.attachment):
            log.error("pod link cannot be made again yet", pod=lease.pod, problem=error.message, hint=error.hint)
        self._unmended[lease.attachment] = told
        self._to_mend.set()
