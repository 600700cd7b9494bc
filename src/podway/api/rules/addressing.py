"""Ranges and addresses: of pools, of their blocks, and of the nodes. Pure."""

from collections.abc import Sequence

from podway.api.addresses import Address, Family, Network, host_network, is_within
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.meta import LabelSelector
from podway.api.resource import Resource, invalid, key, of_kind, subject
from podway.api.rules.pods import some

MIN_IPV6_MTU = 1280
"""RFC 8200, section 5."""


def check_change(new: Resource, others: Sequence[Resource], old: Resource | None) -> None:
    """Check a pool, block, node or the cluster's MTU. Raises InvalidObject."""
    match new:
        case IPPool():
            _check_pool(new, others)
            if isinstance(old, IPPool):
                _check_pool_change(new, old, others)
        case Node():
            _check_node(new, others)
        case NetworkConfig():
            for pool in of_kind(IPPool, others):
                check_mtu(new, pool, blamed=new)
        case AddressBlock():
            _check_block(new, others)
            if isinstance(old, AddressBlock) and new.spec != old.spec:
                raise invalid(
                    new, "spec", "a claim cannot be changed", f"delete {subject(key(new))} and claim anew"
                )


def check_deletion(obj: Resource, others: Sequence[Resource]) -> None:
    """Check that a pool or block is in no use. Raises InvalidObject."""
    match obj:
        case IPPool():
            blocks = [block for block in of_kind(AddressBlock, others) if block.spec.pool == obj.metadata.name]
            if blocks:
                raise invalid(obj, "", _in_use(blocks, others), _return_hint(obj))
            if users := _users(obj, others):
                raise invalid(obj, "", _has_address(users, obj), _RELEASE_HINT.format(subject(key(obj))))
        case AddressBlock():
            owner = next((node for node in of_kind(Node, others) if node.metadata.name == obj.spec.node), None)
            if owner is not None:
                raise invalid(
                    obj,
                    "spec.node",
                    f"{subject(key(owner))} owns it and may have given its addresses to pods",
                    "the node's agent returns empty blocks by itself; a removed node's blocks return too",
                )


def _check_pool(pool: IPPool, others: Sequence[Resource]) -> None:
    for other in of_kind(IPPool, others):
        check_apart(pool, other)
        check_attach(pool, other)
    for node in of_kind(Node, others):
        check_pool_beside_node(pool, node, blamed=pool)
    for config in of_kind(NetworkConfig, others):
        check_mtu(config, pool, blamed=pool)


def check_apart(pool: IPPool, other: IPPool) -> None:
    """Check that two pools have no address in common. Raises InvalidObject."""
    if _overlap(pool.network, other.network):
        raise invalid(
            pool,
            "spec.cidr",
            f"{pool.network} overlaps {other.network} of {subject(key(other))}",
            "give each pool a range of its own",
        )


def check_attach(pool: IPPool, other: IPPool) -> None:
    """A dual-stack pod has one link: the pools that serve the same pods must want it to be of one kind.

    Pools whose selectors differ may have pods in common or not: an agent refuses to attach such a pod.
    """
    alone = pool.family is other.family or any(one.spec.disabled or one.for_services for one in (pool, other))
    if alone or _selectors(pool) != _selectors(other) or pool.spec.attach == other.spec.attach:
        return
    raise invalid(
        pool,
        "spec.attach",
        f"is {pool.spec.attach}, but {other.spec.attach} in {subject(key(other))}, which serves the same pods",
        "apply both pools together with one attach, or let their selectors part the pods",
    )


def _selectors(pool: IPPool) -> tuple[LabelSelector | None, LabelSelector | None]:
    return (pool.spec.node_selector, pool.spec.namespace_selector)


def _check_pool_change(pool: IPPool, old: IPPool, others: Sequence[Resource]) -> None:
    blocks = [block for block in of_kind(AddressBlock, others) if block.spec.pool == pool.metadata.name]
    for field, now, was in (
        ("spec.use", pool.spec.use, old.spec.use),
        ("spec.cidr", pool.network, old.network),
        ("spec.blockSize", pool.block_prefix, old.block_prefix),
    ):
        if blocks and now != was:
            raise invalid(
                pool,
                field,
                f"cannot change from {was} to {now} while {_in_use(blocks, others)}",
                f"add another IPPool for the new range; {_return_hint(pool)}",
            )
    users = [
        one
        for one in _users(old, others)
        if not pool.for_services or any(_lost(address, old, pool) for address in one.load_balancer_addresses)
    ]
    if users:
        field = "spec.cidr" if pool.for_services else "spec.use"
        problem = f"cannot change while {_has_address(users, old)}"
        raise invalid(pool, field, problem, _RELEASE_HINT.format(subject(key(pool))))


_RELEASE_HINT = (
    "set spec.disabled of {}: it gives no more addresses, and those that it gave stay; or delete the Service"
)


def _users(pool: IPPool, others: Sequence[Resource]) -> list[Service]:
    """Return the Services that have an address of a pool for Services."""
    if not pool.for_services:
        return []
    return [
        one
        for one in of_kind(Service, others)
        if any(_within(address, pool.network) for address in one.load_balancer_addresses)
    ]


def _lost(address: Address, old: IPPool, new: IPPool) -> bool:
    return _within(address, old.network) and not _within(address, new.network)


