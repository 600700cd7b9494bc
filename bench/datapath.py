"""The flow engine beside the kernel's path: packets, connections and streams, as ratios to node to node.

The same pods and nodes serve both: what works, engine or kernel alone, is changed between two measurements. With
the engine every pod is isolated but for the ports that are measured, and its events are told.
"""

import contextlib
import mmap
import os
import re
import signal
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path as File

from bench import enforcing, talks
from bench.labs import Lab, lab
from bench.paths import CORE, Path
from bench.report import Row, Section
from bench.roundtrip import BASE, ENCAPSULATIONS, IPIP, NONE, SAME, VXLAN, across, node_path
from bench.samples import median, mib, us
from bench.talks import CONNECT_PORT, MILLISECONDS, Asker, What
from podway.api.addresses import Family, Network
from podway.api.lease import LINK_PREFIX
from podway.errors import LabError
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import EVENT, Counter, Endpoint, FlowKey, Hook
from podway.kernel.bpf.flow_maps import FlowMaps
from podway.kernel.bpf.flow_programs import Place
from podway.kernel.rtnl import links, routes
from podway.lab import names, topology
from podway.plan.fabric import DEVICES
from podway.policy.maps import Rule, RuleKey, Tier, Verdict

ROUNDS = 60
STREAM_ROUNDS = 40
FLAT_ROUNDS, FLAT_PASSES = 30, 3
ENGINE = ", flow engine"
_POSITION = struct.Struct("=Q")
_EVENT_HEADER = 8
RULES, IDENTITIES = 1000, 1000
"""What there is of each while paths are compared."""
SIZES = ((1, 1000), (1000, 1000), (30_000, 1000), (30_000, 100_000))
"""Rules and identities that a packet should not feel."""
FLAT = 0.02
"""How far a round trip may be from that with the least of them, as a part of it."""
SET = 1
FLOWS, FLOWS_RULES, FLOWS_IDENTITIES = 50_000, 30_000, 10_000
"""What maps hold when their memory is measured."""
MOST_MEMORY = 64 << 20
_MEMORY = re.compile(r"^memlock:\s+(\d+)", re.MULTILINE)
OF_SERVICES = frozenset({"frontends", "choices", "backends", "calls", "tcp_calls", "affinities"})

_ALLOWED = {Tier.NETWORK_POLICY: Rule(Verdict.ALLOW, 1, 17)}
_FIRST_ADDRESS = int(ip_address("10.200.0.0"))

Samples = Mapping[str, list[float]]

TRIPS = {SAME: 1.07, NONE: 1.17, VXLAN: 1.28, IPIP: 1.24}
CONNECTIONS = {SAME: 1.12, NONE: 1.25}
STREAMS = {NONE: 0.97, VXLAN: 0.85, IPIP: 0.85}
"""What is wanted with the engine, beside node to node."""


def measure() -> Section:
    with lab(nodes=2, options=("--data-path", "kernel")) as cluster, contextlib.ExitStack() as stack:
        base = node_path(cluster)
        near = [cluster.run_pod(f"near-{number}", cluster.nodes[0]) for number in range(2)]
        kernel = [Path(SAME, near[0].netns, near[1].netns, near[1].address), *across(cluster, ENCAPSULATIONS)]
        stack.enter_context(_stopped(cluster))
        engines = [stack.enter_context(engine_on(cluster, node)) for node in cluster.nodes]
        tool = stack.enter_context(talks.connect_tool())
        with_engine = [Path(path.name + ENGINE, path.source, path.target, path.address) for path in kernel]
        ways = [base, *(path for pair in zip(kernel, with_engine, strict=True) for path in pair)]

        def prepare(path: Path) -> None:
            for engine in engines:
                engine.work(path.name.endswith(ENGINE))

        with talks.answering(tool, ways), talks.askers(tool, ways) as who:
            trips = talks.talk(who, "trips", ROUNDS, prepare)
            connections = talks.talk(who, "connections", ROUNDS, prepare)
            streams = talks.talk(who, "stream", STREAM_ROUNDS, prepare)
            rows = [
                *_rows("round trip", ways, trips, TRIPS),
                *_rows("connection", ways, connections, CONNECTIONS),
                *_stream_rows(ways, streams),
            ]
            rows += [engine.told(ROUNDS * len(with_engine)) for engine in engines]
            engines[0].work(True)
            rows += _flat({path.name: who[path.name] for path in (base, with_engine[0])}, engines[0])
        rows.append(_memory(engines[0]))
    return Section(
        "Flow engine",
        "Round trips of one byte over TCP; connections that are made, asked one byte, answered and reset; "
        f"streams. Client and server pinned to one core (core {CORE}). {ROUNDS} rounds ({STREAM_ROUNDS} of "
        f"streams) in which every path has {MILLISECONDS} ms in turn, after one to warm up: medians, and the "
        "median of the ratios to node to node, round by round. With the engine pods are isolated but for one "
        f"port, among {RULES:,} rules and {IDENTITIES:,} identities, and it tells its events; without it there is "
        f"no policy. Node to node has neither. {enforcing.HOW}",
        (*rows, *enforcing.measured()),
    )


