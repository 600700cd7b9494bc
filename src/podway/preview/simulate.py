"""A cluster of any size without a kernel: its blocks claimed and its addresses leased as on real nodes. Pure."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import INTERFACE_ADDRESSES, Node, NodeAddress, NodeStatus
from podway.api.lease import Attachment, Lease
from podway.api.meta import Metadata
from podway.api.rules import check_change
from podway.api.validate import validate
from podway.cluster.view import ClusterView
from podway.errors import PoolExhausted
from podway.ipam.addresses import AddressBook
from podway.ipam.blocks import FreeBlocks
from podway.ipam.selection import wants_another
from podway.plan.path import Site
from podway.plan.uplink import Uplink
from podway.preview.settle import agreed, claim_of

SUBNETS: dict[Family, str] = {Family.IPV4: "172.16.0.0/12", Family.IPV6: "fd30::/64"}
"""Where the nodes themselves are."""

MTU = 1500


class World(msgspec.Struct, frozen=True):
    """A simulated cluster: its view, and each node's uplink and leases."""

    view: ClusterView
    sites: dict[str, Site]


def build(nodes: int, pods: int, pools: Sequence[IPPool], *, seed: int = 0) -> World:
    """Make a cluster: pods are placed at random; nodes claim and lease as agents do.

    Raises InvalidObject if a pool cannot be right beside the others and the nodes' own subnets, and
    PoolExhausted if the pods do not fit.
    """
    families = {Family.IPV4, *(pool.family for pool in pools)}
    members = [_node(number, sorted(families)) for number in range(nodes)]
    for pool in pools:
        validate(pool)
        check_change(pool, [*pools, *members[:1]])
    cluster = _Cluster([node.metadata.name for node in members], pools)
    placed = random.Random(seed)
    for number in range(pods):
        cluster.run(placed.choice(members).metadata.name, number)
    view = agreed(ClusterView.of([*members, *pools, *cluster.blocks]))
    sites = {
        node.metadata.name: Site(
            Uplink("eth0", MTU, node.interface_addresses), tuple(cluster.leases[node.metadata.name])
        )
        for node in members
    }
    return World(view, sites)


class _Cluster:
    """The agents of all nodes, as far as blocks and addresses go."""

    def __init__(self, nodes: Iterable[str], pools: Sequence[IPPool]) -> None:
        self.blocks: list[AddressBlock] = []
        self.leases: defaultdict[str, list[Lease]] = defaultdict(list)
        self._pools = pools
        self._free = {pool.metadata.name: FreeBlocks(pool.network, pool.block_prefix, taken=()) for pool in pools}
        self._owned: defaultdict[str, dict[Network, str]] = defaultdict(dict)
        self._books: defaultdict[str, AddressBook[Attachment]] = defaultdict(AddressBook)
        for node in nodes:
            for pool in pools:
                self._claim(node, pool)

    def run(self, node: str, number: int) -> None:
        """Run a pod on a node."""
        owner = Attachment(f"{number:064x}", "eth0")
        families = sorted({pool.family for pool in self._pools})
        addresses = tuple(self._lease(node, family, owner) for family in families)
        self.leases[node].append(
            Lease(owner, f"default/pod-{number}", "podway", f"/run/netns/{number}", addresses)
        )

    def _lease(self, node: str, family: Family, owner: Attachment) -> Address:
        serving = [pool for pool in self._pools if pool.family is family]
        book = self._books[node]
        for pool in serving:
            address = book.lease(pool.metadata.name, owner, now=0.0)
            if address is None and self._claim(node, pool):
                address = book.lease(pool.metadata.name, owner, now=0.0)
            if address is not None:
                if wants_another(pool, book.use(0.0, pool.metadata.name)):
                    self._claim(node, pool)
                return address
        raise PoolExhausted(
            f"the pods do not fit: {' and '.join(pool.spec.cidr for pool in serving)} had no free block when pod "
            f"{sum(map(len, self.leases.values())) + 1} came to {node}, which owns {len(self._owned[node])}",
            hint="give a larger --pool, or smaller blocks with a longer --block-size",
        )

    def _claim(self, node: str, pool: IPPool) -> bool:
        network = self._free[pool.metadata.name].take(node)
        if network is None:
            return False
        self.blocks.append(claim_of(network, pool, node))
        self._owned[node][network] = pool.metadata.name
        self._books[node].set_blocks(
            self._owned[node], {pool.metadata.name: pool.excluded_networks for pool in self._pools}, {}
        )
        return True


def _node(number: int, families: Iterable[Family]) -> Node:
    own = [_interface(family, number) for family in families]
    return Node(
        metadata=Metadata(name=f"node-{number:06}", annotations={INTERFACE_ADDRESSES: ",".join(map(str, own))}),
        status=NodeStatus(
            addresses=tuple(NodeAddress(type="InternalIP", address=str(address.ip)) for address in own)
        ),
    )


def _interface(family: Family, number: int) -> Interface:
    base, _, prefix = SUBNETS[family].partition("/")
    kind = IPv4Interface if family is Family.IPV4 else IPv6Interface
    return kind((int(ip_address(base)) + number + 1, int(prefix)))
