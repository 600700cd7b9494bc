"""A node's power cut: how long the other nodes keep its routes."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from bench.labs import Lab, lab
from bench.report import Row, Section
from bench.samples import median, ms
from podway.api.addresses import Family, Network
from podway.api.resources import AddressBlock
from podway.kernel import routes
from podway.kernel.netlink import Connection
from podway.lab import cluster as labs
from podway.lab import facts, names, topology

NODES = 4
ROUNDS = 6
LOOK = 0.002
"""Seconds between two looks at the kernels."""
PATIENCE = 60.0
TARGET = 1.0


def measure() -> Section:
    with lab(nodes=NODES) as cluster:
        victims = (cluster.nodes[1:] * ROUNDS)[:ROUNDS]
        times = [_lose(cluster, victim) for victim in victims]
    return Section(
        "A node killed",
        f"`podway lab node kill` in a lab of {NODES} nodes, {ROUNDS} times: from the command's call, which then "
        "cuts the node's link and kills all its processes, until no other node's kernel has a route to its block.",
        (
            Row(
                "routes gone from every other node",
                f"{ms(median(times))} (worst {ms(max(times))})",
                f"at most {TARGET:g} s",
                max(times) <= TARGET,
            ),
        ),
    )


def _lose(cluster: Lab, victim: str) -> float:
    blocks = {
        block.network
        for block in facts.ask(cluster.name, lambda store: store.list(AddressBlock)).items
        if block.spec.node == victim
    }
    with contextlib.ExitStack() as stack:
        others = {
            node: stack.enter_context(topology.connection(names.node_netns(cluster.name, node)))
            for node in cluster.nodes
            if node != victim
        }
        if not all(_has(kernel, blocks) for kernel in others.values()):
            raise RuntimeError(f"not every node has the routes of {victim} to begin with")
        begun = time.monotonic()
        # In a thread, for the command returns only when every process of the node has ended.
        pool = stack.enter_context(ThreadPoolExecutor(1))
        killing = pool.submit(labs.kill_node, cluster.name, victim)
        gone = 0.0
        while others and time.monotonic() < begun + PATIENCE:
            others = {node: kernel for node, kernel in others.items() if _has(kernel, blocks)}
            gone = time.monotonic() - begun
            time.sleep(LOOK)
        killing.result()
    labs.start_node(cluster.name, victim, lambda _: None)
    return gone if not others else PATIENCE


def _has(kernel: Connection, blocks: set[Network]) -> bool:
    families = {Family.of(block) for block in blocks}
    return any(route.destination in blocks for family in families for route in routes.dump(kernel, family))
