"""Atoms: what the rules in use ask of the other end of a connection, and which pods match it. Pure.

An atom is a number for the peers of one or many rules, or for a port that pods serve under a name that a rule
uses.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Set

from podway.policy.identities import Identities
from podway.policy.maps import Prefix
from podway.policy.matching import Matcher, Profile, Selection, ServedPort
from podway.policy.names import patterns
from podway.policy.rules import Block, DomainName, Peers


class Atoms:
    """The atoms in use. `settle` brings profiles up to date after changes."""

    def __init__(self, peers: Matcher, identities: Identities) -> None:
        self._matcher = peers
        self._identities = identities
        self._next = 0
        self._of_peers: dict[Peers, int] = {}
        self._peers: dict[int, Peers] = {}
        self._asking: dict[Selection, set[int]] = {}
        self._naming: dict[str, set[int]] = {}
        """The atoms that a name, or all names in a domain, match; by what policies write."""
        self._bearing: dict[Prefix, tuple[Set[str], frozenset[int]]] = {}
        """Of addresses that bear names: these, and the atoms that match them."""
        self._names: Counter[str] = Counter()
        self._of_port: dict[ServedPort, int] = {}
        self._ports: dict[int, ServedPort] = {}
        self._uses: Counter[int] = Counter()
        self._dirty: set[Profile] = set()
        self._dirty_names: set[str] = set()

    def hold(self, peers: Peers) -> int:
        """Return the atom of peers, which a rule uses from now on."""
        atom = self._of_peers.get(peers)
        if atom is None:
            atom = self._of_peers[peers] = self._new()
            self._peers[atom] = peers
            for part in peers:
                if isinstance(part, Block):
                    self._identities.add_block(atom, part)
                elif isinstance(part, DomainName):
                    self._naming.setdefault(part.pattern, set()).add(atom)
                else:
                    self._matcher.hold(part)
                    self._asking.setdefault(part, set()).add(atom)
                    self._dirty |= self._matcher.select(part)
            self._look_at_names(peers)
        self._uses[atom] += 1
        return atom

    def release(self, atom: int) -> None:
        """Undo one `hold`."""
        self._uses[atom] -= 1
        if self._uses[atom]:
            return
        del self._uses[atom]
        peers = self._peers.pop(atom)
        del self._of_peers[peers]
        for part in peers:
            if isinstance(part, Block):
                self._identities.remove_block(atom, part)
            elif isinstance(part, DomainName):
                self._naming[part.pattern].discard(atom)
                if not self._naming[part.pattern]:
                    del self._naming[part.pattern]
            else:
                self._dirty |= self._matcher.select(part)
                self._asking[part].discard(atom)
                if not self._asking[part]:
                    del self._asking[part]
                self._matcher.release(part)
        self._look_at_names(peers)

    @property
    def know_names(self) -> bool:
        """Whether any rule in use names domains."""
        return bool(self._naming)

    def names(self, atom: int) -> bool:
        """Tell whether an atom's peers are known by their names, all or some."""
        return any(isinstance(part, DomainName) for part in self._peers.get(atom, ()))

    def is_named(self, name: str) -> bool:
        """Tell whether some rule in use means this name."""
        return any(pattern in self._naming for pattern in patterns(name))

    def bear(self, address: Prefix, names: Set[str]) -> None:
        """Say which names an address bears, all of them."""
        _, atoms = self._bearing.pop(address, (names, frozenset()))
        now = frozenset(
            atom for name in names for pattern in patterns(name) for atom in self._naming.get(pattern, ())
        )
        for atom in atoms - now:
            self._identities.remove_block(atom, Block(address))
        for atom in now - atoms:
            self._identities.add_block(atom, Block(address))
        if names:
            self._bearing[address] = (names, now)

    def _look_at_names(self, peers: Peers) -> None:
        """Have addresses that bear names match the atoms in use: those of these peers came or went."""
        if any(isinstance(part, DomainName) for part in peers):
            for address, (names, _) in tuple(self._bearing.items()):
                self.bear(address, names)

    def hold_name(self, name: str) -> None:
        """Let ports of a name be told apart from now on."""
        self._names[name] += 1
        if self._names[name] == 1:
            self._dirty_names.add(name)

    def release_name(self, name: str) -> None:
        """Undo one `hold_name`."""
        self._names[name] -= 1
        if not self._names[name]:
            del self._names[name]
            self._dirty_names.add(name)

    def served(self, atoms: Iterable[int]) -> dict[int, ServedPort]:
        """Return the named ports among atoms."""
        return {atom: self._ports[atom] for atom in atoms if atom in self._ports} if self._ports else {}

    def place(self, atom: int) -> int | str:
        """Return where rule sets have the rules that ask for an atom: itself, or a named port's name."""
        return self._ports[atom].name if atom in self._ports else atom

    def of_name(self, name: str) -> Iterable[int]:
        """Return the atoms of the ports of a name."""
        return [atom for port, atom in self._of_port.items() if port.name == name]

    def touch(self, profiles: Iterable[Profile]) -> None:
        """Have profiles looked at: they are new, or their namespace has other labels."""
        self._dirty.update(profiles)

    def settle(self, serving: Mapping[str, set[Profile]]) -> None:
        """Bring the atoms of profiles up to date; `serving` are those that serve a port, by its name."""
        for name in self._dirty_names:
            self._dirty |= serving.get(name, set())
        self._dirty_names.clear()
        for profile in self._dirty:
            if not profile.holders:
                continue
            atoms = self._atoms_of(profile)
            if atoms != profile.atoms:
                profile.atoms = atoms
                self._identities.touch(profile)
        self._dirty.clear()

    def forget(self) -> None:
        """Let go of ports whose name no rule uses any more, once no identity matches them."""
        for port, atom in list(self._of_port.items()):
            if port.name not in self._names:
                del self._of_port[port], self._ports[atom]

    def _atoms_of(self, profile: Profile) -> frozenset[int]:
        found: set[int] = set()
        for selection in self._matcher.matching(profile):
            found |= self._asking[selection]
        for port in profile.ports:
            if port.name in self._names:
                found.add(self._port(port))
        return frozenset(found)

    def _port(self, port: ServedPort) -> int:
        atom = self._of_port.get(port)
        if atom is None:
            atom = self._of_port[port] = self._new()
            self._ports[atom] = port
        return atom

    def _new(self) -> int:
        self._next += 1
        return self._next
