"""What the host's settings are that a plan depends on, read from the kernel."""

from podway.kernel.interface import NodeKernel
from podway.plan.bridge import BRIDGE_NETFILTER
from podway.plan.host_facts import ACCEPT_RA, ALL_RP_FILTER, NEIGHBOUR_LIMITS, HostFacts
from podway.plan.overlays import RP_FILTER


def read_host(kernel: NodeKernel, uplink: str, *, addresses: bool = False) -> HostFacts:
    """Return the settings of a node whose uplink is the device of this name; its addresses if they are wanted.

    Raises KernelError.
    """
    accept_ra, rp_filter = ACCEPT_RA.format(device=uplink), RP_FILTER.format(device=uplink)
    values = kernel.sysctls([ALL_RP_FILTER, accept_ra, rp_filter, *BRIDGE_NETFILTER, *NEIGHBOUR_LIMITS])
    return HostFacts(
        all_rp_filter=values.get(ALL_RP_FILTER, ""),
        accept_ra=values.get(accept_ra, ""),
        rp_filter=values.get(rp_filter, ""),
        neighbours=tuple(values[path] for path in NEIGHBOUR_LIMITS if path in values),
        bridge_netfilter=tuple(path for path in BRIDGE_NETFILTER if path in values),
        addresses=kernel.foreign_addresses() if addresses else (),
    )
