"""From a new block to its route in the kernel of every other node, in small clusters and large."""

import time
from collections.abc import Iterator, Sequence

import msgspec

from bench.fib import Fibs
from bench.labs import Lab, lab
from bench.report import Row, Section
from bench.samples import median, ms
from bench.settings import Settings, switch
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.ipam.claims import claim
from podway.lab import facts
from podway.store.base import Store

BLOCKS = 10
"""New blocks in each cluster, told in each way, of nodes in turn."""
PAUSE = 0.3
"""Seconds between two."""

CLUSTERS = ((3, 1), (50, 3), (100, 3))
"""Nodes, and how many of them are route reflectors."""


class _Arrivals(msgspec.Struct, frozen=True):
    """When the route to a new block came to each other node: seconds since the claim, and since the own route."""

    since_claim: Sequence[float]
    since_own: Sequence[float]


def measure() -> Section:
    return Section(
        "From a new block to the route on every other node",
        "A block is claimed in the store; its node's agent sees that and writes the block's own (blackhole) "
        "route, BIRD learns it from the kernel and tells it, and BIRD on every other node writes the route "
        "there. With `store`, the agents see the claim and write the routes. Every kernel tells one process "
        "of its routes by netlink; times are from before the claim is written, and from the news of the own "
        f"route, to the news of each other node's. {BLOCKS} blocks of nodes in turn: median and worst over all "
        "nodes and blocks.",
        tuple(row for nodes, reflectors in CLUSTERS for row in _rows(nodes, reflectors)),
    )


def _rows(nodes: int, reflectors: int) -> Iterator[Row]:
    ways = {
        f"{reflectors} reflector{'s' if reflectors > 1 else ''}": Settings(reflectors=reflectors),
        "store": Settings(distribution="store", reflectors=reflectors),
        "mesh": Settings(),  # last: 100 nodes have 4950 sessions, which one machine opens in minutes
    }
    with lab(nodes=nodes) as cluster:
        for words, settings in ways.items():
            try:
                switch(cluster, settings)
            except TimeoutError as error:
                yield Row(f"{nodes} nodes, {words}", f"not measured: {error}")
                continue
            yield _row(f"{nodes} nodes, {words}", settings, _arrivals(cluster))


def _arrivals(cluster: Lab) -> list[_Arrivals]:
    found = []
    with Fibs(cluster, cluster.nodes) as fibs:
        for number in range(BLOCKS):
            time.sleep(PAUSE)
            found.append(_one(cluster, fibs, cluster.nodes[number * 7 % len(cluster.nodes)]))
    return found


def _one(cluster: Lab, fibs: Fibs, node: str) -> _Arrivals:
    async def claim_one(store: Store) -> tuple[AddressBlock, float]:
        (pool,) = (await store.list(IPPool)).items
        begun = time.monotonic()
        return await claim(store, pool, node), begun

    block, begun = facts.ask(cluster.name, claim_one)
    others = [other for other in cluster.nodes if other != node]
    arrived = fibs.came(block.network, others).values()
    own = fibs.came(block.network, [node], "blackhole")[node]
    return _Arrivals([at - begun for at in arrived], [at - own for at in arrived])


def _row(what: str, settings: Settings, found: Sequence[_Arrivals]) -> Row:
    claimed = [seconds for each in found for seconds in each.since_claim]
    own = [seconds for each in found for seconds in each.since_own]
    words = f"{ms(median(claimed))} (worst {ms(max(claimed))})"
    if settings.distribution == "bgp":
        words += f"; after the own route {ms(median(own))} (worst {ms(max(own))})"
    return Row(what, words)
