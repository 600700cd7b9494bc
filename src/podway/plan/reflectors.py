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
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator, Sequence
from heapq import nsmallest
from typing import TypeAlias

from podway.api.addresses import Family
from podway.api.kinds.network_config import ReflectorSettings
from podway.api.kinds.node import Node
from podway.api.meta import LabelSelector
from podway.cluster.table import Table

REDUNDANT = 2
"""So many reflectors should work: then the death of one takes nobody's routes."""

_Rank: TypeAlias = tuple[int, int, str]
"""A node's place in its rack: those of most families first, then by a number that its name gives; and its name."""

WITHOUT = 4
"""One in so many nodes may be without enough reflectors: where few have lost all, these few are at fault."""


def reflectors(nodes: Table[str, Node], settings: ReflectorSettings) -> frozenset[str]:
    """Return the names of the nodes that reflect; none only if there are no nodes.

    Nodes of different racks come first: reflectors that fail together are worth one. Every family gets reflectors
    that have an address of it. Labelled nodes all reflect; Podway adds others while too few of them work, and
    chooses as if there were no selector if no node has the labels: routes matter more.
    """
    return Candidates().reflectors(nodes, settings)


class Candidates:
    """Chooses as `reflectors` does, again and again: keeps the rows in step with the nodes, one node at a time."""

    def __init__(self) -> None:
        self._rows: dict[Family | None, _Row] = {}
        """By the family that the members have an address of; None for a row of all nodes."""
        self._selector: LabelSelector | None = None

    def follow(self, nodes: Table[str, Node], changed: Iterable[str]) -> None:
        """Take over what became of nodes: all whose objects changed since `reflectors` was asked last."""
        for name in changed if self._rows else ():
            for row in self._rows.values():
                row.put(name, nodes.get(name))

    def forget(self) -> None:
        """Begin anew: which nodes changed is not known."""
        self._rows = {}

    def reflectors(self, nodes: Table[str, Node], settings: ReflectorSettings) -> frozenset[str]:
        """Return what `reflectors` does."""
        if settings.node_selector != self._selector:
            self.forget()
        self._selector = settings.node_selector
        lost = {name: nodes[name].lost for each in nodes.indexed("lost") for name in nodes.names("lost", each)}
        rows = {family: self._row(nodes, family) for family in _groups(nodes)}
        self._rows = rows  # and no others, which would have to be kept in step
        return frozenset(
            name
            for row in rows.values()
            for name in row.enough(settings.count, [each for name, each in lost.items() if name in row.members])
        )

    def _row(self, nodes: Table[str, Node], family: Family | None) -> "_Row":
        return self._rows.get(family) or _Row(nodes, family, self._selector)


def lost_by(nodes: Table[str, Node], reflector: str) -> frozenset[str]:
    """Return the nodes that say that they have lost this reflector."""
    return nodes.names("lost", reflector)


def _groups(nodes: Table[str, Node]) -> Sequence[Family | None]:
    """Return the families that nodes have addresses of; None alone if the nodes do not differ in that."""
    counts = {families: nodes.count("families", families) for families in nodes.indexed("families")}
    found = [
        sum(count for families, count in counts.items() if isinstance(families, frozenset) and family in families)
        for family in Family
    ]
    if all(count in {0, len(nodes)} for count in found):
        return [None]
    return [family for family, count in zip(Family, found, strict=True) if count]


class _Row:
    """The nodes that have an address of a family (None: all), in the row from which reflectors are taken.

    Those that `selector` matches stand at its beginning, the others by racks.
    """

    def __init__(self, nodes: Table[str, Node], family: Family | None, selector: LabelSelector | None) -> None:
        self._family, self._selector = family, selector
        self.members: dict[str, tuple[Hashable, _Rank] | None] = {}
        """With their racks and places there; None for those that are labelled."""
        self._racks: dict[Hashable, list[_Rank]] = {}
        for name, node in nodes.items():
            place = self._enter(name, node)
            if place is not None:
                self._racks.setdefault(place[0], []).append(place[1])
        for members in self._racks.values():
            members.sort()

    def put(self, name: str, node: Node | None) -> None:
        """Take a node's present state; None if it is gone."""
        former = self.members.pop(name, None)
        if former is not None:
            rack, rank = former
            members = self._racks[rack]
            del members[bisect_left(members, rank)]
            if not members:
                del self._racks[rack]
        place = None if node is None else self._enter(name, node)
        if place is not None:
            insort(self._racks.setdefault(place[0], []), place[1])

    def enough(self, count: int, words: Sequence[frozenset[str]]) -> Sequence[str]:
        """Return the beginning of the row that is long enough. `words`: what members that lost any have lost."""
        first = sorted(name for name, place in self.members.items() if place is None) if self._selector else []
        begin, size = len(first) or count, len(self.members)
        if first and not words:
            return first
        row = [*first, *self._ranked(size if words else count)]
        wanted = min(REDUNDANT if first else count, begin, size)
        has = [sum(name not in lost for name in row[:begin]) for lost in words]
        for end in range(begin, len(row)):
            if WITHOUT * sum(each < wanted for each in has) <= size:
                return row[:end]
            has = [each + (row[end] not in lost) for each, lost in zip(has, words, strict=True)]
        return row

    def _enter(self, name: str, node: Node) -> tuple[Hashable, _Rank] | None:
        """Make a node a member, if it has an address of the family; return its place if it is to have one."""
        if self._family is not None and node.internal_address(self._family) is None:
            return None
        labelled = self._selector is not None and self._selector.matches(node.metadata.labels)
        place = None if labelled else (node.rack_key, (-len(node.internal_addresses), _weight(name), name))
        self.members[name] = place
        return place

    def _ranked(self, count: int) -> Iterator[str]:
        """Yield the first `count` names of those that are not labelled."""
        racks = self._racks.values()
        deep = 1 if len(racks) >= count else count
        ranked = ((place, *rank) for members in racks for place, rank in enumerate(members[:deep]))
        for _, _, _, name in nsmallest(count, ranked):
            yield name


def _weight(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
