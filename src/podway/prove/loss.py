"""Why a packet was lost: asked from the kernel of the namespace, or about the link, that swallowed it."""

import os

from podway.api.addresses import Address, Family, Network, host_network
from podway.bgp.probe import SMALLEST
from podway.kernel.network import Lookup
from podway.plan.fabric import DEVICES
from podway.plan.overlays import RP_FILTER
from podway.probe.capture import Sighting
from podway.probe.facts import KernelState, SpoofRefused
from podway.prove import advice
from podway.prove.advice import ConflictingRoute
from podway.prove.cause import Cause, command, place, too_small
from podway.prove.inspector import Inspector
from podway.prove.judge import Code, Fault
from podway.prove.overlay import explain_overlay, outer_length
from podway.prove.path import Stage, planned_path
from podway.prove.path_mtu import explain_size
from podway.prove.probe import Step
from podway.prove.world import NodePoint, PodPoint, Point, World


def explain_loss(world: World, fault: Fault, inspector: Inspector) -> Cause:
    """Return why a packet did not come through. Raises InvalidInput or KernelError."""
    last, stage = fault.last, fault.next
    if last is not None and last.packet.tunnels and not fault.expected.matches(last.packet.tunnels):
        return Cause(
            f"packets wrapped in {last.packet.tunnels[0]} are lost after they were seen {last.words}",
            "let pods' packets be encapsulated as their pool asks for "
            f"({fault.expected}), or repair the tunnel's other end",
        )
    if (cause := explain_size(world, fault, inspector)) is not None:
        return cause
    if last is not None and last.outgoing and stage is not None and stage.point != last.point:
        return _between(world, fault, last, stage, inspector)
    return explain_overlay(world, fault, inspector) or _Inside(world, fault, inspector).explain()


def _between(world: World, fault: Fault, last: Sighting, stage: Stage, inspector: Inspector) -> Cause:
    """A loss on a link: the packet left one device and did not come into the next."""
    kernel_state = inspector.kernel_state(world.points[last.point])
    link = inspector.kernel_state(world.points[stage.point]).links.get(stage.interface)
    target = f"{stage.interface} of {stage.point}"
    if link is None:
        return Cause(f"{stage.point} has no device {stage.interface}", "start the pod or node anew")
    if not link.up:
        return _down(world, stage.point, stage.interface, "is down")
    length = outer_length(last.packet)
    if link.mtu < length:
        return too_small(link.mtu, target, length)
    tunnels = last.packet.tunnels
    destination = tunnels[0].destination if tunnels else last.packet.destination
    lookup = inspector.lookup(world.points[last.point], destination, None, "")
    hop = lookup.gateway or destination if isinstance(lookup, Lookup) else destination
    if stage.role == "uplink" and world.holder(hop) is None and hop != destination:
        inside = _Inside(world, fault, inspector)
        if isinstance(lookup, Lookup) and not tunnels and inside.lacks_route(lookup):
            return inside.without_route(lookup)
        return _behind_a_router(world, last, stage, hop)
    known = kernel_state.neighbours.get((last.interface, hop))
    if known and link.mac and known != link.mac:
        return Cause(
            f"{last.point} sends packets for {hop} to hardware address {known}, but {target} has {link.mac}",
            advice.forget_neighbour(world, inspector, world.points[last.point], last.interface, hop),
        )
    return Cause(
        f"packets are lost between {last.interface} of {last.point} and {target}",
        "look at what joins the two: the segment between nodes, or a tc or XDP program on either device",
    )


def _behind_a_router(world: World, last: Sighting, stage: Stage, router: Address) -> Cause:
    """Blame what is between subnets: a router that knows the nodes, but need not know their pods."""
    if last.packet.tunnels:
        tunnel = last.packet.tunnels[0]
        return Cause(
            f"{last.point} sends {tunnel.kind} packets to {tunnel.destination} by the router {router}, "
            f"and they do not arrive at {stage.point}",
            f"see that it routes to {tunnel.destination}, lets them pass, and takes packets that large",
        )
    blocks = world.view.blocks.values()
    pool = next((block.spec.pool for block in blocks if last.packet.destination in block.network), "")
    if not pool:
        return Cause(
            f"{last.point} sends packets to {last.packet.destination} by the router {router}, "
            f"and they do not arrive at {stage.point}",
            "see that it routes there",
        )
    return Cause(
        f"{last.point} sends packets for IPPool/{pool} as they are to the router {router}, "
        "which does not bring them to the pods' nodes",
        "have it told of the pods' blocks by BGP (BGPPeer), or have the packets encapsulated between subnets: "
        f"`podway set pool/{pool} encapsulation=vxlan when=cross-subnet`",
    )


