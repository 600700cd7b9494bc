"""The device by which a node reaches the other nodes."""

from collections.abc import Iterable, Iterator

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.api.kinds.ip_pool import IPPool
from podway.cached import cached_property
from podway.cluster.view import ClusterView


class Uplink(msgspec.Struct, frozen=True, dict=True):
    """The device by which a node reaches the other nodes."""

    device: str
    mtu: int
    addresses: tuple[Interface, ...]
    """At most one a family."""
    absent: frozenset[Address] = frozenset()
    """Those of them that the node has lost for the moment, and is still known by."""

    @cached_property
    def node_addresses(self) -> tuple[Address, ...]:
        """The node's own addresses, without prefix lengths."""
        return tuple(interface.ip for interface in self.addresses)

    @cached_property
    def sources(self) -> tuple[Address, ...]:
        """The addresses that the node can send from now."""
        return tuple(address for address in self.node_addresses if address not in self.absent)

    @property
    def subnets(self) -> tuple[Network, ...]:
        """The subnets that the node reaches by the device without a router; an address of full length has none."""
        networks = (interface.network for interface in self.addresses)
        return tuple(network for network in networks if network.prefixlen < Family.of(network).bits)


def without_address(
    view: ClusterView, node: str, uplink: Uplink, pools: Iterable[IPPool]
) -> Iterator[tuple[Family, tuple[str, ...]]]:
    """Yield each family of which a node has no address and others have, with the pools that suffer by that.

    `pools` are those that the node may have pods of. A pool suffers whose routes BGP advertises, for want of
    sessions of its family, or whose packets cross bare.
    """
    every = tuple(pools)
    have = {Family.of(address) for address in uplink.addresses}
    for family in Family:
        others = any(other.internal_address(family) for name, other in view.nodes.items() if name != node)
        names = tuple(
            f"IPPool/{pool.metadata.name}"
            for pool in every
            if pool.network.version == family
            and (pool.spec.distribution == "bgp" or pool.spec.encapsulation == "none")
        )
        if family not in have and others and names:
            yield family, names
