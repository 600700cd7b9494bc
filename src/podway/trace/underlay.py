"""How a kernel's entries lead a packet from an overlay device to another node: what stands there, hop by hop."""

from ipaddress import IPv4Address
from typing import Literal

import msgspec

from podway.api.addresses import Address
from podway.api.kinds.ip_pool import Encapsulation
from podway.kernel.network import Lookup
from podway.plan.objects import IPIP_DEVICE
from podway.probe.facts import KernelState, RouteLookup
from podway.prove.inspector import Inspector
from podway.prove.world import Place


class UnderlayPath(msgspec.Struct, frozen=True):
    """The way below an overlay device: from the route's gateway to the device that carries the outer packet.

    `mac` is what the neighbour table says of the gateway, empty if nothing; `endpoint` the node's address that
    this leads to, by the forwarding database or (IPIP) by the MAC itself, None if it leads nowhere. `program`
    says whether the IPIP program hangs on the device. `lookup` is the outer packet's, None without an endpoint.
    """

    encapsulation: Encapsulation
    gateway: Address | None
    mac: str = ""
    permanent: bool = False
    endpoint: Address | None = None
    program: bool = True
    lookup: RouteLookup | None = None

    @property
    def wire(self) -> str:
        """The device that the outer packet leaves by; empty if it does not."""
        return self.lookup.device if isinstance(self.lookup, Lookup) and self.lookup.type == "unicast" else ""

    @property
    def router(self) -> Address | None:
        """The gateway of the outer packet, None if the other node is on the segment."""
        return self.lookup.gateway if isinstance(self.lookup, Lookup) else None

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


def encapsulation_of(kernel_state: KernelState, device: str) -> Encapsulation:
    """Return the encapsulation in which packets leave that are routed out of a device."""
    link = kernel_state.links.get(device)
    if link is not None and link.kind == "vxlan":
        return "vxlan"
    return "ipip" if device == IPIP_DEVICE else "none"


def underlay_path(
    inspector: Inspector, point: Place, kernel_state: KernelState, lookup: Lookup
) -> UnderlayPath | None:
    """Return what a node does with a packet that is routed out of an overlay device; None for other devices.

    Raises KernelError, InvalidInput, AgentError.
    """
    encapsulation = encapsulation_of(kernel_state, lookup.device)
    if encapsulation == "none":
        return None
    key = (lookup.device, lookup.gateway) if lookup.gateway else None
    mac = kernel_state.neighbours.get(key, "") if key else ""
    endpoint = _endpoint(encapsulation, kernel_state, lookup.device, mac)
    return UnderlayPath(
        encapsulation,
        lookup.gateway,
        mac,
        key in kernel_state.permanent,
        endpoint,
        encapsulation == "vxlan" or (lookup.device, "encap") in kernel_state.programs,
        inspector.lookup(point, endpoint, None, "") if endpoint else None,
    )


def _endpoint(encapsulation: Encapsulation, kernel_state: KernelState, device: str, mac: str) -> Address | None:
    if encapsulation == "vxlan" or not mac:
        return kernel_state.forwarding.get((device, mac))
    return IPv4Address(bytes.fromhex(mac.replace(":", ""))[2:])
