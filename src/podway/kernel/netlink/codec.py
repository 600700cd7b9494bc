"""Netlink's wire format: headers, attributes, and a request that can say what it wants in words."""

import struct
from typing import Any

import msgspec

from podway.kernel.netlink.constants import NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_REQUEST

NLMSGHDR = struct.Struct("=IHHII")
"""length, type, flags, sequence number, port id"""
IFINFOMSG = struct.Struct("=BxHiII")
"""family, type, index, flags, change mask"""
IFADDRMSG = struct.Struct("=BBBBI")
"""family, prefix length, flags, scope, index"""
RTMSG = struct.Struct("=BBBBBBBBI")
"""family, dst length, src length, tos, table, protocol, scope, type, flags"""
NDMSG = struct.Struct("=BxxxiHBB")
"""family, index, state, flags, type"""
TCMSG = struct.Struct("=BxxxiIII")
"""family, index, handle, parent, info"""
NLATTR = struct.Struct("=HH")
"""length, type"""
U32 = struct.Struct("=I")
S32 = struct.Struct("=i")

_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class Request(msgspec.Struct, frozen=True):
    """One netlink message to send: type, flags, the body behind the header, and its meaning.

    `verb` and `subject` name it in errors (`add` `route 10.244.1.0/24 blackhole`); the subject's `str` is
    only asked for when something failed.
    """

    type: int
    body: bytes
    verb: str
    subject: Any = ""
    flags: int = 0

    @property
    def words(self) -> str:
        """What the request wants, for an error message."""
        return f"{self.verb} {self.subject}"

    @property
    def writes(self) -> bool:
        """Whether it could change the kernel: rtnetlink's GET types are 2 modulo 4 (rtnetlink.h)."""
        return self.type & 3 != 2

    def encode(self, sequence: int, flags: int) -> bytes:
        """Return the whole message with this sequence number and these further flags."""
        size = NLMSGHDR.size + len(self.body)
        header = NLMSGHDR.pack(size, self.type, self.flags | flags | NLM_F_REQUEST, sequence, 0)
        return header + self.body + _PADDING[size & 3]


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to four bytes."""
    size = NLATTR.size + len(value)
    return NLATTR.pack(size, kind) + value + _PADDING[size & 3]


def u32(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned 32-bit number."""
    return attribute(kind, U32.pack(value))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def parse(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the attributes from `start` on, by type; of a type that comes twice, the last."""
    return dict(parse_all(data, start))


def parse_all(data: bytes, start: int = 0) -> list[tuple[int, bytes]]:
    """Return the attributes from `start` on as pairs of type and value, in order."""
    found = []
    end = len(data) - NLATTR.size
    while start <= end:
        size, kind = NLATTR.unpack_from(data, start)
        if size < NLATTR.size:
            break  # a zero length would never end; the kernel sends none
        found.append((kind & NLA_TYPE_MASK, data[start + NLATTR.size : start + size]))
        start += (size + 3) & ~3
    return found


def number(value: bytes | None, default: int = 0) -> int:
    """Read a 32-bit unsigned attribute, or return the default if it is absent."""
    return default if value is None else int(U32.unpack_from(value)[0])


def string(value: bytes | None) -> str:
    """Read a zero-terminated string attribute; empty if it is absent."""
    return "" if value is None else value.rstrip(b"\0").decode(errors="replace")
