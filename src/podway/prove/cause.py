"""What a failure comes from, in words that fit every failure of the same cause."""

import msgspec

from podway.api.addresses import Address
from podway.prove.world import NodePoint, Point, World


class Cause(msgspec.Struct, frozen=True):
    """What is wrong, and what to do about it. `detail` is one example, with its own addresses.

    `root` is what several failures have in common, in words with `{}` where `among` comes: pairs of nodes, or one
    place. Failures of one root are one finding. Empty: those that say the same are.
    """

    problem: str
    advice: str
    detail: str = ""
    root: str = ""
    among: tuple[str, ...] = ()


def place(world: World, address: Address, holder: Point, at: Point) -> str:
    """Name who has an address as a route at another point knows it: by the block, if on another node."""
    block = world.block_of(address)
    if block is None or block.node == at.node or isinstance(holder, NodePoint):
        return holder.label
    return f"{block.node}'s block {block.network}"


def command(world: World, label: str, text: str) -> str:
    """Return a command to type, such that it runs where the point of this label is."""
    point = world.points.get(label)
    return f"`nsenter --net={point.netns} {text}`" if point and point.netns else f"`{text}`"


def too_small(mtu: int, device: str, length: int) -> Cause:
    """Return the cause of a packet larger than a device takes; sizes in bytes."""
    return Cause(
        f"the MTU of {device} is {mtu}, but packets of {length} bytes must pass",
        f"raise it to at least {length}, or lower that of the pods' links (NetworkConfig spec.mtu)",
    )
