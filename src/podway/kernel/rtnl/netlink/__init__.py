"""AF_NETLINK as rtnetlink speaks it: a codec and a connection (man 7 netlink, man 7 rtnetlink)."""

from podway.kernel.rtnl.netlink.codec import Request
from podway.kernel.rtnl.netlink.connection import Connection, Message

__all__ = ["Connection", "Message", "Request"]
