"""The overlay devices of a node, and what stands on them: the entries for all other nodes."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_interface

from podway.api.addresses import Family
from podway.cluster.view import ClusterView
from podway.plan.fabric import (
    DEVICES,
    TUNNELS,
    Overlay,
    TunnelMode,
    device_mtu,
    endpoint,
    overhead,
    overlay,
    required_modes,
)
from podway.plan.objects import (
    Device,
    ForwardingEntry,
    IpipTunnel,
    LinkAddress,
    Neighbour,
    NodePlan,
    Sysctl,
    TunnelEndpoint,
    Vxlan,
)
from podway.plan.senders import ipip_senders, ipip_sources, vxlan_guard, vxlan_senders
from podway.plan.uplink import Uplink
from podway.plan.wiring import gateway_interface

DEVICE_SYSCTLS = {
    # Packets for other namespaces come in here.
    "net/ipv4/conf/{device}/forwarding": "1",
    # Gateways are IPv6 link-local addresses, in IPv4 too.
    "net/ipv6/conf/{device}/disable_ipv6": "0",
}


RP_FILTER = "net/ipv4/conf/{device}/rp_filter"


def plan_overlays(view: ClusterView, node: str, uplink: Uplink, *, strict: bool = False) -> NodePlan:
    """Return the devices of the modes that a node holds.

    A packet may be answered in another mode than it came in, so no device asks for the way back (rp_filter 0:
    that look costs each packet a little) unless the node as a whole does: if that is `strict`, they are loose.
    A tunnel mode that the node's addresses do not allow (IPIP without IPv4) is left out.
    """
    held = held_modes(view, node, uplink)
    made = tuple(_device(view, uplink, me, mode) for mode, me in held.items())
    guards = [vxlan_guard(view, node, device.vxlan) for device in made if device.vxlan]
    ipip = held.get("ipip")
    return NodePlan(
        devices=made,
        addresses=tuple(
            LinkAddress(DEVICES[mode], address, "link")
            for mode, me in held.items()
            # On a device without IPv4 address the kernel takes loose rp_filter for strict (fib_validate_source),
            # and would drop what another node itself sends to pods, since it is answered by the uplink.
            for address in (ip_interface(f"{me.gateway}/64"), gateway_interface(Family.IPV4))
        ),
        tunnels=(IpipTunnel(DEVICES["ipip"], uplink.device, ipip.endpoint),) if ipip else (),
        sources=ipip_sources(view, node, ipip.endpoint) if ipip else (),
        tables=tuple(table for guard in guards for table in guard.tables),
        elements=tuple(element for guard in guards for element in guard.elements),
        sysctls=tuple(
            Sysctl(path.format(device=device.name), value)
            for device in made
            for path, value in {**DEVICE_SYSCTLS, RP_FILTER: "2" if strict else "0"}.items()
        ),
    )


def overlay_entries(
    view: ClusterView, node: str, held: Mapping[TunnelMode, Overlay], others: Iterable[str]
) -> NodePlan:
    """Return the entries for other nodes that stand on a node's overlay devices, those of the modes it holds.

    A device has those to all nodes that it can reach: which of them are reached in its mode changes, and a route
    must find its entry there.
    """
    if not held:
        return NodePlan()
    names = [name for name in others if name != node]
    known = [other for other in map(view.nodes.get, names) if other is not None]
    ends: dict[TunnelMode, list[Overlay]] = {}
    for mode in held:
        addresses = (endpoint(mode, other.internal_addresses) for other in known)
        ends[mode] = [overlay(address) for address in addresses if address is not None]
    vxlan = [mode for mode in held if TUNNELS[mode].encapsulation == "vxlan"]
    return NodePlan(
        neighbours=tuple(Neighbour(DEVICES[mode], end.gateway, end.mac) for mode in held for end in ends[mode]),
        forwarding=tuple(
            ForwardingEntry(DEVICES[mode], end.mac, end.endpoint) for mode in vxlan for end in ends[mode]
        ),
        endpoints=tuple(TunnelEndpoint(end.endpoint) for end in ends.get("ipip", ())),
        sources=ipip_senders(view, held["ipip"].endpoint, names) if "ipip" in held else (),
        elements=tuple(
            element for mode in vxlan for element in vxlan_senders(view, node, TUNNELS[mode].underlay, names)
        ),
    )


def held_modes(view: ClusterView, node: str, uplink: Uplink) -> dict[TunnelMode, Overlay]:
    """Return the modes that a node holds, as far as its own addresses allow them, and what it is in each."""
    own = uplink.node_addresses
    found = {mode: endpoint(mode, own) for mode in sorted(required_modes(view, node))}
    return {mode: overlay(address) for mode, address in found.items() if address is not None}


def _device(view: ClusterView, uplink: Uplink, me: Overlay, mode: TunnelMode) -> Device:
    name, carried = DEVICES[mode], uplink.mtu - overhead(mode)
    mtu = device_mtu(carried)
    if mode == "ipip":
        return Device(name, "ipip", me.mac, mtu)
    settings = view.config.vxlan
    # A VXLAN device that is bound to another has at most that one's MTU less the headers (vxlan_change_mtu).
    bound = uplink.device if mtu == carried else ""
    return Device(name, "vxlan", me.mac, mtu, Vxlan(settings.vni, settings.port, me.endpoint, bound))
