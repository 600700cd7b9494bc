"""A node's power cut: how long the other nodes keep its routes, in every encapsulation and told in each way."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from bench.fib import PATIENCE, Fibs
from bench.labs import Lab, lab, podway
from bench.report import Row, Section
from bench.samples import median, ms
from bench.settings import Settings, switch
from podway.api.addresses import Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Encapsulation
from podway.api.kinds.node import Node
from podway.lab import cluster as labs
from podway.lab import facts
from podway.store.base import Event, Store

NODES = 4
ROUNDS = 3
ENCAPSULATIONS: tuple[Encapsulation, ...] = ("none", "vxlan", "ipip")
TARGET = 1.0


class _Deletion(msgspec.Struct, frozen=True):
    """Seconds from the command until the store told of it, and from there until the routes were gone."""

    known: float
    gone: float


def measure() -> Section:
    cut: dict[Encapsulation, list[float]] = {}
    with lab(nodes=NODES) as cluster:
        victims = (cluster.nodes[1:] * ROUNDS)[:ROUNDS]
        for encapsulation in ENCAPSULATIONS:
            switch(cluster, Settings(encapsulation=encapsulation))
            cut[encapsulation] = [_cut(cluster, victim) for victim in victims]
        switch(cluster, Settings(distribution="store"))
        deleted = [_delete(cluster, victim) for victim in cluster.nodes[1:]]
    return Section(
        "A node killed",
        f"`podway lab node kill` in a lab of {NODES} nodes, {ROUNDS} times in each encapsulation: "
        f"from the command's call, "
        "which then cuts the node's link and kills all its processes, until every other node's kernel has told "
        "that its route to the node's block is gone. With `store` nobody but the store can know: "
        f"{len(deleted)} nodes are killed and then deleted by `podway delete node`, as an operator or Kubernetes "
        "does; from the command until those who watch the store are told, and from there until the routes "
        "are gone.",
        (
            *(
                _row(f"bgp, {encapsulation}: routes gone from every other node", times)
                for encapsulation, times in cut.items()
            ),
            Row("store: until the store knows, by the command", _words([each.known for each in deleted])),
            Row("store: from there until routes are gone everywhere", _words([each.gone for each in deleted])),
        ),
    )


def _row(what: str, times: Sequence[float]) -> Row:
    return Row(what, _words(times), f"at most {TARGET:g} s", max(times) <= TARGET)


def _words(times: Sequence[float]) -> str:
    return f"{ms(median(times))} (worst {ms(max(times))})"


def _cut(cluster: Lab, victim: str) -> float:
    """Kill a node and start it again; return how long the others kept its routes."""
    others = [node for node in cluster.nodes if node != victim]
    blocks = _blocks(cluster, victim)
    with Fibs(cluster, others) as fibs, ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        # In a thread, for the command returns only when every process of the node has ended.
        killing = pool.submit(labs.kill_node, cluster.name, victim)
        gone = _gone(fibs, blocks, others, begun)
        killing.result()
    labs.start_node(cluster.name, victim, lambda _: None)
    return gone - begun


def _delete(cluster: Lab, victim: str) -> _Deletion:
    """Kill a node, delete its object, and start it again."""
    others = [node for node in cluster.nodes if node != victim]
    blocks = _blocks(cluster, victim)
    labs.kill_node(cluster.name, victim)
    with Fibs(cluster, others) as fibs, ThreadPoolExecutor(1) as pool:
        version = facts.ask(cluster.name, lambda store: store.list(Node)).version
        knowing = pool.submit(facts.ask, cluster.name, lambda store: _deleted(store, victim, version))
        begun = time.monotonic()
        podway(cluster.name, "delete", "node", victim)
        known = knowing.result(timeout=PATIENCE)
        gone = _gone(fibs, blocks, others, begun)
    labs.start_node(cluster.name, victim, lambda _: None)
    return _Deletion(known - begun, gone - known)


async def _deleted(store: Store, node: str, version: str) -> float:
    """Wait until the store tells that a node's object was deleted; return when."""
    async for event in store.watch(Node, version):
        if (
            isinstance(event, Event)
            and event.type == "deleted"
            and isinstance(event.object, Node)
            and event.object.metadata.name == node
        ):
            return time.monotonic()
    raise AssertionError("a watch does not end")


def _blocks(cluster: Lab, node: str) -> list[Network]:
    found = facts.ask(cluster.name, lambda store: store.list(AddressBlock)).items
    return [block.network for block in found if block.spec.node == node]


def _gone(fibs: Fibs, blocks: Sequence[Network], nodes: Sequence[str], since: float) -> float:
    return max(at for block in blocks for at in fibs.went(block, nodes, since).values())
