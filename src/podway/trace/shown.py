"""From hops and captured packets to the report's records. Pure."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from podway.api.addresses import Address, Network
from podway.cluster.view import ClusterView
from podway.kernel.network import Lookup, NextHop
from podway.plan.bgp import plan_bgp
from podway.plan.objects import MAIN_TABLE, ROUTE_PROTOCOL
from podway.plan.outside import PREFIX
from podway.plan.path import PlannedHop
from podway.probe.capture import Sighting
from podway.probe.packet import Tcp, Udp
from podway.trace.forwarding import ForwardingHop
from podway.trace.report import Hop, Kernel, Neighbour, Planned, Seen, Underlay
from podway.trace.verdict import as_planned

_TABLES = {MAIN_TABLE: "main", 255: "local", 253: "default"}
_OWNERS = {
    0: "unspec",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    11: "zebra",
    12: "bird",
    16: "dhcp",
    186: "bgp",
    ROUTE_PROTOCOL: "podway",
}
"""rtm_protocol by number: iproute2's names (/etc/iproute2/rt_protos), and ours."""


def show(
    view: ClusterView, hops: Sequence[ForwardingHop], seen: Sequence[Sighting], clocks: Mapping[str, str]
) -> tuple[Hop, ...]:
    """Return the hops of one direction with what was seen there.

    `seen` is in order; `clocks` says by node which machine's clock its captures have.
    """
    nodes = {hop.label: hop.node for hop in hops}
    by_label: dict[str, list[Seen]] = {}
    last: Sighting | None = None
    for one in seen:
        same = last is not None and clocks.get(nodes.get(one.point, "")) == clocks.get(nodes.get(last.point, ""))
        since = 0 if last is None else one.time - last.time if same else None
        by_label.setdefault(one.point, []).append(_seen(one, since))
        last = one
    return tuple(
        Hop(
            number,
            hop.node,
            hop.pod,
            hop.entry,
            hop.exit,
            _planned(hop.planned) if hop.planned else None,
            _kernel(view, hop),
            tuple(by_label.get(hop.label, ())),
            hop.problem,
            hop.planned is not None and (hop.lookup is None or as_planned(hop)),
            hop.wire_entry,
            hop.wire_exit,
            _is_carried(hop, after, by_label),
        )
        for number, (hop, after) in enumerate(zip_longest(hops, hops[1:]), 1)
    )


def _is_carried(hop: ForwardingHop, after: ForwardingHop | None, seen: Mapping[str, Sequence[Seen]]) -> bool:
    """Tell whether a packet came into a node, and then into a pod of it, but did not leave by the pod's host link.

    bpf_redirect_peer (bpf-helpers(7)) has it appear at the other end of the link.
    """
    if hop.pod or after is None or not after.pod:
        return False
    here, there = ([one.direction for one in seen.get(at.label, ())] for at in (hop, after))
    return "in" in here and "out" not in here and "in" in there


def _planned(hop: PlannedHop) -> Planned:
    route = str(hop.route).removeprefix("route ") if hop.route else ""
    neighbour = f"{hop.neighbour.address} at {hop.neighbour.mac}" if hop.neighbour else ""
    return Planned(
        hop.disposition, hop.owner, route, hop.learned_from, neighbour, hop.encapsulation, hop.translation
    )


def _kernel(view: ClusterView, hop: ForwardingHop) -> Kernel | None:
    lookup = hop.lookup
    if lookup is None:
        return None
    if not isinstance(lookup, Lookup):
        return Kernel("source refused")
    if hop.rejecting:
        route = f"{hop.rejecting.type} {_destination(hop.rejecting.destination)}"
        return Kernel(lookup.type, route, table=_table(hop.rejecting.table), owner=_owner(hop.rejecting.protocol))
    link = hop.kernel_state.links.get(lookup.device) if hop.kernel_state else None
    return Kernel(
        lookup.type,
        _route_words(lookup),
        str(lookup.gateway or ""),
        lookup.device,
        link.kind if link else "",
        link.mtu if link else 0,
        str(lookup.source or ""),
        _table(lookup.table),
        _owner(lookup.protocol) if lookup.matched is not None else "",
        _learned_from(view, hop),
        _neighbour(hop, lookup) if lookup.type == "unicast" else None,
        _router(view, lookup.gateway) if not hop.pod and hop.underlay is None else "",
        tuple(_next_hop(hop, one) for one in lookup.next_hops),
        _underlay(view, hop) if hop.underlay else None,
    )


