"""What the maps of the flow engine hold: records of podway/bpf/flow/*.h, and nothing else knows their bytes.

Numbers are in the host's order, ports too. Addresses of both families are 16 bytes, IPv4 mapped (RFC 4291
section 2.5.5.2). A test compares names, offsets and sizes with the BTF of the compiled object.
"""

import enum
import struct
from collections.abc import Container, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, NamedTuple

from podway.api.addresses import Address, Network
from podway.policy.maps import Columns, Prefix, Rule, RuleKey, Tier, Verdict
from podway.services.maps import Backend, Frontend, FrontendFlag, FrontendKey

_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 96
_FAMILY_BITS = 32


def picker(fields: Iterable[tuple[str, str]], names: Container[str]) -> struct.Struct:
    """Return what reads only some of a struct's fields, these each with its format, in their order."""
    return struct.Struct(
        "=" + "".join(form if name in names else f"{struct.calcsize('=' + form)}x" for name, form in fields)
    )


class Layout:
    """A struct of C: its name and fields, each with its format (see the module `struct`)."""

    def __init__(self, name: str, **fields: str) -> None:
        self.name = name
        self.fields = fields
        self._struct = struct.Struct("=" + "".join(fields.values()))

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self._struct.size

    @property
    def offsets(self) -> dict[str, int]:
        """Where each field begins, in bytes."""
        at, found = 0, {}
        for name, form in self.fields.items():
            found[name] = at
            at += struct.calcsize("=" + form)
        return found

    def picker(self, *names: str) -> struct.Struct:
        """Return what reads only some fields, in the order of the struct, of records that follow each other."""
        return picker(self.fields.items(), names)

    def pack(self, *values: object) -> bytes:
        """Return the struct's bytes, from its values in order."""
        return self._struct.pack(*values)

    def unpack(self, data: bytes) -> tuple[Any, ...]:
        """Return the values in order."""
        return self._struct.unpack(data)


class Reason(enum.IntEnum):
    """Why a packet is dropped: enum reason in counters.h."""

    KEPT = 0
    MALFORMED = 1
    EXTENSION_HEADERS = 2
    NOT_OWN_SOURCE = 3
    POD_SOURCE_FROM_WIRE = 4
    LINK_MESSAGE = 5
    ICMP_ERROR_FORGED = 6
    ICMP_ERROR_UNRELATED = 7
    REPLY_WITHOUT_REQUEST = 8
    FRAGMENT_WITHOUT_FIRST = 9
    DENIED_EGRESS = 10
    DENIED_INGRESS = 11
    POLICY_NOT_WRITTEN = 12
    QUOTA_HALF_OPEN = 13
    QUOTA_ESTABLISHED = 14
    TABLE_FULL = 15
    SERVICE_NO_ENDPOINT = 16
    SERVICE_NO_PORT = 17
    SERVICE_PORTS_TAKEN = 18
    DROPPED_BY_KERNEL = 19


class Counter(enum.IntEnum):
    """What else is counted, after the reasons: enum counter in counters.h."""

    CARRIED_PEER = 20
    CARRIED_WIRE = 21
    TO_STACK = 22
    FLOWS_MADE = 23
    FLOWS_JUDGED_AGAIN = 24
    WAYS_RENEWED = 25
    EVENTS_LOST = 26
    RESETS_SENT = 27
    UNREACHABLES_SENT = 28
    DROPS_WITHHELD = 29


class FlowState(enum.IntEnum):
    """How far a connection is: enum flow_state in flow.h."""

    HALF_OPEN = 0
    REPLIED = 1
    ASSURED = 2
    OPEN = 3
    CLOSING = 4
    CLOSED = 5
    RESET = 6


class Way(enum.IntEnum):
    """How a flow's packets go on: enum way in flow.h."""

    STACK = 0
    PEER = 1
    WIRE = 2


class Hook(enum.IntEnum):
    """Where a program sees packets: enum hook in state.h."""

    FROM_POD = 0
    FROM_WIRE = 1
    TO_POD = 2


