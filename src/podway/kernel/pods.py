"""What stands inside a pod's namespace, and how it differs from what should."""

import errno

import msgspec

from podway.api.addresses import Address, Family, Interface
from podway.errors import KernelError
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import addresses, links, neighbours, routes
from podway.plan.objects import PodEnd, Route


class PodState(msgspec.Struct, frozen=True):
    """One interface of a pod as the kernel has it; of neighbours, the permanent ones."""

    ifname: str
    mac: str
    mtu: int
    up: bool
    addresses: tuple[Interface, ...]
    routes: tuple[Route, ...]
    neighbours: dict[Address, str]


def inspect(pod: Connection, ifname: str) -> PodState | None:
    """Return what a pod has of an interface, None if there is no such interface. Raises KernelError."""
    try:
        link = links.find(pod, ifname)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    planned = (
        record.planned(ifname)
        for family in Family
        for record in routes.dump(pod, family)
        if record.index == link.index
    )
    return PodState(
        ifname=ifname,
        mac=link.mac,
        mtu=link.mtu,
        up=link.up,
        addresses=tuple(a.address for a in addresses.dump(pod) if a.index == link.index),
        routes=tuple(route for route in planned if route),
        neighbours={
            entry.address: entry.mac
            for entry in neighbours.dump(pod)
            if entry.index == link.index and entry.permanent
        },
    )


def differences(have: PodState | None, want: PodEnd) -> list[str]:
    """Say in words what of a pod end is missing or altered; what others added beside it is theirs."""
    name = want.ifname
    if have is None:
        return [f"{name}: the interface is missing"]
    found = [] if have.up else [f"{name}: is down"]
    if have.mac != want.mac:
        found.append(f"{name}: MAC is {have.mac}, should be {want.mac}")
    if have.mtu != want.mtu:
        found.append(f"{name}: MTU is {have.mtu}, should be {want.mtu}")
    found += [
        f"{name}: address {entry.address} is missing"
        for entry in want.addresses
        if entry.address not in have.addresses
    ]
    by_key = {route.key: route for route in have.routes}
    for route in want.routes:
        there = by_key.get(route.key)
        if there is None:
            found.append(f"{route} is missing")
        elif there != routes.normal(route):
            found.append(f"{route} is altered: it is {there}")
    for entry in want.neighbours:
        mac = have.neighbours.get(entry.address)
        if mac is None:
            found.append(f"{entry} is missing")
        elif mac != entry.mac:
            found.append(f"{entry}: MAC is {mac}, should be {entry.mac}")
    return found
