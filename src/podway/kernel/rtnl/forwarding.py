"""Entries of VXLAN devices' forwarding databases: which node has a hardware address.

Sources: bridge(8), drivers/net/vxlan/vxlan_core.c.
"""

from collections.abc import Iterator

import msgspec

from podway.api.addresses import Address
from podway.kernel.netlink import Connection, Message, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import NDMSG, attribute, parse
from podway.kernel.rtnl.addresses import unpack
from podway.kernel.rtnl.links import pack_mac
from podway.plan.objects import ForwardingEntry

AF_BRIDGE = 7
"""include/linux/socket.h; Python's socket module lacks it."""


class ForwardingRecord(msgspec.Struct, frozen=True):
    """An entry as the kernel has it: `index` is its device, `endpoint` None where no node is named."""

    index: int
    mac: str
    endpoint: Address | None
    plain: bool
    """It is permanent, and its port, VNI and outgoing device are those of the VXLAN device."""

    def planned(self, device: str) -> ForwardingEntry | None:
        """Return the same as a plan's entry of this device; None if that cannot express it."""
        if not self.plain or self.endpoint is None:
            return None
        return ForwardingEntry(device, self.mac, self.endpoint)


class ForeignEntry(msgspec.Struct, frozen=True):
    """An entry on a device of ours that no plan of ours can mean: it is removed, or replaced."""

    device: str
    record: ForwardingRecord

    def __str__(self) -> str:
        return f"forwarding entry {self.record.mac} on {self.device}"


def add(entry: ForwardingEntry, index: int) -> Request:
    """Build a request for an entry. It fails with EEXIST where the hardware address has one."""
    body = _body(index, entry.mac, entry.endpoint)
    return Request(c.RTM_NEWNEIGH, body, "add", entry, c.NLM_F_CREATE | c.NLM_F_EXCL)


def replace(entry: ForwardingEntry, index: int) -> Request:
    """Build a request for an entry in place of that of the same hardware address."""
    body = _body(index, entry.mac, entry.endpoint)
    return Request(c.RTM_NEWNEIGH, body, "replace", entry, c.NLM_F_CREATE | c.NLM_F_REPLACE)


def remove(entry: ForwardingEntry | ForeignEntry, index: int) -> Request:
    """Build a request that removes an entry, of several for one hardware address just this."""
    mac, endpoint = (
        (entry.mac, entry.endpoint)
        if isinstance(entry, ForwardingEntry)
        else (entry.record.mac, entry.record.endpoint)
    )
    return Request(c.RTM_DELNEIGH, _body(index, mac, endpoint), "remove", entry)


def read(message: Message) -> ForwardingRecord:
    """Read an RTM_NEWNEIGH or RTM_DELNEIGH message of family AF_BRIDGE."""
    _, index, state, _, _ = NDMSG.unpack_from(message.body)
    found = parse(message.body, NDMSG.size)
    endpoint = found.get(c.NDA_DST)
    special = any(attribute in found for attribute in (c.NDA_PORT, c.NDA_VNI, c.NDA_IFINDEX))
    return ForwardingRecord(
        index,
        found.get(c.NDA_LLADDR, b"").hex(":"),
        unpack(endpoint) if endpoint else None,
        plain=bool(state & c.NUD_PERMANENT) and not special,
    )


def dump(connection: Connection, index: int) -> list[ForwardingRecord]:
    """Return the entries of the VXLAN device of this number. Raises KernelError."""
    return list(scan(connection, index))


def scan(connection: Connection, index: int) -> Iterator[ForwardingRecord]:
    """Yield them, read one by one. Raises KernelError."""
    request = Request(c.RTM_GETNEIGH, NDMSG.pack(AF_BRIDGE, index, 0, 0, 0), "list", "forwarding entries")
    yield from map(read, connection.dump(request))


def _body(index: int, mac: str, endpoint: Address | None) -> bytes:
    return (
        NDMSG.pack(AF_BRIDGE, index, c.NUD_PERMANENT, c.NTF_SELF, 0)
        + attribute(c.NDA_LLADDR, pack_mac(mac))
        + (attribute(c.NDA_DST, endpoint.packed) if endpoint else b"")
    )
