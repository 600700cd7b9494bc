"""Permanent neighbour entries (rtnetlink(7), net/core/neighbour.c)."""

from collections.abc import Iterator
from socket import AF_INET, AF_INET6

import msgspec

from podway.api.addresses import Address, Family
from podway.kernel.netlink import Connection, Message, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import NDMSG, attribute, parse
from podway.kernel.rtnl.addresses import unpack
from podway.kernel.rtnl.links import pack_mac
from podway.plan.objects import Neighbour


class NeighbourRecord(msgspec.Struct, frozen=True):
    """A neighbour entry as the kernel has it; `index` is its device, `mac` empty while unknown."""

    index: int
    address: Address
    mac: str
    state: int

    @property
    def permanent(self) -> bool:
        """It was set by somebody and never ages."""
        return bool(self.state & c.NUD_PERMANENT)


def add(neighbour: Neighbour, index: int) -> Request:
    """Build a request for a permanent entry, in place of any entry for this address."""
    body = _body(neighbour, index) + attribute(c.NDA_LLADDR, pack_mac(neighbour.mac))
    return Request(c.RTM_NEWNEIGH, body, "add", neighbour, c.NLM_F_CREATE | c.NLM_F_REPLACE)


def remove(neighbour: Neighbour, index: int) -> Request:
    """Build a request that removes an entry."""
    return Request(c.RTM_DELNEIGH, _body(neighbour, index), "remove", neighbour)


def read(message: Message) -> NeighbourRecord:
    """Read an RTM_NEWNEIGH or RTM_DELNEIGH message of an IP neighbour."""
    _, index, state, _, _ = NDMSG.unpack_from(message.body)
    found = parse(message.body, NDMSG.size)
    return NeighbourRecord(index, unpack(found[c.NDA_DST]), found.get(c.NDA_LLADDR, b"").hex(":"), state)


def dump(connection: Connection) -> list[NeighbourRecord]:
    """Return all IPv4 and IPv6 neighbours of the namespace. Raises KernelError."""
    return list(scan(connection))


def scan(connection: Connection) -> Iterator[NeighbourRecord]:
    """Yield them, read one by one. Raises KernelError."""
    for af in (AF_INET, AF_INET6):
        request = Request(c.RTM_GETNEIGH, NDMSG.pack(af, 0, 0, 0, 0), "list", "neighbours")
        yield from map(read, connection.dump(request))


def _body(neighbour: Neighbour, index: int) -> bytes:
    af = Family.of(neighbour.address).af
    return NDMSG.pack(af, index, c.NUD_PERMANENT, 0, 0) + attribute(c.NDA_DST, neighbour.address.packed)
