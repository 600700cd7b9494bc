"""Kernels as witnesses: what stands at a point, and which way a packet would go from there."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from podway.api.addresses import Address
from podway.bgp.probe import PathMtu
from podway.kernel.network import RouteRecord
from podway.probe.facts import (
    KernelState,
    RouteLookup,
    ask_path_mtu,
    ask_rejecting,
    ask_route,
    ask_setting,
    connection,
    dump_kernel_state,
)
from podway.prove.world import Point

AT_ONCE = 16
"""How many paths are measured at the same time."""


class Inspector(Protocol):
    """Answers for the kernels of points, wherever they are.

    `overflowed` tells whether a machine's neighbour tables were too full while probes were sent. All methods
    may raise InvalidInput if the namespace is gone, and KernelError.
    """

    overflowed: bool

    def kernel_state(self, point: Point) -> KernelState:
        """Return what stands at a point."""

    def lookup(self, point: Point, destination: Address, source: Address | None, iif: str) -> RouteLookup:
        """Tell which way a packet would go: one sent there, or with `iif` one that comes in by that device."""

    def rejecting(self, point: Point, destination: Address) -> RouteRecord | None:
        """Return the narrowest route of the main table for an address if it is one that leads nowhere."""

    def setting(self, point: Point, name: str) -> str | None:
        """Return a setting by its path below /proc/sys, None if there is none of this name."""

    def path_mtu(self, point: Point, address: Address, largest: int) -> PathMtu | None:
        """Measure how large packets pass from a node to an address, up to a size; None if it answers none."""


class LocalInspector:
    """Asks the kernel of this machine, by the paths of the points' namespaces; each question once."""

    def __init__(self, *, overflowed: bool = False) -> None:
        self.overflowed = overflowed
        self._kernel_states: dict[str, KernelState] = {}
        self._lookups: dict[tuple[str, Address, Address | None, str], RouteLookup] = {}
        self._mtus: dict[tuple[str, Address, int], PathMtu | None] = {}

    def kernel_state(self, point: Point) -> KernelState:
        """See Inspector."""
        if point.netns not in self._kernel_states:
            with connection(point.netns) as there:
                self._kernel_states[point.netns] = dump_kernel_state(there)
        return self._kernel_states[point.netns]

    def lookup(self, point: Point, destination: Address, source: Address | None, iif: str) -> RouteLookup:
        """See Inspector."""
        key = point.netns, destination, source, iif
        if key not in self._lookups:
            with connection(point.netns) as there:
                self._lookups[key] = ask_route(there, destination, source, iif)
        return self._lookups[key]

    def rejecting(self, point: Point, destination: Address) -> RouteRecord | None:
        """See Inspector."""
        with connection(point.netns) as there:
            return ask_rejecting(there, destination)

    def setting(self, point: Point, name: str) -> str | None:
        """See Inspector."""
        return ask_setting(point.netns, name)

    def path_mtu(self, point: Point, address: Address, largest: int) -> PathMtu | None:
        """See Inspector."""
        key = point.netns, address, largest
        if key not in self._mtus:
            self._mtus[key] = ask_path_mtu(point.netns, address, largest)
        return self._mtus[key]

    def measure(self, node_paths: Iterable[tuple[Point, Address, int]]) -> None:
        """Measure many paths at once, so that each is known when it is asked for."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda node_path: self.path_mtu(*node_path), node_paths))


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
