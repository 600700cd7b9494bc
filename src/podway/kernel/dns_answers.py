"""Answers of DNS that the flow engine hands to the agent before, or as, pods get them (podway/bpf/flow/names.h).

What is held is sent into the pod's link by a packet socket once its names are in the maps, past the link's queue
and programs, which have had it already.
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from ipaddress import ip_address
from typing import NamedTuple

from podway.api.addresses import Address, Family
from podway.errors import KernelError
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_events import Records
from podway.kernel.bpf.flow_layout import ANSWER, LEARNED_NAME, Answer, pack_address, unpack_address
from podway.kernel.bpf.flow_survey import busy
from podway.policy.maps import Prefix
from podway.policy.names import Bearer

_ETHERNET = struct.Struct("!6s6sH")
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_NEXT_HEADERS = (0, 43, 60)
"""IPv6 extension headers that may stand ahead of the upper one: hop-by-hop, routing, destination options."""
_UDP = 17
_TIME = struct.Struct("=Q")
_CHECKSUM = struct.Struct("!H")


class Heard(NamedTuple):
    """A packet to a pod from a resolver, and the message of DNS in it.

    `pod` is its address, `at` when it came (CLOCK_MONOTONIC, seconds); `held` tells that it has to be given it.
    """

    pod: Address
    at: float
    held: bool
    packet: bytes
    message: bytes | None


class DnsAnswers:
    """Reads the answers of one engine, and gives them to pods."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        """Take the maps of an engine, by their descriptors, which stay the caller's. Raises KernelError."""
        self._flows = os.dup(maps["flows"])
        self._ring = Records(maps["answers"], ANSWER.size)
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            self._socket.setblocking(False)
        except OSError as error:
            self._ring.close()
            os.close(self._flows)
            raise KernelError("open a packet socket", error.errno or 0) from error

    @property
    def fd(self) -> int:
        """A descriptor that is readable when answers wait."""
        return self._ring.fd

    def read(self) -> list[Heard]:
        """Return what waits, and give back its room."""
        data = self._ring.peek()
        self._ring.advance()
        return list(self._heard(data))

    @staticmethod
    def _heard(data: bytes) -> Iterator[Heard]:
        for at in range(0, len(data), ANSWER.size):
            found = Answer(*ANSWER.unpack(data[at : at + ANSWER.size]))
            packet = found.packet[: found.length]
            to = ip_address(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])
            yield Heard(to, found.time / 1e9, bool(found.held), packet, message_in(packet))

    def in_use(self, addresses: Set[Prefix]) -> frozenset[Prefix]:
        """Return those of some addresses to or from which a connection is open. Raises KernelError."""
        wanted = {_packed(address): address for address in addresses}
        return frozenset(wanted[address] for address in busy(self._flows, wanted.keys(), time.monotonic_ns()))

    def give(self, heard: Heard, link: str, hardware: str) -> None:
        """Let a pod have an answer, by the name of its link and its own link address. Raises KernelError."""
        kind = _ETH_P_IPV6 if heard.packet[0] >> 4 == 6 else _ETH_P_IP
        towards = bytes.fromhex(hardware.replace(":", ""))
        frame = _ETHERNET.pack(towards, bytes([2, 0, 0, 0, 0, 1]), kind) + completed(heard.packet)
        try:
            self._socket.sendto(frame, (link, kind))
        except OSError as error:
            raise KernelError(f"send into {link}", error.errno or errno.EIO) from error

    def close(self) -> None:
        """Let go of the ring."""
        self._socket.close()
        self._ring.close()
        os.close(self._flows)


def upper(packet: bytes) -> tuple[int, int]:
    """Return the protocol of a packet's upper header and where that begins; protocol 0 if there is none."""
    if packet[0] >> 4 == 4:
        return packet[9], (packet[0] & 15) * 4
    protocol, at = packet[6], 40
    while protocol in _NEXT_HEADERS and at + 2 <= len(packet):
        protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
    return (protocol, at) if at + 8 <= len(packet) else (0, at)


def message_in(packet: bytes) -> bytes | None:
    """Return the message of DNS in a datagram of UDP; None if it is no datagram.

    A segment of TCP tells nothing: where it begins in its stream is for the receiver to say (by its window, and by
    TCP_MAXSEG), so a pod could have it begin within an answer, at what only looks like one.
    """
    protocol, at = upper(packet)
    return packet[at + 8 :] if protocol == _UDP else None


def completed(packet: bytes) -> bytes:
    """Return a packet with its whole checksum: what comes from a pod of this machine has but a part of it, which a
    device would complete (CHECKSUM_PARTIAL, include/linux/skbuff.h). Any other stays as it is, right or wrong."""
    protocol, at = upper(packet)
    where = at + 6
    if protocol != _UDP or where + 2 > len(packet):
        return packet
    ends = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    part = _sum(ends + protocol.to_bytes(2, "big") + (len(packet) - at).to_bytes(4, "big"))
    if _CHECKSUM.unpack_from(packet, where)[0] != part or _sum(part.to_bytes(2, "big") + packet[at:]) == 0xFFFF:
        return packet
    whole = 0xFFFF ^ _sum(packet[at:])  # with that part in its place, as the device would
    return packet[:where] + _CHECKSUM.pack(whole or 0xFFFF) + packet[where + 2 :]


def _sum(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit words (RFC 1071)."""
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return (number % 0xFFFF or 0xFFFF) if number else 0


class NameMaps:
    """What the maps say of resolvers and of names. Every method raises KernelError."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        """Take the maps of an engine, by their descriptors."""
        self._maps = maps

    def listen(self, resolvers: Iterable[Address], until: float) -> None:
        """Have answers of these resolvers, and of no others, held until a time (CLOCK_MONOTONIC, seconds)."""
        fd, wanted = self._maps["resolvers"], {pack_address(one) for one in resolvers}
        for gone in bpf.items(fd).keys() - wanted:
            bpf.delete(fd, gone)
        for one in wanted:
            bpf.insert(fd, one, _TIME.pack(int(until * 1e9)))

    def remember(self, until: Mapping[Bearer, float]) -> None:
        """Write down until when (CLOCK_MONOTONIC, seconds) addresses bear names; 0: they do not any more."""
        for bearer, end in until.items():
            entry = _entry(bearer)
            if end:
                bpf.insert(self._maps["names"], entry, _TIME.pack(int(end * 1e9)))
                continue
            try:
                bpf.delete(self._maps["names"], entry)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise

    def remembered(self) -> dict[Bearer, float]:
        """Return what was written down, by whichever agent."""
        found = {}
        for entry, value in bpf.items(self._maps["names"]).items():
            address, text = LEARNED_NAME.unpack(entry)
            bearer = Bearer(Prefix.host_of(unpack_address(address)), text.rstrip(b"\0").decode("ascii", "replace"))
            found[bearer] = _TIME.unpack(value)[0] / 1e9
        return found


def _entry(bearer: Bearer) -> bytes:
    return LEARNED_NAME.pack(_packed(bearer.address), bearer.name.encode("ascii", "replace"))


def _packed(address: Prefix) -> bytes:
    return pack_address(Family(address.version).network(address.number, address.length).network_address)
