"""The arithmetic of blocks: which parts a pool is cut into, and which addresses of one may be given.

Everything here is pure, and nothing is ever enumerated whole: an IPv6 pool has more blocks, and a block
may have more addresses, than fit in memory.
"""

import re
from collections.abc import Collection, Iterable, Iterator

from podway.api.addresses import Address, Family, Network
from podway.api.addresses import gateway_of as gateway


def free_blocks(pool: Network, prefix: int, taken: Collection[Network]) -> Iterator[Network]:
    """Yield the blocks of a pool that overlap none of `taken`, lowest first.

    `prefix` is the blocks' prefix length.
    """
    family = Family.of(pool)
    size = 1 << (family.bits - prefix)
    start, end = int(pool.network_address), int(pool.broadcast_address)
    position = start
    for low, high in sorted(
        (int(block.network_address), int(block.broadcast_address)) for block in taken if block.version == family
    ):
        while position + size <= min(low, end + 1):
            yield family.network(position, prefix)
            position += size
        if high >= position:
            # Round up to the next block boundary: pools are aligned, so boundaries are multiples of size.
            position = high + size - (high % size)
    while position + size <= end + 1:
        yield family.network(position, prefix)
        position += size


def first_choice(node: str, pool: Network, prefix: int) -> Network | None:
    """Return the block of a pool that a node wants before all others, None if it wants none in particular.

    It is the one that has the node's number: node1's in 10.244.0.0/16 is 10.244.1.0/24, so that people see at
    once whose an address is. The number is at the end of the name, in a domain name at the end of its first
    label: 7 in node7.example.org.
    """
    found = re.search("[0-9]+$", node.partition(".")[0])
    if found is None or int(found[0]) >= count_blocks(pool, prefix):
        return None
    family = Family.of(pool)
    return family.network(int(pool.network_address) + (int(found[0]) << (family.bits - prefix)), prefix)


class FreeBlocks:
    """The blocks of a pool that overlap none of `taken`, to be taken one after the other.

    A node takes its first choice or, where that is not free, the lowest block.
    """

    def __init__(self, pool: Network, prefix: int, taken: Iterable[Network]) -> None:
        inside = {block for block in taken if block.version == pool.version and block.overlaps(pool)}
        self._pool = pool
        self._prefix = prefix
        self._lowest = free_blocks(pool, prefix, inside)
        self._taken = {block for block in inside if block.prefixlen == prefix}
        self._otherwise_cut = inside - self._taken

    def take(self, node: str) -> Network | None:
        """Return the block that a node chooses, which is then taken; None if none is free."""
        chosen = first_choice(node, self._pool, self._prefix)
        if chosen is None or not self._is_free(chosen):
            chosen = next((block for block in self._lowest if block not in self._taken), None)
        if chosen is not None:
            self._taken.add(chosen)
        return chosen

    def _is_free(self, block: Network) -> bool:
        return block not in self._taken and not any(other.overlaps(block) for other in self._otherwise_cut)


def count_blocks(pool: Network, prefix: int) -> int:
    """Return how many blocks a pool is cut into."""
    return 1 << (prefix - pool.prefixlen)


def is_reserved(address: Address, block: Network) -> bool:
    """Tell whether an address of a block is never a pod's.

    These are the network address (in IPv6 the subnet-router anycast address, RFC 4291 section 2.6.1), the
    node's gateway address, and in IPv4 the broadcast address.
    """
    if address in (block.network_address, gateway(block)):
        return True
    return Family.of(address) is Family.IPV4 and address == block.broadcast_address


def capacity(block: Network, excluded: Collection[Network] = ()) -> int:
    """Return how many pods a block has addresses for; `excluded` networks must not overlap each other."""
    reserved = {block.network_address, gateway(block)}
    if Family.of(block) is Family.IPV4:
        reserved.add(block.broadcast_address)
    inside = [network for network in excluded if network.version == block.version and network.overlaps(block)]
    lost = sum(min(network.num_addresses, block.num_addresses) for network in inside)
    kept = sum(1 for address in reserved if not any(address in network for network in inside))
    return max(0, block.num_addresses - lost - kept)
