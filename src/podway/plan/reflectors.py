"""Which nodes reflect routes (RFC 4456): those that the operator labelled, else some that Podway chooses.

The choice depends on nothing but names and racks, so every agent makes the same one without asking, and it is
stable (rendezvous hashing): a node that joins or leaves changes one reflector at most.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from heapq import nsmallest

from podway.api.resources import Node, ReflectorSettings


def reflectors(nodes: Iterable[Node], settings: ReflectorSettings) -> frozenset[str]:
    """Return the names of the nodes that reflect; none only if there are no nodes.

    Nodes of different racks come first: reflectors that fail together are worth one. If no node has the labels
    of the selector, Podway chooses as if there were none: routes matter more.
    """
    nodes = tuple(nodes)
    selector = settings.node_selector
    labelled = [node for node in nodes if selector is not None and selector.matches(node.metadata.labels)]
    if labelled:
        return frozenset(node.metadata.name for node in labelled)
    racks: dict[str, list[tuple[int, str]]] = {}
    for node in nodes:
        racks.setdefault(node.rack, []).append((_weight(node.metadata.name), node.metadata.name))
    ranked = sorted(
        (place, weight, name)
        for members in racks.values()
        for place, (weight, name) in enumerate(nsmallest(settings.count, members))
    )
    return frozenset(name for _, _, name in ranked[: settings.count])


@lru_cache(maxsize=1 << 14)  # asked of thousands of nodes at each change
def _weight(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