@contextlib.contextmanager
def _stopped(cluster: Lab) -> Iterator[None]:
    """Have no agent run while the block does: they know nothing of the engine, and would take it off."""
    agents = [int(cluster.status(node)["pid"]) for node in cluster.nodes]
    for pid in agents:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in agents:
            os.kill(pid, signal.SIGCONT)


def _rows(what: str, ways: Sequence[Path], samples: Samples, wanted: Mapping[str, float]) -> Iterator[Row]:
    for path in ways:
        name = path.name
        words = us(median(samples[name]))
        if name == BASE:
            yield Row(f"{what}, {name}", words)
            continue
        ratio = talks.ratio(samples, name, BASE)
        words += f"; ratio {ratio:.2f}"
        most = wanted.get(name.removesuffix(ENGINE)) if name.endswith(ENGINE) else None
        if name.endswith(ENGINE):
            words += f"; to the kernel's {talks.ratio(samples, name, name.removesuffix(ENGINE)):.2f}"
        yield _limited(f"{what}, {name}", words, most, ratio)


def _limited(what: str, words: str, most: float | None, ratio: float) -> Row:
    return (
        Row(what, words)
        if most is None
        else Row(what, words, f"at most {most} of {BASE}", round(ratio, 2) <= most)
    )


def _stream_rows(ways: Sequence[Path], samples: Samples) -> Iterator[Row]:
    """Tell of streams, of which is known how long a MiB took."""
    for path in ways:
        what, words = f"one TCP stream, {path.name}", f"{8 * 2**20 / median(samples[path.name]) / 1e9:.1f} Gbit/s"
        if path.name == BASE:
            yield Row(what, words)
            continue
        ratio = 1 / talks.ratio(samples, path.name, BASE)
        words += f"; ratio {ratio:.2f}"
        least = STREAMS.get(path.name.removesuffix(ENGINE)) if path.name.endswith(ENGINE) else None
        if least is None:
            yield Row(what, words)
        else:
            yield Row(what, words, f"at least {least} of {BASE}", round(ratio, 2) >= least)


def _flat(who: Mapping[str, Asker], engine: "NodeEngine") -> Iterator[Row]:
    """Compare what both take with ever more rules and identities."""
    name = next(name for name in who if name != BASE)
    kinds: tuple[What, ...] = ("trips", "connections")
    found: dict[What, dict[tuple[int, int], list[float]]] = {what: {size: [] for size in SIZES} for what in kinds}
    for _ in range(FLAT_PASSES):
        for size in SIZES:
            engine.fill(*size)
            for what in kinds:
                samples = talks.talk(who, what, FLAT_ROUNDS)
                found[what][size].append(talks.ratio(samples, name, BASE))
    for what in kinds:
        ratios = {size: median(samples) for size, samples in found[what].items()}
        least = ratios[SIZES[0]]
        words = ", ".join(
            f"{rules:,} and {identities:,}: {ratio:.3f}" for (rules, identities), ratio in ratios.items()
        )
        label = f"{what} with rules and identities, to {BASE}"
        if what != "trips":
            yield Row(label, words)
            continue
        worst = max(abs(ratio / least - 1) for ratio in ratios.values())
        yield Row(label, words, f"flat (± {FLAT:.0%})", worst <= FLAT)


