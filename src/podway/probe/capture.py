"""Capturing probes inside one network namespace: every device, both ways, and nothing but probes.

A socket stays in the namespace in which it was opened (man 7 network_namespaces), so one process can capture
in many at once. The filter runs in the kernel: what it does not pass is never copied.
"""

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from podway.probe.classic import attach
from podway.probe.packet import ETHERNET_HEADER, Packet, checksum_fault, parse_ethernet, parse_ip

# include/uapi/linux/if_packet.h, if_ether.h, if_arp.h; asm-generic/socket.h
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_AUXDATA = 6, 8
_PACKET_OTHERHOST, _PACKET_OUTGOING = 3, 4
_TP_STATUS_CSUMNOTREADY, _TP_STATUS_VLAN_VALID, _TP_STATUS_VLAN_TPID_VALID = 1 << 3, 1 << 4, 1 << 6
_ETH_P_8021Q = 0x8100
ETHERNET_KINDS = frozenset((1, 772))
"""Kinds of devices (ARPHRD_ETHER, ARPHRD_LOOPBACK) whose frames begin with an Ethernet header."""
_SO_TIMESTAMPNS, _SO_TIMESTAMPING = 35, 37
SO_RCVBUFFORCE = 33

# include/uapi/linux/net_tstamp.h
_SOF_TIMESTAMPING_RX_SOFTWARE, _SOF_TIMESTAMPING_SOFTWARE = 1 << 3, 1 << 4
_STAMPS_SECONDS = 0.5

_TIMESPEC = struct.Struct("@ll")
_AUXDATA = struct.Struct("=IIIHHHH")

NODE_SNAP = 384
"""Enough of a packet on a node for two tunnels, all headers and the tag: payloads are read at the ends."""


class Frame(msgspec.Struct, frozen=True):
    """One captured frame, not yet read. `length` is how long it was, of which `data` may be the beginning."""

    time: int
    interface: str
    packet_type: int
    hardware: int
    offloaded: bool
    data: bytes
    length: int = 0

    @property
    def outgoing(self) -> bool:
        """Whether it left by the device."""
        return self.packet_type == _PACKET_OUTGOING


class Sighting(msgspec.Struct, frozen=True):
    """One packet at one device. `time` is in nanoseconds since 1970, by the clock of the one kernel."""

    time: int
    point: str
    """Label of the node or pod."""
    interface: str
    outgoing: bool
    stray_mac: bool
    """It came in addressed to another device's hardware address."""
    packet: Packet
    checksum_fault: str | None

    @property
    def words(self) -> str:
        """Where and which way, for people."""
        way = "leaving by" if self.outgoing else "entering by"
        return f"{way} {self.interface} of {self.point}"


class Capture:
    """A packet socket with a filter, opened in the namespace of the calling thread.

    `buffer` is how many bytes of frames may wait until they are taken. Raises OSError.
    """

    def __init__(self, program: bytes, *, buffer: int) -> None:
        self._sock = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL)
        )
        try:
            attach(self._sock, program)
            self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            # It has captured since it was made: what came before the filter is nobody's business.
            for _ in self._received(0):
                pass
            self.dropped()
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the capture. This waits for an RCU grace period, some 20 ms."""
        self._sock.close()

    def frames(self, size: int) -> Iterator[Frame]:
        """Take what was captured so far; `size` is the longest frame's, in bytes."""
        for data, ancillary, address in self._received(size):
            stamp, offloaded, length, tagged = 0, False, len(data), b""
            for level, sort, value in ancillary:
                if level == socket.SOL_SOCKET and sort == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(value)
                    stamp = seconds * 10**9 + nanoseconds
                elif level == _SOL_PACKET and sort == _PACKET_AUXDATA:
                    status, length, _, _, _, tag, tpid = _AUXDATA.unpack(value)
                    offloaded = bool(status & _TP_STATUS_CSUMNOTREADY)
                    if status & _TP_STATUS_VLAN_VALID:  # the kernel keeps it beside the frame
                        kind = tpid if status & _TP_STATUS_VLAN_TPID_VALID else _ETH_P_8021Q
                        tagged, length = struct.pack("!HH", kind, tag), length + 4
            interface, _, packet_type, hardware, _ = address
            whole = data[:12] + tagged + data[12:] if tagged else data
            yield Frame(stamp, interface, packet_type, hardware, offloaded, whole, length)

    def dropped(self) -> int:
        """Return how many frames the capture lost since this was last asked."""
        value = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", value)[1])

    def _received(self, size: int) -> Iterator[tuple[bytes, list[Any], Any]]:
        """Take everything that waits: data cut to `size` bytes, ancillary data, address."""
        room = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_AUXDATA.size)
        while True:
            try:
                data, ancillary, _, address = self._sock.recvmsg(size, room)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENETDOWN:
                    continue  # some device went down; the others are still heard
                raise
            yield data, ancillary, address


def await_stamps() -> None:
    """Wait until packets are stamped when the kernel sees them, for half a second at most.

    To be called, in a namespace whose loopback is up, once a Capture has been made: the kernel begins to stamp a
    moment after somebody has asked for it (net/core/dev.c, net_enable_timestamp: a workqueue does it). Until then
    the time of a packet is when it was read, and of several captures that tells no order.
    """
    flags = _SOF_TIMESTAMPING_RX_SOFTWARE | _SOF_TIMESTAMPING_SOFTWARE  # with these none is made up
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, flags)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(_STAMPS_SECONDS)
        deadline = time.monotonic() + _STAMPS_SECONDS
        while time.monotonic() < deadline:
            sock.sendto(b"", sock.getsockname())
            _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(3 * _TIMESPEC.size))
            if any(sort == _SO_TIMESTAMPING for _, sort, _ in ancillary):
                return
            time.sleep(0.001)


def sighting(frame: Frame, point: str) -> Sighting | None:
    """Read a frame that was captured at the point of this label; None if it is no probe after all."""
    ethernet = frame.hardware in ETHERNET_KINDS
    packet = parse_ethernet(frame.data) if ethernet else parse_ip(frame.data)
    if packet is None:
        return None
    # A checksum that the sender left to its device is not there to be checked, and on its way out none is.
    fault = None
    if not frame.outgoing and not frame.offloaded and not packet.tunnels:
        fault = checksum_fault(frame.data[ETHERNET_HEADER:] if ethernet else frame.data)
    return Sighting(
        frame.time,
        point,
        frame.interface,
        frame.outgoing,
        frame.packet_type == _PACKET_OTHERHOST,
        packet,
        fault,
    )
