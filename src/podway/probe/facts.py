"""What one kernel says: what stands in a namespace, and what it would do with a packet. Nothing is changed."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Interface
from podway.bgp.probe import PathMtu, path_mtu
from podway.errors import KernelError
from podway.kernel import netns, sysctls
from podway.kernel.ipip import IpipTunnels, TunnelEndpoints
from podway.kernel.network import (
    Connection,
    LinkRecord,
    Lookup,
    RouteRecord,
    dump_addresses,
    dump_forwarding,
    dump_links,
    dump_neighbours,
    dump_routes,
    lookup_route,
)
from podway.plan.objects import IPIP_DEVICE, NodePlan

_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT (include/uapi/linux/neighbour.h)."""


class KernelState(msgspec.Struct, frozen=True):
    """The devices of one namespace, their addresses and neighbours, and what makes tunnels of them."""

    links: dict[str, LinkRecord]
    addresses: tuple[tuple[str, Interface], ...]
    """Device and address, those of global scope only."""
    neighbours: dict[tuple[str, Address], str]
    """Hardware address by device and address, empty where nobody answered."""
    permanent: frozenset[tuple[str, Address]] = frozenset()
    """Which of the neighbours were set by somebody and never age."""
    forwarding: dict[tuple[str, str], Address] = {}
    """Where VXLAN devices send frames, by device and hardware address."""
    programs: frozenset[tuple[str, str]] = frozenset()
    """The IPIP programs: the device that each hangs on, and what it does, `encap` or `decap`."""
    tunnel_sources: frozenset[Address] = frozenset()
    """The nodes whose IPIP packets are taken."""

    def addresses_of(self, device: str) -> tuple[Address, ...]:
        """Return the addresses of one device."""
        return tuple(interface.ip for name, interface in self.addresses if name == device)

    def link_by_index(self, index: int) -> LinkRecord | None:
        """Return a device by its number."""
        return next((link for link in self.links.values() if link.index == index), None)


class SpoofRefused(msgspec.Struct, frozen=True):
    """The kernel would drop the packet: its source is not routed back to where it came in (rp_filter)."""


@contextlib.contextmanager
def namespace(path: str) -> Iterator[int]:
    """Give a descriptor of the namespace at a path (empty: our own) while the block runs. Raises InvalidInput."""
    descriptor = netns.open_path(path) if path else netns.current()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def connection(path: str) -> Iterator[Connection]:
    """Give a connection to rtnetlink in a namespace while the block runs. Raises InvalidInput, KernelError."""
    with namespace(path) as descriptor, Connection(descriptor) as there:
        yield there


def ask_setting(path: str, name: str) -> str | None:
    """Return a setting of a namespace by its path below /proc/sys, None if there is none of this name.

    Raises InvalidInput, KernelError.
    """
    with namespace(path) as descriptor:
        return netns.run(descriptor, lambda: sysctls.read([name])).get(name)


ECHO_SECONDS = 0.3
"""How long a node may take to answer an echo request."""


def ask_path_mtu(path: str, address: Address, largest: int) -> PathMtu | None:
    """Measure how large packets pass from a namespace to an address, up to a size; None if it answers none.

    Raises InvalidInput, UnsupportedSystem.
    """
    with namespace(path) as descriptor:
        return netns.run(descriptor, lambda: asyncio.run(path_mtu(address, largest=largest, window=ECHO_SECONDS)))


RouteLookup: TypeAlias = Lookup | SpoofRefused


def ask_route(connection: Connection, destination: Address, source: Address | None, iif: str) -> RouteLookup:
    """Ask which way a packet would go: one sent there, or with `iif` one that comes in by that device.

    Raises KernelError.
    """
    if not iif:
        return lookup_route(connection, destination, source=source)
    try:
        found = lookup_route(connection, destination, source=source, iif=iif)
    except KernelError as error:
        if error.errno != errno.EXDEV:  # how kernels before 6.14 say that the source is refused
            raise
        return SpoofRefused()
    if not found.errno:
        return found
    # Newer ones say EINVAL for whatever is wrong on input. If the way itself is good, it is the source.
    plain = lookup_route(connection, destination)
    return SpoofRefused() if plain.type in ("unicast", "local") else plain


def ask_rejecting(connection: Connection, destination: Address) -> RouteRecord | None:
    """Return the narrowest route of the main table for an address if it is one that leads nowhere.

    A lookup does not tell which route refused (rtnetlink answers with an errno alone). Raises KernelError.
    """
    found = [
        route for route in dump_routes(connection, Family.of(destination)) if destination in route.destination
    ]
    narrowest = max(found, key=lambda route: route.destination.prefixlen, default=None)
    return narrowest if narrowest and narrowest.type != "unicast" else None


def dump_kernel_state(connection: Connection) -> KernelState:
    """Return what stands in a namespace. Raises KernelError."""
    found = {link.index: link for link in dump_links(connection)}

    def name(index: int) -> str:
        return found[index].name if index in found else ""

    known = {(name(record.index), record.address): record for record in dump_neighbours(connection)}
    numbers = {link.name: link.index for link in found.values()}
    has_ipip = IPIP_DEVICE in numbers
    return KernelState(
        {link.name: link for link in found.values()},
        tuple(
            (name(record.index), record.address)
            for record in dump_addresses(connection)
            if record.scope == "global"
        ),
        {key: record.mac if record.state & _NUD_USABLE else "" for key, record in known.items()},
        frozenset(key for key, record in known.items() if record.permanent),
        {
            (link.name, entry.mac): entry.endpoint
            for link in found.values()
            if link.kind == "vxlan"
            for entry in dump_forwarding(connection, link.index)
            if entry.endpoint is not None
        },
        frozenset(
            (program.device, program.role)
            for program in IpipTunnels(connection, lambda: numbers).list(NodePlan()).values()
        )
        if has_ipip
        else frozenset(),
        frozenset(TunnelEndpoints(connection, lambda: numbers).list(NodePlan())) if has_ipip else frozenset(),
    )
