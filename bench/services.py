"""Services: what a connection through one costs, alone and among very many, and what a change costs there.

A client's pod and a server's are on two nodes; the others are objects in the store, which nobody asks. They are
stored while Services are not served, so that to serve them is one cold load.
"""

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path as File
from typing import Any

import msgspec

from bench import paths
from bench.labs import Lab, RunningPod, inside, lab
from bench.paths import CORE, PORT, Path, in_turn, ping_pong, ponger, ratio_of, trip_row
from bench.report import Row, Section
from bench.samples import median, mib, ms
from bench.talks import connect_tool
from podway.api.addresses import Network
from podway.api.kinds.endpoint_slice import SERVICE_LABEL, Endpoint, EndpointPort, EndpointSlice
from podway.api.kinds.network_config import NetworkConfig, ServiceClients
from podway.api.kinds.service import Service, ServicePort, ServiceSpec
from podway.api.meta import Metadata
from podway.errors import LabError
from podway.lab import facts
from podway.lab.facts import create_all

SERVICES = int(os.environ.get("PODWAY_BENCH_SERVICES", "44000"))
ENDPOINTS = SERVICES * 250 // 44
ROUNDS = 9
SECONDS = 1
CHANGES = 10
CONNECT_PORT, ASKED_PORT = 7000, 7001
PORTS = {PORT: "TCP", CONNECT_PORT: "TCP", ASKED_PORT: "TCP"}
DIRECT, THROUGH = "pod to pod", "through a ClusterIP"
LOAD_SECONDS = 600.0
"""How long a load may take."""
CHANGE_SECONDS = 10.0
ATTEMPT = 0.001
"""Seconds between attempts to connect, and between datagrams."""


def measure() -> Section:
    with lab(nodes=2, options=["--services", "all"]) as cluster, contextlib.ExitStack() as stack:
        addresses = _free(cluster)
        client = cluster.run_pod("client", cluster.nodes[0])
        one, other = (cluster.run_pod(name, cluster.nodes[1]) for name in ("one", "other"))
        vip = next(addresses)
        _create(cluster, _service("web", vip), _slice("web", one))
        direct = Path(DIRECT, client.netns, one.netns, one.address)
        ways = [direct, Path(THROUGH, client.netns, one.netns, vip)]
        tool = stack.enter_context(connect_tool())
        stack.enter_context(ponger(direct))
        command = ["taskset", "-c", str(CORE), tool, "server", one.address, str(CONNECT_PORT)]
        stack.enter_context(paths.server(direct, CONNECT_PORT, command))
        for end in (one, other):
            stack.enter_context(_listening(end))

        def connection(path: Path) -> float:
            asked = ["taskset", "-c", str(CORE), tool, "client", path.address, str(CONNECT_PORT), str(SECONDS)]
            return float(paths.client(path, asked)) / 1e6

        _await_answer(client, vip)
        trips = in_turn(ways, ROUNDS, ping_pong, warm_up=1)
        few = in_turn(ways, ROUNDS, connection, warm_up=1)
        load = _load(cluster, addresses)
        _await_answer(client, vip)
        many = in_turn(ways, ROUNDS, connection, warm_up=1)
        more = [_one_more(cluster, client, one, next(addresses), number) for number in range(CHANGES)]
        gone = [_endpoint_gone(cluster, client, one, other, next(addresses), number) for number in range(CHANGES)]
        sizes = tuple(_sizes(cluster))
    return Section(
        "Services",
        f"sockperf ping-pong over TCP, and connections that are made, asked one byte, answered and closed, from a "
        f"pod to one on another node, client and server pinned to one core (core {CORE}): {ROUNDS} interleaved "
        f"rounds of {SECONDS} s after one to warm up. Then {SERVICES:,} Services with {ENDPOINTS:,} endpoints "
        f"come besides. Changes are written {CHANGES} times, and watched by what becomes of packets; "
        "median (worst).",
        (
            trip_row(DIRECT, trips, DIRECT),
            trip_row(THROUGH, trips, DIRECT, 1.02),
            *_connections("1 Service", few),
            *_connections(f"{SERVICES:,} Services", many),
            _flat(few, many),
            Row("cold load, until all is in the data path", f"{load:.1f} s", "at most 15 s", load <= 15),
            _told("one more Service, until it answers", [service for service, _ in more], 0.005),
            _told("its first endpoint, until it answers", [endpoint for _, endpoint in more], 0.005),
            _told("an endpoint goes: new TCP is led there for", [tcp for tcp, _ in gone], 0.05),
            _told("the same, until a one-way sender of UDP is heard elsewhere", [udp for _, udp in gone], 0.1),
            *sizes,
        ),
    )


