"""Network devices: requests that make, change and remove them, and records of what there is.

Sources: rtnetlink(7), net/core/rtnetlink.c, drivers/net/veth.c, drivers/net/vxlan/vxlan_core.c.
"""

import errno
from ipaddress import ip_address
from typing import Literal

import msgspec

from podway.api.addresses import Family
from podway.errors import KernelError
from podway.kernel.netlink import Connection, Message, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import (
    IFINFOMSG,
    attribute,
    nested,
    number,
    parse,
    parse_all,
    string,
    text,
    u32,
)
from podway.plan.objects import Vxlan

LOOPBACK = 1
"""Index of `lo` in every network namespace (LOOPBACK_IFINDEX, include/net/net_namespace.h)."""


class VxlanRecord(msgspec.Struct, frozen=True):
    """What a VXLAN device is set to; `local` is empty, and `uplink` 0, where none is set."""

    vni: int
    port: int
    local: str
    uplink: int
    """Index of the device that outer packets leave by."""
    learning: bool
    proxy: bool
    """It answers ARP and neighbour solicitations itself."""
    remote: str
    """Where frames for unknown hardware addresses go, a group or one host; empty: nowhere."""
    inherits: bool
    """Outer headers take over the DF bit and the DSCP of the inner ones."""

    @property
    def underlay(self) -> Family:
        """The family of the outer headers; without any address the kernel takes IPv4 (vxlan_config_validate)."""
        return Family.IPV6 if ":" in self.local or ":" in self.remote else Family.IPV4


class LinkRecord(msgspec.Struct, frozen=True):
    """A device as the kernel has it. `peer` is a veth's other end, by its index there."""

    index: int
    name: str
    altnames: tuple[str, ...]
    alias: str
    mac: str
    mtu: int
    group: int
    up: bool
    running: bool
    """It has a carrier: for a veth, both ends are up."""
    kind: str
    """`veth`, `bridge` and so on; empty for a physical device and for `lo`."""
    master: int
    peer: int
    vxlan: VxlanRecord | None = None
    port: bytes = b""
    """What the device's bridge knows of it as its port, undecoded (podway.kernel.rtnl.bridge)."""


class Peer(msgspec.Struct, frozen=True):
    """The other end of a veth pair; `netns_fd` None puts it into the connection's own namespace."""

    name: str
    netns_fd: int | None = None
    mac: str = ""
    mtu: int = 0


def new_veth(name: str, peer: Peer, *, mac: str = "", mtu: int = 0, group: int = 0) -> Request:
    """Build a request for a veth pair. Without a MAC the kernel draws one; MTU 0 is its default, 1500."""
    at_peer = b"" if peer.netns_fd is None else u32(c.IFLA_NET_NS_FD, peer.netns_fd)
    other = IFINFOMSG.pack(0, 0, 0, 0, 0) + _properties(peer.name, peer.mac, peer.mtu, 0) + at_peer
    return _new("veth", _properties(name, mac, mtu, group), f"link {name}", nested(c.VETH_INFO_PEER, other))


def new_bridge(name: str, *, mac: str = "", mtu: int = 0, group: int = 0) -> Request:
    """Build a request for a bridge."""
    return _new("bridge", _properties(name, mac, mtu, group), f"link {name}")


def new_vxlan(name: str, settings: Vxlan, uplink: int, *, mac: str = "", mtu: int = 0, group: int = 0) -> Request:
    """Build a request for a VXLAN device (RFC 7348) whose outer packets leave by the device numbered `uplink`.

    If that is 0, they leave by whatever the routes say.

    It neither learns nor floods: frames for a hardware address without a forwarding entry are dropped. Outer
    headers take the inner one's DF bit, so that the MTU of a path is found out, DSCP and ECN (RFC 6040). UDP
    checksums are on in either family, as is the kernel's default: they cover the inner headers, cost next to
    nothing (LCO, Documentation/networking/checksum-offloads.rst), and IPv6 needs no exception of RFC 6936.
    """
    info = _vxlan_identity(settings) + _vxlan_settings(settings, uplink)
    return _new("vxlan", _properties(name, mac, mtu, group), f"link {name}", info)


def change_vxlan(link: int, settings: Vxlan, uplink: int, *, label: str = "") -> Request:
    """Build a request that sets all of a VXLAN device that can be changed in place: not VNI, port and family."""
    info = text(c.IFLA_INFO_KIND, "vxlan") + nested(c.IFLA_INFO_DATA, _vxlan_settings(settings, uplink))
    body = IFINFOMSG.pack(0, 0, link, 0, 0) + nested(c.IFLA_LINKINFO, info)
    return Request(c.RTM_NEWLINK, body, "change", f"link {label or link}")


