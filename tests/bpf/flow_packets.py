"""Packets for the flow engine, byte by byte. The engine looks at no checksum but IPv4's, so others are 0."""

import struct
from ipaddress import ip_address

ETH_IPV4, ETH_IPV6, ETH_ARP = 0x0800, 0x86DD, 0x0806
ICMP, TCP, UDP, ICMPV6, SCTP, GRE = 1, 6, 17, 58, 132, 47
FIN, SYN, RST, ACK = 1, 2, 4, 16
HARDWARE = bytes.fromhex("020000000001 020000000002")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(
    source: int, destination: int, flags: int = SYN, data: bytes = b"", sequence: int = 1, acknowledged: int = 1
) -> bytes:
    numbers = (sequence & 0xFFFFFFFF, acknowledged & 0xFFFFFFFF)
    return struct.pack("!HHIIBBHHH", source, destination, *numbers, 5 << 4, flags, 1000, 0, 0) + data


def udp(source: int, destination: int, data: bytes = b"abcd") -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(data), 0) + data


def sctp(source: int, destination: int) -> bytes:
    return struct.pack("!HHII", source, destination, 0, 0) + bytes(4)


def icmp(kind: int, code: int = 0, identifier: int = 0, data: bytes = b"abcd") -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, identifier, 1) + data


def ip(
    source: object,
    destination: object,
    protocol: int,
    upper: bytes,
    *,
    hops: int = 64,
    options: bytes = b"",
    fragment: tuple[int, bool] | None = None,
    identifier: int = 7,
) -> bytes:
    """An IP packet of the addresses' family. `options` are IPv4 options or a chain of IPv6 extension headers that
    begins with the first one's protocol; `fragment` is an offset in bytes, and whether more follow."""
    here, there = ip_address(str(source)), ip_address(str(destination))
    if here.version == 4:
        flags = 0 if fragment is None else fragment[0] // 8 | (0x2000 if fragment[1] else 0)
        words = 5 + len(options) // 4
        head = struct.pack(
            "!BBHHHBBH4s4s",
            4 << 4 | words,
            0,
            words * 4 + len(upper),
            identifier,
            flags,
            hops,
            protocol,
            0,
            here.packed,
            there.packed,
        )
        head += options
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + upper
    following = protocol
    if options:
        following, upper = options[0], options[1:] + upper
    if fragment is not None:
        upper = struct.pack("!BBHI", following, 0, fragment[0] | fragment[1], identifier) + upper
        following = 44
    head = struct.pack("!IHBB16s16s", 6 << 28, len(upper), following, hops, here.packed, there.packed)
    return head + upper


def frame(packet: bytes) -> bytes:
    """An IP packet in Ethernet."""
    return HARDWARE + struct.pack("!H", ETH_IPV4 if packet[0] >> 4 == 4 else ETH_IPV6) + packet
