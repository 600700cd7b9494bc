"""Why a packet that crosses in an overlay was lost: what its two ends lack."""

from podway.api.addresses import Address, Family
from podway.kernel.network import Lookup
from podway.plan.fabric import overhead, overlay
from podway.probe.facts import Ground
from podway.probe.packet import IP_HEADER, Packet
from podway.prove.advice import MENDED, bring_up
from podway.prove.cause import Cause, command, too_small
from podway.prove.forms import KINDS, Form
from podway.prove.judge import Fault
from podway.prove.witness import Witness
from podway.prove.world import NodePoint, World


def outer_length(packet: Packet) -> int:
    """Return the length of the whole packet on the wire, with what is around it, in bytes."""
    length = packet.length
    for tunnel in reversed(packet.tunnels):
        underlay = Family.of(tunnel.source)
        form = {kind: form for form, kind in KINDS.items()}.get(tunnel.kind)
        length += overhead(form, underlay) if form else IP_HEADER[underlay]
    return length


def explain_overlay(world: World, fault: Fault, witness: Witness) -> Cause | None:
    """Return what is wrong with the overlay that a lost packet should have crossed; None if nothing is.

    Raises InvalidInput or KernelError if a kernel cannot be asked.
    """
    here, there = world.node(fault.origin.node), world.node(fault.target.node)
    if not fault.asked.device or here is None or there is None:
        return None
    last = fault.last
    point = last.point if last else fault.origin.label
    if last is not None and last.packet.tunnels and point == there.label:
        return _Receiver(world, fault.asked, here, there, witness).explain()
    if point == here.label and not (last and last.packet.tunnels):
        return _sending(world, fault, here, there, witness)
    return None


def _sending(world: World, fault: Fault, here: NodePoint, there: NodePoint, witness: Witness) -> Cause | None:
    """Look at a packet that is still bare: does the way lead into the overlay, and by it to the other node?"""
    asked, ground = fault.asked, witness.ground(here)
    if (cause := _device(world, here, asked.device, ground)) is not None:
        return cause
    destination = fault.target.address(fault.probe.family)
    way = witness.way(here, destination, None, "") if destination else None
    if not isinstance(way, Lookup) or way.device != asked.device or asked.destination is None:
        return None
    if (cause := _entries(world, asked, here, there, ground, way)) is not None:
        return cause
    outer = witness.way(here, asked.destination, None, "")
    if not isinstance(outer, Lookup) or outer.type != "unicast":
        return Cause(
            f"{here.label} has no route to {there.label} itself ({asked.destination}), "
            f"where {asked.name} packets go",
            command(world, here.label, f"ip route get {asked.destination}"),
        )
    length = fault.probe.size + overhead(asked.name, Family.of(asked.destination))
    link = ground.links.get(outer.device)
    if link is not None and link.mtu < length:
        return too_small(link.mtu, f"{link.name} of {here.label}", length)
    if fault.last is not None and fault.last.outgoing and fault.last.interface == asked.device:
        return Cause(
            f"{here.label} drops what {asked.device} sends: a firewall rule or an eBPF program does it",
            command(world, here.label, "nft list ruleset")
            + f", and let {_what(asked)} pass to {asked.destination}",
        )
    return None


def _entries(
    world: World, asked: Form, here: NodePoint, there: NodePoint, ground: Ground, way: Lookup
) -> Cause | None:
    """Compare the entries by which an overlay device finds the other node with what they should be."""
    assert asked.destination is not None
    wanted, device = overlay(asked.destination), asked.device
    if way.gateway != wanted.gateway:
        return Cause(
            f"{here.label} sends packets for {there.label} by {device} to the gateway {way.gateway}, "
            f"which is not {there.label}'s ({wanted.gateway})",
            "see who writes that route: `podway get routes`; " + MENDED,
        )
    mac = ground.neighbours.get((device, wanted.gateway))
    if mac != wanted.mac:
        has = f"is {mac}, not {wanted.mac}" if mac else "is missing"
        add = f"ip neighbour replace {wanted.gateway} lladdr {wanted.mac} dev {device} nud permanent"
        return Cause(
            f"the neighbour entry of {there.label} ({wanted.gateway}) on {device} of {here.label} {has}",
            f"{command(world, here.label, add)}; {MENDED}",
        )
    if asked.name == "ipip":
        if (device, "encap") not in ground.programs:
            return Cause(
                f"the program that puts IPIP headers on is not attached to {device} of {here.label}", MENDED
            )
        return None
    found = ground.forwarding.get((device, wanted.mac))
    if found != asked.destination:
        has = f"leads to {found}, not to {asked.destination}" if found else "is missing"
        add = f"bridge fdb replace {wanted.mac} dev {device} dst {asked.destination} self permanent"
        return Cause(
            f"the forwarding entry of {there.label} ({wanted.mac}) on {device} of {here.label} {has}",
            f"{command(world, here.label, add)}; {MENDED}",
        )
    return _numbers(asked, here, ground)


def _numbers(asked: Form, node: NodePoint, ground: Ground) -> Cause | None:
    vxlan = ground.links[asked.device].vxlan
    wanted = asked.vxlan.vni, asked.vxlan.port
    if vxlan is None or (vxlan.vni, vxlan.port) == wanted:
        return None
    return Cause(
        f"{asked.device} of {node.label} has VNI {vxlan.vni} and port {vxlan.port}, "
        f"not {wanted[0]} and {wanted[1]} (NetworkConfig spec.vxlan)",
        MENDED,
    )


def _device(world: World, node: NodePoint, device: str, ground: Ground) -> Cause | None:
    link = ground.links.get(device)
    if link is None:
        return Cause(f"{node.label} has no device {device}", MENDED)
    if not link.up:
        return Cause(f"{device} of {node.label} is down", bring_up(world, node.label, device))
    return None


class _Receiver:
    """A packet came in by the other node's uplink, and was not taken out of what is around it."""

    def __init__(self, world: World, asked: Form, here: NodePoint, there: NodePoint, witness: Witness) -> None:
        self._world = world
        self._asked = asked
        self._here = here
        self._there = there
        self._ground = witness.ground(there)

    def explain(self) -> Cause:
        asked, there, ground = self._asked, self._there, self._ground
        if (cause := _device(self._world, there, asked.device, ground)) is not None:
            return cause
        lacks = _numbers(asked, there, ground) if asked.name == "vxlan" else self._program(asked.source)
        return lacks or Cause(
            f"{there.label} drops {_what(asked)} from {self._here.label}: a firewall rule does it",
            f"{_rules(self._world, there)}, and let {_what(asked)} pass from other nodes (input)",
        )

    def _program(self, source: Address | None) -> Cause | None:
        uplink, label = self._there.uplink, self._there.label
        if (uplink, "decap") not in self._ground.programs:
            return Cause(f"the program that takes IPIP headers off is not attached to {uplink} of {label}", MENDED)
        if source not in self._ground.tunnel_sources:
            return Cause(
                f"{label} takes no IPIP packets from {source}, the address of {self._here.label}",
                f"see that both nodes are in `podway get nodes` with their addresses; {MENDED}",
            )
        return None


def _no_program(deed: str, device: str, node: NodePoint) -> Cause:
    return Cause(f"the program that {deed} is not attached to {device} of {node.label}", MENDED)


def _rules(world: World, node: NodePoint) -> str:
    return command(world, node.label, "nft list ruleset")


def _what(asked: Form) -> str:
    return f"VXLAN (UDP port {asked.vxlan.port})" if asked.name == "vxlan" else "IPIP (IP protocol 4)"