def change(
    link: int | str,
    *,
    up: bool | None = None,
    rename: str = "",
    alias: str | None = None,
    mac: str = "",
    mtu: int = 0,
    group: int | None = None,
    master: int | None = None,
    netns_fd: int | None = None,
    without_ipv6_autoconf: bool = False,
    label: str = "",
) -> Request:
    """Build a request that changes a device, named by its number or, unless it renames, by its name.

    `master` is the number of a bridge, 0 takes the device out of one. `without_ipv6_autoconf` keeps the
    kernel from making a link-local address (addr_gen_mode none), so there is no duplicate-address detection
    to wait for; it must come in an earlier request than `up`. `label` names a numbered device in errors.
    """
    attributes = [
        b"" if isinstance(link, int) else text(c.IFLA_IFNAME, link),
        text(c.IFLA_IFNAME, rename) if rename else b"",
        # An empty string, zero bytes long, takes the alias away.
        b"" if alias is None else attribute(c.IFLA_IFALIAS, alias.encode()),
        attribute(c.IFLA_ADDRESS, pack_mac(mac)) if mac else b"",
        u32(c.IFLA_MTU, mtu) if mtu else b"",
        b"" if group is None else u32(c.IFLA_GROUP, group),
        b"" if master is None else u32(c.IFLA_MASTER, master),
        b"" if netns_fd is None else u32(c.IFLA_NET_NS_FD, netns_fd),
        _NO_ADDRESS_GENERATION if without_ipv6_autoconf else b"",
    ]
    index = link if isinstance(link, int) else 0
    flags, mask = (c.IFF_UP if up else 0, 0 if up is None else c.IFF_UP)
    body = IFINFOMSG.pack(0, 0, index, flags, mask) + b"".join(attributes)
    return Request(c.RTM_SETLINK, body, "change", f"link {label or link}")


def set_up(link: int | str, label: str = "") -> Request:
    """Build a request that brings a device up."""
    return change(link, up=True, label=label)


def set_down(link: int | str, label: str = "") -> Request:
    """Build a request that takes a device down."""
    return change(link, up=False, label=label)


def remove(link: int | str, label: str = "") -> Request:
    """Build a request that deletes a device, named by its number or any of its names."""
    return Request(c.RTM_DELLINK, _identify(link), "delete", f"link {label or link}")


def altname(link: int | str, name: str, action: Literal["add", "remove"] = "add", label: str = "") -> Request:
    """Build a request that gives a device a further name, or takes it away (kernel 5.5)."""
    kind = c.RTM_NEWLINKPROP if action == "add" else c.RTM_DELLINKPROP
    flags = c.NLM_F_CREATE | c.NLM_F_EXCL | c.NLM_F_APPEND if action == "add" else 0
    body = _identify(link) + nested(c.IFLA_PROP_LIST, text(c.IFLA_ALT_IFNAME, name))
    return Request(kind, body, action, f"altname {name} of link {label or link}", flags)


def get(link: int | str) -> Request:
    """Build a request for one device, named by its number or any of its names."""
    body = _identify(link) + u32(c.IFLA_EXT_MASK, c.RTEXT_FILTER_SKIP_STATS)
    return Request(c.RTM_GETLINK, body, "look up", f"link {link}")


def read(message: Message) -> LinkRecord:
    """Read an RTM_NEWLINK message."""
    _, _, index, flags, _ = IFINFOMSG.unpack_from(message.body)
    found = parse(message.body, IFINFOMSG.size)
    properties = parse_all(found.get(c.IFLA_PROP_LIST, b""))
    info = parse(found.get(c.IFLA_LINKINFO, b""))
    kind = string(info.get(c.IFLA_INFO_KIND))
    return LinkRecord(
        index=index,
        name=string(found.get(c.IFLA_IFNAME)),
        altnames=tuple(string(value) for kind, value in properties if kind == c.IFLA_ALT_IFNAME),
        alias=string(found.get(c.IFLA_IFALIAS)),
        mac=found.get(c.IFLA_ADDRESS, b"").hex(":"),
        mtu=number(found.get(c.IFLA_MTU)),
        group=number(found.get(c.IFLA_GROUP)),
        up=bool(flags & c.IFF_UP),
        running=bool(flags & c.IFF_LOWER_UP),
        kind=kind,
        master=number(found.get(c.IFLA_MASTER)),
        peer=number(found.get(c.IFLA_LINK)),
        vxlan=_read_vxlan(info.get(c.IFLA_INFO_DATA, b"")) if kind == "vxlan" else None,
        port=info.get(c.IFLA_INFO_SLAVE_DATA, b""),
    )


def find(connection: Connection, link: int | str) -> LinkRecord:
    """Return one device. Raises KernelError, errno ENODEV if there is none."""
    return read(connection.get(get(link)))


