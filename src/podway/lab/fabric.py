"""Where a lab's nodes stand: on one flat segment, or in racks, each a subnet of its own behind a router.

Pure arithmetic: which subnet, address and AS number each node and each top-of-rack router has.
"""

from collections.abc import Sequence
from ipaddress import ip_interface, ip_network
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.errors import InvalidArgument

Tor: TypeAlias = Literal["none", "bird", "frr"]
"""Who speaks BGP on the top-of-rack routers."""

ESTATES: dict[Family, tuple[Network, ...]] = {
    Family.IPV4: tuple(map(ip_network, ("172.30.0.0/16", "192.168.0.0/16", "198.18.0.0/16"))),
    # The middle of fd70:6f64:7761:79xx::/64 spells the project's name.
    Family.IPV6: tuple(map(ip_network, ("fd70:6f64:7761:7900::/56", "fd70:6f64:7761:7a00::/56"))),
}
"""Where nodes and routers may have their own addresses; the first that overlaps no pool is taken."""

SUBNET_PREFIX = {Family.IPV4: 24, Family.IPV6: 64}
"""Prefix length of a rack's subnet and of the spine's."""

MAX_NODES = 1000
"""A bridge has 1023 ports (BR_MAX_PORTS, net/bridge/br_private.h)."""

GATEWAY = 254
"""The number of the router's address in its rack's subnet."""

MAX_RACKED_NODES = 250
"""A node's number is the last part of its address, and a rack's IPv4 subnet ends below GATEWAY."""

CONTROL = {False: 1001, True: 253}
"""The number of the cluster's own servers on the first segment, flat and in racks: behind those of nodes."""

MAX_RACKS = 50

_TOR_ASN, _NODE_ASN = 65000, 64600
"""What a number is added to: private ranges (RFC 6996) that do not meet, nor the cluster's default AS."""


class Fabric(msgspec.Struct, frozen=True):
    """The segments of a lab, cut out of `estate`, a network of each family that nodes have.

    One rack is one flat segment without a router; there the nodes' subnet has no gateway.
    """

    estate: tuple[Network, ...]
    racks: int = 1

    @property
    def routed(self) -> bool:
        """There are routers."""
        return self.racks > 1

    @property
    def numbers(self) -> range:
        """The racks that have routers."""
        return range(1, self.racks + 1) if self.routed else range(0)

    def subnets(self, rack: int) -> tuple[Network, ...]:
        """Return a rack's subnets, one a family; those of number 0 are the spine's, which joins the routers."""
        return tuple(self._subnet(network, rack) for network in self.estate)

    def gateways(self, rack: int) -> tuple[Interface, ...]:
        """Return the addresses of a rack's router in the rack; none on a flat segment."""
        return numbered(GATEWAY, self.subnets(rack)) if self.routed else ()

    @property
    def control(self) -> tuple[Interface, ...]:
        """The addresses of the cluster's own servers, if it has any: in the first rack."""
        return numbered(CONTROL[self.routed], self.subnets(1))

    def spine(self, rack: int) -> tuple[Interface, ...]:
        """Return the addresses of a rack's router on the spine."""
        return numbered(rack, self.subnets(0))

    def addresses(self, rack: int, index: int) -> tuple[Interface, ...]:
        """Return the uplink addresses of the node of this number, counted from 1 over all racks."""
        return numbered(index, self.subnets(rack))

    def rack_of(self, index: int, nodes: int) -> int:
        """Return the rack of a node of a new lab: racks are filled one after the other, evenly."""
        return 1 + (index - 1) * self.racks // nodes

    def _subnet(self, network: Network, rack: int) -> Network:
        family = Family.of(network)
        if not self.routed:
            # A flat IPv4 segment takes all, to have room for MAX_NODES; IPv6 wants its 64 bits (RFC 4291).
            return network if family is Family.IPV4 else family.network(int(network.network_address), 64)
        prefix = SUBNET_PREFIX[family]
        return family.network(int(network.network_address) + (rack << (family.bits - prefix)), prefix)


def plan_fabric(pools: Sequence[Network], *, nodes: int, racks: int, families: Sequence[Family] = ()) -> Fabric:
    """Return the fabric of a new lab beside these pools.

    Without `families`, the nodes have IPv4 addresses, and IPv6 ones too if a pool is IPv6. Raises
    InvalidArgument if there is no room for so many, or racks without nodes.
    """
    if not 1 <= racks <= MAX_RACKS:
        raise InvalidArgument(f"{racks} racks cannot be built", hint=f"choose 1 to {MAX_RACKS}")
    most = most_nodes(racks)
    if not 1 <= nodes <= most:
        raise InvalidArgument(f"{nodes} nodes cannot be built", hint=f"choose 1 to {most}")
    if racks > nodes:
        raise InvalidArgument(
            f"{racks} racks for {nodes} nodes: a rack would be empty", hint="choose at most as many racks"
        )
    chosen = families or [Family.IPV4] + [Family.IPV6] * any(pool.version == 6 for pool in pools)
    return Fabric(tuple(_choose(family, pools) for family in chosen), racks)


def most_nodes(racks: int) -> int:
    """Return how many nodes a lab of so many racks has room for."""
    return MAX_NODES if racks == 1 else MAX_RACKED_NODES


def numbered(number: int, subnets: Sequence[Network]) -> tuple[Interface, ...]:
    """Return the address of this number in each subnet."""
    return tuple(ip_interface((subnet[number], subnet.prefixlen)) for subnet in subnets)


def rack_label(rack: int) -> str:
    """Return a rack's name: the value of its nodes' label podway.io/rack."""
    return f"rack{rack}"


def tor_asn(rack: int) -> int:
    """Return the AS number of a rack's router."""
    return _TOR_ASN + rack


def node_asn(index: int) -> int:
    """Return the AS number of a node that peers with its router.

    Each node has its own (RFC 7938, section 5.2.1, has one for each device): with one for a whole rack, a node
    would take its neighbours' routes for loops (RFC 4271, section 9.1.2).
    """
    return _NODE_ASN + index


def in_family(addresses: Sequence[Interface], family: Family) -> Address:
    """Return the address of a family that the fabric has."""
    return next(address.ip for address in addresses if address.version == family)


def _choose(family: Family, pools: Sequence[Network]) -> Network:
    for network in ESTATES[family]:
        if not any(pool.version == family and pool.overlaps(network) for pool in pools):
            return network
    tried = ", ".join(map(str, ESTATES[family]))
    raise InvalidArgument(f"the pools leave no {family.label} subnet for the nodes themselves (tried {tried})")
