"""What settings of the whole node were before Podway changed them, so that removing Podway restores them.

A pod link's settings vanish with the link. Those of the uplink and of the namespace would stay: their former
values are kept in the run directory, which, like the settings, does not outlive a reboot.
"""

from pathlib import Path

import msgspec

from podway.api.lease import LINK_PREFIX
from podway.errors import AgentError
from podway.kernel.interface import NodeKernel
from podway.plan.fabric import DEVICES
from podway.plan.objects import BRIDGE_DEVICE, NodePlan, Sysctl

FILE = "original-sysctls.json"

_DEVICES = {*DEVICES.values(), BRIDGE_DEVICE}


def remember(run_dir: Path, kernel: NodeKernel, plan: NodePlan) -> None:
    """Note what the plan's node-wide settings are, unless they are noted already. Call before applying it.

    Raises AgentError if the file is damaged or cannot be written: what was noted in it is lost then.
    """
    known = _load(run_dir)
    new = [s.path for s in plan.sysctls if s.path not in known and not _goes_with_a_device(s.path)]
    if new:
        _save(run_dir, {**known, **kernel.sysctls(new)})


def restore(run_dir: Path, kernel: NodeKernel) -> tuple[Sysctl, ...]:
    """Set everything back to what was noted, and forget it; return what was noted. Raises KernelError."""
    saved_sysctls = tuple(Sysctl(path, value) for path, value in _load(run_dir).items())
    report = kernel.apply(NodePlan(sysctls=saved_sysctls))
    if report.failures:
        raise report.failures[0]
    (run_dir / FILE).unlink(missing_ok=True)
    return saved_sysctls


def _goes_with_a_device(path: str) -> bool:
    """Tell whether a setting is one of a device of ours, and vanishes with it."""
    return f"/{LINK_PREFIX}" in path or not _DEVICES.isdisjoint(path.split("/"))


def _load(run_dir: Path) -> dict[str, str]:
    path = run_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AgentError(
            f"{path} is damaged: {error}", hint="remove it; settings then stay as they are"
        ) from error


def _save(run_dir: Path, saved_sysctls: dict[str, str]) -> None:
    fresh = run_dir / f"{FILE}.new"
    try:
        fresh.write_bytes(msgspec.json.encode(saved_sysctls))
        fresh.replace(run_dir / FILE)
    except OSError as error:
        raise AgentError(
            f"{run_dir / FILE} cannot be written: {error.strerror}",
            hint=f"make room in {run_dir}: df -h {run_dir}",
        ) from error
