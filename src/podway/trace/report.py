"""What a trace found, as records; their JSON form is the documented schema (docs/trace.md)."""

from typing import Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["delivered", "lost", "unknown"]
Basis: TypeAlias = Literal["probe", "answer", "echo", "kernel", "none"]
"""What an outcome rests on: the probe, the answer to it, an echo request of its own, or kernels' words."""


class _Record(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the report's parts: camelCase in JSON."""


class Planned(_Record, frozen=True):
    """What Podway planned at a hop. `route` and `neighbour` are in words, empty where there is none of ours.

    `owner` keeps the route: `podway`, `bird` (it was told by the node `learnedFrom`), `kernel` or `host`
    (whoever set up the node's own network). `disposition` is forwarded, delivered, discarded or outside.
    `encapsulation` is the encapsulation in which the packet leaves for another node, `translation` what becomes of
    its source where it leaves the cluster, in nft's words; empty: nothing.
    """

    disposition: str
    owner: str
    route: str = ""
    learned_from: str = ""
    neighbour: str = ""
    encapsulation: str = "none"
    translation: str = ""


class Neighbour(_Record, frozen=True):
    """The next hop's entry in the neighbour table; `state` is permanent, learned, unresolved or absent."""

    address: str
    mac: str
    state: str


class Underlay(_Record, frozen=True):
    """What follows an overlay device: the entries that lead from its gateway to the outer packet's way out.

    `mac` is the gateway's by the neighbour table, `endpoint` the node's address that it stands for: by the
    forwarding database (`vxlan`), or as the MAC says it (`ipip`). `route` is the outer packet's, `router` its
    gateway if it is no node. `missing` says what keeps the packet from leaving: `neighbour`, `forwarding`,
    `program` or `route`.
    """

    encapsulation: str
    mac: str
    endpoint: str
    route: str = ""
    owner: str = ""
    device: str = ""
    mtu: int = 0
    router: str = ""
    missing: str = ""


class Kernel(_Record, frozen=True):
    """What a kernel says of this packet: the route that RTM_GETROUTE answers for it, and where that leads.

    `type` is iproute2's, or `no route`, or `source refused` (rp_filter). `owner` is the route's protocol by
    iproute2's name, `learnedFrom` the node that told it by BGP. `mtu` is that of the device in bytes. `router`
    is the gateway if no node has its address. `nextHops` are all next hops of a route that has several; the one
    that is taken for this packet is in `gateway` and `device`. `underlay` is null but for overlay devices.
    """

    type: str
    route: str = ""
    gateway: str = ""
    device: str = ""
    kind: str = ""
    mtu: int = 0
    source: str = ""
    table: str = ""
    owner: str = ""
    learned_from: str = ""
    neighbour: Neighbour | None = None
    router: str = ""
    next_hops: tuple[str, ...] = ()
    underlay: Underlay | None = None


class Seen(_Record, frozen=True):
    """The packet at one device. `sinceLast` is in nanoseconds, null if the two clocks are different ones."""

    interface: str
    direction: Literal["in", "out"]
    source: str
    source_port: int
    destination: str
    destination_port: int
    hop_limit: int
    length: int
    since_last: int | None
    tunnels: tuple[str, ...] = ()


class Hop(_Record, frozen=True):
    """One namespace on the way. `pod` is empty for the node's own.

    `planned` is null off the planned path, `kernel` where it could not be asked (`problem` says why) or where
    the kernels do not send the packet. `mtu` of the device that the packet leaves by is in `kernel`. `wireEntry`
    and `wireExit` are the devices below `entry` and `exit` where these are overlay devices. `carried` tells that
    the flow engine took the packet from where it came in straight into the pod, so that nothing saw it leave.
    """

    number: int
    node: str
    pod: str
    entry: str
    exit: str
    planned: Planned | None
    kernel: Kernel | None
    seen: tuple[Seen, ...] = ()
    problem: str = ""
    on_plan: bool = True
    wire_entry: str = ""
    wire_exit: str = ""
    carried: bool = False

    @property
    def label(self) -> str:
        """Whose namespace it is."""
        return f"pod {self.pod}" if self.pod else f"node {self.node}"


class Verdict(_Record, frozen=True):
    """How it ended. `sourceKept` and `encapsulated` are null if nothing was seen; `encapsulation` is the one seen.

    `translated` is the source that the packet had in the end, where it was translated on its way out of the
    cluster as planned, and else empty. `hop` is the number of the one where it failed. `largest` is the largest
    packet, in bytes, that all devices on the way take; `took` the time from the first sight to the last in
    nanoseconds.
    """

    outcome: Outcome
    basis: Basis
    source_kept: bool | None = None
    encapsulated: bool | None = None
    largest: int = 0
    took: int | None = None
    answered_by: str = ""
    hop: int | None = None
    code: str = ""
    problem: str = ""
    advice: str = ""
    detail: str = ""
    last_seen: str = ""
    encapsulation: str = ""
    translated: str = ""


class Direction(_Record, frozen=True):
    """One way: from the sender to the receiver, hop by hop."""

    sender: str
    receiver: str
    hops: tuple[Hop, ...]
    verdict: Verdict


class PolicySaid(_Record, frozen=True):
    """What policies say of the conversation at one end: `direction` is ingress or egress of `pod`.

    `audit` says why audited policies would deny it, if they were enforced; empty if they would not. `unenforced`
    says why nobody sees to it there that this holds; empty if somebody is to.
    """

    direction: str
    pod: str
    allowed: bool
    reason: str
    audit: str = ""
    unenforced: str = ""

    @property
    def denies(self) -> bool:
        """Whether the conversation must not take place for that."""
        return not self.allowed and not self.unenforced


class ThroughService(_Record, frozen=True):
    """A Service that the conversation is held through: its address and port, and those that they become.

    `choices` is among how many backends the source's node chooses; one of them is followed here. `problem` says
    why it is not Podway that leads there, empty if it is.
    """

    service: str
    address: str
    port: int
    backend: str
    backend_port: int
    choices: int
    problem: str = ""


class FamilyTrace(_Record, frozen=True):
    """Both directions by one IP version. Ports are 0 where there are none. `service` is null without one.

    `policy` is empty where no policy selects either end; `enforced` tells whether all that it says is enforced.
    """

    family: str
    source: str
    destination: str
    source_port: int
    port: int
    there: Direction
    back: Direction
    policy: tuple[PolicySaid, ...] = ()
    enforced: bool = True
    service: ThroughService | None = None


class Silent(_Record, frozen=True):
    """A node whose agent did not answer, and why."""

    node: str
    reason: str


class TraceReport(_Record, frozen=True):
    """The outcome of one trace; `duration` is in seconds."""

    sender: str
    receiver: str
    protocol: str
    dry_run: bool
    families: tuple[FamilyTrace, ...]
    silent: tuple[Silent, ...]
    duration: float
    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["TraceReport"] = "TraceReport"

    @property
    def delivered(self) -> bool:
        """Whether packets were delivered both ways in every family; without probes, whether kernels say so."""
        return all(
            direction.verdict.outcome == "delivered"
            for family in self.families
            for direction in (family.there, family.back)
        )


def to_json(report: TraceReport) -> str:
    """Return the report as JSON, indented; `delivered` is among its fields."""
    document = msgspec.to_builtins(report)
    return msgspec.json.format(msgspec.json.encode({"delivered": report.delivered, **document}), indent=2).decode()
