"""Steady streams of numbered UDP packets between pods, so that loss is known to the packet."""

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable

import msgspec

from bench.labs import RunningPod, inside

_NUMBER = struct.Struct("!Q")
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 32 << 20
_PATIENCE = 0.5
"""Seconds that the last packets have to arrive."""
_PORT = 9000


class Count(msgspec.Struct, frozen=True):
    """What became of the packets of one stream or of several.

    `doubled` arrived again, `late` after one that was sent later; `silence` is the longest time in seconds in
    which none of a stream arrived.
    """

    sent: int = 0
    received: int = 0
    doubled: int = 0
    late: int = 0
    silence: float = 0.0

    @property
    def lost(self) -> int:
        return self.sent - self.received

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.sent + other.sent,
            self.received + other.received,
            self.doubled + other.doubled,
            self.late + other.late,
            max(self.silence, other.silence),
        )


class _Arrivals:
    """What a receiver has seen of one stream."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._highest = -1
        self._doubled = 0
        self._late = 0
        self._silence = 0.0
        self._last = time.monotonic()

    def add(self, number: int) -> None:
        now = time.monotonic()
        self._silence = max(self._silence, now - self._last)
        self._last = now
        if number in self._numbers:
            self._doubled += 1
            return
        self._late += number < self._highest
        self._highest = max(self._highest, number)
        self._numbers.add(number)

    def count(self, sent: int) -> Count:
        return Count(sent, len(self._numbers), self._doubled, self._late, self._silence)


class Flows:
    """A stream of packets, `rate` a second, from each pair's first pod to its second, while the block runs.

    `count` is there afterwards. Every packet that was due counts as sent, also one that the kernel refused.
    """

    def __init__(self, pairs: Iterable[tuple[RunningPod, RunningPod]], *, rate: int) -> None:
        self._rate = rate
        self._sent = 0
        self._stop = threading.Event()
        self._outs: list[socket.socket] = []
        self._ins = selectors.DefaultSelector()
        self._arrivals: list[_Arrivals] = []
        for number, (source, target) in enumerate(pairs):
            self._outs.append(_socket(source))
            self._outs[-1].connect((target.address, _PORT + number))
            receiver = _socket(target)
            # A receiver that has to wait for its processor must not lose what the network delivered.
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            receiver.bind((target.address, _PORT + number))
            receiver.setblocking(False)
            self._arrivals.append(_Arrivals())
            self._ins.register(receiver, selectors.EVENT_READ, self._arrivals[-1])
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._receive, self._send)]

    def __enter__(self) -> "Flows":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for sock in (*self._outs, *(key.fileobj for key in self._ins.get_map().values())):
            sock.close()  # type: ignore[union-attr]
        self._ins.close()
        self.count = sum((each.count(self._sent) for each in self._arrivals), Count())

    def _send(self) -> None:
        begun = time.monotonic()
        while not self._stop.is_set():
            due = int((time.monotonic() - begun) * self._rate)
            for number in range(self._sent, due):
                packet = _NUMBER.pack(number)
                for sock in self._outs:
                    # What the kernel refuses will be missing at the other end, and that is what counts.
                    with contextlib.suppress(OSError):
                        sock.send(packet)
            self._sent = due
            time.sleep(1 / self._rate)

    def _receive(self) -> None:
        while True:
            ready = self._ins.select(_PATIENCE)
            if not ready and self._stop.is_set():
                return
            for key, _ in ready:
                _take(key.fileobj, key.data)  # type: ignore[arg-type]


def _take(receiver: socket.socket, arrivals: _Arrivals) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            arrivals.add(_NUMBER.unpack(receiver.recv(_NUMBER.size))[0])


def _socket(pod: RunningPod) -> socket.socket:
    return inside(pod.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
