"""From hops and captured packets to the report's records. Pure."""

from collections.abc import Mapping, Sequence

from podway.api.addresses import Address, Network
from podway.cluster.view import ClusterView
from podway.kernel.network import Lookup, NextHop
from podway.plan.bgp import plan_bgp
from podway.plan.objects import MAIN_TABLE, ROUTE_PROTOCOL
from podway.plan.outside import PREFIX
from podway.plan.path import PlannedHop
from podway.probe.capture import Sighting
from podway.probe.packet import Tcp, Udp
from podway.prove.tracing.report import Below, Hop, Kernel, Neighbour, Planned, Seen
from podway.prove.tracing.verdict import as_planned
from podway.prove.tracing.walk import WalkedHop

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
    view: ClusterView, hops: Sequence[WalkedHop], seen: Sequence[Sighting], clocks: Mapping[str, str]
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
            hop.planned is not None and (hop.way is None or as_planned(hop)),
            hop.wire_entry,
            hop.wire_exit,
        )
        for number, hop in enumerate(hops, 1)
    )


def _planned(hop: PlannedHop) -> Planned:
    route = str(hop.route).removeprefix("route ") if hop.route else ""
    neighbour = f"{hop.neighbour.address} at {hop.neighbour.mac}" if hop.neighbour else ""
    return Planned(hop.fate, hop.owner, route, hop.learned_from, neighbour, hop.encapsulation)


def _kernel(view: ClusterView, hop: WalkedHop) -> Kernel | None:
    way = hop.way
    if way is None:
        return None
    if not isinstance(way, Lookup):
        return Kernel("source refused")
    if hop.rejecting:
        route = f"{hop.rejecting.type} {_destination(hop.rejecting.destination)}"
        return Kernel(way.type, route, table=_table(hop.rejecting.table), owner=_owner(hop.rejecting.protocol))
    link = hop.ground.links.get(way.device) if hop.ground else None
    return Kernel(
        way.type,
        _route_words(way),
        str(way.gateway or ""),
        way.device,
        link.kind if link else "",
        link.mtu if link else 0,
        str(way.source or ""),
        _table(way.table),
        _owner(way.protocol) if way.matched is not None else "",
        _teller(view, hop),
        _neighbour(hop, way) if way.type == "unicast" else None,
        _router(view, way.gateway) if not hop.pod and hop.below is None else "",
        tuple(_next_hop(hop, one) for one in way.next_hops),
        _below(view, hop) if hop.below else None,
    )


def _router(view: ClusterView, gateway: Address | None) -> str:
    """Return a gateway that is no node's; empty for one that is, and for a pod's own."""
    if gateway is None or gateway.is_link_local:
        return ""
    ours = any(gateway in node.internal_addresses for node in view.nodes.values())
    return "" if ours else str(gateway)


def _next_hop(hop: WalkedHop, one: NextHop) -> str:
    link = hop.ground.link_by_index(one.index) if hop.ground else None
    via = f"via {one.gateway} " if one.gateway else ""
    return f"{via}dev {link.name if link else one.index} weight {one.weight}"


def _below(view: ClusterView, hop: WalkedHop) -> Below:
    assert hop.below is not None
    found, way = hop.below, hop.below.way
    link = hop.ground.links.get(found.wire) if hop.ground else None
    return Below(
        found.form,
        found.mac,
        str(found.endpoint or ""),
        _route_words(way) if isinstance(way, Lookup) else "",
        _owner(way.protocol) if isinstance(way, Lookup) and way.matched is not None else "",
        found.wire,
        link.mtu if link else 0,
        _router(view, found.router),
        found.broken,
    )


def _table(number: int) -> str:
    return _TABLES.get(number, str(number) if number else "")


def _owner(protocol: int) -> str:
    return _OWNERS.get(protocol, str(protocol))


def _route_words(way: Lookup) -> str:
    if way.matched is None:
        return ""
    parts = [] if way.type == "unicast" else [way.type]
    parts.append(_destination(way.matched))
    if way.type == "unicast":
        parts += [f"via {way.gateway}"] if way.gateway else []
        parts.append(f"dev {way.device}")
    return " ".join(parts)


def _destination(network: Network) -> str:
    if network.prefixlen == 0:
        return "default"
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _teller(view: ClusterView, hop: WalkedHop) -> str:
    """Return the node at the other end of the BGP session that told the route."""
    if not hop.session or hop.node not in view.nodes:
        return hop.session
    plan = plan_bgp(view, hop.node)
    return next((peer.node for peer in plan.peers if peer.name == hop.session), hop.session.removeprefix(PREFIX))


def _neighbour(hop: WalkedHop, way: Lookup) -> Neighbour | None:
    address: Address | None = way.gateway or (way.matched and _only(way.matched)) or None
    if hop.ground is None or address is None:
        return None
    key = way.device, address
    mac = hop.ground.neighbours.get(key)
    if mac is None:
        return Neighbour(str(address), "", "absent")
    state = "permanent" if key in hop.ground.permanent else "learned" if mac else "unresolved"
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
