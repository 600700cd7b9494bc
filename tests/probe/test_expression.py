"""Filters of captures take in the kernel what tcpdump takes of the same packets, and the same inside tunnels."""

import random
import socket
import struct
import subprocess
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.errors import InvalidInput
from podway.kernel import netns
from podway.probe.classic import attach
from podway.probe.expression import (
    Carries,
    Either,
    Expression,
    Net,
    Not,
    Ports,
    compiled,
    nets,
    of_addresses,
    parse,
)
from tests.patience import PATIENCE
from tests.probe.test_packet import ethernet, ip, udp
from tests.probe.wire import packet_socket

FOUR = [ip_address(text) for text in ("10.1.0.1", "10.1.0.2", "10.2.0.1", "192.0.2.1")]
SIX = [ip_address(text) for text in ("2001:db8::1", "2001:db8::2", "2001:db8:1::1", "fd00::1")]
PORTS = [53, 80, 443, 4789]
OUTER = {
    4: (ip_address("172.30.0.1"), ip_address("172.30.0.2")),
    6: (ip_address("fc00::1"), ip_address("fc00::2")),
}


def body(rng: random.Random, protocol: int) -> bytes:
    ports = rng.choice(PORTS), rng.choice(PORTS)
    if protocol == 17:
        return udp(*ports, bytes(40))
    return struct.pack("!HHIIBBHHH", *ports, 1, 2, 0x50, 2, 0, 0, 0) + bytes(20)


def with_options(packet: bytes) -> bytes:
    """An IPv4 packet with eight bytes of options."""
    length = int.from_bytes(packet[2:4], "big") + 8
    return b"\x47" + packet[1:2] + length.to_bytes(2, "big") + packet[4:20] + b"\x01" * 8 + packet[20:]


def later_fragment(packet: bytes) -> bytes:
    return packet[:6] + b"\x00\x10" + packet[8:]


def inner_packets(rng: random.Random) -> list[bytes]:
    found = []
    for _ in range(40):
        ends, protocols = rng.choice([(FOUR, (1, 6, 17, 132)), (SIX, (58, 6, 17, 132))])
        protocol = rng.choice(protocols)
        packet = ip(rng.choice(ends), rng.choice(ends), protocol, body(rng, protocol))
        if ends is FOUR:
            packet = rng.choice([packet, packet, with_options(packet), later_fragment(packet)])
        found.append(packet)
    return found


def wrapped(rng: random.Random, packet: bytes) -> bytes:
    ends = OUTER[rng.choice((4, 6))]
    if rng.random() < 0.5:
        return ip(*ends, 4 if packet[0] >> 4 == 4 else 41, packet)
    return ip(*ends, 17, udp(5, 8472, b"\x08\0\0\0\0\0\x07\0" + ethernet(packet)))


def numbered(packets: Iterable[bytes]) -> list[bytes]:
    """Frames whose numbers stand in their sender's address."""
    return [
        frame[:6] + b"\x02\0\0\0" + number.to_bytes(2, "big") + frame[12:]
        for number, frame in enumerate(map(ethernet, packets))
    ]


def number(frame: bytes) -> int:
    return int.from_bytes(frame[10:12], "big")


def save(path: Path, frames: Iterable[bytes]) -> None:
    pieces = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    pieces += [struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames]
    path.write_bytes(b"".join(pieces))


def by_tcpdump(path: Path, expression: str) -> set[int]:
    command = ["tcpdump", "-r", str(path), "-w", "-", expression]
    said = subprocess.run(command, capture_output=True)
    if b"expression rejects all packets" in said.stderr:
        return set()
    said.check_returncode()
    found = said.stdout
    numbers, at = set(), 24
    while at < len(found):
        length = int.from_bytes(found[at + 8 : at + 12], "little")
        numbers.add(number(found[at + 16 :]))
        at += 16 + length
    return numbers


def random_expression(rng: random.Random, depth: int = 3) -> str:
    choice = rng.random()
    if depth and choice < 0.45:
        words = [random_expression(rng, depth - 1), rng.choice(("and", "or")), random_expression(rng, depth - 1)]
        text = " ".join(words)
        return f"({text})" if rng.random() < 0.5 else text
    if depth and choice < 0.6:
        return f"not {random_expression(rng, 0)}"
    side = rng.choice(("", "src ", "dst "))
    port = rng.choice(PORTS)
    simple = [
        rng.choice(("tcp", "udp", "sctp", "icmp", "icmp6", "ip", "ip6")),
        f"proto {rng.choice((1, 6, 17, 58, 132))}",
        f"{side}host {rng.choice(FOUR + SIX)}",
        f"{side}net {rng.choice(('10.1.0.0/16', '10.0.0.0/8', '0.0.0.0/1', '2001:db8::/32', '2001:db8:1::/48'))}",
        f"{side}port {port}",
        f"port {port} or {rng.choice(PORTS)}",
        f"{side}portrange {port}-{port + 300}",
        f"{rng.choice(('tcp', 'udp'))} {side}port {port}",
    ]
    return rng.choice(simple)


