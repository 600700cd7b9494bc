"""What somebody else changed in a node's namespace, as the kernel tells it.

Events say where to look, not what to do: the engine compares and repairs. The kernel is silent about some changes
(IPv4 routes that go with a device or with their preferred source; most sysctls), so a full comparison now and then
still is needed.
"""

import errno
import select
import socket
from collections.abc import Collection, Iterator
from typing import Literal, Self, TypeAlias

import msgspec

from podway.api.addresses import Network
from podway.errors import KernelError
from podway.kernel import leases
from podway.kernel.netlink import Connection, Message
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import S32, TCMSG, parse, string
from podway.kernel.netlink.connection import messages, open_socket
from podway.kernel.rtnl import addresses, forwarding, links, neighbours, routes
from podway.plan.objects import DEVICE_GROUP, MAIN_TABLE, ROUTE_PROTOCOL, is_our_table

_RECEIVE_BUFFER = 8 << 20
_DATAGRAM = 1 << 16
_ROUTE_GROUPS = (
    c.RTNLGRP_LINK,
    c.RTNLGRP_NEIGH,
    c.RTNLGRP_TC,
    c.RTNLGRP_IPV4_IFADDR,
    c.RTNLGRP_IPV4_ROUTE,
    c.RTNLGRP_IPV6_IFADDR,
    c.RTNLGRP_IPV6_ROUTE,
    c.RTNLGRP_IPV4_NETCONF,
    c.RTNLGRP_IPV6_NETCONF,
)
_REMOVALS = {
    c.RTM_DELLINK,
    c.RTM_DELADDR,
    c.RTM_DELROUTE,
    c.RTM_DELNEIGH,
    c.RTM_DELNETCONF,
    c.RTM_DELQDISC,
    c.RTM_DELTFILTER,
}
_CLSACT = 0xFFFF
"""Major number of the qdisc that filters without queueing hang on (TC_H_CLSACT)."""
_NFTA_NAME = 1
"""Every nf_tables message but those of a table calls its table attribute 1; a table's own name is 1, too."""
_NFGENMSG_BYTES = 4
_NETCONFMSG_BYTES = 4
"""struct netconfmsg is one byte, and attributes begin at a multiple of four."""
_NETCONF_NAMES = {c.NETCONFA_IFINDEX_ALL: "all", c.NETCONFA_IFINDEX_DEFAULT: "default"}
_NFT_REMOVALS = {
    c.NFT_MSG_DELTABLE,
    c.NFT_MSG_DELCHAIN,
    c.NFT_MSG_DELRULE,
    c.NFT_MSG_DELSET,
    c.NFT_MSG_DELSETELEM,
    c.NFT_MSG_DELOBJ,
    c.NFT_MSG_DELFLOWTABLE,
}

EventKind: TypeAlias = Literal["link", "address", "route", "neighbour", "forwarding", "filter", "sysctl", "nft"]


class Event(msgspec.Struct, frozen=True):
    """One change. `device` is a name, empty where none is concerned.

    `subject` is what changed in words, such as `10.244.1.0/24`. `ours` tells that the object bears our mark, or
    might have replaced one that did; `learned` that a route of BIRD's might have been removed or replaced;
    `uplink` that another device or address may be the one that reaches other nodes (podway.plan.uplink_choice).
    """

    kind: EventKind
    subject: str
    removed: bool
    ours: bool
    device: str = ""
    learned: bool = False
    uplink: bool = False


class Resync(msgspec.Struct, frozen=True):
    """Events were lost (ENOBUFS): compare everything."""


