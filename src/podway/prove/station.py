"""A station: the sockets that verify holds open inside one namespace while it proves.

A socket stays in the namespace in which it was opened (man 7 network_namespaces), so one process can hold
stations in all nodes and pods and serve them from one loop. One packet socket sees every device of the
namespace, both ways.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from podway.api.addresses import Address, Family
from podway.errors import PodwayError
from podway.kernel import netns
from podway.prove.filter import attach, capture_filter, echo_filter
from podway.prove.packet import ETHERNET_HEADER, ICMP, Packet, checksum_fault, parse_ethernet, parse_ip
from podway.prove.world import NodePoint, Point

# include/uapi/linux/if_packet.h, if_ether.h, if_arp.h; asm-generic/socket.h; linux/in.h, in6.h
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_AUXDATA = 6, 8
_PACKET_OTHERHOST, _PACKET_OUTGOING = 3, 4
_TP_STATUS_CSUMNOTREADY = 1 << 3
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_MTU_DISCOVER = {
    Family.IPV4: (socket.IPPROTO_IP, 10),
    Family.IPV6: (socket.IPPROTO_IPV6, 23),
}
_PMTUDISC_PROBE = 3
"""Set DF and send by the device's MTU, whatever path MTU was learned before (man 7 ip)."""

_TIMESPEC = struct.Struct("@ll")
_AUXDATA = struct.Struct("=IIIHHHH")
_CAPTURE_BUFFER = 16 << 20
_SOCKET_BUFFER = 1 << 20
_BACKLOG = 1024
_NODE_SNAP = 384
"""Enough of a packet on a node for two tunnels, all headers and the tag: payloads are read at the ends."""


class PortTaken(PodwayError):
    """Somebody in a pod or node uses the probes' port: another one must be drawn."""


class Frame(msgspec.Struct, frozen=True):
    """One captured frame, not yet read."""

    time: int
    interface: str
    packet_type: int
    hardware: int
    offloaded: bool
    data: bytes


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


class Ends(msgspec.Struct):
    """The sockets of one family: they answer probes (`server`, `listener`) or ask (`client`, `echo`)."""

    server: socket.socket
    listener: socket.socket
    client: socket.socket
    echo: socket.socket

    @property
    def port(self) -> int:
        """The port that `client` sends from."""
        return int(self.client.getsockname()[1])

    def close(self) -> None:
        """Close the four sockets."""
        for sock in (self.server, self.listener, self.client, self.echo):
            sock.close()


class Station:
    """Sockets in one namespace.

    `ends` holds the families of which the point has an address that can be bound; `unusable` says of the
    others why not.
    """

    def __init__(self, point: Point, port: int, echo_id: int, magic: bytes) -> None:
        """Open everything. Raises InvalidInput if the namespace is gone, PortTaken, OSError."""
        self.point = point
        self.ends: dict[Family, Ends] = {}
        self.unusable: dict[Family, str] = {}
        self._netns = netns.open_path(point.netns) if point.netns else netns.current()
        try:
            self.capture = netns.run(self._netns, lambda: self._open(port, echo_id, magic))
        except BaseException:
            for ends in self.ends.values():
                ends.close()
            os.close(self._netns)
            raise

    def close(self) -> None:
        """Close everything."""
        self.capture.close()
        for ends in self.ends.values():
            ends.close()
        os.close(self._netns)

    def tcp_sockets(self, family: Family, count: int) -> list[socket.socket]:
        """Open this many TCP sockets here. Raises OSError."""
        return netns.run(self._netns, lambda: [_socket(family, socket.SOCK_STREAM) for _ in range(count)])

    def frames(self, size: int) -> Iterator[Frame]:
        """Take what was captured so far; `size` is the longest frame's, in bytes."""
        for data, ancillary, address in _received(self.capture, size):
            time, offloaded = 0, False
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(value)
                    time = seconds * 10**9 + nanoseconds
                elif level == _SOL_PACKET and kind == _PACKET_AUXDATA:
                    offloaded = bool(_AUXDATA.unpack(value)[0] & _TP_STATUS_CSUMNOTREADY)
            interface, _, packet_type, hardware, _ = address
            yield Frame(time, interface, packet_type, hardware, offloaded, data)

    def sighting(self, frame: Frame) -> Sighting | None:
        """Read a frame; None if it is no probe after all."""
        ethernet = frame.hardware in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)
        packet = parse_ethernet(frame.data) if ethernet else parse_ip(frame.data)
        if packet is None:
            return None
        outgoing = frame.packet_type == _PACKET_OUTGOING
        # A checksum that the sender left to its device is not there to be checked, and on its way out none is.
        fault = None
        if not outgoing and not frame.offloaded and not packet.tunnels:
            fault = checksum_fault(frame.data[ETHERNET_HEADER:] if ethernet else frame.data)
        return Sighting(
            frame.time,
            self.point.label,
            frame.interface,
            outgoing,
            frame.packet_type == _PACKET_OTHERHOST,
            packet,
            fault,
        )

    def dropped(self) -> int:
        """Return how many frames the capture lost since this was last asked."""
        value = self.capture.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", value)[1])

    def _open(self, port: int, echo_id: int, magic: bytes) -> socket.socket:
        for address in self.point.addresses:
            family = Family.of(address)
            try:
                self.ends[family] = _open_ends(address, port, echo_id)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise PortTaken(f"{self.point.label}: port {port} is taken") from error
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                self.unusable[family] = f"{address} cannot be bound: {error.strerror}"
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL))
        try:
            snap = {"snap": _NODE_SNAP} if isinstance(self.point, NodePoint) else {}
            attach(capture, capture_filter(port, magic, **snap))
            capture.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _CAPTURE_BUFFER)
            capture.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            capture.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            # It has captured since it was made: what came before the filter is nobody's business.
            for _ in _received(capture, 0):
                pass
        except BaseException:
            capture.close()
            raise
        return capture


def _received(capture: socket.socket, size: int) -> Iterator[tuple[bytes, list[Any], Any]]:
    """Take everything that waits: data cut to `size` bytes, ancillary data, address."""
    room = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_AUXDATA.size)
    while True:
        try:
            data, ancillary, _, address = capture.recvmsg(size, room)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENETDOWN:
                continue  # some device went down; the others are still heard
            raise
        yield data, ancillary, address


def _open_ends(address: Address, port: int, echo_id: int) -> Ends:
    family = Family.of(address)
    with contextlib.ExitStack() as stack:
        server, listener, client, echo = (
            stack.enter_context(_socket(family, kind, protocol))
            for kind, protocol in (
                (socket.SOCK_DGRAM, 0),
                (socket.SOCK_STREAM, 0),
                (socket.SOCK_DGRAM, 0),
                (socket.SOCK_RAW, ICMP[family]),
            )
        )
        attach(echo, echo_filter(family, echo_id))
        server.bind((str(address), port))
        listener.bind((str(address), port))
        listener.listen(_BACKLOG)
        # Not bound to the address: which source the kernel chooses is part of what is proved.
        client.bind(("", 0))
        stack.pop_all()
    return Ends(server, listener, client, echo)


def _socket(family: Family, kind: int, protocol: int = 0) -> socket.socket:
    sock = socket.socket(family.af, kind | socket.SOCK_NONBLOCK, protocol)
    if family is Family.IPV6 and kind != socket.SOCK_RAW:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind != socket.SOCK_STREAM:
        sock.setsockopt(*_MTU_DISCOVER[family], _PMTUDISC_PROBE)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SOCKET_BUFFER)
    return sock
