"""What is known of one flow at one moment: a record, as queries answer with it. Pure."""

from typing import Literal, TypeAlias

import msgspec

Event: TypeAlias = Literal["new", "lives", "end", "drop", "changed", "audit"]
"""What happened: a flow began, goes on (told every ten seconds), ended; a packet was dropped; a flow was judged
anew and the verdict is another; policies that only report would deny a flow, which goes on."""

Verdict: TypeAlias = Literal["allowed", "denied", "dropped", "audited"]
"""`denied` is a policy's word; `dropped` has another reason; `audited` would be denied, and is not."""

EVENTS: tuple[Event, ...] = ("new", "lives", "end", "drop", "changed", "audit")
VERDICTS: tuple[Verdict, ...] = ("allowed", "denied", "dropped", "audited")

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 58: "icmpv6", 132: "sctp", 136: "udplite"}
"""Names of protocols by their numbers (IANA)."""


class Who(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose an address was: a pod's (with its namespace and node), a node's, or `outside` of the cluster.

    `workload` is what controls a pod (`Deployment/web`), empty if nothing does. `names` are those by which DNS
    told pods of an address outside.
    """

    kind: Literal["pod", "node", "outside"] = "outside"
    name: str = ""
    namespace: str = ""
    node: str = ""
    workload: str = ""
    names: tuple[str, ...] = ()

    @property
    def owner(self) -> str:
        """A pod's workload with its namespace, `NAMESPACE/KIND/NAME`: a pod that nobody controls is its own."""
        return f"{self.namespace}/{self.workload or f'Pod/{self.name}'}" if self.kind == "pod" else ""

    @property
    def label(self) -> str:
        """The name in one word: NAMESPACE/POD, node/NODE, or nothing."""
        if self.kind == "pod":
            return f"{self.namespace}/{self.name}"
        return f"node/{self.name}" if self.kind == "node" else ""


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which rule spoke: its policy (`NetworkPolicy/shop/allow-web`), what it is called, and the policy's version.

    `isolates` names all policies of which none allows it, where there is no rule that denies.
    """

    policy: str
    rule: str = ""
    revision: str = ""
    isolates: tuple[str, ...] = ()


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """One end of a flow."""

    address: str
    port: int = 0
    who: Who = Who()

    @property
    def label(self) -> str:
        """Its name, or its address if it has none."""
        return self.who.label or next(iter(self.who.names), self.address)


class Frontend(msgspec.Struct, frozen=True, omit_defaults=True):
    """A port of a Service; `protocol` in small letters."""

    namespace: str
    name: str
    protocol: str
    port: int
    port_name: str = ""


class Called(msgspec.Struct, frozen=True, omit_defaults=True):
    """The Service that was called, with address and port as they were before they were translated.

    Without a name it is not known whose the address was.
    """

    address: str
    port: int = 0
    namespace: str = ""
    name: str = ""
    port_name: str = ""

    @property
    def label(self) -> str:
        """NAMESPACE/NAME; empty if that is not known."""
        return f"{self.namespace}/{self.name}" if self.name else ""


class FlowRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one node saw of a flow, in the direction of who called.

    `time` and `began` are seconds since 1970. `sequence` counts a node's records. `direction` is seen from the
    pod of this node: `egress` if it called, `ingress` if it was called, `local` if both are here. `message` is the
    type and code of ICMP. Counters are those of the flow so far, of a drop those of the packets that this record
    stands for. `path` is how packets go on from here, as far as it is known: `local`, `routed`, `vxlan`, `ipip` or
    `stack`. `how` says of an end: `closed`, `reset`, `idle`, `unanswered`, or `evicted` by a full table. `reply`
    says that the dropped packet went the other way. `rtt` and `rtt_back` are round trips of TCP in microseconds,
    from this node to who was called and to who called (0: not known), `retransmitted` and `retransmitted_back` the
    packets of either direction that were sent again. `lost` counts the events that the node lost before this one.
    `service` is what was called where that is a Service's address: `destination` is the backend that was chosen,
    or that address itself where none was.
    """

    time: float
    node: str
    sequence: int
    event: Event
    verdict: Verdict
    source: End
    destination: End
    protocol: str
    direction: str = ""
    reason: str = ""
    egress: Rule | None = None
    ingress: Rule | None = None
    message: str = ""
    packets: int = 0
    octets: int = msgspec.field(default=0, name="bytes")
    packets_back: int = 0
    octets_back: int = msgspec.field(default=0, name="bytes_back")
    began: float = 0.0
    how: str = ""
    path: str = ""
    device: str = ""
    reply: bool = False
    rtt: int = 0
    rtt_back: int = 0
    retransmitted: int = 0
    retransmitted_back: int = 0
    lost: int = 0
    service: Called | None = None

    @property
    def round_trip(self) -> int:
        """The round trip of TCP between both ends, in microseconds; 0 if a half of it is not known."""
        return self.rtt + self.rtt_back if self.rtt and self.rtt_back else 0

    @property
    def speaking(self) -> Rule | None:
        """The rule that decided: the one that denied it, or the one that allowed it last."""
        if self.reason == "DENIED_EGRESS":
            return self.egress
        return self.ingress or self.egress
