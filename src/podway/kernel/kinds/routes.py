"""Routes of our protocol number, in any table."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from podway.api.addresses import Family
from podway.errors import KernelError
from podway.kernel import leases
from podway.kernel.engine import Compared, Scannable
from podway.kernel.kinds.inventory import Inventory, devices_of
from podway.kernel.netlink import Connection, Request
from podway.kernel.rtnl import routes
from podway.plan.changes import Change
from podway.plan.objects import ROUTE_PROTOCOL, NodePlan, Route, is_unreachable


class ForeignRoute(msgspec.Struct, frozen=True):
    """A route of our protocol that no plan of ours can mean: it is removed, or replaced."""

    record: routes.RouteRecord

    def __str__(self) -> str:
        return f"route {self.record.destination} metric {self.record.metric} table {self.record.table}"


class Routes(Scannable):
    """Routes of our protocol number, but for those to pods that the plan does not know."""

    name = "route"
    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, inventory: Inventory) -> None:
        self._connection = connection
        self._inventory = inventory

    def pairs(self, plan: NodePlan) -> Iterator[tuple[Hashable, Route]]:
        """Yield the plan's routes by destination, metric and table; first those that others lean on."""
        for leans in (False, True):
            for route in plan.routes:
                if (route.gateway is not None) is leans:
                    yield route.key, routes.normal(route)

    def scan(self, plan: NodePlan, wanted: Mapping[Any, Any]) -> Iterator[tuple[Hashable, Any]]:
        """Yield our routes. Of several with one key (`ip route append`) the others get a longer key."""
        planned = devices_of(plan)
        devices = self._inventory.by_index
        found: set[Hashable] = set()
        for family in Family:
            for record in routes.scan(self._connection, family, protocol=ROUTE_PROTOCOL, table=0):
                device = devices.get(record.index)
                key: tuple[Any, ...] = (record.destination, record.metric, record.table)
                if device and leases.is_pod_link(device) and device.name not in planned and key not in wanted:
                    continue
                route = record.planned(self._inventory.name(record.index))
                if record.tos or key in found:
                    key = (*key, record.tos, len(found))
                found.add(key)
                yield key, route or ForeignRoute(record)

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add, replace and remove routes.

        What a packet must not meet while the way before it is missing comes after that one, and goes ahead of it.
        """
        order = sorted(range(len(changes)), key=lambda place: _turn(changes[place]))
        failures = self._inventory.carry_out(
            [changes[place] for place in order], routes.add, routes.replace, _remove
        )
        return {order[place]: error for place, error in failures.items()}


def _turn(change: Change) -> int:
    """Return when a change is carried out: what makes packets unreachable goes first, and comes last."""
    return -int(is_unreachable(change.have)) if change.want is None else int(is_unreachable(change.want))


def _remove(route: Route | ForeignRoute, index: int) -> Request:
    return routes.remove_record(route.record) if isinstance(route, ForeignRoute) else routes.remove(route, index)
