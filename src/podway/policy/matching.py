"""Which pods a policy means: selections of pods by namespace and labels, asked from both sides. Pure.

A new policy asks which pods its selections match, a new pod which selections match it. Neither looks at
everything: pods are found by their labels, selections by a label (or the namespace) that they ask for.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple, TypeAlias

from podway.policy.maps import PodName
from podway.policy.selectors import LabelIndex, Selector, matches

NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""The label that every namespace has."""

NODES = ""
"""The namespace, which no pod can have, in whose place nodes stand."""


class Selection(NamedTuple):
    """Pods (or nodes) by labels: in one namespace, or in all that a selector matches."""

    namespace: str | None
    namespaces: Selector | None
    labels: Selector


class ServedPort(NamedTuple):
    """A port that a pod serves under a name; protocols by their number."""

    name: str
    protocol: int
    number: int


class Profile:
    """All that rules can tell of a pod or node but its address; what has the same is one profile.

    `atoms` are the peers of rules, and named ports, that match it (podway.policy.identities). `local` are the pods
    of this node that have the profile.
    """

    __slots__ = ("atoms", "holders", "labels", "local", "namespace", "ports")

    def __init__(self, namespace: str, labels: Mapping[str, str], ports: frozenset[ServedPort]) -> None:
        self.namespace = namespace
        self.labels = labels
        self.ports = ports
        self.atoms: frozenset[int] = frozenset()
        self.holders = 0
        self.local: set[PodName] = set()


class Namespaces:
    """The labels of namespaces, and which of them selectors match. One that is not known is matched by none."""

    def __init__(self) -> None:
        self._labels: dict[str, Mapping[str, str]] = {}
        self._index: LabelIndex[str] = LabelIndex()
        self._held: Counter[Selector] = Counter()
        self._matched: dict[Selector, set[str]] = {}

    def put(self, name: str, labels: Mapping[str, str] | None) -> bool:
        """Give a namespace its labels, or None if it is gone; tell whether a selector in use sees a difference."""
        if labels is None:
            self._labels.pop(name, None)
            self._index.drop(name)
        else:
            labels = {**labels, NAMESPACE_NAME: name}
            if self._labels.get(name) == labels:
                return False
            self._labels[name] = labels
            self._index.put(name, labels)
        differs = False
        for selector, matched in self._matched.items():
            now = labels is not None and matches(selector, labels)
            if now != (name in matched):
                differs = True
                (matched.add if now else matched.discard)(name)
        return differs

    def hold(self, selector: Selector) -> None:
        """Keep what a selector matches at hand."""
        self._held[selector] += 1
        if self._held[selector] == 1:
            self._matched[selector] = self._index.select(selector)

    def release(self, selector: Selector) -> None:
        """Undo one `hold`."""
        self._held[selector] -= 1
        if not self._held[selector]:
            del self._held[selector], self._matched[selector]

    def matched(self, selector: Selector) -> Set[str]:
        """Return the namespaces that a selector in use matches."""
        return self._matched[selector]

    def __contains__(self, name: str) -> bool:
        return name in self._labels


_Anchor: TypeAlias = tuple[str | None] | tuple[str | None, str, str]


class Matcher:
    """The relation of profiles and selections."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._index: LabelIndex[Profile] = LabelIndex()
        self._in_namespace: dict[str, set[Profile]] = {}
        self._held: Counter[Selection] = Counter()
        self._anchored: dict[_Anchor, set[Selection]] = {}

    def add(self, profile: Profile) -> None:
        """Add a profile."""
        self._index.put(profile, profile.labels)
        self._in_namespace.setdefault(profile.namespace, set()).add(profile)

    def remove(self, profile: Profile) -> None:
        """Remove a profile."""
        self._index.drop(profile)
        rest = self._in_namespace[profile.namespace]
        rest.discard(profile)
        if not rest:
            del self._in_namespace[profile.namespace]

    def hold(self, selection: Selection) -> None:
        """Have a selection found by `matching`."""
        self._held[selection] += 1
        if self._held[selection] == 1:
            if selection.namespaces is not None:
                self._namespaces.hold(selection.namespaces)
            for anchor in _anchors(selection):
                self._anchored.setdefault(anchor, set()).add(selection)

    def release(self, selection: Selection) -> None:
        """Undo one `hold`."""
        self._held[selection] -= 1
        if not self._held[selection]:
            del self._held[selection]
            if selection.namespaces is not None:
                self._namespaces.release(selection.namespaces)
            for anchor in _anchors(selection):
                rest = self._anchored[anchor]
                rest.discard(selection)
                if not rest:
                    del self._anchored[anchor]

    def of_namespace(self, namespace: str) -> Set[Profile]:
        """Return the profiles of a namespace."""
        return self._in_namespace.get(namespace, frozenset())

    def select(self, selection: Selection) -> Set[Profile]:
        """Return the profiles that a selection in use matches."""
        if selection.namespaces is None:
            return self._index.select(selection.labels, self.of_namespace(selection.namespace or NODES))
        spaces = self._namespaces.matched(selection.namespaces)
        inside = sum(len(self.of_namespace(space)) for space in spaces)
        if any(one.operator == "In" for one in selection.labels) and inside > len(spaces):
            return {found for found in self._index.select(selection.labels) if found.namespace in spaces}
        return set().union(*(self._index.select(selection.labels, self.of_namespace(space)) for space in spaces))

    def matching(self, profile: Profile) -> Iterator[Selection]:
        """Yield the selections in use that match a profile, each once."""
        labels = profile.labels
        for namespace in (profile.namespace, None):
            yield from self._met((namespace,), profile)
            for key, value in labels.items():
                yield from self._met((namespace, key, value), profile)

    def _met(self, anchor: _Anchor, profile: Profile) -> Iterator[Selection]:
        for selection in self._anchored.get(anchor, ()):
            spaces = selection.namespaces
            if (spaces is None or profile.namespace in self._namespaces.matched(spaces)) and matches(
                selection.labels, profile.labels
            ):
                yield selection


def _anchors(selection: Selection) -> tuple[_Anchor, ...]:
    """Return where a selection is looked for: a profile that it matches has exactly one of these."""
    equal = [one for one in selection.labels if one.operator == "In"]
    if not equal:
        return ((selection.namespace,),)
    best = min(equal, key=lambda one: (len(one.values), one.key, sorted(one.values)))
    return tuple((selection.namespace, best.key, value) for value in best.values)
