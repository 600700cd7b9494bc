"""Ranges of nodes that Kubernetes gives out (Node `spec.podCIDRs`), for pools that say so. Pure.

An AddressBlock says whose a range is there, too: routes, plans and everybody who looks for an address go by
blocks. What is different is which one a node may claim: its podCIDR of the pool's family, and no other.
"""

from collections.abc import Iterable

from podway.api.addresses import Network, is_within
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.api.resource import key, subject
from podway.errors import PoolExhausted


def given(pool: IPPool) -> bool:
    """Tell whether a pool's ranges are given out by Kubernetes."""
    return pool.spec.ranges == "podCIDRs"


def given_range(pool: IPPool, node: str, found: Node | None) -> Network:
    """Return the range of such a pool that a node was given; `found` is its Node.

    Raises PoolExhausted, in words that say what is missing, if it has none that is one of the pool's.
    """
    where = subject(key(pool))
    network = found.pod_network(pool.family) if found else None
    if network is None:
        raise PoolExhausted(
            f"Node/{node} has no {pool.family.label} range in spec.podCIDRs yet, which {where} takes for its pods",
            hint="have kube-controller-manager give it one: --allocate-node-cidrs=true and --cluster-cidr="
            f"{pool.network}; or set ranges: blocks of {where}",
        )
    if not is_within(network, pool.network):
        raise PoolExhausted(
            f"{network}, of spec.podCIDRs of Node/{node}, is not in {where} ({pool.network})",
            hint="write into spec.cidr what kube-controller-manager has as --cluster-cidr",
        )
    if network.prefixlen != pool.block_prefix:
        raise PoolExhausted(
            f"{network}, of spec.podCIDRs of Node/{node}, is no block of {where} (/{pool.block_prefix})",
            hint=f"set spec.blockSize: {network.prefixlen} (kube-controller-manager's --node-cidr-mask-size)",
        )
    return network


def given_ranges(pools: Iterable[IPPool], node: str, found: Node | None) -> frozenset[Network]:
    """Return the ranges that a node was given, of those pools whose ranges are given."""
    ranges = set()
    for pool in pools:
        if given(pool):
            try:
                ranges.add(given_range(pool, node, found))
            except PoolExhausted:
                continue  # whoever claims says so
    return frozenset(ranges)
