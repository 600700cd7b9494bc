"""The overlay devices of a node, and what stands on them: the ways to all other nodes."""

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_interface

from podway.api.addresses import Address, Family
from podway.api.kinds.ip_pool import Encapsulation
from podway.cluster.view import ClusterView
from podway.plan.fabric import DEVICES, Overlay, device_mtu, endpoint, forms_held, overhead, overlay
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
    """Return the devices of the forms that a node holds.

    A packet may be answered in another form than it came in, so no device asks for the way back (rp_filter 0:
    that look costs each packet a little) unless the node as a whole does: if that is `strict`, they are loose.
    A form that the node's addresses do not allow (IPIP without IPv4) is left out.
    """
    own = endpoint(uplink.node_addresses)
    held = _held(view, node, own)
    if own is None or not held:
        return NodePlan()
    me = overlay(own)
    devices = [DEVICES[form] for form in held]
    made = tuple(_device(view, uplink, me, form) for form in held)
    guards = [vxlan_guard(view, node, device.vxlan) for device in made if device.vxlan]
    return NodePlan(
        devices=made,
        addresses=tuple(
            LinkAddress(device, address, "link")
            for device in devices
            # On a device without IPv4 address the kernel takes loose rp_filter for strict (fib_validate_source),
            # and would drop what another node itself sends to pods, since it is answered by the uplink.
            for address in (ip_interface(f"{me.gateway}/64"), gateway_interface(Family.IPV4))
        ),
        tunnels=(IpipTunnel(DEVICES["ipip"], uplink.device, own),) if "ipip" in held else (),
        sources=ipip_sources(view, node, own) if "ipip" in held and isinstance(own, IPv4Address) else (),
        tables=tuple(table for guard in guards for table in guard.tables),
        elements=tuple(element for guard in guards for element in guard.elements),
        sysctls=tuple(
            Sysctl(path.format(device=device), value)
            for device in devices
            for path, value in {**DEVICE_SYSCTLS, RP_FILTER: "2" if strict else "0"}.items()
        ),
    )


def overlay_entries(view: ClusterView, node: str, uplink: Uplink, others: Iterable[str]) -> NodePlan:
    """Return the ways to other nodes that stand on a node's overlay devices."""
    own = endpoint(uplink.node_addresses)
    held = _held(view, node, own)
    if own is None or not held:
        return NodePlan()
    names = [name for name in others if name != node]
    known = map(view.nodes.get, names)
    addresses = (endpoint(other.internal_addresses) for other in known if other is not None)
    ends = [overlay(address) for address in addresses if address is not None and address.version == own.version]
    vxlan, ipip = "vxlan" in held, "ipip" in held
    return NodePlan(
        neighbours=tuple(Neighbour(DEVICES[form], end.gateway, end.mac) for form in held for end in ends),
        forwarding=tuple(ForwardingEntry(DEVICES["vxlan"], end.mac, end.endpoint) for end in ends if vxlan),
        endpoints=tuple(TunnelEndpoint(end.endpoint) for end in ends if ipip),
        sources=ipip_senders(view, own, names) if ipip and isinstance(own, IPv4Address) else (),
        elements=vxlan_senders(view, node, Family.of(own), names) if vxlan else (),
    )


def _held(view: ClusterView, node: str, own: Address | None) -> list[Encapsulation]:
    """Return the forms that a node holds, as far as its own address allows them."""
    return [form for form in sorted(forms_held(view, node)) if form != "ipip" or isinstance(own, IPv4Address)]


def _device(view: ClusterView, uplink: Uplink, me: Overlay, form: Encapsulation) -> Device:
    name, carried = DEVICES[form], uplink.mtu - overhead(form, uplink.underlay)
    mtu = device_mtu(carried)
    if form == "ipip":
        return Device(name, "ipip", me.mac, mtu)
    settings = view.config.vxlan
    # A VXLAN device that is bound to another has at most that one's MTU less the headers (vxlan_change_mtu).
    bound = uplink.device if mtu == carried else ""
    return Device(name, "vxlan", me.mac, mtu, Vxlan(settings.vni, settings.port, me.endpoint, bound))