def exists(connection: Connection, link: int | str) -> bool:
    """Tell whether there is such a device. Raises KernelError."""
    try:
        find(connection, link)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def dump(connection: Connection) -> list[LinkRecord]:
    """Return all devices of the namespace. Raises KernelError."""
    body = IFINFOMSG.pack(0, 0, 0, 0, 0) + u32(c.IFLA_EXT_MASK, c.RTEXT_FILTER_SKIP_STATS)
    return [read(message) for message in connection.dump(Request(c.RTM_GETLINK, body, "list", "links"))]


def remove_if_there(connection: Connection, link: int | str) -> bool:
    """Delete a device; False if there was none. Raises KernelError."""
    try:
        connection.transact([remove(link)])
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def pack_mac(mac: str) -> bytes:
    """Return a hardware address as its bytes. Raises ValueError for what is none."""
    return bytes.fromhex(mac.replace(":", ""))


_NO_ADDRESS_GENERATION = nested(
    c.IFLA_AF_SPEC, nested(10, attribute(c.IFLA_INET6_ADDR_GEN_MODE, bytes([c.IN6_ADDR_GEN_MODE_NONE])))
)
"""10 is AF_INET6: the address families of IFLA_AF_SPEC are attribute types."""


_TOS_INHERIT = 1
"""IFLA_VXLAN_TOS 1, which is no valid DSCP, stands for the inner header's (vxlan_xmit_one)."""


def _identify(link: int | str) -> bytes:
    if isinstance(link, int):
        return IFINFOMSG.pack(0, 0, link, 0, 0)
    # The two attributes differ in the length they allow: IFLA_IFNAME refuses long alternative names.
    kind = c.IFLA_IFNAME if len(link.encode()) < c.IFNAMSIZ else c.IFLA_ALT_IFNAME
    return IFINFOMSG.pack(0, 0, 0, 0, 0) + text(kind, link)


def _properties(name: str, mac: str, mtu: int, group: int) -> bytes:
    return b"".join(
        (
            text(c.IFLA_IFNAME, name),
            attribute(c.IFLA_ADDRESS, pack_mac(mac)) if mac else b"",
            u32(c.IFLA_MTU, mtu) if mtu else b"",
            u32(c.IFLA_GROUP, group) if group else b"",
        )
    )


def _vxlan_identity(settings: Vxlan) -> bytes:
    """Return what tells VXLAN devices apart: the kernel refuses a second one of the same VNI and port."""
    return u32(c.IFLA_VXLAN_ID, settings.vni) + attribute(c.IFLA_VXLAN_PORT, settings.port.to_bytes(2, "big"))


def _vxlan_settings(settings: Vxlan, uplink: int) -> bytes:
    local = c.IFLA_VXLAN_LOCAL if settings.local.version == 4 else c.IFLA_VXLAN_LOCAL6
    return b"".join(
        (
            u32(c.IFLA_VXLAN_LINK, uplink) if uplink else b"",
            attribute(local, settings.local.packed),
            attribute(c.IFLA_VXLAN_LEARNING, b"\0"),
            attribute(c.IFLA_VXLAN_TOS, bytes([_TOS_INHERIT])),
            attribute(c.IFLA_VXLAN_DF, bytes([c.VXLAN_DF_INHERIT])),
        )
    )


def _read_vxlan(info: bytes) -> VxlanRecord:
    found = parse(info)
    local = found.get(c.IFLA_VXLAN_LOCAL) or found.get(c.IFLA_VXLAN_LOCAL6, b"")
    remote = found.get(c.IFLA_VXLAN_GROUP) or found.get(c.IFLA_VXLAN_GROUP6, b"")
    inherits = (found.get(c.IFLA_VXLAN_DF), found.get(c.IFLA_VXLAN_TOS))
    return VxlanRecord(
        vni=number(found.get(c.IFLA_VXLAN_ID)),
        port=int.from_bytes(found.get(c.IFLA_VXLAN_PORT, b""), "big"),
        local=str(ip_address(local)) if local else "",
        uplink=number(found.get(c.IFLA_VXLAN_LINK)),
        learning=any(found.get(c.IFLA_VXLAN_LEARNING, b"")),
        proxy=any(found.get(c.IFLA_VXLAN_PROXY, b"")),
        remote=str(ip_address(remote)) if remote else "",
        inherits=inherits == (bytes([c.VXLAN_DF_INHERIT]), bytes([_TOS_INHERIT])),
    )


def _new(kind: str, properties: bytes, subject: str, data: bytes = b"") -> Request:
    info = text(c.IFLA_INFO_KIND, kind) + (nested(c.IFLA_INFO_DATA, data) if data else b"")
    body = IFINFOMSG.pack(0, 0, 0, 0, 0) + properties + nested(c.IFLA_LINKINFO, info)
    return Request(c.RTM_NEWLINK, body, f"create {kind}", subject, c.NLM_F_CREATE | c.NLM_F_EXCL)