class _Inside:
    """A loss inside a namespace: what does its kernel do with such a packet?

    The packet came in by `iif` (empty: it was sent there) and was to leave by `oif` (empty: to be taken).
    """

    def __init__(self, world: World, fault: Fault, inspector: Inspector) -> None:
        self._world = world
        self._fault = fault
        self._inspector = inspector
        last, stage, target = fault.last, fault.next, fault.target.address(fault.probe.family)
        if target is None:
            raise ValueError("a probe was judged for a point that has no address of its family")
        self._point: Point = world.points[last.point] if last else fault.origin
        self._iif = last.interface if last and not last.outgoing else ""
        self._oif = stage.interface if stage and stage.point == self._point.label else ""
        if stage and stage.role == "uplink" and stage.outgoing and fault.expected.device:
            self._oif = fault.expected.device if self._oif else ""
        self._destination = last.packet.destination if last else target
        origin = fault.origin.address(fault.probe.family) if isinstance(fault.origin, PodPoint) else None
        self._source: Address | None = last.packet.source if last else origin
        self._length = last.packet.length if last else fault.probe.size
        self._family = fault.probe.family
        self._label = self._point.label
        self._what = place(world, self._destination, fault.target, self._point)

    def explain(self) -> Cause:
        kernel_state = self._inspector.kernel_state(self._point)
        if not self._oif and self._label != self._fault.target.label:
            return Cause(
                f"packets for {self._what} go to {self._label}, where they end",
                "see which route leads there (`podway get routes`), and who else has the address",
            )
        if self._oif and (cause := self._dead(self._point, self._oif)):
            return cause
        if self._iif and self._oif and (cause := self._not_forwarding()):
            return cause
        iif = self._iif if self._iif in kernel_state.links else ""
        lookup = self._inspector.lookup(self._point, self._destination, self._source, iif)
        if isinstance(lookup, SpoofRefused):
            return self._spoofed()
        if not self._oif:
            return self._not_taken(lookup)
        if lookup.type != "unicast":
            return self._no_route(lookup)
        if self.lacks_route(lookup):
            return self.without_route(lookup)
        if not self._leads_out_of(lookup, kernel_state):
            return self._elsewhere(lookup, kernel_state)
        return self._not_leaving(lookup, kernel_state)

    def _leads_out_of(self, lookup: Lookup, kernel_state: KernelState) -> bool:
        """Tell whether a way leads by the device that it should, or by the bridge whose port that is."""
        port, device = kernel_state.links.get(self._oif), kernel_state.links.get(lookup.device)
        return lookup.device == self._oif or bool(port and device and port.master == device.index)

    def _dead(self, point: Point, device: str) -> Cause | None:
        """Tell of a device that cannot carry anything, whatever the routes say (they go with it)."""
        link = self._inspector.kernel_state(point).links.get(device)
        if link is None:
            return Cause(f"{point.label} has no device {device or 'for the pod'}", "start the pod or node anew")
        if not link.up:
            return _down(self._world, point.label, device, "is down")
        if not link.running:
            return Cause(f"{device} of {point.label} has no carrier", "bring up what is at its other end")
        return None

    def _not_forwarding(self) -> Cause | None:
        names = [f"net/ipv4/conf/{self._iif}/forwarding"]
        if self._family is Family.IPV6:
            names = ["net/ipv6/conf/all/forwarding", f"net/ipv6/conf/{self._iif}/forwarding"]
        for name in names:
            if self._inspector.setting(self._point, name) == "0":
                return Cause(
                    f"{self._label} does not forward {self._family.label}: {name} is 0",
                    self._command(f"sysctl -w {name}=1"),
                )
        return None

    def _spoofed(self) -> Cause:
        source = str(self._source)
        if self._source in self._fault.origin.addresses and self._source is not None:
            source = place(self._world, self._source, self._fault.origin, self._point)
        filters = [self._inspector.setting(self._point, RP_FILTER.format(device=on)) for on in ("all", self._iif)]
        if self._family is Family.IPV4 and not any(value in ("1", "2") for value in filters):
            return Cause(
                f"{self._label} refuses {source} as the source of packets that enter by {self._iif}: it is no "
                "address that another may have (martian)",
                f"see whose it is there: {self._command(f'ip address show to {self._source}')}, `ip rule`",
            )
        problem = (
            f"{self._label} drops packets from {source} that enter by {self._iif}: its route back to them "
            f"leads elsewhere (rp_filter)"
        )
        if self._iif in DEVICES.values():
            # What a node itself sends to another's pod is answered bare.
            path = RP_FILTER.format(device=self._iif)
            lacks = f"see that {self._iif} has its IPv4 address, without which loose is strict; {advice.REPAIRED}"
            return Cause(
                problem, advice.setting(self._world, self._inspector, self._point, path, "2", otherwise=lacks)
            )
        return Cause(
            problem,
            f"give {source} a route by {self._iif}; or, if the address is not the sender's own, stop the spoofing",
        )

    def _no_route(self, lookup: Lookup) -> Cause:
        if lookup.type == "local":
            return Cause(
                f"{self._label} takes {self._destination} for an address of its own",
                advice.remove_address(self._world, self._inspector, self._point, self._destination),
            )
        route = self._inspector.rejecting(self._point, self._destination)
        if route is None:
            return self.without_route()
        block = self._world.block_of(self._destination)
        if block and block.node == self._point.node and block.network == route.destination:
            return Cause(
                f"{self._label} has no route to {self._what} ({self._destination}): only the {route.type} route "
                f"of its own block matches",
                "the pod's link or its route is gone: restart that node's agent, or start the pod anew",
            )
        return Cause(
            f"{self._label} throws packets for {self._what} away: "
            f"its route to {route.destination} is of type {route.type}",
            self._against(
                ConflictingRoute(route.destination, route.type, protocol=route.protocol, metric=route.metric)
            ),
        )

    def _elsewhere(self, lookup: Lookup, kernel_state: KernelState) -> Cause:
        link = kernel_state.links.get(lookup.device)
        kind = f" ({link.kind})" if link and link.kind else ""
        gateway = f" through {lookup.gateway}" if lookup.gateway else ""
        return Cause(
            f"{self._label} routes packets for {self._what} out of {lookup.device}{kind}{gateway} "
            f"instead of {self._oif}",
            self._against(conflicting_route(lookup))
            if lookup.matched
            else "see `ip rule` and `ip route show table all` there",
        )

    def _against(self, route: ConflictingRoute) -> str:
        return advice.against_route(self._world, self._point, route, self._wanted)

    @property
    def _wanted(self) -> Network:
        """What the right route leads to: the block, on its own node the pod."""
        block = self._world.block_of(self._destination)
        if block is None or block.node == self._point.node:
            return host_network(self._destination)
        return block.network

    def lacks_route(self, lookup: Lookup) -> bool:
        """Tell whether a route to another node's block is missing, so that a wider one, or none, decides."""
        block = self._world.block_of(self._destination)
        if block is None or not isinstance(self._point, NodePoint) or block.node == self._point.node:
            return False
        wider = lookup.matched is not None and lookup.matched.prefixlen < block.network.prefixlen
        return lookup.type == "unicast" and wider

    def without_route(self, lookup: Lookup | None = None) -> Cause:
        """Tell that a route to a block is missing, and whether its owner lives: with it, its routes go."""
        problem, instead = f"{self._label} has no route to {self._what}", ""
        if lookup is not None:
            instead = f"packets follow the route to {_words(lookup.matched)} out of {lookup.device} instead"
        block = self._world.block_of(self._destination)
        owner = self._world.node(block.node) if block else None
        if block is not None and block.node not in self._world.view.nodes and self._world.view.nodes:
            return Cause(
                f"{problem}: node {block.node}, whose it is, is no part of the cluster any more",
                "start the pods of that node elsewhere",
                instead,
            )
        if owner is None or owner.label == self._label or not isinstance(self._point, NodePoint):
            advised = "look at `podway get routes` and at the BGP sessions (`podway get peers`)"
            return Cause(problem, advised, instead)
        address = owner.address(self._family)
        if address is not None and not self._answers(address):
            return Cause(
                f"{problem}: it was withdrawn, for {owner.label} is dead or cut off ({address} answers no ping)",
                f"start {owner.name}, or look at its link; if it is gone for good: "
                f"`podway delete node {owner.name}`",
                instead,
            )
        return Cause(
            problem,
            f"look at `podway get routes {self._point.node}` and at the BGP sessions of both nodes "
            f"(`podway get peers {self._point.node} {owner.name}`)",
            instead,
        )

    def _answers(self, address: Address) -> bool:
        smallest = SMALLEST[Family.of(address)]
        return self._inspector.path_mtu(self._point, address, smallest) is not None

    def _not_leaving(self, lookup: Lookup, kernel_state: KernelState) -> Cause:
        """The route is right: is it the device, the neighbour, the size? Else something filters."""
        link, hop = kernel_state.links[lookup.device], lookup.gateway or self._destination
        known = kernel_state.neighbours.get((link.name, hop))
        if known == "":
            return self._unanswered(hop, link.name)
        if link.mtu < self._length:
            return too_small(link.mtu, f"{link.name} of {self._label}", self._length)
        if self._fault.refusal and self._fault.refusal.mtu:
            return Cause(
                f"{self._label} has learned that only {self._fault.refusal.mtu} bytes fit through the way to "
                f"{self._what} (path MTU discovery), but packets of {self._length} must pass",
                "find the device behind it that has this MTU, and raise it",
            )
        if known is None and self._inspector.overflowed:
            return Cause(
                "this machine's neighbour tables, which all its namespaces share, were full: packets to new "
                "neighbours vanished",
                "raise net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3",
            )
        return Cause(
            f"{self._label} drops {self._direction()}, though it has the right route: a firewall rule or an eBPF "
            f"program does it",
            self._command("nft list ruleset") + ", and look for drop and reject",
            f"sending failed: {os.strerror(self._fault.errno)}" if self._fault.errno and not self._iif else "",
        )

    def _unanswered(self, hop: Address, device: str) -> Cause:
        holder = self._world.holder(hop)
        if holder is not None:
            own = holder.uplink if isinstance(holder, NodePoint) else holder.ifname
            if cause := self._dead(holder, own):
                return cause
        protocol = "ARP" if self._family is Family.IPV4 else "neighbour discovery"
        return Cause(
            f"nobody answers {protocol} for {hop} on {device} of {self._label}",
            f"see that {holder.label if holder else hop} is up and on the same segment",
        )

    def _direction(self) -> str:
        if not isinstance(self._point, NodePoint):
            return "what it sends"
        outside = {self._point.uplink, *DEVICES.values()}
        origin = "of its own" if not self._iif else "from other nodes" if self._iif in outside else "from its pods"
        return f"packets {origin} to {'other nodes' if self._oif in outside else 'its pods'}"

    def _not_taken(self, lookup: Lookup) -> Cause:
        last = self._fault.last
        if last is not None and last.checksum_fault:
            return Cause(
                f"packets enter by {self._iif} of {self._label} with a wrong {last.checksum_fault} checksum",
                "switch checksum offload off on the devices before it (`ethtool -K DEVICE tx off`), and see",
            )
        if (cause := self._no_route_back()) is not None:
            return cause
        if lookup.type != "local":
            return Cause(
                f"packets for {self._destination} arrive at {self._label}, which has no such address",
                "start the pod anew",
            )
        return Cause(
            f"packets arrive at {self._label} and end in its own network stack: a firewall rule inside does it",
            self._command("nft list ruleset") + ", and look for drop and reject",
        )

    def _no_route_back(self) -> Cause | None:
        """Tell why the kernel cannot answer: that it took a SYN or an echo request shows in nothing else."""
        fault = self._fault
        if fault.step not in (Step.SYN, Step.REQUEST) or self._source is None:
            return None
        lookup = self._inspector.lookup(self._point, self._source, None, "")
        if isinstance(lookup, SpoofRefused) or lookup.type == "unicast":
            return None
        answer = Step.SYN_ACK if fault.step is Step.SYN else Step.REPLY
        path = planned_path(self._world, fault.target, fault.origin)
        back = Fault(Code.NOT_SENT, fault.probe, answer, next=path[0])
        return _Inside(self._world, back, self._inspector).explain()

    def _command(self, text: str) -> str:
        return command(self._world, self._label, text)


def conflicting_route(lookup: Lookup) -> ConflictingRoute:
    """Return the route of a way as advice is given about it."""
    assert lookup.matched is not None
    return ConflictingRoute(
        lookup.matched,
        device=lookup.device,
        gateway=lookup.gateway,
        protocol=lookup.protocol,
        table=lookup.table,
        metric=lookup.metric,
    )


def _words(destination: Network | None) -> str:
    if destination is None:
        return "elsewhere"
    return str(destination) if destination.prefixlen else "default"


def _down(world: World, label: str, device: str, state: str) -> Cause:
    return Cause(f"{device} of {label} {state}", advice.bring_up(world, label, device))
