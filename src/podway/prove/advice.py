"""What to do about a cause: every command that changes something is made here.

Before it is told it is held against whose the thing is and what is so already. What is Podway's own nobody removes
by hand: the agent puts it back, and what is wrong lies elsewhere. Nor is a route removed on which others depend: a
default route, a subnet of the node's own.
"""

import msgspec

from podway.api.addresses import Address, Network, is_within
from podway.api.lease import LINK_PREFIX
from podway.kernel.network import RTPROT_BIRD
from podway.plan.fabric import DEVICES
from podway.plan.objects import BRIDGE_DEVICE, MAIN_TABLE, ROUTE_PROTOCOL, SEGMENT_DEVICE
from podway.prove.cause import command
from podway.prove.inspector import Inspector
from podway.prove.world import Point, World

OURS = frozenset({ROUTE_PROTOCOL, RTPROT_BIRD})
"""rtm_protocol of the routes that the agent and its BIRD keep."""
RTPROT_KERNEL = 2
REPAIRED = "the agent puts this back within a second: if it stays so, see `podway doctor` and the agent's log"


class ConflictingRoute(msgspec.Struct, frozen=True):
    """A route that sends packets where they should not go; `protocol` is rtm_protocol, 0 for what nobody told."""

    destination: Network
    type: str = "unicast"
    device: str = ""
    gateway: Address | None = None
    protocol: int = 0
    table: int = 0
    metric: int = 0

    def __str__(self) -> str:
        """Return it as `ip route` takes it."""
        words = [] if self.type == "unicast" else [self.type]
        words.append(str(self.destination))
        words += ["via", str(self.gateway)] if self.gateway else []
        words += ["dev", self.device] if self.device else []
        words += ["metric", str(self.metric)] if self.metric and self.type == "unicast" else []
        words += ["table", str(self.table)] if self.table not in (0, MAIN_TABLE) else []
        return " ".join(words)


def is_ours(device: str) -> bool:
    """Tell whether a device is one that Podway makes."""
    return device.startswith(LINK_PREFIX) or device in (*DEVICES.values(), BRIDGE_DEVICE, SEGMENT_DEVICE)


def against_route(world: World, at: Point, route: ConflictingRoute, wanted: Network) -> str:
    """Return what to do about a route by which packets for `wanted` (a block, a pod) go astray."""
    node = at.node
    if route.protocol in OURS:
        return (
            f"leave that route, it is Podway's own: see `podway status {node}` for what the agent cannot repair, "
            f"and `podway get routes {node}`"
        )
    if not is_within(route.destination, wanted):
        return (
            f"leave that route, it is wider and others need it; what lacks is the one to {wanted}: see "
            f"`podway get routes {node}`, and the BGP sessions (`podway get peers {node}`)"
        )
    if route.protocol == RTPROT_KERNEL:
        return f"give {route.device} another subnet: this route stands as long as its address"
    return command(world, at.label, f"ip route del {route}")


def prefer_source(world: World, at: Point, route: ConflictingRoute, source: Address) -> str:
    """Return what to do about a route that makes a node send from an address that is not its own."""
    if route.protocol in OURS:
        return f"leave that route, it is Podway's own; {REPAIRED}"
    return command(world, at.label, f"ip route change {route} src {source}")


def setting(world: World, inspector: Inspector, at: Point, path: str, value: str, *, otherwise: str) -> str:
    """Return the command that sets a kernel setting; `otherwise` if it has the value already."""
    if inspector.setting(at, path) == value:
        return otherwise
    return command(world, at.label, f"sysctl -w {path.replace('/', '.')}={value}")


def bring_up(world: World, label: str, device: str) -> str:
    """Return what to do about a device that is down."""
    up = command(world, label, f"ip link set {device} up")
    return f"{up}; {REPAIRED}" if is_ours(device) else up


def forget_neighbour(world: World, inspector: Inspector, at: Point, device: str, address: Address) -> str:
    """Return what to do about a neighbour entry with a wrong hardware address."""
    if (device, address) not in inspector.kernel_state(at).permanent:
        flush = command(world, at.label, f"ip neighbour flush to {address} dev {device}")
        return f"{flush}; if it comes back, two devices have the same address"
    if is_ours(device):
        return REPAIRED
    return command(world, at.label, f"ip neighbour del {address} dev {device}") + ", which somebody wrote by hand"


def remove_address(world: World, inspector: Inspector, at: Point, address: Address) -> str:
    """Return what to do about an address that a node takes for its own, and that is another's."""
    held = [(device, one) for device, one in inspector.kernel_state(at).addresses if one.ip == address]
    foreign = [(device, one) for device, one in held if not is_ours(device)]
    if not foreign:
        return command(world, at.label, f"ip address show to {address}") + f"; if it is Podway's, {REPAIRED}"
    return "; ".join(command(world, at.label, f"ip address del {one} dev {device}") for device, one in foreign)
