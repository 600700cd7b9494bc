"""Rules for the fields that many kinds have: names, labels, selectors, addresses, networks. Pure."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_interface, ip_network
from types import MappingProxyType
from typing import Any

from podway.api.addresses import Address, Interface, Network, parse_plain_address
from podway.api.meta import LabelSelector, Record

PROTOCOLS = ("TCP", "UDP", "SCTP")
"""The protocols whose ports Services and policies may name."""

# Names as Kubernetes has them: RFC 1123 labels and subdomains, and what follows a label key's prefix.
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# The same for schemas, whose regular expressions (RE2) look neither ahead nor behind.
SUBDOMAIN_SCHEMA: Mapping[str, Any] = MappingProxyType(
    {"maxLength": 253, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"}
)
LABEL_SCHEMA: Mapping[str, Any] = MappingProxyType(
    {"maxLength": 63, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
)
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")

_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
)

Problem = tuple[str, str, str]
"""Field, what is wrong with it, and what to do. Rules are functions that yield problems."""

_PARSED = 1 << 13
"""Addresses that are kept once they were read: a node's come again with each change of its object."""

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

MAX_DIGITS = 12
"""Of a number that is written as text: more than any has that is meant, and few enough to be read."""

BGP_PORT = 179

RESERVED_ASNS = {
    0: "RFC 7607",
    23456: "AS_TRANS, RFC 6793",
    65535: "RFC 7300",
    4294967295: "RFC 7300",
}


def parse_cidr(text: str) -> Network:
    """Parse a network; raises ValueError with a message that says what to write instead."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length: write ADDRESS/LENGTH")
    if "%" in text:
        raise ValueError(f"{text!r} has a zone: write ADDRESS/LENGTH")
    try:
        return ip_network(text)
    except ValueError as error:
        try:
            whole = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv4 or IPv6 network: {error}") from error
        raise ValueError(f"{text!r} has bits set after its prefix: did you mean {whole}?") from error


def parse_block(text: str) -> Network:
    """Parse a network as Kubernetes does in policies: bits after the prefix are passed over. Raises ValueError."""
    if "/" not in text or "%" in text:
        return parse_cidr(text)
    return ip_network(text, strict=False)


@lru_cache(_PARSED)
def parse_address(text: str) -> Address:
    """Parse an address; raises ValueError, also for one with a zone (RFC 4007): that is of one host."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return parse_plain_address(text)


def is_number(text: str) -> bool:
    """Tell whether a text is decimal digits and nothing else, so few that int() reads them.

    Python refuses numbers of thousands of digits (sys.set_int_max_str_digits), which anyone may send.
    """
    return text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS


def parse_legacy_address(text: str) -> Address:
    """Parse an address as Services and endpoints may have it, from the time before its form was checked.

    `010.0.0.1` has decimal numbers, and an IPv4-mapped address is the IPv4 address (Kubernetes: KEP-4858,
    ParseIPSloppy). Raises ValueError.
    """
    if ":" not in text:
        parts = text.split(".")
        if len(parts) == 4 and all(map(is_number, parts)):
            text = ".".join(str(int(part)) for part in parts)
    address = parse_address(text)
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


@lru_cache(_PARSED)
def parse_interface(text: str) -> Interface:
    """Parse an address with the prefix length of its subnet; raises ValueError, as `parse_address` does."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    address, _, length = text.partition("/")
    if length.isascii() and length.isdecimal():
        # By numbers: of the text, the library would parse the address twice.
        with contextlib.suppress(ValueError):
            found, bits = parse_address(address), int(length)
            return IPv4Interface((int(found), bits)) if found.version == 4 else IPv6Interface((int(found), bits))
    return ip_interface(text)


def check_name(field: str, name: str, form: re.Pattern[str] = SUBDOMAIN) -> Iterator[Problem]:
    """Yield what is wrong with an object's name: not of the `form`, LABEL or SUBDOMAIN (RFC 1123)."""
    if form.fullmatch(name):
        return
    label = form is LABEL
    what = "an RFC 1123 label" if label else "an RFC 1123 subdomain"
    yield (
        field,
        f"{name!r} is not {what}" if name else "is empty",
        f"use at most {63 if label else 253} lower-case letters, digits and '-'{'' if label else ', and dots'}; "
        "start and end with a letter or digit",
    )


