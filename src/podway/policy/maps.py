"""What a node's data path judges connections by: keyed entries, and changes of them. Pure.

Three maps. `identities` gives a number to addresses, by the longest prefix: one number for each set of them
that no rule of this node tells apart. `rules` says for a rule set, an identity, a protocol and a port what each
tier has to say. `endpoints` names the two rule sets of a pod. `podway.policy.lookup` says how they are read.
"""

import enum
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Network

ANYBODY = 0
"""The identity of what no rule tells apart from the rest of the world; its rules are for everybody."""

NO_RULES = 0
"""The rule set of a pod that no policy selects in this direction: it allows everything."""

ANY_PROTOCOL = 0

ENGINES_OWN = 16
"""Numbers of identities and rules below this are the data path's own."""

OWN_NODE = 1
"""The rule by which a pod's own node reaches it."""

LOOPBACK = 4
"""The rule by which a pod reaches itself."""

MOST_RULE_SETS = 65535
"""Rule sets have numbers below this."""

CLOSED = 65535
"""A rule set that is never written: whoever has it neither reaches nor is reached."""

PodName: TypeAlias = tuple[str, str]
"""Namespace and name."""


class Direction(enum.StrEnum):
    """As seen from the pod that is judged."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Tier(enum.IntEnum):
    """Whose word a rule is, in the order in which they are heard: enum tier in bpf/flow/policy.h."""

    ADMIN = 0
    NETWORK_POLICY = 1
    BASELINE = 2


class Verdict(enum.IntEnum):
    """What a rule says: enum verdict in bpf/flow/policy.h. Of the same precedence the greater is heard."""

    NOTHING_SAID = 0
    ALLOW = 1
    PASS = 2
    DENY = 3


class Prefix(NamedTuple):
    """A network, or an address as the network that holds it alone."""

    version: int
    number: int
    length: int

    @classmethod
    def of(cls, network: Network) -> "Prefix":
        """Return a network as a prefix."""
        return cls(network.version, int(network.network_address), network.prefixlen)

    @classmethod
    def host(cls, text: str) -> "Prefix":
        """Return an address as a prefix. Raises OSError if the text is none."""
        if ":" in text:
            return cls(6, int.from_bytes(socket.inet_pton(socket.AF_INET6, text)), 128)
        return cls(4, int.from_bytes(socket.inet_pton(socket.AF_INET, text)), 32)

    @classmethod
    def host_of(cls, address: Address) -> "Prefix":
        """Return an address as a prefix."""
        return cls(address.version, int(address), address.max_prefixlen)

    def shortened(self, length: int) -> "Prefix":
        """Return the prefix of this length that this one lies in."""
        drop = Family(self.version).bits - length
        return Prefix(self.version, self.number >> drop << drop, length)

    @property
    def last(self) -> int:
        """The number of its last address."""
        return self.number | (1 << (Family(self.version).bits - self.length)) - 1

    def __str__(self) -> str:
        return str(Family(self.version).network(self.number, self.length))


class RuleKey(NamedTuple):
    """What an entry of a rule set is about.

    `port` are the leading `port_length` bits of the destination port that count; of ICMP the port is
    type << 8 | code. Without a protocol there is no port.
    """

    rule_set: int
    identity: int = ANYBODY
    protocol: int = ANY_PROTOCOL
    port: int = 0
    port_length: int = 0


class Rule(NamedTuple):
    """What a tier says at a key: of all keys that match a connection the greatest precedence is heard."""

    verdict: Verdict
    precedence: int
    number: int


Columns: TypeAlias = tuple[Rule | None, Rule | None, Rule | None]
"""What each tier says, None where it says nothing."""


class EndpointRules(NamedTuple):
    """The rule sets of a pod: those that it is judged by, and those by which is told what would be denied if the
    policies that are audited were enforced (NO_RULES where there are none)."""

    ingress: int = NO_RULES
    egress: int = NO_RULES
    ingress_audit: int = NO_RULES
    egress_audit: int = NO_RULES

    def of(self, direction: Direction, *, audit: bool = False) -> int:
        """Return the rule set of a direction."""
        return (self[2:] if audit else self[:2])[direction is Direction.EGRESS]


class Former(NamedTuple):
    """What another planner has left in the data path: who starts beside it gives the same things the same numbers.

    `identities` and `endpoints` say what the numbers mean, `last_identity` and `rule_sets` which are in use.
    """

    identities: Mapping[Prefix, int] = MappingProxyType({})
    endpoints: Mapping[PodName, EndpointRules] = MappingProxyType({})
    last_identity: int = 0
    rule_sets: frozenset[int] = frozenset()


NOTHING_LEFT = Former()


class Delta(msgspec.Struct, frozen=True):
    """Changes, in the order in which they are to be written: what is new before what refers to it.

    A mapping gives what is put, a tuple what is deleted. `rule_sets` names every set of which an entry changes,
    and the lengths of port prefixes in use in it (bit n: some entry has a prefix of n bits).
    """

    rules: Mapping[RuleKey, Columns]
    rule_sets: Mapping[int, int]
    identities: Mapping[Prefix, int]
    endpoints: Mapping[PodName, EndpointRules]
    deleted_endpoints: tuple[PodName, ...]
    deleted_identities: tuple[Prefix, ...]
    deleted_rules: tuple[RuleKey, ...]
    deleted_rule_sets: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not any(getattr(self, field) for field in self.__struct_fields__)


class RuleName(NamedTuple):
    """Whose rule it is: a policy, its direction, and the rule's place in it (its name too, where it has one).

    Without a place it is what isolates: `policies` are all that do, and `policy` is the first of them.
    """

    policy: tuple[str, str, str]
    direction: Direction
    place: int | None = None
    name: str = ""
    policies: tuple[tuple[str, str, str], ...] = ()
