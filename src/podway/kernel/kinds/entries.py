"""What stands on devices: addresses, permanent neighbours, forwarding entries."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from podway.errors import KernelError
from podway.kernel.engine import Compared, Scannable
from podway.kernel.kinds.inventory import Inventory, devices_of
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import addresses, forwarding, neighbours
from podway.plan.changes import Change
from podway.plan.objects import ForwardingEntry, LinkAddress, Neighbour, NodePlan


class Addresses(Scannable):
    """Addresses: all on the plan's devices and links, and on others those that the plan names."""

    name = "address"
    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, inventory: Inventory) -> None:
        self._connection = connection
        self._inventory = inventory

    def pairs(self, plan: NodePlan) -> Iterator[tuple[Hashable, LinkAddress]]:
        """Yield the plan's addresses by device and address."""
        return ((address.key, address) for address in plan.addresses)

    def scan(self, plan: NodePlan, wanted: Mapping[Any, Any]) -> Iterator[tuple[Hashable, LinkAddress]]:
        """Yield the addresses that are ours to set."""
        planned = devices_of(plan)
        for record in addresses.dump(self._connection):
            device = self._inventory.name(record.index)
            if not device:
                continue  # somebody else's, or it went between the two dumps
            scope: Any = record.scope
            address = LinkAddress(device, record.address, scope)
            if device in planned or address.key in wanted:
                yield address.key, address

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add and remove addresses."""
        return self._inventory.carry_out(changes, addresses.add, addresses.add, addresses.remove)


class Neighbours(Scannable):
    """Permanent neighbour entries: all on the plan's devices and links; on others those that the plan names."""

    name = "neighbour"
    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, inventory: Inventory) -> None:
        self._connection = connection
        self._inventory = inventory

    def pairs(self, plan: NodePlan) -> Iterator[tuple[Hashable, Neighbour]]:
        """Yield the plan's neighbours by device and address."""
        return ((neighbour.key, neighbour) for neighbour in plan.neighbours)

    def scan(self, plan: NodePlan, wanted: Mapping[Any, Any]) -> Iterator[tuple[Hashable, Neighbour]]:
        """Yield the permanent entries that are ours to set."""
        planned = devices_of(plan)
        for record in neighbours.scan(self._connection):
            device = self._inventory.name(record.index)
            if not device or not record.permanent:
                continue
            neighbour = Neighbour(device, record.address, record.mac)
            if device in planned or neighbour.key in wanted:
                yield neighbour.key, neighbour

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add and remove entries."""
        return self._inventory.carry_out(changes, neighbours.add, neighbours.add, neighbours.remove)


class Forwarding(Scannable):
    """Entries of the VXLAN devices' forwarding databases: all on the plan's devices."""

    name = "forwarding entry"
    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, inventory: Inventory) -> None:
        self._connection = connection
        self._inventory = inventory

    def pairs(self, plan: NodePlan) -> Iterator[tuple[Hashable, ForwardingEntry]]:
        """Yield the plan's entries by device and hardware address."""
        return ((entry.key, entry) for entry in plan.forwarding)

    def scan(self, plan: NodePlan, wanted: Mapping[Any, Any]) -> Iterator[tuple[Hashable, Any]]:
        """Yield the entries of the plan's VXLAN devices."""
        del wanted
        found: set[Hashable] = set()
        numbers = self._inventory.numbers
        for device in plan.devices:
            if device.kind != "vxlan" or device.name not in numbers:
                continue
            for record in forwarding.scan(self._connection, numbers[device.name]):
                entry = record.planned(device.name)
                key: tuple[Any, ...] = (device.name, record.mac)
                if key in found:
                    key = (*key, record)  # a further destination, an object of its own: each can be removed
                found.add(key)
                yield key, entry or forwarding.ForeignEntry(device.name, record)

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add, replace and remove entries."""
        return self._inventory.carry_out(changes, forwarding.add, forwarding.replace, forwarding.remove)