def check_labels(field: str, labels: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with labels."""
    for name, value in labels.items():
        yield from check_label_key(field, name)
        yield from check_label_value(f"{field}[{name}]", value)


def check_label_key(field: str, name: str) -> Iterator[Problem]:
    """Yield what is wrong with the key of a label or annotation."""
    prefix, slash, rest = name.rpartition("/")
    if not _QUALIFIED.fullmatch(rest) or (slash and not SUBDOMAIN.fullmatch(prefix)):
        hint = "write NAME or DNS-DOMAIN/NAME; NAME has at most 63 letters, digits, '-', '_' and '.'"
        yield f"{field}[{name}]", f"{name!r} is not a label key", hint


def check_label_value(field: str, value: str) -> Iterator[Problem]:
    """Yield what is wrong with the value of a label."""
    if value and not _QUALIFIED.fullmatch(value):
        hint = "use at most 63 letters, digits, '-', '_' and '.'; start and end with a letter or digit"
        yield field, f"{value!r} is not a label value", hint


def check_selector(field: str, selector: LabelSelector | None) -> Iterator[Problem]:
    """Yield what is wrong with a label selector, if there is one."""
    if selector is None:
        return
    yield from check_labels(f"{field}.matchLabels", selector.match_labels)
    for index, requirement in enumerate(selector.match_expressions):
        where = f"{field}.matchExpressions[{index}]"
        yield from check_label_key(f"{where}.key", requirement.key)
        wants_values = requirement.operator in ("In", "NotIn")
        if wants_values != bool(requirement.values):
            hint = "give one at least" if wants_values else "remove them"
            problem = f"operator {requirement.operator} {'needs' if wants_values else 'takes no'} values"
            yield f"{where}.values", problem, hint
        for value in requirement.values:
            yield from check_label_value(f"{where}.values", value)


def check_address(field: str, text: str) -> Iterator[Problem]:
    """Yield what is wrong with an address."""
    try:
        parse_address(text)
    except ValueError:
        yield field, f"{text!r} is not an IPv4 or IPv6 address", "write one address, without a prefix length"


def check_usable(field: str, address: Address, hint: str) -> Iterator[Problem]:
    """Yield why an address cannot be that of a host on the network."""
    for network, use in UNUSABLE.items():
        if address.version == network.version and address in network:
            yield field, f"{address} {use}", hint
            return


def check_usable_network(field: str, network: Network) -> Iterator[Problem]:
    """Yield why a network cannot be a range of pods' addresses."""
    for other, use in UNUSABLE.items():
        if other.version == network.version and network.overlaps(other):
            problem = f"{network} overlaps {other}, which {use}"
            yield field, problem, "use private ranges (RFC 1918, RFC 4193)"
            return


def check_timestamp(field: str, text: str) -> Iterator[Problem]:
    """Yield what is wrong with a point in time as Kubernetes writes it (RFC 3339)."""
    try:
        if _TIMESTAMP.fullmatch(text):
            datetime.fromisoformat(text)
            return
    except ValueError:
        pass  # no such day
    yield field, f"{text!r} is no time (RFC 3339)", "remove this field: it is written when the object is made"


def check_port(field: str, port: int) -> Iterator[Problem]:
    """Yield what is wrong with a port of TCP, UDP or SCTP."""
    yield from check_ranges((field, port, 1, 65535))


def check_port_name(field: str, name: str) -> Iterator[Problem]:
    """Yield what is wrong with the name of a port (RFC 6335, section 5.1)."""
    if not _PORT_NAME.fullmatch(name):
        hint = "use at most 15 lower-case letters, digits and single '-' inside, and a letter at least"
        yield field, f"{name!r} is not a port's name", hint


def check_asn_text(field: str, text: str) -> Iterator[Problem]:
    """Yield what is wrong with an AS number in decimal digits."""
    if is_number(text):
        yield from check_asn(field, int(text))
    else:
        yield field, f"{text!r} is not an AS number", "write a decimal number (asplain, RFC 5396)"


def check_asn(field: str, asn: int) -> Iterator[Problem]:
    """Yield what is wrong with an AS number (RFC 6793)."""
    if asn in RESERVED_ASNS:
        hint = "use a private one: 64512 to 65534, or 4200000000 to 4294967294 (RFC 6996)"
        yield field, f"{asn} is reserved ({RESERVED_ASNS[asn]})", hint
    yield from check_ranges((field, asn, 0, 4294967295))


def check_limits(obj: Record) -> Iterator[Problem]:
    """Yield the fields of an object that are out of the limits that its type states (LIMITS)."""
    for path, (low, high) in obj.LIMITS.items():
        value: Any = obj
        for step in path.split("."):
            value = getattr(value, re.sub("([A-Z])", r"_\1", step).lower())
        yield from check_ranges((path, value, low, high))


def check_ranges(*ranges: tuple[str, int, int, int]) -> Iterator[Problem]:
    """Yield the fields whose value is out of range; each is given with its value, the least and the most."""
    for field, value, low, high in ranges:
        if not low <= value <= high:
            yield field, f"{value} is out of range", f"write a number between {low} and {high}"
