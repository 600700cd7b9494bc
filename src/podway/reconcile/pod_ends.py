"""The ends of pods' links that are in the pods' own namespaces, which no plan of the node reaches."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from podway.api.lease import Attachment, Lease
from podway.errors import InvalidInput, KernelError
from podway.kernel import netns as namespaces
from podway.kernel.interface import NodeKernel

log = structlog.get_logger(__name__)


class PodEnds:
    """Knows which namespace each pod lives in, and keeps the MTU of its end in step with the host's."""

    def __init__(self, kernel: NodeKernel) -> None:
        self._kernel = kernel
        self._identities: dict[Attachment, namespaces.Identity] = {}

    def learn(self, leases: Iterable[Lease]) -> None:
        """Note which namespaces the pods of adopted leases live in, to know them again."""
        for lease in leases:
            try:
                with namespaces.opened(lease.netns) as netns:
                    self.enter(lease.attachment, netns)
            except InvalidInput:
                continue  # unknown, its link's disappearance will free the lease: right for a pod that is gone

    def enter(self, attachment: Attachment, netns: int) -> None:
        """Note the namespace that a pod lives in, by a descriptor of it."""
        self._identities[attachment] = namespaces.identity(netns)

    def forget(self, attachment: Attachment) -> None:
        """Forget a pod that is gone."""
        self._identities.pop(attachment, None)

    @contextmanager
    def opened(self, lease: Lease) -> Iterator[int]:
        """Open a lease's network namespace. Raises InvalidInput if its path is gone, or names another by now."""
        with namespaces.opened(lease.netns) as netns:
            if namespaces.identity(netns) != self._identities.get(lease.attachment):
                raise InvalidInput(f"{lease.netns} is no longer the network namespace of {lease.pod}")
            yield netns

    def fit(self, leases: Iterable[Lease], planned: Mapping[str, int]) -> None:
        """Bring the pods' ends to the MTU (bytes) that is planned for their link, by its name; the host's follow.

        Between two ends that differ, the larger one's packets would vanish without a word (is_skb_forwardable
        in net/core/dev.c). The host's end tells what the pod's was; who has set another one inside meant it.
        """
        mtus = self._kernel.mtus()
        for lease in leases:
            mtu = planned.get(lease.attachment.link, 0)
            was = mtus.get(lease.attachment.link, mtu)
            if not mtu or was == mtu:
                continue
            try:
                with self.opened(lease) as netns:
                    self._kernel.set_pod_mtu(netns, lease.attachment.ifname, mtu, was=was)
            except (InvalidInput, KernelError) as error:
                log.warning("MTU of a pod stays as it is", pod=lease.pod, mtu=was, problem=error.message)
