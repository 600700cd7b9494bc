"""What makes BGP settings, outside peers and secrets right by themselves. Pure."""

import base64
import binascii
import itertools
import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from podway.api.addresses import Family
from podway.api.fields import (
    LABEL,
    MAX_DIGITS,
    Problem,
    check_address,
    check_asn,
    check_name,
    check_ranges,
    check_selector,
    check_usable,
    parse_cidr,
)
from podway.api.identity import REDACTED
from podway.api.peers import BGPPeer, PasswordSource, PrefixRule, Secret
from podway.api.resources import BgpSettings

MAX_PASSWORD = 80
"""Bytes (TCP_MD5SIG_MAXKEYLEN, include/uapi/linux/tcp.h)."""

MAX_TTL = 255
MAX_REFLECTORS = 64
MOST_PREFIXES = 10_000_000

_SECRET_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


def check_bgp_settings(bgp: BgpSettings) -> Iterator[Problem]:
    """Yield what is wrong with how nodes are to speak BGP."""
    yield from check_asn("spec.bgp.asn", bgp.asn)
    yield from check_ranges(
        ("spec.bgp.port", bgp.port, 1, 65535),
        ("spec.bgp.meshLimit", bgp.mesh_limit, 1, 1000),
        ("spec.bgp.reflectors.count", bgp.reflectors.count, 1, MAX_REFLECTORS),
        ("spec.bgp.bfdInterval", bgp.bfd_interval, 10, 60_000),
        ("spec.bgp.bfdMultiplier", bgp.bfd_multiplier, 1, 255),
    )
    yield from check_selector("spec.bgp.reflectors.nodeSelector", bgp.reflectors.node_selector)


def check_secret(secret: Secret) -> Iterator[Problem]:
    """Yield what is wrong with a Secret. No value is ever part of a message."""
    for field, values in (("data", secret.data), ("stringData", secret.string_data)):
        for key, value in values.items():
            where = f"{field}[{key}]"
            if not _SECRET_KEY.fullmatch(key):
                yield where, f"{key!r} is not a key", "use at most 253 letters, digits, '-', '_' and '.'"
            elif value == REDACTED:
                yield where, "is redacted, so it cannot be stored", "write the value itself"
            elif field == "data" and not _is_base64(value):
                yield where, "is not base64", "encode the value (base64 -w0), or write it as it is to stringData"


def check_peer(peer: BGPPeer) -> Iterator[Problem]:
    """Yield what is wrong with an outside peer."""
    spec = peer.spec
    yield from check_asn("spec.asn", spec.asn)
    yield from check_ranges(
        ("spec.port", spec.port, 1, 65535),
        ("spec.multihop", spec.multihop, 0, MAX_TTL),
        ("spec.maxPrefixes", spec.max_prefixes, 1, MOST_PREFIXES),
    )
    yield from _nodes(peer)
    yield from _password(spec.password)
    yield from _communities(spec.communities)
    if spec.ttl_security and spec.multihop == MAX_TTL:
        hint = "write the number of hops to the peer: packets from further away are then refused (RFC 5082)"
        yield "spec.multihop", f"with ttlSecurity, {MAX_TTL} hops keep nobody out", hint
    wrong = tuple(check_address("spec.address", spec.address))
    yield from wrong or check_usable(
        "spec.address", peer.address, "write an address that the nodes reach the peer by"
    )
    if wrong:
        return
    yield from _source(peer)
    for field, rules in (("spec.import", spec.imports), ("spec.export", spec.exports)):
        yield from _rules(field, rules, peer.family)


def password_problem(password: str) -> str | None:
    """Return what keeps a text from being the password of a session (RFC 2385), without quoting it; else None."""
    if not password:
        return "is empty"
    if len(password.encode()) > MAX_PASSWORD:
        return f"is longer than {MAX_PASSWORD} bytes, the kernel's limit"
    if '"' in password or not password.isprintable():
        return 'has a " or a character that cannot be printed, which BIRD does not take'
    return None


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _nodes(peer: BGPPeer) -> Iterator[Problem]:
    spec = peer.spec
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
        if not _SECRET_KEY.fullmatch(source.secret.key):
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
        other.network.subnet_of(one.network)  # type: ignore[arg-type]  # of one family: checked before
        and one.lengths[0] <= other.lengths[0]
        and other.lengths[1] <= one.lengths[1]
    )
