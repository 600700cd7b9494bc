"""The kernel objects that a plan consists of.

Each kind has a key, by which the kernel tells two of them apart, and a value: everything else. The
engine (podway.kernel.engine) compares what a plan wants with what the kernel has by key and value, and
knows nothing else of them; `str` says in words which object it is. Devices are named, never numbered:
numbers differ after a reboot.

In a large cluster there are tens of thousands of them, so the garbage collector leaves them alone (gc=False): none
refers to what refers to it.
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
"""Name of the nftables tables that are ours, in whatever family."""

NFT_VXLAN_TABLE = "podway-vxlan"
"""Name of those that guard the VXLAN device: they come before it and go after it."""

NFT_NAT_TABLE = "podway-nat"
"""Name of those that translate what pods send out of the cluster."""

NFT_SERVICES_TABLE = "podway-services"
"""Name of those that lead to Services what does not come from pods."""

DEVICE_GROUP = 0x70776164
"""IFLA_GROUP of every other device of ours ('pwad'): the overlay devices and the bridge."""

VXLAN_DEVICE, VXLAN6_DEVICE = "podway-vxlan", "podway-vxlan6"
VXLAN_DEVICES = (VXLAN_DEVICE, VXLAN6_DEVICE)
IPIP_DEVICE, BRIDGE_DEVICE, SEGMENT_DEVICE = "podway-ipip", "cni0", "podway-lb"
"""The devices of a node that are ours besides pod links; each is there only while a plan needs it."""

MAIN_TABLE = 254
"""RT_TABLE_MAIN."""

DEFAULT_METRIC = {Family.IPV4: 0, Family.IPV6: 1024}
"""The metric of a route that states none (IP6_RT_PRIO_USER, include/net/ip6_route.h)."""

Scope: TypeAlias = Literal["global", "link", "host"]
RouteType: TypeAlias = Literal["unicast", "blackhole", "unreachable"]
FlowHook: TypeAlias = Literal["from pod", "from wire", "to pod"]
"""Where a program of the flow engine sees packets (docs/datapath.md)."""
NftFamily: TypeAlias = Literal["ip", "ip6", "inet", "netdev", "bridge"]
NftField: TypeAlias = Literal["ipv4_addr", "ipv6_addr"] | int


class Vxlan(msgspec.Struct, frozen=True, gc=False):
    """What makes a device a VXLAN tunnel end (RFC 7348): no learning, no flooding, `local` the outer source.

    Outer packets leave by `uplink`; if that is empty, by whatever the node's routes say.
    """

    vni: int
    port: int
    local: Address
    uplink: str

    def __str__(self) -> str:
        by = f" by {self.uplink}" if self.uplink else ""
        return f"VNI {self.vni} at port {self.port} from {self.local}{by}"


class Device(msgspec.Struct, frozen=True, gc=False):
    """A device of ours that the engine makes, repairs and removes; up, in DEVICE_GROUP, without IPv6 autoconf.

    `ipip` is one end of a veth pair that nothing ever leaves by: the eBPF program on its way out puts the
    outer header on and sends the packet by the uplink. Its other end is named `<name>0`.
    """

    name: str
    kind: Literal["vxlan", "ipip", "bridge"]
    mac: str
    mtu: int
    vxlan: Vxlan | None = None

    def __str__(self) -> str:
        return f"device {self.name}"

    @property
    def key(self) -> str:
        """Its name."""
        return self.name


class ForwardingEntry(msgspec.Struct, frozen=True, gc=False):
    """A permanent entry of a VXLAN device's forwarding database: frames to `mac` go to the node `endpoint`."""

    device: str
    mac: str
    endpoint: Address

    def __str__(self) -> str:
        return f"forwarding entry {self.mac} on {self.device}"

    @property
    def key(self) -> tuple[str, str]:
        """Device and hardware address."""
        return (self.device, self.mac)


class IpipTunnel(msgspec.Struct, frozen=True, gc=False):
    """The eBPF programs that put IPIP headers on and take them off (RFC 2003).

    What leaves by `device` gets an outer header from `local` to the IPv4 address in the last four bytes of
    its destination MAC, and goes out by `uplink`. IPIP packets that come in by `uplink` for `local` from one
    of the plan's tunnel endpoints lose theirs.
    """

    device: str
    uplink: str
    local: Address

    def __str__(self) -> str:
        return f"IPIP tunnel {self.device}"

    @property
    def key(self) -> str:
        """The device's name."""
        return self.device


