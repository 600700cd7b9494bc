"""The view of the cluster that plans are made from: a frozen snapshot of all tables, advanced by changes.

It holds what a node's plan depends on and nothing else. Pods and policies are in it only where policies are
enforced, Services and their endpoints only where they are served: a node's own pods are in its kernel, others' are
reached by their block, and there may be a hundred thousand.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import msgspec

from podway.api.addresses import Address, Network, block_of
from podway.api.checked import RejectedObject
from podway.api.kinds import KINDS
from podway.api.kinds.address_block import AddressBlock, block_name
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.secret import Secret
from podway.api.kinds.service import Service
from podway.api.resource import Key, R, Resource, key
from podway.cluster.change import Change
from podway.cluster.table import Table

_Tables: TypeAlias = dict[str, Table[Any, Any]]

_KINDS = {name: kind for name, kind in KINDS.items() if kind.IN_VIEW}

VIEWED = tuple(_KINDS.values())
"""The kinds that a view is made of."""

JUDGING: tuple[type[Resource], ...] = (Pod, NetworkPolicy, ClusterNetworkPolicy)
"""Those of them on which nothing depends unless policies are enforced: agents follow them only then."""

SERVING: tuple[type[Resource], ...] = (Service, EndpointSlice)
"""Those on which nothing depends unless Services are served."""

OPTIONAL: tuple[type[Resource], ...] = (*JUDGING, *SERVING)
"""What agents do not follow unless settings ask for it."""

_NAMES = {kinds: frozenset(kind.KIND for kind in kinds) for kinds in (JUDGING, SERVING)}

PLANNED = tuple(kind for kind in VIEWED if kind not in OPTIONAL)
"""The kinds that every agent follows."""


class ClusterView(msgspec.Struct, frozen=True):
    """A table for each kind of object.

    Each kind is as it was at one moment, and different kinds may be of different moments: the store tells an order
    within one kind only.
    """

    tables: Mapping[str, Table[Any, Any]]
    """By kind, one for each that plans depend on (Resource.IN_VIEW)."""
    config: NetworkConfigSpec
    """What the NetworkConfig says, or the defaults."""
    pools: Table[str, IPPool]
    """All pools for pods."""
    service_pools: Table[str, IPPool]
    """All pools for Services."""
    rejected: Mapping[Key, RejectedObject] = MappingProxyType({})
    """Objects of the store that are no facts: what the tables have of them is their last good state, if any."""
    unlisted: frozenset[str] = frozenset()
    """Kinds (of OPTIONAL) of which it is not known what there is: nobody follows them, or not yet."""

    @classmethod
    def of(
        cls,
        resources: Iterable[Resource],
        *,
        rejected: Iterable[RejectedObject] = (),
        former: "ClusterView | None" = None,
    ) -> "ClusterView":
        """Build a view from listings of all kinds.

        `former` knows the last good state of what is `rejected`.
        """
        objects: dict[str, dict[Any, Resource]] = {kind: {} for kind in _KINDS}
        unfit = {one.key: one for one in rejected}
        kept = [obj for wanted in unfit if former is not None and (obj := former.find(wanted)) is not None]
        for obj in (*resources, *kept):
            if obj.KIND in objects:
                objects[obj.KIND][_name(key(obj))] = obj
        tables: _Tables = {name: Table(objects[name], kind.INDICES) for name, kind in _KINDS.items()}
        return cls(tables, _config(tables), *_pools(tables), unfit)

    def table(self, kind: type[R]) -> Table[str, R]:
        """Return the table of a kind in no namespace. Raises KeyError for one that plans do not depend on."""
        assert not kind.NAMESPACED
        return self.tables[kind.KIND]

    def namespaced_table(self, kind: type[R]) -> Table[tuple[str, str], R]:
        """Return the table of a kind in namespaces, by namespace and name. Raises KeyError as `table` does."""
        assert kind.NAMESPACED
        return self.tables[kind.KIND]

    @property
    def nodes(self) -> Table[str, Node]:
        """All nodes."""
        return self.tables[Node.KIND]

    @property
    def namespaces(self) -> Table[str, Namespace]:
        """All namespaces."""
        return self.tables[Namespace.KIND]

    @property
    def blocks(self) -> Table[str, AddressBlock]:
        """All blocks."""
        return self.tables[AddressBlock.KIND]

    @property
    def peers(self) -> Table[str, BGPPeer]:
        """All BGP speakers outside the cluster."""
        return self.tables[BGPPeer.KIND]

    @property
    def secrets(self) -> Table[tuple[str, str], Secret]:
        """All Secrets, by namespace and name."""
        return self.tables[Secret.KIND]

    @property
    def authorities(self) -> Table[str, ClusterAuthority]:
        """The cluster's authority, once an agent has made it."""
        return self.tables[ClusterAuthority.KIND]

    def find(self, wanted: Key) -> Resource | None:
        """Return an object; None if it is not there, or of a kind that plans do not depend on."""
        table = self.tables.get(wanted[0])
        found: Resource | None = None if table is None else table.get(_name(wanted))
        return found

    def change(self, obj: Resource | RejectedObject, *, deleted: bool = False) -> Change[Resource]:
        """Return the change that an object's new state is to this view, or its deletion.

        What is rejected has no new state: it can only be deleted.
        """
        wanted = obj.key if isinstance(obj, RejectedObject) else key(obj)
        return Change(wanted, self.find(wanted), None if deleted or isinstance(obj, RejectedObject) else obj)

    def without(self, obj: RejectedObject) -> "ClusterView":
        """Return the view in which an object's state is no fact: the last good one stays."""
        return msgspec.structs.replace(self, rejected={**self.rejected, obj.key: obj})

    @property
    def enforces(self) -> bool:
        """Whether policies are, or may be, to be enforced, for which kinds of JUDGING have to be followed."""
        return self.config.data_path != "kernel" or self.unsettled

    @property
    def unsettled(self) -> bool:
        """Whether there is a NetworkConfig of which no state is known that can be read."""
        return not self.tables[NetworkConfig.KIND] and any(
            kind == NetworkConfig.KIND for kind, *_ in self.rejected
        )

    @property
    def serves(self) -> bool:
        """Whether Services are, or may be, to be served, for which kinds of SERVING have to be followed."""
        return self.enforces and (self.config.services != "off" or self.unsettled)

    @property
    def followed(self) -> tuple[type[Resource], ...]:
        """The kinds of OPTIONAL that settings ask to be followed."""
        return (*(JUDGING if self.enforces else ()), *(SERVING if self.serves else ()))

    @property
    def unjudged(self) -> frozenset[str]:
        """Kinds of which has to be known what there is before policies are enforced."""
        return self.unlisted & _NAMES[JUDGING]

    @property
    def unserved(self) -> frozenset[str]:
        """Kinds of which has to be known what there is before Services are served; their pods, too."""
        return self.unlisted & (_NAMES[SERVING] | {Pod.KIND})

    def unfollowed(self, kinds: Iterable[type[Resource]] = OPTIONAL) -> "ClusterView":
        """Return the view of who does not follow these kinds of OPTIONAL."""
        names = frozenset(kind.KIND for kind in kinds)
        if names <= self.unlisted:
            return self
        tables = {**self.tables, **{name: Table({}, _KINDS[name].INDICES) for name in names}}
        rejected = {wanted: one for wanted, one in self.rejected.items() if wanted[0] not in names}
        return msgspec.structs.replace(self, tables=tables, rejected=rejected, unlisted=self.unlisted | names)

    def relisted(
        self, kind: type[Resource], resources: Iterable[Resource], rejected: Iterable[RejectedObject] = ()
    ) -> "ClusterView":
        """Return the view after one kind was listed anew: what is not listed is gone, other kinds stay."""
        listed = {key(obj): obj for obj in resources}
        unfit = {one.key: one for one in rejected}
        former = self.tables[kind.KIND]
        if not former:  # to put one object after the other would take longer the more there are
            objects: dict[Any, Any] = {_name(each): obj for each, obj in listed.items()}
            table: Table[Any, Any] = Table(objects, _KINDS[kind.KIND].INDICES)
            return self._with_table(kind, table, unfit)
        known = {key(obj): obj for obj in former.values()}
        gone = [Change(each, obj, None) for each, obj in known.items() if each not in listed and each not in unfit]
        came = [Change(each, known.get(each), obj) for each, obj in listed.items() if known.get(each) != obj]
        return self.after(*gone, *came)._with_table(kind, None, unfit)

    def _with_table(
        self, kind: type[Resource], table: Table[Any, Any] | None, unfit: Mapping[Key, RejectedObject]
    ) -> "ClusterView":
        """Return the view with all of a kind listed: with this table, if there is one, and what is rejected."""
        tables: _Tables = {**self.tables, **({} if table is None else {kind.KIND: table})}
        others = {wanted: one for wanted, one in self.rejected.items() if wanted[0] != kind.KIND}
        return msgspec.structs.replace(
            self._with_tables(tables), rejected={**others, **unfit}, unlisted=self.unlisted - {kind.KIND}
        )

    def _with_tables(self, tables: _Tables) -> "ClusterView":
        """Return the view with these tables in place of its own, and what follows from them."""
        more: dict[str, Any] = {}
        if tables[NetworkConfig.KIND] is not self.tables[NetworkConfig.KIND]:
            more["config"] = _config(tables)
        if tables[IPPool.KIND] is not self.tables[IPPool.KIND]:
            more["pools"], more["service_pools"] = _pools(tables)
        return msgspec.structs.replace(self, tables=tables, **more)

    def after(self, *changes: Change[Any]) -> "ClusterView":
        """Return the view after changes. Objects of kinds that plans do not depend on change nothing."""
        tables: _Tables = {}
        for change in changes:
            table = tables.get(change.kind, self.tables.get(change.kind))
            if table is not None:
                name = _name(change.key)
                tables[change.kind] = table.drop(name) if change.new is None else table.put(name, change.new)
        more: dict[str, Any] = {}
        told = {change.key for change in changes}
        if not told.isdisjoint(self.rejected):
            more["rejected"] = {wanted: one for wanted, one in self.rejected.items() if wanted not in told}
        return msgspec.structs.replace(self._with_tables({**self.tables, **tables}), **more)

    def changes_to(self, other: "ClusterView", kinds: Collection[str] = _KINDS) -> tuple[Change[Any], ...]:
        """Return what leads from this view to another one, of these kinds."""
        return tuple(change for name in kinds for change in self.tables[name].changes_to(other.tables[name]))

    @property
    def registered(self) -> frozenset[str]:
        """The names of all nodes of the cluster, also of those that are rejected."""
        return frozenset((*self.nodes, *(name for kind, _, name in self.rejected if kind == Node.KIND)))

    def blocks_of(self, node: str) -> tuple[AddressBlock, ...]:
        """Return the blocks that a node owns, in address order."""
        return in_address_order(self.blocks.select("node", node))

    @property
    def block_lengths(self) -> frozenset[tuple[int, int]]:
        """The IP versions and prefix lengths of all blocks."""
        return cast("frozenset[tuple[int, int]]", self.blocks.indexed("length"))

    @property
    def block_ranges(self) -> tuple[tuple[Network, int], ...]:
        """In which ranges blocks are, and prefix lengths of those in each: what pools say, and what there is."""
        return tuple(
            (pool.network, length)
            for pool in self.pools.values()
            for version, length in {*self.block_lengths, (pool.network.version, pool.block_prefix)}
            if version == pool.network.version
        )

    def block_at(self, address: Address) -> AddressBlock | None:
        """Return the block that an address lies in, None if there is none.

        A block is named after its range, so one look for each length that blocks have is enough.
        """
        names = (
            block_name(block_of(address, length))
            for version, length in self.block_lengths
            if version == address.version
        )
        return next((self.blocks[name] for name in names if name in self.blocks), None)

    def others_send(self, node: str, mode: str) -> bool:
        """Tell whether any node but this one may still send with a tunnel mode."""
        return self.nodes.has("sends", mode, but=node)

    def labels_of_node(self, node: str) -> Mapping[str, str]:
        """Return a node's labels, none if it is not registered."""
        known = self.nodes.get(node)
        return known.metadata.labels if known else {}

    def labels_of_namespace(self, namespace: str) -> Mapping[str, str]:
        """Return a namespace's labels, with the name label that Kubernetes gives to every one."""
        known = self.namespaces.get(namespace)
        return {"kubernetes.io/metadata.name": namespace, **(known.metadata.labels if known else {})}


