"""The kinds a cluster is made of, typed and frozen, in Kubernetes' shape.

Node, Namespace, Pod and Secret are Kubernetes' own kinds, of which Podway reads a few fields; IPPool,
AddressBlock, BGPPeer, NetworkConfig and ClusterAuthority are Podway's. A kind is added by writing its Struct
and listing it in KINDS.

What is parsed out of an object is kept beside its fields (`dict=True`): the object is frozen, so it stays true.
"""

from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from typing import ClassVar, Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.api.identity import ChannelSettings, ClusterAuthority
from podway.api.meta import LabelSelector, Metadata, Record, StrictRecord
from podway.api.peers import BGP_PORT, BGPPeer, Secret

GROUP_VERSION = "podway.io/v1"

INTERFACE_ADDRESSES = "podway.io/interface-addresses"
"""Node annotation: the uplink's addresses with their prefix lengths, comma-separated."""

AGENT_INSTANCE = "podway.io/agent-instance"
"""Node annotation: which kernel the node's agent runs on; two different ones are a mistake."""

AGENT_SEEN = "podway.io/agent-seen"
"""Node annotation: when that agent was last alive (seconds since 1970)."""

ACCEPTS = "podway.io/accepts"
"""Node annotation: the encapsulations that the node takes off, comma-separated; `none` goes without saying."""

SENDS = "podway.io/sends"
"""Node annotation: the encapsulations that the node may still put on."""

ASN = "podway.io/asn"
"""Node annotation: the node's own AS number, in place of the cluster's."""

BGP_READY = "podway.io/bgp-ready"
"""Node annotation: the topology for which the node has all the sessions that it needs."""

STARVED = "podway.io/starved-pools"
"""Node annotation: pools, comma-separated, of which a pod got no address here lately."""

BGP_LOST = "podway.io/bgp-lost"
"""Node annotation: the route reflectors with which the node has no session any more, comma-separated."""

RACK = "podway.io/rack"
"""Node label: what fails together with the node; without it, the node's subnet says so."""

DEFAULT_BLOCK_PREFIX = {Family.IPV4: 24, Family.IPV6: 122}
DEFAULT_POOL = "10.244.0.0/16"
DEFAULT_ASN = 64512

Distribution: TypeAlias = Literal["bgp", "store"]
"""Who tells nodes the way to a pool's blocks: BGP, or the ownership of the blocks in the store."""

Encapsulation: TypeAlias = Literal["none", "vxlan", "ipip"]
"""The form in which a packet crosses from node to node: as it is, in VXLAN (RFC 7348), in IPIP (RFC 2003)."""

When: TypeAlias = Literal["always", "cross-subnet"]
"""Between which nodes packets are encapsulated: all, or only those that share no subnet."""

Attach: TypeAlias = Literal["routed", "bridge"]
"""What the host end of a pod's veth pair is: a routed interface of its own, or a port of `cni0`."""

Topology: TypeAlias = Literal["auto", "mesh", "reflectors", "none"]
"""Which nodes have BGP sessions with each other."""


class NodeAddress(Record, frozen=True, kw_only=True):
    """One of a node's addresses; `type` is InternalIP, Hostname and so on."""

    type: str
    address: str


class NodeStatus(Record, frozen=True, kw_only=True):
    """What is observed of a node."""

    addresses: tuple[NodeAddress, ...] = ()


