"""Chains that note to whom a client was led: a map's element for its address, which is forgotten after some time.

A rule says the time, so there is a chain of one rule for each time that is used. They are written by nfnetlink
itself: libnftables 1.0.6 has no room for keys and values of IPv6, which the kernel has.
"""

import struct
from collections.abc import Iterable

from podway.api.addresses import Family
from podway.kernel.netlink import Connection, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import attribute, nested, parse, string, text
from podway.kernel.nft.messages import BEGIN, BODY, END, header, message_type
from podway.kernel.nft.sets import Place
from podway.plan.guard import NFT_FAMILY

_SOURCE: dict[Family, int] = {Family.IPV4: 12, Family.IPV6: 8}
_DESTINATION: dict[Family, int] = {Family.IPV4: 16, Family.IPV6: 24}
"""Where the addresses are in a header of IP, in bytes."""
_ORIGINAL: dict[Family, int] = {Family.IPV4: c.NFT_CT_DST_IP, Family.IPV6: c.NFT_CT_DST_IP6}
_NEVER = 1 << 32
"""The first number of seconds that has no room in 32 bits: of no Service."""
_PORT = 2
"""Where the port that is asked is in the header behind it: TCP's, UDP's, SCTP's."""


def read(connection: Connection, family: Family, table: str, prefix: str) -> set[int]:
    """Return for which times, in seconds, there is a chain of one rule. Raises KernelError."""
    body = header(NFT_FAMILY[family]) + text(c.NFTA_RULE_TABLE, table)
    rules: dict[int, int] = {}
    for answer in connection.dump(Request(message_type(c.NFT_MSG_GETRULE), body, "list", f"rules of {table}")):
        told = parse(answer.body, BODY)
        seconds = seconds_of(string(told[c.NFTA_RULE_CHAIN]), prefix)
        if string(told[c.NFTA_RULE_TABLE]) == table and seconds is not None:
            rules[seconds] = rules.get(seconds, 0) + 1
    return {seconds for seconds, count in rules.items() if count == 1}


def seconds_of(chain: str, prefix: str) -> int | None:
    """Return for which time a chain of this name is; None if it is somebody else's."""
    number = chain.removeprefix(prefix)
    if not (chain.startswith(prefix) and number.isascii() and number.isdecimal()):
        return None
    seconds = int(number)
    return seconds if str(seconds) == number and seconds < _NEVER else None


def change(
    connection: Connection, place: Place, family: Family, prefix: str, gone: Iterable[int], put: Iterable[int]
) -> None:
    """Have chains go, whether they are there or not, and others be there, for so many seconds each.

    `place` is the map that they fill. Raises KernelError.
    """
    _, table, _ = place
    requests = [
        _request(c.NFT_MSG_DESTROYCHAIN, table, family, f"{prefix}{seconds}", c.NFTA_CHAIN_NAME)
        for seconds in gone
    ]
    for seconds in put:
        name = f"{prefix}{seconds}"
        rule = nested(c.NFTA_RULE_EXPRESSIONS, *_note(place, family, seconds))
        requests += [
            _request(c.NFT_MSG_NEWCHAIN, table, family, name, c.NFTA_CHAIN_NAME, flags=c.NLM_F_CREATE),
            _request(c.NFT_MSG_DELRULE, table, family, name, c.NFTA_RULE_CHAIN),
            _request(
                *(c.NFT_MSG_NEWRULE, table, family, name, c.NFTA_RULE_CHAIN, rule),
                flags=c.NLM_F_CREATE | c.NLM_F_APPEND,
            ),
        ]
    if requests:
        connection.transaction(requests, BEGIN, END)


def _request(
    message: int, table: str, family: Family, name: str, kind: int, more: bytes = b"", *, flags: int = 0
) -> Request:
    # What it is of stands in the same attribute of chains and rules.
    body = header(NFT_FAMILY[family]) + text(c.NFTA_RULE_TABLE, table) + text(kind, name) + more
    return Request(message_type(message), body, "change", f"nft chain {NFT_FAMILY[family]} {table} {name}", flags)


def _note(place: Place, family: Family, seconds: int) -> list[bytes]:
    """Return the expressions of a rule: `update @map { address . protocol . port . client : backend . port }`.

    Address and port are those that the client asked, before they were translated.
    """
    words = family.bits // 32
    key = c.NFT_REG32_00
    protocol, port, client = key + words, key + words + 1, key + words + 2
    data = client + words
    return [
        _expression("ct", *_ct(key, _ORIGINAL[family])),
        _expression("meta", _number(c.NFTA_META_DREG, protocol), _number(c.NFTA_META_KEY, c.NFT_META_L4PROTO)),
        _expression("ct", *_ct(port, c.NFT_CT_PROTO_DST)),
        _expression("payload", *_load(client, c.NFT_PAYLOAD_NETWORK_HEADER, _SOURCE[family], family.bits // 8)),
        _expression("payload", *_load(data, c.NFT_PAYLOAD_NETWORK_HEADER, _DESTINATION[family], family.bits // 8)),
        _expression("payload", *_load(data + words, c.NFT_PAYLOAD_TRANSPORT_HEADER, _PORT, 2)),
        _expression(
            "dynset",
            text(c.NFTA_DYNSET_SET_NAME, place[2]),
            _number(c.NFTA_DYNSET_OP, c.NFT_DYNSET_OP_UPDATE),
            _number(c.NFTA_DYNSET_SREG_KEY, key),
            _number(c.NFTA_DYNSET_SREG_DATA, data),
            attribute(c.NFTA_DYNSET_TIMEOUT, struct.pack(">Q", seconds * 1000)),
        ),
    ]


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(c.NFTA_LIST_ELEM, text(c.NFTA_EXPR_NAME, name), nested(c.NFTA_EXPR_DATA, *attributes))


def _ct(register: int, key: int) -> tuple[bytes, ...]:
    direction = attribute(c.NFTA_CT_DIRECTION, bytes((c.IP_CT_DIR_ORIGINAL,)))
    return (_number(c.NFTA_CT_DREG, register), _number(c.NFTA_CT_KEY, key), direction)


def _load(register: int, base: int, offset: int, length: int) -> tuple[bytes, ...]:
    numbers = enumerate((register, base, offset, length), c.NFTA_PAYLOAD_DREG)
    return tuple(_number(kind, number) for kind, number in numbers)


def _number(kind: int, value: int) -> bytes:
    """Return an attribute that holds a number as nf_tables has it: in network byte order."""
    return attribute(kind, struct.pack(">I", value))
