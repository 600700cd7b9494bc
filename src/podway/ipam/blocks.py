"""The arithmetic of blocks: which parts a pool is cut into, and which addresses of one may be given.

Everything here is pure, and nothing is ever enumerated whole: an IPv6 pool has more blocks, and a block
may have more addresses, than fit in memory.
"""

from collections.abc import Collection, Iterator

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


def block_of(address: Address, prefix: int) -> Network:
    """Return the block of this prefix length that an address lies in."""
    family = Family.of(address)
    shift = family.bits - prefix
    return family.network(int(address) >> shift << shift, prefix)


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
