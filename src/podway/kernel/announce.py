"""Tells an Ethernet segment where addresses are from now on, so that nobody sends to who had them before.

By gratuitous ARP (RFC 5227, section 2.3: an ARP announcement) and unsolicited neighbour advertisements (RFC 4861,
section 7.2.6), whose override flag makes hosts forget another hardware address.
"""

import contextlib
import socket
import struct
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address

from podway.api.addresses import Address
from podway.errors import KernelError
from podway.kernel import netns

_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_BROADCAST = b"\xff" * 6
_ALL_NODES, _ALL_NODES_MAC = IPv6Address("ff02::1"), bytes.fromhex("333300000001")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST = 1
_NEIGHBOUR_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_LAYER = 136, 0x20000000, 2
_ICMPV6 = 58


def frame(mac: bytes, address: Address) -> bytes:
    """Return the Ethernet frame that says that an address is at a hardware address of six bytes."""
    if isinstance(address, IPv4Address):
        arp = _ARP.pack(1, 0x0800, 6, 4, _REQUEST, mac, address.packed, b"\0" * 6, address.packed)
        return _BROADCAST + mac + _ETH_P_ARP.to_bytes(2) + arp
    option = struct.pack("!BB6s", _TARGET_LINK_LAYER, 1, mac)
    body = struct.pack("!BBHI16s", _NEIGHBOUR_ADVERTISEMENT, 0, 0, _OVERRIDE, address.packed) + option
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!I3xB", len(body), _ICMPV6)
    message = body[:2] + _checksum(pseudo + body).to_bytes(2) + body[4:]
    # The hop limit has to be 255: hosts take no other (RFC 4861, section 7.1.2).
    header = struct.pack("!IHBB16s16s", 6 << 28, len(message), _ICMPV6, 255, address.packed, _ALL_NODES.packed)
    return _ALL_NODES_MAC + mac + _ETH_P_IPV6.to_bytes(2) + header + message


def announce(device: str, addresses: Collection[Address], netns_fd: int | None = None) -> None:
    """Send the frames of these addresses out of a device of a namespace (None: the calling thread's).

    To close a packet socket takes an RCU grace period. Raises KernelError.
    """

    def send() -> None:
        with contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)) as sock:
            sock.bind((device, 0))
            mac = sock.getsockname()[4]
            for each in _frames(mac, addresses):
                sock.send(each)

    try:
        if netns_fd is None:
            send()
        else:
            netns.run(netns_fd, send)
    except OSError as error:
        raise KernelError(f"announce addresses on {device}", error.errno or 0) from error


def _frames(mac: bytes, addresses: Collection[Address]) -> Iterator[bytes]:
    return (frame(mac, address) for address in sorted(addresses, key=lambda one: (one.version, int(one))))


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