def _router(view: ClusterView, gateway: Address | None) -> str:
    """Return a gateway that is no node's; empty for one that is, and for a pod's own."""
    if gateway is None or gateway.is_link_local:
        return ""
    ours = any(gateway in node.internal_addresses for node in view.nodes.values())
    return "" if ours else str(gateway)


def _next_hop(hop: ForwardingHop, one: NextHop) -> str:
    link = hop.kernel_state.link_by_index(one.index) if hop.kernel_state else None
    via = f"via {one.gateway} " if one.gateway else ""
    return f"{via}dev {link.name if link else one.index} weight {one.weight}"


def _underlay(view: ClusterView, hop: ForwardingHop) -> Underlay:
    assert hop.underlay is not None
    found, lookup = hop.underlay, hop.underlay.lookup
    link = hop.kernel_state.links.get(found.wire) if hop.kernel_state else None
    return Underlay(
        found.encapsulation,
        found.mac,
        str(found.endpoint or ""),
        _route_words(lookup) if isinstance(lookup, Lookup) else "",
        _owner(lookup.protocol) if isinstance(lookup, Lookup) and lookup.matched is not None else "",
        found.wire,
        link.mtu if link else 0,
        _router(view, found.router),
        found.broken,
    )


def _table(number: int) -> str:
    return _TABLES.get(number, str(number) if number else "")


def _owner(protocol: int) -> str:
    return _OWNERS.get(protocol, str(protocol))


def _route_words(lookup: Lookup) -> str:
    if lookup.matched is None:
        return ""
    parts = [] if lookup.type == "unicast" else [lookup.type]
    parts.append(_destination(lookup.matched))
    if lookup.type == "unicast":
        parts += [f"via {lookup.gateway}"] if lookup.gateway else []
        parts.append(f"dev {lookup.device}")
    return " ".join(parts)


def _destination(network: Network) -> str:
    if network.prefixlen == 0:
        return "default"
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _learned_from(view: ClusterView, hop: ForwardingHop) -> str:
    """Return the node at the other end of the BGP session that told the route."""
    if not hop.session or hop.node not in view.nodes:
        return hop.session
    plan = plan_bgp(view, hop.node)
    return next((peer.node for peer in plan.peers if peer.name == hop.session), hop.session.removeprefix(PREFIX))


def _neighbour(hop: ForwardingHop, lookup: Lookup) -> Neighbour | None:
    address: Address | None = lookup.gateway or (lookup.matched and _only(lookup.matched)) or None
    if hop.kernel_state is None or address is None:
        return None
    key = lookup.device, address
    mac = hop.kernel_state.neighbours.get(key)
    if mac is None:
        return Neighbour(str(address), "", "absent")
    state = "permanent" if key in hop.kernel_state.permanent else "learned" if mac else "unresolved"
    return Neighbour(str(address), mac, state)


def _only(network: Network) -> Address | None:
    return network.network_address if network.prefixlen == network.max_prefixlen else None


def _seen(one: Sighting, since: int | None) -> Seen:
    packet, transport = one.packet, one.packet.transport
    ports = (0, 0)
    if isinstance(transport, Tcp | Udp):
        ports = transport.source_port, transport.destination_port
    return Seen(
        one.interface,
        "out" if one.outgoing else "in",
        str(packet.source),
        ports[0],
        str(packet.destination),
        ports[1],
        packet.hop_limit,
        packet.length,
        since,
        tuple(map(str, packet.tunnels)),
    )
