"""What a proof is about: the nodes, pods and blocks of a cluster, and where to find them on this machine.

Frozen inputs, built by one pure function from what the store says and what the lab (or, on a plain host,
the agent's leases) knows about namespaces and devices.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource
from podway.cluster.view import ClusterView


class NodePoint(msgspec.Struct, frozen=True):
    """A node. `netns` is the path of its network namespace, empty for the one that we are in."""

    name: str
    netns: str
    addresses: tuple[Address, ...]
    uplink: str
    """The device that carries packets to other nodes."""

    @property
    def label(self) -> str:
        """`node NAME`: unique among all points."""
        return f"node {self.name}"

    @property
    def node(self) -> str:
        """The node's own name."""
        return self.name

    def address(self, family: Family) -> Address | None:
        """Return the node's address of a family."""
        return _of_family(self.addresses, family)


class HostPoint(NodePoint, frozen=True):
    """A host beside the cluster that can be asked nevertheless, such as a lab's: none of its nodes."""

    @property
    def label(self) -> str:
        """`host NAME`: unique among all points."""
        return f"host {self.name}"


class PodPoint(msgspec.Struct, frozen=True):
    """A pod with a network of its own; `name` is `<namespace>/<name>`."""

    name: str
    node: str
    netns: str
    addresses: tuple[Address, ...]
    ifname: str = "eth0"
    host_link: str = ""
    """The node's end of the pod's link; empty: the peer of `ifname`."""
    mtu: int = 0
    """What the pod link's MTU should be, in bytes; 0: whatever it is."""
    bridge: str = ""
    """The bridge of which `host_link` is a port; empty if it is routed."""

    @property
    def label(self) -> str:
        """`pod NAMESPACE/NAME`: unique among all points."""
        return f"pod {self.name}"

    def address(self, family: Family) -> Address | None:
        """Return the pod's address of a family."""
        return _of_family(self.addresses, family)


class ExternalPoint(msgspec.Struct, frozen=True):
    """An address that is no node's and no pod's: nothing can be asked there, and nothing seen."""

    label: str
    addresses: tuple[Address, ...]
    node: str = ""
    netns: str = ""

    def address(self, family: Family) -> Address | None:
        """Return the address if it is of this family."""
        return _of_family(self.addresses, family)


Place: TypeAlias = NodePoint | PodPoint
"""Somebody of the cluster: a namespace that can be entered where it is."""

Point: TypeAlias = Place | ExternalPoint


def is_beyond(point: Point) -> bool:
    """Tell whether a point is no part of the cluster."""
    return isinstance(point, ExternalPoint | HostPoint)


class Block(msgspec.Struct, frozen=True):
    """A part of the pod addresses, and the node that owns it."""

    network: Network
    node: str


class Absent(msgspec.Struct, frozen=True):
    """Something about which nothing can be proved, and why."""

    subject: str
    reason: str


NO_OBJECTS = ClusterView.of(())
NO_FALLBACKS: Mapping[str, str] = MappingProxyType({})


class World(msgspec.Struct, frozen=True):
    """A cluster as verify sees it; `view` is what the store says, which decides how packets cross.

    `fallbacks` says of nodes that do without the flow engine, as `dataPath: auto` lets them, why.
    """

    nodes: tuple[NodePoint, ...]
    pods: tuple[PodPoint, ...]
    blocks: tuple[Block, ...]
    absent: tuple[Absent, ...] = ()
    view: ClusterView = NO_OBJECTS
    fallbacks: Mapping[str, str] = NO_FALLBACKS

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that pods have addresses of."""
        present = {Family.of(address) for pod in self.pods for address in pod.addresses}
        return tuple(sorted(present))

    @property
    def points(self) -> dict[str, Place]:
        """All nodes and pods by their labels."""
        points: tuple[Place, ...] = (*self.nodes, *self.pods)
        return {point.label: point for point in points}

    def node(self, name: str) -> NodePoint | None:
        """Return a node by name, None if it cannot be entered."""
        return next((node for node in self.nodes if node.name == name), None)

    def block_of(self, address: Address) -> Block | None:
        """Return the block that an address lies in."""
        return next((block for block in self.blocks if address in block.network), None)

    def holder(self, address: Address) -> Place | None:
        """Return the pod or node that has an address."""
        return next((point for point in self.points.values() if address in point.addresses), None)


class NodePlace(msgspec.Struct, frozen=True):
    """Where a node is on this machine."""

    netns: str
    uplink: str


class PodPlace(msgspec.Struct, frozen=True):
    """Where a pod is on this machine; the fields are PodPoint's."""

    netns: str
    ifname: str = "eth0"
    host_link: str = ""
    mtu: int = 0


def build_world(
    resources: Iterable[Resource],
    nodes: Mapping[str, NodePlace],
    pods: Mapping[str, PodPlace],
    fallbacks: Mapping[str, str] = NO_FALLBACKS,
) -> World:
    """Join what the store says with where things are.

    `resources` are the store's objects of all kinds; `nodes` is keyed by node name, `pods` by
    `<namespace>/<name>`; `fallbacks` are World's. Pods of the host's network and pods that have ended have no
    network to prove. What should be there and has no place or no address is listed as absent.
    """
    resources = tuple(resources)
    absent: list[Absent] = []
    node_points: list[NodePoint] = []
    pod_points: list[PodPoint] = []
    for resource in resources:
        if isinstance(resource, Node):
            place = nodes.get(resource.metadata.name)
            if place is None:
                absent.append(Absent(f"node {resource.metadata.name}", "it is not running on this machine"))
            else:
                addresses = resource.internal_addresses
                node_points.append(NodePoint(resource.metadata.name, place.netns, addresses, place.uplink))
    for resource in resources:
        if isinstance(resource, Pod) and not _without_network(resource):
            name = f"{resource.metadata.namespace}/{resource.metadata.name}"
            point = _pod_point(name, resource, nodes, pods.get(name))
            if isinstance(point, PodPoint):
                pod_points.append(point)
            else:
                absent.append(point)
    blocks = tuple(
        Block(resource.network, resource.spec.node) for resource in resources if isinstance(resource, AddressBlock)
    )
    return World(
        tuple(node_points), tuple(pod_points), blocks, tuple(absent), ClusterView.of(resources), fallbacks
    )


def _without_network(pod: Pod) -> bool:
    return pod.spec.host_network or pod.status.phase in ("Succeeded", "Failed")


def _pod_point(name: str, pod: Pod, nodes: Mapping[str, NodePlace], place: PodPlace | None) -> PodPoint | Absent:
    node = pod.spec.node_name
    if not node:
        return Absent(f"pod {name}", "no node runs it yet")
    if not pod.addresses:
        return Absent(f"pod {name}", f"it is {pod.status.phase} on node {node} and has no address yet")
    if node not in nodes:
        return Absent(f"pod {name}", f"its node {node} is not running on this machine")
    if place is None:
        return Absent(f"pod {name}", f"its network namespace on node {node} is not known")
    return PodPoint(name, node, place.netns, pod.addresses, place.ifname, place.host_link, place.mtu)


def _of_family(addresses: tuple[Address, ...], family: Family) -> Address | None:
    return next((address for address in addresses if address.version == family), None)
