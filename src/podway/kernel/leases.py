"""The leases that the kernel holds: see podway.api.lease."""

import msgspec

from podway.api.addresses import Address, Family
from podway.api.lease import ALTNAME_PREFIX, LINK_PREFIX, Lease
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links, neighbours, routes
from podway.kernel.rtnl.links import LinkRecord
from podway.plan.objects import LINK_GROUP, ROUTE_PROTOCOL


class Held(msgspec.Struct, frozen=True):
    """What the pod links of a node hold: leases, and the names of links that hold none."""

    leases: list[Lease]
    orphans: list[str]


def is_pod_link(link: LinkRecord) -> bool:
    """Tell whether a device has our mark: the alternative name, or our group and prefix together."""
    return bool(altname(link)) or (link.group == LINK_GROUP and link.name.startswith(LINK_PREFIX))


def altname(link: LinkRecord) -> str:
    """Return the alternative name that is a lease's key; empty if the device has none."""
    return next((name for name in link.altnames if name.startswith(ALTNAME_PREFIX)), "")


def read(connection: Connection) -> Held:
    """Read all leases. Raises KernelError.

    A committed link, which its alias tells, whose host routes somebody took away still is the pod's: its
    addresses then are those of its permanent neighbours.
    """
    ours = [link for link in links.dump(connection) if is_pod_link(link)]
    held = _by_routes(connection)
    if any(link.alias and link.index not in held for link in ours):
        held = _by_neighbours(connection) | held
    found: list[Lease] = []
    orphans: list[str] = []
    for link in ours:
        holds = sorted(held.get(link.index, ()), key=lambda address: address.version)
        lease = Lease.from_kernel(altname(link), link.alias, tuple(map(str, holds)))
        if lease and holds:
            found.append(lease)
        else:
            orphans.append(link.name)
    return Held(found, orphans)


def _by_routes(connection: Connection) -> dict[int, list[Address]]:
    held: dict[int, list[Address]] = {}
    for family in Family:
        for route in routes.dump(connection, family, protocol=ROUTE_PROTOCOL):
            if route.index and route.destination.prefixlen == family.bits and not route.gateway:
                held.setdefault(route.index, []).append(route.destination.network_address)
    return held


def _by_neighbours(connection: Connection) -> dict[int, list[Address]]:
    held: dict[int, list[Address]] = {}
    for neighbour in neighbours.dump(connection):
        if neighbour.permanent:
            held.setdefault(neighbour.index, []).append(neighbour.address)
    return held
