"""Ways from one namespace to an address in another: their round trips and throughput, measured in turn."""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from bench.labs import inside
from bench.report import Row
from bench.samples import median, us
from podway.errors import LabError

SECONDS = 1
STREAM_SECONDS = 2
PORT, STREAM_PORT = 11111, 5201
CORE = min(os.sched_getaffinity(0))

_MEDIAN = re.compile(r"percentile 50\.0+ =\s*([\d.]+)")


class Path(msgspec.Struct, frozen=True):
    """From one namespace to an address in another."""

    name: str
    source: str
    target: str
    address: str


class StreamEnd(msgspec.Struct, frozen=True):
    """What one end of iperf3's streams saw."""

    bits_per_second: float


class StreamEnds(msgspec.Struct, frozen=True):
    """Both ends of iperf3's streams."""

    sum_received: StreamEnd


class StreamResult(msgspec.Struct, frozen=True):
    """The part of iperf3's JSON that matters here."""

    end: StreamEnds


def round_trips(paths: Sequence[Path], rounds: int) -> Mapping[str, list[float]]:
    """Return the median round trips in seconds of each path, one a round, after a round to warm up."""
    with contextlib.ExitStack() as servers:
        for path in {path.target: path for path in paths}.values():
            servers.enter_context(ponger(path))
        return in_turn(paths, rounds, ping_pong, warm_up=1)


def streams(paths: Sequence[Path], rounds: int) -> Mapping[str, list[float]]:
    """Return the rates in bits a second at which one TCP connection carries data, one a round, of each path."""
    with contextlib.ExitStack() as servers:
        for path in {path.target: path for path in paths}.values():
            command = ["iperf3", "--server", "--bind", path.address, "--port", str(STREAM_PORT)]
            servers.enter_context(server(path, STREAM_PORT, command))
        return in_turn(paths, rounds, _stream)


def ponger(path: Path) -> contextlib.AbstractContextManager[None]:
    """Have a server of sockperf at a path's end while the block runs."""
    command = ["taskset", "-c", str(CORE), "sockperf", "server", "--tcp", "-i", path.address]
    return server(path, PORT, [*command, "-p", str(PORT)])


def how(rounds: int, stream_rounds: int) -> str:
    """Say how both are measured."""
    return (
        f"sockperf ping-pong over TCP, client and server pinned to one core (core {CORE}), {rounds} interleaved "
        f"rounds of {SECONDS} s after one to warm up: median of the rounds' medians, full round trip. "
        f"One TCP stream of iperf3, not pinned, {stream_rounds} interleaved rounds of {STREAM_SECONDS} s: median "
        "of what the receiver got."
    )


def trip_row(name: str, trips: Mapping[str, list[float]], base: str, most: float | None = None) -> Row:
    """Tell a path's round trip as ratio to the base's, and whether that is within the target, if there is one."""
    words = f"{us(median(trips[name]))} ({us(min(trips[name]))} to {us(max(trips[name]))})"
    if name == base:
        return Row(name, words)
    ratio = ratio_of(name, trips, base)
    words = f"{words}; ratio {ratio:.2f}"
    return Row(name, words) if most is None else Row(name, words, f"at most {most} of {base}", ratio <= most)


def stream_row(name: str, rates: Mapping[str, list[float]], base: str) -> Row:
    """Tell a path's throughput, beside the base's."""
    words = f"{median(rates[name]) / 1e9:.1f} Gbit/s"
    if name != base:
        words += f"; ratio {ratio_of(name, rates, base):.2f}"
    return Row(f"one TCP stream, {name}", words)


def ratio_of(name: str, samples: Mapping[str, list[float]], base: str) -> float:
    """Return the ratio of a path's median to the base's."""
    return median(samples[name]) / median(samples[base])


def in_turn(
    paths: Sequence[Path], rounds: int, measure: Callable[[Path], float], *, warm_up: int = 0
) -> Mapping[str, list[float]]:
    """Measure each path once a round, in an order that changes; return the samples by the paths' names."""
    samples: dict[str, list[float]] = defaultdict(list)
    for number in range(-warm_up, rounds):
        turn = number % len(paths)
        for path in (*paths[turn:], *paths[:turn]):
            sample = measure(path)
            if number >= 0:
                samples[path.name].append(sample)
    return samples


@contextlib.contextmanager
def server(path: Path, port: int, command: list[str]) -> Iterator[None]:
    """Have a command listen at a path's end while the block runs. Raises LabError."""
    process = inside(
        path.target,
        lambda: subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
    )
    try:
        _wait_listening(path, port, process)
        yield
    finally:
        process.kill()
        process.wait()


def _wait_listening(path: Path, port: int, server: "subprocess.Popen[bytes]") -> None:
    local = f"{int.from_bytes(socket.inet_aton(path.address), 'little'):08X}:{port:04X}"

    def listening() -> bool:
        with open("/proc/thread-self/net/tcp", encoding="ascii") as table:
            return any(local in line and " 0A " in line for line in table)

    while not inside(path.target, listening):
        if server.poll() is not None:
            raise LabError(f"{server.args!r} ended with status {server.returncode}")
        time.sleep(0.02)


def ping_pong(path: Path) -> float:
    """Return the median round trip in seconds, to a server of sockperf."""
    command = ["taskset", "-c", str(CORE), "sockperf", "ping-pong", "--tcp", "--full-rtt"]
    output = client(path, [*command, "-i", path.address, "-p", str(PORT), "-t", str(SECONDS)])
    found = _MEDIAN.search(output)
    if not found:
        raise LabError(f"sockperf {path.name}: no result: {output}")
    return float(found[1]) / 1e6


def _stream(path: Path) -> float:
    command = ["iperf3", "--client", path.address, "--port", str(STREAM_PORT), "--json"]
    output = client(path, [*command, "--time", str(STREAM_SECONDS)])
    return msgspec.json.decode(output, type=StreamResult).end.sum_received.bits_per_second


def client(path: Path, command: list[str]) -> str:
    """Run a command at a path's beginning; return what it printed. Raises LabError."""
    done = inside(path.source, lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)} ended with status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout
