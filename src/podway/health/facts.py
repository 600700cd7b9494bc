"""The facts that checks judge: of one node, and of all nodes together. Times are in seconds since 1970."""

from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.api.lease import Lease
from podway.bgp.probe import PathMtu
from podway.bgp.status import BirdRoute
from podway.cluster.view import ClusterView
from podway.health.ruleset import Ruleset
from podway.ipam.addresses import BlockUse
from podway.plan.objects import NodePlan
from podway.plan.uplink import Uplink

Answer: TypeAlias = Literal["open", "refused", "silent", "unreachable", "unasked"]
"""What a TCP port says: SYN-ACK, RST, nothing, an ICMP error or no way to send; or nobody asked it."""


INOTIFY_TRIED = 4
"""How many inotify instances are opened at once, to see whether there is room."""

CONNTRACK_COUNT, CONNTRACK_MAX = "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"
FORWARDING: dict[Family, str] = {
    Family.IPV4: "net/ipv4/conf/{device}/forwarding",
    Family.IPV6: "net/ipv6/conf/all/forwarding",
}


class Repair(msgspec.Struct, frozen=True):
    """Something of ours that somebody else had changed and the agent put right."""

    at: float
    what: str


class TaskFailure(msgspec.Struct, frozen=True):
    """The latest failure that nobody expected of one of the agent's tasks, and how many there were."""

    task: str
    error: str
    at: float
    times: int


NEARLY = 0.9
"""A table filled so far is nearly full."""


class Table(msgspec.Struct, frozen=True):
    """A table of the flow engine's: how many entries it has, and how many it takes."""

    used: int
    room: int

    @property
    def is_nearly_full(self) -> bool:
        """Whether it is time to tell."""
        return self.used >= NEARLY * self.room


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent knows without looking. `refused` is what the kernel or BIRD would not take."""

    node: str
    version: str
    view: ClusterView
    uplink: Uplink
    plan: NodePlan
    pod_mtu: int
    blocks: tuple[BlockUse, ...] = ()
    pools: tuple[str, ...] = ()
    """Names of the pools from which this node may own blocks."""
    repairs: tuple[Repair, ...] = ()
    refused: tuple[str, ...] = ()
    failures: tuple[TaskFailure, ...] = ()
    store_problem: str = ""
    routing_problem: str = ""
    uplink_problem: str = ""
    channel_problem: str = ""
    pending: tuple[str, ...] = ()
    """What the node waits for before packets cross as the pools ask, in words."""
    leases: tuple[Lease, ...] = ()
    enforced: bool = False
    """Whether policies are enforced, as far as there is no `policy_problem`."""
    policy_problem: str = ""
    fallback: str = ""
    """Why the node does without the flow engine, where `dataPath: auto` lets it; empty if it does not."""
    cut_off: tuple[str, ...] = ()
    """Pods that are cut off, since it is not known what policies they have."""
    services_problem: str = ""
    """Why Services are not served as settings ask."""
    tables: Mapping[str, Table] = {}
    """The flow engine's tables by their names; none where it does not work."""
    certificate_expires: float | None = None
    """When the certificate of the agent's channel expires; None before it has one."""


class Settings(msgspec.Struct, frozen=True):
    """Kernel settings by path below /proc/sys, and counters (`Tcp.InCsumErrors`).

    `before` holds the counters of the agent's last look: what was counted long ago is no fault of today.
    """

    values: Mapping[str, str] = {}
    counters: Mapping[str, int] = {}
    before: Mapping[str, int] = {}
    inotify_room: int | None = None
    """How many more inotify instances can be opened, as far as was tried; None if that was not tried."""
    udp_ports: frozenset[int] = frozenset()
    """UDP ports that are open, by programs or (those of VXLAN devices that are up) by the kernel itself."""
    served_ports: Mapping[str, frozenset[int]] = {}
    """Ports by protocol (TCP, UDP) at which others than the node itself may begin to talk to a program."""
    unsupported: str = ""
    """What this kernel, or this process, lacks to run Podway."""

    def number(self, path: str) -> int | None:
        """Return a setting as a number, None if it does not exist."""
        text = self.values.get(path, "")
        return int(text) if text.lstrip("-").isdecimal() else None

    @property
    def signatures(self) -> int:
        """TCP segments dropped since the last look because the ends' passwords differ (RFC 2385)."""
        names = ("TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure")
        return sum(self.grown(f"TcpExt.{name}") for name in names)

    def grown(self, counter: str) -> int:
        """Return by how much a counter grew since the last look."""
        return max(0, self.counters.get(counter, 0) - self.before.get(counter, 0))


class Device(msgspec.Struct, frozen=True):
    """A link with its addresses; `ours` are pods' links, overlay devices and the bridge.

    `vxlan` are a VXLAN device's VNI and port, and `underlay` the family of its outer headers.
    """

    name: str
    kind: str
    mtu: int
    up: bool
    addresses: tuple[Interface, ...] = ()
    ours: bool = False
    vxlan: tuple[int, int] | None = None
    underlay: Family = Family.IPV4


class KernelRoute(msgspec.Struct, frozen=True):
    """A route that neither we nor our BIRD wrote. `protocol` is rtm_protocol."""

    destination: Network
    type: str
    device: str
    gateway: Address | None
    protocol: int
    metric: int
    table: int


class BlockRoute(msgspec.Struct, frozen=True):
    """Which way the kernel sends packets to another node's block, beside the route that BIRD has for it.

    `matched` is the destination of the route that decides, None if the kernel did not tell.
    """

    block: Network
    wanted: str
    device: str
    gateway: Address | None
    matched: Network | None
    table: int
    type: str


class NeighbourTable(msgspec.Struct, frozen=True):
    """A family's neighbour table: learned entries of this namespace, room (gc_thresh3), overflows since boot."""

    family: Family
    entries: int
    room: int
    overflows: int


class KernelNetwork(msgspec.Struct, frozen=True):
    """What rtnetlink tells, as far as it is not ours."""

    devices: tuple[Device, ...] = ()
    routes: tuple[KernelRoute, ...] = ()
    block_routes: tuple[BlockRoute, ...] = ()
    neighbours: tuple[NeighbourTable, ...] = ()


def neighbour_overflows(family: Family) -> str:
    """Return the name of the counter of a family's table."""
    return f"neighbours.{family.label}.overflows"


class Firewall(msgspec.Struct, frozen=True):
    """Others' firewall rules; `unread` names those that could not be read, and why."""

    rules: Ruleset = Ruleset()
    unread: str = ""


class Path(msgspec.Struct, frozen=True):
    """Probes to another node: ICMP echo, small, and with don't-fragment at `size` bytes.

    Where only small ones are answered, `mtu` is what was measured.
    """

    node: str
    address: Address
    size: int
    small: bool
    full: bool
    mtu: PathMtu | None = None

    @property
    def narrow(self) -> bool:
        """Whether it is its size that keeps a packet from arriving."""
        return self.small and not self.full


class NarrowPath(msgspec.Struct, frozen=True):
    """A path to another node that packets of `size` bytes do not pass.

    `fits` is the largest that does (0: not measured), and `told` says whether an ICMP error told the kernel so.
    """

    node: str
    address: str
    size: int
    fits: int = 0
    told: bool = False

    @property
    def family(self) -> Family:
        """The family of its address."""
        return Family.of(ip_address(self.address))


OUTSIDE = "BGPPeer/"
"""What the `node` of a session with a speaker outside the cluster begins with: there it is the object."""


class Session(msgspec.Struct, frozen=True):
    """A BGP session; if it is down, with what was tried: the peer's port, a ping, and the way to it.

    `node` is the node at the other end, or the outside peer's object.
    """

    name: str
    node: str
    address: str
    port: int
    state: str
    since: datetime
    last_error: str = ""
    bfd: str = ""
    answer: Answer = "unasked"
    ping: bool = True
    way: str = ""
    """The kernel's answer to a route lookup; empty if there is a way."""
    signatures: int = 0
    """TCP segments dropped lately because the ends' passwords differ (RFC 2385)."""
    limit: int = 0
    """How many routes are taken at most, if it told more; else 0."""

    @property
    def family(self) -> Family:
        """The family of its address."""
        return Family.of(ip_address(self.address))

    @property
    def outside(self) -> bool:
        """Whether the other end is outside the cluster."""
        return self.node.startswith(OUTSIDE)

    @property
    def established(self) -> bool:
        """Whether routes are exchanged."""
        return self.state == "Established"


class Routing(msgspec.Struct, frozen=True):
    """BIRD's state; `problem` says why it does not answer."""

    sessions: tuple[Session, ...] = ()
    paths: tuple[Path, ...] = ()
    problem: str = ""
    unreachable: tuple[BirdRoute, ...] = ()
    """Best routes to whose next hops BIRD knows no way."""


