"""Writing pcapng: a section, its interfaces, its packets. Pure.

The one library for it on PyPI (python-pcapng) had its last release in 2022, and three kinds of blocks
are needed here. Format: IETF draft-ietf-opsawg-pcapng; link types: draft-ietf-opsawg-pcaplinktype.
"""

import struct
from collections.abc import Iterable

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_UNKNOWN = -1
_END, _COMMENT = 0, 1
_APPLICATION = 4
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9
_FLAGS = 2
_INBOUND, _OUTBOUND = 1, 2
_NANOSECONDS = 9
_MOST = 0xFFFF

ETHERNET, RAW_IP = 1, 101
"""LINKTYPE_ETHERNET, LINKTYPE_RAW."""


def section(application: str) -> bytes:
    """Return the block that begins a file; `application` is what wrote it."""
    fixed = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, _UNKNOWN)
    return _block(_SECTION, fixed + _options([(_APPLICATION, application.encode())]))


def interface(name: str, description: str, link_type: int, snap: int) -> bytes:
    """Return the block of an interface; its number is how many came before it. Its times are in nanoseconds."""
    options = [(_NAME, name.encode()), (_RESOLUTION, bytes([_NANOSECONDS]))]
    if description:
        options.insert(1, (_DESCRIPTION, description.encode()))
    return _block(_INTERFACE, struct.pack("<HHI", link_type, 0, snap) + _options(options))


def packet(
    number: int, time: int, data: bytes, length: int, *, outgoing: bool, comments: Iterable[str] = ()
) -> bytes:
    """Return the block of a packet at the interface of this number.

    `time` is in ns since 1970, `length` the packet's, of which `data` may be the beginning.
    """
    fixed = struct.pack("<IIIII", number, time >> 32, time & 0xFFFFFFFF, len(data), max(length, len(data)))
    options = [(_COMMENT, one.encode()) for one in comments]
    options.append((_FLAGS, struct.pack("<I", _OUTBOUND if outgoing else _INBOUND)))
    return _block(_PACKET, fixed + _padded(data) + _options(options))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _options(options: Iterable[tuple[int, bytes]]) -> bytes:
    every = (struct.pack("<HH", code, len(value[:_MOST])) + _padded(value[:_MOST]) for code, value in options)
    return b"".join(every) + struct.pack("<HH", _END, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
