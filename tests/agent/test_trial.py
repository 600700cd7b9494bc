"""The trial of an attachment: nothing of it is left, however it ends."""

import asyncio
import os
from pathlib import Path

import pytest

from podway.agent.trial import try_attachment
from tests.patience import eventually

pytestmark = pytest.mark.kernel

PLUGIN = """#!/bin/sh
echo $CNI_COMMAND >>{directory}/calls
test $CNI_COMMAND = DEL && exit
echo $$ >{directory}/number.new
mv {directory}/number.new {directory}/number
exec sleep 1000
"""
"""A plugin whose ADD never ends."""


def test_a_trial_that_is_given_up_ends_its_plugin_and_detaches(tmp_path: Path) -> None:
    plugin, number = tmp_path / "plugin", tmp_path / "number"
    plugin.write_text(PLUGIN.format(directory=tmp_path))
    plugin.chmod(0o755)
    before = set(os.listdir("/proc/self/fd"))

    async def cancelled() -> None:
        trial = asyncio.create_task(try_attachment(plugin, tmp_path / "socket", tmp_path / "spool", "default"))
        await asyncio.to_thread(eventually, number.exists, "ADD has begun")
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial

    asyncio.run(cancelled())
    assert not Path(f"/proc/{number.read_text().strip()}").exists()
    assert (tmp_path / "calls").read_text().split() == ["ADD", "DEL"]
    assert set(os.listdir("/proc/self/fd")) <= before, "no namespace is kept"
