"""The kinds of kernel object that the engine drives: what is ours of each, and how it is changed.

Ours is what bears our mark: devices by their group, pod links by their alternative name or group
(podway.kernel.leases), addresses, permanent neighbours and forwarding entries on those, routes of our protocol
number, nftables tables of our name. Of what has no place for a mark (sysctls, addresses and neighbours on other
links) only what the plan names is looked at.

A pod link that the plan does not name is left alone with all that hangs on it: it may be that of a pod wired
after the plan was made. It goes in one piece, by `unwire`.
"""

from podway.kernel.kinds.devices import Devices
from podway.kernel.kinds.entries import Addresses, Forwarding, Neighbours
from podway.kernel.kinds.inventory import Inventory
from podway.kernel.kinds.pod_links import PodLinks
from podway.kernel.kinds.ports import Ports, Proxies
from podway.kernel.kinds.routes import Routes
from podway.kernel.kinds.sysctls import Sysctls
from podway.kernel.kinds.tables import NftElements, NftTables

__all__ = [
    "Addresses",
    "Devices",
    "Forwarding",
    "Inventory",
    "Neighbours",
    "NftElements",
    "NftTables",
    "PodLinks",
    "Ports",
    "Proxies",
    "Routes",
    "Sysctls",
]
