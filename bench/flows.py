"""Records of flows: whether all are there, what they cost, and how soon they are found and shown by the console.

Real agents record what flows between two pods on two nodes. An agent that is stopped (SIGSTOP) records nothing,
while the engine goes on to tell: so the cost of recording is measured in turn, on the same pods.
"""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

import msgspec

from bench import paths
from bench.labs import Lab, inside, lab, podway
from bench.paths import PORT, Path, in_turn, ping_pong, ponger, ratio_of
from bench.report import Row, Section
from bench.samples import median, ms, us
from bench.talks import CONNECT_PORT, answering, command, connect_tool
from podway.api.kinds.network_policy import (
    NetworkPolicy,
    NetworkPolicyIngressRule,
    NetworkPolicyPort,
    NetworkPolicySpec,
)
from podway.api.meta import Metadata
from podway.channel.client import call
from podway.cli.flows import hear
from podway.errors import LabError
from podway.flows.block import Names
from podway.flows.query import Answer, Query, find
from podway.flows.record import Who
from podway.flows.store import FlowStore
from podway.kernel.bpf.flow_layout import EVENT, EventKind, FlowKey, Hook
from podway.lab import state
from tests.console.browser import PROGRAM, browser
from tests.console.synthetic import Synthetic, served

ROUNDS = 7
SECONDS = 1
FLOOD_SECONDS = 5
OTHER_PORT = 7001
"""What policies deny."""
NODES = 100
RATE = 100
"""Records a second and node of which an hour is looked through."""
HOUR = 3600
PODS = 300
AT_ONCE = 100
"""Records that are written at once."""
SETTLED = 30.0
"""Seconds that agents may take to write down what waits."""
ON, OFF = "recorded", "not recorded"


def measure() -> Section:
    with lab(nodes=2) as cluster, contextlib.ExitStack() as stack:
        podway(cluster.name, "set", "config", "dataPath=ebpf", "--wait")
        near, far = (
            cluster.run_pod(name, node) for name, node in zip(("near", "far"), cluster.nodes, strict=True)
        )
        cluster.apply(_policy())
        path = Path(ON, near.netns, far.netns, far.address)
        tool = stack.enter_context(connect_tool())
        stack.enter_context(answering(tool, [path]))
        stack.enter_context(ponger(path))
        rows = [*_complete(cluster, path, tool), *_cost(cluster, path, tool)]
    rows += [_query(), *_console()]
    return Section(
        "Records of flows",
        "Two nodes with agents that record; connections between two pods that are made, asked one byte, answered "
        f"and reset, for {FLOOD_SECONDS} s as fast as this machine makes them, then UDP packets that a policy "
        f"denies. Costs: {ROUNDS} interleaved rounds of {SECONDS} s, agents stopped in every other one. "
        f"The query: of {NODES} nodes the history of an hour with {RATE} records a second each, of one pod; nodes "
        "look through theirs at the same time on machines of their own, here one after the other, so the slowest "
        "counts, and joining all answers. The console: a cluster that is made up, in a Chromium without a window.",
        tuple(rows),
    )


def _policy() -> NetworkPolicy:
    ports = tuple(NetworkPolicyPort(port=port) for port in (CONNECT_PORT, PORT))
    spec = NetworkPolicySpec(policy_types=("Ingress",), ingress=(NetworkPolicyIngressRule(ports=ports),))
    return NetworkPolicy(metadata=Metadata(name="ports", namespace="default"), spec=spec)


# Whether all are there.


class _Seen(msgspec.Struct, frozen=True):
    """What nodes' engines counted, and what their agents have of it."""

    made: int = 0
    dropped: int = 0
    new: int = 0
    records: int = 0
    lost: int = 0


def _seen(cluster: Lab) -> _Seen:
    told = [cluster.status(node)["flows"] for node in cluster.nodes]
    return _Seen(
        sum(one["made"] for one in told),
        sum(one["dropped"] for one in told),
        sum(one["events"]["new"] for one in told),
        sum(one["recorded"] for one in told),
        sum(one["lost"] for one in told),
    )


def _settled(cluster: Lab) -> _Seen:
    """Return what was seen once nothing more comes."""
    end, last = time.monotonic() + SETTLED, _seen(cluster)
    while time.monotonic() < end:
        time.sleep(1)
        now = _seen(cluster)
        if now == last:
            return now
        last = now
    raise LabError("agents still record after all has ended", hint="run it on a machine with nothing else to do")