class FlowFlag(enum.IntFlag):
    """FLOW_… in flow.h and judge.h."""

    REPLY = 1
    STRAIGHT = 2
    INCOMING = 4
    SENT_FIN = 8
    FROM_NODE = 16
    SERVICE = 32
    TO_ITSELF = 64
    OF_BEFORE = 128


class EventKind(enum.IntEnum):
    """What an event tells: enum event_kind in event.h."""

    FLOW_NEW = 0
    FLOW_REJUDGED = 1
    FLOW_END = 2
    PACKET_DROPPED = 3
    FLOW_LIVES = 4
    FLOW_EVICTED = 5
    FLOW_AUDITED = 6


MOST_PRECEDENCE = (1 << 30) - 1
LONGEST_ANSWER = 4080
"""How long a packet with an answer of DNS is at most that the agent gets, in bytes."""
BRIDGED = 1
"""The flag of an endpoint that is a port of a bridge."""
LIMITED = 2
"""The flag of one by whose link passes only so much: packets go the way on which they are counted, the stack's."""
NAMES = 4
"""The flag of one whose policies name domains: answers of DNS for it go by the agent."""


def pack_address(address: Address) -> bytes:
    """Return an address's 16 bytes."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def unpack_address(data: bytes) -> Address:
    """Return the address of 16 bytes."""
    return IPv4Address(data[12:]) if data.startswith(_MAPPED) else IPv6Address(data)


PREFIX = Layout("prefix", length="I", family="4s", address="16s")


def pack_prefix(network: Network) -> bytes:
    """Return a prefix as a trie's key."""
    length = _FAMILY_BITS + network.prefixlen + (_MAPPED_BITS if network.version == 4 else 0)
    return PREFIX.pack(length, struct.pack("!I", network.version), pack_address(network.network_address))


def unpack_prefix(data: bytes) -> Network:
    """Return the prefix of a trie's key."""
    length, family, address = PREFIX.unpack(data)
    if family[3] == 4:
        return IPv4Network((address[12:], length - _FAMILY_BITS - _MAPPED_BITS))
    return IPv6Network((address, length - _FAMILY_BITS))


def pack_policy_prefix(prefix: Prefix) -> bytes:
    """Return a prefix as policies have it as a trie's key."""
    four = prefix.version == 4
    address = _MAPPED + prefix.number.to_bytes(4) if four else prefix.number.to_bytes(16)
    length = _FAMILY_BITS + prefix.length + (_MAPPED_BITS if four else 0)
    return PREFIX.pack(length, struct.pack("!I", prefix.version), address)


def unpack_policy_prefix(data: bytes) -> Prefix:
    """Return the prefix of a trie's key as policies have it."""
    length, family, address = PREFIX.unpack(data)
    if family[3] == 4:
        return Prefix(4, int.from_bytes(address[12:]), length - _FAMILY_BITS - _MAPPED_BITS)
    return Prefix(6, int.from_bytes(address), length - _FAMILY_BITS)


IDENTITY = struct.Struct("=I")
"""An identity, as the trie's value."""

STATE = Layout("state", epoch="I", way_generation="I", half_open="I", established="I", generations="I")


class State(NamedTuple):
    """What all programs go by; quotas are in flows of one endpoint."""

    epoch: int
    way_generation: int
    half_open: int
    established: int
    generations: int


BEGINNING = Layout("beginning", settled="Q", newest="I", unused="4x")


class Beginning(NamedTuple):
    """When the engine began where none was before: until when it takes for answers what might be (CLOCK_MONOTONIC,
    ns), and the greatest number of a link of then."""

    settled: int
    newest: int


ENDPOINT = Layout(
    "endpoint",
    ifindex="I",
    egress_rules="I",
    ingress_rules="I",
    flags="I",
    egress_audit="I",
    ingress_audit="I",
)


class Endpoint(NamedTuple):
    """A pod of this node, by one of its addresses: its host link and its rule sets (0: no policy).

    By the sets for audits is only told what they would deny.
    """

    ifindex: int
    egress_rules: int = 0
    ingress_rules: int = 0
    flags: int = 0
    egress_audit: int = 0
    ingress_audit: int = 0


ANSWER = Layout("answer", time="Q", ifindex="I", length="H", held="B", unused="B", packet=f"{LONGEST_ANSWER}s")