def _memory(engine: "NodeEngine") -> Row:
    engine.fill(FLOWS_RULES, FLOWS_IDENTITIES)
    engine.crowd(FLOWS)
    sizes = engine.memory()
    whole, services = sum(sizes.values()), sum(sizes[name] for name in OF_SERVICES)
    words = f"{mib(whole)}; of it flows {mib(sizes['flows'])}, tables of Services {mib(services)}"
    what = f"memory of maps: {FLOWS:,} flows, {FLOWS_IDENTITIES:,} identities, {FLOWS_RULES:,} rules"
    return Row(what, words, f"at most {mib(MOST_MEMORY)}", whole <= MOST_MEMORY)


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
        self._rules = self._identities = 0

    def work(self, does: bool) -> None:
        """Have the engine work, or leave everything to the kernel."""
        build = self._engine.build if does else 0
        bpf.insert(self._engine.maps["active"], bytes(4), build.to_bytes(8, "little"))

    def fill(self, rules: int, identities: int) -> None:
        """Have there be so many rules, and identities, besides those that let in what is measured."""
        added = dict.fromkeys(_extra_rules(self._rules, rules), _ALLOWED)
        self.maps.set_rules(SET, added, _extra_rules(rules, self._rules))
        for number in range(self._identities, identities):
            self.maps.set_identity(*_extra_identity(number))
        for number in range(identities, self._identities):
            self.maps.remove_identity(_extra_identity(number)[0])
        self._rules, self._identities = rules, identities
        self.maps.changed()

    def crowd(self, count: int) -> None:
        """Have there be so many flows, of two entries each, like one that there is."""
        flows = self._engine.maps["flows"]
        key, value = next(iter(bpf.items(flows).items()))
        source, destination = FlowKey.unpack(key).source, FlowKey.unpack(key).destination
        for number in range(count):
            one = FlowKey(source, destination, 17, number & 0xFFFF, 1 + (number >> 16))
            for each in (one, one.reversed()):
                bpf.insert(flows, each.pack(), value)

    def memory(self) -> dict[str, int]:
        """Return the bytes that each map takes, as the kernel accounts for them (proc_pid_fdinfo(5))."""
        found = {}
        for name, fd in self._engine.maps.items():
            said = _MEMORY.search(File(f"/proc/self/fdinfo/{fd}").read_text())
            if said is None:
                raise LabError(f"this kernel does not tell the memory of the map {name}")
            found[name] = int(said[1])
        return found

    def told(self, least: int) -> Row:
        """Say what it did. Raises LabError if it made fewer flows than so many."""
        counted = self.maps.counters()
        if counted[Counter.FLOWS_MADE] < least:
            raise LabError(f"{self._node}: the engine did not work while it was measured: somebody took it off")
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
            _isolate(made.maps)
            made.fill(RULES, IDENTITIES)
            for route in routes.dump(connection, Family.IPV4):
                if route.index in pods:
                    made.maps.set_endpoint(route.destination.network_address, Endpoint(route.index, SET, SET))
            made.maps.changed(ways=True)
            yield made
            for found in flow_programs.attached(connection, [*wires, *pods]):
                flow_programs.detach(connection, found)


def _isolate(maps: FlowMaps) -> None:
    """Allow the port that is measured and no more."""
    maps.set_pool(ip_network("10.0.0.0/8"))
    port = RuleKey(SET, protocol=6, port=CONNECT_PORT, port_length=16)
    maps.set_rules(SET, {RuleKey(SET): {Tier.NETWORK_POLICY: Rule(Verdict.DENY, 0, 16)}, port: _ALLOWED})


def _extra_rules(first: int, last: int) -> list[RuleKey]:
    """Rules for others than who is measured: of ports, and of ranges of them."""
    lengths = (16, 12, 8)
    return [RuleKey(SET, 1000 + number // 3, 6, 0x1000, lengths[number % 3]) for number in range(first, last)]


def _extra_identity(number: int) -> tuple[Network, int]:
    return ip_network((_FIRST_ADDRESS + number, 32)), 1000 + number
