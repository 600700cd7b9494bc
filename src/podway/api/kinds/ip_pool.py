"""IPPool: a range of addresses, for pods or for Services, and how packets to them travel."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import ClassVar, Literal, TypeAlias

from podway.api.addresses import Family, Network, collapsed, host_network, is_within
from podway.api.cel import NETWORK, USABLE_NETWORK
from podway.api.columns import LABELS, NAME, Cluster, Column
from podway.api.fields import (
    Problem,
    check_selector,
    check_usable_network,
    parse_address,
    parse_cidr,
)
from podway.api.kinds.address_block import AddressBlock
from podway.api.meta import LabelSelector, Rule, StrictRecord
from podway.api.resource import Names, Resource
from podway.api.status import JudgedStatus, accepted
from podway.cached import cached_property

DEFAULT_BLOCK_PREFIX = {Family.IPV4: 24, Family.IPV6: 122}
DEFAULT_POOL = "10.244.0.0/16"

MAX_BLOCK_PREFIX = {Family.IPV4: 30, Family.IPV6: 126}
"""A block has four addresses at least: its first two, and in IPv4 its last, are never a pod's."""

Distribution: TypeAlias = Literal["bgp", "store"]
"""Who tells nodes the way to a pool's blocks: BGP, or the ownership of the blocks in the store."""

Encapsulation: TypeAlias = Literal["none", "vxlan", "ipip"]
"""The encapsulation of packets between nodes: none, VXLAN (RFC 7348), IPIP (RFC 2003)."""

When: TypeAlias = Literal["always", "cross-subnet"]
"""Between which nodes packets are encapsulated: all, or only those that share no subnet."""

Attach: TypeAlias = Literal["routed", "bridge"]
"""What the host end of a pod's veth pair is: a routed interface of its own, or a port of `cni0`."""


Ranges: TypeAlias = Literal["blocks", "podCIDRs"]
"""Where nodes' ranges come from: blocks that nodes claim, or what Kubernetes gave each Node (`spec.podCIDRs`)."""


Use: TypeAlias = Literal["pods", "services"]
"""Whose addresses are in a pool: pods', or those by which Services of type LoadBalancer are reached."""

Advertise: TypeAlias = Literal["addresses", "pool", "layer2"]
"""How the world learns where a Service's address is: by BGP, each address or the whole pool; or by ARP and
neighbour discovery (RFC 4861), answered by one node of a segment."""


class IPPoolSpec(StrictRecord, frozen=True, kw_only=True):
    """Addresses for pods, cut into blocks that nodes own; or for Services of type LoadBalancer.

    `block_size` is a prefix length; with `ranges` podCIDRs it is that of the nodes' podCIDRs.
    `excluded` are addresses or networks never given to a pod.
    `cooldown_seconds` is how long a freed address waits before another pod may get it.
    A pool serves a pod if both selectors, where stated, match the pod's node and namespace.
    With `nat_outgoing` what pods send out of the cluster has their node's address as its source.

    With `use: services` the controller gives the addresses to Services in namespaces that `namespace_selector`
    matches, and nodes that `node_selector` matches tell the world of them as `advertise` says: by BGP each address
    (`addresses`) or the range while any address of it is served (`pool`), or by ARP and neighbour discovery
    (`layer2`). The other fields are for pods.
    """

    cidr: str
    use: Use = "pods"
    advertise: Advertise = "addresses"
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
    nat_outgoing: bool = True
    ranges: Ranges = "blocks"


OF_PODS = (
    "block_size",
    "cooldown_seconds",
    "distribution",
    "encapsulation",
    "when",
    "attach",
    "nat_outgoing",
    "ranges",
)
"""Fields that mean nothing for Services, and are left out of their pools."""


def _wire_name(field: str) -> str:
    head, *rest = field.split("_")
    return head + "".join(map(str.capitalize, rest))


def _given_in_cel(field: str) -> str:
    """Return in CEL whether a manifest gives a field a value other than its default."""
    name, default = _wire_name(field), getattr(_PLAIN, field)
    if default is None:
        return f"has(self.{name})"
    text = str(default).lower() if isinstance(default, bool) else repr(default)
    return f"has(self.{name}) && self.{name} != {text}"


_PLAIN = IPPoolSpec(cidr="")
_SERVES = "has(self.use) && self.use == 'services'"
_NOT_FOR_SERVICES = "is for pods, and use is services"
_NOT_FOR_PODS = "is for Services, and use is pods"


def _usage(pool: "IPPool", cluster: Cluster) -> str:
    if pool.for_services:
        return "-"
    blocks = [block for block in cluster.of(AddressBlock) if block.spec.pool == pool.metadata.name]
    nodes = {block.spec.node for block in blocks}
    bits = pool.block_prefix - pool.network.prefixlen
    return f"{len(nodes)}/{len(blocks)} of {f'2^{bits}' if bits > 20 else 2**bits}"


