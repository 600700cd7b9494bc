"""Settings of a node that are not ours to choose, but that decide what it needs."""

import msgspec

from podway.api.addresses import Address
from podway.plan.overlays import RP_FILTER

ALL_RP_FILTER = RP_FILTER.format(device="all")
NEIGHBOUR_LIMITS = ("net/ipv4/neigh/default/gc_thresh3", "net/ipv6/neigh/default/gc_thresh3")
"""One table a family for the machine, so only its first network namespace has the settings (man 7 arp)."""
USUAL_NEIGHBOURS = 1024

ACCEPT_RA = "net/ipv6/conf/{device}/accept_ra"


class HostFacts(msgspec.Struct, frozen=True):
    """Settings of the node that are not ours to choose, but that decide what it needs: their values as text."""

    all_rp_filter: str = ""
    accept_ra: str = ""
    """The uplink's."""
    rp_filter: str = ""
    """The uplink's."""
    neighbours: tuple[str, ...] = ()
    """The values of NEIGHBOUR_LIMITS that this namespace shows."""
    bridge_netfilter: tuple[str, ...] = ()
    """Those of podway.plan.bridge.BRIDGE_NETFILTER that this kernel has."""
    addresses: tuple[Address, ...] = ()
    """All of the node, but for those on devices of ours; read only where they are asked for."""

    @property
    def strict(self) -> bool:
        """Whether the uplink takes a packet only if its answer would go back there (rp_filter 1)."""
        return "1" in {self.all_rp_filter, self.rp_filter} and "2" not in {self.all_rp_filter, self.rp_filter}

    @property
    def loose(self) -> bool:
        """Whether strict rp_filter on a pod's link is overruled.

        The kernel takes the larger of a link's setting and that of `all`: with 2 (loose) there, strict becomes
        loose (Documentation/networking/ip-sysctl.rst).
        """
        return self.all_rp_filter == "2"

    @property
    def most_neighbours(self) -> int:
        """How many neighbours the kernel keeps."""
        return min((int(value) for value in self.neighbours if value.isdecimal()), default=USUAL_NEIGHBOURS)

    @property
    def loses_router_advertisements(self) -> bool:
        """Whether the uplink, once it forwards IPv6, stops to listen to routers (accept_ra 1, same document)."""
        return self.accept_ra == "1"


USUAL_HOST = HostFacts()
"""A node of which nothing of that kind is known."""
