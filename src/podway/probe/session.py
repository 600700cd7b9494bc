"""What one trace holds open on one node: captures in some namespaces, and the sockets that send its probe."""

import contextlib
import random
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from podway.api.addresses import Address, Family
from podway.errors import InvalidInput
from podway.kernel import netns
from podway.probe.build import Protocol, build
from podway.probe.capture import NODE_SNAP, Capture, Frame, await_stamps
from podway.probe.facts import namespace
from podway.probe.filter import capture_filter

_T = TypeVar("_T")

_BUFFER = 1 << 20
_LARGEST = 65535
_QUIET_PORTS = range(61000, 65000)
"""Above Linux's ephemeral ports (net.ipv4.ip_local_port_range)."""


class Prepared(msgspec.Struct, frozen=True):
    """A probe that can be sent. With ICMP, `source_port` is the echo's identifier, and `port` means nothing."""

    protocol: Protocol
    source: Address
    source_port: int
    destination: Address
    port: int


class Session:
    """One trace on one node; `mark` is the trace's. A namespace is given by its path, empty for our own."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._captures: dict[str, Capture] = {}
        self._sockets = contextlib.ExitStack()
        self._ready: tuple[Prepared, socket.socket] | None = None

    def prepare(self, path: str, protocol: Protocol, destination: Address, port: int) -> Prepared:
        """Make ready to send a probe from a namespace: its address as the kernel chooses it, and a free port.

        `port` is the destination's; 0 draws one on which hardly anybody listens. The own port stays taken
        until the session is closed, so no connection of a user's gets it meanwhile. Raises OSError (say,
        ENETUNREACH), InvalidInput if the namespace is gone.
        """
        self._ready = _inside(path, lambda: self._open(protocol, destination, port or random.choice(_QUIET_PORTS)))
        return self._ready[0]

    def capture(self, path: str, key: str, port: int, *, whole: bool) -> None:
        """Begin to capture the trace's packets in a namespace, whole ones or their beginning.

        `port` is the probe's own. What is captured is handed out under `key`. Raises OSError, InvalidInput.
        """
        snap = {} if whole else {"snap": NODE_SNAP}
        program = capture_filter(port, self._mark, **snap)
        if key not in self._captures:
            self._captures[key] = _inside(path, lambda: Capture(program, buffer=_BUFFER))
            await_stamps()

    def send(self, size: int) -> None:
        """Send the probe that was prepared; `size` is the whole packet's, in bytes.

        Raises InvalidInput if none was prepared or there is no such packet, OSError.
        """
        if self._ready is None:
            raise InvalidInput("no probe was prepared that could be sent")
        if not 0 <= size <= _LARGEST:
            raise InvalidInput(f"a packet of {size} bytes: IP allows up to {_LARGEST}")
        probe, raw = self._ready
        packet = build(
            probe.protocol,
            probe.source,
            probe.destination,
            mark=self._mark,
            source_port=probe.source_port,
            port=probe.port,
            size=size,
        )
        raw.sendto(packet, (str(probe.destination), 0))

    def collect(self) -> dict[str, list[Frame]]:
        """Return what was captured since this was last asked, by key."""
        return {key: list(capture.frames(_LARGEST)) for key, capture in self._captures.items()}

    def close(self) -> None:
        """End everything; this may wait for an RCU grace period."""
        self._sockets.close()
        for capture in self._captures.values():
            capture.close()
        self._captures.clear()

    def _open(self, protocol: Protocol, destination: Address, port: int) -> tuple[Prepared, socket.socket]:
        """Open the sockets; runs inside the sender's namespace."""
        af = Family.of(destination).af
        # Connected, it takes the answers of a UDP probe, which would else be refused as nobody's.
        datagram = self._keep(socket.socket(af, socket.SOCK_DGRAM))
        datagram.connect((str(destination), port))
        source, own = datagram.getsockname()[:2]
        if protocol is Protocol.TCP:
            holder = self._keep(socket.socket(af, socket.SOCK_STREAM))
            holder.bind((source, 0))
            own = holder.getsockname()[1]
        elif protocol is Protocol.ICMP:
            own = int.from_bytes(self._mark[4:6], "big")
        # IPPROTO_RAW sends whole packets and receives nothing (man 7 raw).
        raw = self._keep(socket.socket(af, socket.SOCK_RAW, socket.IPPROTO_RAW))
        return Prepared(protocol, ip_address(source), own, destination, port), raw

    def _keep(self, sock: socket.socket) -> socket.socket:
        return self._sockets.enter_context(sock)


def _inside(path: str, function: Callable[[], _T]) -> _T:
    with namespace(path) as descriptor:
        return netns.run(descriptor, function)
