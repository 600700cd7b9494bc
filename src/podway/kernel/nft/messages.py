"""What all messages to nf_tables share (include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h)."""

import struct

from podway.kernel.netlink import Request
from podway.kernel.netlink import constants as c
from podway.plan.objects import NftFamily

_NFGENMSG = struct.Struct(">BBH")
"""family, version, resource id; in network byte order, as all of nfnetlink"""

_PROTOCOLS: dict[NftFamily, int] = {
    "inet": c.NFPROTO_INET,
    "ip": c.NFPROTO_IPV4,
    "netdev": c.NFPROTO_NETDEV,
    "bridge": c.NFPROTO_BRIDGE,
    "ip6": c.NFPROTO_IPV6,
}
FAMILIES = {number: family for family, number in _PROTOCOLS.items()}
"""nft's families by their numbers; there is one for ARP, too, which has no tables of ours."""

BODY = _NFGENMSG.size
"""Where a message's attributes begin."""

BEGIN, END = (
    Request(kind, _NFGENMSG.pack(0, 0, c.NFNL_SUBSYS_NFTABLES), verb, "a transaction of nftables")
    for kind, verb in ((c.NFNL_MSG_BATCH_BEGIN, "begin"), (c.NFNL_MSG_BATCH_END, "end"))
)


def message_type(message: int) -> int:
    """Return the netlink type of one of nf_tables' messages."""
    return c.NFNL_SUBSYS_NFTABLES << 8 | message


def header(family: NftFamily | None = None) -> bytes:
    """Return what stands before the attributes of a message about this family, or all of them."""
    return _NFGENMSG.pack(_PROTOCOLS[family] if family else c.NFPROTO_UNSPEC, 0, 0)
