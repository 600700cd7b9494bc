"""The kinds of kernel object that the engine drives: what is ours of each, and how it is changed.

Ours is what bears our mark: pod links by their alternative name or group (podway.kernel.leases), addresses and
permanent neighbours on those links, routes of our protocol number, nftables tables of our name. Of what has no
place for a mark (sysctls, addresses and neighbours on other links) only what the plan names is looked at.

A pod link that the plan does not name is left alone with all that hangs on it: it may be that of a pod wired
after the plan was made. It goes in one piece, by `unwire`.
"""

import errno
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from podway.api.addresses import Family
from podway.api.lease import Attachment
from podway.errors import KernelError
from podway.kernel import addresses, leases, links, neighbours, routes, sysctls
from podway.kernel.netlink import Connection, Request
from podway.kernel.nft import Nftables, loaded_form
from podway.plan.changes import Change
from podway.plan.objects import (
    NFT_TABLE,
    ROUTE_PROTOCOL,
    Link,
    LinkAddress,
    Neighbour,
    NftTable,
    NodePlan,
    Route,
    Sysctl,
)

_T = TypeVar("_T")
_GONE = {errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV}
"""What the kernel says to the removal of what is no longer there."""


class ForeignRoute(msgspec.Struct, frozen=True):
    """A route of our protocol that no plan of ours can mean: it is removed, or replaced."""

    record: routes.RouteRecord

    def __str__(self) -> str:
        return f"route {self.record.destination} metric {self.record.metric} table {self.record.table}"


