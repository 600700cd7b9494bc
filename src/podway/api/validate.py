"""What makes one object right: rules for the fields of each kind. Pure.

Rules that need the rest of the cluster are in podway.api.cluster_rules.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import collapse_addresses, ip_address, ip_interface, ip_network
from typing import Any

from podway.api.addresses import Family, Network
from podway.api.identity import AUTHORITY, AUTHORITY_LIVES, REDACTED, ClusterAuthority
from podway.api.meta import LabelSelector
from podway.api.resources import (
    DEFAULT_BLOCK_PREFIX,
    INTERFACE_ADDRESSES,
    AddressBlock,
    IPPool,
    Namespace,
    NetworkConfig,
    Node,
    Pod,
    Resource,
    block_name,
    key,
    subject,
)
from podway.errors import InvalidObject

MAX_BLOCK_PREFIX = {Family.IPV4: 30, Family.IPV6: 126}
"""A block has four addresses at least: its first two, and in IPv4 its last, are never a pod's."""

UNUSABLE: Mapping[Network, str] = {
    ip_network(text): use
    for text, use in {
        "0.0.0.0/8": "is 'this network' (RFC 1122)",
        "127.0.0.0/8": "is loopback (RFC 1122)",
        "169.254.0.0/16": "is link-local (RFC 3927), and a pod's gateway is in it",
        "224.0.0.0/4": "is multicast (RFC 5771)",
        "255.255.255.255/32": "is the limited broadcast address (RFC 919)",
        "::/127": "is the unspecified and the loopback address (RFC 4291)",
        "::ffff:0:0/96": "is IPv4-mapped (RFC 4291)",
        "fe80::/10": "is link-local (RFC 4291), and a pod's gateway is in it",
        "ff00::/8": "is multicast (RFC 4291)",
    }.items()
}

RESERVED_ASNS = {
    0: "RFC 7607",
    23456: "AS_TRANS, RFC 6793",
    65535: "RFC 7300",
    4294967295: "RFC 7300",
}
MIN_MTU = 576
"""What every IPv4 host must accept (RFC 791)."""
MAX_MTU = 65535
MAX_LIFETIME = 10 * 365 * 24 * 3600
"""Seconds that a certificate may be valid."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

Problem = tuple[str, str, str]
"""Field, what is wrong with it, and what to do."""


def validate(obj: Resource) -> None:
    """Check every field of an object; raises InvalidObject for the first that cannot be right."""
    for problem in problems(obj):
        raise problem


def problems(obj: Resource) -> Iterator[InvalidObject]:
    """Yield everything that cannot be right in an object by itself."""
    rules: Callable[[Any], Iterator[Problem]] = _RULES[type(obj)]
    for field, problem, hint in (*_metadata(obj), *rules(obj)):
        yield InvalidObject(subject(key(obj)), field, problem, hint=hint)


def parse_cidr(text: str) -> Network:
    """Parse a network; raises ValueError with a message that says what to write instead."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length: write ADDRESS/LENGTH")
    try:
        return ip_network(text)
    except ValueError as error:
        try:
            whole = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv4 or IPv6 network: {error}") from error
        raise ValueError(f"{text!r} has bits set after its prefix: did you mean {whole}?") from error


def _metadata(obj: Resource) -> Iterator[Problem]:
    meta = obj.metadata
    yield from _name("metadata.name", meta.name, _LABEL if isinstance(obj, Namespace) else _SUBDOMAIN)
    if obj.NAMESPACED:
        yield from _name("metadata.namespace", meta.namespace, _LABEL)
    elif meta.namespace:
        yield "metadata.namespace", f"{obj.KIND} objects are in no namespace", "remove this field"
    yield from _labels("metadata.labels", meta.labels)
    for name in meta.annotations:
        yield from _label_key("metadata.annotations", name)


def _name(field: str, name: str, form: re.Pattern[str] = _SUBDOMAIN) -> Iterator[Problem]:
    if form.fullmatch(name):
        return
    label = form is _LABEL
    what = "an RFC 1123 label" if label else "an RFC 1123 subdomain"
    yield (
        field,
        f"{name!r} is not {what}" if name else "is empty",
        f"use at most {63 if label else 253} lower-case letters, digits and '-'{'' if label else ', and dots'}; "
        "start and end with a letter or digit",
    )


