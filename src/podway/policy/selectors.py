"""Label selectors that can be compared, and an index that answers them without a look at every object. Pure."""

from collections.abc import Hashable, Iterator, Mapping, Set
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from podway.api.meta import LabelSelector, meets

T = TypeVar("T", bound=Hashable)


class Requirement(NamedTuple):
    """One condition on labels; the operators are those of Kubernetes' `matchExpressions`."""

    key: str
    operator: str
    values: frozenset[str]


Selector: TypeAlias = frozenset[Requirement]
"""Conditions that must all hold; none is always met. `{a: b}` and `a In (b)` are the same."""

EVERYTHING: Selector = frozenset()


def selector_of(selector: LabelSelector) -> Selector:
    """Return a selector of the API in the form in which selectors can be compared."""
    if not selector.match_labels and not selector.match_expressions:
        return EVERYTHING
    equal = (Requirement(key, "In", frozenset((value,))) for key, value in selector.match_labels.items())
    rest = (Requirement(one.key, one.operator, frozenset(one.values)) for one in selector.match_expressions)
    return frozenset((*equal, *rest))


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Tell whether an object with these labels is selected."""
    return all(meets(labels, *requirement) for requirement in selector)


class LabelIndex(Generic[T]):
    """Objects by their labels. What a label key has is listed when a selector first asks for it, and then kept."""

    def __init__(self) -> None:
        self._labels: dict[T, Mapping[str, str]] = {}
        self._postings: dict[str, dict[str, set[T]]] = {}

    def put(self, obj: T, labels: Mapping[str, str]) -> None:
        """Add an object, or give it other labels."""
        self.drop(obj)
        self._labels[obj] = labels
        for key in self._postings.keys() & labels.keys():
            self._postings[key].setdefault(labels[key], set()).add(obj)

    def drop(self, obj: T) -> None:
        """Remove an object; nothing happens if it is not there."""
        labels = self._labels.pop(obj, None)
        if labels is None:
            return
        for key in self._postings.keys() & labels.keys():
            posting = self._postings[key]
            posting[labels[key]].discard(obj)
            if not posting[labels[key]]:
                del posting[labels[key]]

    def select(self, selector: Selector, within: Set[T] | None = None) -> set[T]:
        """Return the objects that a selector matches, of those in `within` if it is given."""
        candidates, rest = self._candidates(selector, within)
        if not rest:
            return set(candidates)
        return {obj for obj in candidates if matches(rest, self._labels[obj])}

    def __iter__(self) -> Iterator[T]:
        return iter(self._labels)

    def _candidates(self, selector: Selector, within: Set[T] | None) -> tuple[Set[T], Selector]:
        """Return few objects among which are all that are selected, and what is still to be asked of them."""
        best: Set[T] = self._labels.keys() if within is None else within
        rest = selector
        for one in selector:
            key, operator, values = one
            if operator != "In":
                continue
            posting = self._posting(key)
            found = [posting[value] for value in values if value in posting]
            if sum(map(len, found)) < len(best):
                best = found[0] if len(found) == 1 else set().union(*found)
                if within is not None:
                    best = best & within
                rest = selector - {one}
        return best, rest

    def _posting(self, key: str) -> dict[str, set[T]]:
        posting = self._postings.get(key)
        if posting is None:
            posting = self._postings[key] = {}
            for obj, labels in self._labels.items():
                if key in labels:
                    posting.setdefault(labels[key], set()).add(obj)
        return posting
