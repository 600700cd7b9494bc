"""Why a packet was lost in an overlay: what its two ends lack."""

from podway.api.addresses import Address, Family
from podway.kernel.network import Lookup
from podway.plan.fabric import overlay, tunnel_of
from podway.probe.facts import KernelState
from podway.probe.packet import IP_HEADER, Packet
from podway.prove.advice import REPAIRED, bring_up
from podway.prove.cause import Cause, command, too_small
from podway.prove.encapsulation import KINDS, ExpectedEncapsulation
from podway.prove.inspector import Inspector
from podway.prove.judge import Fault
from podway.prove.world import NodePoint, World


def outer_length(packet: Packet) -> int:
    """Return the length of the whole packet on the wire, with what is around it, in bytes."""
    length = packet.length
    for tunnel in reversed(packet.tunnels):
        underlay = Family.of(tunnel.source)
        encapsulation = {kind: encapsulation for encapsulation, kind in KINDS.items()}.get(tunnel.kind)
        known = tunnel_of(encapsulation, underlay) if encapsulation else None
        length += known.overhead if known else IP_HEADER[underlay]
    return length


def explain_overlay(world: World, fault: Fault, inspector: Inspector) -> Cause | None:
    """Return what is wrong with the overlay that a lost packet should have crossed; None if nothing is.

    Raises InvalidInput or KernelError if a kernel cannot be asked.
    """
    here, there = world.node(fault.origin.node), world.node(fault.target.node)
    if not fault.expected.device or here is None or there is None:
        return None
    last = fault.last
    point = last.point if last else fault.origin.label
    if last is not None and last.packet.tunnels and point == there.label:
        return _Receiver(world, fault.expected, here, there, inspector).explain()
    if point == here.label and not (last and last.packet.tunnels):
        return _sending(world, fault, here, there, inspector)
    return None


def _sending(world: World, fault: Fault, here: NodePoint, there: NodePoint, inspector: Inspector) -> Cause | None:
    """Look at a packet that is still bare: does the way lead into the overlay, and by it to the other node?"""
    expected, kernel_state = fault.expected, inspector.kernel_state(here)
    if (cause := _device(world, here, expected.device, kernel_state)) is not None:
        return cause
    destination = fault.target.address(fault.probe.family)
    lookup = inspector.lookup(here, destination, None, "") if destination else None
    if not isinstance(lookup, Lookup) or lookup.device != expected.device or expected.destination is None:
        return None
    if (cause := _entries(world, expected, here, there, kernel_state, lookup)) is not None:
        return cause
    outer = inspector.lookup(here, expected.destination, None, "")
    if not isinstance(outer, Lookup) or outer.type != "unicast":
        return Cause(
            f"{here.label} has no route to {there.label} itself ({expected.destination}), "
            f"where {expected.name} packets go",
            command(world, here.label, f"ip route get {expected.destination}"),
        )
    length = fault.probe.size + expected.overhead
    link = kernel_state.links.get(outer.device)
    if link is not None and link.mtu < length:
        return too_small(link.mtu, f"{link.name} of {here.label}", length)
    if fault.last is not None and fault.last.outgoing and fault.last.interface == expected.device:
        return Cause(
            f"{here.label} drops what {expected.device} sends: a firewall rule or an eBPF program does it",
            command(world, here.label, "nft list ruleset")
            + f", and let {_what(expected)} pass to {expected.destination}",
        )
    return None


