"""Addresses for one pod: from which pool, and what to say when there is none."""

from itertools import groupby

from podway.agent.blocks import BlockKeeper
from podway.api.addresses import Address, Family, block_of
from podway.api.kinds.ip_pool import IPPool
from podway.api.lease import Attachment
from podway.errors import AddressUnavailable, PoolExhausted
from podway.ipam.claims import exhausted_hint
from podway.ipam.ranges import given, given_range
from podway.ipam.selection import generality
from podway.reconcile.state import NodeState

_GIVEN_HINT = "Kubernetes gives each node its range (ranges: podCIDRs): see spec.podCIDRs of the Node"


class Leasing:
    """Leases addresses out of this node's blocks, claiming another block where they are full."""

    def __init__(self, state: NodeState, blocks: BlockKeeper) -> None:
        self._state = state
        self._blocks = blocks

    async def lease(
        self,
        owner: Attachment,
        *,
        namespace: str,
        wanted: tuple[Address, ...] = (),
        pools: dict[Family, tuple[str, ...]] | None = None,
    ) -> tuple[Address, ...]:
        """Lease one address of each family that has a pool for this pod; all of them or none.

        `wanted` addresses are leased as they are; `pools` restricts the pools by name. Raises PoolExhausted,
        AddressUnavailable, or a StoreError if a block has to be claimed and cannot be.
        """
        leased: list[Address] = []
        try:
            for family in Family:
                choice = next((address for address in wanted if Family.of(address) is family), None)
                if choice is not None:
                    await self._take(choice, owner, namespace)
                    leased.append(choice)
                    continue
                names = (pools or {}).get(family, ())
                serving = self._state.pod_pools(family, namespace, names)
                if missing := [n for n in names if n not in {pool.metadata.name for pool in serving}]:
                    raise PoolExhausted(
                        f"IPPool/{missing[0]}, asked for by the CNI configuration, does not exist, is disabled, "
                        f"is no {family.label} pool or does not select this node and namespace",
                        hint="see `podway get pools -o yaml`",
                    )
                if serving:
                    leased.append(await self._from(serving, owner))
        except BaseException:
            self._state.book.free(leased, owner, self._state.now())
            raise
        if not leased:
            raise PoolExhausted(
                f"no IPPool serves pods of namespace {namespace!r} on node {self._state.node}",
                hint="add an IPPool, or widen the nodeSelector or namespaceSelector of one; "
                "`podway get pools -o yaml` shows them",
            )
        return tuple(leased)

    async def _from(self, pools: tuple[IPPool, ...], owner: Attachment) -> Address:
        """Lease from the most specific pools that have room, and of those rather without a call to the store."""
        for _, group in groupby(pools, key=generality):
            equals = tuple(group)
            for pool in equals:
                if address := self._state.book.lease(pool.metadata.name, owner, self._state.now()):
                    return address
            for pool in equals:
                if address := await self._from_another_block(pool, owner):
                    return address
        self._blocks.denied(pools)
        hint = exhausted_hint(pools[0]) if not given(pools[0]) else _GIVEN_HINT
        raise PoolExhausted("; ".join(self._fullness(pool) for pool in pools), hint=hint)

    async def _from_another_block(self, pool: IPPool, owner: Attachment) -> Address | None:
        # One after the other: who waited may find room in the block that the first one claimed.
        async with self._blocks.turn:
            if address := self._state.book.lease(pool.metadata.name, owner, self._state.now()):
                return address
            try:
                await self._blocks.claim(pool)
            except PoolExhausted:
                return None
            return self._state.book.lease(pool.metadata.name, owner, self._state.now())

    def _fullness(self, pool: IPPool) -> str:
        if given(pool):
            try:
                node = self._state.node
                network = given_range(pool, node, self._state.view.nodes.get(node))
            except PoolExhausted as error:
                return f"{error.message} ({error.hint})"
            return f"{network}, the range of node {node} in IPPool/{pool.metadata.name}, has no address left"
        uses = self._state.book.use(self._state.now(), pool.metadata.name)
        leased, cooling, capacity = (
            (sum(numbers) for numbers in zip(*((u.leased, u.cooling, u.capacity) for u in uses), strict=True))
            if uses
            else (0, 0, 0)
        )
        wait = f" and {cooling} freed less than {pool.spec.cooldown_seconds} s ago" if cooling else ""
        return (
            f"IPPool/{pool.metadata.name} ({pool.spec.cidr}) is exhausted: all its blocks are claimed, and of the "
            f"{capacity} addresses in the {len(uses)} blocks of node {self._state.node} {leased} are leased{wait}"
        )

    async def _take(self, address: Address, owner: Attachment, namespace: str) -> None:
        serving = self._state.pod_pools(Family.of(address), namespace)
        pool = next((pool for pool in serving if address in pool.network), None)
        if pool is None:
            known = ", ".join(pool.spec.cidr for pool in serving)
            raise AddressUnavailable(
                f"address {address} lies outside every IPPool that serves pods of namespace {namespace!r} on "
                f"node {self._state.node}",
                hint=f"choose one inside {known or 'a new IPPool'}; see `podway get pools -o yaml`",
            )
        block = self._state.view.block_at(address)
        if block is None:
            block = await self._blocks.claim(pool, block_of(address, pool.block_prefix))
        if block.spec.node != self._state.node:
            raise AddressUnavailable(
                f"address {address} lies in block {block.spec.cidr}, which belongs to node {block.spec.node}",
                hint=f"run the pod on {block.spec.node}, or choose an address in a block of {self._state.node} "
                "(`podway get blocks`)",
            )
        self._state.book.take(address, owner)