class Watcher:
    """Changes in one namespace (None: the calling thread's) that others than `own_ports` made.

    `own_ports` are the netlink port ids of our own connections (`Kernel.ports`). Its `fileno` is readable
    when there is something to read. Raises KernelError.
    """

    blocks: Collection[tuple[Network, int]] | None = None
    """Ranges, and the prefix length of the routes in them, in which BIRD's routes matter; None: everywhere.

    Of other networks it may learn tens of thousands, and these may come and go many times a second.
    """

    def __init__(self, netns_fd: int | None = None, *own_ports: Collection[int]) -> None:
        """Watch a namespace (None: the calling thread's); `own_ports` may grow."""
        self._own = own_ports
        self._links: dict[int, links.LinkRecord] = {}
        self._poll = select.epoll()
        self._sockets: list[socket.socket] = []
        try:
            self._route = self._listen(c.NETLINK_ROUTE, netns_fd, _ROUTE_GROUPS)
            self._netfilter = self._listen(c.NETLINK_NETFILTER, netns_fd, (c.NFNLGRP_NFTABLES,))
            with Connection(netns_fd) as connection:
                for link in links.dump(connection):
                    self._links[link.index] = link
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        for sock in self._sockets:
            sock.close()
        self._poll.close()

    def fileno(self) -> int:
        """Return a descriptor to wait on."""
        return self._poll.fileno()

    def read(self) -> list[Event | Resync]:
        """Return what happened since the last call, without waiting. Raises KernelError."""
        events: list[Event | Resync] = []
        for message in self._drain(self._route, events):
            event = self._route_event(message)
            # With a device of ours, or its address, routes of BIRD's may go: that is news though it was our doing.
            if event and (not self._is_own(message) or (event.learned and event.kind != "route")):
                events.append(event)
        for message in self._drain(self._netfilter, events):
            event = None if self._is_own(message) else _nft_event(message)
            if event and event not in events:
                events.append(event)
        return events

    def _is_own(self, message: Message) -> bool:
        return any(message.port in ports for ports in self._own)

    def _listen(self, protocol: int, netns_fd: int | None, groups: Collection[int]) -> socket.socket:
        sock = open_socket(protocol, netns_fd, _RECEIVE_BUFFER)
        self._sockets.append(sock)
        sock.setblocking(False)
        try:
            for group in groups:
                sock.setsockopt(c.SOL_NETLINK, c.NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            raise KernelError("watch the kernel's changes", error.errno or errno.EIO) from error
        self._poll.register(sock, select.EPOLLIN)
        return sock

    def _drain(self, sock: socket.socket, events: list[Event | Resync]) -> Iterator[Message]:
        while True:
            try:
                datagram = sock.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("read the kernel's changes", error.errno or errno.EIO) from error
                events.append(Resync())
                continue
            yield from messages(datagram)

    def _route_event(self, message: Message) -> Event | None:
        removed = message.type in _REMOVALS
        match message.type:
            case c.RTM_NEWLINK | c.RTM_DELLINK:
                return self._link_event(message, removed)
            case c.RTM_NEWADDR | c.RTM_DELADDR:
                address = addresses.read(message)
                return self._on_device("address", str(address.address), removed, address.index)
            case c.RTM_NEWROUTE | c.RTM_DELROUTE:
                return self._route_change(message, removed)
            case c.RTM_NEWNEIGH | c.RTM_DELNEIGH:
                return self._neighbour_event(message, removed)
            case c.RTM_NEWNETCONF | c.RTM_DELNETCONF:
                return self._netconf_event(message, removed)
            case c.RTM_NEWQDISC | c.RTM_DELQDISC | c.RTM_NEWTFILTER | c.RTM_DELTFILTER:
                return self._filter_event(message, removed)
        return None

    def _link_event(self, message: Message, removed: bool) -> Event | None:
        if message.body[0] == socket.AF_BRIDGE:
            return None  # a bridge tells of its ports in messages of its own
        link = links.read(message)
        before = self._links.get(link.index)
        # One that has just lost its mark was ours until now.
        ours = _is_ours(link) or _is_ours(before)
        if removed:
            self._links.pop(link.index, None)
        else:
            self._links[link.index] = link
        # The IPv4 routes through it go with it, and the kernel does not tell.
        lost = (_may_carry(link) or _may_carry(before)) and (removed or not link.up)
        uplink = not ours and (removed or before is None or _place(link) != _place(before))
        return Event("link", link.name, removed, ours, link.name, learned=lost, uplink=uplink)

    def _route_change(self, message: Message, removed: bool) -> Event | None:
        default = message.body[1] == 0  # it may make another device the uplink, whoever tells of it
        known = self.blocks is not None and not default
        if known and routes.is_of(message, c.RTPROT_BIRD, elsewhere_than=self.blocks or ()):
            return None
        route = routes.read(message)
        # Who replaces a route is told; whose it was is not. BIRD leaves ours alone: it has its own metric.
        by_bird = route.protocol == c.RTPROT_BIRD
        changed = bool(message.flags & c.NLM_F_REPLACE) and not removed
        replaced = changed and not by_bird
        device = self._name(route.index)
        subject = str(route.destination)
        ours = route.protocol == ROUTE_PROTOCOL or replaced
        learned = changed or (by_bird and removed)
        uplink = not route.destination.prefixlen and route.table == MAIN_TABLE
        return Event("route", subject, removed, ours, device, learned=learned, uplink=uplink)

    def _neighbour_event(self, message: Message, removed: bool) -> Event | None:
        if message.body[0] == forwarding.AF_BRIDGE:
            return self._forwarding_event(message, removed)
        if message.body[0] not in {socket.AF_INET, socket.AF_INET6}:
            return None
        neighbour = neighbours.read(message)
        link = self._links.get(neighbour.index)
        # The kernel's own (port 0) tale of an entry that ages is no change of ours: ours are permanent.
        ours = _is_ours(link) and (neighbour.permanent or message.port != 0)
        return Event("neighbour", str(neighbour.address), removed, ours, link.name if link else "")

    def _forwarding_event(self, message: Message, removed: bool) -> Event | None:
        entry = forwarding.read(message)
        link = self._links.get(entry.index)
        if link is None or link.kind != "vxlan":
            return None  # what a bridge learns
        return Event("forwarding", entry.mac, removed, _is_ours(link), link.name)

    def _filter_event(self, message: Message, removed: bool) -> Event | None:
        _, index, handle, parent, _ = TCMSG.unpack_from(message.body)
        if _CLSACT not in {handle >> 16, parent >> 16}:
            return None
        # Whose filters went with their qdisc, or in a flush, is not told.
        return Event("filter", f"clsact of {self._name(index)}", removed, True, self._name(index))

    def _netconf_event(self, message: Message, removed: bool) -> Event | None:
        index = parse(message.body, _NETCONFMSG_BYTES).get(c.NETCONFA_IFINDEX)
        if index is None:
            return None
        number: int = S32.unpack(index)[0]
        name = _NETCONF_NAMES.get(number) or self._name(number)
        if not name:
            return None  # a device that is just being made, and told of next, or one that is gone
        family = "ipv4" if message.body[0] == socket.AF_INET else "ipv6"
        return self._on_device("sysctl", f"net/{family}/conf/{name}", removed, number)

    def _on_device(self, kind: EventKind, subject: str, removed: bool, index: int) -> Event:
        link = self._links.get(index)
        # With its last IPv4 address a device's IPv4 routes go (fib_disable_ip), and the kernel does not tell.
        lost = kind == "address" and removed and _may_carry(link)
        ours = _is_ours(link)
        uplink = kind == "address" and not ours
        return Event(kind, subject, removed, ours, link.name if link else "", learned=lost, uplink=uplink)

    def _name(self, index: int) -> str:
        link = self._links.get(index)
        return link.name if link else ""


def _place(link: links.LinkRecord) -> tuple[object, ...]:
    """Return what of a device that is not ours decides if and how it is the uplink."""
    return (link.name, link.altnames, link.mtu, link.up, link.master, link.group)


def _may_carry(link: links.LinkRecord | None) -> bool:
    """Tell whether a device is one of ours that routes to other nodes lead through."""
    return link is not None and link.group == DEVICE_GROUP


def _is_ours(link: links.LinkRecord | None) -> bool:
    return link is not None and (_may_carry(link) or leases.is_pod_link(link))


def _nft_event(message: Message) -> Event | None:
    subsystem, kind = message.type >> 8, message.type & 0xFF
    if subsystem != c.NFNL_SUBSYS_NFTABLES or kind == c.NFT_MSG_NEWGEN:
        return None
    table = string(parse(message.body, _NFGENMSG_BYTES).get(_NFTA_NAME))
    return Event("nft", table, kind in _NFT_REMOVALS, is_our_table(table))