class Answer(NamedTuple):
    """A packet to a pod with an answer of DNS, from the IP header on (`packet` is longer than its `length`).

    `held` tells that the pod gets it from the agent only; `time` is of CLOCK_MONOTONIC, in ns.
    """

    time: int
    ifindex: int
    length: int
    held: int
    unused: int
    packet: bytes


LEARNED_NAME = Layout("learned_name", address="16s", text="256s")


RULE_SET = Layout("rule_set", generation="I", port_lengths="I")


class RuleSet(NamedTuple):
    """A set of rules: of which generation, and bit n: an entry of it has a prefix of n bits of the port."""

    generation: int
    port_lengths: int


RULE_KEY = Layout("rule_key", set="I", identity="I", port="H", port_length="B", protocol="B")


def pack_rule_key(key: RuleKey) -> bytes:
    """Return the bytes of an entry's key."""
    return RULE_KEY.pack(key.rule_set, key.identity, key.port, key.port_length, key.protocol)


def unpack_rule_key(data: bytes) -> RuleKey:
    """Read an entry's key."""
    number, identity, port, length, protocol = RULE_KEY.unpack(data)
    return RuleKey(number, identity, protocol, port, length)


def pack_rule(rule: Rule) -> int:
    """Return a rule as one number: the greater goes before the smaller."""
    return rule.precedence << 34 | rule.verdict << 32 | rule.number


def unpack_rule(number: int) -> Rule | None:
    """Read one; None where nothing is said."""
    verdict = Verdict(number >> 32 & 3)
    return Rule(verdict, number >> 34, number & 0xFFFFFFFF) if verdict else None


RULES_ENTRY = Layout("rules_entry", tier="3Q")


def pack_rules(tiers: Mapping[Tier, Rule]) -> bytes:
    """Return an entry's value from what each tier says."""
    return RULES_ENTRY.pack(*(pack_rule(tiers[tier]) if tier in tiers else 0 for tier in Tier))


def pack_columns(columns: Columns) -> bytes:
    """Return an entry's value from what the tiers say, in their order."""
    return RULES_ENTRY.pack(*(0 if rule is None else pack_rule(rule) for rule in columns))


def unpack_columns(data: bytes) -> Columns:
    """Return what the tiers say, in their order."""
    admin, allowing, baseline = map(unpack_rule, RULES_ENTRY.unpack(data))
    return (admin, allowing, baseline)


def unpack_rules(data: bytes) -> dict[Tier, Rule]:
    """Return what each tier says."""
    said = zip(Tier, map(unpack_rule, RULES_ENTRY.unpack(data)), strict=True)
    return {tier: rule for tier, rule in said if rule}


FLOW_KEY = Layout(
    "flow_key",
    source="16s",
    destination="16s",
    source_port="2s",
    destination_port="2s",
    protocol="B",
    unused="3s",
)


class FlowKey(NamedTuple):
    """One direction of a connection. What the ports of ICMP are: packet.h."""

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0

    def pack(self) -> bytes:
        """Return the key's bytes."""
        source, destination = pack_address(self.source), pack_address(self.destination)
        ports = (port.to_bytes(2, "big") for port in (self.source_port, self.destination_port))
        return FLOW_KEY.pack(source, destination, *ports, self.protocol, bytes(3))

    @classmethod
    def unpack(cls, data: bytes) -> "FlowKey":
        """Read a key."""
        source, destination, *ports, protocol, _ = FLOW_KEY.unpack(data)
        source_port, destination_port = (int.from_bytes(port, "big") for port in ports)
        return cls(unpack_address(source), unpack_address(destination), protocol, source_port, destination_port)

    def reversed(self) -> "FlowKey":
        """Return the other direction."""
        return FlowKey(self.destination, self.source, self.protocol, self.destination_port, self.source_port)


FLOW = Layout(
    "flow",
    seen="Q",
    packets="Q",
    bytes="Q",
    way_seen="Q",
    epoch="I",
    **{"from": "I"},
    ifindex="I",
    way_generation="I",
    mtu="H",
    way="B",
    state="B",
    reason="B",
    flags="B",
    counted="B",
    overlay="x",
    hardware="12s",
    owner="I",
    generation="2I",
    identity="2I",
    rule="2I",
    made="Q",
    service="16s",
    service_port="2s",
    unused2="2x",
    sequence="I",
    sampled="I",
    awaited="I",
    asked="I",
    rtt="I",
    rtt_seen="I",
    retransmitted="I",
    audited="2I",
)


