"""A probe endpoint: the sockets that verify holds open inside one namespace while it proves.

A socket stays in the namespace in which it was opened (man 7 network_namespaces), so one process can hold
endpoints in all nodes and pods and serve them from one loop. One packet socket sees every device of the
namespace, both ways.
"""

import contextlib
import errno
import os
import socket

import msgspec

from podway.api.addresses import Address, Family
from podway.errors import PodwayError
from podway.kernel import netns
from podway.probe.capture import NODE_SNAP, SO_RCVBUFFORCE, Capture
from podway.probe.classic import attach
from podway.probe.filter import capture_filter, echo_filter
from podway.probe.packet import ICMP
from podway.prove.world import NodePoint, Point

# linux/in.h, in6.h
_MTU_DISCOVER = {
    Family.IPV4: (socket.IPPROTO_IP, 10),
    Family.IPV6: (socket.IPPROTO_IPV6, 23),
}
_PMTUDISC_PROBE = 3
"""Set DF and send by the device's MTU, whatever path MTU was learned before (man 7 ip)."""

_CAPTURE_BUFFER = 16 << 20
_SOCKET_BUFFER = 1 << 20
_BACKLOG = 1024


class PortTaken(PodwayError):
    """Somebody in a pod or node uses the probes' port: another one must be drawn."""


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


class ProbeEndpoint:
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

    def _open(self, port: int, echo_id: int, magic: bytes) -> Capture:
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
        snap = {"snap": NODE_SNAP} if isinstance(self.point, NodePoint) else {}
        return Capture(capture_filter(port, magic, **snap), buffer=_CAPTURE_BUFFER)


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
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _SOCKET_BUFFER)
    return sock
