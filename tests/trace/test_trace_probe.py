"""Probes as they are written: our own reader and the checksums must agree with them."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.addresses import Address, Family
from podway.probe.build import MARK_BYTES, Protocol, build, sequence_of
from podway.probe.packet import IP_HEADER, Echo, Tcp, Udp, checksum_fault, parse_ip

ENDS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)


@given(
    st.sampled_from(Protocol),
    ENDS,
    st.binary(min_size=MARK_BYTES, max_size=MARK_BYTES),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.integers(0, 1500),
)
def test_a_probe_reads_back(
    protocol: Protocol, ends: tuple[Address, Address], mark: bytes, own: int, port: int, size: int
) -> None:
    data = build(protocol, *ends, mark=mark, source_port=own, port=port, size=size)
    family = Family.of(ends[0])
    if family is Family.IPV4:  # what the kernel fills in: total length and header checksum
        data = data[:2] + len(data).to_bytes(2, "big") + data[4:]
    packet = parse_ip(data)
    assert packet is not None
    assert (packet.source, packet.destination, packet.dont_fragment) == (*ends, True)
    match packet.transport:
        case Tcp() as tcp:
            assert (tcp.source_port, tcp.destination_port, tcp.sequence) == (own, port, sequence_of(mark))
            assert packet.payload == b""
        case Udp() as udp:
            assert (udp.source_port, udp.destination_port) == (own, port)
        case Echo() as echo:
            assert (echo.request, echo.identifier) == (True, own)
    if protocol is not Protocol.TCP:
        assert packet.payload.startswith(mark)
        assert packet.length == max(size, IP_HEADER[family] + 8 + MARK_BYTES)
    assert checksum_fault(data) in ((None, "IP header") if family is Family.IPV4 else (None,))


@pytest.mark.parametrize("family", Family)
def test_a_wrong_byte_shows(family: Family) -> None:
    source, destination = (ip_address("192.0.2.1"), ip_address("192.0.2.2"))
    if family is Family.IPV6:
        source, destination = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    data = build(Protocol.UDP, source, destination, mark=bytes(8), source_port=1, port=2, size=100)
    if family is Family.IPV6:
        assert checksum_fault(data) is None
        assert checksum_fault(data[:-1] + b"\0") == "transport"
