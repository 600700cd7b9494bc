"""Which pools may serve a pod on a node: decided from selectors alone, without a look at what is free."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from podway.api.addresses import Family, Network
from podway.api.kinds.ip_pool import IPPool
from podway.ipam.addresses import BlockUse


def pools_for(
    pools: Iterable[IPPool],
    *,
    family: Family,
    node_labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
    names: tuple[str, ...] = (),
) -> tuple[IPPool, ...]:
    """Return the pools that may serve a pod, the most specific first.

    A pool that selects namespaces goes before one that selects nodes, and that before one that serves all:
    whoever wrote a selector meant it. With `names` (from the CNI configuration) only those, in that order.
    """
    serving = [
        pool
        for pool in pools
        if pool.family is family
        and not pool.spec.disabled
        and _matches(pool, node_labels, namespace_labels)
        and (not names or pool.metadata.name in names)
    ]
    if names:
        return tuple(sorted(serving, key=lambda pool: names.index(pool.metadata.name)))
    return tuple(sorted(serving, key=lambda pool: (generality(pool), pool.metadata.name)))


def pools_for_node(pools: Iterable[IPPool], node_labels: Mapping[str, str]) -> tuple[IPPool, ...]:
    """Return the enabled pools that select this node: those from which it may own blocks."""
    return tuple(
        pool
        for pool in sorted(pools, key=lambda pool: pool.metadata.name)
        if not pool.spec.disabled
        and (pool.spec.node_selector is None or pool.spec.node_selector.matches(node_labels))
    )


def _matches(pool: IPPool, node_labels: Mapping[str, str], namespace_labels: Mapping[str, str]) -> bool:
    node, namespace = pool.spec.node_selector, pool.spec.namespace_selector
    return (node is None or node.matches(node_labels)) and (
        namespace is None or namespace.matches(namespace_labels)
    )


def generality(pool: IPPool) -> int:
    """Rank a pool by its selectors: the lower, the more is said of whom it serves."""
    return 2 * (pool.spec.namespace_selector is None) + (pool.spec.node_selector is None)


def wants_another(pool: IPPool, uses: Sequence[BlockUse], *, leaving: Collection[Network] = ()) -> bool:
    """Tell whether a node that this pool serves must claim a (further) block of it.

    `uses` are the node's blocks of the pool; of those `leaving`, nothing is leased any more. A first block is
    claimed at once, unless the pool is for some namespaces only: then when a pod of theirs comes.
    """
    if not uses:
        return pool.spec.namespace_selector is None
    return sum(use.free for use in uses if use.block not in leaving) <= uses[0].spare