def _entries(
    world: World,
    expected: ExpectedEncapsulation,
    here: NodePoint,
    there: NodePoint,
    kernel_state: KernelState,
    lookup: Lookup,
) -> Cause | None:
    """Compare the entries by which an overlay device finds the other node with what they should be."""
    assert expected.destination is not None
    wanted, device = overlay(expected.destination), expected.device
    if lookup.gateway != wanted.gateway:
        return Cause(
            f"{here.label} sends packets for {there.label} by {device} to the gateway {lookup.gateway}, "
            f"which is not {there.label}'s ({wanted.gateway})",
            "see who writes that route: `podway get routes`; " + REPAIRED,
        )
    mac = kernel_state.neighbours.get((device, wanted.gateway))
    if mac != wanted.mac:
        has = f"is {mac}, not {wanted.mac}" if mac else "is missing"
        add = f"ip neighbour replace {wanted.gateway} lladdr {wanted.mac} dev {device} nud permanent"
        return Cause(
            f"the neighbour entry of {there.label} ({wanted.gateway}) on {device} of {here.label} {has}",
            f"{command(world, here.label, add)}; {REPAIRED}",
        )
    if expected.name == "ipip":
        if (device, "encap") not in kernel_state.programs:
            return Cause(
                f"the program that puts IPIP headers on is not attached to {device} of {here.label}", REPAIRED
            )
        return None
    found = kernel_state.forwarding.get((device, wanted.mac))
    if found != expected.destination:
        has = f"leads to {found}, not to {expected.destination}" if found else "is missing"
        add = f"bridge fdb replace {wanted.mac} dev {device} dst {expected.destination} self permanent"
        return Cause(
            f"the forwarding entry of {there.label} ({wanted.mac}) on {device} of {here.label} {has}",
            f"{command(world, here.label, add)}; {REPAIRED}",
        )
    return _numbers(expected, here, kernel_state)


def _numbers(expected: ExpectedEncapsulation, node: NodePoint, kernel_state: KernelState) -> Cause | None:
    vxlan = kernel_state.links[expected.device].vxlan
    wanted = expected.vxlan.vni, expected.vxlan.port
    if vxlan is None or (vxlan.vni, vxlan.port) == wanted:
        return None
    return Cause(
        f"{expected.device} of {node.label} has VNI {vxlan.vni} and port {vxlan.port}, "
        f"not {wanted[0]} and {wanted[1]} (NetworkConfig spec.vxlan)",
        REPAIRED,
    )


def _device(world: World, node: NodePoint, device: str, kernel_state: KernelState) -> Cause | None:
    link = kernel_state.links.get(device)
    if link is None:
        return Cause(f"{node.label} has no device {device}", REPAIRED)
    if not link.up:
        return Cause(f"{device} of {node.label} is down", bring_up(world, node.label, device))
    return None


class _Receiver:
    """A packet came in by the other node's uplink, and was not taken out of what is around it."""

    def __init__(
        self,
        world: World,
        expected: ExpectedEncapsulation,
        here: NodePoint,
        there: NodePoint,
        inspector: Inspector,
    ) -> None:
        self._world = world
        self._expected = expected
        self._here = here
        self._there = there
        self._kernel_state = inspector.kernel_state(there)

    def explain(self) -> Cause:
        expected, there, kernel_state = self._expected, self._there, self._kernel_state
        if (cause := _device(self._world, there, expected.device, kernel_state)) is not None:
            return cause
        lacks = (
            _numbers(expected, there, kernel_state) if expected.name == "vxlan" else self._program(expected.source)
        )
        return lacks or Cause(
            f"{there.label} drops {_what(expected)} from {self._here.label}: a firewall rule does it",
            f"{_rules(self._world, there)}, and let {_what(expected)} pass from other nodes (input)",
        )

    def _program(self, source: Address | None) -> Cause | None:
        uplink, label = self._there.uplink, self._there.label
        if (uplink, "decap") not in self._kernel_state.programs:
            return Cause(
                f"the program that takes IPIP headers off is not attached to {uplink} of {label}", REPAIRED
            )
        if source not in self._kernel_state.tunnel_sources:
            return Cause(
                f"{label} takes no IPIP packets from {source}, the address of {self._here.label}",
                f"see that both nodes are in `podway get nodes` with their addresses; {REPAIRED}",
            )
        return None


def _rules(world: World, node: NodePoint) -> str:
    return command(world, node.label, "nft list ruleset")


def _what(expected: ExpectedEncapsulation) -> str:
    return f"VXLAN (UDP port {expected.vxlan.port})" if expected.name == "vxlan" else "IPIP (IP protocol 4)"