def _connections(what: str, samples: Mapping[str, list[float]]) -> Iterator[Row]:
    for name in (DIRECT, THROUGH):
        row = trip_row(name, samples, DIRECT)
        yield Row(f"connection, {name}, {what}", row.measured)


def _flat(few: Mapping[str, list[float]], many: Mapping[str, list[float]]) -> Row:
    """Tell by how much a connection's price grows, beside that of one without a Service in the same rounds."""
    grown = ratio_of(THROUGH, many, DIRECT) / ratio_of(THROUGH, few, DIRECT)
    return Row("the same, among many to alone", f"{grown:.2f}", "at most 1.05", grown <= 1.05)


def _told(what: str, samples: Sequence[float], most: float) -> Row:
    words = f"{ms(median(samples))} ({ms(max(samples))})"
    return Row(what, words, f"at most {ms(most)}", median(samples) <= most)


# Objects.


def _free(cluster: Lab) -> Iterator[str]:
    """Yield addresses for Services, behind those that the lab gave."""
    network: Network = cluster.only(NetworkConfig).spec.service_networks[0]
    return (str(network[number]) for number in range(1000, network.num_addresses - 1))


def _service(name: str, address: str, ports: Mapping[int, str] = PORTS) -> Service:
    wanted = tuple(
        ServicePort(name=str(port), port=port, protocol=protocol, target_port=port)
        for port, protocol in ports.items()
    )
    spec = ServiceSpec(cluster_ip=address, cluster_ips=(address,), ports=wanted)
    return Service(metadata=Metadata(name=name, namespace="default"), spec=spec)


def _slice(name: str, *ends: RunningPod | str, ports: Mapping[int, str] = PORTS) -> EndpointSlice:
    addresses = [end if isinstance(end, str) else end.address for end in ends]
    return EndpointSlice(
        metadata=Metadata(name=name, namespace="default", labels={SERVICE_LABEL: name}),
        address_type="IPv4",
        endpoints=tuple(Endpoint(addresses=(address,)) for address in addresses),
        ports=tuple(
            EndpointPort(name=str(port), port=port, protocol=protocol) for port, protocol in ports.items()
        ),
    )


def _create(cluster: Lab, *objects: Service | EndpointSlice) -> float:
    """Write new objects; return when they were written."""
    facts.ask(cluster.name, lambda store: create_all(store, objects))
    return time.monotonic()


def _replace(cluster: Lab, piece: EndpointSlice) -> float:
    """Write a slice in place of a former one; return when it was written."""

    async def write(store: Any) -> None:
        found = await store.get(EndpointSlice, piece.metadata.name, namespace="default")
        await store.update(msgspec.structs.replace(piece, metadata=found.metadata))

    facts.ask(cluster.name, write)
    return time.monotonic()


# The load.


