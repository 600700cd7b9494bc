"""Writing probes: whole IP packets, so that one way of sending serves all protocols.

A probe carries its mark, 8 random bytes: UDP and ICMP at the head of the payload, TCP the first four as its
initial sequence number (a bare SYN, which no server's application ever hears of: RFC 9293, section 3.5).
"""

import enum
import socket
import struct

from podway.api.addresses import Address, Family
from podway.probe.packet import ECHO_REQUEST, ICMP, IP_HEADER, TCP_SYN, internet_checksum

MARK_BYTES = 8
HOP_LIMIT = 64
_HEADER_SIZE = 8
"""Of UDP and of an ICMP echo, in bytes."""
_PATTERN = bytes(range(251))
"""What fills a probe. A prime length makes a shifted or repeated part show."""
_DONT_FRAGMENT = 0x4000


class Protocol(enum.StrEnum):
    """What a probe is sent by."""

    TCP = "TCP"
    UDP = "UDP"
    ICMP = "ICMP"


def sequence_of(mark: bytes) -> int:
    """Return the initial sequence number of a TCP probe with this mark."""
    return int.from_bytes(mark[:4], "big")


def build(
    protocol: Protocol,
    source: Address,
    destination: Address,
    *,
    mark: bytes,
    source_port: int,
    port: int,
    size: int,
) -> bytes:
    """Return a probe as an IP packet of `size` bytes, or of as many as it needs at least; TCP has no payload.

    With ICMP, `source_port` is the echo's identifier, and `port` means nothing.
    """
    family = Family.of(source)
    room = max(size - IP_HEADER[family] - _HEADER_SIZE, MARK_BYTES)
    payload = (mark + _PATTERN * (room // len(_PATTERN) + 1))[:room]
    match protocol:
        case Protocol.TCP:
            number, body = (
                socket.IPPROTO_TCP,
                struct.pack("!HHIIBBHHH", source_port, port, sequence_of(mark), 0, 5 << 4, TCP_SYN, 0xFFFF, 0, 0),
            )
            checksum_at = 16
        case Protocol.UDP:
            number, body = socket.IPPROTO_UDP, struct.pack("!HHHH", source_port, port, _HEADER_SIZE + room, 0)
            body, checksum_at = body + payload, 6
        case Protocol.ICMP:
            number = ICMP[family]
            body, checksum_at = struct.pack("!BBHHH", ECHO_REQUEST[family], 0, 0, source_port, 1) + payload, 2
    pseudo = b""
    if number != socket.IPPROTO_ICMP:
        pseudo = source.packed + destination.packed + struct.pack("!II", len(body), number)
    # RFC 768: a UDP checksum of 0 would say that there is none.
    checksum = internet_checksum(pseudo + body) or 0xFFFF
    body = body[:checksum_at] + checksum.to_bytes(2, "big") + body[checksum_at + 2 :]
    return _ip_header(family, source, destination, number, len(body)) + body


def _ip_header(family: Family, source: Address, destination: Address, protocol: int, length: int) -> bytes:
    ends = source.packed + destination.packed
    if family is Family.IPV6:
        return struct.pack("!IHBB", 6 << 28, length, protocol, HOP_LIMIT) + ends
    # The kernel writes length, identification and header checksum itself (man 7 raw, IP_HDRINCL).
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, _DONT_FRAGMENT, HOP_LIMIT, protocol, 0) + ends
