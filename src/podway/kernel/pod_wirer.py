"""Pods' attachments built beside the event loop, which goes on meanwhile.

Making a veth pair takes the kernel a millisecond or two, and the requests for what stands on it wait, as all of
rtnetlink does, for whoever holds its lock: the removal of another link, or a device that somebody else makes. So
the batches of an attachment are sent from a thread, over a connection of that thread's own. What belongs to the
loop is done there, between two of them: the entries by which the pod is judged, before its link is up. And what
stands on the bridge, where the engine takes for a stranger's what it does not know of yet, is made without a pause
until it is known.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from podway.kernel.node import Kernel
from podway.plan.objects import PodWiring

_THREADS = 4
"""Attachments under way at once; more wait for their turn. The kernel makes one link after the other anyway."""


class PodWirer:
    """Builds attachments of pods in one kernel. Belongs to one event loop."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._idle = [kernel.connect() for _ in range(_THREADS)]
        self._turns = asyncio.Semaphore(_THREADS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="wire")

    def close(self) -> None:
        """Finish what is under way."""
        self._threads.shutdown()

    async def wire(
        self, plan: PodWiring, pod_netns: int, judge: Callable[[], None], confirm: Callable[[], None]
    ) -> None:
        """Build a pod's attachment, or nothing: when a step fails, what was made is removed again.

        `judge` is called in the loop when the pair has been made, before anything can pass there, and `confirm`
        when all has: what it raises undoes it, and so does a cancellation until then. Raises what these raise, and
        KernelError as Kernel.wire does.
        """
        async with self._turns:
            connection = self._idle.pop()
            steps = self._kernel.wire_in_steps(plan, pod_netns, connection)
            try:
                await self._beside(partial(next, steps))
                judge()
                next(steps)
                if plan.away or plan.elements:
                    _commit(steps)
                else:
                    await self._beside(partial(_commit, steps))
                confirm()
            except BaseException:
                await self._beside(steps.close)
                raise
            else:
                next(steps, None)  # from now on it cannot be undone by closing it
            finally:
                self._idle.append(connection)

    async def _beside(self, function: Callable[[], object]) -> None:
        """Have a thread do something, and wait until it is done in any case, however often that is cancelled."""
        doing = asyncio.get_running_loop().run_in_executor(self._threads, function)
        cancelled: asyncio.CancelledError | None = None
        while not doing.done():
            try:
                await asyncio.wait((doing,))
            except asyncio.CancelledError as error:
                cancelled = error
        failed = doing.exception()
        if cancelled is not None:
            raise cancelled
        if failed is not None:
            raise failed


def _commit(steps: Iterator[str]) -> None:
    """Take the steps up to the commit, and not past it: so whoever closes them still undoes all."""
    for stage in steps:
        if stage == "committed":
            return
