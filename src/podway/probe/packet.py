"""Reading captured packets: Ethernet, IPv4, IPv6, UDP, TCP, ICMP, and what may be wrapped around them.

A parser for probes, not for the whole world: it returns None for whatever is not a complete IP packet with
one of the transports that probes use. Nothing that arrives makes it raise.

Formats: RFC 791 (IPv4), 8200 (IPv6), 768 (UDP), 9293 (TCP), 792 and 4443 (ICMP), 7348 (VXLAN), 8926
(Geneve), 2784 (GRE), 2003 and 4213 (IP in IP).
"""

import functools
import socket
import struct
from ipaddress import ip_address
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_TEB = 0x6558
"""Transparent Ethernet bridging: what Geneve and GRE call an Ethernet frame."""
ETHERNET_HEADER = 14

IP_HEADER = {Family.IPV4: 20, Family.IPV6: 40}
"""Length of an IP header without options or extensions, in bytes."""

ICMP = {Family.IPV4: socket.IPPROTO_ICMP, Family.IPV6: socket.IPPROTO_ICMPV6}
ECHO_REQUEST = {Family.IPV4: 8, Family.IPV6: 128}
ECHO_REPLY = {Family.IPV4: 0, Family.IPV6: 129}

FRAGMENT_HEADER = 44
VXLAN_PORTS = frozenset((4789, 8472))
"""IANA's port, and the one that Linux and Flannel took before there was one."""
GENEVE_PORT = 6081
_MAX_TUNNELS = 4

TCP_SYN = 0x02
TCP_RST = 0x04
TCP_PSH = 0x08
TCP_ACK = 0x10

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_FOUR_SHORTS = struct.Struct("!HHHH")
_TCP = struct.Struct("!HHIIBBHHH")
_ICMP = struct.Struct("!BBHHH")

_UNREACHABLE: dict[Family, dict[tuple[int, int], str]] = {
    Family.IPV4: {
        (3, 0): "network unreachable",
        (3, 1): "host unreachable",
        (3, 2): "protocol unreachable",
        (3, 3): "port unreachable",
        (3, 4): "fragmentation needed",
        (3, 9): "network administratively prohibited",
        (3, 10): "host administratively prohibited",
        (3, 13): "communication administratively prohibited",
        (11, 0): "time to live exceeded",
    },
    Family.IPV6: {
        (1, 0): "no route to destination",
        (1, 1): "communication administratively prohibited",
        (1, 3): "address unreachable",
        (1, 4): "port unreachable",
        (1, 5): "source address failed policy",
        (1, 6): "reject route to destination",
        (2, 0): "packet too big",
        (3, 0): "hop limit exceeded",
    },
}
_ERROR_TYPES = {Family.IPV4: frozenset((3, 11, 12)), Family.IPV6: frozenset((1, 2, 3, 4))}

TunnelKind: TypeAlias = Literal["IP in IP", "VXLAN", "Geneve", "GRE"]


class Tunnel(msgspec.Struct, frozen=True):
    """One encapsulation that was around a packet: the outer header's addresses, and how it was sent.

    `port` is the outer UDP destination port and `vni` the VXLAN network identifier, 0 where there is none;
    `hop_limit` is the outer header's. `fragment` says that the outer packet was only the first part of one.
    """

    kind: TunnelKind
    source: Address
    destination: Address
    port: int = 0
    vni: int = 0
    hop_limit: int = 0
    fragment: bool = False

    def __str__(self) -> str:
        """Return it in words: `VXLAN (VNI 4096, port 4789) from 172.30.0.1 to 172.30.0.2`."""
        told = f" (VNI {self.vni}, port {self.port})" if self.kind == "VXLAN" else ""
        return f"{self.kind}{told} from {self.source} to {self.destination}"


class Udp(msgspec.Struct, frozen=True):
    """A UDP header."""

    source_port: int
    destination_port: int


class Tcp(msgspec.Struct, frozen=True):
    """A TCP header; `flags` are the TCP_ bits above."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int


class Echo(msgspec.Struct, frozen=True):
    """An ICMP echo request or reply."""

    request: bool
    identifier: int
    sequence: int


class IcmpError(msgspec.Struct, frozen=True):
    """An ICMP error. `mtu` is what a packet-too-big one allows, else 0; `quoted` is the packet it is about."""

    meaning: str
    mtu: int
    quoted: "Packet | None"


Transport: TypeAlias = Udp | Tcp | Echo | IcmpError


class Packet(msgspec.Struct, frozen=True):
    """One IP packet.

    `length` is that of the whole IP packet in bytes, as its header states it, whatever was captured.
    `dont_fragment` is IPv4's DF bit, and always true of IPv6. `tunnels` lists what was around it, outermost
    first.
    """

    source: Address
    destination: Address
    hop_limit: int
    length: int
    dont_fragment: bool
    fragment: bool
    transport: Transport
    payload: bytes
    tunnels: tuple[Tunnel, ...] = ()

    @property
    def family(self) -> Family:
        """The packet's IP version."""
        return Family.of(self.source)


