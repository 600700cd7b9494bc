"""Addresses that a node answers for on a device, by ARP and neighbour discovery (ip-neighbour(8), "proxy")."""

from socket import AF_INET, AF_INET6

import msgspec

from podway.api.addresses import Address, Family
from podway.kernel.netlink import Connection, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import NDMSG, attribute, parse
from podway.kernel.rtnl.addresses import unpack
from podway.plan.objects import ROUTE_PROTOCOL, Proxy


class ProxyRecord(msgspec.Struct, frozen=True):
    """A proxy entry as the kernel has it; `index` is its device, `protocol` who made it (0: nobody says)."""

    index: int
    address: Address
    protocol: int = 0


def add(proxy: Proxy, index: int) -> Request:
    """Build a request for a proxy entry."""
    return Request(c.RTM_NEWNEIGH, _body(proxy, index), "add", proxy, c.NLM_F_CREATE | c.NLM_F_REPLACE)


def remove(proxy: Proxy, index: int) -> Request:
    """Build a request that removes a proxy entry."""
    return Request(c.RTM_DELNEIGH, _body(proxy, index), "remove", proxy)


def dump(connection: Connection) -> list[ProxyRecord]:
    """Return all IPv4 and IPv6 proxy entries of the namespace. Raises KernelError."""
    found = []
    for af in (AF_INET, AF_INET6):
        body = NDMSG.pack(af, 0, 0, c.NTF_PROXY, 0)
        for message in connection.dump(Request(c.RTM_GETNEIGH, body, "list", "proxy entries")):
            told = parse(message.body, NDMSG.size)
            protocol = told.get(c.NDA_PROTOCOL, b"\0")[0]
            found.append(ProxyRecord(NDMSG.unpack_from(message.body)[1], unpack(told[c.NDA_DST]), protocol))
    return found


def _body(proxy: Proxy, index: int) -> bytes:
    af = Family.of(proxy.address).af
    return (
        NDMSG.pack(af, index, c.NUD_PERMANENT, c.NTF_PROXY, 0)
        + attribute(c.NDA_DST, proxy.address.packed)
        + attribute(c.NDA_PROTOCOL, bytes([ROUTE_PROTOCOL]))
    )
