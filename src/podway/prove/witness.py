"""What really stands in a namespace, asked from its kernel. Nothing here changes anything."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from podway.api.addresses import Address, Family, Interface
from podway.errors import KernelError
from podway.kernel import addresses, links, neighbours, netns, routes, sysctls
from podway.kernel.links import LinkRecord
from podway.kernel.netlink import Connection
from podway.kernel.routes import Lookup, RouteRecord

_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT (include/uapi/linux/neighbour.h)."""


class Ground(msgspec.Struct, frozen=True):
    """The devices of one namespace, their addresses and neighbours."""

    links: dict[str, LinkRecord]
    addresses: tuple[tuple[str, Interface], ...]
    """Device and address, those of global scope only."""
    neighbours: dict[tuple[str, Address], str]
    """Hardware address by device and address, empty where nobody answered."""

    def addresses_of(self, device: str) -> tuple[Address, ...]:
        """Return the addresses of one device."""
        return tuple(interface.ip for name, interface in self.addresses if name == device)

    def link_by_index(self, index: int) -> LinkRecord | None:
        """Return a device by its number."""
        return next((link for link in self.links.values() if link.index == index), None)


class SpoofRefused(msgspec.Struct, frozen=True):
    """The kernel would drop the packet: its source is not routed back to where it came in (rp_filter)."""


class Witness:
    """Asks kernels, each question once. `path` is a namespace's, empty for our own.

    `overflowed` tells whether the machine's neighbour tables were too full while probes were sent.
    """

    def __init__(self, *, overflowed: bool = False) -> None:
        self.overflowed = overflowed
        self._grounds: dict[str, Ground] = {}
        self._ways: dict[tuple[str, Address, Address | None, str], Lookup | SpoofRefused] = {}

    def ground(self, path: str) -> Ground:
        """Return what stands in a namespace. Raises InvalidInput if it is gone, KernelError."""
        if path not in self._grounds:
            with _connection(path) as connection:
                self._grounds[path] = _survey(connection)
        return self._grounds[path]

    def way(self, path: str, destination: Address, source: Address | None, iif: str) -> Lookup | SpoofRefused:
        """Ask which way a packet would go: one sent there, or with `iif` one that comes in by that device.

        Raises InvalidInput if the namespace is gone, KernelError.
        """
        key = path, destination, source, iif
        if key not in self._ways:
            with _connection(path) as connection:
                self._ways[key] = _ask(connection, destination, source, iif)
        return self._ways[key]

    def rejecting(self, path: str, destination: Address) -> RouteRecord | None:
        """Return the narrowest route of the main table for an address if it is one that leads nowhere.

        A lookup does not tell which route refused (rtnetlink answers with an errno alone).
        """
        with _connection(path) as connection:
            found = [
                route
                for route in routes.dump(connection, Family.of(destination))
                if destination in route.destination
            ]
        narrowest = max(found, key=lambda route: route.destination.prefixlen, default=None)
        return narrowest if narrowest and narrowest.type != "unicast" else None

    def setting(self, path: str, name: str) -> str | None:
        """Return a setting by its path below /proc/sys, None if there is none of this name."""
        with _namespace(path) as descriptor:
            return netns.run(descriptor, lambda: sysctls.read([name])).get(name)


def neighbour_overflows() -> int:
    """Return how often this machine's neighbour tables, which all namespaces share, were full so far.

    A packet to a new neighbour is then lost without a trace (neigh_alloc, net/core/neighbour.c).
    """
    total = 0
    for table in ("arp_cache", "ndisc_cache"):
        path = Path("/proc/net/stat") / table
        if path.exists():  # the first network namespace alone shows it
            heading, *processors = path.read_text().splitlines()
            column = heading.split().index("table_fulls")
            total += sum(int(line.split()[column], 16) for line in processors)
    return total


@contextlib.contextmanager
def _namespace(path: str) -> Iterator[int]:
    descriptor = netns.open_path(path) if path else netns.current()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _connection(path: str) -> Iterator[Connection]:
    with _namespace(path) as descriptor, Connection(descriptor) as connection:
        yield connection


def _ask(connection: Connection, destination: Address, source: Address | None, iif: str) -> Lookup | SpoofRefused:
    if not iif:
        return routes.lookup(connection, destination, source=source)
    try:
        found = routes.lookup(connection, destination, source=source, iif=iif)
    except KernelError as error:
        if error.errno != errno.EXDEV:  # how kernels before 6.14 say that the source is refused
            raise
        return SpoofRefused()
    if not found.errno:
        return found
    # Newer ones say EINVAL for whatever is wrong on input. If the way itself is good, it is the source.
    plain = routes.lookup(connection, destination)
    return SpoofRefused() if plain.type in ("unicast", "local") else plain


def _survey(connection: Connection) -> Ground:
    found = {link.index: link for link in links.dump(connection)}

    def name(index: int) -> str:
        return found[index].name if index in found else ""

    return Ground(
        {link.name: link for link in found.values()},
        tuple(
            (name(record.index), record.address)
            for record in addresses.dump(connection)
            if record.scope == "global"
        ),
        {
            (name(record.index), record.address): record.mac if record.state & _NUD_USABLE else ""
            for record in neighbours.dump(connection)
        },
    )
