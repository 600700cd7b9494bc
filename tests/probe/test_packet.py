"""The packet parser: what it reads is what was written, and nothing makes it raise."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.addresses import Address
from podway.probe.packet import (
    Echo,
    IcmpError,
    Tcp,
    Udp,
    checksum_fault,
    internet_checksum,
    parse_ethernet,
    parse_ip,
)

patiently = settings(deadline=None, max_examples=60)

# Echo requests of ping(8), captured with tcpdump.
PING = bytes.fromhex("45000020295140003f01faee0a4d01020a4d02020800991b5cdf000100010203")
PING6 = bytes.fromhex(
    "60063773000c3a3ffd770000000000010000000000000002fd770000000000020000000000000002800025dd5ce0000100010203"
)
ports = st.integers(0, 65535)
ordinary = ports.filter(lambda port: port not in (4789, 8472, 6081))
v4 = st.integers(0, 2**32 - 1).map(IPv4Address)
v6 = st.integers(0, 2**128 - 1).map(IPv6Address)
pairs = st.one_of(st.tuples(v4, v4), st.tuples(v6, v6))


def ip(
    source: Address, destination: Address, protocol: int, body: bytes, *, ttl: int = 64, df: bool = True
) -> bytes:
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, ttl) + source.packed + destination.packed + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000 * df, ttl, protocol, 0)
    head += source.packed + destination.packed
    checksum = internet_checksum(head)
    return head[:10] + struct.pack("!H", checksum) + head[12:] + body


def udp(source: int, destination: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def ethernet(packet: bytes) -> bytes:
    return bytes(12) + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


@patiently
@given(pairs, ordinary, ordinary, st.binary(max_size=7), st.integers(1, 255), st.booleans())
def test_udp_is_read_as_it_was_written(
    addresses: tuple[Address, Address], sport: int, dport: int, payload: bytes, ttl: int, df: bool
) -> None:
    data = ip(*addresses, socket.IPPROTO_UDP, udp(sport, dport, payload), ttl=ttl, df=df)
    packet = parse_ethernet(ethernet(data))
    assert packet is not None
    assert (packet.source, packet.destination) == addresses
    assert packet.transport == Udp(sport, dport)
    assert packet.payload == payload
    assert (packet.length, packet.hop_limit) == (len(data), ttl)
    assert packet.dont_fragment is (df or addresses[0].version == 6)
    assert packet.tunnels == ()


@patiently
@given(st.binary(max_size=400))
def test_garbage_is_no_packet_and_no_error(data: bytes) -> None:
    parse_ethernet(data)
    parse_ip(data)
    checksum_fault(data)


@patiently
@given(st.binary(max_size=200), st.sampled_from((1, 4, 6, 17, 41, 47, 58)), pairs)
def test_garbage_inside_a_good_header_is_no_error(
    body: bytes, protocol: int, addresses: tuple[Address, Address]
) -> None:
    parse_ip(ip(*addresses, protocol, body))


def test_errors_about_errors_end() -> None:
    packet = PING
    for _ in range(1500):
        packet = ip(IPv4Address(1), IPv4Address(2), 1, struct.pack("!BBHI", 3, 1, 0, 0) + packet)[:65000]
    assert parse_ip(packet) is not None


@pytest.mark.parametrize("depth", [1, 3, 40])
def test_packets_in_packets_end(depth: int) -> None:
    packet = PING
    for _ in range(depth):
        packet = ip(IPv4Address(1), IPv4Address(2), socket.IPPROTO_IPIP, packet)
    found = parse_ip(packet)
    assert (found is None) == (depth > 5)


@patiently
@given(pairs, pairs, st.sampled_from(("IP in IP", "VXLAN", "Geneve", "GRE")), st.binary(max_size=7))
def test_what_is_wrapped_is_found(
    outer: tuple[Address, Address], inner: tuple[Address, Address], kind: str, payload: bytes
) -> None:
    packet = ip(*inner, socket.IPPROTO_UDP, udp(1000, 2000, payload))
    frame = ethernet(packet)
    ethertype = frame[12:14]
    wrapped = {
        "IP in IP": (socket.IPPROTO_IPIP if inner[0].version == 4 else socket.IPPROTO_IPV6, packet),
        "VXLAN": (socket.IPPROTO_UDP, udp(5, 4789, b"\x08\0\0\0\0\0\x07\0" + frame)),
        "Geneve": (socket.IPPROTO_UDP, udp(5, 6081, b"\0\0\x65\x58\0\0\x07\0" + frame)),
        "GRE": (socket.IPPROTO_GRE, b"\0\0" + ethertype + packet),
    }[kind]
    found = parse_ip(ip(*outer, *wrapped))
    assert found is not None
    assert (found.source, found.destination, found.payload) == (*inner, payload)
    [tunnel] = found.tunnels
    assert (tunnel.kind, tunnel.source, tunnel.destination) == (kind, *outer)


def test_vxlan_is_known_on_an_unusual_port() -> None:
    inner = ip(IPv4Address(3), IPv4Address(4), socket.IPPROTO_UDP, udp(1, 2, b"x"))
    body = udp(5, 9999, b"\x08\0\0\0\0\0\x07\0" + ethernet(inner))
    found = parse_ip(ip(IPv4Address(1), IPv4Address(2), socket.IPPROTO_UDP, body))
    assert found is not None
    assert [tunnel.kind for tunnel in found.tunnels] == ["VXLAN"]


def test_tcp_and_echo() -> None:
    segment = struct.pack("!HHIIBBHHH", 10, 20, 7, 8, 0x60, 0x18, 0, 0, 0) + b"opts" + b"data"
    packet = parse_ip(ip(IPv4Address(1), IPv4Address(2), socket.IPPROTO_TCP, segment))
    assert packet is not None
    assert (packet.transport, packet.payload) == (Tcp(10, 20, 7, 8, 0x18), b"data")
    ping = parse_ip(PING)
    assert ping is not None
    assert ping.transport == Echo(request=True, identifier=0x5CDF, sequence=1)


@pytest.mark.parametrize(
    ("source", "protocol", "head", "meaning"),
    [
        (IPv4Address("10.0.0.1"), 1, struct.pack("!BBHHH", 3, 4, 0, 0, 1400), "fragmentation needed"),
        (IPv6Address("fd00::1"), 58, struct.pack("!BBHI", 2, 0, 0, 1400), "packet too big"),
    ],
)
def test_too_big_tells_mtu_and_packet(source: Address, protocol: int, head: bytes, meaning: str) -> None:
    quoted = ip(source, source + 1, socket.IPPROTO_UDP, udp(10, 20, bytes(1472)))
    packet = parse_ip(ip(source, source, protocol, head + quoted[:100]))
    assert packet is not None
    error = packet.transport
    assert isinstance(error, IcmpError)
    assert (error.meaning, error.mtu) == (meaning, 1400)
    assert error.quoted is not None
    assert (error.quoted.transport, error.quoted.length) == (Udp(10, 20), len(quoted))


def test_first_fragments_are_told_later_ones_passed_over() -> None:
    first = bytearray(ip(IPv4Address(1), IPv4Address(2), socket.IPPROTO_UDP, udp(1, 2, b"abc"), df=False))
    first[6] |= 0x20
    packet = parse_ip(bytes(first))
    assert packet is not None
    assert packet.fragment
    first[7] = 1
    assert parse_ip(bytes(first)) is None
    header = struct.pack("!BBHI", socket.IPPROTO_UDP, 0, 1, 9) + udp(1, 2, b"abc")
    packet = parse_ip(ip(IPv6Address(1), IPv6Address(2), 44, header))
    assert packet is not None
    assert packet.fragment
    assert packet.transport == Udp(1, 2)


@patiently
@given(st.binary(min_size=2, max_size=60))
def test_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    """Against the sum written out as the RFC defines it."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert internet_checksum(data) == total ^ 0xFFFF


@pytest.mark.parametrize("packet", [PING, PING6])
def test_wrong_checksums_are_found(packet: bytes) -> None:
    assert checksum_fault(packet) is None
    for place in (-1, -10, 27 if packet is PING6 else 13):
        spoiled = bytearray(packet)
        spoiled[place] ^= 1
        assert checksum_fault(bytes(spoiled)) == ("IP header" if place == 13 else "transport")
    assert checksum_fault(packet[:-1]) is None, "a packet that was cut short cannot be checked"
