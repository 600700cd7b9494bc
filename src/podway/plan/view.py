"""The view of the cluster that plans are made from: immutable, and advanced by events.

It holds what a node's plan depends on and nothing else; pods are not in it, since a node's own are in its
kernel and others' are reached by their block.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import msgspec

from podway.api.peers import BGPPeer, Secret
from podway.api.resources import (
    ASN,
    BGP_READY,
    SENDS,
    AddressBlock,
    IPPool,
    Namespace,
    NetworkConfig,
    NetworkConfigSpec,
    Node,
    Resource,
)
from podway.store.base import Event

R = TypeVar("R", bound=Resource)


class ClusterView(msgspec.Struct, frozen=True):
    """Objects by name, as they were at one revision of the store."""

    nodes: Mapping[str, Node]
    namespaces: Mapping[str, Namespace]
    pools: Mapping[str, IPPool]
    blocks: Mapping[str, AddressBlock]
    config: NetworkConfigSpec
    revision: int
    owned: Mapping[str, tuple[AddressBlock, ...]]
    """The blocks of each node that has any, in address order."""
    senders: Mapping[str, frozenset[str]] = MappingProxyType({})
    """The nodes that may still put on an encapsulation, by its name."""
    peers: Mapping[str, BGPPeer] = MappingProxyType({})
    secrets: Mapping[tuple[str, str], Secret] = MappingProxyType({})
    """By namespace and name."""

    @classmethod
    def of(cls, resources: Iterable[Resource], revision: int) -> "ClusterView":
        """Build a view from a listing of the whole store."""
        nodes, namespaces, pools, blocks = {}, {}, {}, {}
        peers: dict[str, BGPPeer] = {}
        secrets: dict[tuple[str, str], Secret] = {}
        config = NetworkConfigSpec()
        for obj in resources:
            name = obj.metadata.name
            match obj:
                case Node():
                    nodes[name] = obj
                case Namespace():
                    namespaces[name] = obj
                case IPPool():
                    pools[name] = obj
                case AddressBlock():
                    blocks[name] = obj
                case BGPPeer():
                    peers[name] = obj
                case Secret():
                    secrets[obj.metadata.namespace, name] = obj
                case NetworkConfig():
                    config = obj.spec
        owned = _by_owner(blocks.values())
        return cls(nodes, namespaces, pools, blocks, config, revision, owned, _senders(nodes), peers, secrets)

    def after(self, event: Event) -> "ClusterView":
        """Return the view after one change; the same facts if the change is of no concern here."""
        obj, gone = event.object, event.type == "deleted"
        changes: dict[str, object] = {"revision": event.revision}
        match obj:
            case Node():
                nodes = changes["nodes"] = _changed(self.nodes, obj, gone)
                before = self.nodes.get(obj.metadata.name)
                if (before.sends if before else frozenset()) != (frozenset() if gone else obj.sends):
                    changes["senders"] = _senders(nodes)
            case Namespace():
                changes["namespaces"] = _changed(self.namespaces, obj, gone)
            case IPPool():
                changes["pools"] = _changed(self.pools, obj, gone)
            case AddressBlock():
                changes["blocks"] = _changed(self.blocks, obj, gone)
                changes["owned"] = self._owned_after(obj, gone)
            case BGPPeer():
                changes["peers"] = _changed(self.peers, obj, gone)
            case Secret():
                secrets = changes["secrets"] = dict(self.secrets)
                if gone:
                    secrets.pop((obj.metadata.namespace, obj.metadata.name), None)
                else:
                    secrets[obj.metadata.namespace, obj.metadata.name] = obj
            case NetworkConfig():
                changes["config"] = NetworkConfigSpec() if gone else obj.spec
        return msgspec.structs.replace(self, **changes)

    def with_blocks(self, blocks: Mapping[str, AddressBlock]) -> "ClusterView":
        """Return the view with these blocks, by name, in place of its own."""
        return msgspec.structs.replace(self, blocks=blocks, owned=_by_owner(blocks.values()))

    def blocks_of(self, node: str) -> tuple[AddressBlock, ...]:
        """Return the blocks that a node owns, in address order."""
        return self.owned.get(node, ())

    def _owned_after(self, block: AddressBlock, gone: bool) -> Mapping[str, tuple[AddressBlock, ...]]:
        owned = dict(self.owned)
        before = self.blocks.get(block.metadata.name)
        if before is not None:
            rest = tuple(other for other in owned.pop(before.spec.node) if other is not before)
            if rest:
                owned[before.spec.node] = rest
        if not gone:
            owned[block.spec.node] = _in_order((*owned.get(block.spec.node, ()), block))
        return owned

    def labels_of_node(self, node: str) -> Mapping[str, str]:
        """Return a node's labels, none if it is not registered."""
        known = self.nodes.get(node)
        return known.metadata.labels if known else {}

    def labels_of_namespace(self, namespace: str) -> Mapping[str, str]:
        """Return a namespace's labels, with the name label that Kubernetes gives to every one."""
        known = self.namespaces.get(namespace)
        return {"kubernetes.io/metadata.name": namespace, **(known.metadata.labels if known else {})}