class Node(Record, frozen=True, kw_only=True, dict=True):
    """A machine that runs pods."""

    KIND: ClassVar[str] = "Node"
    NAMESPACED: ClassVar[bool] = False

    api_version: Literal["v1"] = "v1"
    kind: Literal["Node"] = "Node"
    metadata: Metadata
    status: NodeStatus = NodeStatus()

    @cached_property
    def internal_addresses(self) -> tuple[Address, ...]:
        """The node's own addresses, at most one a family."""
        return tuple(ip_address(a.address) for a in self.status.addresses if a.type == "InternalIP")

    def internal_address(self, family: Family) -> Address | None:
        """Return the node's address of this family, None if it has none."""
        for address in self.internal_addresses:  # plain: a planner asks it of thousands of nodes
            if address.version == family:
                return address
        return None

    @cached_property
    def interface_addresses(self) -> tuple[Interface, ...]:
        """The uplink's addresses with their subnets."""
        text = self.metadata.annotations.get(INTERFACE_ADDRESSES, "")
        return tuple(ip_interface(part) for part in text.split(",") if part)

    @cached_property
    def rack(self) -> str:
        """What fails together with the node: its rack label, else its first subnet; empty if neither is known."""
        label = self.metadata.labels.get(RACK)
        if label is not None:
            return label
        return str(self.interface_addresses[0].network) if self.interface_addresses else ""

    @cached_property
    def asn(self) -> int | None:
        """The node's own AS number, None if it has the cluster's. Raises ValueError for what is no number."""
        text = self.metadata.annotations.get(ASN)
        return int(text) if text else None

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The encapsulations that the node says it takes off."""
        return _words(self.metadata.annotations.get(ACCEPTS, ""))

    @cached_property
    def sends(self) -> frozenset[str]:
        """The encapsulations that the node says it may still put on."""
        return _words(self.metadata.annotations.get(SENDS, ""))

    @cached_property
    def lost(self) -> frozenset[str]:
        """The route reflectors that the node says it has lost."""
        return _words(self.metadata.annotations.get(BGP_LOST, ""))

    @cached_property
    def starved(self) -> frozenset[str]:
        """The pools of which the node says that a pod got no address lately."""
        return _words(self.metadata.annotations.get(STARVED, ""))


class Namespace(Record, frozen=True, kw_only=True):
    """A Kubernetes namespace; Podway reads its labels."""

    KIND: ClassVar[str] = "Namespace"
    NAMESPACED: ClassVar[bool] = False

    api_version: Literal["v1"] = "v1"
    kind: Literal["Namespace"] = "Namespace"
    metadata: Metadata


class PodSpec(Record, frozen=True, kw_only=True):
    """Where a pod is to run."""

    node_name: str = ""
    host_network: bool = False


class PodAddress(Record, frozen=True, kw_only=True):
    """One entry of a pod's `status.podIPs`."""

    ip: str


class PodStatus(Record, frozen=True, kw_only=True):
    """What is observed of a pod."""

    phase: str = "Pending"
    # Kubernetes writes these two with capitals that no rule gives.
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodAddress, ...] = msgspec.field(default=(), name="podIPs")


class Pod(Record, frozen=True, kw_only=True):
    """A group of containers that share one network namespace."""

    KIND: ClassVar[str] = "Pod"
    NAMESPACED: ClassVar[bool] = True

    api_version: Literal["v1"] = "v1"
    kind: Literal["Pod"] = "Pod"
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The pod's addresses, at most one a family."""
        return tuple(ip_address(entry.ip) for entry in self.status.pod_ips)


class IPPoolSpec(StrictRecord, frozen=True, kw_only=True):
    """Addresses for pods, cut into blocks that nodes own.

    `block_size` is a prefix length. `excluded` are addresses or networks never given to a pod.
    `cooldown_seconds` is how long a freed address waits before another pod may get it.
    A pool serves a pod if both selectors, where stated, match the pod's node and namespace.
    """

    cidr: str
    block_size: int | None = None
    node_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    excluded: tuple[str, ...] = ()
    cooldown_seconds: int = 10
    disabled: bool = False
    distribution: Distribution = "bgp"
    encapsulation: Encapsulation = "none"
    when: When = "always"
    attach: Attach = "routed"


class IPPool(StrictRecord, frozen=True, kw_only=True, dict=True):
    """A range of pod addresses."""

    KIND: ClassVar[str] = "IPPool"
    NAMESPACED: ClassVar[bool] = False

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["IPPool"] = "IPPool"
    metadata: Metadata
    spec: IPPoolSpec

    @cached_property
    def network(self) -> Network:
        """The pool's range."""
        return ip_network(self.spec.cidr)

    @property
    def family(self) -> Family:
        """The pool's address family."""
        return Family.of(self.network)

    @property
    def block_prefix(self) -> int:
        """Prefix length of the pool's blocks."""
        return self.spec.block_size or DEFAULT_BLOCK_PREFIX[self.family]

    @property
    def excluded_networks(self) -> tuple[Network, ...]:
        """What is never given to a pod, single addresses as /32 or /128."""
        return tuple(ip_network(text) for text in self.spec.excluded)


