"""Enough blocks for this node's pods, and no more.

A node claims its next block of a pool before the last one is full, so that an ADD never waits for the store,
and gives extra blocks back once they have been empty for a while. Where a pool is full and a pod elsewhere got no
address of it, a node that has no pod in a block gives it back at once: that pod needs it, and one that may come
here can claim it again.
"""

import asyncio
from collections.abc import Iterable

import structlog

from podway.agent.contact import StoreContact
from podway.agent.membership import Membership
from podway.api.addresses import Network, block_of
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import STARVED
from podway.cluster.change import Change
from podway.errors import AddressUnavailable, Conflict, PoolExhausted, StoreError
from podway.ipam.claims import claim, give_back
from podway.ipam.ranges import given, given_range, given_ranges
from podway.ipam.selection import wants_another
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState
from podway.store.base import Store

log = structlog.get_logger(__name__)

STARVED_SECONDS = 60.0
"""How long after a pod got no address the node says so: runtimes try again sooner."""


SETTLING = 5.0
"""How long the kernel may take until a withdrawn block's route is gone, in seconds."""


class BlockKeeper:
    """Claims and returns this node's blocks. `idle_delay` is in seconds."""

    def __init__(
        self,
        store: Store,
        state: NodeState,
        idle_delay: float,
        reconciler: Reconciler,
        membership: Membership,
        contact: StoreContact,
    ) -> None:
        self._store = store
        self._state = state
        self._idle_delay = idle_delay
        self._reconciler = reconciler
        self._membership = membership
        self._contact = contact
        self._wanted = asyncio.Event()
        contact.tell_found(self._wanted)
        self._idle_since: dict[Network, float] = {}
        self._exhausted: set[str] = set()
        self._lost: set[Network] = set()
        self._denied: dict[str, float] = {}
        """When a pod last got no address of a pool."""
        own = state.view.nodes.get(state.node)
        self._said = own.starved if own else frozenset()
        self.turn = asyncio.Lock()
        """To be held by whoever looks whether a block is missing and then claims one."""

    def trigger(self) -> None:
        """Ask for a look whether blocks are missing."""
        self._wanted.set()

    async def run(self) -> None:
        """Claim what is missing when asked, and when the store is there again, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self.keep()

    async def keep(self) -> None:
        """Claim what is missing, if the store is there."""
        try:
            await self.ensure()
        except StoreError as error:
            self._contact.lost(error)

    async def claim(self, pool: IPPool, wanted: Network | None = None) -> AddressBlock:
        """Claim a block now (`wanted`, or any), enter it in the node's state and announce it.

        Of a pool whose ranges Kubernetes gives out it is the one that this node was given.

        Raises PoolExhausted, AddressUnavailable if `wanted` is another node's, or a StoreError.
        """
        if given(pool):
            block = await self._claim_given(pool, wanted)
        else:
            block = await claim(self._store, pool, self._state.node, wanted=wanted)
        # Our own watch will tell this too, later; addresses can be leased at once.
        self._state.follow(self._state.view.after(Change.of(None, block)))
        self._reconciler.wake()
        log.info("block claimed", block=block.spec.cidr, pool=pool.metadata.name)
        return block

    async def _claim_given(self, pool: IPPool, wanted: Network | None) -> AddressBlock:
        state = self._state
        network = given_range(pool, state.node, state.view.nodes.get(state.node))
        if wanted is not None and wanted != network:
            raise AddressUnavailable(
                f"block {wanted} is not of node {state.node}, whose range in {pool.spec.cidr} is {network}",
                hint=f"choose an address in {network}, the node's spec.podCIDRs",
            )
        if any(block.network == network for block in state.view.blocks_of(state.node)):
            raise PoolExhausted(
                f"{network}, the range of node {state.node} in IPPool/{pool.metadata.name}, is full",
                hint="remove pods that are not needed from this node, or add an IPPool with ranges: blocks",
            )
        try:
            return await claim(self._store, pool, state.node, wanted=network)
        except AddressUnavailable as error:
            raise PoolExhausted(error.message, hint="it is given back once that node needs it no more") from error

    def _given(self) -> frozenset[Network]:
        """Return the ranges that Kubernetes gave this node, of the pools that serve it."""
        state = self._state
        return given_ranges(state.node_pools(), state.node, state.view.nodes.get(state.node))

    def denied(self, pools: Iterable[IPPool]) -> None:
        """Note that a pod got no address of these pools: they are full, and so are this node's blocks.

        Others can give back nothing of ranges that are given out.
        """
        names = (pool.metadata.name for pool in pools if not given(pool))
        self._denied.update(dict.fromkeys(names, self._state.now()))

    @property
    def starving(self) -> bool:
        """Whether a pod got no address lately, or the node still says so."""
        return bool(self._denied or self._said)

    async def ensure(self) -> None:
        """Claim what is missing: a first block of each pool, and a spare before the last one is full.

        A full pool is logged once, and again after it had room. Raises StoreError.
        """
        async with self.turn:
            await self._reclaim()
            for pool in self._state.node_pools():
                uses = self._state.book.use(self._state.now(), pool.metadata.name)
                if given(pool):
                    if self._given() & {use.block for use in uses}:
                        continue  # there is no other one
                elif not wants_another(pool, uses, leaving=self._state.withdrawn):
                    continue
                elif pool.metadata.name in self._starved_elsewhere() - self._denied.keys():
                    continue  # pods wait for it there, and none here
                try:
                    await self.claim(pool)
                except PoolExhausted as error:
                    if pool.metadata.name not in self._exhausted:
                        self._exhausted.add(pool.metadata.name)
                        log.warning(
                            "pool exhausted", pool=pool.metadata.name, problem=error.message, hint=error.hint
                        )
                else:
                    self._exhausted.discard(pool.metadata.name)
            await self._tell_starved()

    async def _tell_starved(self) -> None:
        """Say of which pools a pod got no address lately, as long as that is so."""
        now = self._state.now()
        for pool, at in list(self._denied.items()):
            if now - at > STARVED_SECONDS or any(use.free for use in self._state.book.use(now, pool)):
                del self._denied[pool]
        starved = frozenset(self._denied)
        if starved != self._said:
            await self._membership.announce({STARVED: ",".join(sorted(starved))})
            self._said = starved

    def _starved_elsewhere(self) -> frozenset[str]:
        nodes, own = self._state.view.nodes, self._state.node
        pools = self._state.view.pools
        return frozenset(pool for pool in pools if nodes.has("starved", pool, but=own))

    async def _reclaim(self) -> None:
        """Claim again the blocks of living pods that were returned, say while this node was removed."""
        for pool in self._state.view.pools.values():
            strays = [address for address in self._state.book.strays() if address in pool.network]
            for network in {block_of(address, pool.block_prefix) for address in strays} - self._lost:
                try:
                    await self.claim(pool, network)
                except PoolExhausted:
                    continue  # the node has no range yet, as whoever claims a first one says
                except AddressUnavailable as error:
                    self._lost.add(network)
                    log.error(
                        "pods here have addresses of another node's block",
                        problem=error.message,
                        hint="delete these pods: they cannot be reached, and their addresses may be given again",
                        addresses=[str(address) for address in strays if address in network],
                    )

    def withdraw_idle(self) -> tuple[AddressBlock, ...]:
        """Withdraw extra blocks that have been empty for the idle delay; return them for `give_back`.

        A pool that serves every pod here keeps one block on the node, and as many as leave a spare; others,
        disabled ones too, keep none, and neither does one that is gone or of which a pod of another node got no
        address.
        """
        now, starved = self._state.now(), self._starved_elsewhere() - self._denied.keys()
        kept = {pool.metadata.name for pool in self._state.node_pools() if pool.spec.namespace_selector is None}
        leaving: set[Network] = set()
        fixed = self._given()
        gives = {name for name, one in self._state.view.pools.items() if given(one)}
        # A claim may have been made while its pool was deleted.
        gone = {
            block.spec.pool for block in self._state.view.blocks_of(self._state.node)
        } - self._state.view.pools.keys()
        for pool in (*self._state.view.pools, *gone):
            uses = self._state.book.use(now, pool)
            for use in reversed(uses):
                if use.leased or use.cooling or use.block in fixed:
                    self._idle_since.pop(use.block, None)
                    continue
                idle = now - self._idle_since.setdefault(use.block, now)
                rest = sum(other.free for other in uses if other is not use and other.block not in leaving)
                # The first one stays, though another that just became empty would do: it has the node's number.
                spared = pool not in kept or pool in gives or (use is not uses[0] and rest > 2 * use.spare)
                if (idle >= self._idle_delay and spared) or pool in starved | gone:
                    leaving.add(use.block)
        if leaving != self._state.withdrawn:
            self._state.withdraw(leaving)
            self._reconciler.wake()
        return tuple(b for b in self._state.view.blocks_of(self._state.node) if b.network in leaving)

    async def give_back(self, blocks: tuple[AddressBlock, ...]) -> None:
        """Delete the claims of withdrawn blocks, after their routes are gone."""
        if blocks:
            try:
                async with asyncio.timeout(SETTLING):
                    await self._reconciler.settled()
            except TimeoutError:
                return  # their routes may still be there: the next look decides
        for block in blocks:
            try:
                await give_back(self._store, block)
            except Conflict:
                continue  # somebody wrote to it since: the watch will tell what, and the next look decides
            self._idle_since.pop(block.network, None)
            self._state.follow(self._state.view.after(Change.of(block, None)))
            log.info("empty block returned", block=block.spec.cidr, pool=block.spec.pool)
