"""A table: the objects of one kind by name, persistent, with indices.

A table never changes. `put` and `drop` return another one that shares all but a few nodes of a tree with it
(`immutables.Map`, a hash array mapped trie), so a snapshot of the whole cluster costs nothing, and following one
change does not grow with the number of objects: a dict of 100,000 would be copied in 2.6 ms for each event.

An index is built when it is first asked for, and from then on kept by every table that comes of this one. It holds
names, not objects: most changes of an object alter nothing under which it is found, and so no index.
Tables are made in one thread. Others may read them, and build what an index lacks.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Generic, TypeAlias, TypeVar, overload

from immutables import Map

from podway.api.resource import Resource
from podway.cluster.change import Change

K = TypeVar("K", str, tuple[str, str])
R = TypeVar("R", bound=Resource)
T = TypeVar("T")

Index: TypeAlias = Callable[[R], Iterable[Hashable]]
"""From an object to the values under which it is found."""

_Built: TypeAlias = Map[Hashable, Map[K, None]]

_EMPTY: Map[Any, Any] = Map()


class Table(Mapping[K, R], Generic[K, R]):
    """Objects of one kind by name, or by namespace and name; a mapping that is read in the order of its keys."""

    __slots__ = ("_built", "_indices", "_listed", "_objects", "_order")

    def __init__(self, objects: Mapping[K, R] = _EMPTY, indices: Mapping[str, Index[R]] = _EMPTY) -> None:
        self._objects: Map[K, R] = objects if isinstance(objects, Map) else Map(objects)
        self._indices = indices
        self._built: dict[str, _Built[K]] = {}
        self._order: list[K] | None = None
        self._listed: dict[K, R] | None = None

    def put(self, name: K, obj: R) -> "Table[K, R]":
        """Return a table with this object under its name, in place of a former one."""
        return self._with(self._objects.set(name, obj), name, Change.of(self._objects.get(name), obj))

    def drop(self, name: K) -> "Table[K, R]":
        """Return a table without the object of this name; this one if there is none."""
        old = self._objects.get(name)
        return self if old is None else self._with(self._objects.delete(name), name, Change.of(old, None))

    def changes_to(self, other: "Table[K, R]") -> Iterator[Change[R]]:
        """Yield what leads from this table to another one: what was removed, then what was added or altered."""
        if self._objects is other._objects:
            return
        for name, obj in self.items():
            if name not in other:
                yield Change.of(obj, None)
        for name, obj in other.items():
            old = self._objects.get(name)
            if old is not obj and old != obj:
                yield Change.of(old, obj)

    def select(self, index: str, value: Hashable) -> tuple[R, ...]:
        """Return the objects that an index has under a value, in the order of their names."""
        found = self._index(index).get(value, _EMPTY)
        return tuple(self._objects[name] for name in (sorted(found) if len(found) > 1 else found))

    def names(self, index: str, value: Hashable) -> frozenset[K]:
        """Return the names of the objects that an index has under a value."""
        return frozenset(self._index(index).get(value, _EMPTY))

    def count(self, index: str, value: Hashable) -> int:
        """Return how many objects an index has under a value."""
        return len(self._index(index).get(value, _EMPTY))

    def has(self, index: str, value: Hashable, *, but: K) -> bool:
        """Tell whether an index has any object under a value besides the one of this name."""
        found = self._index(index).get(value, _EMPTY)
        return len(found) > (but in found)

    def indexed(self, index: str) -> frozenset[Hashable]:
        """Return the values under which an index has any object."""
        return frozenset(self._index(index))

    def __getitem__(self, name: K) -> R:
        return self._objects[name]

    @overload
    def get(self, name: K, /) -> R | None: ...
    @overload
    def get(self, name: K, default: R | T, /) -> R | T: ...
    def get(self, name: K, default: R | T | None = None, /) -> R | T | None:
        """Return the object of this name, or the default."""
        return self._objects.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[K]:
        return iter(self._ordered())

    def __len__(self) -> int:
        return len(self._objects)

    def __eq__(self, other: object) -> bool:
        return self._objects == other._objects if isinstance(other, Table) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # the objects in it have none either

    def keys(self) -> KeysView[K]:
        """Return the names, in their order."""
        return self._dict().keys()

    def values(self) -> ValuesView[R]:
        """Return the objects, in the order of their names."""
        return self._dict().values()

    def items(self) -> ItemsView[K, R]:
        """Return names and objects, in the order of the names."""
        return self._dict().items()

    def _dict(self) -> dict[K, R]:
        # Some 60 ns an object, once: a generator or Mapping's own views would run Python for each, at each look.
        if self._listed is None:
            order = self._ordered()
            self._listed = dict(zip(order, map(self._objects.__getitem__, order), strict=True))
        return self._listed

    def _ordered(self) -> list[K]:
        if self._order is None:
            self._order = sorted(self._objects)
        return self._order

    def _index(self, name: str) -> _Built[K]:
        built = self._built.get(name)
        if built is None:
            values = self._indices[name]
            found: dict[Hashable, dict[K, None]] = {}
            for key, obj in self._objects.items():
                for value in values(obj):
                    found.setdefault(value, {})[key] = None
            built = self._built[name] = Map([(value, Map(names.items())) for value, names in found.items()])
        return built

    def _with(self, objects: Map[K, R], name: K, change: Change[R]) -> "Table[K, R]":
        table = Table(objects, self._indices)
        table._built = {
            # A thread that reads the table may build an index just now.
            index: _moved(built, self._indices[index], name, change)
            for index, built in list(self._built.items())
        }
        table._order = _reordered(self._order, name, change)
        return table


def _moved(built: _Built[K], values: Index[R], name: K, change: Change[R]) -> _Built[K]:
    """Return an index after a change."""
    before = frozenset(values(change.old)) if change.old is not None else frozenset()
    after = frozenset(values(change.new)) if change.new is not None else frozenset()
    for value in before - after:
        rest = built[value].delete(name)
        built = built.set(value, rest) if rest else built.delete(value)
    for value in after - before:
        built = built.set(value, built.get(value, _EMPTY).set(name, None))
    return built


def _reordered(order: list[K] | None, name: K, change: Change[R]) -> list[K] | None:
    """Return the order of names after a change; a list that tables share is never written to."""
    if order is None or (change.old is not None and change.new is not None):
        return order
    order = order.copy()
    if change.new is not None:
        insort(order, name)
    else:
        del order[bisect_left(order, name)]
    return order
