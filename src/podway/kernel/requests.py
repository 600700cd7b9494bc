"""Requests that change the network of a namespace: the door for whoever builds one, as a lab does.

Each function returns a Request, for `Connection.transact` (podway.kernel.network).
"""

from podway.kernel.netlink import Request
from podway.kernel.rtnl.addresses import add as add_address
from podway.kernel.rtnl.links import LOOPBACK, Peer, new_bridge, new_veth
from podway.kernel.rtnl.links import change as change_link
from podway.kernel.rtnl.links import remove as remove_link
from podway.kernel.rtnl.links import set_down as set_link_down
from podway.kernel.rtnl.links import set_up as set_link_up
from podway.kernel.rtnl.neighbours import add as add_neighbour
from podway.kernel.rtnl.routes import add as add_route
from podway.kernel.rtnl.routes import remove as remove_route

__all__ = [
    "LOOPBACK",
    "Peer",
    "Request",
    "add_address",
    "add_neighbour",
    "add_route",
    "change_link",
    "new_bridge",
    "new_veth",
    "remove_link",
    "remove_route",
    "set_link_down",
    "set_link_up",
]
