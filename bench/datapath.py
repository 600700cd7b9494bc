"""The flow engine beside the kernel's path: round trips, and connections that ask once, as ratios to node to node.

The same pods and nodes serve both: what works, engine or kernel alone, is changed between two measurements. With
the engine every pod is isolated but for the ports that are measured, and its events are told.
"""

import contextlib
import mmap
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path as File

from bench import paths
from bench.labs import Lab, lab
from bench.paths import CORE, PORT, Path, in_turn, ping_pong, ponger, ratio_of, trip_row
from bench.report import Row, Section
from bench.roundtrip import BASE, ENCAPSULATIONS, SAME, across, node_path
from podway.api.addresses import Family
from podway.api.lease import LINK_PREFIX
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import EVENT, Counter, Endpoint, Hook
from podway.kernel.bpf.flow_maps import FlowMaps
from podway.kernel.bpf.flow_programs import Place
from podway.kernel.rtnl import links, routes
from podway.lab import names, topology
from podway.plan.fabric import DEVICES
from podway.policy.maps import Rule, RuleKey, Tier, Verdict

ROUNDS = 5
SECONDS = 1
CONNECT_PORT = 7000
ENGINE = ", flow engine"
_POSITION = struct.Struct("=Q")
_EVENT_HEADER = 8
EXTRA_RULES = 10_000
"""Rules and identities besides, so that the tables are not empty."""
RULES = 1


def measure() -> Section:
    with lab(nodes=2) as cluster, contextlib.ExitStack() as stack:
        base = node_path(cluster)
        near = [cluster.run_pod(f"near-{number}", cluster.nodes[0]) for number in range(2)]
        kernel = [Path(SAME, near[0].netns, near[1].netns, near[1].address), *across(cluster, ENCAPSULATIONS)]
        engines = [stack.enter_context(engine_on(cluster, node)) for node in cluster.nodes]
        tool = stack.enter_context(connect_tool())
        with_engine = [Path(path.name + ENGINE, path.source, path.target, path.address) for path in kernel]
        ways = [base, *(path for pair in zip(kernel, with_engine, strict=True) for path in pair)]

        def prepare(path: Path) -> None:
            for engine in engines:
                engine.work(path.name.endswith(ENGINE))

        def trip(path: Path) -> float:
            prepare(path)
            return ping_pong(path)

        def connection(path: Path) -> float:
            prepare(path)
            command = ["taskset", "-c", str(CORE), tool, "client", path.address, str(CONNECT_PORT), str(SECONDS)]
            return float(paths.client(path, command)) / 1e6

        ends = {path.target: path for path in ways}.values()
        with contextlib.ExitStack() as servers:
            for path in ends:
                servers.enter_context(ponger(path))
                command = ["taskset", "-c", str(CORE), tool, "server", path.address, str(CONNECT_PORT)]
                servers.enter_context(paths.server(path, CONNECT_PORT, command))
            trips = in_turn(ways, ROUNDS, trip, warm_up=1)
            connections = in_turn(ways, ROUNDS, connection, warm_up=1)
        rows = [*_rows("round trip", ways, trips), *_rows("connection", ways, connections)]
        rows += [engine.told() for engine in engines]
    return Section(
        "Flow engine",
        "sockperf ping-pong over TCP, and connections that are made, asked one byte, answered and closed; client "
        f"and server pinned to one core (core {CORE}), {ROUNDS} interleaved rounds of {SECONDS} s after one to "
        f"warm up. With the engine pods are isolated but for two ports, among {EXTRA_RULES:,} rules and "
        "identities, and tells its events; without it there is no policy. Node to node has neither.",
        tuple(rows),
    )


def _rows(what: str, ways: Sequence[Path], samples: Mapping[str, list[float]]) -> Iterator[Row]:
    for path in ways:
        row = trip_row(path.name, samples, BASE)
        words = row.measured
        if path.name.endswith(ENGINE):
            words += f"; to the kernel's {ratio_of(path.name, samples, path.name.removesuffix(ENGINE)):.2f}"
        yield Row(f"{what}, {path.name}", words)


@contextlib.contextmanager
def connect_tool() -> Iterator[str]:
    """Compile connect.c; give its path while the block runs."""
    with tempfile.TemporaryDirectory() as scratch:
        target = str(File(scratch, "connect"))
        subprocess.run(["cc", "-O2", "-o", target, str(File(__file__).parent / "connect.c")], check=True)
        yield target