def _within(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


def _has_address(users: Sequence[Service], pool: IPPool) -> str:
    found = next(one for one in users[0].load_balancer_addresses if _within(one, pool.network))
    more = f", and {len(users) - 1} more have addresses of it" if len(users) > 1 else ""
    return f"{subject(key(users[0]))} has {found}{more}"


def check_blocks_fit(pool: IPPool, blocks: Sequence[AddressBlock]) -> None:
    """Check that the blocks of a pool that nodes own are blocks of what it is now. Raises InvalidObject."""
    if blocks and pool.for_services:
        problem = (
            f"cannot be services while nodes own blocks of it: {blocks[0].spec.node} owns {blocks[0].network}"
        )
        raise invalid(pool, "spec.use", problem, f"set it back, and add another IPPool; {_return_hint(pool)}")
    for block in blocks:
        within = is_within(block.network, pool.network)
        if within and block.network.prefixlen == pool.block_prefix:
            continue
        now = f"blocks of /{pool.block_prefix}" if within else str(pool.network)
        raise invalid(
            pool,
            "spec.blockSize" if within else "spec.cidr",
            f"cannot be {now} while nodes own other blocks of it: {block.spec.node} owns {block.network}",
            f"set it back, and add another IPPool for the new range; {_return_hint(pool)}",
        )


def check_beside_blocks(pool: IPPool, blocks: Sequence[AddressBlock]) -> None:
    """Check that no node owns a block of another pool in this one's range. Raises InvalidObject."""
    for block in blocks:
        if _overlap(pool.network, block.network):
            raise invalid(
                pool,
                "spec.cidr",
                f"{pool.network} overlaps block {block.network} of IPPool/{block.spec.pool}, which "
                f"{block.spec.node} owns",
                "give each pool a range of its own",
            )


def check_pool_beside_node(pool: IPPool, node: Node, *, blamed: Resource) -> None:
    """Check that a pool has no address of a node and its subnets. Raises InvalidObject about the one to blame.

    Addresses that are answered for on the nodes' own segment are of its subnet, and only no node's.
    """
    other = pool if blamed is node else node
    on_segment = pool.spec.advertise == "layer2"
    subnets = () if on_segment else tuple(interface.network for interface in node.interface_addresses)
    own = dict.fromkeys((*(interface.ip for interface in node.interface_addresses), *node.internal_addresses))
    for taken in (*subnets, *map(host_network, own)):
        if on_segment and any(is_within(taken, excluded) for excluded in pool.excluded_networks):
            continue
        if _overlap(pool.network, taken):
            mine, theirs = (pool.network, taken) if blamed is pool else (taken, pool.network)
            raise invalid(
                blamed,
                "spec.cidr" if blamed is pool else "status.addresses",
                f"{mine} overlaps {theirs} of {subject(key(other))}",
                "nodes need ranges apart from pods and Services: use another range for the pool"
                + (", or list the address in spec.excluded" if on_segment else ""),
            )


def _check_node(node: Node, others: Sequence[Resource]) -> None:
    for pool in of_kind(IPPool, others):
        check_pool_beside_node(pool, node, blamed=node)
    for other in of_kind(Node, others):
        for address in set(node.internal_addresses) & set(other.internal_addresses):
            raise invalid(
                node,
                "status.addresses",
                f"{address} is the address of {subject(key(other))}",
                "give each node an address of its own",
            )


def check_mtu(config: NetworkConfig, pool: IPPool, *, blamed: Resource) -> None:
    """Check that the MTU is enough for a pool's family. Raises InvalidObject about the one to blame."""
    if pool.family is Family.IPV6 and not pool.for_services and 0 < config.spec.mtu < MIN_IPV6_MTU:
        other = pool if blamed is config else config
        raise invalid(
            blamed,
            "spec.mtu" if blamed is config else "spec.cidr",
            f"IPv6 needs an MTU of {MIN_IPV6_MTU} at least (RFC 8200), which "
            f"{config.spec.mtu} is not; see {subject(key(other))}",
            f"set the MTU of NetworkConfig/default to 0, or to {MIN_IPV6_MTU} or more",
        )


def _check_block(block: AddressBlock, others: Sequence[Resource]) -> None:
    pool = next((pool for pool in of_kind(IPPool, others) if pool.metadata.name == block.spec.pool), None)
    if pool is None:
        raise invalid(block, "spec.pool", f"IPPool/{block.spec.pool} does not exist", "make the pool first")
    if pool.for_services:
        raise invalid(block, "spec.pool", f"{subject(key(pool))} is for Services", "claim a block of another pool")
    if not is_within(block.network, pool.network) or block.network.prefixlen != pool.block_prefix:
        raise invalid(
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
        for pod in of_kind(Pod, others)
        if any(address in network for address in pod.addresses for network in networks)
    ]
    nodes = ", ".join(sorted({block.spec.node for block in blocks})[:3])
    owned = f"{len(blocks)} of its blocks belong to nodes ({nodes}{' …' if len(blocks) > 3 else ''})"
    return f"{owned}, and {some(pods)} in them" if pods else owned


def _return_hint(pool: IPPool) -> str:
    return (
        f"set spec.disabled of {subject(key(pool))}: it gives no more addresses, and nodes return its blocks "
        "once their pods are gone"
    )