class AddressBlockSpec(StrictRecord, frozen=True, kw_only=True):
    """Who owns a block. The object's creation is the claim: its name is unique in the store."""

    cidr: str
    pool: str
    node: str


class AddressBlock(StrictRecord, frozen=True, kw_only=True, dict=True):
    """A part of a pool that belongs to one node."""

    KIND: ClassVar[str] = "AddressBlock"
    NAMESPACED: ClassVar[bool] = False

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["AddressBlock"] = "AddressBlock"
    metadata: Metadata
    spec: AddressBlockSpec

    @cached_property
    def network(self) -> Network:
        """The block's range."""
        return ip_network(self.spec.cidr)


class ReflectorSettings(StrictRecord, frozen=True, kw_only=True):
    """Which nodes reflect routes (RFC 4456): all that the selector matches, else `count` chosen by Podway."""

    node_selector: LabelSelector | None = None
    count: int = 3


class BgpSettings(StrictRecord, frozen=True, kw_only=True):
    """How nodes speak BGP with each other; BFD times in milliseconds.

    With topology `auto` nodes form a full mesh while there are at most `mesh_limit`, and speak with reflectors
    when there are more. With `none` they speak with outside peers only.
    """

    asn: int = DEFAULT_ASN
    port: int = BGP_PORT
    topology: Topology = "auto"
    mesh_limit: int = 50
    reflectors: ReflectorSettings = ReflectorSettings()
    bfd: bool = True
    bfd_interval: int = 200
    bfd_multiplier: int = 2


class VxlanSettings(StrictRecord, frozen=True, kw_only=True):
    """The VXLAN network of the cluster: its VXLAN network identifier and UDP port."""

    vni: int = 4096
    port: int = 4789


class NetworkConfigSpec(StrictRecord, frozen=True, kw_only=True):
    """Settings of the whole cluster. `mtu` 0 means: what the path of pod packets allows."""

    bgp: BgpSettings = BgpSettings()
    channel: ChannelSettings = ChannelSettings()
    vxlan: VxlanSettings = VxlanSettings()
    mtu: int = 0


class NetworkConfig(StrictRecord, frozen=True, kw_only=True):
    """The cluster's settings; there is one object, named `default`."""

    KIND: ClassVar[str] = "NetworkConfig"
    NAMESPACED: ClassVar[bool] = False

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["NetworkConfig"] = "NetworkConfig"
    metadata: Metadata
    spec: NetworkConfigSpec = NetworkConfigSpec()


Resource: TypeAlias = (
    Node | Namespace | Pod | Secret | IPPool | AddressBlock | BGPPeer | NetworkConfig | ClusterAuthority
)

KINDS: dict[str, type[Resource]] = {
    kind.KIND: kind
    for kind in (Node, Namespace, Pod, Secret, IPPool, AddressBlock, BGPPeer, NetworkConfig, ClusterAuthority)
}


def _words(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())


def block_name(block: Network) -> str:
    """Return the object name of a block: its CIDR with `-` for `.`, `:` and `/`.

    IPv6 is written out in full, so that a name never starts or ends with a hyphen.
    """
    base = block.network_address.exploded.replace(".", "-").replace(":", "-")
    return f"{base}-{block.prefixlen}"


def block_named(name: str) -> Network | None:
    """Return the block whose object has this name, None if it can be no block's."""
    *base, length = name.split("-")
    try:
        return ip_network(f"{('.' if len(base) == 4 else ':').join(base)}/{length}")
    except ValueError:
        return None


Key: TypeAlias = tuple[str, str, str]
"""Kind, namespace and name: what tells two objects apart."""


def key(obj: Resource) -> Key:
    """Return an object's key."""
    return (obj.KIND, obj.metadata.namespace, obj.metadata.name)


def subject(obj_key: Key) -> str:
    """Return a key in the form that messages use: `IPPool/default`, `Pod/default/web`."""
    return "/".join(part for part in obj_key if part)
