"""Programs that are run beside an event loop, and end with who runs them.

So do those that they start, unless they leave their process group (setsid): these are never waited for.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

_PIECE = 1 << 16
_DRAINING = 1.0
"""Seconds that what a killed program left in its pipes may take: who has left its group may hold them for ever."""


@contextlib.asynccontextmanager
async def running(*command: str | os.PathLike[str], **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program; it has ended when the block is left, also where that was cancelled or has failed.

    If it still runs then, it is killed with all that is in its process group, and its pipes are closed, whoever
    holds their other ends. `options` are those of asyncio.create_subprocess_exec. Raises OSError if the program
    cannot be run.
    """
    process = await asyncio.create_subprocess_exec(*command, process_group=0, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended a moment ago
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAINING):
                    for stream in (process.stdout, process.stderr):
                        while stream is not None and await stream.read(_PIECE):
                            pass  # asyncio may wait for the end of a pipe before it tells that of the process
            process._transport.close()  # type: ignore[attr-defined]  # nothing public closes what asyncio reads
            await process.wait()