class _Ip(msgspec.Struct, frozen=True):
    """An IP header, and where its payload lies."""

    family: Family
    source: bytes
    destination: bytes
    hop_limit: int
    length: int
    protocol: int
    dont_fragment: bool
    fragment: bool
    first: bool
    body: bytes


def parse_ethernet(frame: bytes) -> Packet | None:
    """Parse an Ethernet frame, which may have been cut short after the transport header."""
    return _ethernet(frame, ())


def parse_ip(data: bytes) -> Packet | None:
    """Parse an IP packet, which may have been cut short after the transport header."""
    return _ip(data, ())


def checksum_fault(data: bytes) -> Literal["IP header", "transport"] | None:
    """Tell which checksum of a complete IP packet is wrong; None if none is, or the packet was cut short."""
    header = _read_ip(data)
    if header is None or len(data) < header.length or header.fragment:
        return None
    if header.family is Family.IPV4 and _ones_sum(data[: (data[0] & 0xF) * 4]) != 0:
        return "IP header"
    if header.protocol == socket.IPPROTO_UDP and header.body[6:8] == b"\0\0":
        # RFC 768: none was computed. RFC 8200 section 8.1 forbids that in IPv6.
        return None if header.family is Family.IPV4 else "transport"
    pseudo = b""
    if header.protocol != socket.IPPROTO_ICMP:
        pseudo = header.source + header.destination + struct.pack("!II", len(header.body), header.protocol)
    return None if _ones_sum(pseudo + header.body) == 0 else "transport"


def internet_checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071 over `data`."""
    return _ones_sum(data)


def _ones_sum(data: bytes) -> int:
    """Return the complement of the one's complement sum of 16-bit words: 0 where a checksum fits."""
    # 2**16 is 1 modulo 65535, so that the whole string as one number is congruent to the sum of its words.
    number = int.from_bytes(data + b"\0" if len(data) % 2 else data, "big")
    total = number % 0xFFFF
    if total == 0 and number:
        total = 0xFFFF
    return total ^ 0xFFFF


@functools.lru_cache(maxsize=4096)
def _address(raw: bytes) -> Address:
    return ip_address(raw)


def _read_ip(data: bytes) -> _Ip | None:
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= _IPV4.size:
        ihl, _tos, length, _id, fragment, ttl, protocol, _sum, source, destination = _IPV4.unpack_from(data)
        start = (ihl & 0xF) * 4
        if start < _IPV4.size or length < start:
            return None
        return _Ip(
            Family.IPV4,
            source,
            destination,
            ttl,
            length,
            protocol,
            dont_fragment=bool(fragment & 0x4000),
            fragment=bool(fragment & 0x3FFF),
            first=not fragment & 0x1FFF,
            body=data[start:length],
        )
    if version == 6 and len(data) >= _IPV6.size:
        _flow, payload, protocol, ttl, source, destination = _IPV6.unpack_from(data)
        length = _IPV6.size + payload
        start, first = _IPV6.size, True
        if fragmented := protocol == FRAGMENT_HEADER:
            if len(data) < start + 8 or payload < 8:
                return None
            protocol, _reserved, offset = struct.unpack_from("!BBH", data, start)
            start, first = start + 8, not offset & 0xFFF8
        return _Ip(
            Family.IPV6,
            source,
            destination,
            ttl,
            length,
            protocol,
            dont_fragment=True,
            fragment=fragmented,
            first=first,
            body=data[start:length],
        )
    return None


def _ethernet(frame: bytes, tunnels: tuple[Tunnel, ...]) -> Packet | None:
    if len(frame) < ETHERNET_HEADER:
        return None
    return _ethertype(int.from_bytes(frame[12:14], "big"), frame[ETHERNET_HEADER:], tunnels)


