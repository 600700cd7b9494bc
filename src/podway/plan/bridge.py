"""The bridge of a node, `cni0`: which blocks its pods live in, and the device with its addresses and settings.

The bridge has the first address of each of these blocks as /32 (/128), so that no connected route stands beside
the block's blackhole route: that one is what BIRD advertises to the others, and every pod has a host route through
the bridge, narrower than both. So routes on a node are the same whichever way its pods are attached.
"""

from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_interface

from podway.api.addresses import Family, Interface, Network, gateway_of, host_network
from podway.api.lease import Lease
from podway.cluster.view import ClusterView
from podway.plan.objects import BRIDGE_DEVICE, Device, LinkAddress, NodePlan, Sysctl
from podway.plan.wiring import GATEWAY_MAC, gateway_interface, home

SETTINGS: dict[Family, dict[str, str]] = {
    Family.IPV4: {
        f"net/ipv4/conf/{BRIDGE_DEVICE}/forwarding": "1",
        # Strict: nobody on the bridge sends from an address that is not on the bridge.
        f"net/ipv4/conf/{BRIDGE_DEVICE}/rp_filter": "1",
        # What the node answers for a routed pod of the same block it answers at once.
        f"net/ipv4/neigh/{BRIDGE_DEVICE}/proxy_delay": "0",
    },
    Family.IPV6: {
        f"net/ipv6/conf/{BRIDGE_DEVICE}/forwarding": "1",
        f"net/ipv6/conf/{BRIDGE_DEVICE}/proxy_ndp": "1",
        f"net/ipv6/neigh/{BRIDGE_DEVICE}/proxy_delay": "0",
    },
}

BRIDGE_NETFILTER = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
"""Whether the rules of the IP layer see what crosses a bridge of this namespace; there only with br_netfilter."""


def lan_of(
    view: ClusterView, node: str, leases: Iterable[Lease], withdrawn: Collection[Network] = ()
) -> tuple[Network, ...]:
    """Return the blocks of a node that have the bridge's pods among theirs; empty if it needs no bridge.

    Those are the blocks of pools with `attach: bridge`, and those of pods that were attached so before their
    pool changed.
    """
    own = [block for block in view.blocks_of(node) if block.network not in withdrawn]
    bridged = {name for name, pool in view.pools.items() if pool.spec.attach == "bridge"}
    asked = {block.network for block in own if block.spec.pool in bridged}
    networks = [block.network for block in own]
    held = (address for lease in leases if lease.attach == "bridge" for address in lease.addresses)
    lan = asked | {home(address, networks) for address in held}
    return tuple(sorted(lan, key=lambda block: (block.version, int(block.network_address))))


def plan_bridge(lan: Sequence[Network], mtu: int, netfilter: Iterable[str] = ()) -> NodePlan:
    """Return the bridge for these blocks; `mtu` is its pods', `netfilter` those of BRIDGE_NETFILTER that exist."""
    if not lan:
        return NodePlan()
    families = sorted({Family.of(block) for block in lan})
    link_local = [LinkAddress(BRIDGE_DEVICE, gateway_interface(Family.IPV6), "link")]
    return NodePlan(
        devices=(Device(BRIDGE_DEVICE, "bridge", GATEWAY_MAC, mtu),),
        addresses=(
            *(LinkAddress(BRIDGE_DEVICE, _alone(block)) for block in lan),
            # Every IPv6 interface has a link-local address (RFC 4291, section 2.8), and routes to such.
            *(link_local if Family.IPV6 in families else ()),
        ),
        sysctls=(
            *(Sysctl(path, value) for family in families for path, value in SETTINGS[family].items()),
            *(Sysctl(path, "1") for path in netfilter),
        ),
    )


def _alone(block: Network) -> Interface:
    return ip_interface(host_network(gateway_of(block)).with_prefixlen)
