"""What all kinds share: the node's devices as last seen, and changes of what stands on devices."""

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from podway.errors import KernelError
from podway.kernel.engine import Consequence
from podway.kernel.netlink import Connection, Request
from podway.kernel.rtnl import links
from podway.plan.changes import Change
from podway.plan.objects import NodePlan

_T = TypeVar("_T")

_GONE = {errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV}
"""What the kernel says to the removal of what is no longer there."""


class Inventory:
    """All devices as the latest look found them: one dump serves a whole comparison."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.by_index: dict[int, links.LinkRecord] = {}
        self.refused: frozenset[str] = frozenset()
        """Names of devices that the plan wants and that cannot be had: nothing is put on what is there instead."""

    def look(self) -> Iterable[links.LinkRecord]:
        """Dump them anew, and return them. Raises KernelError."""
        self.by_index = {link.index: link for link in links.dump(self._connection)}
        return self.by_index.values()

    def name(self, index: int) -> str:
        """Return the name of a device on which things of ours may stand, empty for any other."""
        link = self.by_index.get(index)
        return link.name if link and link.name not in self.refused else ""

    @property
    def numbers(self) -> dict[str, int]:
        """The numbers of the devices on which things of ours may stand, by name."""
        return {link.name: link.index for link in self.by_index.values() if link.name not in self.refused}

    def carry_out(
        self,
        changes: Sequence[Change],
        add: Callable[[_T, int], Request],
        replace: Callable[[_T, int], Request],
        remove: Callable[[_T, int], Request],
    ) -> dict[int, KernelError]:
        """Carry out changes of objects that name a device, all in one batch; return the failures by position."""
        build = {"add": add, "replace": replace, "remove": remove}
        numbers = self.numbers
        failures: dict[int, KernelError] = {}
        batch: list[tuple[int, Request]] = []
        for position, change in enumerate(changes):
            thing = change.have if change.want is None else change.want
            device = getattr(thing, "device", "")
            if device and device not in numbers:
                if change.want is not None:
                    refused = Consequence if device in self.refused else KernelError
                    failures[position] = refused(f"{change.action} {thing}", errno.ENODEV)
                continue
            batch.append((position, build[change.action](thing, numbers.get(device, 0))))
        for place, error in self._connection.attempt([request for _, request in batch]).items():
            position = batch[place][0]
            if changes[position].want is None and error.errno in _GONE:
                continue
            failures[position] = error
        return failures


def devices_of(plan: NodePlan) -> set[str]:
    """Return the names of the devices that are a plan's own: all that stands on them is the plan's to say."""
    return {link.name for link in plan.links} | {device.name for device in plan.devices}
