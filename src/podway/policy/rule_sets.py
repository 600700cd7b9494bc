"""Rule sets: the rules of one direction that pods with the same policies share, and their entries. Pure.

A set has entries for everybody, and for each identity that some rule of it speaks of. Those of one identity are
computed together: at each key every tier keeps the rule of greatest precedence, for no other could be heard
there.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple, TypeAlias

from podway.api.resource import Key
from podway.errors import PodwayError
from podway.policy.maps import (
    ANY_PROTOCOL,
    ENGINES_OWN,
    MOST_RULE_SETS,
    NO_RULES,
    Columns,
    Direction,
    Rule,
    RuleName,
    Tier,
)
from podway.policy.matching import Profile, ServedPort
from podway.policy.rules import EVERY_PORT, NamedPort, PortPrefix

Place: TypeAlias = int | str | None
"""Under what a set has its rules: an atom, the name of a port of anybody's, or None for what is for everybody."""

Row: TypeAlias = Mapping[PortPrefix, Columns]
"""The entries of a set for one identity."""

_SILENT: Columns = (None, None, None)


class SetName(NamedTuple):
    """What makes a set: policies in order, and the numbers of the named ports that their ingress rules ask for."""

    direction: Direction
    policies: tuple[Key, ...]
    served: tuple[tuple[NamedPort, tuple[tuple[int, int], ...]], ...] = ()


class SetRule(NamedTuple):
    """A rule in a set. `named` are ports of the other end, by name."""

    order: tuple[Key, int]
    tier: Tier
    rule: Rule
    ports: tuple[PortPrefix, ...]
    named: tuple[NamedPort, ...]


class RuleSet:
    """A numbered set: its rules by what they ask of the other end, and what is held for it elsewhere."""

    __slots__ = (
        "atoms",
        "holders",
        "isolation",
        "lengths",
        "name",
        "number",
        "ports",
        "rows",
        "rule_names",
        "rules",
    )

    def __init__(self, number: int, name: SetName) -> None:
        self.number = number
        self.name = name
        self.holders: set[Profile] = set()
        self.rules: dict[Place, tuple[SetRule, ...]] = {}
        self.rows: dict[frozenset[Place], Row] = {}
        """Rows by the places that they come of, for most identities are alike to a set; emptied with new rules."""
        self.isolation: Rule | None = None
        self.atoms: list[int] = []
        self.ports: list[str] = []
        self.rule_names: list[RuleName] = []
        self.lengths: Counter[int] = Counter()

    @property
    def port_lengths(self) -> int:
        """Bit n: an entry has a prefix of n bits of the port."""
        return sum(1 << length for length in self.lengths)

    def row(self, atoms: frozenset[int], served: Mapping[int, ServedPort]) -> Row:
        """Return the entries for an identity of these atoms, of which `served` are named ports."""
        places = frozenset(self.rules.keys() & atoms)
        if served:
            return self._row(places, served)
        row = self.rows.get(places)
        if row is None:
            row = self.rows[places] = self._row(places, served)
        return row

    def _row(self, places: Iterable[Place], served: Mapping[int, ServedPort]) -> Row:
        found: dict[PortPrefix, list[SetRule | None]] = {}
        for atom in places:
            for rule in self.rules[atom]:
                for port in rule.ports:
                    _put(found, port, rule)
                for name in rule.named:
                    for port in _numbers(name, served.values()):
                        _put(found, port, rule)
        for one in served.values():
            for rule in self.rules.get(one.name, ()):
                for name in rule.named:
                    for port in _numbers(name, (one,)):
                        _put(found, port, rule)
        return {port: _columns(column) for port, column in found.items()}

    def row_of_everybody(self) -> Row:
        """Return the entries for every address, whatever is known of it."""
        found: dict[PortPrefix, list[SetRule | None]] = {}
        for rule in self.rules.get(None, ()):
            for port in rule.ports:
                _put(found, port, rule)
        row = {port: _columns(column) for port, column in found.items()}
        if self.isolation is not None:
            admin, allowing, baseline = row.get(EVERY_PORT, _SILENT)
            row[EVERY_PORT] = (admin, allowing or self.isolation, baseline)
        return row

    def count(self, old: Iterable[PortPrefix], new: Iterable[PortPrefix]) -> None:
        """Keep count of the lengths of port prefixes in use."""
        for port in old:
            if port.protocol != ANY_PROTOCOL:
                self.lengths[port.length] -= 1
                if not self.lengths[port.length]:
                    del self.lengths[port.length]
        for port in new:
            if port.protocol != ANY_PROTOCOL:
                self.lengths[port.length] += 1


