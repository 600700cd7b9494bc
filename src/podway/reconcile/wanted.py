"""What a node is to hold, by who wants it. Pure.

Every section of a plan is an owner's: a scope's, or one of a pod or another node. Two owners may want one object
(two nodes that say that they have the same address): it stays for as long as anyone wants it, and where they want
it otherwise, the last of them in order has its way. So a section can be planned and taken back by itself, and what
comes of it is the same as planning everything anew.
"""

from collections.abc import Callable, Collection, Iterable
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from podway.plan.changes import KINDS, Change
from podway.plan.objects import NodePlan

_NOTHING = NodePlan()

_by_kind: Callable[[NodePlan], tuple[tuple[Any, ...], ...]] = attrgetter(*KINDS.values())
"""A plan's objects in the order of KINDS."""

ObjectKey: TypeAlias = tuple[str, Any]
"""A kernel object's kind and key."""


class Owner(NamedTuple):
    """Who wants a section: the rank of its scope, and the section's key. Keys of one rank are of one type."""

    rank: int
    key: Any = ""


class Wanted:
    """The wanted objects of a node."""

    def __init__(self) -> None:
        self._sections: dict[int, dict[Any, NodePlan]] = {}
        self._objects: dict[str, dict[Any, Any]] = {kind: {} for kind in KINDS}
        self._owners: dict[str, dict[Any, Owner]] = {kind: {} for kind in KINDS}
        """Whose the object is."""
        self._shared: dict[ObjectKey, dict[Owner, Any]] = {}
        """What each owner wants, of objects that have several."""
        self._plan: NodePlan | None = None

    def put(self, owner: Owner, section: NodePlan) -> list[Change]:
        """Take an owner's section in place of its former one; return how the wanted objects change."""
        mine = self._sections.setdefault(owner.rank, {})
        before = mine.pop(owner.key, None)
        mine[owner.key] = section
        changes: list[Change] = []
        if before is None:  # as for thousands of nodes at an agent's start
            for kind, new in zip(KINDS, _by_kind(section), strict=True):
                if new:
                    self._claim_all(owner, kind, new, changes)
        for kind, field in KINDS.items() if before is not None else ():
            old, new = getattr(before, field), getattr(section, field)
            if old == new:
                continue
            had, has = {obj.key: obj for obj in old}, {obj.key: obj for obj in new}
            for key, obj in has.items():
                if had.get(key) != obj:
                    self._claim(owner, kind, key, obj, changes)
            for key in had:
                if key not in has:
                    self._claim(owner, kind, key, None, changes)
        if changes:
            self._plan = None
        return changes

    def drop(self, owner: Owner) -> list[Change]:
        """Forget an owner and its section; return how the wanted objects change."""
        changes = self.put(owner, _NOTHING)
        del self._sections[owner.rank][owner.key]
        return changes

    def get(self, kind: str, key: Any) -> Any:
        """Return the wanted object, None if it is not wanted."""
        return self._objects[kind].get(key)

    def keys(self, rank: int) -> Collection[Any]:
        """Return the keys of those that have a section of this rank."""
        return self._sections.get(rank, {}).keys()

    def plan(self) -> NodePlan:
        """Return everything that is wanted."""
        if self._plan is None:
            self._plan = NodePlan(**{field: tuple(self._objects[kind].values()) for kind, field in KINDS.items()})
        return self._plan

    def _claim_all(self, owner: Owner, kind: str, new: Iterable[Any], changes: list[Change]) -> None:
        """Take what an owner wants of a kind of which it wanted nothing; add the changes that come of it."""
        objects, owners = self._objects[kind], self._owners[kind]
        count = len(objects)
        for obj in new:
            key = obj.key
            objects.setdefault(key, obj)  # to ask first would take the key's hash once more, which is not cheap
            if len(objects) > count:
                count, owners[key] = count + 1, owner
                changes.append(Change(kind, key, None, obj))
            else:
                self._claim(owner, kind, key, obj, changes)

    def _claim(self, owner: Owner, kind: str, key: Any, obj: Any, changes: list[Change]) -> None:
        """Take what an owner wants of an object now; add the change that comes of it, if any."""
        objects, owners = self._objects[kind], self._owners[kind]
        holder = owners.get(key)
        if holder is None:
            objects[key], owners[key] = obj, owner
            changes.append(Change(kind, key, None, obj))
            return
        before = objects[key]
        claims = self._shared.pop((kind, key), None) or {holder: before}
        if obj is None:
            claims.pop(owner, None)
        else:
            claims[owner] = obj
        if claims:
            owners[key] = last = max(claims)
            objects[key] = claims[last]
        else:
            del owners[key], objects[key]
        if len(claims) > 1:
            self._shared[kind, key] = claims
        after = objects.get(key)
        if after != before:
            changes.append(Change(kind, key, before, after))