def _labels(field: str, labels: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in labels.items():
        yield from _label_key(field, name)
        yield from _label_value(f"{field}[{name}]", value)


def _label_key(field: str, name: str) -> Iterator[Problem]:
    prefix, slash, rest = name.rpartition("/")
    if not _QUALIFIED.fullmatch(rest) or (slash and not _SUBDOMAIN.fullmatch(prefix)):
        hint = "write NAME or DNS-DOMAIN/NAME; NAME has at most 63 letters, digits, '-', '_' and '.'"
        yield f"{field}[{name}]", f"{name!r} is not a label key", hint


def _label_value(field: str, value: str) -> Iterator[Problem]:
    if value and not _QUALIFIED.fullmatch(value):
        hint = "use at most 63 letters, digits, '-', '_' and '.'; start and end with a letter or digit"
        yield field, f"{value!r} is not a label value", hint


def _selector(field: str, selector: LabelSelector | None) -> Iterator[Problem]:
    if selector is None:
        return
    yield from _labels(f"{field}.matchLabels", selector.match_labels)
    for index, requirement in enumerate(selector.match_expressions):
        where = f"{field}.matchExpressions[{index}]"
        yield from _label_key(f"{where}.key", requirement.key)
        wants_values = requirement.operator in ("In", "NotIn")
        if wants_values != bool(requirement.values):
            hint = "give one at least" if wants_values else "remove them"
            problem = f"operator {requirement.operator} {'needs' if wants_values else 'takes no'} values"
            yield f"{where}.values", problem, hint
        for value in requirement.values:
            yield from _label_value(f"{where}.values", value)


def _address(field: str, text: str) -> Iterator[Problem]:
    try:
        ip_address(text)
    except ValueError:
        yield field, f"{text!r} is not an IPv4 or IPv6 address", "write one address, without a prefix length"


def _node(node: Node) -> Iterator[Problem]:
    families = []
    for index, entry in enumerate(node.status.addresses):
        if entry.type != "InternalIP":
            continue
        wrong = tuple(_address(f"status.addresses[{index}].address", entry.address))
        yield from wrong
        if not wrong:
            families.append(Family.of(ip_address(entry.address)))
    for family in Family:
        if families.count(family) > 1:
            yield (
                "status.addresses",
                f"has more than one InternalIP of {family.label}",
                "keep the one that the other nodes reach it by",
            )
    field = f"metadata.annotations[{INTERFACE_ADDRESSES}]"
    for text in filter(None, node.metadata.annotations.get(INTERFACE_ADDRESSES, "").split(",")):
        try:
            ip_interface(text)
        except ValueError:
            yield field, f"{text!r} is not an interface address", "write ADDRESS/LENGTH,ADDRESS/LENGTH"


def _pod(pod: Pod) -> Iterator[Problem]:
    if pod.spec.node_name:
        yield from _name("spec.nodeName", pod.spec.node_name)
    for index, entry in enumerate(pod.status.pod_ips):
        yield from _address(f"status.podIPs[{index}].ip", entry.ip)


def _pool(pool: IPPool) -> Iterator[Problem]:
    yield from _selector("spec.nodeSelector", pool.spec.node_selector)
    yield from _selector("spec.namespaceSelector", pool.spec.namespace_selector)
    if pool.spec.cooldown_seconds < 0:
        yield "spec.cooldownSeconds", f"{pool.spec.cooldown_seconds} is negative", "write 0 for no cool-down"
    try:
        network = parse_cidr(pool.spec.cidr)
    except ValueError as error:
        yield "spec.cidr", str(error), "write a network such as 10.244.0.0/16 or fd00:10:244::/56"
        return
    for other, use in UNUSABLE.items():
        if other.version == network.version and network.overlaps(other):
            yield (
                "spec.cidr",
                f"{network} overlaps {other}, which {use}",
                "use private ranges (RFC 1918, RFC 4193)",
            )
            return
    yield from _block_size(pool, network)
    yield from _excluded(pool, network)


def _block_size(pool: IPPool, network: Network) -> Iterator[Problem]:
    family = Family.of(network)
    stated = pool.spec.block_size
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


def _excluded(pool: IPPool, network: Network) -> Iterator[Problem]:
    inside: list[Any] = []
    for index, text in enumerate(pool.spec.excluded):
        field = f"spec.excluded[{index}]"
        try:
            part = parse_cidr(text) if "/" in text else ip_network(text)
        except ValueError as error:
            yield field, str(error), "write an address, or a network such as 10.244.7.0/28"
            continue
        if part.version == network.version and part.subnet_of(network):  # type: ignore[arg-type]
            inside.append(part)
        else:
            yield field, f"{part} is not inside {network}", "remove it, or correct it"
    if sum(part.num_addresses for part in collapse_addresses(inside)) >= network.num_addresses:
        yield "spec.excluded", "leaves no address of the pool", "exclude less, or set spec.disabled"


def _block(block: AddressBlock) -> Iterator[Problem]:
    yield from _name("spec.pool", block.spec.pool)
    yield from _name("spec.node", block.spec.node)
    try:
        network = parse_cidr(block.spec.cidr)
    except ValueError as error:
        yield "spec.cidr", str(error), "write the block's network; agents make blocks themselves"
        return
    if block.metadata.name != block_name(network):
        problem = f"{block.metadata.name!r} is not the name of block {network}"
        yield "metadata.name", problem, f"name it {block_name(network)}: the name is what makes a claim unique"


def _config(config: NetworkConfig) -> Iterator[Problem]:
    if config.metadata.name != "default":
        yield "metadata.name", f"{config.metadata.name!r} has no effect", "the one NetworkConfig is named default"
    bgp, channel, mtu = config.spec.bgp, config.spec.channel, config.spec.mtu
    if bgp.asn in RESERVED_ASNS:
        hint = "use a private one: 64512 to 65534, or 4200000000 to 4294967294 (RFC 6996)"
        yield "spec.bgp.asn", f"{bgp.asn} is reserved ({RESERVED_ASNS[bgp.asn]})", hint
    ranges = (
        ("spec.bgp.asn", bgp.asn, 0, 4294967295),
        ("spec.bgp.port", bgp.port, 1, 65535),
        ("spec.bgp.bfdInterval", bgp.bfd_interval, 10, 60_000),
        ("spec.bgp.bfdMultiplier", bgp.bfd_multiplier, 1, 255),
        ("spec.channel.port", channel.port, 1, 65535),
        ("spec.channel.certificateLifetimeSeconds", channel.certificate_lifetime_seconds, 1, MAX_LIFETIME),
        ("spec.channel.authorityLifetimeSeconds", channel.authority_lifetime_seconds, 1, MAX_LIFETIME),
    )
    for field, value, low, high in ranges:
        if not low <= value <= high:
            yield field, f"{value} is out of range", f"write a number between {low} and {high}"
    least = AUTHORITY_LIVES * channel.certificate_lifetime_seconds
    if channel.authority_lifetime_seconds < least:
        hint = (
            f"write {least} or more, {AUTHORITY_LIVES} times certificateLifetimeSeconds: old and new must overlap"
        )
        yield "spec.channel.authorityLifetimeSeconds", f"{channel.authority_lifetime_seconds} is too short", hint
    if mtu != 0 and not MIN_MTU <= mtu <= MAX_MTU:
        hint = f"write 0 (what the path allows), or {MIN_MTU} to {MAX_MTU}"
        yield "spec.mtu", f"{mtu} is out of range", hint


def _authority(authority: ClusterAuthority) -> Iterator[Problem]:
    if authority.metadata.name != AUTHORITY:
        yield "metadata.name", f"{authority.metadata.name!r} has no effect", f"the one is named {AUTHORITY}"
    if not authority.spec.authorities:
        yield "spec.authorities", "is empty", "delete the object: agents make a new one"
    for index, one in enumerate(authority.spec.authorities):
        if one.private_key == REDACTED:
            hint = "leave this object to the agents; delete it to have them make a new one"
            yield f"spec.authorities[{index}].privateKey", "is redacted, so it cannot be stored", hint


def _nothing(_: Namespace) -> Iterable[Problem]:
    return ()


_RULES: Mapping[type[Resource], Callable[[Any], Any]] = {
    Node: _node,
    Namespace: _nothing,
    Pod: _pod,
    IPPool: _pool,
    AddressBlock: _block,
    NetworkConfig: _config,
    ClusterAuthority: _authority,
}