class Numbers:
    """Numbers of rule sets, the lowest free one first; what is given back is free from the next `turn` on.

    `former` are those that another planner has left in the data path: one that is claimed goes on to mean the same
    set, the others are free once they were deleted there.
    """

    def __init__(self, first: int, former: Iterable[int] = ()) -> None:
        self._fresh = chain(range(first, MOST_RULE_SETS), range(NO_RULES + 1, first))
        self._left = set(former)
        self._former = frozenset(self._left)
        self._free: list[int] = []
        self._resting: list[int] = []

    def take(self) -> int:
        """Return a free number. Raises PodwayError if there is none, which so many pods on a node would need."""
        if self._free:
            return heapq.heappop(self._free)
        number = next((number for number in self._fresh if number not in self._former), None)
        if number is None:
            raise PodwayError(
                f"the pods of this node need more than {MOST_RULE_SETS - 1} rule sets",
                hint="run fewer pods on it, or let more of them share their labels and policies",
            )
        return number

    def claim(self, number: int) -> bool:
        """Take a former number; tell whether it was still to be had."""
        there = number in self._left
        self._left.discard(number)
        return there

    def leave(self) -> None:
        """Claim no more: what is left of the former numbers is given back."""
        self._resting += self._left
        self._left.clear()

    def give_back(self, number: int) -> None:
        """Take a number back."""
        self._resting.append(number)

    def turn(self) -> None:
        """Let the numbers that were given back be taken again."""
        for number in self._resting:
            heapq.heappush(self._free, number)
        self._resting.clear()


class RuleNumbers:
    """Numbers of rules by their names: digests of them, so that a planner that starts anew gives the same.

    Old events can be read, for a number hardly ever means two rules: of two names with one digest, the one that is
    known later has the next number.
    """

    def __init__(self) -> None:
        self._numbers: dict[RuleName, int] = {}
        self._held: Counter[RuleName] = Counter()
        self.names: dict[int, RuleName] = {}

    def hold(self, name: RuleName) -> int:
        """Return a rule's number, a new one if it has none."""
        self._held[name] += 1
        number = self._numbers.get(name)
        if number is None:
            number = _digest(name)
            while number in self.names or number < ENGINES_OWN:
                number = (number + 1) & 0xFFFFFFFF
            self._numbers[name] = number
            self.names[number] = name
        return number

    def release(self, name: RuleName) -> None:
        """Undo one `hold`."""
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name], self.names[self._numbers.pop(name)]


def _digest(name: RuleName) -> int:
    return int.from_bytes(hashlib.blake2s(repr(tuple(name)).encode(), digest_size=4).digest())


def _numbers(name: NamedPort, served: Iterable[ServedPort]) -> Iterator[PortPrefix]:
    for port in served:
        if port.name == name.name and name.protocol in (ANY_PROTOCOL, port.protocol):
            yield PortPrefix(port.protocol, port.number, 16)


def _put(found: dict[PortPrefix, list[SetRule | None]], port: PortPrefix, rule: SetRule) -> None:
    column = found.setdefault(port, [None, None, None])
    known = column[rule.tier]
    if known is None or _rank(rule) > _rank(known) or (_rank(rule) == _rank(known) and rule.order < known.order):
        column[rule.tier] = rule


def _rank(rule: SetRule) -> tuple[int, int]:
    return (rule.rule.precedence, rule.rule.verdict)


def _columns(column: list[SetRule | None]) -> Columns:
    admin, allowing, baseline = (None if rule is None else rule.rule for rule in column)
    return (admin, allowing, baseline)