def in_address_order(blocks: Iterable[AddressBlock]) -> tuple[AddressBlock, ...]:
    """Return blocks in the order of their addresses, IPv4 first."""
    every = tuple(blocks)
    # Most nodes have one block, and to read thousands of CIDRs only to sort them is what a start would wait for.
    return tuple(sorted(every, key=_place)) if len(every) > 1 else every


def _place(block: AddressBlock) -> tuple[int, int]:
    return (block.network.version, int(block.network.network_address))


def _name(wanted: Key) -> str | tuple[str, str]:
    kind, namespace, name = wanted
    return (namespace, name) if KINDS[kind].NAMESPACED else name


def _config(tables: _Tables) -> NetworkConfigSpec:
    config: NetworkConfig | None = next(iter(tables[NetworkConfig.KIND].values()), None)
    return config.spec if config else NetworkConfigSpec()


def _pools(tables: _Tables) -> tuple[Table[str, IPPool], Table[str, IPPool]]:
    """Return the pools for pods, and those for Services."""
    every: Table[str, IPPool] = tables[IPPool.KIND]
    services = {name: pool for name, pool in every.items() if pool.for_services}
    if not services:
        return every, Table({}, IPPool.INDICES)
    pods = {name: pool for name, pool in every.items() if name not in services}
    return Table(pods, IPPool.INDICES), Table(services, IPPool.INDICES)
