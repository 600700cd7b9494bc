"""BGPPeer: a BGP speaker outside the cluster, such as a top-of-rack switch."""

import itertools
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import ClassVar, Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Network, is_within
from podway.api.cel import ADDRESS, ASN, NETWORK, USABLE_ADDRESS
from podway.api.columns import AGE, NAME, Column
from podway.api.fields import (
    BGP_PORT,
    LABEL,
    LABEL_SCHEMA,
    MAX_DIGITS,
    SUBDOMAIN_SCHEMA,
    Problem,
    check_address,
    check_asn,
    check_limits,
    check_name,
    check_selector,
    check_usable,
    parse_cidr,
)
from podway.api.kinds.secret import SECRET_KEY
from podway.api.meta import LabelSelector, Rule, StrictRecord
from podway.api.resource import Names, Resource
from podway.api.status import JudgedStatus, accepted
from podway.cached import cached_property

MAX_PASSWORD = 80
"""Bytes (TCP_MD5SIG_MAXKEYLEN, include/uapi/linux/tcp.h)."""

MAX_TTL = 255
MOST_PREFIXES = 10_000_000

MAX_PREFIXES = 10_000
"""How many routes are taken of a peer unless it says otherwise: a fabric's, not the Internet's."""

Advertisement: TypeAlias = Literal["blocks", "aggregates"]
"""What a peer is told: the node's own blocks, or the whole pools that blocks are cut from."""


class SecretKey(StrictRecord, frozen=True, kw_only=True):
    """One value of a Secret."""

    SCHEMA: ClassVar = {
        "namespace": LABEL_SCHEMA,
        "name": SUBDOMAIN_SCHEMA,
        "key": {"maxLength": 253, "pattern": f"^{SECRET_KEY.pattern.partition('{')[0]}+$"},
    }

    namespace: str
    name: str
    key: str


class PasswordSource(StrictRecord, frozen=True, kw_only=True):
    """Where the password of a session is kept: in a file on every node that has the session, or in a Secret."""

    SCHEMA: ClassVar = {"file": {"pattern": "^(/.*)?$"}}
    RULES: ClassVar = (
        Rule("", "(has(self.file) && self.file != '') != has(self.secret)", "needs either a file or a secret"),
    )

    file: str = ""
    secret: SecretKey | None = None


class PrefixRule(StrictRecord, frozen=True, kw_only=True, dict=True, gc=True):
    """What to do with routes to certain prefixes: those inside `cidr` of a length between the two stated.

    Lengths are prefix lengths. Without any only `cidr` itself is meant; with `min_length` alone all that are
    at least as long; with `max_length` alone `cidr` and what is inside it, up to that length (the maxLength of
    RFC 6482).
    """

    SCHEMA: ClassVar = {
        "cidr": {"maxLength": 43},
        "minLength": {"minimum": 0, "maximum": 128},
        "maxLength": {"minimum": 0, "maximum": 128},
    }
    RULES: ClassVar = (
        Rule("cidr", *NETWORK),
        Rule(
            "",
            "!isCIDR(self.cidr) || ["
            "has(self.minLength) ? self.minLength : cidr(self.cidr).prefixLength(), "
            "has(self.maxLength) ? self.maxLength : cidr(self.cidr).prefixLength()].all(length, "
            "cidr(self.cidr).prefixLength() <= length && length <= (self.cidr.contains(':') ? 128 : 32))",
            "minLength and maxLength are lengths of parts of the network",
        ),
        Rule(
            "",
            "!has(self.minLength) || !has(self.maxLength) || self.minLength <= self.maxLength",
            "minLength is above maxLength",
        ),
    )

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

    SCHEMA: ClassVar = {
        "address": {"maxLength": 45},
        "node": {"maxLength": 253, "pattern": f"^$|{SUBDOMAIN_SCHEMA['pattern']}"},
        "sourceAddress": {"maxLength": 45},
        "communities": {"maxItems": 64},
        "communities[]": {"maxLength": 35, "pattern": "^[0-9]{1,10}(:[0-9]{1,10}){1,2}$"},
        "import": {"maxItems": 256},
        "export": {"maxItems": 256},
    }
    RULES: ClassVar = (
        Rule("address", *ADDRESS),
        Rule("address", *USABLE_ADDRESS),
        Rule("asn", *ASN),
        Rule(
            "",
            "!(has(self.node) && self.node != '' && has(self.nodeSelector))",
            "node and nodeSelector stand beside each other: keep one of them; without both, all nodes peer",
        ),
        Rule(
            "",
            f"!(has(self.ttlSecurity) && self.ttlSecurity && has(self.multihop) && self.multihop == {MAX_TTL})",
            f"with ttlSecurity, {MAX_TTL} hops keep nobody out: write the number of hops to the peer (RFC 5082)",
        ),
        Rule(
            "",
            "!has(self.sourceAddress) || self.sourceAddress == '' || has(self.node) && self.node != '' "
            "&& isIP(self.sourceAddress) && isIP(self.address) "
            "&& ip(self.sourceAddress).family() == ip(self.address).family()",
            "sourceAddress is an address of the one node that node names, of the family of address",
        ),
        *(
            Rule(
                "",
                f"!has(self.{field}) "
                f"|| self.{field}.all(rule, rule.cidr.contains(':') == self.address.contains(':'))",
                f"{field.strip('_')} has a network that is not of the family of address, which is the session's",
            )
            for field in ("__import__", "export")  # import is a word of CEL's own
        ),
    )

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


