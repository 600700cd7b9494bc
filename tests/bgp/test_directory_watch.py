import asyncio
import errno
import os
from pathlib import Path

import pytest

from podway import inotify
from podway.bgp.liveness import DirectoryWatch


def _refuse(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("room", [True, False], ids=["inotify", "no-descriptor-left"])
def test_a_written_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    if not room:
        monkeypatch.setattr(inotify, "watch", _refuse)
    log = tmp_path / "bird.log"
    log.write_text("before\n")

    async def watching() -> None:
        with DirectoryWatch(tmp_path) as watch:
            for _ in range(2):
                waiting = asyncio.ensure_future(watch.changed())
                await asyncio.sleep(0.15)
                assert not waiting.done(), "nothing was written since"
                with log.open("a") as file:
                    file.write("bfd1: session down\n")
                await asyncio.wait_for(waiting, 2)

    asyncio.run(watching())
