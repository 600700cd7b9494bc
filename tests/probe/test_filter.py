"""The capture filter in the kernel: frames put on a wire by hand, and which of them pass."""

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from podway.api.addresses import Family
from podway.kernel import netns
from podway.probe.classic import attach
from podway.probe.filter import capture_filter, echo_filter
from podway.probe.packet import parse_ethernet
from tests.patience import PATIENCE
from tests.probe.test_packet import ethernet, ip, udp
from tests.probe.wire import packet_socket
from tests.verify.hand_cluster import run

pytestmark = pytest.mark.kernel

PORT, OTHER = 62000, 53
MAGIC = b"mAgIc678"
ONE, TWO = ip_address("192.0.2.1"), ip_address("192.0.2.2")
SIX, SEVEN = ip_address("2001:db8::6"), ip_address("2001:db8::7")
ENDS = {"4": (ONE, TWO), "6": (SIX, SEVEN)}
SYN, ACK, PUSH, RESET = 0x02, 0x10, 0x18, 0x14


MARK = int.from_bytes(MAGIC[:4], "big")


def tcp(sport: int, dport: int, flags: int, sequence: int = 1, acknowledged: int = 2) -> bytes:
    return struct.pack("!HHIIBBHHH", sport, dport, sequence, acknowledged, 0x50, flags, 0, 0, 0)


def echo(family: str, payload: bytes) -> tuple[int, bytes]:
    return (
        (1, struct.pack("!BBHHH", 8, 0, 0, 1, 1) + payload)
        if family == "4"
        else (
            58,
            struct.pack("!BBHHH", 128, 0, 0, 1, 1) + payload,
        )
    )


def error(family: str, quoted: bytes) -> bytes:
    protocol, head = (
        (1, struct.pack("!BBHI", 3, 4, 0, 1400))
        if family == "4"
        else (
            58,
            struct.pack("!BBHI", 2, 0, 0, 1400),
        )
    )
    return ip(*ENDS[family], protocol, head + quoted)


def fragment(data: bytes) -> bytes:
    """Make an IPv6 packet the first fragment of one."""
    body = struct.pack("!BBHI", data[6], 0, 1, 9) + data[40:]
    return data[:4] + struct.pack("!HB", len(body), 44) + data[7:40] + body


def bare(family: str) -> dict[str, tuple[bytes, bool]]:
    """Return packets of one family, and whether each is a probe's."""
    ends = ENDS[family]
    return {
        "udp to the port": (ip(*ends, 17, udp(9, PORT, b"x")), True),
        "udp from the port": (ip(*ends, 17, udp(PORT, 9, b"x")), True),
        "udp with the tag": (ip(*ends, 17, udp(9, OTHER, MAGIC + bytes(60))), True),
        "small udp with the tag, of a translated port": (ip(*ends, 17, udp(9, OTHER, MAGIC)), True),
        "udp of three bytes": (ip(*ends, 17, udp(9, OTHER, MAGIC[:3])), False),
        "other udp": (ip(*ends, 17, udp(9, OTHER, b"something else")), False),
        "syn": (ip(*ends, 6, tcp(9, PORT, SYN)), True),
        "data": (ip(*ends, 6, tcp(9, PORT, PUSH)), True),
        "a bare acknowledgement": (ip(*ends, 6, tcp(9, PORT, ACK)), False),
        "reset by the server": (ip(*ends, 6, tcp(PORT, 9, RESET)), True),
        "reset by the client": (ip(*ends, 6, tcp(9, PORT, RESET)), False),
        "syn with the mark": (ip(*ends, 6, tcp(9, OTHER, SYN, MARK, 0)), True),
        "answer to the mark": (ip(*ends, 6, tcp(OTHER, 9, SYN | ACK, 7, MARK + 1)), True),
        "syn beside the mark": (ip(*ends, 6, tcp(9, OTHER, SYN, MARK + 1, MARK)), False),
        "error about a syn with the mark": (error(family, ip(*ends, 6, tcp(9, OTHER, SYN, MARK, 0))), True),
        "other tcp": (ip(*ends, 6, tcp(9, OTHER, SYN)), False),
        "echo with the tag": (ip(*ends, *echo(family, MAGIC + bytes(60))), True),
        "other echo": (ip(*ends, *echo(family, b"12345678")), False),
        "error about a probe": (error(family, ip(*ends, 17, udp(9, PORT, b""))), True),
        "error about an echo of ours": (error(family, ip(*ends, *echo(family, MAGIC))), True),
        "error about other udp": (error(family, ip(*ends, 17, udp(9, OTHER, b"something"))), False),
    }


def frames() -> dict[str, tuple[bytes, bool]]:
    found: dict[str, tuple[bytes, bool]] = {}
    for inner in ENDS:
        for name, (packet, passes) in bare(inner).items():
            found[f"IPv{inner} {name}"] = (ethernet(packet), passes)
            ethertype = ethernet(packet)[12:14]
            for outer, ends in ENDS.items():
                around = f"IPv{inner} {name} in IPv{outer}"
                found[around] = (ethernet(ip(*ends, 4 if inner == "4" else 41, packet)), passes)
                vxlan = udp(5, 8472, b"\x08\0\0\0\0\0\x07\0" + ethernet(packet))
                found[f"{around} VXLAN"] = (ethernet(ip(*ends, 17, vxlan)), passes)
                found[f"{around} GRE"] = (ethernet(ip(*ends, 47, b"\0\0" + ethertype + packet)), passes)
    found["IPv6 fragment"] = (ethernet(fragment(bare("6")["udp to the port"][0])), True)
    found["ARP"] = (bytes(12) + b"\x08\x06" + bytes(28), False)
    return found


def test_probes_pass_and_nothing_else(wire: str) -> None:
    with netns.opened(wire) as descriptor:
        sender, capture = (netns.run(descriptor, packet_socket) for _ in range(2))
    with sender, capture:
        attach(capture, capture_filter(PORT, MAGIC, snap=200))
        capture.setblocking(False)
        sender.bind(("one", 0))
        wrong: dict[str, bool] = {}
        for name, (frame, passes) in frames().items():
            sender.send(frame)
            got = [data for data, kind in _received(capture) if kind != 4]
            if bool(got) is not passes:
                wrong[name] = bool(got)
            for data in got:
                assert data == frame[:200]
                packet = parse_ethernet(data)
                assert packet is not None, name
                assert len(packet.tunnels) == (1 if " in IPv" in name else 0), name
        assert wrong == {}


def test_echo_filter_passes_replies_with_the_id(wire: str) -> None:
    with netns.opened(wire) as descriptor:
        run(f"ip netns exec {wire.rpartition('/')[2]} ip link set lo up")
        raw = netns.run(descriptor, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
    with raw:
        attach(raw, echo_filter(Family.IPV4, 0x1234))
        raw.settimeout(PATIENCE)
        for number in (0x1234, 0x4321):
            body = struct.pack("!BBHHH", 8, 0, 0, number, 1)
            checksum = 0xFFFF - (0x0800 + number + 1)
            raw.sendto(body[:2] + struct.pack("!H", checksum) + body[4:], ("127.0.0.1", 0))
        data = raw.recv(100)
        assert (data[20], data[24:26]) == (0, b"\x12\x34")
        raw.settimeout(0.2)
        with pytest.raises(TimeoutError):
            raw.recv(100)


def _received(capture: socket.socket) -> Iterator[tuple[bytes, int]]:
    deadline = time.monotonic() + 0.02
    while time.monotonic() < deadline:
        try:
            data, address = capture.recvfrom(2000)
        except BlockingIOError:
            time.sleep(0.001)
            continue
        yield data, address[2]
