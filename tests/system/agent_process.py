"""An agent for tests: `python agent_process.py '{"node": …, settings of AgentOptions, …}'`.

Besides, `housekeeping` (seconds) sets how often blocks are looked at, and `die_at` names a stage of wiring
(podway.kernel.wiring) at which the process kills itself, once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from podway.agent import agent
from podway.agent.logs import configure
from podway.agent.options import AgentOptions
from podway.kernel.node import Kernel


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    agent.HOUSEKEEPING = settings.pop("housekeeping", agent.HOUSEKEEPING)
    if stage := settings.pop("die_at", ""):
        _die_at(stage)
    configure("info")
    agent.run(AgentOptions(run_dir=Path(settings.pop("run_dir")), **settings))


def _die_at(stage: str) -> None:
    wire = Kernel.wire

    def dying(self: Kernel, plan: Any, pod_netns: int) -> None:
        wire(self, plan, pod_netns, on_stage=lambda reached: _die() if reached == stage else None)

    Kernel.wire = dying  # type: ignore[method-assign, assignment]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


main()
