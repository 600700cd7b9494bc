"""Rule 1: every pod has an address of its own, unique, inside one of its node's blocks.

Pure: compares what the store says, what the blocks say and what stands in the pods' namespaces.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import msgspec

from podway.api.addresses import Address
from podway.prove.world import PodPoint, World


class AddressFault(msgspec.Struct, frozen=True):
    """Something wrong with pods' addresses. `code` is part of the report's schema."""

    code: str
    problem: str
    advice: str
    subjects: tuple[str, ...]
    last_seen: str = ""


def address_faults(world: World, real: Mapping[str, tuple[Address, ...]]) -> list[AddressFault]:
    """Return everything that is wrong with addresses and blocks.

    `real` has the addresses that stand on each pod's interface, keyed by the pod's label.
    """
    faults = _overlapping(world)
    for pod in world.pods:
        faults += _own(pod, real[pod.label])
        for address in pod.addresses:
            faults += _inside(world, pod, address)
    return faults + _shared(world, real)


def _overlapping(world: World) -> list[AddressFault]:
    return [
        AddressFault(
            "blocks-overlap",
            f"the blocks {one.network} of {one.node} and {other.network} of {other.node} overlap",
            "delete one of the two AddressBlock objects and start its node's pods anew",
            (f"node {one.node}", f"node {other.node}"),
        )
        for one, other in combinations(world.blocks, 2)
        if one.network.version == other.network.version and one.network.overlaps(other.network)
    ]


def _own(pod: PodPoint, real: tuple[Address, ...]) -> list[AddressFault]:
    """Compare what the store says of a pod with what the pod has."""
    if set(real) == set(pod.addresses):
        return []
    return [
        AddressFault(
            "address-differs",
            f"{pod.label} has {_list(real)}, but its status says {_list(pod.addresses)}",
            "delete the pod and start it anew; if this comes back, somebody changes addresses inside pods",
            (pod.label,),
            f"on {pod.ifname} of {pod.label}",
        )
    ]


def _inside(world: World, pod: PodPoint, address: Address) -> list[AddressFault]:
    blocks = [block for block in world.blocks if address in block.network]
    if any(block.node == pod.node for block in blocks):
        return []
    where = "and ".join(f"{block.node}'s block {block.network}" for block in blocks) or "no node's block"
    return [
        AddressFault(
            "outside-block",
            f"{pod.label} on node {pod.node} has {address}, which lies in {where}",
            "delete the pod and start it anew; other nodes send its packets to the block's owner",
            (pod.label,),
        )
    ]


def _shared(world: World, real: Mapping[str, tuple[Address, ...]]) -> list[AddressFault]:
    holders: dict[Address, set[str]] = defaultdict(set)
    for point in world.points.values():
        for address in (*point.addresses, *real.get(point.label, ())):
            holders[address].add(point.label)
    return [
        AddressFault(
            "address-shared",
            f"{_list(labels)} have the same address {address}",
            "delete all but one of them and start them anew",
            tuple(sorted(labels)),
        )
        for address, labels in holders.items()
        if len(labels) > 1
    ]


def _list(things: Iterable[object]) -> str:
    return " and ".join(sorted(str(thing) for thing in things)) or "no address"
