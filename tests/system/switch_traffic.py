"""Traffic between pods that notices whatever a switch does to it: numbered packets, and open TCP connections.

Everything runs in this process: a socket belongs to the namespace in which it was opened.
"""

import contextlib
import errno
import itertools
import json
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

from podway.api.addresses import Address
from podway.kernel import netns
from podway.lab import names
from tests.patience import PATIENCE
from tests.system.system_lab import PodUnderTest, SystemLab

RATE = 1000
"""Packets a second, over all flows."""

_PORT = 7000
_NUMBER = struct.Struct("!I")


class End(Protocol):
    """Who takes part: a pod on a node, by the path of its network namespace, with its addresses."""

    @property
    def node(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def addresses(self) -> Sequence[Address]: ...


def opened(pod: End, address: Address, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    """Open a socket of an address' family in a pod."""
    return _opened(pod.path, address, kind)


def in_node(lab: SystemLab, node: str, address: Address) -> socket.socket:
    """Open a UDP socket of an address' family on a node of a lab."""
    return _opened(str(netns.path_of(names.node_netns(lab.name, node))), address, socket.SOCK_DGRAM)


def _opened(path: str, address: Address, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with netns.opened(path) as fd:
        return netns.run(fd, partial(socket.socket, family, kind))


@contextlib.contextmanager
def bare(lab: SystemLab, pods: Sequence[PodUnderTest]) -> Iterator[list[str]]:
    """Give a list that holds, after the block, the pods' packets that left the first one's node bare."""
    found: list[str] = []
    expression = " or ".join(f"host {address}" for pod in pods for address in pod.addresses)
    node = str(netns.path_of(names.node_netns(lab.name, pods[0].node)))
    command = ["nsenter", f"--net={node}", "tcpdump", "-i", "eth0", "-Q", "out", "-l", "-n", expression]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        assert capture.stdout is not None
        assert capture.stderr is not None
        while "listening" not in capture.stderr.readline():
            pass
        try:
            yield found
        finally:
            time.sleep(0.2)
            capture.terminate()
            found += filter(None, capture.stdout.read().splitlines())


STRAGGLERS = 10.0
"""How long a packet may wait for a busy machine to take notice of it, in seconds."""


class Packets:
    """A numbered UDP packet a millisecond, from each pod to each other in turn, in every family."""

    def __init__(self, pods: Sequence[End]) -> None:
        self.sent = self.received = 0
        self.missing: dict[int, tuple[float, str]] = {}
        """Packets not seen yet by number: when they left, and which way."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._receivers: dict[Address, socket.socket] = {}
        self._flows: list[tuple[socket.socket, str, str]] = []
        for pod in pods:
            for address in pod.addresses:
                sock = opened(pod, address)
                sock.bind((str(address), _PORT))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                self._receivers[address] = sock
        for one, other in itertools.permutations(pods, 2):
            for source, target in itertools.product(one.addresses, other.addresses):
                if source.version == target.version:
                    way = f"{one.node} to {other.node} {target}"
                    self._flows.append((self._receivers[source], str(target), way))
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def __enter__(self) -> "Packets":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for sock in self._receivers.values():
            sock.close()

    def forget(self, lost: list[str]) -> list[str]:
        """Return what was lost, and count it no more."""
        with self._lock:
            self.missing = {number: one for number, one in self.missing.items() if _told(*one) not in lost}
        return lost

    def lost(self, patience: float = 1.0) -> list[str]:
        """Return what did not arrive, in words, of what was sent `patience` seconds ago or before."""
        time.sleep(patience)
        limit = time.monotonic() - patience
        deadline = time.monotonic() + STRAGGLERS
        while True:
            with self._lock:
                missing = [_told(at, way) for at, way in self.missing.values() if at < limit]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.05)

    def _send(self) -> None:
        begun = time.monotonic()
        for number, (sock, target, way) in enumerate(itertools.cycle(self._flows)):
            if (ahead := begun + number / RATE - time.monotonic()) > 0:
                time.sleep(ahead)
            if self._stop.is_set():
                return
            with self._lock:
                self.missing[number] = (time.monotonic(), way)
            try:
                sock.sendto(_NUMBER.pack(number), (target, _PORT))
            except OSError as error:
                # An ICMP error of a packet before: this one has not left.
                with self._lock:
                    self.missing[number] = (time.monotonic(), f"{way}: {error}")
            self.sent += 1

    def _receive(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in self._receivers.values():
                selector.register(sock, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in selector.select(timeout=0.1):
                    with contextlib.suppress(OSError):
                        (number,) = _NUMBER.unpack(key.fileobj.recv(64))  # type: ignore[union-attr]
                        with self._lock:
                            self.missing.pop(number, None)
                        self.received += 1


def _told(at: float, way: str) -> str:
    return f"{way} at {at:.3f}"


class Connections:
    """So many TCP connections between all pods, on each of which a word goes to and fro again and again."""

    def __init__(self, pods: Sequence[End], count: int) -> None:
        self.failures: list[str] = []
        self.rounds = 0
        self._stop = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket, str]] = []
        ways = [
            (one, other, target)
            for one, other in itertools.permutations(pods, 2)
            for target in other.addresses
            if any(source.version == target.version for source in one.addresses)
        ]
        for one, other, target in itertools.islice(itertools.cycle(ways), count):
            with opened(other, target, socket.SOCK_STREAM) as server:
                server.listen()
                client = opened(one, target, socket.SOCK_STREAM)
                client.settimeout(PATIENCE)
                client.connect((str(target), server.getsockname()[1]))
                answerer = server.accept()[0]
                answerer.settimeout(PATIENCE)
                self._pairs.append((client, answerer, f"{one.node} to {other.node} {target}"))
        self._thread = threading.Thread(target=self._talk)

    def __enter__(self) -> "Connections":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        for client, answerer, _ in self._pairs:
            client.close()
            answerer.close()

    def _talk(self) -> None:
        while not self._stop.wait(0.05):
            for client, answerer, way in self._pairs:
                try:
                    client.sendall(b"question")
                    assert answerer.recv(64) == b"question"
                    answerer.sendall(b"answer")
                    assert client.recv(64) == b"answer"
                except (OSError, AssertionError) as error:
                    self.failures.append(f"{way}: {error!r}")
                    return
            self.rounds += 1


def mtu_of(pod: PodUnderTest) -> int:
    """Return the MTU of a pod's own end."""
    return int(json.loads(pod.sh("ip -j link show eth0"))[0]["mtu"])


@contextlib.contextmanager
def larger_mtu(pod: PodUnderTest, mtu: int) -> Iterator[None]:
    """Raise the MTU of a pod's own end while the block runs, so that its host must refuse what does not fit."""
    before = mtu_of(pod)
    pod.sh(f"ip link set eth0 mtu {mtu}")
    try:
        yield
    finally:
        pod.sh(f"ip link set eth0 mtu {before}")


def send_whole(source: PodUnderTest, target: Address, size: int, receiver: socket.socket) -> int:
    """Send one UDP packet of `size` bytes, IP header included, that must not be fragmented.

    Returns 0 if it arrived, else the MTU that an ICMP error told the sender.
    """
    four = target.version == 4
    level, discover, receive_errors = (
        (socket.IPPROTO_IP, 10, 11) if four else (socket.IPPROTO_IPV6, 23, 25)
    )  # IP(V6)_MTU_DISCOVER, IP(V6)_RECVERR (linux/in.h, linux/in6.h)
    with opened(source, target) as sock:
        sock.setsockopt(level, discover, 3)  # PROBE: DF, and no heed of what was learned before
        sock.setsockopt(level, receive_errors, 1)
        sock.sendto(bytes(size - 8 - (20 if four else 40)), (str(target), receiver.getsockname()[1]))
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                return 0 * len(receiver.recv(65536, socket.MSG_DONTWAIT))
            with contextlib.suppress(BlockingIOError):
                _, extra, _, _ = sock.recvmsg(65536, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
                # struct sock_extended_err: errno, origin, type, code, pad, info, data (linux/errqueue.h)
                number, _, _, _, _, info, _ = struct.unpack_from("=IBBBBII", extra[0][2])
                assert number == errno.EMSGSIZE, number
                return int(info)
            time.sleep(0.01)
    raise AssertionError(f"a packet of {size} bytes to {target} neither arrived nor was refused")
