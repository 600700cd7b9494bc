"""The view of the cluster that plans are made from: immutable, and advanced by events.

It holds what a node's plan depends on and nothing else; pods are not in it, since a node's own are in its
kernel and others' are reached by their block.
"""

from collections.abc import Iterable, Mapping

import msgspec

from podway.api.resources import (
    AddressBlock,
    IPPool,
    Namespace,
    NetworkConfig,
    NetworkConfigSpec,
    Node,
    Resource,
)
from podway.store.base import Event


class ClusterView(msgspec.Struct, frozen=True):
    """Objects by name, as they were at one revision of the store."""

    nodes: Mapping[str, Node]
    namespaces: Mapping[str, Namespace]
    pools: Mapping[str, IPPool]
    blocks: Mapping[str, AddressBlock]
    config: NetworkConfigSpec
    revision: int

    @classmethod
    def of(cls, resources: Iterable[Resource], revision: int) -> "ClusterView":
        """Build a view from a listing of the whole store."""
        nodes, namespaces, pools, blocks = {}, {}, {}, {}
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
                case NetworkConfig():
                    config = obj.spec
        return cls(nodes, namespaces, pools, blocks, config, revision)

    def after(self, event: Event) -> "ClusterView":
        """Return the view after one change; the same facts if the change is of no concern here."""
        obj, gone = event.object, event.type == "deleted"
        changes: dict[str, object] = {"revision": event.revision}
        match obj:
            case Node():
                changes["nodes"] = _changed(self.nodes, obj, gone)
            case Namespace():
                changes["namespaces"] = _changed(self.namespaces, obj, gone)
            case IPPool():
                changes["pools"] = _changed(self.pools, obj, gone)
            case AddressBlock():
                changes["blocks"] = _changed(self.blocks, obj, gone)
            case NetworkConfig():
                changes["config"] = NetworkConfigSpec() if gone else obj.spec
        return msgspec.structs.replace(self, **changes)

    def blocks_of(self, node: str) -> tuple[AddressBlock, ...]:
        """Return the blocks that a node owns, in address order."""
        mine = (block for block in self.blocks.values() if block.spec.node == node)
        return tuple(sorted(mine, key=lambda block: (block.network.version, block.network.network_address)))

    def labels_of_node(self, node: str) -> Mapping[str, str]:
        """Return a node's labels, none if it is not registered."""
        known = self.nodes.get(node)
        return known.metadata.labels if known else {}

    def labels_of_namespace(self, namespace: str) -> Mapping[str, str]:
        """Return a namespace's labels, with the name label that Kubernetes gives to every one."""
        known = self.namespaces.get(namespace)
        return {"kubernetes.io/metadata.name": namespace, **(known.metadata.labels if known else {})}


def same_network(one: ClusterView, other: ClusterView) -> bool:
    """Tell whether two views give every node the same plan: only heartbeats and the like differ."""
    return (
        one.pools == other.pools
        and one.blocks == other.blocks
        and one.config == other.config
        and one.namespaces == other.namespaces
        and (one.nodes is other.nodes or _facts(one.nodes) == _facts(other.nodes))
    )


def _facts(nodes: Mapping[str, Node]) -> dict[str, tuple[object, ...]]:
    return {
        name: (node.internal_addresses, node.interface_addresses, node.metadata.labels)
        for name, node in nodes.items()
    }


def _changed(objects: Mapping[str, Resource], obj: Resource, gone: bool) -> Mapping[str, Resource]:
    rest = {name: value for name, value in objects.items() if name != obj.metadata.name}
    return rest if gone else {**rest, obj.metadata.name: obj}
