"""What one trace holds open on one node: captures in some namespaces, and the sockets that send its probe."""

import contextlib
import random
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from podway.api.addresses import Address, Family
from podway.kernel import netns
from podway.probe.build import Protocol, build
from podway.probe.capture import NODE_SNAP, Capture, Frame
from podway.probe.facts import namespace
from podway.probe.filter import capture_filter

_T = TypeVar("_T")

_BUFFER = 1 << 20
_LARGEST = 65535
_QUIET_PORTS = range(61000, 65000)
"""Above Linux's ephemeral ports (net.ipv4.ip_local_port_range)."""


class Prepared(msgspec.Struct, frozen=True):
    """A probe that can be sent: its own address and port (with ICMP, the identifier), and the port it is for."""

    source: Address
    source_port: int
    port: int


class Session:
    """One trace on one node; `mark` is the trace's. A namespace is given by its path, empty for our own."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._captures: dict[str, Capture] = {}
        self._sockets = contextlib.ExitStack()
        self._raw: socket.socket | None = None
        self._prepared: Prepared | None = None
        self._protocol = Protocol.ICMP
        self._destination: Address | None = None
        self._port = 0

    def prepare(self, path: str, protocol: Protocol, destination: Address, port: int) -> Prepared:
        """Make ready to send a probe from a namespace: its address as the kernel chooses it, and a free port.

        `port` is the destination's; 0 draws one on which hardly anybody listens.

        The port stays taken until the session is closed, so no connection of a user's gets it meanwhile.
        Raises OSError (say, ENETUNREACH), InvalidInput if the namespace is gone.
        """
        self._protocol, self._destination = protocol, destination
        self._port = port or random.choice(_QUIET_PORTS)
        self._prepared = _inside(path, self._open)
        return self._prepared

    def capture(self, path: str, key: str, port: int, *, whole: bool) -> None:
        """Begin to capture the trace's packets in a namespace, whole ones or their beginning.

        `port` is the probe's own. What is captured is handed out under `key`. Raises OSError, InvalidInput.
        """
        snap = {} if whole else {"snap": NODE_SNAP}
        program = capture_filter(port, self._mark, **snap)
        if key not in self._captures:
            self._captures[key] = _inside(path, lambda: Capture(program, buffer=_BUFFER))

    def send(self, size: int) -> None:
        """Send the probe that was prepared; `size` is the whole packet's, in bytes. Raises OSError."""
        if self._raw is None or self._prepared is None or self._destination is None:
            raise ValueError("a probe is prepared before it is sent")
        packet = build(
            self._protocol,
            self._prepared.source,
            self._destination,
            mark=self._mark,
            source_port=self._prepared.source_port,
            port=self._port,
            size=size,
        )
        self._raw.sendto(packet, (str(self._destination), 0))

    def collect(self) -> dict[str, list[Frame]]:
        """Return what was captured since this was last asked, by key."""
        return {key: list(capture.frames(_LARGEST)) for key, capture in self._captures.items()}

    def close(self) -> None:
        """End everything; this may wait for an RCU grace period."""
        self._sockets.close()
        for capture in self._captures.values():
            capture.close()
        self._captures.clear()

    def _open(self) -> Prepared:
        """Open the sockets; runs inside the sender's namespace."""
        if self._destination is None:
            raise ValueError("a probe has a destination")
        family = Family.of(self._destination)
        # Connected, it takes the answers of a UDP probe, which would else be refused as nobody's.
        datagram = self._keep(socket.socket(family.af, socket.SOCK_DGRAM))
        datagram.connect((str(self._destination), self._port))
        source, own = datagram.getsockname()[:2]
        match self._protocol:
            case Protocol.UDP:
                pass
            case Protocol.TCP:
                holder = self._keep(socket.socket(family.af, socket.SOCK_STREAM))
                holder.bind((source, 0))
                own = holder.getsockname()[1]
            case Protocol.ICMP:
                own = int.from_bytes(self._mark[4:6], "big")
        # IPPROTO_RAW sends whole packets and receives nothing (man 7 raw).
        self._raw = self._keep(socket.socket(family.af, socket.SOCK_RAW, socket.IPPROTO_RAW))
        return Prepared(ip_address(source), own, self._port)

    def _keep(self, sock: socket.socket) -> socket.socket:
        return self._sockets.enter_context(sock)


def _inside(path: str, function: Callable[[], _T]) -> _T:
    with namespace(path) as descriptor:
        return netns.run(descriptor, function)
