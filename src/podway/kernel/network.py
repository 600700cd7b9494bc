"""What the network of a namespace holds, as its kernel tells: the door for whoever reads and changes nothing.

A Connection is opened for one namespace; each `dump_…` returns the records of all objects of one kind, and raises
KernelError. What the records mean is told beside them, in podway.kernel.rtnl.
"""

from podway.kernel.netlink import Connection
from podway.kernel.netlink.constants import RTPROT_BIRD, RTPROT_KERNEL
from podway.kernel.rtnl.addresses import AddressRecord
from podway.kernel.rtnl.addresses import dump as dump_addresses
from podway.kernel.rtnl.forwarding import dump as dump_forwarding
from podway.kernel.rtnl.links import LinkRecord
from podway.kernel.rtnl.links import dump as dump_links
from podway.kernel.rtnl.links import find as find_link
from podway.kernel.rtnl.neighbour_tables import dump as dump_neighbour_tables
from podway.kernel.rtnl.neighbours import dump as dump_neighbours
from podway.kernel.rtnl.routes import Lookup, NextHop, RouteRecord
from podway.kernel.rtnl.routes import dump as dump_routes
from podway.kernel.rtnl.routes import lookup as lookup_route

__all__ = [
    "RTPROT_BIRD",
    "RTPROT_KERNEL",
    "AddressRecord",
    "Connection",
    "LinkRecord",
    "Lookup",
    "NextHop",
    "RouteRecord",
    "dump_addresses",
    "dump_forwarding",
    "dump_links",
    "dump_neighbour_tables",
    "dump_neighbours",
    "dump_routes",
    "find_link",
    "lookup_route",
]
