"""Ports of the bridge: which pod links stand on it, and what the node answers there for the others."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import msgspec

from podway.errors import KernelError
from podway.kernel.engine import Compared, one_by_one
from podway.kernel.kinds.inventory import Inventory
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import bridge, links, proxies
from podway.plan.changes import Change
from podway.plan.objects import ROUTE_PROTOCOL, NodePlan, Port, Proxy


class OtherPort(msgspec.Struct, frozen=True):
    """A pod link that is a port as no plan of ours can mean it: `what` says what is the matter with it."""

    device: str
    bridge: str
    what: str

    def __str__(self) -> str:
        return f"port {self.device} of {self.bridge}, {self.what}"


class Ports:
    """The plan's pod links that are ports of a bridge, ours or anybody's."""

    name = "port"
    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, inventory: Inventory) -> None:
        self._connection = connection
        self._inventory = inventory

    def wanted(self, plan: NodePlan) -> Mapping[str, Port]:
        """Return the plan's ports by the link's name."""
        return {port.key: port for port in plan.ports}

    def list(self, plan: NodePlan) -> Mapping[str, Port | OtherPort]:
        """Return the ports among the plan's pod links."""
        planned = {link.name for link in plan.links}
        records = [link for link in self._inventory.by_index.values() if link.master and link.name in planned]
        entries: dict[int, list[str]] = {}
        for master in {record.master for record in records}:
            for entry in bridge.static_entries(self._connection, master):
                entries.setdefault(entry.index, []).append(entry.mac)
        return {record.name: self._read(record, entries.get(record.index, [])) for record in records}

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Put links on their bridge, and take others off."""
        return one_by_one(changes, self._carry_out)

    def _read(self, record: links.LinkRecord, macs: Sequence[str]) -> Port | OtherPort:
        master = self._inventory.by_index.get(record.master)
        name = master.name if master else f"if{record.master}"
        if not bridge.has_port_flags(record):
            return OtherPort(record.name, name, "which is set otherwise")
        if len(macs) != 1:
            return OtherPort(record.name, name, f"with static entries {', '.join(sorted(macs)) or 'missing'}")
        return Port(record.name, name, macs[0])

    def _carry_out(self, change: Change) -> None:
        want: Port | None = change.want
        index = links.find(self._connection, change.key).index
        if want is None:
            self._connection.transact([links.change(index, master=0, label=change.key)])
            return
        number = bridge.number_of(self._connection, want.bridge)
        self._connection.transact(bridge.join(want, index, number))
        for entry in bridge.static_entries(self._connection, number):
            if entry.index == index and entry.mac != want.mac:
                self._connection.transact([bridge.forget(entry, want)])


class Proxies:
    """Proxy entries: all on the plan's devices, and on others those with our mark, the protocol of our routes."""

    name = "proxy"
    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, inventory: Inventory) -> None:
        self._connection = connection
        self._inventory = inventory

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, Proxy]:
        """Return the plan's proxies by device and address."""
        return {proxy.key: proxy for proxy in plan.proxies}

    def list(self, plan: NodePlan) -> Mapping[Hashable, Any]:
        """Return the entries on the plan's bridges, and elsewhere those of ours or that the plan wants."""
        wanted = self.wanted(plan)
        planned = {device.name for device in plan.devices if device.kind == "bridge"}
        found: dict[Hashable, Proxy] = {}
        for record in proxies.dump(self._connection):
            proxy = Proxy(self._inventory.name(record.index), record.address)
            ours = proxy.device in planned or record.protocol == ROUTE_PROTOCOL
            if proxy.device and (ours or proxy.key in wanted):
                found[proxy.key] = proxy
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add and remove entries."""
        return self._inventory.carry_out(changes, proxies.add, proxies.add, proxies.remove)