class Devices:
    """All devices as the latest look found them: one dump serves a whole comparison, which begins with links."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.by_index: dict[int, links.LinkRecord] = {}

    def look(self) -> Iterable[links.LinkRecord]:
        """Dump them anew, and return them. Raises KernelError."""
        self.by_index = {link.index: link for link in links.dump(self._connection)}
        return self.by_index.values()

    @property
    def numbers(self) -> dict[str, int]:
        """Their numbers by name."""
        return {link.name: link.index for link in self.by_index.values()}


class Links:
    """Host ends of pods. Making and removing them is the agent's (`wire`, `unwire`)."""

    name = "link"
    mends_only = True

    def __init__(self, connection: Connection, devices: Devices) -> None:
        self._connection = connection
        self._devices = devices

    def wanted(self, plan: NodePlan) -> Mapping[str, Link]:
        """Return the plan's links by name."""
        return {link.key: link for link in plan.links}

    def list(self, plan: NodePlan) -> Mapping[str, Link]:
        """Return our links by the name they should have, which their alternative name tells."""
        del plan
        found = {}
        for record in filter(leases.is_pod_link, self._devices.look()):
            key = leases.altname(record)
            attachment = Attachment.from_altname(key)
            found[attachment.link if attachment else record.name] = Link(
                record.name, key, record.alias, record.mac, record.mtu, record.group, record.up
            )
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Mend attributes."""
        failures = {}
        for position, change in enumerate(changes):
            try:
                self._mend(change.have, change.want)
            except KernelError as error:
                failures[position] = error
        self._devices.look()  # names may have changed
        return failures

    def _mend(self, have: Link, want: Link) -> None:
        index, label = links.find(self._connection, have.name).index, want.name
        requests = []
        if have.name != want.name:
            # Before 6.2 the kernel renames no device that is up.
            requests += [links.set_down(index, label), links.change(index, rename=want.name, label=label)]
        if have.altname != want.altname:
            requests.append(links.altname(index, want.altname, label=label))
        requests.append(
            links.change(
                index,
                up=want.up,
                alias=None if have.alias == want.alias else want.alias,
                mac="" if have.mac == want.mac else want.mac,
                mtu=0 if have.mtu == want.mtu else want.mtu,
                group=None if have.group == want.group else want.group,
                label=label,
            )
        )
        self._connection.transact(requests)


class Sysctls:
    """Settings: those that the plan names."""

    name = "sysctl"
    mends_only = False

    def __init__(self, inside: Callable[[Callable[[], Any]], Any]) -> None:
        self._inside = inside
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
                try:
                    self.writes += sysctls.write(change.want)
                except KernelError as error:
                    failures[position] = error

        self._inside(write)
        return failures


class Addresses:
    """Addresses: all on the plan's links, and on others those that the plan names."""

    name = "address"
    mends_only = False

    def __init__(self, connection: Connection, devices: Devices) -> None:
        self._connection = connection
        self._devices = devices

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, LinkAddress]:
        """Return the plan's addresses by device and address."""
        return {address.key: address for address in plan.addresses}

    def list(self, plan: NodePlan) -> Mapping[Hashable, LinkAddress]:
        """Return the addresses that are ours to set."""
        wanted, planned = self.wanted(plan), _names(plan)
        devices = self._devices.by_index
        found: dict[Hashable, LinkAddress] = {}
        for record in addresses.dump(self._connection):
            device = devices.get(record.index)
            if device is None:
                continue  # it went between the two dumps
            scope: Any = record.scope
            address = LinkAddress(device.name, record.address, scope)
            if device.name in planned or address.key in wanted:
                found[address.key] = address
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add and remove addresses."""
        return _apply(self._connection, self._devices, changes, addresses.add, addresses.add, addresses.remove)


class Neighbours:
    """Permanent neighbour entries: all on the plan's links, and on others those that the plan names."""

    name = "neighbour"
    mends_only = False

    def __init__(self, connection: Connection, devices: Devices) -> None:
        self._connection = connection
        self._devices = devices

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, Neighbour]:
        """Return the plan's neighbours by device and address."""
        return {neighbour.key: neighbour for neighbour in plan.neighbours}

    def list(self, plan: NodePlan) -> Mapping[Hashable, Neighbour]:
        """Return the permanent entries that are ours to set."""
        wanted, planned = self.wanted(plan), _names(plan)
        devices = self._devices.by_index
        found: dict[Hashable, Neighbour] = {}
        for record in neighbours.dump(self._connection):
            device = devices.get(record.index)
            if device is None or not record.permanent:
                continue
            neighbour = Neighbour(device.name, record.address, record.mac)
            if device.name in planned or neighbour.key in wanted:
                found[neighbour.key] = neighbour
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add and remove entries."""
        return _apply(self._connection, self._devices, changes, neighbours.add, neighbours.add, neighbours.remove)


class Routes:
    """Routes of our protocol number, in any table, but for those to pods that the plan does not know."""

    name = "route"
    mends_only = False

    def __init__(self, connection: Connection, devices: Devices) -> None:
        self._connection = connection
        self._devices = devices

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, Route]:
        """Return the plan's routes by destination, metric and table; first those that others lean on."""
        ordered = sorted(plan.routes, key=lambda route: route.gateway is not None)
        return {route.key: routes.normal(route) for route in ordered}

    def list(self, plan: NodePlan) -> Mapping[Hashable, Any]:
        """Return our routes. Of several with one key (`ip route append`) the others get a longer key."""
        wanted, planned = self.wanted(plan), _names(plan)
        devices = self._devices.by_index
        found: dict[Hashable, Any] = {}
        for family in Family:
            for record in routes.dump(self._connection, family, protocol=ROUTE_PROTOCOL, table=0):
                device = devices.get(record.index)
                key: tuple[Any, ...] = (record.destination, record.metric, record.table)
                if device and leases.is_pod_link(device) and device.name not in planned and key not in wanted:
                    continue
                route = record.planned(device.name if device else "")
                if record.tos or key in found:
                    key = (*key, record.tos, len(found))
                found[key] = route or ForeignRoute(record)
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add, replace and remove routes."""
        return _apply(self._connection, self._devices, changes, routes.add, routes.replace, _remove_route)


def _names(plan: NodePlan) -> set[str]:
    return {link.name for link in plan.links}


def _remove_route(route: Route | ForeignRoute, index: int) -> Request:
    return routes.remove_record(route.record) if isinstance(route, ForeignRoute) else routes.remove(route, index)


def _apply(
    connection: Connection,
    devices: Devices,
    changes: Sequence[Change],
    add: Callable[[_T, int], Request],
    replace: Callable[[_T, int], Request],
    remove: Callable[[_T, int], Request],
) -> dict[int, KernelError]:
    """Carry out changes of objects that name a device, all in one batch."""
    build = {"add": add, "replace": replace, "remove": remove}
    numbers = devices.numbers
    failures: dict[int, KernelError] = {}
    batch: list[tuple[int, Request]] = []
    for position, change in enumerate(changes):
        thing = change.have if change.want is None else change.want
        device = getattr(thing, "device", "")
        if device and device not in numbers:
            if change.want is not None:
                failures[position] = KernelError(f"{change.action} {thing}", errno.ENODEV)
            continue
        batch.append((position, build[change.action](thing, numbers.get(device, 0))))
    for place, error in connection.attempt([request for _, request in batch]).items():
        position = batch[place][0]
        if changes[position].want is None and error.errno in _GONE:
            continue
        failures[position] = error
    return failures


@dataclass(frozen=True)
class LoadedTable:
    """An nftables table of ours as it stands in the kernel, in the form that can be compared."""

    family: str
    name: str
    form: str
    source: NftTable | None = field(default=None, compare=False)
    """The text to load for it."""

    def __str__(self) -> str:
        return f"nft table {self.family} {self.name}"


class NftTables:
    """nftables tables of our name, in any family."""

    name = "nft table"
    mends_only = False

    def __init__(self, nftables: Callable[[], Nftables]) -> None:
        self._nftables = nftables

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return the form that each of the plan's tables has when it is loaded."""
        return {t.key: LoadedTable(t.family, t.name, loaded_form(t), t) for t in plan.tables}

    def list(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return our tables."""
        nftables, wanted = self._nftables(), {table.key for table in plan.tables}
        return {
            key: LoadedTable(*key, nftables.form(*key))
            for key in nftables.tables()
            if key[1] == NFT_TABLE or key in wanted
        }

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Load and delete tables."""
        failures = {}
        for position, change in enumerate(changes):
            try:
                if change.want is None:
                    self._nftables().delete(*change.key)
                else:
                    self._nftables().replace(change.want.source)
            except KernelError as error:
                failures[position] = error
        return failures
