"""Probes that show whether a tunnel's packets survive the offloads of the NIC below, and what answers mean.

A probe goes through the overlay to another node's kernel, to a port that nobody listens at, and the kernel's
refusal shows that it arrived intact: of a packet with a wrong checksum no kernel takes notice. UDP is refused by
ICMPv6, whose checksum kernels compute themselves, so the answer does not depend on the other node's NIC.
Segmentation takes TCP, which is refused by a reset (RFC 9293, section 3.10.7.1); that says how far the segment
reached that it answers.
"""

import random
import socket
import struct
from ipaddress import IPv6Address

import msgspec

from podway.api.addresses import Family
from podway.kernel.offload import Probe, Work
from podway.probe.packet import (
    ETHERNET_HEADER,
    ETHERTYPE_IPV6,
    IP_HEADER,
    TCP_PSH,
    TCP_RST,
    IcmpError,
    Tcp,
    Udp,
    internet_checksum,
    parse_ethernet,
)

SEGMENT, SEGMENTS = 1000, 4
"""Bytes in a segment, and how many make up a burst: with headers they fit IPv6's least MTU."""

_TRANSPORT = ETHERNET_HEADER + IP_HEADER[Family.IPV6]
_PORTS = range(40000, 60000)
_SMALL = bytes(range(64))
_LARGE = bytes(range(250)) * (SEGMENT * SEGMENTS // 250)


class Path(msgspec.Struct, frozen=True):
    """Both ends of an overlay: link-local addresses and hardware addresses of the two nodes' devices."""

    source: IPv6Address
    source_mac: str
    destination: IPv6Address
    destination_mac: str


class Question(msgspec.Struct, frozen=True):
    """A probe, and what an intact one is answered with."""

    probe: Probe
    path: Path
    source_port: int
    port: int
    reached: int | None
    """The sequence number that a reset must acknowledge; None of UDP."""

    def answered_by(self, frame: bytes) -> bool:
        """Tell whether a frame is the other kernel's refusal of the whole probe."""
        packet = parse_ethernet(frame)
        if packet is None or packet.source != self.path.destination or packet.destination != self.path.source:
            return False
        match packet.transport:
            case IcmpError(meaning="port unreachable", quoted=quoted) if quoted and self.reached is None:
                return quoted.transport == Udp(self.source_port, self.port)
            case Tcp(source_port=self.port, destination_port=self.source_port) as tcp:
                return bool(tcp.flags & TCP_RST) and tcp.acknowledgement == self.reached
        return False


def udp_question(path: Path, work: Work) -> Question:
    """Return a question with a small UDP packet whose checksum is finished, or left to the device."""
    source_port, port = random.sample(_PORTS, 2)
    header = struct.pack("!HHHH", source_port, port, 8 + len(_SMALL), 0)
    return Question(_probe(path, socket.IPPROTO_UDP, header, 6, _SMALL, work), path, source_port, port, None)


def tcp_question(path: Path, work: Work) -> Question:
    """Return a question with TCP data: one segment, or with `segmentation` a burst left to the device to cut."""
    source_port, port = random.sample(_PORTS, 2)
    sequence = random.getrandbits(31)
    payload = _LARGE if work == "segmentation" else _SMALL
    # Without an ACK the reset acknowledges the data, where with one it would only repeat a number of ours.
    header = struct.pack("!HHIIBBHHH", source_port, port, sequence, 0, 5 << 4, TCP_PSH, 0xFFFF, 0, 0)
    probe = _probe(path, socket.IPPROTO_TCP, header, 16, payload, work)
    return Question(probe, path, source_port, port, sequence + len(payload))


def _probe(path: Path, protocol: int, header: bytes, checksum_at: int, payload: bytes, work: Work) -> Probe:
    length = len(header) + len(payload)
    ends = path.source.packed + path.destination.packed
    pseudo = ends + struct.pack("!II", length, protocol)
    if work == "none":
        checksum = internet_checksum(pseudo + header + payload) or 0xFFFF
    else:
        checksum = internet_checksum(pseudo) ^ 0xFFFF
    header = header[:checksum_at] + checksum.to_bytes(2, "big") + header[checksum_at + 2 :]
    ethernet = bytes.fromhex((path.destination_mac + path.source_mac).replace(":", ""))
    ip = struct.pack("!IHBB", 6 << 28, length, protocol, 64) + ends
    return Probe(
        ethernet + ETHERTYPE_IPV6.to_bytes(2, "big") + ip + header + payload,
        work,
        transport=_TRANSPORT,
        checksum=_TRANSPORT + checksum_at,
        payload=_TRANSPORT + len(header),
        segment=SEGMENT if work == "segmentation" else 0,
    )
