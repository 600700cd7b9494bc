"""Which of a node's own addresses are free, leased or cooling.

This book is memory only: its truth is the kernel (podway.api.lease), from which the agent fills it when it
starts. Leasing needs no disk and no call to the store.

Addresses that were never used come first, then the one that was freed longest ago: a new pod gets an address
that others have had the most time to forget. A freed address is not given again before its pool's cool-down
has passed, unless it is asked for by name.
"""

import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.errors import AddressUnavailable
from podway.ipam.blocks import capacity, is_reserved

Owner = TypeVar("Owner")

SPARE_FRACTION = 8
"""Claim another block when less than this part (1/8) of one is left."""


class BlockUse(msgspec.Struct, frozen=True):
    """How full one block is, in addresses."""

    block: Network
    pool: str
    leased: int
    cooling: int
    capacity: int

    @property
    def free(self) -> int:
        """How many can be leased now."""
        return self.capacity - self.leased - self.cooling

    @property
    def spare(self) -> int:
        """How many a node keeps in reserve, so that a pod never waits for a claim."""
        return max(1, self.capacity // SPARE_FRACTION)


class _Block(Generic[Owner]):
    """One block's books. Freed addresses wait in the order of their freeing."""

    def __init__(self, network: Network, pool: str, excluded: tuple[Network, ...], cooldown: float) -> None:
        self.network = network
        self.family = Family.of(network)
        self.pool = pool
        self.excluded = excluded
        self.cooldown = cooldown
        self.draining = False
        self.leased: dict[Address, Owner] = {}
        self.freed: OrderedDict[Address, float] = OrderedDict()
        self.capacity = capacity(network, excluded)
        self._next = int(network.network_address)
        self._unseen = network.num_addresses
        """How many addresses, from `_next` on and round, may never have been used."""

    def scatter(self) -> None:
        """Begin with the addresses anywhere in the block."""
        self._next = int(self.network.network_address) + random.randrange(self.network.num_addresses)
        self._unseen = self.network.num_addresses

    def may_give(self, address: Address) -> bool:
        return not is_reserved(address, self.network) and not any(address in net for net in self.excluded)

    def pick(self, now: float) -> Address | None:
        """Return the best free address, None if there is none now."""
        return self._never_used() or self._longest_freed(now)

    def cooling(self, now: float) -> int:
        return sum(1 for since in self.freed.values() if now - since < self.cooldown)

    def _never_used(self) -> Address | None:
        first, last = int(self.network.network_address), int(self.network.broadcast_address)
        while self._unseen > 0:
            address = self.family.address(self._next)
            # A large excluded range is stepped over at once.
            end = self._end_of_exclusion(address)
            used = address in self.leased or address in self.freed
            if end is None and not used and not is_reserved(address, self.network):
                return address
            step = min(end or self._next, last) - self._next + 1
            self._unseen -= step
            self._next = self._next + step if self._next + step <= last else first
        return None

    def _end_of_exclusion(self, address: Address) -> int | None:
        return next((int(net.broadcast_address) for net in self.excluded if address in net), None)

    def _longest_freed(self, now: float) -> Address | None:
        for address, since in self.freed.items():
            if now - since < self.cooldown:
                return None
            if self.may_give(address):
                return address
        return None


class AddressBook(Generic[Owner]):
    """The addresses of one node's blocks. `now` arguments are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._blocks: dict[Network, _Block[Owner]] = {}
        self._strays: dict[Address, Owner] = {}
        """Leases outside every block that we own: kept, so that the address is not lost from sight."""

    def set_blocks(
        self,
        blocks: Mapping[Network, str],
        excluded: Mapping[str, tuple[Network, ...]],
        cooldown: Mapping[str, float],
    ) -> None:
        """Say which blocks are ours (block to pool name), and the pools' exclusions and cool-downs.

        Addresses of a pool are leased from its blocks in this order. Leases stay whatever happens to their block.
        """
        for network in [net for net in self._blocks if net not in blocks]:
            gone = self._blocks.pop(network)
            self._strays.update(gone.leased)
        for network, pool in blocks.items():
            block = self._blocks.get(network)
            if block is None:
                block = _Block(network, pool, excluded.get(pool, ()), cooldown.get(pool, 0.0))
                self._blocks[network] = block
                for address in [a for a in self._strays if a in network]:
                    block.leased[address] = self._strays.pop(address)
            elif block.excluded != excluded.get(pool, ()) or block.cooldown != cooldown.get(pool, 0.0):
                fresh = _Block[Owner](network, pool, excluded.get(pool, ()), cooldown.get(pool, 0.0))
                fresh.leased, fresh.freed, fresh.draining = block.leased, block.freed, block.draining
                self._blocks[network] = fresh
        self._blocks = {network: self._blocks[network] for network in blocks}

    def lease(self, pool: str, owner: Owner, now: float) -> Address | None:
        """Lease the best free address of a pool to an owner; None if this node has none left in it."""
        for block in self._of_pool(pool):
            if block.draining:
                continue
            address = block.pick(now)
            if address is not None:
                self._give(block, address, owner)
                return address
        return None

    def take(self, address: Address, owner: Owner) -> None:
        """Lease one wanted address, cool-down or not.

        Raises AddressUnavailable if it is another's, reserved, excluded, or in none of our blocks.
        """
        block = self._block_of(address)
        if block is None or block.draining:
            raise AddressUnavailable(f"address {address} is in none of this node's blocks", hint="try again")
        if address in block.leased:
            raise AddressUnavailable(
                f"address {address} is leased to {block.leased[address]}", hint="ask for another address"
            )
        if not block.may_give(address):
            raise AddressUnavailable(
                f"address {address} is reserved or excluded in block {block.network} of pool {block.pool}",
                hint="ask for another address",
            )
        self._give(block, address, owner)

    def scatter(self) -> None:
        """Begin anywhere in each block from now on.

        Before a restart addresses were freed, and nobody knows which: so it is unlikely that one of them is
        given again before its cool-down is over.
        """
        for block in self._blocks.values():
            block.scatter()

    def restore(self, address: Address, owner: Owner) -> None:
        """Enter a lease that the kernel holds already, wherever the address lies."""
        block = self._block_of(address)
        if block is None:
            self._strays[address] = owner
        else:
            self._give(block, address, owner)

    def free(self, addresses: Iterable[Address], owner: Owner, now: float) -> None:
        """Return addresses that this owner holds; others are left alone, so freeing twice is harmless."""
        for address in addresses:
            block = self._block_of(address)
            if block is None:
                if self._strays.get(address) == owner:
                    del self._strays[address]
            elif block.leased.get(address) == owner:
                del block.leased[address]
                block.freed[address] = now

    def strays(self) -> Collection[Address]:
        """Return the leased addresses that lie in none of our blocks."""
        return tuple(self._strays)

    def owner(self, address: Address) -> Owner | None:
        """Return who holds an address."""
        block = self._block_of(address)
        return self._strays.get(address) if block is None else block.leased.get(address)

    def drain(self, network: Network, *, draining: bool) -> None:
        """Stop (or start again) leasing from a block, before it is given back."""
        self._blocks[network].draining = draining

    def use(self, now: float, pool: str | None = None) -> tuple[BlockUse, ...]:
        """Return how full each block is, in the blocks' order; of one pool or of all."""
        return tuple(
            BlockUse(block.network, block.pool, len(block.leased), block.cooling(now), block.capacity)
            for block in self._of_pool(pool)
        )

    def _give(self, block: _Block[Owner], address: Address, owner: Owner) -> None:
        block.freed.pop(address, None)
        block.leased[address] = owner

    def _of_pool(self, pool: str | None) -> list[_Block[Owner]]:
        return [block for block in self._blocks.values() if pool is None or block.pool == pool]

    def _block_of(self, address: Address) -> _Block[Owner] | None:
        for block in self._blocks.values():
            if address in block.network:
                return block
        return None
