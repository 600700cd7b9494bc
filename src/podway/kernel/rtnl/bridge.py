"""A bridge's ports: requests that make a pod link one, and what the kernel has of it.

A port is locked (kernel 5.18): the bridge drops frames whose source address its forwarding database does not
have at that very port. With learning off, only the static entry that we write stands there: so no pod can send
with, nor draw to itself, another one's hardware address. Frames for unknown addresses are not flooded to ports:
all are known.

Sources: bridge(8), net/bridge/br_netlink.c, br_input.c and br_fdb.c.
"""

import errno

import msgspec

from podway.errors import KernelError
from podway.kernel.netlink import Connection, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import IFINFOMSG, NDMSG, attribute, nested, number, parse, text, u32
from podway.kernel.rtnl import links
from podway.plan.objects import DEVICE_GROUP, Port

AF_BRIDGE = 7
"""include/linux/socket.h; Python's socket module lacks it."""

PORT_FLAGS = {
    c.IFLA_BRPORT_MODE: 1,  # hairpin
    c.IFLA_BRPORT_LEARNING: 0,
    c.IFLA_BRPORT_UNICAST_FLOOD: 0,
    c.IFLA_BRPORT_LOCKED: 1,
}
"""How every port of ours is set."""


class StaticEntry(msgspec.Struct, frozen=True):
    """A static entry of a bridge's forwarding database: `mac` is at the port of this number."""

    index: int
    mac: str


def number_of(connection: Connection, bridge: str) -> int:
    """Return the number of a bridge of ours. Raises KernelError if it is missing, or not ours."""
    record = links.find(connection, bridge)
    if record.group != DEVICE_GROUP or record.kind != "bridge":
        raise KernelError(
            f"attach a pod to {bridge}: it is a device that is not Podway's",
            errno.EBUSY,
            hint=f"remove it once nothing needs it any more: ip link delete {bridge}",
        )
    return record.index


def join(port: Port, index: int, bridge: int) -> list[Request]:
    """Build the requests that make the link of this number a port of the bridge of that number."""
    flags = b"".join(attribute(kind, bytes([value])) for kind, value in PORT_FLAGS.items())
    info = text(c.IFLA_INFO_SLAVE_KIND, "bridge") + nested(c.IFLA_INFO_SLAVE_DATA, flags)
    body = IFINFOMSG.pack(0, 0, index, 0, 0) + nested(c.IFLA_LINKINFO, info)
    return [
        links.change(index, master=bridge, label=port.device),
        Request(c.RTM_NEWLINK, body, "set up", port),
        Request(
            c.RTM_NEWNEIGH,
            _entry(index, port.mac),
            "add",
            f"static entry {port.mac} at {port}",
            c.NLM_F_CREATE | c.NLM_F_REPLACE,
        ),
    ]


def forget(entry: StaticEntry, label: object) -> Request:
    """Build a request that removes a static entry."""
    return Request(
        c.RTM_DELNEIGH, _entry(entry.index, entry.mac), "remove", f"static entry {entry.mac} at {label}"
    )


def has_port_flags(record: links.LinkRecord) -> bool:
    """Tell whether a port is set as ours are."""
    found = parse(record.port)
    return all(found.get(kind) == bytes([value]) for kind, value in PORT_FLAGS.items())


def static_entries(connection: Connection, bridge: int) -> list[StaticEntry]:
    """Return the static entries of the bridge of this number. Raises KernelError."""
    body = NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + u32(c.NDA_MASTER, bridge)
    found = []
    for message in connection.dump(Request(c.RTM_GETNEIGH, body, "list", "forwarding entries")):
        _, index, state, _, _ = NDMSG.unpack_from(message.body)
        values = parse(message.body, NDMSG.size)
        # Permanent means the bridge's own address; and devices add lists of their own, without a master.
        if state & c.NUD_NOARP and number(values.get(c.NDA_MASTER)) == bridge:
            found.append(StaticEntry(index, values[c.NDA_LLADDR].hex(":")))
    return found


def _entry(index: int, mac: str) -> bytes:
    body = NDMSG.pack(AF_BRIDGE, index, c.NUD_NOARP, c.NTF_MASTER, 0)
    return body + attribute(c.NDA_LLADDR, links.pack_mac(mac))
