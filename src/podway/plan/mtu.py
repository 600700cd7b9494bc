"""How large a pod's packets may be: what every path carries, on which they may become longer."""

from collections.abc import Iterable

from podway.api.addresses import Address, Family
from podway.api.kinds.ip_pool import IPPool
from podway.cluster.view import ClusterView
from podway.plan.fabric import device_mtu, overhead, pool_modes, possible_modes
from podway.plan.sent_modes import NOTHING_SENT, SentModes
from podway.plan.uplink import Uplink


def pool_mtu(view: ClusterView, uplink: Uplink, pool: IPPool, sent: SentModes = NOTHING_SENT) -> int:
    """Return the MTU for a pool's pods in bytes: what every path carries, or less if the cluster says so.

    `sent` are the modes in which this node may still send, by pool: while one that makes packets longer is
    among them, the MTU stays low.
    """
    carried = uplink.mtu - pool_overhead(view, uplink, pool, sent)
    return min(view.config.mtu, carried) if view.config.mtu else carried


def pool_overhead(view: ClusterView, uplink: Uplink, pool: IPPool, sent: SentModes = NOTHING_SENT) -> int:
    """Return by how many bytes a pool's packets may become longer on their way, between any two nodes."""
    modes = {*pool_modes(view, pool.spec.encapsulation), *sent.get(pool.metadata.name, ())}
    if "vxlan" in modes and "vxlan" not in possible_modes(uplink.node_addresses):
        modes.add("vxlan6")  # this node may not be registered yet
    return max(map(overhead, modes), default=0)


def pod_mtu(
    view: ClusterView, uplink: Uplink, addresses: Iterable[Address] | None = None, sent: SentModes = NOTHING_SENT
) -> int:
    """Return the MTU of a pod's link in bytes, which its addresses' pools decide; None stands for all pools.

    With IPv6 it is at least what that needs: the node tells IPv4 what of that is carried to other nodes.
    """
    pools = list(view.pools.values())
    if addresses is not None:
        wanted = tuple(addresses)
        pools = [pool for pool in pools if any(address in pool.network for address in wanted)]
    mtus = [pool_mtu(view, uplink, pool, sent) for pool in pools]
    mtu = min(mtus, default=min(view.config.mtu, uplink.mtu) if view.config.mtu else uplink.mtu)
    return device_mtu(mtu) if any(pool.family is Family.IPV6 for pool in pools) else mtu
