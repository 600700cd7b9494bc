"""What an agent is told when it starts, and the files that it keeps."""

from pathlib import Path

import msgspec

from podway.api.fields import check_name
from podway.api.kinds.node_lease import CONTROLLER
from podway.errors import InvalidInput
from podway.export.target import Target

DEFAULT_RUN_DIR = Path("/run/podway")
DEFAULT_FLOW_DIR = Path("/var/lib/podway/flows")

LEAST_HISTORY = 16 << 20
"""Bytes that a history of flows needs at least."""


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's settings; times are in seconds."""

    node: str
    store: str
    run_dir: Path = DEFAULT_RUN_DIR
    interface: str = ""
    """The uplink, if it should not be found out."""
    metrics: str = ""
    """Where metrics are served, ADDRESS:PORT; nowhere if empty."""
    metrics_export: Target | None = None
    """Which collector is sent metrics."""
    resync_interval: float = 30.0
    """Between full comparisons of plan and kernel; between them, kernel events trigger repairs."""
    heartbeat_interval: float = 10.0
    idle_block_delay: float = 60.0
    """How long an extra block stays empty before it is given back."""
    flow_history: int = 1 << 30
    """How many bytes the history of flows may take; 0: none is kept."""
    flow_exports: tuple[Target, ...] = ()
    """Who is sent what is recorded of flows."""
    plugin_dir: Path | None = None
    conf_dir: Path | None = None
    """Where the CNI plugin and its configuration are kept in place; None: whoever installs Podway puts them."""
    default_pools: tuple[str, ...] = ()
    """Networks of which pools are made in a cluster that has none of their family."""

    def prepare(self) -> None:
        """Check what was said, and make the run directory. Raises InvalidInput, OSError."""
        for field, problem, hint in check_name("--node", self.node):
            raise InvalidInput(f"{field}: {problem}", hint=f"{hint}, as Kubernetes names nodes")
        if self.node == CONTROLLER:
            raise InvalidInput(
                f"--node: {self.node} is the name of the controller's lease", hint="use another name"
            )
        if self.flow_history and self.flow_history < LEAST_HISTORY:
            raise InvalidInput(
                f"--flow-history: less than {LEAST_HISTORY >> 20} MiB", hint="name more, or 0 for no history"
            )
        if self.flow_exports and not self.flow_history:
            raise InvalidInput(
                "--flow-export: flows are sent from the history, and there is none",
                hint="leave out --flow-history 0",
            )
        self.run_dir.mkdir(parents=True, exist_ok=True)

    @property
    def admin_socket(self) -> Path:
        """Where `podway status` and its like ask."""
        return self.run_dir / "agent.sock"

    @property
    def flow_dir(self) -> Path:
        """Where the history of flows is: on a disk, unless the agent has a run directory of its own."""
        return DEFAULT_FLOW_DIR if self.run_dir == DEFAULT_RUN_DIR else self.run_dir / "flows"

    @property
    def cni_socket(self) -> Path:
        """Where the CNI shim asks."""
        return self.run_dir / "cni.sock"

    @property
    def cni_spool(self) -> Path:
        """Where the CNI shim leaves DELs while no agent runs."""
        return self.run_dir / "cni-deletes"