class Drain:
    """Empties a ring buffer of events unread, so that a reader's own work is not measured with the engine's.

    `told` is how many there were. The buffer's first page has the consumer's position, its second the producer's
    (kernel/bpf/ringbuf.c).
    """

    def __init__(self, ring: int) -> None:
        self._consumer = mmap.mmap(ring, mmap.PAGESIZE)
        self._producer = mmap.mmap(ring, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self.told = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._empty, daemon=True)
        self._thread.start()

    def _empty(self) -> None:
        while not self._over.wait(0.05):
            consumed, produced = (_POSITION.unpack_from(page)[0] for page in (self._consumer, self._producer))
            self.told += (produced - consumed) // (_EVENT_HEADER + EVENT.size)
            _POSITION.pack_into(self._consumer, 0, produced)

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join()
        self._consumer.close()
        self._producer.close()


class NodeEngine:
    """The engine on one node; `work` switches between it and the kernel's path."""

    def __init__(self, node: str, engine: flow_programs.Engine) -> None:
        self._node, self._engine = node, engine
        self.maps = FlowMaps(engine.maps)
        self._drain = Drain(engine.maps["events"])

    def work(self, does: bool) -> None:
        """Have the engine work, or leave everything to the kernel."""
        build = self._engine.build if does else 0
        bpf.insert(self._engine.maps["active"], bytes(4), build.to_bytes(8, "little"))

    def told(self) -> Row:
        """Say what it did."""
        counted = self.maps.counters()
        kinds = (
            Counter.CARRIED_PEER,
            Counter.CARRIED_WIRE,
            Counter.TO_STACK,
            Counter.FLOWS_MADE,
            Counter.EVENTS_LOST,
        )
        words = ", ".join(f"{counted[kind]:,} {kind.name.lower().replace('_', ' ')}" for kind in kinds)
        return Row(f"{self._node}: the engine's counters", f"{words}, {self._drain.told:,} events told")

    def close(self) -> None:
        """Let go of the events."""
        self._drain.close()


@contextlib.contextmanager
def engine_on(cluster: Lab, node: str) -> Iterator[NodeEngine]:
    """Attach the engine to a node of a lab, which does not know of it; give it, not yet at work."""
    with topology.connection(names.node_netns(cluster.name, node)) as connection:
        numbers = {link.name: link.index for link in links.dump(connection)}
        wires = [numbers[name] for name in (topology.UPLINK, *DEVICES.values()) if name in numbers]
        pods = {index for name, index in numbers.items() if name.startswith(LINK_PREFIX)}
        places = [Place(wire, Hook.FROM_WIRE) for wire in wires]
        places += [Place(pod, hook) for pod in sorted(pods) for hook in (Hook.FROM_POD, Hook.TO_POD)]
        with (
            flow_programs.take_over(connection, places) as engine,
            contextlib.closing(NodeEngine(node, engine)) as made,
        ):
            made.work(False)
            isolate(made.maps)
            for route in routes.dump(connection, Family.IPV4):
                if route.index in pods:
                    made.maps.set_endpoint(route.destination.network_address, Endpoint(route.index, RULES, RULES))
            made.maps.changed(ways=True)
            yield made
            for found in flow_programs.attached(connection, [*wires, *pods]):
                flow_programs.detach(connection, found)


def isolate(maps: FlowMaps) -> None:
    """Allow two ports and no more, among many rules and identities."""
    maps.set_pool(ip_network("10.0.0.0/8"))
    allowed, denied = Rule(Verdict.ALLOW, 1, 17), Rule(Verdict.DENY, 0, 16)
    entries = {RuleKey(RULES): {Tier.NETWORK_POLICY: denied}}
    for port in (PORT, CONNECT_PORT):
        entries[RuleKey(RULES, protocol=6, port=port, port_length=16)] = {Tier.NETWORK_POLICY: allowed}
    first = int(ip_address("10.200.0.0"))
    for number in range(EXTRA_RULES):
        maps.set_identity(ip_network((first + number, 32)), 1000 + number)
        entries[RuleKey(RULES, 1000 + number, 6, 80, 16)] = {Tier.NETWORK_POLICY: allowed}
    maps.set_rules(RULES, entries)
