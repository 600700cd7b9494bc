"""Which device and addresses a node speaks to the other nodes with.

Guessing wrong here is the commonest cause of a cluster that never comes up, so Podway takes the device with
the default route, or the only candidate there is, and otherwise asks.
"""

from collections.abc import Iterable, Sequence

import msgspec

from podway.api.addresses import Family, Interface
from podway.api.lease import LINK_PREFIX
from podway.errors import AgentError
from podway.kernel import addresses, links, routes
from podway.kernel.netlink import Connection
from podway.plan.objects import DEVICE_GROUP
from podway.plan.uplink import Uplink


class Device(msgspec.Struct, frozen=True):
    """A link of the node, with its usable addresses in the kernel's order."""

    name: str
    mtu: int
    up: bool
    addresses: tuple[Interface, ...]
    has_default_route: bool = False


def choose_uplink(devices: Iterable[Device], wanted: str = "") -> Uplink:
    """Return the node's uplink: `wanted`, or the device that alone can be meant.

    Raises AgentError if there is none, or several between which only a person can choose.
    """
    usable = [device for device in devices if _usable(device)]
    if wanted:
        chosen = [device for device in usable if device.name == wanted]
        if not chosen:
            raise AgentError(
                f"device {wanted} does not exist, is down or has no address that other nodes can reach",
                hint=f"usable devices: {_names(usable)}",
            )
    else:
        chosen = [device for device in usable if device.has_default_route] or usable
        if len(chosen) != 1:
            raise AgentError(
                f"cannot tell which device reaches the other nodes: {_names(chosen)}",
                hint="name it with --interface",
            )
    device = chosen[0]
    first = {Family.of(address): address for address in reversed(_reachable(device.addresses))}
    return Uplink(device.name, device.mtu, tuple(first[family] for family in sorted(first)))


def _usable(device: Device) -> bool:
    return device.up and not device.name.startswith(LINK_PREFIX) and bool(_reachable(device.addresses))


def _reachable(addresses: Sequence[Interface]) -> list[Interface]:
    return [address for address in addresses if not (address.ip.is_link_local or address.ip.is_loopback)]


def _names(devices: Sequence[Device]) -> str:
    return ", ".join(sorted(device.name for device in devices)) or "none"


def devices(connection: Connection) -> tuple[Device, ...]:
    """Return the node's links as candidates. Raises KernelError."""
    by_index: dict[int, list[Interface]] = {}
    for found in addresses.dump(connection):
        by_index.setdefault(found.index, []).append(found.address)
    default = {
        route.index
        for family in Family
        for route in routes.dump(connection, family)
        if route.destination == family.default_route
    }
    return tuple(
        Device(link.name, link.mtu, link.up, tuple(by_index.get(link.index, ())), link.index in default)
        for link in links.dump(connection)
        if link.group != DEVICE_GROUP
    )