class TunnelEndpoint(msgspec.Struct, frozen=True, gc=False):
    """A node whose IPIP packets are taken: an entry of the program's map."""

    address: Address

    def __str__(self) -> str:
        return f"tunnel endpoint {self.address}"

    @property
    def key(self) -> Address:
        """The node's address."""
        return self.address


class TunnelSource(msgspec.Struct, frozen=True, gc=False):
    """From which node IPIP packets with inner sources in a network are taken: an entry of the program's map.

    The longest prefix decides. `sender` None is any node whose packets are taken.
    """

    network: Network
    sender: Address | None

    def __str__(self) -> str:
        return f"tunnel source {self.network}"

    @property
    def key(self) -> Network:
        """The network."""
        return self.network


class FlowProgram(msgspec.Struct, frozen=True, gc=False):
    """A program of the flow engine on a device.

    `stale` is one that no plan wants: of another build, or behind others' programs.
    """

    device: str
    hook: FlowHook
    stale: bool = False

    def __str__(self) -> str:
        return f"flow program {self.hook} on {self.device}"

    @property
    def key(self) -> tuple[str, FlowHook]:
        """Device and hook."""
        return (self.device, self.hook)


class Link(msgspec.Struct, frozen=True, gc=False):
    """The host end of a pod's veth pair. The engine repairs it, but never creates one."""

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


class Port(msgspec.Struct, frozen=True, gc=False):
    """A pod link's place on a bridge. It takes frames from `mac` alone, the pod's, and never learns another.

    The bridge knows by a static entry of its forwarding database that this MAC is here. What the pod sends to
    itself comes back (hairpin): so a pod reaches a Service of which it is the only endpoint.
    """

    device: str
    bridge: str
    mac: str

    def __str__(self) -> str:
        return f"port {self.device} of {self.bridge}"

    @property
    def key(self) -> str:
        """The link's name."""
        return self.device


class LinkAddress(msgspec.Struct, frozen=True, gc=False):
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


class Route(msgspec.Struct, frozen=True, gc=False):
    """A route of ours in one table. `metric` None is the family's DEFAULT_METRIC.

    The gateway of an IPv4 route may be an IPv6 address (RTA_VIA, kernel 5.2). `mtu` is how many bytes the way
    carries (RTAX_MTU), 0 if that is what its device does.
    """

    destination: Network
    type: RouteType = "unicast"
    device: str = ""
    gateway: Address | None = None
    source: Address | None = None
    scope: Scope = "global"
    metric: int | None = None
    table: int = MAIN_TABLE
    mtu: int = 0

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
        if self.mtu:
            parts.append(f"mtu {self.mtu}")
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


def is_unreachable(route: object) -> bool:
    """Tell whether something is a route by which packets go nowhere, and their senders are told.

    It is for where the way before it is missing, so it comes after that one, and goes ahead of it.
    """
    return isinstance(route, Route) and route.type == "unreachable"


class Neighbour(msgspec.Struct, frozen=True, gc=False):
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


class Proxy(msgspec.Struct, frozen=True, gc=False):
    """An address for which the node answers on a device, though it is not there: proxy ARP, proxy NDP."""

    device: str
    address: Address

    def __str__(self) -> str:
        return f"proxy for {self.address} on {self.device}"

    @property
    def key(self) -> tuple[str, Address]:
        """Device and address."""
        return (self.device, self.address)


class Sysctl(msgspec.Struct, frozen=True, gc=False):
    """A kernel setting of the network namespace: path below /proc/sys, and its text."""

    path: str
    value: str

    def __str__(self) -> str:
        return f"sysctl {self.path}"

    @property
    def key(self) -> str:
        """Its path."""
        return self.path


def is_our_table(name: str) -> bool:
    """Tell whether an nftables table of this name is ours, in whatever family."""
    return name in {NFT_TABLE, NFT_VXLAN_TABLE, NFT_NAT_TABLE, NFT_SERVICES_TABLE}


class NftSet(msgspec.Struct, frozen=True, gc=False):
    """A set of an nftables table whose elements are objects of their own (NftElement).

    `fields` says for each field of a key which kind of address it is or, if it is a number, how many bytes it has.
    """

    name: str
    fields: tuple[NftField, ...]