def same_routing(one: ClusterView, other: ClusterView) -> bool:
    """Tell whether two views give every node the same BGP plan: at most blocks and the like differ."""
    return (
        one.pools == other.pools
        and one.config == other.config
        and one.peers == other.peers
        and one.secrets == other.secrets
        and _same_places(one, other)
    )


def same_network(one: ClusterView, other: ClusterView) -> bool:
    """Tell whether two views give every node the same plan: only heartbeats and the like differ.

    Objects that both views share are not looked into: heartbeats come often, one node's at a time.
    """
    return one.blocks == other.blocks and one.namespaces == other.namespaces and same_routing(one, other)


def _same_places(one: ClusterView, other: ClusterView) -> bool:
    return one.nodes.keys() == other.nodes.keys() and all(
        _same_place(node, other.nodes[name]) for name, node in one.nodes.items()
    )


def _same_place(one: Node, other: Node) -> bool:
    return one is other or (
        one.internal_addresses == other.internal_addresses
        and one.interface_addresses == other.interface_addresses
        and one.metadata.labels == other.metadata.labels
        and one.accepts == other.accepts
        and one.sends == other.sends
        and _note(one, ASN) == _note(other, ASN)
        and _note(one, BGP_READY) == _note(other, BGP_READY)
    )


def _note(node: Node, name: str) -> str | None:
    return node.metadata.annotations.get(name)


def _senders(nodes: Mapping[str, Node]) -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for name, node in nodes.items():
        if SENDS in node.metadata.annotations:  # plain: it is asked of thousands of nodes
            for form in node.sends:
                found.setdefault(form, set()).add(name)
    return {form: frozenset(names) for form, names in found.items()}


def _by_owner(blocks: Iterable[AddressBlock]) -> Mapping[str, tuple[AddressBlock, ...]]:
    owned: dict[str, list[AddressBlock]] = {}
    for block in blocks:
        owned.setdefault(block.spec.node, []).append(block)
    return {node: _in_order(mine) for node, mine in owned.items()}


def _in_order(blocks: Sequence[AddressBlock]) -> tuple[AddressBlock, ...]:
    # Most nodes have one block, and to read thousands of CIDRs only to sort them is what a start would wait for.
    return tuple(sorted(blocks, key=_place) if len(blocks) > 1 else blocks)


def _place(block: AddressBlock) -> tuple[int, int]:
    return (block.network.version, int(block.network.network_address))


def _changed(objects: Mapping[str, R], obj: R, gone: bool) -> Mapping[str, R]:
    rest = dict(objects)
    if gone:
        rest.pop(obj.metadata.name, None)
    else:
        rest[obj.metadata.name] = obj
    return rest
