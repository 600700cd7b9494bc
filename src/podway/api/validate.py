"""What makes one object right: rules for the fields of each kind. Pure.

Rules that need the rest of the cluster are in podway.api.cluster_rules.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import collapse_addresses, ip_address
from typing import Any

from podway.api.addresses import Family, Network, host_network
from podway.api.crossing_rules import check_modes, check_vxlan
from podway.api.fields import (
    LABEL,
    SUBDOMAIN,
    UNUSABLE,
    Problem,
    check_address,
    check_asn_text,
    check_label_key,
    check_labels,
    check_name,
    check_ranges,
    check_selector,
    check_time,
    check_timestamp,
    check_usable,
    parse_address,
    parse_cidr,
    parse_interface,
)
from podway.api.identity import AUTHORITY, AUTHORITY_LIVES, REDACTED, ClusterAuthority
from podway.api.peers import BGPPeer, Secret
from podway.api.resources import (
    AGENT_SEEN,
    ASN,
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
from podway.api.validate_peers import check_bgp_settings, check_peer, check_secret
from podway.errors import InvalidObject

MAX_BLOCK_PREFIX = {Family.IPV4: 30, Family.IPV6: 126}
"""A block has four addresses at least: its first two, and in IPv4 its last, are never a pod's."""

MIN_MTU = 576
"""What every IPv4 host must accept (RFC 791)."""
MAX_MTU = 65535
MAX_LIFETIME = 10 * 365 * 24 * 3600
"""Seconds that a certificate may be valid."""


def validate(obj: Resource) -> None:
    """Check every field of an object; raises InvalidObject for the first that cannot be right."""
    for problem in problems(obj):
        raise problem


def problems(obj: Resource) -> Iterator[InvalidObject]:
    """Yield everything that cannot be right in an object by itself."""
    rules: Callable[[Any], Iterator[Problem]] = _RULES[type(obj)]
    for field, problem, hint in (*_metadata(obj), *rules(obj)):
        yield InvalidObject(subject(key(obj)), field, problem, hint=hint)


def _metadata(obj: Resource) -> Iterator[Problem]:
    meta = obj.metadata
    yield from check_name("metadata.name", meta.name, LABEL if isinstance(obj, Namespace) else SUBDOMAIN)
    if obj.NAMESPACED:
        yield from check_name("metadata.namespace", meta.namespace, LABEL)
    elif meta.namespace:
        yield "metadata.namespace", f"{obj.KIND} objects are in no namespace", "remove this field"
    if meta.creation_timestamp:
        yield from check_timestamp("metadata.creationTimestamp", meta.creation_timestamp)
    yield from check_labels("metadata.labels", meta.labels)
    for name in meta.annotations:
        yield from check_label_key("metadata.annotations", name)


def _node(node: Node) -> Iterator[Problem]:
    families = []
    for index, entry in enumerate(node.status.addresses):
        if entry.type != "InternalIP":
            continue
        where = f"status.addresses[{index}].address"
        wrong = tuple(check_address(where, entry.address))
        yield from wrong
        if not wrong:
            address = ip_address(entry.address)
            families.append(Family.of(address))
            yield from check_usable(where, address, "write the address that the other nodes reach it by")
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
            parse_interface(text)
        except ValueError:
            yield field, f"{text!r} is not an interface address", "write ADDRESS/LENGTH,ADDRESS/LENGTH"
    notes = node.metadata.annotations
    if notes.get(ASN):
        yield from check_asn_text(f"metadata.annotations[{ASN}]", notes[ASN])
    if AGENT_SEEN in notes:
        yield from check_time(f"metadata.annotations[{AGENT_SEEN}]", notes[AGENT_SEEN])


def _pod(pod: Pod) -> Iterator[Problem]:
    if pod.spec.node_name:
        yield from check_name("spec.nodeName", pod.spec.node_name)
    for index, entry in enumerate(pod.status.pod_ips):
        yield from check_address(f"status.podIPs[{index}].ip", entry.ip)


def _pool(pool: IPPool) -> Iterator[Problem]:
    yield from check_selector("spec.nodeSelector", pool.spec.node_selector)
    yield from check_selector("spec.namespaceSelector", pool.spec.namespace_selector)
    if pool.spec.cooldown_seconds < 0:
        yield "spec.cooldownSeconds", f"{pool.spec.cooldown_seconds} is negative", "write 0 for no cool-down"
    try:
        network = parse_cidr(pool.spec.cidr)
    except ValueError as error:
        yield "spec.cidr", str(error), "write a network such as 10.244.0.0/16 or fd00:10:244::/56"
        return
    wrong = tuple(_unusable(network))
    yield from wrong
    if wrong:
        return
    yield from _block_size(pool, network)
    yield from _excluded(pool, network)
    yield from check_modes(pool, network)


def _unusable(network: Network) -> Iterator[Problem]:
    for other, use in UNUSABLE.items():
        if other.version == network.version and network.overlaps(other):
            problem = f"{network} overlaps {other}, which {use}"
            yield "spec.cidr", problem, "use private ranges (RFC 1918, RFC 4193)"
            return


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
            part = parse_cidr(text) if "/" in text else host_network(parse_address(text))
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
    yield from check_name("spec.pool", block.spec.pool)
    yield from check_name("spec.node", block.spec.node)
    try:
        network = parse_cidr(block.spec.cidr)
    except ValueError as error:
        yield "spec.cidr", str(error), "write the block's network; agents make blocks themselves"
        return
    yield from _unusable(network)
    if block.metadata.name != block_name(network):
        problem = f"{block.metadata.name!r} is not the name of block {network}"
        yield "metadata.name", problem, f"name it {block_name(network)}: the name is what makes a claim unique"


def _config(config: NetworkConfig) -> Iterator[Problem]:
    if config.metadata.name != "default":
        yield "metadata.name", f"{config.metadata.name!r} has no effect", "the one NetworkConfig is named default"
    bgp, channel, mtu = config.spec.bgp, config.spec.channel, config.spec.mtu
    yield from check_bgp_settings(bgp)
    yield from check_vxlan(config.spec.vxlan)
    yield from check_ranges(
        ("spec.channel.port", channel.port, 1, 65535),
        ("spec.channel.certificateLifetimeSeconds", channel.certificate_lifetime_seconds, 1, MAX_LIFETIME),
        ("spec.channel.authorityLifetimeSeconds", channel.authority_lifetime_seconds, 1, MAX_LIFETIME),
    )
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
    Secret: check_secret,
    IPPool: _pool,
    AddressBlock: _block,
    BGPPeer: check_peer,
    NetworkConfig: _config,
    ClusterAuthority: _authority,
}