def _complete(cluster: Lab, path: Path, tool: str) -> Iterator[Row]:
    before = _settled(cluster)
    took = _connection(path, tool, FLOOD_SECONDS)
    after = _settled(cluster)
    made, new, lost = after.made - before.made, after.new - before.new, after.lost - before.lost
    words = f"{new:,} of {made:,} on both nodes ({1 / took:,.0f} connections a second); {made - new:,} missing"
    words += f", {lost:,} events counted as lost"
    yield Row("new flows that have a record", words, "all, or counted", made == new or 0 < made - new <= lost)

    before, began = _settled(cluster), time.time()
    inside(path.source, lambda: _flood(path.address))
    after = _settled(cluster)
    stand_for = _denied(cluster, began - 1)
    dropped, lost = after.dropped - before.dropped, after.lost - before.lost
    records = after.records - before.records
    words = f"{stand_for:,} of {dropped:,}; {lost:,} events counted as lost; {records:,} records"
    yield Row("dropped packets that records stand for", words, "all, or counted", stand_for + lost == dropped)


def _connection(path: Path, tool: str, seconds: int = SECONDS) -> float:
    return float(paths.client(path, command(tool, "client", path, str(seconds)))) / 1e6


def _flood(address: str) -> None:
    """Send what is denied, from ports that change."""
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(1000):
                sender.sendto(b"denied", (address, OTHER_PORT))


def _denied(cluster: Lab, since: float) -> int:
    """Return for how many packets records of denials stand."""
    found = 0
    for node in cluster.nodes:
        socket_path = state.node_dir(cluster.name, node) / "agent.sock"
        answer: dict[str, Any] = call(
            socket_path, "flows.sums", by="verdict", since=since, verdicts=["denied"], ports=[OTHER_PORT]
        )
        if not answer["complete"]:
            raise LabError(f"{node} had no time to sum its records up")
        found += sum(row["denied"] for row in answer["rows"])
    return found


# What they cost.


def _cost(cluster: Lab, path: Path, tool: str) -> Iterator[Row]:
    agents = [int(cluster.status(node)["pid"]) for node in cluster.nodes]
    ways = [path, msgspec.structs.replace(path, name=OFF)]
    stopped = False

    def prepare(way: Path) -> None:
        nonlocal stopped
        if (way.name == OFF) != stopped:
            stopped = not stopped
            for pid in agents:
                os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)
            time.sleep(0.5)  # an agent that goes on takes first what waits

    def trip(way: Path) -> float:
        prepare(way)
        return ping_pong(way)

    def connection(way: Path) -> float:
        prepare(way)
        return _connection(way, tool)

    try:
        trips = in_turn(ways, ROUNDS, trip, warm_up=1)
        connections = in_turn(ways, ROUNDS, connection, warm_up=1)
    finally:
        for pid in agents:
            os.kill(pid, signal.SIGCONT)
    for what, samples, most in (("round trip", trips, 1.01), ("connection", connections, 1.03)):
        ratio = ratio_of(ON, samples, OFF)
        words = f"{us(median(samples[ON]))}, without records {us(median(samples[OFF]))}; ratio {ratio:.3f}"
        yield Row(f"cost of records: {what}", words, f"at most {most}", ratio <= most)

    before, busy = _settled(cluster), _processor_seconds(agents)
    _connection(path, tool, FLOOD_SECONDS)
    time.sleep(1)  # agents take what waits, and are asked nothing meanwhile, which costs, too
    busy = _processor_seconds(agents) - busy
    each = busy / (_settled(cluster).made - before.made)
    words = (
        f"{us(each)} of agents' time for each new flow and its end; {each * 5000:.1%} of a core at 5,000 a second"
    )
    yield Row("cost of records: processor", words, "at most 5 % of a core at 5,000 a second", each * 5000 <= 0.05)


