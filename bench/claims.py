"""From a block claimed in the store to its route in the other nodes' kernels."""

import time

from bench.labs import Lab, lab
from bench.report import Row, Section
from bench.samples import median, ms
from podway.api.addresses import Family, Network
from podway.api.resources import IPPool
from podway.ipam.claims import claim
from podway.kernel import routes
from podway.kernel.netlink import Connection
from podway.lab import facts, names, topology
from podway.store.base import Store

ROUNDS = 20
LOOK = 0.0005
"""Seconds between two looks at the kernel."""
PATIENCE = 10.0


def measure() -> Section:
    with lab(nodes=3) as cluster, topology.connection(names.node_netns(cluster.name, "node3")) as there:
        times = [_one(cluster, there) for _ in range(ROUNDS)]
    return Section(
        "From a claimed block to the route on another node",
        "A block is claimed in the store for node1; its agent sees that and writes the block's route, BIRD learns "
        "it from the kernel and tells its peers, and BIRD on node3 writes the route there. "
        f"{ROUNDS} times in turn.",
        (Row("claim until route on node3", f"{ms(median(times))} (worst {ms(max(times))})"),),
    )


def _one(cluster: Lab, there: Connection) -> float:
    async def claim_one(store: Store) -> tuple[Network, float]:
        pool = (await store.list(IPPool)).items[0]
        begun = time.monotonic()
        return (await claim(store, pool, "node1")).network, begun

    network, begun = facts.ask(cluster.name, claim_one)
    while not any(route.destination == network for route in routes.dump(there, Family.of(network))):
        if time.monotonic() > begun + PATIENCE:
            raise TimeoutError(f"no route to {network} on node3 after {PATIENCE:g} s")
        time.sleep(LOOK)
    return time.monotonic() - begun