class Disk(msgspec.Struct, frozen=True):
    """Room on the file system that holds a path, in bytes."""

    path: str
    free: int
    total: int


class Files(msgspec.Struct, frozen=True):
    """The runtime's configuration, the plugin, waiting DELs (their ages in seconds) and disks.

    `configurations` are the files in the order in which runtimes take them, None where no runtime reads any.
    `lacking` are the plugins that ours names beside Podway and that are in no directory of plugins; `unreadable`
    says why it cannot be read.
    """

    directory: str = ""
    configurations: tuple[str, ...] | None = None
    plugin_path: str = ""
    plugin: Literal["same", "other", "missing", "unknown"] = "unknown"
    waiting: tuple[float, ...] = ()
    disks: tuple[Disk, ...] = ()
    lacking: tuple[str, ...] = ()
    unreadable: str = ""


class PodDevice(msgspec.Struct, frozen=True):
    """A pod's device, as it stands inside; `link` is the host's end of it."""

    name: str
    link: str
    netns: str
    device: str
    mtu: int


class KnownPod(msgspec.Struct, frozen=True):
    """A Pod of the store that runs: `name` is `<namespace>/<name>`."""

    name: str
    node: str
    addresses: tuple[Address, ...] = ()


class StoreTrial(msgspec.Struct, frozen=True):
    """One read from the store: how long it took, or why it failed."""

    seconds: float = 0.0
    problem: str = ""


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of one node at one moment."""

    now: float
    memory: Memory
    settings: Settings = Settings()
    network: KernelNetwork = KernelNetwork()
    firewall: Firewall = Firewall()
    routing: Routing = Routing()
    files: Files = Files()
    store: StoreTrial = StoreTrial()
    pods: tuple[PodDevice, ...] = ()
    policies: int = 0
    """How many policies there are in the store: the agent knows them only where they are enforced."""
    pods_known: tuple[KnownPod, ...] | None = None
    """The Pods in the store, None where nobody writes any there."""
    renewed: Mapping[str, float] = {}
    """When each node's agent renewed its lease last, as far as that is known: seconds since 1970."""
    drift: tuple[str, ...] = ()
    """Differences between plan and kernel that stayed."""
    unseen: Mapping[str, str] = {}
    """Sources that failed, and why."""


class PoolFill(msgspec.Struct, frozen=True):
    """How many of a pool's blocks are claimed by anyone."""

    name: str
    cidr: str
    claimed: int
    total: int
    relieved: bool = False
    """Whether the node that tells this needs it no more: another one with blocks left serves the same pods."""


class Reflector(msgspec.Struct, frozen=True):
    """A route reflector: what fails together with it, which nodes say that they lost it, and if most do."""

    node: str
    rack: str
    lost_by: tuple[str, ...] = ()
    lost: bool = False


class NodeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent tells the command besides its findings, for checks that look at several nodes at once."""

    node: str
    version: str
    at: float
    """The agent's clock when it answered."""
    pod_mtu: int
    sessions: tuple[Session, ...] = ()
    pools: tuple[PoolFill, ...] = ()
    addresses: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    """What it still waited for at the second look."""
    headers: int = 0
    """Bytes that encapsulation adds to pods' packets, at most."""
    narrow: tuple[NarrowPath, ...] = ()
    """The paths to other nodes that pods' largest packets do not pass."""
    bare_far: Mapping[str, str] = {}
    """Pools with packets sent bare to subnets whose routers know no pods, and the pools' distribution."""
    rejected: Mapping[str, str] = {}
    """Objects of the store that are no facts, and why."""
    reflectors: tuple[Reflector, ...] = ()
    """As the node sees them; none in a mesh."""
    racks: int = 1
    """In how many racks the cluster's nodes are."""
    nodes: tuple[str, ...] = ()
    """The cluster's nodes, as the node knows them."""
    seen: Mapping[str, float] = {}
    """Seconds since the last sign of life of nodes' agents in the store, for nodes of which that is known."""


class Heard(msgspec.Struct, frozen=True):
    """An agent's summary, and the command's own clock when it came."""

    summary: NodeSummary
    received: float


class ClusterFacts(msgspec.Struct, frozen=True):
    """The answers of the agents that were asked, and why the silent ones gave none."""

    heard: Mapping[str, Heard] = {}
    silent: Mapping[str, str] = {}
    whole: bool = True
    """Whether every node was asked, not only some that were named."""
