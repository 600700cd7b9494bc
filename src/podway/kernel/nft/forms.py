"""nftables tables in a form that can be compared: what the kernel tells of chains, rules and sets, by nfnetlink.

nft writes a table back in other words than it was given, so texts cannot be compared. What a text should look
like once loaded is found by loading it: into a namespace made for that, once for each distinct text. libnftables
could list both, but reads every element of every set for it, even when told to leave them out.
"""

import functools
import os
from collections.abc import Collection, Iterator
from typing import Literal, TypeAlias

from podway.kernel import netns
from podway.kernel.netlink import Connection, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import parse, parse_all, string, text
from podway.kernel.nft.affinity import seconds_of
from podway.kernel.nft.libnftables import Nftables
from podway.kernel.nft.messages import BODY, FAMILIES, header, message_type
from podway.plan.objects import NftFamily, NftTable

Form: TypeAlias = tuple[tuple[str, ...], ...]
"""What is in a table, in order; of each thing what the kernel tells of it wherever one text is loaded."""

_KINDS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("table", c.NFT_MSG_GETTABLE, (c.NFTA_TABLE_FLAGS,)),
    ("chain", c.NFT_MSG_GETCHAIN, (c.NFTA_CHAIN_NAME, c.NFTA_CHAIN_HOOK, c.NFTA_CHAIN_POLICY, c.NFTA_CHAIN_TYPE)),
    (
        "set",
        c.NFT_MSG_GETSET,
        (
            *(c.NFTA_SET_NAME, c.NFTA_SET_FLAGS, c.NFTA_SET_KEY_TYPE, c.NFTA_SET_KEY_LEN),
            *(c.NFTA_SET_DATA_TYPE, c.NFTA_SET_DATA_LEN, c.NFTA_SET_DESC, c.NFTA_SET_TIMEOUT),
        ),
    ),
    ("rule", c.NFT_MSG_GETRULE, (c.NFTA_RULE_CHAIN, c.NFTA_RULE_USERDATA)),
)
"""How each kind is asked for, and what of it counts: no handles, no counters, nothing that points into the kernel.

What they are of stands in the same attribute of all: the table's name.
"""


_CHAIN_OF = {"chain": c.NFTA_CHAIN_NAME, "rule": c.NFTA_RULE_CHAIN}


def tables(connection: Connection) -> list[tuple[NftFamily, str]]:
    """Return the family and name of every table, of the families that Podway knows. Raises KernelError."""
    request = Request(message_type(c.NFT_MSG_GETTABLE), header(), "list", "nftables tables")
    found: list[tuple[NftFamily, str]] = []
    for message in connection.dump(request):
        family = FAMILIES.get(message.body[0])
        if family is not None:
            found.append((family, string(parse(message.body, BODY)[c.NFTA_TABLE_NAME])))
    return found


def form(
    connection: Connection, family: NftFamily, name: str, sets: Collection[str] = (), others: str = ""
) -> Form:
    """Return a table's form, empty if it is not there.

    It has the elements of its sets, but not of those that packets fill, nor of `sets`; and no chains whose names
    are `others` and a number of seconds, if that is not empty. Raises KernelError.
    """
    found: list[tuple[str, ...]] = []
    for kind, message, told in _KINDS:
        for attributes in _dump(connection, message, family, name, f"the {kind}s of nft table {family} {name}"):
            if others and seconds_of(string(attributes.get(_CHAIN_OF.get(kind, 0))), others) is not None:
                continue
            said = [f"{number} {attributes[number].hex()}" for number in told if number in attributes]
            if kind == "rule":
                said += _expressions(attributes[c.NFTA_RULE_EXPRESSIONS])
            elif kind == "set" and not _filled_by_packets(attributes):
                each = string(attributes[c.NFTA_SET_NAME])
                said += _elements(connection, family, name, each) if each not in sets else ()
            found.append((kind, *said))
    return tuple(found)


def names(found: Form, kind: Literal["chain", "set"]) -> frozenset[str]:
    """Return the names of the chains, or of the sets and maps, of a table's form."""
    # It is what they tell first.
    return frozenset(string(bytes.fromhex(each[1].split()[1])) for each in found if each[0] == kind)


@functools.lru_cache(maxsize=16)
def loaded_form(table: NftTable) -> Form:
    """Return the form that a table has once loaded, to compare with `form`.

    The body must not name interfaces by `iif` or `oif`, which need them to exist; `iifname` does not.
    Raises KernelError if nft refuses the text, UnsupportedSystem.
    """
    fd = netns.new()
    try:
        scratch = Nftables(lambda function: netns.run(fd, function))
        try:
            scratch.replace(table)
        finally:
            scratch.close()
        with Connection(fd, protocol=c.NETLINK_NETFILTER) as connection:
            sets = [*(each.name for each in table.sets), *table.kept]
            return form(connection, table.family, table.name, sets, table.others)
    finally:
        os.close(fd)


def _dump(
    connection: Connection, message: int, family: NftFamily, table: str, subject: str, *more: bytes
) -> Iterator[dict[int, bytes]]:
    """Yield the attributes of each thing of a kind in a table."""
    body = header(family) + text(c.NFTA_TABLE_NAME, table) + b"".join(more)
    for answer in connection.dump(Request(message_type(message), body, "list", subject)):
        attributes = parse(answer.body, BODY)
        # Not every kind's listing is of the one table that was asked for.
        if string(attributes.get(c.NFTA_TABLE_NAME)) == table:
            yield attributes


def _expressions(listed: bytes) -> Iterator[str]:
    """Yield what a rule's expressions say; of a counter, only that it is one."""
    for _, expression in parse_all(listed):
        attributes = parse(expression)
        name = string(attributes[c.NFTA_EXPR_NAME])
        yield name if name == "counter" else f"{name} {attributes.get(c.NFTA_EXPR_DATA, b'').hex()}"


def _filled_by_packets(attributes: dict[int, bytes]) -> bool:
    return bool(int.from_bytes(attributes.get(c.NFTA_SET_FLAGS, b"")) & c.NFT_SET_EVAL)


def _elements(connection: Connection, family: NftFamily, table: str, name: str) -> list[str]:
    """Return the elements of a set or map; the kernel tells them in any order."""
    told = (c.NFTA_SET_ELEM_KEY, c.NFTA_SET_ELEM_KEY_END, c.NFTA_SET_ELEM_DATA, c.NFTA_SET_ELEM_FLAGS)
    which = text(c.NFTA_SET_ELEM_LIST_SET, name)
    found = []
    subject = f"nft set {family} {table} {name}"
    for message in _dump(connection, c.NFT_MSG_GETSETELEM, family, table, subject, which):
        for _, element in parse_all(message.get(c.NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
            attributes = parse(element)
            found.append(" ".join(f"{n} {attributes[n].hex()}" for n in told if n in attributes))
    return sorted(found)
