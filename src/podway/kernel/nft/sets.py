"""Elements of nftables sets, read and changed by nfnetlink itself.

libnftables would do it, too; but for each change it reads all elements of the set first, and it tells them as
JSON: at 5,000 nodes 30 ms for one element, 150 ms to list them. Here one element costs what one costs. What a set
is and which rules ask it stays nft's text (podway.kernel.nft.libnftables).

A key is its fields' bytes, each filled up with zeros to four (struct nft_data in net/netfilter/nf_tables.h). Sets
of several fields with intervals (NFT_SET_CONCAT | NFT_SET_INTERVAL) hold a second key, where the ranges end. One
element has no key at all: the one that matches everything, `*`.
"""

import errno
import socket
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Literal, NamedTuple, TypeAlias

from podway.errors import KernelError
from podway.kernel.netlink import Connection, Message, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import attribute, nested, parse, parse_all, text
from podway.kernel.nft.messages import BEGIN, BODY, END, header, message_type
from podway.plan.objects import NftElement, NftFamily, NftField, nft_number

Place: TypeAlias = tuple[NftFamily, str, str]
"""Where a set is: family, table, name."""

_RANGES = c.NFT_SET_INTERVAL | c.NFT_SET_CONCAT
_LENGTHS = {"ipv4_addr": 4, "ipv6_addr": 16}

_CATCHALL = c.NFT_SET_ELEM_CATCHALL.to_bytes(4)

_AT_ONCE = 500
"""Elements of one message: an attribute, and their list is one, has at most 65,535 bytes."""


class Key(NamedTuple):
    """A set's key as the kernel has it; where no field is a range, `end` is the same."""

    start: bytes
    end: bytes


def encode(fields: Iterable[str]) -> Key:
    """Return the key of an element with these fields. Raises ValueError if one is neither address nor number."""
    start, end = bytearray(), bytearray()
    for field in fields:
        first, _, last = field.partition("-")
        low = _bytes(first)
        padding = bytes(-len(low) % 4)
        start += low + padding
        end += (_bytes(last) if last else low) + padding
    return Key(bytes(start), bytes(end))


def decode(key: Key, fields: Sequence[NftField]) -> tuple[str, ...]:
    """Return a key's fields as an element has them, the other way round than `encode`."""
    found, offset = [], 0
    for field in fields:
        length = field if isinstance(field, int) else _LENGTHS[field]
        low, high = (part[offset : offset + length] for part in key)
        offset += _padded(length)
        if isinstance(field, int):
            found.append(nft_number(low) if low == high else f"{nft_number(low)}-{nft_number(high)}")
        else:
            found.append(str(ip_address(low)))  # inet_ntop would write ::ffff:0:0 in another way
    return tuple(found)


EVERYTHING = ("*",)
"""The fields of the element that matches whatever no other does (NFT_SET_ELEM_CATCHALL)."""


class NftSets:
    """The sets of one namespace, by a connection to nfnetlink. Threads may share it. Methods raise KernelError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, place: Place, fields: Sequence[NftField]) -> Iterator[NftElement]:
        """Return the elements of a set, whose keys have these fields.

        Raises ENOENT if there is no such set, EINVAL if it is another than that.

        The kernel is asked at once, its answers are read one by one.
        """
        family, table, name = place
        body = header(family) + text(c.NFTA_SET_ELEM_LIST_TABLE, table) + text(c.NFTA_SET_ELEM_LIST_SET, name)
        request = Request(message_type(c.NFT_MSG_GETSETELEM), body, "list", f"nft set {' '.join(place)}")
        return self._elements(place, fields, self._connection.dump(request))

    def _elements(
        self, place: Place, fields: Sequence[NftField], answers: Iterable[Message]
    ) -> Iterator[NftElement]:
        size = sum(_padded(field if isinstance(field, int) else _LENGTHS[field]) for field in fields)
        for answer in answers:
            for key in _keys(answer.body):
                if key is not None and len(key.start) != size:
                    told = f"its keys have {len(key.start)} bytes, not {size}"
                    raise KernelError(f"read nft set {' '.join(place)}", errno.EINVAL, told)
                yield NftElement(*place, decode(key, fields) if key else EVERYTHING)

    def change(self, action: Literal["add", "delete"], elements: Sequence[NftElement]) -> None:
        """Add elements to sets or delete them: all of them or, if one is refused, none."""
        if not elements:
            return
        by_place: dict[Place, list[NftElement]] = {}
        for element in elements:
            by_place.setdefault((element.family, element.table, element.set), []).append(element)
        requests = [
            request
            for place, members in by_place.items()
            for request in _requests(action, place, members, ranges=self._has_ranges(place))
        ]
        self._connection.transaction(requests, BEGIN, END)

    def _has_ranges(self, place: Place) -> bool:
        family, table, name = place
        body = header(family) + text(c.NFTA_SET_TABLE, table) + text(c.NFTA_SET_NAME, name)
        request = Request(message_type(c.NFT_MSG_GETSET), body, "look at", f"nft set {' '.join(place)}")
        flags = int.from_bytes(parse(self._connection.get(request).body, BODY).get(c.NFTA_SET_FLAGS, b""))
        return flags & _RANGES == _RANGES


def _padded(length: int) -> int:
    return length + -length % 4


def _bytes(field: str) -> bytes:
    if field.startswith("0x"):
        return bytes.fromhex(field[2:])
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in field else socket.AF_INET, field)
    except OSError as error:
        raise ValueError(f"{field!r} is neither an address nor a number in hexadecimal digits") from error


def _requests(
    action: Literal["add", "delete"], place: Place, elements: Sequence[NftElement], *, ranges: bool
) -> Iterator[Request]:
    family, table, name = place
    head = header(family) + text(c.NFTA_SET_ELEM_LIST_TABLE, table) + text(c.NFTA_SET_ELEM_LIST_SET, name)
    kind = message_type(c.NFT_MSG_NEWSETELEM if action == "add" else c.NFT_MSG_DELSETELEM)
    for start in range(0, len(elements), _AT_ONCE):
        some = elements[start : start + _AT_ONCE]
        listed = (_listed(element.fields, ranges=ranges) for element in some)
        body = head + nested(c.NFTA_SET_ELEM_LIST_ELEMENTS, *listed)
        yield Request(kind, body, action, some[0], c.NLM_F_CREATE if action == "add" else 0)


def _listed(fields: tuple[str, ...], *, ranges: bool) -> bytes:
    if fields == EVERYTHING:
        return nested(c.NFTA_LIST_ELEM, attribute(c.NFTA_SET_ELEM_FLAGS, _CATCHALL))
    key = encode(fields)
    start = nested(c.NFTA_SET_ELEM_KEY, attribute(c.NFTA_DATA_VALUE, key.start))
    if not ranges:
        return nested(c.NFTA_LIST_ELEM, start)
    return nested(c.NFTA_LIST_ELEM, start, nested(c.NFTA_SET_ELEM_KEY_END, attribute(c.NFTA_DATA_VALUE, key.end)))


def _keys(body: bytes) -> Iterator[Key | None]:
    """Yield the keys of one message of a listing, None for the element that has none."""
    listed = parse(body, BODY).get(c.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    for _, element in parse_all(listed):
        attributes = parse(element)
        if c.NFTA_SET_ELEM_KEY not in attributes:
            yield None
            continue
        start = parse(attributes[c.NFTA_SET_ELEM_KEY])[c.NFTA_DATA_VALUE]
        end = attributes.get(c.NFTA_SET_ELEM_KEY_END)
        yield Key(start, parse(end)[c.NFTA_DATA_VALUE] if end else start)