class Flow(NamedTuple):
    """An entry of the table of flows. Times are CLOCK_MONOTONIC's, in ns; pairs are egress, then ingress.

    `service` and `service_port` are what was called, where the flag SERVICE says that a Service was. `rtt` is the
    round trip of TCP from here to who sends in this direction, in microseconds (0: not known), `retransmitted` how
    many packets of this direction were sent again.
    """

    seen: int
    packets: int
    octets: int
    way_seen: int
    epoch: int
    from_device: int
    ifindex: int
    way_generation: int
    mtu: int
    way: Way
    state: FlowState
    reason: Reason
    flags: FlowFlag
    counted: Hook
    hardware: bytes
    owner: int
    generations: tuple[int, int]
    identities: tuple[int, int]
    rules: tuple[int, int]
    made: int
    service: Address
    service_port: int
    rtt: int
    retransmitted: int

    @classmethod
    def unpack(cls, data: bytes) -> "Flow":
        """Read a flow."""
        values = FLOW.unpack(data)
        seen, packets, octets, way_seen, epoch, source, ifindex, generation, mtu = values[:9]
        way, state, reason, flags, counted, hardware, owner = values[9:16]
        generations, identities, rules = (values[at : at + 2] for at in (16, 18, 20))
        return cls(
            seen,
            packets,
            octets,
            way_seen,
            epoch,
            source,
            ifindex,
            generation,
            mtu,
            Way(way),
            FlowState(state),
            Reason(reason),
            FlowFlag(flags),
            Hook(counted),
            hardware,
            owner,
            generations,
            identities,
            rules,
            values[22],
            unpack_address(values[23]),
            int.from_bytes(values[24], "big"),
            values[29],
            values[31],
        )


