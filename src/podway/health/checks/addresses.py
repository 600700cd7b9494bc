"""Ranges of addresses: which overlap, and which run out."""

from collections.abc import Iterator

from podway.api.addresses import Family, Network
from podway.api.kinds.ip_pool import IPPool
from podway.health.facts import NodeFacts, PoolFill
from podway.health.finding import Problem, Severity, node_check
from podway.ipam.blocks import count_blocks

FEW = 8
"""Less than one of so many addresses of a node's blocks left is nearly none."""


@node_check(
    "overlap",
    looks_at="subnets of the node's other devices (docker0, VPNs) beside the pools and the other nodes' addresses",
    why="the kernel sends packets for an overlapping range to its own device: those pods or nodes are cut off",
)
def overlap(facts: NodeFacts) -> Iterator[Problem]:
    """Subnets of pods' links are ours; the uplink's own may hold the other nodes."""
    uplink = facts.memory.uplink.device
    for device in facts.network.devices:
        subnets = {address.network for address in device.addresses if not device.ours and device.name != "lo"}
        for subnet in sorted(subnets, key=str):
            if subnet.prefixlen == Family.of(subnet).bits or subnet.is_link_local:
                continue
            yield from _pools_in(facts, device.name, subnet)
            if device.name != uplink:
                yield from _nodes_in(facts, device.name, subnet)


def _pools_in(facts: NodeFacts, device: str, subnet: Network) -> Iterator[Problem]:
    for name, pool in facts.memory.view.pools.items():
        if pool.network.version == subnet.version and pool.network.overlaps(subnet):
            yield Problem(
                f"its subnet {subnet} overlaps IPPool/{name} ({pool.spec.cidr})",
                f"give {device} another subnet (for Docker: `bip` and `default-address-pools` in "
                "/etc/docker/daemon.json), or the pods another pool",
                device,
            )


def _nodes_in(facts: NodeFacts, device: str, subnet: Network) -> Iterator[Problem]:
    for name, node in facts.memory.view.nodes.items():
        for address in node.internal_addresses:
            if name != facts.memory.node and address.version == subnet.version and address in subnet:
                yield Problem(
                    f"its subnet {subnet} holds {address}, the address of node {name}",
                    f"give {device} another subnet: packets to {name} go there now",
                    device,
                )


@node_check(
    "blocks",
    looks_at="free addresses in this node's blocks of every pool, and blocks of the pool that are left to claim",
    why="a node without a free address cannot start another pod",
)
def blocks(facts: NodeFacts) -> Iterator[Problem]:
    """The agent claims another block while there is one, and another pool may serve the same pods."""
    for name in facts.memory.pools:
        pool = facts.memory.view.pools.get(name)
        if pool is None or _left(facts, pool) or _relieved(facts, pool):
            continue
        uses = [use for use in facts.memory.blocks if use.pool == name]
        free, capacity = sum(use.free for use in uses), sum(use.capacity for use in uses)
        if free * FEW <= capacity:
            cooling = sum(use.cooling for use in uses)
            wait = f", {cooling} of them free again within {pool.spec.cooldown_seconds} s" if cooling else ""
            yield Problem(
                f"{capacity - free} of {capacity} addresses are taken{wait}, and every block of {pool.spec.cidr} "
                "is claimed",
                "add an IPPool (`podway apply`), or remove nodes and pods that nobody needs; smaller blocks "
                "(spec.blockSize) spread a pool over more nodes",
                f"IPPool/{name}",
                Severity.WARNING if free else Severity.ERROR,
            )


def pool_fill(facts: NodeFacts, pool: IPPool) -> PoolFill:
    """Return how many of a pool's blocks are claimed, and whether another pool stands in for it on this node."""
    total = count_blocks(pool.network, pool.block_prefix)
    return PoolFill(
        pool.metadata.name,
        pool.spec.cidr,
        total - _left(facts, pool),
        total,
        pool.spec.disabled or pool.metadata.name not in facts.memory.pools or _relieved(facts, pool, blocks=True),
    )


def _left(facts: NodeFacts, pool: IPPool) -> int:
    """Return how many blocks of a pool nobody has claimed."""
    claimed = sum(block.spec.pool == pool.metadata.name for block in facts.memory.view.blocks.values())
    return count_blocks(pool.network, pool.block_prefix) - claimed


def _relieved(facts: NodeFacts, full: IPPool, *, blocks: bool = False) -> bool:
    """Tell whether another pool serves every pod that a full one would serve on this node, and has room.

    That is a block that nobody has claimed, or, unless `blocks` is true, an address in this node's blocks.
    """
    for name in facts.memory.pools:
        pool = facts.memory.view.pools.get(name)
        if pool is None or pool is full or pool.family is not full.family:
            continue
        if pool.spec.namespace_selector not in (None, full.spec.namespace_selector):
            continue
        free = sum(use.free for use in facts.memory.blocks if use.pool == name)
        if _left(facts, pool) or (free and not blocks):
            return True
    return False
