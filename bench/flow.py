"""A steady stream of numbered UDP packets between two namespaces, so that loss is known to the packet."""

import contextlib
import socket
import struct
import threading
import time

import msgspec

from bench.labs import inside

_NUMBER = struct.Struct("!Q")
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 32 << 20
_PATIENCE = 0.5
"""Seconds that the last packets have to arrive."""


class Count(msgspec.Struct, frozen=True):
    """What became of a flow: packets, and the longest time in seconds in which none arrived."""

    sent: int
    received: int
    silence: float

    @property
    def lost(self) -> int:
        return self.sent - self.received


class Flow:
    """Packets from one namespace to an address of another, `rate` a second, while the block runs.

    `count` is there afterwards. Every packet that was due counts as sent, also one that the kernel refused.
    """

    def __init__(self, source: str, target: str, address: str, *, rate: int = 1000, port: int = 9000) -> None:
        self._rate = rate
        self._out = inside(source, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._in = inside(target, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        # A receiver that has to wait for its processor must not lose what the network delivered.
        self._in.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._in.bind((address, port))
        self._out.connect((address, port))
        self._in.settimeout(_PATIENCE)
        self._stop = threading.Event()
        self._sent = 0
        self._arrived: set[int] = set()
        self._silence = 0.0
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._receiver = threading.Thread(target=self._receive, daemon=True)

    def __enter__(self) -> "Flow":
        self._receiver.start()
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sender.join()
        self._receiver.join()
        self._out.close()
        self._in.close()
        self.count = Count(self._sent, len(self._arrived), self._silence)

    def _send(self) -> None:
        begun = time.monotonic()
        while not self._stop.is_set():
            due = int((time.monotonic() - begun) * self._rate)
            while self._sent < due:
                # What the kernel refuses will be missing at the other end, and that is what counts.
                with contextlib.suppress(OSError):
                    self._out.send(_NUMBER.pack(self._sent))
                self._sent += 1
            time.sleep(1 / self._rate)

    def _receive(self) -> None:
        last = time.monotonic()
        while True:
            try:
                packet = self._in.recv(_NUMBER.size)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            now = time.monotonic()
            self._silence = max(self._silence, now - last)
            last = now
            self._arrived.update(_NUMBER.unpack(packet))