@pytest.mark.kernel
def test_a_filter_takes_what_tcpdump_takes_bare_and_in_tunnels(wire: str, tmp_path: Path) -> None:
    rng = random.Random(4)
    inner = inner_packets(rng)
    outer = [wrapped(rng, packet) for packet in inner]
    frames = numbered([*inner, *outer])
    whole, within = tmp_path / "all.pcap", tmp_path / "inner.pcap"
    save(whole, frames)
    save(within, frames[: len(inner)])
    with netns.opened(wire) as descriptor:
        sender = netns.run(descriptor, packet_socket)
    taken = 0
    with sender:
        sender.bind(("one", 0))
        for _ in range(100):
            text = random_expression(rng)
            expected = by_tcpdump(whole, text)
            expected |= {len(inner) + one for one in by_tcpdump(within, text)}
            found = passed(wire, sender, frames, text)
            assert found == expected, text
            assert passed(wire, sender, frames, str(parse(text))) == expected, text
            taken += len(found)
    assert 0.1 < taken / (100 * len(frames)) < 0.9


def passed(wire: str, sender: socket.socket, frames: list[bytes], text: str) -> set[int]:
    """The numbers of the frames that a filter takes of those sent."""
    last = numbered([ip(FOUR[0], FOUR[1], 99, b"")])[0]
    end = b"\xff" * 6 + b"\x02\xee\xee\xee\xff\xff" + last[12:]
    with netns.opened(wire) as descriptor:
        capture = netns.run(descriptor, packet_socket)
    with capture:
        attach(capture, compiled(Either(Carries("proto 99", (99,)), parse(text)), 60))
        capture.settimeout(PATIENCE)
        for frame in (*frames, end):
            sender.send(frame)
        found: set[int] = set()
        while True:
            data, address = capture.recvfrom(2000)
            assert len(data) <= 60
            if address[2] == 4:  # PACKET_OUTGOING
                continue
            if data[:6] == b"\xff" * 6:
                return found
            found.add(number(data))


@pytest.mark.kernel
def test_long_filters_work_and_too_long_ones_are_refused(wire: str) -> None:
    hosts = [ip_address("10.9.0.0") + at for at in range(90)]
    wanted = of_addresses([*hosts, FOUR[0]])
    frames = numbered(
        [ip(FOUR[0], FOUR[3], 17, udp(1, 2, bytes(60))), ip(FOUR[1], FOUR[3], 17, udp(1, 2, bytes(60)))]
    )
    with netns.opened(wire) as descriptor:
        sender = netns.run(descriptor, packet_socket)
    with sender:
        sender.bind(("one", 0))
        assert passed(wire, sender, frames, str(wanted)) == {0}
    with pytest.raises(InvalidInput, match="instructions"):
        compiled(of_addresses([*SIX * 40]), 60)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "something is missing"),
        ("tcp port", "no value follows 'port'"),
        ("port http", "'http' is no number from 0 to 65535"),
        ("port " + "9" * 5000, "is no number from 0 to 65535"),
        ("port 70000", "'70000' is no number"),
        ("host", "no value follows"),
        ("net 10.0.0.1/8", "has host bits set"),
        ("(tcp or udp", "parenthesis"),
        ("tcp)", "')' is not expected"),
        ("tcp udp", "'udp' is not expected"),
        ("ether host 1", "'ether' says nothing here"),
        ("src proto 6", "says nothing here"),
        ("port 1-3", "portrange 1-3"),
        ("host web", "web"),
        ("tcp and " * 300 + "tcp", "more than 400 words"),
    ],
)
def test_what_is_no_filter_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match="--filter") as error:
        parse(text)
    assert said in error.value.message


def test_names_stand_for_their_addresses() -> None:
    found = parse("host shop/web and port 80", lambda name: {"shop/web": (FOUR[0], SIX[0])}[name])
    assert str(found) == "net 10.1.0.1/32 or net 2001:db8::1/128 and portrange 80-80"
    assert [str(net) for net in nets(found)] == ["10.1.0.1/32", "2001:db8::1/128"]


sides = st.sampled_from(["", "src", "dst"])
leaves: st.SearchStrategy[Expression] = st.one_of(
    st.builds(lambda address, side: Net(next(nets(of_addresses([address]))), side), st.ip_addresses(), sides),
    st.builds(
        lambda low, more, side: Ports(low, low + more, side), st.integers(0, 60000), st.integers(0, 5000), sides
    ),
    st.integers(0, 255).map(lambda one: Carries(f"proto {one}", (one,))),
)


@given(
    st.recursive(leaves, lambda inner: st.one_of(st.builds(Either, inner, inner, st.booleans()), inner.map(Not)))
)
def test_a_filter_as_text_is_the_same_filter(expression: Expression) -> None:
    text = str(expression)
    if "not not" in text:
        return
    assert parse(text) == expression
