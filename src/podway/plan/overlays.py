"""The overlay devices of a node, and what stands on them: the entries for all other nodes."""

from collections.abc import Collection, Mapping
from ipaddress import ip_interface

from podway.api.addresses import Family
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
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
    NftElement,
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
    held: Mapping[TunnelMode, Overlay], other: Node | None, blocks: Collection[AddressBlock]
) -> NodePlan:
    """Return the entries for another node that stand on a node's overlay devices, those of the modes it holds.

    A device has those to all nodes that it can reach: which of them are reached in its mode changes, and a route
    must find its entry there. `blocks` are the other node's, which may be known before it is (`other` None).
    """
    if not held:
        return NodePlan()
    addresses = other.internal_addresses if other else ()
    neighbours: list[Neighbour] = []
    forwarding: list[ForwardingEntry] = []
    endpoints: list[TunnelEndpoint] = []
    elements: list[NftElement] = []
    for mode in held:
        device, address = DEVICES[mode], endpoint(mode, addresses)
        if mode != "ipip":
            elements += vxlan_senders(other, blocks, TUNNELS[mode].underlay)
        if address is None:
            continue
        end = overlay(address)
        neighbours.append(Neighbour(device, end.gateway, end.mac))
        if mode == "ipip":
            endpoints.append(TunnelEndpoint(end.endpoint))
        else:
            forwarding.append(ForwardingEntry(device, end.mac, end.endpoint))
    return NodePlan(
        neighbours=tuple(neighbours),
        forwarding=tuple(forwarding),
        endpoints=tuple(endpoints),
        sources=ipip_senders(other, blocks, held["ipip"].endpoint) if "ipip" in held else (),
        elements=tuple(elements),
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
