"""One agent in a cluster of 5,000 nodes: its loop, its ADDs, processor and memory while everything changes.

The other nodes are objects in the store, and a process of its own writes to them: mostly notes that alter nothing,
now and then a node that leaves or comes. Pods' packets have nothing to do with it.
"""

import asyncio
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from multiprocessing.context import SpawnProcess
from pathlib import Path

import msgspec

from bench.execution import timed
from bench.labs import Lab, kill, lab
from bench.plugins import Plugin, new_container, plugins, sandboxes
from bench.report import Row, Section
from bench.samples import mib, ms, percentile
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name
from podway.api.kinds.node import ACCEPTS, INTERFACE_ADDRESSES, SENDS, Node, NodeAddress, NodeStatus
from podway.api.meta import Metadata
from podway.channel.client import call
from podway.lab.paths import lab_store
from podway.lab.state import node_dir
from podway.store.base import Store
from podway.store.open import open_store

NODES = 5000
POOL = "10.0.0.0/9"
FIRST_BLOCK = 10_000
"""The number of the first block of the other nodes: those of the lab's own come before."""
RATE, SECONDS = 500, 60
LEAVES = 50
"""Of so many events one is a node that leaves, and the next one that it comes back."""
ADDS = 300
READY = 180.0


def measure() -> Section:
    options = ("--pool", POOL, "--encapsulation", "vxlan", "--distribution", "store")
    with lab(nodes=1, options=options) as cluster, plugins(cluster, "node1") as known, sandboxes(1) as paths:
        asyncio.run(_fill(cluster))
        _wait_for_routes(cluster)
        restart, writes = _restart(cluster)
        plugin = known["podway"]
        quiet = cluster.inside("node1", lambda: _adds(plugin, paths[0], ADDS, SECONDS / 3))
        _steps(cluster)
        with _storm(cluster) as storm:
            began, spent = time.monotonic(), _processor(cluster)
            busy = cluster.inside("node1", lambda: _adds(plugin, paths[0], ADDS, SECONDS))
            storm.join()
            share = (_processor(cluster) - spent) / (time.monotonic() - began)
        steps = _steps(cluster)
        resident = cluster.resident("node1")
        began = time.perf_counter()
        status = cluster.status("node1")
        compared = time.perf_counter() - began
    ratio = percentile(busy, 99) / percentile(quiet, 99)
    return Section(
        f"The agent's loop among {NODES} nodes",
        f"One real agent; {NODES} other nodes with a block each in its store, whose routes the store distributes "
        f"and "
        f"whose packets cross in VXLAN: some {3 * NODES} kernel objects. {RATE} changes a second for {SECONDS} s, "
        f"one in {LEAVES // 2} a node that leaves and comes back; {ADDS} ADDs before and beside them. A step is "
        "the time in which the agent's loop serves nobody else.",
        (
            Row("longest of 1,000 steps (p99.9)", ms(steps["p99.9"]), "≤ 10 ms", steps["p99.9"] <= 0.010),
            Row("longest step", f"{ms(steps['longest'])} of {steps['count']:.0f}"),
            Row(
                "ADD beside the changes, p99",
                f"{ms(percentile(busy, 99))}, quiet {ms(percentile(quiet, 99))}: {ratio:.2f}",
                "≤ 2 times quiet",
                ratio <= 2,
            ),
            Row("processor time", f"{share:.0%} of a core", "≤ 25 %", share <= 0.25),
            Row("resident memory", mib(resident), "≤ 120 MiB", resident <= 120 * 2**20),
            Row("`status`, which compares every object with the kernel", ms(compared)),
            Row("from the agent's start to ready", ms(restart)),
            Row("kernel writes of that start", str(writes), "0", writes == 0),
            Row("drift afterwards", str(len(status["drift"]["now"])), "0", not status["drift"]["now"]),
        ),
    )


def far_nodes() -> Iterator[tuple[Node, AddressBlock]]:
    """Yield nodes, 10.200.0.1/16 and so on, each with the one block that it has."""
    base = int(IPv4Network("10.200.0.0/16").network_address)
    blocks = itertools.islice(IPv4Network(POOL).subnets(new_prefix=24), FIRST_BLOCK, None)
    for number, network in zip(range(NODES), blocks, strict=False):
        address, name = IPv4Address(base + number + 1), f"far-{number}"
        notes = {INTERFACE_ADDRESSES: f"{address}/16", ACCEPTS: "vxlan", SENDS: "vxlan"}
        node = Node(
            metadata=Metadata(name=name, annotations=notes),
            status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address=str(address)),)),
        )
        spec = AddressBlockSpec(cidr=str(network), pool="ipv4", node=name)
        yield node, AddressBlock(metadata=Metadata(name=block_name(network)), spec=spec)


async def _fill(cluster: Lab) -> None:
    store = open_store(lab_store(cluster.name))
    try:
        for node, block in far_nodes():
            await store.create(node)
            await store.create(block)
    finally:
        await store.close()


def _wait_for_routes(cluster: Lab) -> None:
    """Wait until the kernel has a route to each node."""
    deadline = time.monotonic() + READY
    while cluster.inside("node1", _routes) < NODES:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {NODES} routes came within {READY:g} s")
        time.sleep(0.5)


def _routes() -> int:
    return sum(b"\t" in line for line in Path("/proc/thread-self/net/route").read_bytes().splitlines())


def _restart(cluster: Lab) -> tuple[float, int]:
    kill(cluster.status("node1")["pid"])
    began = time.perf_counter()
    cluster.wait_ready("node1", cluster.start_agent("node1"))
    took = time.perf_counter() - began
    return took, int(cluster.status("node1")["kernel_writes"])


def _adds(plugin: Plugin, path: Path, count: int, seconds: float) -> list[float]:
    """Add and delete a pod so often, spread over so many seconds; return the seconds of each ADD."""
    times, began = [], time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number * seconds / count - time.monotonic()))
        container = new_container()
        times.append(timed(plugin.command("ADD", container, path)))
        timed(plugin.command("DEL", container, path))
    return times


def _steps(cluster: Lab) -> dict[str, float]:
    steps: dict[str, float] = call(node_dir(cluster.name, "node1") / "agent.sock", "steps")
    return steps


def _processor(cluster: Lab) -> float:
    """Return the processor time that the agent took so far, in seconds."""
    pid = call(node_dir(cluster.name, "node1") / "agent.sock", "status")["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _storm(cluster: Lab) -> Iterator[SpawnProcess]:
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(lab_store(cluster.name),))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _write(url: str) -> None:
    asyncio.run(_write_for_a_while(url))


async def _write_for_a_while(url: str) -> None:
    store = open_store(url)
    nodes = {node.metadata.name: node for node in (await store.list(Node)).items}
    turns = itertools.cycle(name for name in nodes if name.startswith("far-"))
    began = time.monotonic()
    try:
        for number in range(0, RATE * SECONDS, 2):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            name = next(turns)
            if number % LEAVES == 0:
                await store.delete(Node, name)
                nodes[name] = await store.create(nodes[name])
            else:
                for _ in range(2):
                    nodes[name] = await _annotate(store, nodes[name], number)
    finally:
        await store.close()


async def _annotate(store: Store, node: Node, number: int) -> Node:
    notes = {**node.metadata.annotations, "example.org/note": f"{number}"}
    metadata = msgspec.structs.replace(node.metadata, annotations=notes)
    return await store.update(msgspec.structs.replace(node, metadata=metadata))