def _ethertype(ethertype: int, data: bytes, tunnels: tuple[Tunnel, ...]) -> Packet | None:
    if ethertype == ETHERTYPE_TEB:
        return _ethernet(data, tunnels)
    version = {ETHERTYPE_IPV4: 4, ETHERTYPE_IPV6: 6}.get(ethertype)
    return _ip(data, tunnels) if data and data[0] >> 4 == version else None


def _ip(data: bytes, tunnels: tuple[Tunnel, ...]) -> Packet | None:
    header = _read_ip(data)
    if header is None or not header.first or len(tunnels) > _MAX_TUNNELS:
        return None
    if (inner := _unwrap(header, tunnels)) is not None:
        return inner
    parsed = _transport(header)
    if parsed is None:
        return None
    transport, payload = parsed
    return Packet(
        _address(header.source),
        _address(header.destination),
        header.hop_limit,
        header.length,
        header.dont_fragment,
        header.fragment,
        transport,
        payload,
        tunnels,
    )


def _unwrap(header: _Ip, tunnels: tuple[Tunnel, ...]) -> Packet | None:
    """Return the packet inside an encapsulation, None if there is none to be seen."""
    body = header.body

    def around(kind: TunnelKind, port: int = 0, vni: int = 0) -> tuple[Tunnel, ...]:
        ends = _address(header.source), _address(header.destination)
        return (*tunnels, Tunnel(kind, *ends, port, vni, header.hop_limit, header.fragment))

    if header.protocol in (socket.IPPROTO_IPIP, socket.IPPROTO_IPV6):
        return _ip(body, around("IP in IP"))
    if header.protocol == socket.IPPROTO_GRE and len(body) >= 4 and body[:2] == b"\0\0":
        return _ethertype(int.from_bytes(body[2:4], "big"), body[4:], around("GRE"))
    if header.protocol == socket.IPPROTO_UDP and len(body) >= 16:
        port = int.from_bytes(body[2:4], "big")
        if port == GENEVE_PORT:
            options = (body[8] & 0x3F) * 4
            protocol = int.from_bytes(body[10:12], "big")
            return _ethertype(protocol, body[16 + options :], around("Geneve", port))
        # A VXLAN header has eight fixed bits and 32 reserved ones: it is known on any port.
        if port in VXLAN_PORTS or (body[8:12] == b"\x08\0\0\0" and body[15] == 0):
            return _ethernet(body[16:], around("VXLAN", port, int.from_bytes(body[12:15], "big")))
    return None


def _transport(header: _Ip, *, nested: bool = False) -> tuple[Transport, bytes] | None:
    body = header.body
    if header.protocol == socket.IPPROTO_UDP and len(body) >= 8:
        source, destination, length, _sum = _FOUR_SHORTS.unpack_from(body)
        return Udp(source, destination), body[8 : max(length, 8)]
    if header.protocol == socket.IPPROTO_TCP and len(body) >= _TCP.size:
        source, destination, sequence, ack, offset, flags, *_ = _TCP.unpack_from(body)
        return Tcp(source, destination, sequence, ack, flags), body[(offset >> 4) * 4 :]
    if header.protocol == ICMP[header.family] and len(body) >= _ICMP.size:
        return _icmp(header.family, body, nested=nested), body[8:]
    return None


def _icmp(family: Family, body: bytes, *, nested: bool) -> Transport:
    kind, code, _sum, high, low = _ICMP.unpack_from(body)
    if kind in (ECHO_REQUEST[family], ECHO_REPLY[family]):
        return Echo(kind == ECHO_REQUEST[family], high, low)
    meaning = _UNREACHABLE[family].get((kind, code), f"ICMP type {kind} code {code}")
    if nested or kind not in _ERROR_TYPES[family]:
        return IcmpError(meaning, 0, None)
    too_big = (kind, code) == ((3, 4) if family is Family.IPV4 else (2, 0))
    mtu = (low if family is Family.IPV4 else high << 16 | low) if too_big else 0
    quoted = _read_ip(body[8:])
    # An error quotes only the beginning, but the lengths in the quoted header are the whole packet's.
    # Errors are never sent about errors (RFC 1122 section 3.2.2), so there is no need to look deeper.
    parsed = _transport(quoted, nested=True) if quoted is not None and quoted.first else None
    if quoted is None or parsed is None:
        return IcmpError(meaning, mtu, None)
    packet = Packet(
        _address(quoted.source),
        _address(quoted.destination),
        quoted.hop_limit,
        quoted.length,
        quoted.dont_fragment,
        quoted.fragment,
        parsed[0],
        parsed[1],
    )
    return IcmpError(meaning, mtu, packet)
