"""Settings: those that the plan names."""

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from podway.errors import KernelError
from podway.kernel import sysctls
from podway.kernel.engine import Compared, Consequence
from podway.kernel.kinds.inventory import Inventory
from podway.plan.changes import Change
from podway.plan.objects import NodePlan, Sysctl


class Sysctls:
    """Settings: those that the plan names."""

    name = "sysctl"
    repairs_only = False
    compared: Compared = False

    def __init__(self, inside: Callable[[Callable[[], Any]], Any], inventory: Inventory) -> None:
        self._inside = inside
        self._inventory = inventory
        self.writes = 0

    def wanted(self, plan: NodePlan) -> Mapping[str, Sysctl]:
        """Return the plan's settings by path."""
        return {sysctl.key: sysctl for sysctl in plan.sysctls}

    def list(self, plan: NodePlan) -> Mapping[str, Sysctl]:
        """Return what the plan's settings are now."""
        if not plan.sysctls:
            return {}
        found: dict[str, str] = self._inside(lambda: sysctls.read(s.path for s in plan.sysctls))
        return {path: Sysctl(path, value) for path, value in found.items()}

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Write settings."""
        failures: dict[int, KernelError] = {}

        def write() -> None:
            for position, change in enumerate(changes):
                if change.want is None:
                    continue  # nobody knows another value for it: it stays as it is
                if not self._inventory.refused.isdisjoint(change.key.split("/")):
                    failures[position] = Consequence(f"write {change.want}", errno.ENODEV)
                    continue
                try:
                    self.writes += sysctls.write(change.want)
                except KernelError as error:
                    failures[position] = error

        self._inside(write)
        return failures
