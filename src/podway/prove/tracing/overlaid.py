"""How a kernel's entries lead a packet from an overlay device to another node: what stands there, hop by hop."""

from ipaddress import IPv4Address
from typing import Literal

import msgspec

from podway.api.addresses import Address
from podway.api.kinds.ip_pool import Encapsulation
from podway.kernel.network import Lookup
from podway.plan.objects import IPIP_DEVICE
from podway.probe.facts import Ground, Way
from podway.prove.witness import Witness
from podway.prove.world import Place


class Overlaid(msgspec.Struct, frozen=True):
    """The way below an overlay device: from the route's gateway to the device that carries the outer packet.

    `mac` is what the neighbour table says of the gateway, empty if nothing; `endpoint` the node's address that
    this leads to, by the forwarding database or (IPIP) by the MAC itself, None if it leads nowhere. `program`
    says whether the IPIP program hangs on the device. `way` is the outer packet's, None without an endpoint.
    """

    form: Encapsulation
    gateway: Address | None
    mac: str = ""
    permanent: bool = False
    endpoint: Address | None = None
    program: bool = True
    way: Way | None = None

    @property
    def wire(self) -> str:
        """The device that the outer packet leaves by; empty if it does not."""
        return self.way.device if isinstance(self.way, Lookup) and self.way.type == "unicast" else ""

    @property
    def router(self) -> Address | None:
        """The gateway of the outer packet, None if the other node is on the segment."""
        return self.way.gateway if isinstance(self.way, Lookup) else None

    @property
    def broken(self) -> Literal["", "neighbour", "forwarding", "program", "route"]:
        """What is missing for the packet to leave; empty if nothing is."""
        if not self.mac:
            return "neighbour"
        if self.endpoint is None:
            return "forwarding"
        if not self.program:
            return "program"
        return "" if self.wire else "route"


def form_of(ground: Ground, device: str) -> Encapsulation:
    """Return the form in which packets leave that are routed out of a device."""
    link = ground.links.get(device)
    if link is not None and link.kind == "vxlan":
        return "vxlan"
    return "ipip" if device == IPIP_DEVICE else "none"


def below(witness: Witness, point: Place, ground: Ground, way: Lookup) -> Overlaid | None:
    """Return what a node does with a packet that is routed out of an overlay device; None for other devices.

    Raises KernelError, InvalidInput, AgentError.
    """
    form = form_of(ground, way.device)
    if form == "none":
        return None
    key = (way.device, way.gateway) if way.gateway else None
    mac = ground.neighbours.get(key, "") if key else ""
    endpoint = _endpoint(form, ground, way.device, mac)
    return Overlaid(
        form,
        way.gateway,
        mac,
        key in ground.permanent,
        endpoint,
        form == "vxlan" or (way.device, "encap") in ground.programs,
        witness.way(point, endpoint, None, "") if endpoint else None,
    )


def _endpoint(form: Encapsulation, ground: Ground, device: str, mac: str) -> Address | None:
    if form == "vxlan" or not mac:
        return ground.forwarding.get((device, mac))
    return IPv4Address(bytes.fromhex(mac.replace(":", ""))[2:])
