"""An agent for tests: `python agent_process.py '{"node": …, settings of AgentOptions, …}'`.

Besides, `housekeeping` (seconds) sets how often blocks are looked at, and `die_at` names a stage of wiring
(podway.kernel.wiring) at which the process kills itself, once. While the file that `spoil` names exists, what BIRD
is given has a mistake in it, and while `fail` does, whatever plans fails.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from podway.agent import agent, housekeeping
from podway.agent.logs import configure
from podway.agent.options import AgentOptions
from podway.bgp.render import Renderer
from podway.kernel.node import Kernel
from podway.reconcile.host import read_host


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    housekeeping.INTERVAL = settings.pop("housekeeping", housekeeping.INTERVAL)
    if stage := settings.pop("die_at", ""):
        _die_at(stage)
    if path := settings.pop("spoil", ""):
        _spoil_configurations(Path(path))
    if path := settings.pop("fail", ""):
        _fail_to_plan(Path(path))
    configure("info")
    agent.run(AgentOptions(run_dir=Path(settings.pop("run_dir")), **settings))


def _spoil_configurations(path: Path) -> None:
    render = Renderer.render

    def spoilt(*arguments: Any) -> str:
        return render(*arguments) + ("nonsense;\n" if path.exists() else "")

    pytest.MonkeyPatch().setattr(Renderer, "render", spoilt)


def _fail_to_plan(path: Path) -> None:
    def failing(*arguments: Any, **named: Any) -> Any:
        if path.exists():
            raise KeyError("a mistake")
        return read_host(*arguments, **named)

    pytest.MonkeyPatch().setattr("podway.reconcile.reconciler.read_host", failing)


def _die_at(stage: str) -> None:
    wire_in_steps = Kernel.wire_in_steps

    def dying(self: Kernel, *arguments: Any) -> Any:
        for reached in wire_in_steps(self, *arguments):
            yield reached
            if reached == stage:
                _die()

    Kernel.wire_in_steps = dying  # type: ignore[method-assign, assignment]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


main()
