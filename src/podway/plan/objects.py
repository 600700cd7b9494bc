"""The kernel objects that a plan consists of.

Each kind has a key, by which the kernel tells two of them apart, and a value: everything else. The
engine (podway.kernel.engine) compares what a plan wants with what the kernel has by key and value, and
knows nothing else of them; `str` says in words which object it is. Devices are named, never numbered:
numbers differ after a reboot.
"""

from collections.abc import Set
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Interface, Network

ROUTE_PROTOCOL = 112
"""rtm_protocol of every route that is ours ('p'; unassigned in iproute2's rt_protos and by the kernel)."""

LINK_GROUP = 0x70776179
"""IFLA_GROUP of every pod link of ours ('pway'): one number for firewall rules to match."""

NFT_TABLE = "podway"
"""Name of the nftables table (family inet) that is ours."""

MAIN_TABLE = 254
"""RT_TABLE_MAIN."""

DEFAULT_METRIC = {Family.IPV4: 0, Family.IPV6: 1024}
"""The metric of a route that states none (IP6_RT_PRIO_USER, include/net/ip6_route.h)."""

Scope: TypeAlias = Literal["global", "link", "host"]
RouteType: TypeAlias = Literal["unicast", "blackhole", "unreachable"]


class Link(msgspec.Struct, frozen=True):
    """The host end of a pod's veth pair. The engine mends it, but never creates one."""

    name: str
    altname: str
    alias: str
    mac: str
    mtu: int
    group: int = LINK_GROUP
    up: bool = True

    def __str__(self) -> str:
        return f"link {self.name}"

    @property
    def key(self) -> str:
        """Its name."""
        return self.name


class LinkAddress(msgspec.Struct, frozen=True):
    """An address on a device, without duplicate-address detection."""

    device: str
    address: Interface
    scope: Scope = "global"

    def __str__(self) -> str:
        return f"address {self.address} on {self.device}"

    @property
    def key(self) -> tuple[str, Interface]:
        """Device and address."""
        return (self.device, self.address)


class Route(msgspec.Struct, frozen=True):
    """A route of ours in one table. `metric` None is the family's DEFAULT_METRIC."""

    destination: Network
    type: RouteType = "unicast"
    device: str = ""
    gateway: Address | None = None
    source: Address | None = None
    scope: Scope = "global"
    metric: int | None = None
    table: int = MAIN_TABLE

    def __str__(self) -> str:
        parts = ["route", str(self.destination) if self.destination.prefixlen else "default"]
        if self.type != "unicast":
            parts.append(self.type)
        if self.gateway:
            parts.append(f"via {self.gateway}")
        if self.device:
            parts.append(f"dev {self.device}")
        if self.source:
            parts.append(f"src {self.source}")
        if self.metric not in {None, DEFAULT_METRIC[self.family]}:
            parts.append(f"metric {self.metric}")
        if self.table != MAIN_TABLE:
            parts.append(f"table {self.table}")
        return " ".join(parts)

    @property
    def family(self) -> Family:
        """The destination's family."""
        return Family.of(self.destination)

    @property
    def key(self) -> tuple[Network, int, int]:
        """Destination, metric and table."""
        metric = DEFAULT_METRIC[self.family] if self.metric is None else self.metric
        return (self.destination, metric, self.table)


class Neighbour(msgspec.Struct, frozen=True):
    """A permanent neighbour entry."""

    device: str
    address: Address
    mac: str

    def __str__(self) -> str:
        return f"neighbour {self.address} on {self.device}"

    @property
    def key(self) -> tuple[str, Address]:
        """Device and address."""
        return (self.device, self.address)


class Sysctl(msgspec.Struct, frozen=True):
    """A kernel setting of the network namespace: path below /proc/sys, and its text."""

    path: str
    value: str

    def __str__(self) -> str:
        return f"sysctl {self.path}"

    @property
    def key(self) -> str:
        """Its path."""
        return self.path


class NftTable(msgspec.Struct, frozen=True):
    """One whole nftables table of ours, as nft's text: what stands between the table's braces."""

    family: Literal["ip", "ip6", "inet", "netdev"]
    name: str
    body: str

    def __str__(self) -> str:
        return f"nft table {self.family} {self.name}"

    @property
    def key(self) -> tuple[str, str]:
        """Family and name."""
        return (self.family, self.name)


class PodEnd(msgspec.Struct, frozen=True):
    """What stands inside the pod's namespace."""

    ifname: str
    mac: str
    mtu: int
    addresses: tuple[LinkAddress, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]


class PodWiring(msgspec.Struct, frozen=True):
    """Everything one attachment needs, on both ends of its veth pair."""

    link: Link
    addresses: tuple[LinkAddress, ...]
    neighbours: tuple[Neighbour, ...]
    sysctls: tuple[Sysctl, ...]
    routes: tuple[Route, ...]
    """The host's routes to the pod: written last, they are the lease."""
    pod: PodEnd


class NodePlan(msgspec.Struct, frozen=True):
    """All the kernel objects of ours that one node must hold, and no others."""

    links: tuple[Link, ...] = ()
    addresses: tuple[LinkAddress, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    routes: tuple[Route, ...] = ()
    tables: tuple[NftTable, ...] = ()

    def without(self, devices: Set[str]) -> "NodePlan":
        """Return the plan without what belongs on these devices."""
        if not devices:
            return self
        return NodePlan(
            links=tuple(link for link in self.links if link.name not in devices),
            addresses=tuple(address for address in self.addresses if address.device not in devices),
            neighbours=tuple(neighbour for neighbour in self.neighbours if neighbour.device not in devices),
            sysctls=tuple(sysctl for sysctl in self.sysctls if devices.isdisjoint(sysctl.path.split("/"))),
            routes=tuple(route for route in self.routes if route.device not in devices),
            tables=self.tables,
        )
