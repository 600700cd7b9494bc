"""The encapsulation of packets between nodes: what the pool asks for, and what was seen on the wire. Pure.

The pool of a packet's destination address decides; what goes to a node itself is not encapsulated.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from podway.api.addresses import Address, Family
from podway.api.kinds.ip_pool import Encapsulation
from podway.api.kinds.network_config import VxlanSettings
from podway.cluster.view import ClusterView
from podway.plan import fabric
from podway.plan.fabric import desired_mode, encapsulation_of, endpoint, pool_of
from podway.probe.packet import Packet, Tunnel, TunnelKind
from podway.prove.path import Leg
from podway.prove.probe import Probe, Step
from podway.prove.world import PodPoint, World

KINDS: Mapping[Encapsulation, TunnelKind] = {"vxlan": "VXLAN", "ipip": "IP in IP"}
UNENCAPSULATED = "none"
"""The encapsulation of a packet without outer header."""


class ExpectedEncapsulation(msgspec.Struct, frozen=True):
    """The encapsulation that a packet should have; its outer addresses are those of the two nodes."""

    name: Encapsulation = "none"
    source: Address | None = None
    destination: Address | None = None
    vxlan: VxlanSettings = VxlanSettings()

    @property
    def device(self) -> str:
        """The overlay device by which a node sends in this encapsulation; empty if it needs none."""
        return self._tunnel.device if self._tunnel else ""

    @property
    def overhead(self) -> int:
        """The length of the outer headers in bytes."""
        return self._tunnel.overhead if self._tunnel else 0

    @property
    def _tunnel(self) -> fabric.Tunnel | None:
        return fabric.tunnel_of(self.name, Family.of(self.source)) if self.source else None

    @property
    def seen_above(self) -> str:
        """The overlay device on which packets are seen bare: IPIP takes them before anybody sees them there."""
        return self.device if self.name == "vxlan" else ""

    def matches(self, tunnels: Sequence[Tunnel]) -> bool:
        """Tell whether a packet with this around it is in this encapsulation."""
        if self.name == "none" or len(tunnels) != 1:
            return self.name == "none" and not tunnels
        [tunnel] = tunnels
        number = (self.vxlan.vni, self.vxlan.port) if self.name == "vxlan" else (0, 0)
        found = (tunnel.kind, tunnel.source, tunnel.destination, (tunnel.vni, tunnel.port))
        return found == (KINDS[self.name], self.source, self.destination, number)

    def __str__(self) -> str:
        """Return it in words: `VXLAN (VNI 4096, port 4789) from 172.30.0.1 to 172.30.0.2`."""
        if self.name == "none" or self.source is None or self.destination is None:
            return self.name
        number = (self.vxlan.port, self.vxlan.vni) if self.name == "vxlan" else (0, 0)
        return str(Tunnel(KINDS[self.name], self.source, self.destination, *number))


def expected_encapsulation(
    view: ClusterView, here: str, there: str, destination: Address
) -> ExpectedEncapsulation:
    """Return the encapsulation that is asked for packets from one node to another that go to this address."""
    one, other = view.nodes.get(here), view.nodes.get(there)
    block = view.block_at(destination)
    pool = pool_of(view, block) if block else None
    if one is None or other is None or one is other or pool is None:
        return ExpectedEncapsulation()
    mode = desired_mode(pool, one, other)
    if mode == "none":
        return ExpectedEncapsulation()
    ends = endpoint(mode, one.internal_addresses), endpoint(mode, other.internal_addresses)
    return ExpectedEncapsulation(encapsulation_of(mode), *ends, view.config.vxlan)


def expected_of(world: World, probe: Probe, step: Step) -> ExpectedEncapsulation:
    """Return the encapsulation that is asked for the packet of a probe's step."""
    origin, target = (probe.sender, probe.receiver) if step.forward else (probe.receiver, probe.sender)
    destination = target.address(probe.family)
    return (
        expected_encapsulation(world.view, origin.node, target.node, destination)
        if destination
        else ExpectedEncapsulation()
    )


def observed_encapsulation(packet: Packet) -> str:
    """Return the name of the encapsulation in which a packet was seen; of a foreign encapsulation, its kind."""
    if not packet.tunnels:
        return UNENCAPSULATED
    kinds = {kind: name for name, kind in KINDS.items()}
    return "+".join(str(kinds.get(tunnel.kind, tunnel.kind)) for tunnel in packet.tunnels)


class ObservedEncapsulation(msgspec.Struct, frozen=True, order=True):
    """That packets of pods crossed from one node to another in an encapsulation, as it was asked for or not."""

    sender: str
    receiver: str
    family: Family
    encapsulation: str
    expected: str


def observed_encapsulations(
    world: World, probe: Probe, legs: Mapping[Step, Leg]
) -> Iterable[ObservedEncapsulation]:
    """Yield in which encapsulation one conversation's packets to pods left the uplink of the node before."""
    for step, leg in legs.items():
        origin, target = (probe.sender, probe.receiver) if step.forward else (probe.receiver, probe.sender)
        node = world.node(origin.node)
        if node is None or origin.node == target.node or not isinstance(target, PodPoint):
            continue
        expected = expected_of(world, probe, step).name
        for seen in leg.sightings:
            if seen.outgoing and (seen.point, seen.interface) == (node.label, node.uplink):
                yield ObservedEncapsulation(
                    origin.node, target.node, probe.family, observed_encapsulation(seen.packet), expected
                )