def _processor_seconds(pids: Sequence[int]) -> float:
    """Return how long processes have run so far (proc_pid_stat(5))."""
    ticks = 0
    for pid in pids:
        fields = File(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# How soon they are found.


def _query() -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        names, now = _history(File(scratch), "node1"), time.time()
        query = Query(pods=("default/pod-7",), since=now - HOUR, limit=100)
        took, answers = [], {}
        with contextlib.closing(FlowStore(File(scratch), "node1", 1 << 30)) as store:
            for number in range(NODES):
                begun = time.monotonic()
                answer = find(query, store.blocks(query.since), store.next, lambda: False)
                took.append(time.monotonic() - begun)
                answers[f"node{number}"] = _plain(answer)
        if not all(answer["records"] for answer in answers.values()):
            raise LabError(f"nothing was found among {names} records")

        asks = {node: _Asked(answer) for node, answer in answers.items()}
        begun = time.monotonic()
        heard = hear(asks, {"limit": 100})
        joined = time.monotonic() - begun
    assert len(heard.records) == sum(len(answer["records"]) for answer in answers.values())
    whole = max(took) + joined
    words = f"{ms(whole)}: the slowest node {ms(max(took))} (median {ms(median(took))}), joining {ms(joined)}"
    return Row(f"an hour of {NODES} nodes, filtered: first rows", words, "at most 300 ms", whole <= 0.3)


class _Asked:
    """An agent that has its answer already."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer

    def __call__(self, method: str, **_: Any) -> Any:
        return self._answer


def _plain(answer: Answer) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(answer)
    return {**told, "note": "", "now": time.time(), "lost": 0}


def _event(keys: Sequence[bytes], begin: int, number: int) -> bytes:
    kind = (EventKind.FLOW_NEW, EventKind.FLOW_END)[number % 2]
    moment, counts = begin + number * 10**9 // RATE, (5, 600, 4, 500)
    rules, devices, words = (17, 18, 0, 0), (3, 4, 0, 0), (kind, 0, Hook.FROM_POD, 0, 5, 2, 0)
    return EVENT.pack(
        moment, keys[number // 2 * 7919 % PODS], *counts, moment, *rules, *devices, *words, 90, 40, 0, 0
    )


def _history(directory: File, node: str) -> int:
    """Write an hour of records that begin and end, as sealed blocks; return how many."""
    store, offset = FlowStore(directory, node, 1 << 30), time.time_ns() - time.monotonic_ns()
    begin, count = time.monotonic_ns() - HOUR * 10**9, HOUR * RATE
    keys = [
        FlowKey(
            ip_address(f"10.244.1.{number % 250 + 1}"), ip_address(f"10.244.2.{number % 249 + 1}"), 6, 40000, 80
        )
        for number in range(PODS)
    ]
    packed = [key.pack() for key in keys]
    addresses = {str(address) for key in keys for address in (key.source, key.destination)}
    owners = [(0, text, Who("pod", f"pod-{at}", "default", node)) for at, text in enumerate(sorted(addresses))]
    for first in range(0, count, AT_ONCE):
        if store.is_due:
            store.seal()
        names = Names() if store.count else Names(clock=[(0, offset)], addresses=owners)
        store.append(b"".join(_event(packed, begin, at) for at in range(first, first + AT_ONCE)), names)
    store.close()
    return count


# How soon the console shows them.


def _console() -> Iterator[Row]:
    if not PROGRAM:
        yield Row("console: first paint", "no Chromium here: `./dev test-console` installs it")
        return
    small = asyncio.run(_painted(Synthetic(100, 1000, 10_000), "traffic"))
    fine = small.paint <= 1 and small.picture <= 1000 / 60 and small.memory <= 200
    what = "console, 1,000 workloads and 10,000 pairs: first paint"
    yield Row(what, small.words, "at most 1 s, 60 pictures a second, 200 MiB", fine)
    large = asyncio.run(_painted(Synthetic(5000, 1000, 10_000), ""))
    yield Row("console, 5,000 nodes: first paint", large.words, "at most 1 s", large.paint <= 1)


class _Painted(msgspec.Struct, frozen=True):
    """Seconds until something is painted, and until the map is; ms of a picture while it moves; MiB of scripts."""

    paint: float
    drawn: float
    picture: float
    memory: float

    @property
    def words(self) -> str:
        moving = f"a picture while it moves takes {self.picture:.1f} ms, {self.memory:.0f} MiB"
        return f"{ms(self.paint)}; the map is drawn after {ms(self.drawn)}; {moving}"


async def _painted(sources: Synthetic, view: str) -> _Painted:
    async with browser() as page:
        await page.look(1280, 800)
        async with served(sources) as url:
            await page.open(f"{url}health")  # the server knows the cluster then, and the browser its files
            begun = time.monotonic()
            await page.open(url + view)
            await page.until("!!window.podwayBoard && document.querySelectorAll('.pick li').length > 10")
            drawn = time.monotonic() - begun
            paint = await page.run("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            memory = await page.run("performance.memory.usedJSHeapSize")
            return _Painted(paint / 1000, drawn, await page.pan(), memory / 2**20)