class BGPPeer(Resource, frozen=True, kw_only=True, dict=True, forbid_unknown_fields=True):
    """A BGP speaker outside the cluster."""

    KIND: ClassVar = "BGPPeer"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("bgppeers")
    COLUMNS: ClassVar = (
        NAME,
        Column("ADDRESS", lambda peer, _: peer.spec.address, path=".spec.address"),
        Column("AS", lambda peer, _: str(peer.spec.asn), path=".spec.asn", type="integer"),
        Column("NODES", lambda peer, _: peer.spec.node or ("selected" if peer.spec.node_selector else "all")),
        Column("ADVERTISE", lambda peer, _: peer.spec.advertise, path=".spec.advertise"),
        Column("BFD", lambda peer, _: "on" if peer.spec.bfd else "off", path=".spec.bfd", type="boolean"),
        AGE,
        Column("PASSWORD", lambda peer, _: "yes" if peer.spec.password else "no", wide=True),
        Column(
            "ACCEPTED",
            lambda peer, _: accepted(peer.status),
            wide=True,
            path=".status.conditions[?(@.type=='Accepted')].status",
        ),
    )
    IN_VIEW: ClassVar = True
    JUDGED: ClassVar = True
    LIMITS: ClassVar = {
        "spec.port": (1, 65535),
        "spec.multihop": (0, MAX_TTL),
        "spec.maxPrefixes": (1, MOST_PREFIXES),
    }
    SCHEMA: ClassVar = {"spec.asn": {"minimum": 0, "maximum": 4294967295}}

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["BGPPeer"] = "BGPPeer"
    spec: BGPPeerSpec
    status: JudgedStatus = JudgedStatus()

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

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the session's settings and the rules for routes."""
        spec = self.spec
        yield from check_asn("spec.asn", spec.asn)
        yield from check_limits(self)
        yield from _nodes(spec)
        yield from _password(spec.password)
        yield from _communities(spec.communities)
        if spec.ttl_security and spec.multihop == MAX_TTL:
            hint = "write the number of hops to the peer: packets from further away are then refused (RFC 5082)"
            yield "spec.multihop", f"with ttlSecurity, {MAX_TTL} hops keep nobody out", hint
        wrong = tuple(check_address("spec.address", spec.address))
        yield from wrong or check_usable(
            "spec.address", self.address, "write an address that the nodes reach the peer by"
        )
        if wrong:
            return
        yield from _source(self)
        for field, rules in (("spec.import", spec.imports), ("spec.export", spec.exports)):
            yield from _rules(field, rules, self.family)


def password_problem(password: str) -> str | None:
    """Return what keeps a text from being the password of a session (RFC 2385), without quoting it; else None."""
    if not password:
        return "is empty"
    if len(password.encode()) > MAX_PASSWORD:
        return f"is longer than {MAX_PASSWORD} bytes, the kernel's limit"
    if '"' in password or not password.isprintable():
        return 'has a " or a character that cannot be printed, which BIRD does not take'
    return None


