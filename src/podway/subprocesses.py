"""Programs that are run beside an event loop, and never outlive who runs them."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

_PIECE = 1 << 16


@contextlib.asynccontextmanager
async def running(*command: str | os.PathLike[str], **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program; it has ended when the block is left, also where that was cancelled or has failed.

    If it still runs then, it is killed with all that is in its process group. `options` are those of
    asyncio.create_subprocess_exec. Raises OSError if the program cannot be run.
    """
    process = await asyncio.create_subprocess_exec(*command, process_group=0, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended a moment ago
                os.killpg(process.pid, signal.SIGKILL)
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(_PIECE):
                    pass  # asyncio may wait for the end of a pipe before it tells that of the process
            await process.wait()