def _encapsulation(pool: "IPPool", _: Cluster) -> str:
    spec = pool.spec
    always = spec.when == "always" or spec.encapsulation == "none"
    return _for_pods(pool, spec.encapsulation if always else f"{spec.encapsulation} {spec.when}")


def _for_pods(pool: "IPPool", text: str) -> str:
    return "-" if pool.for_services else text


def _block(pool: "IPPool") -> str:
    return _for_pods(pool, f"/{pool.block_prefix}")


def _use(pool: "IPPool") -> str:
    return f"services, {pool.spec.advertise}" if pool.for_services else "pods"


class IPPool(Resource, frozen=True, kw_only=True, dict=True, forbid_unknown_fields=True):
    """A range of addresses, of pods or of Services."""

    KIND: ClassVar = "IPPool"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("ippools", usual=("pools", "pool"))
    COLUMNS: ClassVar = (
        NAME,
        Column("CIDR", lambda pool, _: pool.spec.cidr, path=".spec.cidr"),
        Column("BLOCK", lambda pool, _: _block(pool), path=".spec.blockSize", type="integer"),
        Column("NODES/BLOCKS", _usage),
        Column("DISTRIBUTION", lambda pool, _: _for_pods(pool, pool.spec.distribution), path=".spec.distribution"),
        Column("ENCAPSULATION", _encapsulation, path=".spec.encapsulation"),
        Column("ATTACH", lambda pool, _: _for_pods(pool, pool.spec.attach), path=".spec.attach"),
        Column("USE", lambda pool, _: _use(pool), wide=True, path=".spec.use"),
        Column("RANGES", lambda pool, _: _for_pods(pool, pool.spec.ranges), wide=True, path=".spec.ranges"),
        Column("STATE", lambda pool, _: "disabled" if pool.spec.disabled else "in use", wide=True),
        Column(
            "NAT", lambda pool, _: _for_pods(pool, "outgoing" if pool.spec.nat_outgoing else "none"), wide=True
        ),
        Column("EXCLUDED", lambda pool, _: ",".join(pool.spec.excluded), wide=True),
        Column(
            "ACCEPTED",
            lambda pool, _: accepted(pool.status),
            wide=True,
            path=".status.conditions[?(@.type=='Accepted')].status",
        ),
        LABELS,
    )
    IN_VIEW: ClassVar = True
    JUDGED: ClassVar = True
    SCHEMA: ClassVar = {
        "spec.cidr": {"maxLength": 43},
        "spec.blockSize": {"minimum": 1, "maximum": 126},
        "spec.cooldownSeconds": {"minimum": 0},
        "spec.excluded": {"maxItems": 512},
        "spec.excluded[]": {"maxLength": 43},
    }
    RULES: ClassVar = (
        Rule("spec.cidr", *NETWORK),
        Rule("spec.cidr", *USABLE_NETWORK),
        Rule(
            "spec",
            f"{_SERVES} || !isCIDR(self.cidr) || has(self.blockSize) "
            f"|| cidr(self.cidr).prefixLength() <= (self.cidr.contains(':') ? {DEFAULT_BLOCK_PREFIX[Family.IPV6]} "
            f": {DEFAULT_BLOCK_PREFIX[Family.IPV4]})",
            "the pool is smaller than a block of the default size: state blockSize",
        ),
        Rule(
            "spec",
            f"{_SERVES} || !isCIDR(self.cidr) || !has(self.blockSize) "
            "|| cidr(self.cidr).prefixLength() <= self.blockSize && "
            f"self.blockSize <= (self.cidr.contains(':') ? {MAX_BLOCK_PREFIX[Family.IPV6]} "
            f": {MAX_BLOCK_PREFIX[Family.IPV4]})",
            "blockSize is a prefix length between the pool's and "
            f"{MAX_BLOCK_PREFIX[Family.IPV4]} in IPv4, {MAX_BLOCK_PREFIX[Family.IPV6]} in IPv6",
        ),
        Rule(
            "spec",
            "!isCIDR(self.cidr) || !has(self.excluded) || self.excluded.all(one, isCIDR(one) "
            "? cidr(self.cidr).containsCIDR(one) : isIP(one) && cidr(self.cidr).containsIP(one))",
            "excluded are addresses, or networks, inside the pool",
        ),
        Rule(
            "spec",
            "!(has(self.encapsulation) && self.encapsulation == 'ipip' && self.cidr.contains(':'))",
            "ipip carries IPv4 only (RFC 2003): use vxlan for an IPv6 pool",
        ),
        Rule(
            "spec",
            "!(has(self.when) && self.when != 'always') "
            "|| has(self.encapsulation) && self.encapsulation != 'none'",
            "when says when to encapsulate, but encapsulation is none",
        ),
        Rule(
            "spec",
            f"!({_SERVES}) || !({' || '.join(map(_given_in_cel, OF_PODS))})",
            f"use is services, and these are for pods: {', '.join(map(_wire_name, OF_PODS))}",
        ),
        Rule("spec", f"{_SERVES} || !({_given_in_cel('advertise')})", f"advertise {_NOT_FOR_PODS}"),
    )

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["IPPool"] = "IPPool"
    spec: IPPoolSpec
    status: JudgedStatus = JudgedStatus()

    @cached_property
    def network(self) -> Network:
        """The pool's range."""
        return ip_network(self.spec.cidr)

    @cached_property
    def family(self) -> Family:
        """The pool's address family."""
        return Family.of(self.network)

    @property
    def for_services(self) -> bool:
        """Whether its addresses are Services', and none a pod's."""
        return self.spec.use == "services"

    @property
    def block_prefix(self) -> int:
        """Prefix length of the pool's blocks; one for Services has none."""
        return self.spec.block_size or DEFAULT_BLOCK_PREFIX[self.family]

    @property
    def excluded_networks(self) -> tuple[Network, ...]:
        """What is never given to a pod or Service, single addresses as /32 or /128."""
        return tuple(ip_network(text) for text in self.spec.excluded)

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the range, its blocks, what is excluded of it, and its modes."""
        yield from check_selector("spec.nodeSelector", self.spec.node_selector)
        yield from check_selector("spec.namespaceSelector", self.spec.namespace_selector)
        if self.spec.cooldown_seconds < 0:
            yield "spec.cooldownSeconds", f"{self.spec.cooldown_seconds} is negative", "write 0 for no cool-down"
        try:
            network = parse_cidr(self.spec.cidr)
        except ValueError as error:
            yield "spec.cidr", str(error), "write a network such as 10.244.0.0/16 or fd00:10:244::/56"
            return
        wrong = tuple(check_usable_network("spec.cidr", network))
        yield from wrong
        if wrong:
            return
        yield from _excluded(self.spec, network)
        if self.for_services:
            yield from _of_pods(self.spec)
            return
        if self.spec.advertise != "addresses":
            yield "spec.advertise", _NOT_FOR_PODS, "leave it out, or set use: services"
        yield from _block_size(self.spec, network)
        yield from _modes(self.spec, network)


def _block_size(spec: IPPoolSpec, network: Network) -> Iterator[Problem]:
    family = Family.of(network)
    stated = spec.block_size
    size = DEFAULT_BLOCK_PREFIX[family] if stated is None else stated
    longest = MAX_BLOCK_PREFIX[family]
    if network.prefixlen > longest:
        yield "spec.cidr", f"{network} is too small for a block", f"use /{longest} or a shorter prefix"
    elif not network.prefixlen <= size <= longest:
        default = " (the default)" if stated is None else ""
        yield (
            "spec.blockSize",
            f"/{size}{default} is not a block of {network}",
            f"a block's prefix length is between the pool's, {network.prefixlen}, and {longest} in {family.label}",
        )


def _of_pods(spec: IPPoolSpec) -> Iterator[Problem]:
    for field in OF_PODS:
        if getattr(spec, field) != getattr(_PLAIN, field):
            yield f"spec.{_wire_name(field)}", _NOT_FOR_SERVICES, "leave it out"


def _excluded(spec: IPPoolSpec, network: Network) -> Iterator[Problem]:
    inside: list[Network] = []
    for index, text in enumerate(spec.excluded):
        field = f"spec.excluded[{index}]"
        try:
            part = parse_cidr(text) if "/" in text else host_network(parse_address(text))
        except ValueError as error:
            yield field, str(error), "write an address, or a network such as 10.244.7.0/28"
            continue
        if is_within(part, network):
            inside.append(part)
        else:
            yield field, f"{part} is not inside {network}", "remove it, or correct it"
    if sum(part.num_addresses for part in collapsed(inside)) >= network.num_addresses:
        yield "spec.excluded", "leaves no address of the pool", "exclude less, or set spec.disabled"


def _modes(spec: IPPoolSpec, network: Network) -> Iterator[Problem]:
    if spec.encapsulation == "ipip" and Family.of(network) is Family.IPV6:
        yield "spec.encapsulation", "ipip carries IPv4 only (RFC 2003)", "use vxlan for an IPv6 pool"
    if spec.encapsulation == "none" and spec.when != "always":
        hint = "state encapsulation: vxlan or ipip beside it, or set when: always"
        yield "spec.when", f"{spec.when} says when to encapsulate, but encapsulation is none", hint
