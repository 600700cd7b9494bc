"""The kernel's tracking of connections: those that were led to who serves no more are forgotten.

The kernel translates what belongs to a known connection as it did its first packet. TCP ends by itself; of UDP a
sender that goes on never lets the connection end, and hears of nothing. See nf_conntrack_netlink.c.
"""

import struct
from collections.abc import Iterator
from ipaddress import ip_address

from podway.api.addresses import Address, Family
from podway.kernel.netlink import Connection, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import attribute, nested, parse, u32

UDP = 17

_HEADER = struct.Struct(">BBH")
"""struct nfgenmsg: family, version, resource id."""
_PORT = struct.Struct(">H")
_FLAGS = c.CTA_FILTER_FLAG_IP_DST | c.CTA_FILTER_FLAG_PROTO_NUM | c.CTA_FILTER_FLAG_PROTO_DST_PORT
_NUMBERS = {Family.IPV4: c.NFPROTO_IPV4, Family.IPV6: c.NFPROTO_IPV6}
_SOURCE = {Family.IPV4: c.CTA_IP_V4_SRC, Family.IPV6: c.CTA_IP_V6_SRC}
_DESTINATION = {Family.IPV4: c.CTA_IP_V4_DST, Family.IPV6: c.CTA_IP_V6_DST}


def forget_udp(connection: Connection, address: Address, port: int, keep: frozenset[tuple[Address, int]]) -> int:
    """Forget UDP connections to an address and port, but for those that are led to who is to be kept.

    Returns how many there were. Raises KernelError.
    """
    family = Family.of(address)
    stale = [tuple_ for tuple_, behind in _connections(connection, address, port) if behind not in keep]
    head = _HEADER.pack(_NUMBERS[family], 0, 0)
    kind = c.NFNL_SUBSYS_CTNETLINK << 8 | c.IPCTNL_MSG_CT_DELETE
    what = f"tracked connection to {address} port {port}"
    requests = [
        Request(kind, head + attribute(c.CTA_TUPLE_ORIG | c.NLA_F_NESTED, one), "forget", what) for one in stale
    ]
    connection.attempt(requests)  # what ended meanwhile is forgotten already
    return len(stale)


def _connections(
    connection: Connection, address: Address, port: int
) -> Iterator[tuple[bytes, tuple[Address, int]]]:
    """Yield connections by the tuple of their first packet, with who answers."""
    family = Family.of(address)
    ends = nested(c.CTA_TUPLE_IP, attribute(_DESTINATION[family], address.packed))
    number = attribute(c.CTA_PROTO_NUM, bytes((UDP,)))
    ports = nested(c.CTA_TUPLE_PROTO, number, attribute(c.CTA_PROTO_DST_PORT, _PORT.pack(port)))
    flags = (u32(c.CTA_FILTER_ORIG_FLAGS, _FLAGS), u32(c.CTA_FILTER_REPLY_FLAGS, 0))
    head = _HEADER.pack(_NUMBERS[family], 0, 0)
    body = head + nested(c.CTA_TUPLE_ORIG, ends, ports) + nested(c.CTA_FILTER, *flags)
    kind = c.NFNL_SUBSYS_CTNETLINK << 8 | c.IPCTNL_MSG_CT_GET
    request = Request(kind, body, "list", f"tracked connections to {address} port {port}")
    for answer in connection.dump(request):
        told = parse(answer.body, _HEADER.size)
        reply = parse(told[c.CTA_TUPLE_REPLY])
        source = parse(reply[c.CTA_TUPLE_IP])[_SOURCE[family]]
        number_there = parse(reply[c.CTA_TUPLE_PROTO])[c.CTA_PROTO_SRC_PORT]
        yield told[c.CTA_TUPLE_ORIG], (ip_address(source), _PORT.unpack(number_there)[0])