def _nodes(spec: BGPPeerSpec) -> Iterator[Problem]:
    if spec.node:
        yield from check_name("spec.node", spec.node)
        if spec.node_selector is not None:
            yield "spec.nodeSelector", "stands beside spec.node", "keep one of them; without both, all nodes peer"
    yield from check_selector("spec.nodeSelector", spec.node_selector)


def _source(peer: BGPPeer) -> Iterator[Problem]:
    text = peer.spec.source_address
    if not text:
        return
    wrong = tuple(check_address("spec.sourceAddress", text))
    yield from wrong
    if not wrong and ip_address(text).version != peer.address.version:
        hint = f"write an {peer.family.label} address of the node"
        yield "spec.sourceAddress", f"{text} is not of the family of {peer.address}", hint
    if not peer.spec.node:
        hint = "name the node in spec.node: an address belongs to one node"
        yield "spec.sourceAddress", "is stated for more than one node", hint


def _password(source: PasswordSource | None) -> Iterator[Problem]:
    if source is None:
        return
    if bool(source.file) == (source.secret is not None):
        yield "spec.password", "needs either a file or a secret", "write one of them"
    if source.file and not source.file.startswith("/"):
        yield "spec.password.file", f"{source.file!r} is not an absolute path", "start it with /"
    if source.secret:
        yield from check_name("spec.password.secret.namespace", source.secret.namespace, LABEL)
        yield from check_name("spec.password.secret.name", source.secret.name)
        if not SECRET_KEY.fullmatch(source.secret.key):
            yield "spec.password.secret.key", f"{source.secret.key!r} is not a key", "name a key of the Secret"


def _communities(communities: Sequence[str]) -> Iterator[Problem]:
    for index, text in enumerate(communities):
        parts = text.split(":")
        limit = {2: 0xFFFF, 3: 0xFFFFFFFF}.get(len(parts), -1)
        if not all(
            part.isascii() and part.isdecimal() and len(part) <= MAX_DIGITS and int(part) <= limit
            for part in parts
        ):
            yield (
                f"spec.communities[{index}]",
                f"{text!r} is not a community",
                "write two numbers up to 65535 (65000:100, RFC 1997), or three up to 4294967295 (RFC 8092)",
            )


def _rules(field: str, rules: Sequence[PrefixRule], family: Family) -> Iterator[Problem]:
    sound: list[tuple[str, PrefixRule]] = []
    for index, rule in enumerate(rules):
        where = f"{field}[{index}]"
        wrong = tuple(_rule(where, rule, family))
        yield from wrong
        if not wrong:
            sound.append((where, rule))
    for (first, one), (later, other) in itertools.combinations(sound, 2):
        if _covers(one, other):
            hint = "put the narrower rule first, or remove it"
            yield later, f"cannot match: {first} decides on all that it names", hint


def _rule(where: str, rule: PrefixRule, family: Family) -> Iterator[Problem]:
    try:
        network = parse_cidr(rule.cidr)
    except ValueError as error:
        yield f"{where}.cidr", str(error), "write a network such as 10.244.0.0/16, or 0.0.0.0/0"
        return
    if network.version != family:
        problem = f"cannot match: {network} is not {family.label}, and a session carries the family of its address"
        yield f"{where}.cidr", problem, f"write an {family.label} network"
        return
    shortest, longest = rule.lengths
    limits = f"between {network.prefixlen} and {network.max_prefixlen}"
    for name, length in (("minLength", rule.min_length), ("maxLength", rule.max_length)):
        if length is not None and not network.prefixlen <= length <= network.max_prefixlen:
            yield (
                f"{where}.{name}",
                f"cannot match: no part of {network} has length {length}",
                f"write one {limits}",
            )
            return
    if shortest > longest:
        yield f"{where}.minLength", f"cannot match: {shortest} is above maxLength, {longest}", "exchange them"


def _covers(one: PrefixRule, other: PrefixRule) -> bool:
    return (
        is_within(other.network, one.network)
        and one.lengths[0] <= other.lengths[0]
        and other.lengths[1] <= one.lengths[1]
    )
