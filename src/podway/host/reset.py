"""Takes Podway's work out of a node's kernel: links, routes, nftables table, BIRD; settings are set back.

The store is left alone: what the node owns there returns to the pools when its Node object is deleted.
"""

import asyncio
from pathlib import Path

import msgspec

from podway.agent import lastknown
from podway.agent.identity import NodeLock
from podway.bgp.speaker import BgpSpeaker
from podway.errors import AgentError
from podway.kernel.node import Kernel
from podway.plan.objects import NodePlan
from podway.reconcile import saved_sysctls


class Removed(msgspec.Struct, frozen=True):
    """What was taken away; `settings` were set back."""

    pods: tuple[str, ...]
    objects: tuple[str, ...]
    settings: tuple[str, ...]
    bird: bool


def reset(run_dir: Path, *, with_pods: bool = False) -> Removed:
    """Remove everything of ours from this network namespace; what is not ours stays.

    Raises AgentError if the node's agent runs, or if pods are attached and `with_pods` is false; then nothing
    is removed. Raises KernelError and RoutingError.
    """
    lock = NodeLock()
    try:
        with Kernel.open() as kernel:
            leases = kernel.leases()
            if leases and not with_pods:
                names = ", ".join(sorted(lease.pod or lease.attachment.container for lease in leases))
                raise AgentError(
                    f"{len(leases)} pods are attached and would lose their network: {names}",
                    hint="move them away first (kubectl drain), or say --with-pods",
                )
            # First BIRD, so that the other nodes stop sending here before the ways end.
            bird = asyncio.run(BgpSpeaker(run_dir).retire())
            for link in [lease.attachment.link for lease in leases] + kernel.orphans():
                kernel.unwire(link)
            report = kernel.apply(NodePlan())
            if report.failures:
                raise report.failures[0]
            settings = saved_sysctls.restore(run_dir, kernel)
            (run_dir / lastknown.FILE).unlink(missing_ok=True)
    finally:
        lock.release()
    return Removed(
        pods=tuple(lease.pod or lease.attachment.container for lease in leases),
        objects=tuple(str(change.have) for change in report.changes),
        settings=tuple(f"{sysctl.path} = {sysctl.value}" for sysctl in settings),
        bird=bird,
    )
