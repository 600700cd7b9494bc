"""Takes Podway's work out of a node's kernel: links, routes, nftables table, BIRD; settings are set back.

What the agent keeps in its run directory goes as well, and the directory, unless somebody else has files there.

The store is left alone: what the node owns there returns to the pools when its Node object is deleted.
"""

import asyncio
import contextlib
import shutil
from pathlib import Path

import msgspec

from podway.agent import lastknown
from podway.agent.identity import NodeLock
from podway.bgp.speaker import BgpSpeaker
from podway.errors import AgentError
from podway.kernel import sysctls
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
    sysctls.make_writable()
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
    except BaseException:
        lock.release()
        raise
    lock.remove()
    _clear(run_dir)
    return Removed(
        pods=tuple(lease.pod or lease.attachment.container for lease in leases),
        objects=tuple(str(change.have) for change in report.changes),
        settings=tuple(f"{sysctl.path} = {sysctl.value}" for sysctl in settings),
        bird=bird,
    )


def _clear(run_dir: Path) -> None:
    """Remove the agent's files, and the directory if it is empty then: labs have theirs beside it."""
    for name in (lastknown.FILE, "agent.sock", "cni.sock", "bird.conf", "bird.ctl", "bird.pid", "bird.log"):
        (run_dir / name).unlink(missing_ok=True)
    for name in ("cni-deletes", "flows"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        run_dir.rmdir()
