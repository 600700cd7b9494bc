"""Which nodes reflect routes (RFC 4456): those that the operator labelled, else some that Podway chooses.

The choice depends on nothing but what stands in the view, so every agent makes the same one without asking, and it
is stable: nodes stand in a row by racks and names (rendezvous hashing), of which the first are taken. A node that
joins or leaves changes one reflector at most.

Nobody has to decide whether a reflector lives. Every node says which of those that it should have a session with
it has lost (BGP_LOST), and the row is taken so far as to give the nodes enough that they have not lost. One that
is lost keeps its place, and its sessions are tried on: it reflects again as soon as it is back. So a word that is
wrong, or heard late, makes some sessions more than needed, and never one too few.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import nsmallest

from podway.api.addresses import Family
from podway.api.kinds.network_config import ReflectorSettings
from podway.api.kinds.node import Node

REDUNDANT = 2
"""So many reflectors should work: then the death of one takes nobody's routes."""

WITHOUT = 4
"""One in so many nodes may be without enough reflectors: where few have lost all, these few are at fault."""


def reflectors(nodes: Iterable[Node], settings: ReflectorSettings) -> frozenset[str]:
    """Return the names of the nodes that reflect; none only if there are no nodes.

    Nodes of different racks come first: reflectors that fail together are worth one. Every family gets reflectors
    that have an address of it. Labelled nodes all reflect; Podway adds others while too few of them work, and
    chooses as if there were no selector if no node has the labels: routes matter more.
    """
    nodes = tuple(nodes)
    selector = settings.node_selector
    labelled = {
        node.metadata.name for node in nodes if selector is not None and selector.matches(node.metadata.labels)
    }
    return frozenset(name for members in _by_family(nodes) for name in _enough(members, labelled, settings.count))


def lost_by(nodes: Iterable[Node], reflector: str) -> frozenset[str]:
    """Return the nodes that say that they have lost this reflector."""
    return frozenset(node.metadata.name for node in nodes if reflector in node.lost)


def _by_family(nodes: Sequence[Node]) -> Iterator[Sequence[Node]]:
    """Yield the nodes that have an address of each family; all once, if they do not differ in that."""
    found = [[node for node in nodes if node.internal_address(family) is not None] for family in Family]
    if all(len(members) in {0, len(nodes)} for members in found):
        yield nodes
    else:
        yield from filter(None, found)


def _enough(members: Sequence[Node], labelled: set[str], count: int) -> Sequence[str]:
    """Return the beginning of the row that is long enough."""
    words = [node.lost for node in members if node.lost]
    first = [node.metadata.name for node in members if node.metadata.name in labelled]
    begin = len(first) or count
    if first and not words:
        return first
    others = [node for node in members if node.metadata.name not in labelled] if first else members
    row = [*first, *_ranked(others, len(members) if words else count)]
    wanted = min(REDUNDANT if first else count, begin, len(members))
    has = [sum(name not in lost for name in row[:begin]) for lost in words]
    for end in range(begin, len(row)):
        if WITHOUT * sum(each < wanted for each in has) <= len(members):
            return row[:end]
        has = [each + (row[end] not in lost) for each, lost in zip(has, words, strict=True)]
    return row


def _ranked(nodes: Iterable[Node], count: int) -> Sequence[str]:
    """Return the first `count` names of the row."""
    racks: dict[str, list[tuple[int, int, str]]] = {}
    for node in nodes:
        name = node.metadata.name
        racks.setdefault(node.rack, []).append((-len(node.internal_addresses), _weight(name), name))
    ranked = sorted(
        (place, *rank) for members in racks.values() for place, rank in enumerate(nsmallest(count, members))
    )
    return [name for _, _, _, name in ranked[:count]]


@lru_cache(maxsize=1 << 14)  # asked of thousands of nodes at each change
def _weight(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
