"""What an agent knows: the cluster as last seen, its own leases, and the book of its addresses.

Only the event loop's thread touches it, and only between awaits, so it needs no lock.
"""

import math
import time
from collections.abc import Collection, Iterable, Set
from dataclasses import replace
from itertools import pairwise

from podway.api.addresses import Address, Family, Network, collapsed
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Attach, IPPool
from podway.api.lease import Attachment, Lease
from podway.cluster.view import ClusterView
from podway.errors import InvalidObject
from podway.ipam.addresses import AddressBook
from podway.ipam.blocks import first_choice
from podway.ipam.ranges import given, given_ranges
from podway.ipam.selection import pools_for, pools_for_node
from podway.plan.host_facts import USUAL_HOST
from podway.plan.node import NodeFacts, wiring_of
from podway.plan.objects import PodWiring
from podway.plan.sent_modes import SentModes
from podway.plan.uplink import Uplink

REMEMBERED = 10.0
"""Seconds for which it is remembered what we made or removed."""


class NodeState:
    """The facts of one node, and the pure questions asked of them."""

    def __init__(self, node: str, view: ClusterView, uplink: Uplink) -> None:
        self.node = node
        self.uplink = uplink
        self.leases: dict[Attachment, Lease] = {}
        self.leaving: set[Attachment] = set()
        """Leases whose links are being removed: they hold their addresses, and are in no plan."""
        self.book: AddressBook[Attachment] = AddressBook()
        self.withdrawn: set[Network] = set()
        """Blocks on their way back to the pool: no longer announced, and nothing is leased from them."""
        self.host = USUAL_HOST
        self.sent: SentModes = {}
        """The modes in which this node may still send to others, by pool."""
        self.transitional: frozenset[Network] = frozenset()
        """Blocks of other nodes that keep a route of ours until BIRD's is there."""
        self.lingering: frozenset[str] = frozenset()
        """Pools that the store distributes, and in which routes of BIRD's still stand."""
        self.recalled: frozenset[str] = frozenset()
        """The kinds of which is known only what the last agent wrote down: the store has not listed them since."""
        self.engine = False
        """Whether the flow engine works (podway.reconcile.enforcement)."""
        self.answered: frozenset[Address] = frozenset()
        """Addresses of Services for which this node answers on its segment (podway.agent.answering)."""
        self._facts: NodeFacts | None = None
        self._touched: dict[str, float] = {}
        self.view = view
        self.follow(view)

    @staticmethod
    def now() -> float:
        """Return the clock by which cool-downs are measured, in seconds."""
        return time.monotonic()

    def touch(self, *names: str) -> None:
        """Note that we make or remove something now of which events will not tell that it was us: a pod's link."""
        now = self.now()
        self._touched = {name: at for name, at in self._touched.items() if now - at < REMEMBERED}
        self._touched.update(dict.fromkeys(names, now))

    def touched(self, name: str, *, since: float) -> bool:
        """Tell whether we made or removed something since a time of `now`, so that events are our echo."""
        return self._touched.get(name, -math.inf) >= since

    def follow(self, view: ClusterView) -> None:
        """Take a newer view of the cluster."""
        self.view = view
        mine = {block.network: block.spec.pool for block in sorted(view.blocks_of(self.node), key=self._rank)}
        self.withdrawn &= mine.keys()
        self.book.set_blocks(
            mine,
            {name: collapsed(pool.excluded_networks) for name, pool in view.pools.items()},
            {name: float(pool.spec.cooldown_seconds) for name, pool in view.pools.items()},
        )
        ranges = given_ranges(view.pools.values(), self.node, view.nodes.get(self.node))
        for network, name in mine.items():
            pool = view.pools.get(name)
            # What Kubernetes gave this node before may be another one's range by now, which waits for it.
            former = pool is not None and given(pool) and network not in ranges
            self.book.drain(network, draining=former or network in self.withdrawn)

    def _rank(self, block: AddressBlock) -> tuple[int, bool, int]:
        """Order blocks as they are used; the first of a pool is the one that stays when pods are few."""
        pool = self.view.pools.get(block.spec.pool)
        wanted = pool and first_choice(self.node, pool.network, pool.block_prefix)
        return block.network.version, block.network != wanted, int(block.network.network_address)

    def adopt(self, leases: Iterable[Lease]) -> None:
        """Enter the leases that the kernel holds, after a restart."""
        self.book.scatter()
        for lease in leases:
            self.leases[lease.attachment] = lease
            for address in lease.addresses:
                self.book.restore(address, lease.attachment)

    def forget(self, attachment: Attachment) -> None:
        """Return a lease's addresses, now that its link is gone."""
        lease = self.leases.pop(attachment, None)
        if lease is not None:
            self.book.free(lease.addresses, attachment, self.now())

    def withdraw(self, networks: Set[Network]) -> None:
        """Stop announcing these own blocks, and no others, and leasing from them."""
        self.withdrawn = set(networks)
        self.follow(self.view)

    def facts(self) -> NodeFacts:
        """Return all that decides what the node holds, the same object for as long as nothing of it changes."""
        staying = {each: lease for each, lease in self.leases.items() if each not in self.leaving}
        known = self._facts
        if known is None or (
            known.view is not self.view
            or known.uplink is not self.uplink
            or known.leases != staying
            or known.withdrawn != self.withdrawn
            or known.host != self.host
            or known.sent != self.sent
            or known.transitional != self.transitional
            or known.lingering != self.lingering
            or known.engine != self.engine
            or known.answered != self.answered
        ):
            self._facts = NodeFacts(
                self.view,
                self.node,
                self.uplink,
                staying,
                frozenset(self.withdrawn),
                self.host,
                self.sent,
                self.transitional,
                self.lingering,
                self.engine,
                self.answered,
            )
        assert self._facts is not None
        return self._facts

    def wiring(self, lease: Lease) -> PodWiring:
        """Return what a lease's attachment looks like: as the plan of the node has it once it has the lease."""
        facts = self.facts()
        return wiring_of(replace(facts, leases={**facts.leases, lease.attachment: lease}), lease)

    def attach(self, addresses: Collection[Address]) -> Attach:
        """Return how a pod with these addresses is attached, as their pools say.

        Raises InvalidObject if they do not agree: a pod's link is of one kind.
        """
        every = self.view.pools.values()
        pools = [pool for pool in every if any(address in pool.network for address in addresses)]
        for one, other in pairwise(pools):
            if one.spec.attach != other.spec.attach:
                raise InvalidObject(
                    f"IPPool/{other.metadata.name}",
                    "spec.attach",
                    f"is {other.spec.attach}, but {one.spec.attach} in IPPool/{one.metadata.name}, and both serve "
                    "the pod",
                    hint="apply the two pools with one attach",
                )
        return pools[0].spec.attach if pools else "routed"

    def node_pools(self) -> tuple[IPPool, ...]:
        """Return the pools from which this node may own blocks."""
        return pools_for_node(self.view.pools.values(), self.view.labels_of_node(self.node))

    def pod_pools(self, family: Family, namespace: str, names: tuple[str, ...] = ()) -> tuple[IPPool, ...]:
        """Return the pools that may serve a pod of this namespace here, best first."""
        return pools_for(
            self.view.pools.values(),
            family=family,
            node_labels=self.view.labels_of_node(self.node),
            namespace_labels=self.view.labels_of_namespace(namespace),
            names=names,
        )
