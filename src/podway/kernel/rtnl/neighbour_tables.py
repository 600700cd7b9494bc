"""Neighbour tables as a whole: their room, and how often they were full.

Sources: include/uapi/linux/neighbour.h, net/core/neighbour.c.
"""

import struct
from collections.abc import Iterator

import msgspec

from podway.api.addresses import Family
from podway.kernel.netlink import Connection, Request
from podway.kernel.netlink.codec import number, parse, string

_RTM_GETNEIGHTBL = 66
_NDTA_NAME, _NDTA_THRESH3, _NDTA_STATS = 1, 4, 7
_STATS = struct.Struct("=11Q")
"""struct ndt_stats; the last number is ndts_table_fulls."""
_FAMILIES = {"arp_cache": Family.IPV4, "ndisc_cache": Family.IPV6}


class NeighbourTableRecord(msgspec.Struct, frozen=True):
    """One family's table, which all namespaces share: room (gc_thresh3), and overflows since boot."""

    family: Family
    room: int
    overflows: int


def dump(connection: Connection) -> Iterator[NeighbourTableRecord]:
    """Yield both tables, without the devices' own parameters. Raises KernelError."""
    for message in connection.dump(Request(_RTM_GETNEIGHTBL, b"\0" * 4, "list", "neighbour tables")):
        found = parse(message.body, 4)
        family = _FAMILIES.get(string(found.get(_NDTA_NAME)))
        if family is None or _NDTA_THRESH3 not in found:
            continue
        stats = found.get(_NDTA_STATS, b"")
        overflows = int(_STATS.unpack(stats)[-1]) if len(stats) == _STATS.size else 0
        yield NeighbourTableRecord(family, number(found[_NDTA_THRESH3]), overflows)
