"""Identities: one number for all addresses that no rule of this node tells apart. Pure.

An atom is the peers of a rule, or a named port: something that rules ask of an address. What matters of an
address is the set of atoms that it matches: by the profile of the pod or node that holds it, and by the
networks that it lies in. Addresses of the same set have one identity; those of the empty set have none.

Networks cut the space of addresses into regions: a region is a prefix that some rule names, without the longer
ones in it, so the longest prefix says what an address lies in. What has a profile and a region in common is a
cell; cells, not addresses, go from identity to identity.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from podway.policy.maps import ANYBODY, Prefix
from podway.policy.matching import Profile
from podway.policy.rules import Block

_MANY = 500
"""Addresses that are cheaper to sort anew than to insert one by one."""

NOTHING: frozenset[int] = frozenset()


class Identity:
    """A number, and the atoms that its addresses match."""

    __slots__ = ("atoms", "cells", "number", "size")

    def __init__(self, number: int, atoms: frozenset[int]) -> None:
        self.number = number
        self.atoms = atoms
        self.cells: set[_Cell] = set()
        self.size = 0
        """Prefixes in its cells, as far as is known when they come in."""


class _Region:
    """A prefix that rules name, and the atoms of the blocks around it."""

    __slots__ = ("atoms", "cell", "holders", "prefix")

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix
        self.atoms = NOTHING
        self.holders = 0
        self.cell = _Cell(None, self)
        self.cell.members.add(prefix)


class _Cell:
    """The addresses of a profile in a region; of no profile, the region itself."""

    __slots__ = ("identity", "members", "profile", "region")

    def __init__(self, profile: Profile | None, region: _Region | None) -> None:
        self.profile = profile
        self.region = region
        self.members: set[Prefix] = set()
        self.identity: Identity | None = None

    @property
    def atoms(self) -> frozenset[int]:
        """What its addresses match; what has a profile that matches nothing is left to its region."""
        if not self.members or (self.profile is not None and not self.profile.atoms):
            return NOTHING
        own = NOTHING if self.profile is None else self.profile.atoms
        return own if self.region is None else own | self.region.atoms


class Identities:
    """Addresses, blocks and what of them is written. `settle` brings the identities up to date after changes."""

    def __init__(self, first: int, former: Mapping[Prefix, int] = MappingProxyType({})) -> None:
        """Number from `first` on. `former` are numbers that prefixes have already, below `first`."""
        self._next = first
        self._former = dict(former)
        self._had: dict[int, set[Prefix]] = {}
        for prefix, number in former.items():
            self._had.setdefault(number, set()).add(prefix)
        self._hosts: dict[Prefix, _Cell] = {}
        self._cells: dict[Profile, dict[_Region | None, _Cell]] = {}
        self._in_region: dict[_Region | None, set[_Cell]] = {}
        self._regions: dict[Prefix, _Region] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()
        self._blocks: dict[Prefix, dict[int, list[frozenset[Prefix]]]] = {}
        self._by_atoms: dict[frozenset[int], Identity] = {}
        self._by_atom: dict[int, set[Identity]] = {}
        self._host_order: list[Prefix] = []
        self._region_order: list[Prefix] = []
        self._new_hosts: set[Prefix] = set()
        self._gone_hosts: set[Prefix] = set()
        self._dirty_cells: set[_Cell] = set()
        self._dirty_regions: set[_Region] = set()
        self._dirty_prefixes: set[Prefix] = set()
        self._before: dict[Identity, frozenset[int]] = {}
        self.written: dict[Prefix, int] = {}
        """What the data path has after the last `settle`."""

    def assign(self, host: Prefix, profile: Profile | None) -> None:
        """Say whose an address is; None if it is nobody's of whom anything is known."""
        cell = self._hosts.get(host)
        if cell is not None:
            if cell.profile is profile:
                return
            self._leave(cell, host)
        if profile is None:
            if cell is not None:
                del self._hosts[host]
                self._gone_hosts.add(host)
        else:
            if cell is None:
                self._new_hosts.add(host)
            self._enter(profile, cell.region if cell is not None else self._region_around(host), host)

    def touch(self, profile: Profile) -> None:
        """Have a profile's addresses looked at: its atoms are others now."""
        self._dirty_cells.update(self._cells.get(profile, {}).values())

    def add_block(self, atom: int, block: Block) -> None:
        """Let an atom match a block."""
        self._blocks.setdefault(block.network, {}).setdefault(atom, []).append(block.excepted)
        for prefix in (block.network, *block.excepted):
            self._hold_region(prefix)
        self._dirty_regions.update(self._regions_in(block.network))

    def remove_block(self, atom: int, block: Block) -> None:
        """Undo one `add_block`."""
        at = self._blocks[block.network]
        at[atom].remove(block.excepted)
        if not at[atom]:
            del at[atom]
        if not at:
            del self._blocks[block.network]
        self._dirty_regions.update(self._regions_in(block.network))
        for prefix in (block.network, *block.excepted):
            self._release_region(prefix)

    def having(self, atom: int) -> Iterable[Identity]:
        """Return the identities that match an atom."""
        return self._by_atom.get(atom, ())

    def settle(self) -> tuple[dict[Identity, frozenset[int]], dict[Prefix, int], tuple[Prefix, ...]]:
        """Bring identities up to date.

        Returns the identities that changed, with the atoms that each got or lost (one that is gone has none left);
        the prefixes to write with their numbers; those to delete.
        """
        for region in self._dirty_regions:
            atoms = self._atoms_at(region.prefix) if region.holders else NOTHING
            if atoms != region.atoms:
                region.atoms = atoms
                self._dirty_cells.add(region.cell)
                self._dirty_cells |= self._in_region.get(region, set())
        self._dirty_regions.clear()
        self._move_cells()
        self._former.clear()
        self._had.clear()
        changed = {
            identity: before ^ identity.atoms
            for identity, before in self._before.items()
            if before != identity.atoms
        }
        self._before.clear()
        written: dict[Prefix, int] = {}
        deleted = []
        for prefix in self._dirty_prefixes:
            number = self._number_of(prefix)
            if number == self.written.get(prefix):
                continue
            if number is None:
                deleted.append(prefix)
                del self.written[prefix]
            else:
                written[prefix] = self.written[prefix] = number
        self._dirty_prefixes.clear()
        return changed, written, tuple(deleted)

    def _number_of(self, prefix: Prefix) -> int | None:
        cell = self._hosts.get(prefix)
        if cell is None or cell.identity is None:
            region = self._regions.get(prefix)
            if region is None:
                return None
            cell = region.cell
        return cell.identity.number if cell.identity is not None else ANYBODY

    def _enter(self, profile: Profile, region: _Region | None, host: Prefix) -> None:
        cells = self._cells.setdefault(profile, {})
        cell = cells.get(region)
        if cell is None:
            cell = cells[region] = _Cell(profile, region)
            self._in_region.setdefault(region, set()).add(cell)
            self._dirty_cells.add(cell)
        cell.members.add(host)
        if cell.identity is not None:
            cell.identity.size += 1
        self._hosts[host] = cell
        self._dirty_prefixes.add(host)

    def _leave(self, cell: _Cell, host: Prefix) -> None:
        cell.members.discard(host)
        if cell.identity is not None:
            cell.identity.size -= 1
        self._dirty_prefixes.add(host)
        if not cell.members:
            assert cell.profile is not None
            cells = self._cells[cell.profile]
            del cells[cell.region]
            if not cells:
                del self._cells[cell.profile]
            self._in_region[cell.region].discard(cell)
            self._dirty_cells.add(cell)

    def _around(self, prefix: Prefix) -> Iterator[_Region]:
        """Yield the regions that a prefix lies in, itself among them, the smallest first."""
        lengths = sorted((length for version, length in self._lengths if version == prefix.version), reverse=True)
        for length in lengths:
            if length <= prefix.length:
                region = self._regions.get(prefix.shortened(length))
                if region is not None:
                    yield region

    def _region_around(self, prefix: Prefix) -> _Region | None:
        return next(self._around(prefix), None) if self._lengths else None

    def _atoms_at(self, prefix: Prefix) -> frozenset[int]:
        around = frozenset(region.prefix for region in self._around(prefix))
        return frozenset(
            atom
            for outer in around
            for atom, blocks in self._blocks.get(outer, {}).items()
            if any(excepted.isdisjoint(around) for excepted in blocks)
        )

    def _regions_in(self, prefix: Prefix) -> Iterator[_Region]:
        for found in _inside(self._region_order, prefix):
            yield self._regions[found]

    def _hold_region(self, prefix: Prefix) -> None:
        region = self._regions.get(prefix)
        if region is None:
            outer = self._region_around(prefix)
            region = self._regions[prefix] = _Region(prefix)
            insort(self._region_order, prefix)
            self._lengths[prefix.version, prefix.length] += 1
            self._dirty_regions.add(region)
            self._dirty_prefixes.add(prefix)
            self._rehome(prefix, outer, region)
        region.holders += 1

    def _release_region(self, prefix: Prefix) -> None:
        region = self._regions[prefix]
        region.holders -= 1
        if region.holders:
            return
        del self._regions[prefix]
        del self._region_order[bisect_left(self._region_order, prefix)]
        self._lengths[prefix.version, prefix.length] -= 1
        if not self._lengths[prefix.version, prefix.length]:
            del self._lengths[prefix.version, prefix.length]
        if region.cell.identity is not None:
            region.cell.identity.size -= 1
        region.cell.members.clear()
        self._dirty_cells.add(region.cell)
        self._dirty_prefixes.add(prefix)
        self._rehome(prefix, region, self._region_around(prefix))
        self._in_region.pop(region, None)

    def _rehome(self, prefix: Prefix, old: _Region | None, new: _Region | None) -> None:
        """Move the addresses in a prefix from one region to another, whole cells where none stays behind."""
        self._sort_hosts()
        moving: dict[_Cell, list[Prefix]] = {}
        for host in _inside(self._host_order, prefix):
            cell = self._hosts[host]
            if cell.region is old:
                moving.setdefault(cell, []).append(host)
        for cell, hosts in moving.items():
            assert cell.profile is not None
            cells = self._cells[cell.profile]
            if len(hosts) == len(cell.members) and new not in cells:
                cells[new] = cells.pop(old)
                self._in_region[old].discard(cell)
                self._in_region.setdefault(new, set()).add(cell)
                cell.region = new
                self._dirty_cells.add(cell)
                continue
            for host in hosts:
                self._leave(cell, host)
                self._enter(cell.profile, new, host)

    def _sort_hosts(self) -> None:
        gone = self._gone_hosts - self._hosts.keys()
        new = self._new_hosts & self._hosts.keys()
        if len(gone) + len(new) > _MANY:
            self._host_order = sorted(self._hosts)
        else:
            for host in gone:
                at = bisect_left(self._host_order, host)
                if at < len(self._host_order) and self._host_order[at] == host:
                    del self._host_order[at]
            for host in new:
                at = bisect_left(self._host_order, host)
                if at == len(self._host_order) or self._host_order[at] != host:
                    self._host_order.insert(at, host)
        self._gone_hosts.clear()
        self._new_hosts.clear()

    def _move_cells(self) -> None:
        """Give cells the identities of their atoms; one that goes over as a whole keeps its number."""
        groups: dict[tuple[Identity | None, frozenset[int]], list[_Cell]] = {}
        for cell in self._dirty_cells:
            old, atoms = cell.identity, cell.atoms
            if (old.atoms if old is not None else NOTHING) != atoms:
                groups.setdefault((old, atoms), []).append(cell)
        self._dirty_cells.clear()
        rest = []
        for (old, atoms), cells in groups.items():
            if old is None or not atoms or len(cells) != len(old.cells):
                rest.append((atoms, cells))
                continue
            other = self._by_atoms.get(atoms)
            if other is not None and other.size > old.size:
                rest.append((atoms, cells))
                continue
            joining = () if other is None else tuple(other.cells)
            if other is not None:
                self._rename(other, NOTHING)
            self._rename(old, atoms)
            for cell in joining:
                self._put(cell, old)
        for atoms, cells in rest:
            identity = self._identity(atoms, cells) if atoms else None
            for cell in cells:
                self._put(cell, identity)

    def _put(self, cell: _Cell, identity: Identity | None) -> None:
        old = cell.identity
        if old is not None:
            old.cells.discard(cell)
            old.size -= len(cell.members)
            if not old.cells:
                self._rename(old, NOTHING)
        cell.identity = identity
        if identity is not None:
            identity.cells.add(cell)
            identity.size += len(cell.members)
        self._dirty_prefixes |= cell.members

    def _identity(self, atoms: frozenset[int], cells: Iterable[_Cell]) -> Identity:
        """Return the identity of these atoms, to which cells come."""
        identity = self._by_atoms.get(atoms)
        if identity is None:
            number = self._former_number(cells) if self._former else None
            if number is None:
                number = self._next
                self._next += 1
            identity = Identity(number, NOTHING)
            self._rename(identity, atoms)
        return identity

    def _former_number(self, cells: Iterable[_Cell]) -> int | None:
        """Return the number that all of these prefixes had, and no other that somebody has.

        So nobody who had it is led, not even for a moment, to rules that are not his.
        """
        members = {prefix for cell in cells for prefix in cell.members}
        known = {self._former[prefix] for prefix in members & self._former.keys()} - {ANYBODY}
        for number in sorted(known, key=lambda number: (-len(self._had[number]), number)):
            if all(prefix in members or self._is_nobodys(prefix) for prefix in self._had[number]):
                for prefix in self._had.pop(number):
                    self._former.pop(prefix, None)
                return number
        return None

    def _is_nobodys(self, prefix: Prefix) -> bool:
        """Tell whether a prefix is an address that nobody has any more."""
        bits = 128 if prefix.version == 6 else 32
        return prefix.length == bits and prefix not in self._hosts and prefix not in self._regions

    def _rename(self, identity: Identity, atoms: frozenset[int]) -> None:
        """Let an identity match other atoms; none at all if it is given up."""
        self._before.setdefault(identity, identity.atoms)
        if self._by_atoms.get(identity.atoms) is identity:
            del self._by_atoms[identity.atoms]
        for atom in identity.atoms - atoms:
            self._by_atom[atom].discard(identity)
            if not self._by_atom[atom]:
                del self._by_atom[atom]
        for atom in atoms - identity.atoms:
            self._by_atom.setdefault(atom, set()).add(identity)
        identity.atoms = atoms
        if atoms:
            self._by_atoms[atoms] = identity


def _inside(order: list[Prefix], prefix: Prefix) -> list[Prefix]:
    """Return those of a sorted list of prefixes that lie in a prefix."""
    first = bisect_left(order, Prefix(prefix.version, prefix.number, prefix.length))
    last = bisect_right(order, Prefix(prefix.version, prefix.last, 128))
    return order[first:last]