class NftTable(msgspec.Struct, frozen=True, gc=False):
    """One whole nftables table of ours, as nft's text: what stands between the table's braces.

    `sets` are those of its sets whose elements are objects of their own (NftElement); `kept` names those, and
    maps, whose elements are no part of plans at all, nor are chains whose names are `others` and a number. A
    table that has such has no sets of the first sort, and its rules are changed around what is kept.
    """

    family: NftFamily
    name: str
    body: str
    sets: tuple[NftSet, ...] = ()
    kept: tuple[str, ...] = ()
    others: str = ""

    def __str__(self) -> str:
        return f"nft table {self.family} {self.name}"

    @property
    def key(self) -> tuple[str, str]:
        """Family and name."""
        return (self.family, self.name)


class NftElement(msgspec.Struct, frozen=True, gc=False):
    """An element of a set in an nftables table of ours: an address as nft writes it, or a number, for each field.

    A number has all hexadecimal digits that the field has room for. A range of numbers is `a-b`; only sets of
    several fields with `flags interval` may have such.
    """

    family: NftFamily
    table: str
    set: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return f"element {' . '.join(self.fields)} of nft set {self.family} {self.table} {self.set}"

    @property
    def key(self) -> "NftElement":
        """All of it."""
        return self


def nft_number(value: bytes) -> str:
    """Return a number in network byte order as an element's field has it."""
    return f"0x{value.hex()}"


class PodEnd(msgspec.Struct, frozen=True, gc=False):
    """What stands inside the pod's namespace."""

    ifname: str
    mac: str
    mtu: int
    addresses: tuple[LinkAddress, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]


class PodWiring(msgspec.Struct, frozen=True, gc=False):
    """Everything one attachment needs, on both ends of its veth pair."""

    link: Link
    addresses: tuple[LinkAddress, ...]
    neighbours: tuple[Neighbour, ...]
    sysctls: tuple[Sysctl, ...]
    routes: tuple[Route, ...]
    """The host's routes to the pod, written last."""
    pod: PodEnd
    port: Port | None = None
    """Where the link stands on a bridge; None if it is routed."""
    proxies: tuple[Proxy, ...] = ()
    elements: tuple[NftElement, ...] = ()
    """What the node's rules must know of the pod before it may send."""
    programs: tuple[FlowProgram, ...] = ()
    """What judges its packets."""
    limited: bool = False
    """Whether the runtime has a chained plugin put a qdisc of its own on the link: there is place for one."""

    @property
    def away(self) -> "tuple[Route | Neighbour | Proxy, ...]":
        """What stands on another device than the link, the bridge, and so does not vanish with it."""
        everything: tuple[Route | Neighbour | Proxy, ...] = (*self.routes, *self.neighbours, *self.proxies)
        return tuple(thing for thing in everything if thing.device != self.link.name)


class NodePlan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All the kernel objects of ours that one node must hold, and no others."""

    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    ports: tuple[Port, ...] = ()
    addresses: tuple[LinkAddress, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    proxies: tuple[Proxy, ...] = ()
    forwarding: tuple[ForwardingEntry, ...] = ()
    tunnels: tuple[IpipTunnel, ...] = ()
    endpoints: tuple[TunnelEndpoint, ...] = ()
    sources: tuple[TunnelSource, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    routes: tuple[Route, ...] = ()
    tables: tuple[NftTable, ...] = ()
    elements: tuple[NftElement, ...] = ()
    programs: tuple[FlowProgram, ...] = ()

    def without(self, devices: Set[str]) -> "NodePlan":
        """Return the plan without what belongs on these devices."""
        if not devices:
            return self
        return msgspec.structs.replace(
            self,
            links=tuple(link for link in self.links if link.name not in devices),
            ports=tuple(port for port in self.ports if port.device not in devices),
            addresses=tuple(address for address in self.addresses if address.device not in devices),
            neighbours=tuple(neighbour for neighbour in self.neighbours if neighbour.device not in devices),
            sysctls=tuple(sysctl for sysctl in self.sysctls if devices.isdisjoint(sysctl.path.split("/"))),
            routes=tuple(route for route in self.routes if route.device not in devices),
            programs=tuple(program for program in self.programs if program.device not in devices),
        )
