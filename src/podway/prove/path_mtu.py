"""Why a packet was lost for its size: a path between two nodes that is narrower than they think."""

import msgspec

from podway.api.addresses import Address, Family
from podway.bgp.probe import SMALLEST
from podway.errors import PodwayError
from podway.prove.cause import Cause
from podway.prove.inspector import Inspector
from podway.prove.judge import Code, Fault
from podway.prove.probe import Step
from podway.prove.world import NodePoint, World


class NodePath(msgspec.Struct, frozen=True):
    """A packet of `length` bytes, outer headers and all, that one node was to send to another one's `address`."""

    here: NodePoint
    there: NodePoint
    address: Address
    length: int


def node_path_of(world: World, fault: Fault) -> NodePath | None:
    """Return what was to cross between nodes and did not; None if that is not what was lost, or it was small."""
    here, there = world.node(fault.origin.node), world.node(fault.target.node)
    if here is None or there is None or here is there or fault.code not in (Code.LOST, Code.NOT_SENT):
        return None
    if fault.last is not None and fault.last.point not in (fault.origin.label, here.label):
        return None
    whole = fault.step in (Step.REQUEST, Step.REPLY)
    inner = fault.last.packet.length if fault.last else fault.probe.size if whole else 0
    address = fault.expected.destination or there.address(fault.probe.family)
    if address is None:
        return None
    length = inner + fault.expected.overhead
    return NodePath(here, there, address, length) if length > SMALLEST[Family.of(address)] else None


def explain_size(world: World, fault: Fault, inspector: Inspector) -> Cause | None:
    """Return the cause if it is the packet's size, as packets of other sizes show; None if it is not.

    A device of the two nodes that is too small is told as such elsewhere. Raises InvalidInput or KernelError.
    """
    node_path = node_path_of(world, fault)
    if node_path is None or any(
        _smaller(node, node_path.length, inspector) for node in (node_path.here, node_path.there)
    ):
        return None
    found = inspector.path_mtu(node_path.here, node_path.address, node_path.length)
    if found is None or found.fits >= node_path.length:
        return None
    here, there, length = node_path.here, node_path.there, node_path.length
    less = found.fits - fault.expected.overhead
    smallest = SMALLEST[max(Family.of(node_path.address), fault.probe.family)]
    spare = f", or have pods send less: `podway set config mtu={less}`" if less >= smallest else ""
    most = f"packets of more than {found.fits} bytes do not pass between"
    return Cause(
        f"{most} {here.label} and {there.label}, but pods' cross in {length}",
        f"raise the MTU of what lies between to {length} "
        f"(find it: `tracepath {node_path.address}` on {here.label})" + spare,
        f"{here.label} tried sizes up to {length} to {node_path.address}; "
        + ("its kernel was told so by ICMP" if found.told else "nobody told it so: a black hole (RFC 2923)"),
        root=f"{most} nodes, but pods' are larger: {{}}",
        among=(here.name, there.name),
    )


def _smaller(node: NodePoint, length: int, inspector: Inspector) -> bool:
    try:
        link = inspector.kernel_state(node).links.get(node.uplink)
    except PodwayError:
        return False  # nobody can be asked there
    return link is not None and link.mtu < length
