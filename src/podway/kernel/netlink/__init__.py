"""AF_NETLINK as rtnetlink and nfnetlink speak it: a codec and a connection (man 7 netlink, man 7 rtnetlink)."""

from podway.kernel.netlink.codec import Request
from podway.kernel.netlink.connection import Connection, Message

__all__ = ["Connection", "Message", "Request"]
