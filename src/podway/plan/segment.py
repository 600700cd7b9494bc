"""Services' addresses that a node answers for on its segment, by ARP and neighbour discovery.

The kernel answers, so that addresses stay where they are while the agent is away: by proxy entries on the uplink.
They make no address the node's own, so nothing that listens on the node is reached by one. For IPv4 the kernel
answers only if its route to the address leads by another device (arp_process in net/ipv4/arp.c), so there is one:
a bridge without ports, on which packets end that nobody translated.
"""

from collections.abc import Collection

from podway.api.addresses import Address, Family, host_network
from podway.plan.objects import SEGMENT_DEVICE, Device, NodePlan, Proxy, Route, Scope, Sysctl
from podway.plan.uplink import Uplink

_MAC = "02:70:77:6c:62:01"

_SCOPES: dict[int, Scope] = {4: "link", 6: "global"}

_SETTINGS: dict[Family, dict[str, str]] = {
    # An answer by proxy is held back for up to 0.8 s otherwise.
    Family.IPV4: {"net/ipv4/neigh/{uplink}/proxy_delay": "0"},
    Family.IPV6: {"net/ipv6/conf/{uplink}/proxy_ndp": "1", "net/ipv6/neigh/{uplink}/proxy_delay": "0"},
}


def plan_segment(addresses: Collection[Address], uplink: Uplink) -> NodePlan:
    """Return what has the kernel answer for these addresses on the uplink."""
    if not addresses:
        return NodePlan()
    every = sorted(addresses, key=lambda one: (one.version, int(one)))
    families = sorted({Family.of(address) for address in every})
    return NodePlan(
        devices=(Device(SEGMENT_DEVICE, "bridge", _MAC, uplink.mtu),),
        sysctls=tuple(
            Sysctl(path.format(uplink=uplink.device), value)
            for family in families
            for path, value in _SETTINGS[family].items()
        ),
        proxies=tuple(Proxy(uplink.device, address) for address in every),
        routes=tuple(
            Route(host_network(address), device=SEGMENT_DEVICE, scope=_SCOPES[address.version])
            for address in every
        ),
    )
