"""Elements of nftables sets and maps as bytes, read and changed by nfnetlink itself.

For those of which there are very many: what their bytes mean is for whoever keeps them
(podway.kernel.node_services). `podway.kernel.nft.sets` is for elements that plans name and people read.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from podway.kernel.netlink import Connection, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import attribute, nested, parse, parse_all, string, text
from podway.kernel.nft.messages import BEGIN, BODY, END, header, message_type
from podway.kernel.nft.sets import Place

Value: TypeAlias = bytes | str
"""What an element of a map says: bytes, or the chain that it goes to. An element of a set says nothing."""

_VERDICT = struct.Struct(">i")
_AT_ONCE = 250
"""Elements of one message: an attribute, and their list is one, has at most 65,535 bytes."""


class Element(NamedTuple):
    """An element of a set or map. The key of a range is its beginning and its end (NFT_SET_CONCAT), `ranged`."""

    place: Place
    key: bytes
    value: Value = b""
    ranged: bool = False


def read(connection: Connection, place: Place) -> Iterator[Element]:
    """Yield the elements of a set or map; of values bytes and chains are read. Raises KernelError."""
    family, table, name = place
    body = header(family) + text(c.NFTA_SET_ELEM_LIST_TABLE, table) + text(c.NFTA_SET_ELEM_LIST_SET, name)
    request = Request(message_type(c.NFT_MSG_GETSETELEM), body, "list", f"nft map {' '.join(place)}")
    for answer in connection.dump(request):
        for _, listed in parse_all(parse(answer.body, BODY).get(c.NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
            told = parse(listed)
            if c.NFTA_SET_ELEM_KEY in told:
                key = parse(told[c.NFTA_SET_ELEM_KEY])[c.NFTA_DATA_VALUE]
                ranged = c.NFTA_SET_ELEM_KEY_END in told
                if ranged:
                    key += parse(told[c.NFTA_SET_ELEM_KEY_END])[c.NFTA_DATA_VALUE]
                yield Element(place, key, _value(told.get(c.NFTA_SET_ELEM_DATA, b"")), ranged)


def change(connection: Connection, gone: Sequence[Element], put: Sequence[Element]) -> None:
    """Have elements go, whether they are there or not, and put others: all of it, or nothing.

    A key with another value has to go first: it may be in both. Raises KernelError.
    """
    requests = [*_requests(c.NFT_MSG_DESTROYSETELEM, "delete", gone), *_requests(c.NFT_MSG_NEWSETELEM, "add", put)]
    if requests:
        connection.transaction(requests, BEGIN, END)


def _requests(message: int, verb: str, elements: Sequence[Element]) -> Iterator[Request]:
    by_place: dict[Place, list[Element]] = {}
    for element in elements:
        by_place.setdefault(element.place, []).append(element)
    adding = message == c.NFT_MSG_NEWSETELEM
    for place, members in by_place.items():
        family, table, name = place
        head = header(family) + text(c.NFTA_SET_ELEM_LIST_TABLE, table) + text(c.NFTA_SET_ELEM_LIST_SET, name)
        for start in range(0, len(members), _AT_ONCE):
            listed = _listed(members[start : start + _AT_ONCE], values=adding)
            body = head + nested(c.NFTA_SET_ELEM_LIST_ELEMENTS, *listed)
            subject = f"elements of nft map {' '.join(place)}"
            yield Request(message_type(message), body, verb, subject, c.NLM_F_CREATE if adding else 0)


def _listed(elements: Iterable[Element], *, values: bool) -> Iterator[bytes]:
    for element in elements:
        begins = element.key[: len(element.key) // 2] if element.ranged else element.key
        key = nested(c.NFTA_SET_ELEM_KEY, attribute(c.NFTA_DATA_VALUE, begins))
        if element.ranged:
            end = attribute(c.NFTA_DATA_VALUE, element.key[len(begins) :])
            key += nested(c.NFTA_SET_ELEM_KEY_END, end)
        if not values or element.value == b"":
            yield nested(c.NFTA_LIST_ELEM, key)
        elif isinstance(element.value, bytes):
            value = attribute(c.NFTA_DATA_VALUE, element.value)
            yield nested(c.NFTA_LIST_ELEM, key, nested(c.NFTA_SET_ELEM_DATA, value))
        else:
            code = attribute(c.NFTA_VERDICT_CODE, _VERDICT.pack(c.NFT_GOTO))
            verdict = nested(c.NFTA_DATA_VERDICT, code, text(c.NFTA_VERDICT_CHAIN, element.value))
            yield nested(c.NFTA_LIST_ELEM, key, nested(c.NFTA_SET_ELEM_DATA, verdict))


def _value(data: bytes) -> Value:
    told = parse(data)
    if c.NFTA_DATA_VERDICT in told:
        return string(parse(told[c.NFTA_DATA_VERDICT]).get(c.NFTA_VERDICT_CHAIN))
    return told.get(c.NFTA_DATA_VALUE, b"")