def _load(cluster: Lab, addresses: Iterator[str]) -> float:
    """Have many Services served that were stored before; return how many seconds the client's node takes."""
    before = cluster.status(cluster.nodes[0])["services"]["frontends"]
    _serve(cluster, "off")
    _until(lambda: not cluster.status(cluster.nodes[0])["services"]["frontends"], LOAD_SECONDS)
    objects: list[Service | EndpointSlice] = []
    for number, address in enumerate(islice(addresses, SERVICES)):
        name, first = f"many-{number}", number * ENDPOINTS // SERVICES
        ends = (_end(end) for end in range(first, (number + 1) * ENDPOINTS // SERVICES))
        objects += [_service(name, address, {80: "TCP"}), _slice(name, *ends, ports={80: "TCP"})]
    _create(cluster, *objects)
    began = time.monotonic()
    _serve(cluster, "all")

    def served() -> bool:
        told = cluster.status(cluster.nodes[0])["services"]
        return told["frontends"] >= before + SERVICES and not told["pending"]

    _until(served, LOAD_SECONDS, every=0.1)
    return time.monotonic() - began


def _end(number: int) -> str:
    return f"172.{16 + number // 65536}.{number // 256 % 256}.{number % 256}"


def _serve(cluster: Lab, whom: ServiceClients) -> None:
    config = cluster.only(NetworkConfig)
    spec = msgspec.structs.replace(config.spec, services=whom)
    facts.ask(cluster.name, lambda store: store.update(msgspec.structs.replace(config, spec=spec)))


def _until(holds: Callable[[], bool], seconds: float, *, every: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise LabError("Services are not served as they should be after so long")
        time.sleep(every)


def _sizes(cluster: Lab) -> Iterator[Row]:
    """Tell the memory of the client's node's agent, and of the flow engine's maps."""
    node = cluster.nodes[0]
    memory, maps = cluster.resident(node), 0
    numbers = File(f"/proc/{cluster.status(node)['pid']}/fdinfo")
    for info in {info.read_text() for info in numbers.iterdir()}:
        told = dict(line.split(":\t", 1) for line in info.splitlines() if ":\t" in line)
        maps += int(told["memlock"]) if "map_id" in told else 0
    yield Row("the agent's memory then", mib(memory), "at most 250 MiB", memory <= 250 << 20)
    yield Row("all maps of the flow engine (memlock)", mib(maps))


# Changes.


def _one_more(
    cluster: Lab, client: RunningPod, server: RunningPod, address: str, number: int
) -> tuple[float, float]:
    """Add a Service of a server, and to another one its first endpoint; return the seconds until each answers."""
    ports = {ASKED_PORT: "TCP"}
    _create(cluster, _slice(f"more-{number}", server, ports=ports))
    written = _create(cluster, _service(f"more-{number}", address, ports))
    service = _await_answer(client, address) - written
    _replace(cluster, _slice(f"more-{number}", ports=ports))
    _until(lambda: not _answers(client, address), CHANGE_SECONDS)
    written = _replace(cluster, _slice(f"more-{number}", server, ports=ports))
    return max(0.0, service), max(0.0, _await_answer(client, address) - written)


def _answers(client: RunningPod, address: str) -> bool:
    with inside(client.netns, lambda: socket.socket(socket.AF_INET)) as asking:
        asking.settimeout(CHANGE_SECONDS)
        return asking.connect_ex((address, ASKED_PORT)) == 0


def _await_answer(client: RunningPod, address: str) -> float:
    """Return when the first of many attempts to connect succeeds. Raises LabError."""
    deadline, waiting = time.monotonic() + CHANGE_SECONDS, select.poll()
    sockets: dict[int, socket.socket] = {}
    try:
        while time.monotonic() < deadline:
            asking = inside(client.netns, lambda: socket.socket(socket.AF_INET))
            asking.setblocking(False)
            sockets[asking.fileno()] = asking
            asking.connect_ex((address, ASKED_PORT))
            waiting.register(asking, select.POLLOUT)
            for number, _ in waiting.poll(ATTEMPT * 1e3):
                if sockets[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return time.monotonic()
                waiting.unregister(number)
                sockets.pop(number).close()
    finally:
        for asking in sockets.values():
            asking.close()
    raise LabError(f"{address} does not answer")


@contextlib.contextmanager
def _listening(pod: RunningPod) -> Iterator[None]:
    """Have connections to a pod accepted while the block runs."""
    script = (
        "import socket\n"
        f"server = socket.create_server(('{pod.address}', {ASKED_PORT}), backlog=1024)\n"
        "while True: server.accept()[0].close()\n"
    )
    command = ["python3", "-c", script]
    process = inside(pod.netns, lambda: subprocess.Popen(command))
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _endpoint_gone(
    cluster: Lab, client: RunningPod, one: RunningPod, other: RunningPod, address: str, number: int
) -> tuple[float, float]:
    """Put another endpoint in place of a Service's while that is asked.

    Return for how many seconds new TCP was still led to the former one, and after how many a one-way sender of UDP
    is heard by the other.
    """
    name, ports = f"gone-{number}", {CONNECT_PORT + 2: "TCP", CONNECT_PORT + 3: "UDP"}
    _create(cluster, _service(name, address, ports), _slice(name, one, ports=ports))
    tcp, udp = ports
    led: list[float] = []
    heard: list[float] = []
    over = threading.Event()
    accepting = inside(one.netns, lambda: socket.create_server((one.address, tcp), backlog=1024))
    receiving = inside(other.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiving.bind((other.address, udp))
    sending = inside(client.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    accepting.settimeout(0.05)
    receiving.settimeout(0.05)

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                taken, _ = accepting.accept()
                led.append(time.monotonic())
                taken.close()

    def receive() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                receiving.recv(16)
                heard.append(time.monotonic())

    def ask() -> None:
        while not over.wait(ATTEMPT):
            with contextlib.suppress(OSError):  # refused, while nobody serves
                sending.sendto(b"x", (address, udp))
            with inside(client.netns, lambda: socket.socket(socket.AF_INET)) as asking:
                asking.setblocking(False)
                asking.connect_ex((address, tcp))
                select.select([], [asking], [], 0.01)

    threads = [threading.Thread(target=work, daemon=True) for work in (accept, receive, ask)]
    for thread in threads:
        thread.start()
    try:
        _until(lambda: bool(led), CHANGE_SECONDS)
        written = _replace(cluster, _slice(name, other, ports=ports))
        _until(lambda: bool(heard), CHANGE_SECONDS)
        time.sleep(0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for sock in (accepting, receiving, sending):
            sock.close()
    return max(0.0, led[-1] - written), max(0.0, heard[0] - written)