def grown_flow(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a flow that another build wrote, whose entries end earlier: what they lack is 0."""
    return key, value.ljust(FLOW.size, b"\0")[: FLOW.size]


def grown_endpoint(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a pod's entry that another build wrote: likewise."""
    return key, value.ljust(ENDPOINT.size, b"\0")[: ENDPOINT.size]


QUOTA_KEY = Layout("quota_key", ifindex="I", incoming="I")


_TCP, _UDP, _UDPLITE, _SCTP, _ICMP, _ICMPV6 = 6, 17, 136, 132, 1, 58


def lifetime(protocol: int, state: FlowState) -> int:
    """Return for how many seconds a connection is kept when nothing is sent: `lifetime` in flow.h."""
    if protocol == _TCP:
        return {FlowState.OPEN: 432_000, FlowState.RESET: 10}.get(state, 120)
    if protocol in {_UDP, _UDPLITE}:
        return 120 if state is FlowState.ASSURED else 30
    if protocol == _SCTP:
        return 10 if state is FlowState.HALF_OPEN else 210
    return 30 if protocol in {_ICMP, _ICMPV6} else 600


class QuotaKey(NamedTuple):
    """Whose quota: an endpoint's link, and whether it was called."""

    ifindex: int
    incoming: int


QUOTA = Layout("quota", half_open_until="Q", replied_until="Q", open="q")


EVENT = Layout(
    "event",
    time="Q",
    key="40s",
    packets="Q",
    bytes="Q",
    packets_back="Q",
    bytes_back="Q",
    made="Q",
    rule="2I",
    identity="2I",
    ifindex="I",
    out="I",
    lost="I",
    processor="H",
    kind="B",
    reason="B",
    hook="B",
    flags="B",
    state="B",
    way="B",
    detail="I",
    rtt="I",
    rtt_back="I",
    retransmitted="I",
    retransmitted_back="I",
    service="16s",
    service_port="2s",
    unused="6x",
)


class Event(NamedTuple):
    """What the engine told. Pairs are egress, then ingress; times are CLOCK_MONOTONIC's, in ns.

    Counters are those of the key's direction so far, then of the other one; of a dropped packet its own. `out` is
    the device of the flow's way (0: the stack), `lost` how many events its processor had lost by then, `detail`
    why the kernel dropped a packet, by its own number. `rtt` are the round trips of TCP from here to the key's
    destination and to its source, in microseconds (0: not known), `retransmitted` the packets of either direction
    that were sent again. `service` and `service_port` are what was called, where the flag SERVICE says that a
    Service was.
    """

    time: int
    key: FlowKey
    packets: int
    octets: int
    packets_back: int
    octets_back: int
    made: int
    rules: tuple[int, int]
    identities: tuple[int, int]
    ifindex: int
    out: int
    lost: int
    processor: int
    kind: EventKind
    reason: Reason
    hook: Hook
    flags: FlowFlag
    state: FlowState
    way: Way
    detail: int = 0
    rtt: tuple[int, int] = (0, 0)
    retransmitted: tuple[int, int] = (0, 0)
    service: Address | None = None
    service_port: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> "Event":
        """Read an event."""
        time, key, packets, octets, packets_back, octets_back, made, *rest = EVENT.unpack(data)
        r0, r1, i0, i1, ifindex, out, lost, processor, *words = rest
        kind, reason, hook, flags, state, way, detail, rtt, rtt_back, again, again_back, service, port = words
        return cls(
            time,
            FlowKey.unpack(key),
            packets,
            octets,
            packets_back,
            octets_back,
            made,
            (r0, r1),
            (i0, i1),
            ifindex,
            out,
            lost,
            processor,
            EventKind(kind),
            Reason(reason),
            Hook(hook),
            FlowFlag(flags),
            FlowState(state),
            Way(way),
            detail,
            (rtt, rtt_back),
            (again, again_back),
            unpack_address(service) if flags & FlowFlag.SERVICE else None,
            int.from_bytes(port, "big"),
        )


FRONTEND_KEY = Layout("frontend_key", address="16s", port="2s", protocol="B", unused="x")


def pack_frontend_key(key: FrontendKey) -> bytes:
    """Return the bytes of a Service's address, protocol and port."""
    return FRONTEND_KEY.pack(key.address, key.port.to_bytes(2, "big"), key.protocol)


def unpack_frontend_key(data: bytes) -> FrontendKey:
    """Read one."""
    address, port, protocol = FRONTEND_KEY.unpack(data)
    return FrontendKey(address, protocol, int.from_bytes(port, "big"))


FRONTEND = Layout("frontend", backends="I", affinity="I", flags="I")


def unpack_frontend(data: bytes) -> Frontend:
    """Read what is behind a Service's port."""
    backends, affinity, flags = FRONTEND.unpack(data)
    return Frontend(backends, affinity, FrontendFlag(flags))


CHOICE_KEY = Layout("choice_key", backends="I", place="I")

BACKEND = Layout("backend", backends="I", address="16s", port="2s", unused="2x")


def pack_backend(backend: Backend) -> bytes:
    """Return the bytes of a backend."""
    return BACKEND.pack(backend.backends, backend.address, backend.port.to_bytes(2, "big"))


def unpack_backend(data: bytes) -> Backend:
    """Read one."""
    backends, address, port = BACKEND.unpack(data)
    return Backend(backends, address, int.from_bytes(port, "big"))


CALL = Layout("call", backend="I", epoch="I", **{"from": "I"}, address="16s", port="2s", flags="H")

AFFINITY_KEY = Layout("affinity_key", client="16s", backends="I")

AFFINITY = Layout("affinity", seen="Q", backend="I", unused="4x")


LAYOUTS = (
    FRONTEND_KEY,
    FRONTEND,
    CHOICE_KEY,
    BACKEND,
    CALL,
    AFFINITY_KEY,
    AFFINITY,
    PREFIX,
    STATE,
    BEGINNING,
    ENDPOINT,
    ANSWER,
    LEARNED_NAME,
    RULE_SET,
    RULE_KEY,
    RULES_ENTRY,
    FLOW_KEY,
    FLOW,
    QUOTA_KEY,
    QUOTA,
    EVENT,
)
"""All structs, for the comparison with BTF."""
