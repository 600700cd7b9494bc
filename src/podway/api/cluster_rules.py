"""What makes an object right among the others: rules for creating, changing and deleting. Pure.

Agents follow rules of their own (podway.ipam); these keep people from breaking a running network.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

from podway.api.addresses import Family, Network, host_network
from podway.api.crossing_rules import check_crossing
from podway.api.meta import LabelSelector
from podway.api.peer_rules import check_bgp_change, check_bgp_deletion
from podway.api.resources import (
    AddressBlock,
    IPPool,
    Namespace,
    NetworkConfig,
    Node,
    Pod,
    Resource,
    key,
    subject,
)
from podway.errors import InvalidObject

MIN_IPV6_MTU = 1280
"""RFC 8200, section 5."""

T = TypeVar("T", bound=Resource)


def check_change(new: Resource, others: Collection[Resource], *, old: Resource | None = None) -> None:
    """Check an object that is to be created, or to replace `old`, beside the others of the cluster.

    `new` must be valid by itself (podway.api.validate). An object of its key among `others` is passed over.
    Raises InvalidObject, which names the other object.
    """
    rest = [other for other in others if key(other) != key(new)]
    match new:
        case IPPool():
            _check_pool(new, rest)
            if isinstance(old, IPPool):
                _check_pool_change(new, old, rest)
        case Node():
            _check_node(new, rest)
        case NetworkConfig():
            for pool in _of(IPPool, rest):
                _check_mtu(new, pool, blamed=new)
        case AddressBlock():
            _check_block(new, rest)
            if isinstance(old, AddressBlock) and new.spec != old.spec:
                raise _invalid(
                    new, "spec", "a claim cannot be changed", f"delete {subject(key(new))} and claim anew"
                )
        case Pod():
            if isinstance(old, Pod) and old.spec.node_name not in ("", new.spec.node_name):
                raise _invalid(
                    new,
                    "spec.nodeName",
                    f"a pod cannot move: it runs on Node/{old.spec.node_name}",
                    "delete the pod and run it anew",
                )
        case _:
            pass
    check_crossing(new, rest, old=old)
    check_bgp_change(new, rest, old=old)


def check_deletion(obj: Resource, others: Collection[Resource]) -> None:
    """Check that nothing that stays needs an object that is to be deleted.

    `others` are the objects that stay. Raises InvalidObject, which names one that needs it.
    """
    rest = [other for other in others if key(other) != key(obj)]
    match obj:
        case IPPool():
            blocks = [block for block in _of(AddressBlock, rest) if block.spec.pool == obj.metadata.name]
            if blocks:
                raise _invalid(obj, "", _in_use(blocks, rest), _return_hint(obj))
        case AddressBlock():
            owner = next((node for node in _of(Node, rest) if node.metadata.name == obj.spec.node), None)
            if owner is not None:
                raise _invalid(
                    obj,
                    "spec.node",
                    f"{subject(key(owner))} owns it and may have given its addresses to pods",
                    "the node's agent returns empty blocks by itself; a removed node's blocks return too",
                )
        case Node():
            pods = [pod for pod in _of(Pod, rest) if pod.spec.node_name == obj.metadata.name]
            if pods:
                hint = "delete its pods first"
                raise _invalid(obj, "", f"{_some(pods)} on this node", hint)
        case Namespace():
            pods = [pod for pod in _of(Pod, rest) if pod.metadata.namespace == obj.metadata.name]
            if pods:
                raise _invalid(obj, "", f"{_some(pods)} in it", "delete its pods first")
        case _:
            pass
    check_bgp_deletion(obj, rest)


def _check_pool(pool: IPPool, others: Sequence[Resource]) -> None:
    for other in _of(IPPool, others):
        if _overlap(pool.network, other.network):
            raise _invalid(
                pool,
                "spec.cidr",
                f"{pool.network} overlaps {other.network} of {subject(key(other))}",
                "give each pool a range of its own",
            )
        _check_attach(pool, other)
    for node in _of(Node, others):
        _check_pool_beside_node(pool, node, blamed=pool)
    for config in _of(NetworkConfig, others):
        _check_mtu(config, pool, blamed=pool)


def _check_attach(pool: IPPool, other: IPPool) -> None:
    """A dual-stack pod has one link: the pools that serve the same pods must want it to be of one kind.

    Pools whose selectors differ may have pods in common or not: an agent refuses to attach such a pod.
    """
    alone = pool.family is other.family or pool.spec.disabled or other.spec.disabled
    if alone or _selectors(pool) != _selectors(other) or pool.spec.attach == other.spec.attach:
        return
    raise _invalid(
        pool,
        "spec.attach",
        f"is {pool.spec.attach}, but {other.spec.attach} in {subject(key(other))}, which serves the same pods",
        "apply both pools together with one attach, or let their selectors part the pods",
    )


def _selectors(pool: IPPool) -> tuple[LabelSelector | None, LabelSelector | None]:
    return (pool.spec.node_selector, pool.spec.namespace_selector)


def _check_pool_change(pool: IPPool, old: IPPool, others: Sequence[Resource]) -> None:
    blocks = [block for block in _of(AddressBlock, others) if block.spec.pool == pool.metadata.name]
    for field, now, was in (
        ("spec.cidr", pool.network, old.network),
        ("spec.blockSize", pool.block_prefix, old.block_prefix),
    ):
        if blocks and now != was:
            raise _invalid(
                pool,
                field,
                f"cannot change from {was} to {now} while {_in_use(blocks, others)}",
                f"add another IPPool for the new range; {_return_hint(pool)}",
            )


def _check_pool_beside_node(pool: IPPool, node: Node, *, blamed: Resource) -> None:
    other = pool if blamed is node else node
    subnets = (interface.network for interface in node.interface_addresses)
    for taken in (*subnets, *map(host_network, node.internal_addresses)):
        if _overlap(pool.network, taken):
            mine, theirs = (pool.network, taken) if blamed is pool else (taken, pool.network)
            raise _invalid(
                blamed,
                "spec.cidr" if blamed is pool else "status.addresses",
                f"{mine} overlaps {theirs} of {subject(key(other))}",
                "pods and nodes need ranges apart from each other: use another range for the pool",
            )


def _check_node(node: Node, others: Sequence[Resource]) -> None:
    for pool in _of(IPPool, others):
        _check_pool_beside_node(pool, node, blamed=node)
    for other in _of(Node, others):
        for address in set(node.internal_addresses) & set(other.internal_addresses):
            raise _invalid(
                node,
                "status.addresses",
                f"{address} is the address of {subject(key(other))}",
                "give each node an address of its own",
            )


def _check_mtu(config: NetworkConfig, pool: IPPool, *, blamed: Resource) -> None:
    if pool.family is Family.IPV6 and 0 < config.spec.mtu < MIN_IPV6_MTU:
        other = pool if blamed is config else config
        raise _invalid(
            blamed,
            "spec.mtu" if blamed is config else "spec.cidr",
            f"IPv6 needs an MTU of {MIN_IPV6_MTU} at least (RFC 8200), which "
            f"{config.spec.mtu} is not; see {subject(key(other))}",
            f"set the MTU of NetworkConfig/default to 0, or to {MIN_IPV6_MTU} or more",
        )


def _check_block(block: AddressBlock, others: Sequence[Resource]) -> None:
    pool = next((pool for pool in _of(IPPool, others) if pool.metadata.name == block.spec.pool), None)
    if pool is None:
        raise _invalid(block, "spec.pool", f"IPPool/{block.spec.pool} does not exist", "make the pool first")
    inside = block.network.version == pool.family and block.network.subnet_of(pool.network)  # type: ignore[arg-type]
    if not inside or block.network.prefixlen != pool.block_prefix:
        raise _invalid(
            block,
            "spec.cidr",
            f"{block.network} is not a block of {subject(key(pool))}",
            f"the pool {pool.network} is cut into blocks of /{pool.block_prefix}",
        )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _in_use(blocks: Sequence[AddressBlock], others: Sequence[Resource]) -> str:
    """Say who uses blocks: a pod with an address in one, else the nodes that own them."""
    networks = [block.network for block in blocks]
    pods = [
        pod
        for pod in _of(Pod, others)
        if any(address in network for address in pod.addresses for network in networks)
    ]
    nodes = ", ".join(sorted({block.spec.node for block in blocks})[:3])
    owned = f"{len(blocks)} of its blocks belong to nodes ({nodes}{' …' if len(blocks) > 3 else ''})"
    return f"{owned}, and {_some(pods)} in them" if pods else owned


def _return_hint(pool: IPPool) -> str:
    return (
        f"set spec.disabled of {subject(key(pool))}: it gives no more addresses, and nodes return its blocks "
        "once their pods are gone"
    )


def _some(pods: Sequence[Pod]) -> str:
    more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
    return f"{subject(key(pods[0]))}{more} {'are' if more else 'is'}"


def _of(kind: type[T], objects: Sequence[Resource]) -> Iterator[T]:
    return (obj for obj in objects if isinstance(obj, kind))


def _invalid(obj: Resource, field: str, problem: str, hint: str) -> InvalidObject:
    return InvalidObject(subject(key(obj)), field, problem, hint=hint)
