"""The leases that the kernel holds: see podway.api.lease."""

import msgspec

from podway.api.addresses import Address, Family
from podway.api.lease import ALTNAME_PREFIX, LINK_PREFIX, Attachment, Lease
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

    A committed link, which its alias tells, still is the pod's where somebody took a host route away: the address
    of that family then is the one of the permanent neighbour that was made with it.
    """
    routed, known = _by_routes(connection), _by_neighbours(connection)
    found: list[Lease] = []
    orphans: list[str] = []
    for link in (link for link in links.dump(connection) if is_pod_link(link)):
        attachment = Attachment.from_altname(altname(link))
        holds = dict(routed.get(link.index, {}))
        if link.alias and attachment is not None:
            holds = known.get((link.index, attachment.mac), {}) | holds
        lease = Lease.from_kernel(altname(link), link.alias, tuple(str(holds[family]) for family in sorted(holds)))
        if lease and holds:
            found.append(lease)
        else:
            orphans.append(link.name)
    return Held(found, orphans)


def _by_routes(connection: Connection) -> dict[int, dict[Family, Address]]:
    """Return the addresses to which host routes lead, by device and family."""
    held: dict[int, dict[Family, Address]] = {}
    for family in Family:
        for route in routes.dump(connection, family, protocol=ROUTE_PROTOCOL):
            if route.index and route.destination.prefixlen == family.bits and not route.gateway:
                held.setdefault(route.index, {})[family] = route.destination.network_address
    return held


def _by_neighbours(connection: Connection) -> dict[tuple[int, str], dict[Family, Address]]:
    """Return the addresses of permanent neighbours, by device, MAC and family."""
    held: dict[tuple[int, str], dict[Family, Address]] = {}
    for neighbour in neighbours.dump(connection):
        if neighbour.permanent:
            family = Family.of(neighbour.address)
            held.setdefault((neighbour.index, neighbour.mac), {})[family] = neighbour.address
    return held
