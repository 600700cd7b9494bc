"""The flow engine's programs loaded beside the loop, for the kernel's verifier takes long for them."""

import asyncio
from collections.abc import Callable, Iterable

from podway.kernel.interface import FlowDoor


class ProgramLoader:
    """Has a thread do what the engine needs before it can be opened. Belongs to the loop's thread."""

    def __init__(self, flow: FlowDoor, done: Callable[[], None]) -> None:
        """Take the engine, and what is called whenever something was loaded."""
        self._flow = flow
        self._done = done
        self._task: asyncio.Task[None] | None = None

    @property
    def under_way(self) -> bool:
        """Whether something is being loaded."""
        return self._task is not None

    def ready(self, wires: Iterable[str], pods: Iterable[str]) -> bool:
        """Tell whether the engine can be opened on these devices at once; if not, have it made so."""
        if self._task is None and (load := self._flow.loading(wires, pods)) is not None:
            self._task = asyncio.get_running_loop().create_task(self._load(load))
        return self._task is None

    async def wait(self) -> None:
        """Wait until nothing is being loaded."""
        while self._task is not None:
            await asyncio.wait((self._task,))

    async def _load(self, load: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(load)
        finally:
            self._task = None
            self._done()
