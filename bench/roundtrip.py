"""Round trips between pods, as ratios to the round trip between their nodes."""

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from bench.labs import Lab, inside, lab
from bench.report import Row, Section
from bench.samples import median, us
from podway.errors import LabError
from podway.lab import names, state

ROUNDS = 9
SECONDS = 2
STREAM_ROUNDS = 3
STREAM_SECONDS = 1.0
PORT = 11111
STREAM_PORT = 5001
CHUNK = 1 << 20
CORE = min(os.sched_getaffinity(0))

_MEDIAN = re.compile(r"percentile 50\.0+ =\s*([\d.]+)")


class Path(msgspec.Struct, frozen=True):
    """From one namespace to an address in another."""

    name: str
    source: str
    target: str
    address: str


BASE, SAME, ACROSS = "node to node", "pod to pod on one node", "pod to pod across nodes"
TARGETS = {SAME: 1.15, ACROSS: 1.25}


def measure() -> Section:
    with lab(nodes=2) as cluster:
        paths = _paths(cluster)
        trips: dict[str, list[float]] = defaultdict(list)
        with contextlib.ExitStack() as servers:
            for path in {path.target: path for path in paths}.values():
                servers.enter_context(_server(path))
            for number in range(-1, ROUNDS):
                for path in _rotated(paths, number):
                    trip = _ping_pong(path)
                    if number >= 0:  # the first round warms up
                        trips[path.name].append(trip)
        streams: dict[str, list[float]] = defaultdict(list)
        for number in range(STREAM_ROUNDS):
            for path in _rotated(paths, number):
                streams[path.name].append(_stream(path))
    base = median(trips[BASE])
    rows = [Row(BASE, _words(trips[BASE]))]
    for name, target in TARGETS.items():
        ratio = median(trips[name]) / base
        words = f"{_words(trips[name])}; ratio {ratio:.2f}"
        rows.append(Row(name, words, f"at most {target} of {BASE}", ratio <= target))
    rows += [
        Row(f"one TCP stream, {name}", f"{median(rates) * 8 / 1e9:.1f} Gbit/s") for name, rates in streams.items()
    ]
    return Section(
        "Round trip and throughput",
        f"sockperf ping-pong over TCP, client and server pinned to one core (core {CORE}), {ROUNDS} interleaved "
        f"rounds of {SECONDS} s after one to warm up: median of the rounds' medians, full round trip. Node to "
        f"node is over the segment that joins the nodes. Streams: {STREAM_ROUNDS} interleaved rounds of "
        f"{STREAM_SECONDS:g} s by a sender and a receiver in Python, not pinned; for information.",
        tuple(rows),
    )


def _paths(cluster: Lab) -> tuple[Path, ...]:
    one, two = (names.node_netns(cluster.name, node) for node in cluster.nodes)
    far = state.load(cluster.name).addresses("node2")[0].ip
    client, near = cluster.run_pod("client", "node1"), cluster.run_pod("near", "node1")
    away = cluster.run_pod("away", "node2")
    return (
        Path(BASE, one, two, str(far)),
        Path(SAME, client.netns, near.netns, near.address),
        Path(ACROSS, client.netns, away.netns, away.address),
    )


def _rotated(paths: tuple[Path, ...], number: int) -> tuple[Path, ...]:
    turn = number % len(paths)
    return paths[turn:] + paths[:turn]


@contextlib.contextmanager
def _server(path: Path) -> Iterator[None]:
    command = ["taskset", "-c", str(CORE), "sockperf", "server", "--tcp", "-i", path.address, "-p", str(PORT)]
    server = inside(path.target, lambda: subprocess.Popen(command, stdout=subprocess.DEVNULL))
    try:
        _wait_listening(path, server)
        yield
    finally:
        server.kill()
        server.wait()


def _wait_listening(path: Path, server: "subprocess.Popen[bytes]") -> None:
    local = f"{int.from_bytes(socket.inet_aton(path.address), 'little'):08X}:{PORT:04X}"

    def listening() -> bool:
        with open("/proc/thread-self/net/tcp", encoding="ascii") as table:
            return any(local in line and " 0A " in line for line in table)

    while not inside(path.target, listening):
        if server.poll() is not None:
            raise LabError(f"sockperf server ended with status {server.returncode}")
        time.sleep(0.02)


def _ping_pong(path: Path) -> float:
    """Return the median round trip in seconds."""
    command = ["taskset", "-c", str(CORE), "sockperf", "ping-pong", "--tcp", "--full-rtt"]
    command += ["-i", path.address, "-p", str(PORT), "-t", str(SECONDS)]
    done = inside(path.source, lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    found = _MEDIAN.search(done.stdout)
    if not found:
        raise LabError(f"sockperf {path.name}: no result: {done.stdout}{done.stderr}")
    return float(found[1]) / 1e6


def _stream(path: Path) -> float:
    """Return the rate in bytes a second at which one TCP connection carries data."""
    listener = inside(path.target, lambda: socket.create_server((path.address, STREAM_PORT)))
    received = 0

    def receive() -> None:
        nonlocal received
        buffer = bytearray(CHUNK)
        with listener.accept()[0] as connection:
            while size := connection.recv_into(buffer):
                received += size

    receiver = threading.Thread(target=receive, daemon=True)
    with listener, inside(path.source, lambda: socket.create_connection((path.address, STREAM_PORT))) as sender:
        receiver.start()
        chunk = bytes(CHUNK)
        begun = time.monotonic()
        while time.monotonic() < begun + STREAM_SECONDS:
            sender.sendall(chunk)
        sender.shutdown(socket.SHUT_WR)
        receiver.join()
        return received / (time.monotonic() - begun)


def _words(trips: list[float]) -> str:
    return f"{us(median(trips))} ({us(min(trips))} to {us(max(trips))})"
