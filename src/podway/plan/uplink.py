"""The device by which a node reaches the other nodes."""

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.plan.fabric import endpoint


class Uplink(msgspec.Struct, frozen=True):
    """The device by which a node reaches the other nodes."""

    device: str
    mtu: int
    addresses: tuple[Interface, ...]
    """At most one a family."""

    @property
    def node_addresses(self) -> tuple[Address, ...]:
        """The node's own addresses, without prefix lengths."""
        return tuple(interface.ip for interface in self.addresses)

    @property
    def subnets(self) -> tuple[Network, ...]:
        """The subnets that the node reaches by the device without a router; an address of full length has none."""
        networks = (interface.network for interface in self.addresses)
        return tuple(network for network in networks if network.prefixlen < Family.of(network).bits)

    @property
    def underlay(self) -> Family:
        """The family of the outer headers that the node sends."""
        own = endpoint(self.node_addresses)
        return Family.of(own) if own else Family.IPV4
