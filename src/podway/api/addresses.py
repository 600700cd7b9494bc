"""Addresses, and the address family as a parameter.

The rest of Podway never asks "is this IPv6?" to choose between two copies of code: it carries a
`Family` and reads what differs from it.
"""

import enum
import socket
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Interface: TypeAlias = IPv4Interface | IPv6Interface


_AF = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
"""The socket API's address family of each IP version, as plain numbers, which C takes sooner than an enum's."""


class Family(enum.IntEnum):
    """An IP version. Its value is the version number, as in `ipaddress`' `.version`."""

    IPV4 = 4
    IPV6 = 6

    @classmethod
    def of(cls, value: "Address | Network | Interface") -> "Family":
        """Return the family of an address, network or interface address."""
        # Not `cls(…)`, which takes ten times as long: it is asked of thousands of addresses at a change.
        return cls.IPV4 if value.version == 4 else cls.IPV6

    @property
    def bits(self) -> int:
        """Length of an address in bits: 32 or 128."""
        return 32 if self is Family.IPV4 else 128

    @property
    def af(self) -> int:
        """The socket API's address family, AF_INET or AF_INET6."""
        return _AF[self]

    @property
    def label(self) -> str:
        """The name people read: `IPv4` or `IPv6`."""
        return f"IPv{self.value}"

    @property
    def default_route(self) -> Network:
        """`0.0.0.0/0` or `::/0`."""
        return IPv4Network((0, 0)) if self is Family.IPV4 else IPv6Network((0, 0))

    def address(self, number: int) -> Address:
        """Return the address with this integer value."""
        return IPv4Address(number) if self is Family.IPV4 else IPv6Address(number)

    def network(self, number: int, prefix: int) -> Network:
        """Return the network with this integer base address and prefix length."""
        return IPv4Network((number, prefix)) if self is Family.IPV4 else IPv6Network((number, prefix))


def host_network(address: Address) -> Network:
    """Return the network that holds this one address: /32 or /128."""
    return Family.of(address).network(int(address), Family.of(address).bits)


def address_text(address: Address) -> str:
    """Return what str() does, in a fraction of the time: it is asked of thousands of addresses at a start."""
    text = socket.inet_ntop(_AF[address.version], address.packed)
    # Of an address with an IPv4 one in it the C library writes the end as IPv4's, and Python does not.
    return text if address.version == 4 or "." not in text else str(address)


def parse_plain_address(text: str) -> Address:
    """Return what ipaddress' `ip_address` does of a text, in a fifth of the time. Raises ValueError."""
    try:
        if ":" in text:
            return IPv6Address(socket.inet_pton(_AF[6], text))
        return IPv4Address(socket.inet_pton(_AF[4], text))
    except (OSError, ValueError):
        return ip_address(text)  # says what is wrong


def parse_plain_network(text: str) -> Network:
    """Return what ipaddress' `ip_network` does of a text, in a third of the time. Raises ValueError."""
    address, _, length = text.partition("/")
    if length.isascii() and length.isdecimal():
        try:
            if ":" in address:
                return IPv6Network((socket.inet_pton(_AF[6], address), int(length)))
            return IPv4Network((socket.inet_pton(_AF[4], address), int(length)))
        except (OSError, ValueError):
            pass
    return ip_network(text)  # takes other forms, and says what is wrong


def with_port(address: Address | str, port: int) -> str:
    """Return an address and a port as a URL has them (RFC 3986, section 3.2.2): IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def gateway_of(block: Network) -> Address:
    """Return the first address of a block after the network's own: the node keeps it for itself."""
    return block.network_address + 1


def block_of(address: Address, prefix: int) -> Network:
    """Return the block of this prefix length that an address lies in."""
    family = Family.of(address)
    shift = family.bits - prefix
    return family.network(int(address) >> shift << shift, prefix)


def parse_network(text: str) -> Network:
    """Parse a network in CIDR form; host bits must be zero.

    Raises ValueError with a message that says what is wrong with the text.
    """
    return ip_network(text, strict=True)


def is_within(inner: Network, outer: Network) -> bool:
    """Tell whether a network is a part of another one (or the same); networks of two families never are."""
    return inner.version == outer.version and inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def link_local(mac: str) -> IPv6Interface:
    """Return the IPv6 link-local address of a hardware address (RFC 4291, appendix A: modified EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Interface((b"\xfe\x80" + bytes(6) + identifier, 64))


def collapsed(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Return networks in order, IPv4 first, none inside another and none beside its other half."""
    every = tuple(networks)
    return (
        *collapse_addresses(net for net in every if isinstance(net, IPv4Network)),
        *collapse_addresses(net for net in every if isinstance(net, IPv6Network)),
    )
