"""BGP speakers outside the cluster, such as top-of-rack switches, and the secrets that sessions need.

BGPPeer is Podway's own kind; Secret is Kubernetes', of which Podway reads the data. A Secret is stored as it
is, but shown only redacted (podway.api.encode).
"""

import base64
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import ClassVar, Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.identity import REDACTED
from podway.api.meta import LabelSelector, Metadata, Record, StrictRecord

BGP_PORT = 179

MAX_PREFIXES = 10_000
"""How many routes are taken of a peer unless it says otherwise: a fabric's, not the Internet's."""

Advertisement: TypeAlias = Literal["blocks", "aggregates"]
"""What a peer is told: the node's own blocks, or the whole pools that blocks are cut from."""


class Secret(Record, frozen=True, kw_only=True):
    """A Kubernetes Secret: `data` is base64 (RFC 4648, section 4), `string_data` is text and comes first."""

    KIND: ClassVar[str] = "Secret"
    NAMESPACED: ClassVar[bool] = True

    api_version: Literal["v1"] = "v1"
    kind: Literal["Secret"] = "Secret"
    metadata: Metadata
    type: str = "Opaque"
    data: dict[str, str] = msgspec.field(default_factory=dict)
    string_data: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        """The names of its values."""
        return frozenset((*self.data, *self.string_data))

    def value(self, key: str) -> str:
        """Return one value as text. Raises KeyError, and ValueError if it is not UTF-8."""
        if key in self.string_data:
            return self.string_data[key]
        return base64.b64decode(self.data[key], validate=True).decode()

    def redacted(self) -> "Secret":
        """Return the Secret without its values: what may be shown and written down."""
        return msgspec.structs.replace(
            self,
            data=dict.fromkeys(self.data, REDACTED),
            string_data=dict.fromkeys(self.string_data, REDACTED),
        )


class SecretKey(StrictRecord, frozen=True, kw_only=True):
    """One value of a Secret."""

    namespace: str
    name: str
    key: str


class PasswordSource(StrictRecord, frozen=True, kw_only=True):
    """Where the password of a session is kept: in a file on every node that has the session, or in a Secret."""

    file: str = ""
    secret: SecretKey | None = None


class PrefixRule(StrictRecord, frozen=True, kw_only=True, dict=True):
    """What to do with routes to certain prefixes: those inside `cidr` of a length between the two stated.

    Lengths are prefix lengths. Without any only `cidr` itself is meant; with `min_length` alone all that are
    at least as long; with `max_length` alone `cidr` and what is inside it, up to that length (the maxLength of
    RFC 6482).
    """

    cidr: str
    action: Literal["accept", "reject"]
    min_length: int | None = None
    max_length: int | None = None

    @cached_property
    def network(self) -> Network:
        """The range that prefixes must be inside of."""
        return ip_network(self.cidr)

    @property
    def lengths(self) -> tuple[int, int]:
        """The shortest and the longest prefix that is meant."""
        shortest = self.network.prefixlen if self.min_length is None else self.min_length
        if self.max_length is not None:
            return shortest, self.max_length
        return shortest, shortest if self.min_length is None else self.network.max_prefixlen


class BGPPeerSpec(StrictRecord, frozen=True, kw_only=True):
    """A session that nodes have with a speaker outside the cluster: by default, every node has it.

    `multihop` is the TTL of our packets (1 to 255) to a peer that is not on the node's own segment; 0: it is.
    With `ttl_security` (RFC 5082) packets of the peer are taken only if they came over at most so many hops.
    `imports` and `exports` are read in order, and the first rule that matches decides. What no rule matches
    is decided thus: blocks of the cluster's pools are taken, and told; nothing else is. Of all that may be taken
    no more than `max_prefixes` routes are.
    """

    address: str
    asn: int
    port: int = BGP_PORT
    node: str = ""
    node_selector: LabelSelector | None = None
    password: PasswordSource | None = None
    bfd: bool = False
    multihop: int = 0
    ttl_security: bool = False
    source_address: str = ""
    communities: tuple[str, ...] = ()
    advertise: Advertisement = "blocks"
    max_prefixes: int = MAX_PREFIXES
    imports: tuple[PrefixRule, ...] = msgspec.field(default=(), name="import")
    exports: tuple[PrefixRule, ...] = msgspec.field(default=(), name="export")


class BGPPeer(StrictRecord, frozen=True, kw_only=True, dict=True):
    """A BGP speaker outside the cluster."""

    KIND: ClassVar[str] = "BGPPeer"
    NAMESPACED: ClassVar[bool] = False

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["BGPPeer"] = "BGPPeer"
    metadata: Metadata
    spec: BGPPeerSpec

    @cached_property
    def address(self) -> Address:
        """Where the peer is."""
        return ip_address(self.spec.address)

    @property
    def family(self) -> Family:
        """The family of the session and of the routes that it carries."""
        return Family.of(self.address)

    def speaks_with(self, node: str, labels: dict[str, str]) -> bool:
        """Tell whether a node with these labels has the session."""
        if self.spec.node:
            return self.spec.node == node
        return self.spec.node_selector is None or self.spec.node_selector.matches(labels)
