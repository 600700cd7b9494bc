"""Addresses of devices (rtnetlink(7), net/ipv4/devinet.c, net/ipv6/addrconf.c)."""

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from socket import AF_INET, AF_INET6

import msgspec

from podway.api.addresses import Address, Family, Interface
from podway.kernel.netlink import Connection, Message, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import IFADDRMSG, attribute, number, parse, u32
from podway.plan.objects import LinkAddress

SCOPES = {0: "global", 253: "link", 254: "host"}
SCOPE_NUMBERS = {name: scope for scope, name in SCOPES.items()}

_CACHEINFO = struct.Struct("=4I")
"""struct ifa_cacheinfo: two lifetimes, and when the address was made and last changed."""


class AddressRecord(msgspec.Struct, frozen=True):
    """An address as the kernel has it; `index` is its device."""

    index: int
    address: Interface
    scope: str
    flags: int
    created: int = 0
    """When it was made, in hundredths of a second since the machine started."""

    @property
    def tentative(self) -> bool:
        """Duplicate-address detection has not ended: nothing can use it yet."""
        return bool(self.flags & c.IFA_F_TENTATIVE)

    @property
    def duplicate(self) -> bool:
        """Duplicate-address detection found that another machine has it."""
        return bool(self.flags & c.IFA_F_DADFAILED)

    @property
    def deprecated(self) -> bool:
        """Its preferred lifetime is over: nothing new is to use it."""
        return bool(self.flags & c.IFA_F_DEPRECATED)

    @property
    def temporary(self) -> bool:
        """It is a privacy address (RFC 8981). IPv4 has none: the bit there marks a second address of a subnet."""
        return self.address.version == 6 and bool(self.flags & c.IFA_F_TEMPORARY)

    @property
    def permanent(self) -> bool:
        """It has no end."""
        return bool(self.flags & c.IFA_F_PERMANENT)


def add(address: LinkAddress, index: int) -> Request:
    """Build a request that puts an address on a device, without duplicate-address detection.

    What is there already, with another scope or other flags, is made like this.
    """
    family = Family.of(address.address)
    body = _body(address, index, SCOPE_NUMBERS[address.scope])
    # IPv4 has no such detection, and no use for the flag.
    flags = u32(c.IFA_FLAGS, c.IFA_F_NODAD) if family is Family.IPV6 else b""
    return Request(c.RTM_NEWADDR, body + flags, "add", address, c.NLM_F_CREATE | c.NLM_F_REPLACE)


def remove(address: LinkAddress, index: int) -> Request:
    """Build a request that takes an address from a device."""
    return Request(c.RTM_DELADDR, _body(address, index, 0), "remove", address)


def read(message: Message) -> AddressRecord:
    """Read an RTM_NEWADDR or RTM_DELADDR message."""
    af, prefix, flags, scope, index = IFADDRMSG.unpack_from(message.body)
    found = parse(message.body, IFADDRMSG.size)
    # IFA_LOCAL is the own address; on a point-to-point link IFA_ADDRESS is the peer's.
    packed = found.get(c.IFA_LOCAL) or found[c.IFA_ADDRESS]
    address: Interface = IPv4Interface((packed, prefix)) if af == AF_INET else IPv6Interface((packed, prefix))
    times = found.get(c.IFA_CACHEINFO, b"")
    return AddressRecord(
        index,
        address,
        SCOPES.get(scope, str(scope)),
        number(found.get(c.IFA_FLAGS), flags),
        _CACHEINFO.unpack(times)[2] if len(times) == _CACHEINFO.size else 0,
    )


def dump(connection: Connection) -> list[AddressRecord]:
    """Return all IPv4 and IPv6 addresses of the namespace. Raises KernelError."""
    request = Request(c.RTM_GETADDR, IFADDRMSG.pack(0, 0, 0, 0, 0), "list", "addresses")
    families = {AF_INET, AF_INET6}
    return [read(message) for message in connection.dump(request) if message.body[0] in families]


def unpack(packed: bytes) -> Address:
    """Return the address of 4 or 16 bytes."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _body(address: LinkAddress, index: int, scope: int) -> bytes:
    interface = address.address
    return (
        IFADDRMSG.pack(Family.of(interface).af, interface.network.prefixlen, 0, scope, index)
        + attribute(c.IFA_LOCAL, interface.packed)
        + attribute(c.IFA_ADDRESS, interface.packed)
    )
