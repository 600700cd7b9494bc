"""The one comparison: what must change for what is to become what should be, by key and value. Pure.

The engine (podway.kernel.engine) compares a kernel with a plan, a preview (podway.preview) one plan with
another.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal, TypeAlias

import msgspec

from podway.plan.objects import NodePlan

Action: TypeAlias = Literal["add", "replace", "remove"]


class Change(msgspec.Struct, frozen=True, gc=False):
    """One difference between kernel and plan. `have` is None if it must be added, `want` if removed."""

    kind: str
    key: Any
    have: Any
    want: Any

    @property
    def action(self) -> Action:
        """What must be done."""
        if self.have is None:
            return "add"
        return "remove" if self.want is None else "replace"

    @property
    def difference(self) -> str:
        """What is wrong, in words: `route 10.244.1.0/24 blackhole is missing`."""
        return self._told("is")

    def __str__(self) -> str:
        """Return what was wrong, and what was done: `route 10.244.1.0/24 blackhole was missing: added`."""
        deed = {"add": "added", "remove": "removed", "replace": "put right"}[self.action]
        return f"{self._told('was')}: {deed}"

    @property
    def altered(self) -> tuple[tuple[str, Any, Any], ...]:
        """The fields in which `have` and `want` differ, with both values; empty unless both are of one type."""
        if type(self.have) is not type(self.want) or not isinstance(self.want, msgspec.Struct):
            return ()
        pairs = (
            (field, getattr(self.have, field), getattr(self.want, field)) for field in self.want.__struct_fields__
        )
        return tuple((field, have, want) for field, have, want in pairs if have != want)

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of devices that it may be about; some are of none."""
        obj = self.have if self.want is None else self.want
        names = (
            *(getattr(obj, "device", ""), getattr(obj, "name", ""), getattr(obj, "bridge", "")),
            *getattr(obj, "path", "").split("/"),
        )
        return tuple(filter(None, names))

    def _told(self, verb: str) -> str:
        if self.action == "add":
            return f"{self.want} {verb} missing"
        if self.action == "remove":
            return f"{self.have} {verb} not in the plan"
        return f"{self.want} {verb} altered{self._how()}"

    def _how(self) -> str:
        if type(self.have) is not type(self.want):
            return f" (it was {self.have})"
        told = [f"{field} {words_of(have)}, not {words_of(want)}" for field, have, want in self.altered]
        return f" ({'; '.join(told)})" if told else ""


def words_of(value: Any) -> str:
    """Return a field's value as people write it, never as Python does."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Set | Sequence) and not isinstance(value, str):
        return ", ".join(map(words_of, value)) or "none"
    return str(value)


def compare(
    kind: str, have: Mapping[Any, Any], want: Mapping[Any, Any], *, repairs_only: bool = False
) -> Iterable[Change]:
    """Yield the changes that make `have` into `want`.

    What must go goes last, so that a successor is in place before.
    """
    for key, value in want.items():
        there = have.get(key)
        if there != value and not (repairs_only and there is None):
            yield Change(kind, key, there, value)
    if not repairs_only:
        for key, value in have.items():
            if key not in want:
                yield Change(kind, key, value, None)


KINDS: dict[str, str] = {
    "device": "devices",
    "link": "links",
    "port": "ports",
    "sysctl": "sysctls",
    "address": "addresses",
    "neighbour": "neighbours",
    "proxy": "proxies",
    "forwarding entry": "forwarding",
    "IPIP tunnel": "tunnels",
    "tunnel source": "sources",
    "tunnel endpoint": "endpoints",
    "route": "routes",
    "flow program": "programs",
    "nft table": "tables",
    "nft element": "elements",
}
"""Each kind of kernel object, and the field of a NodePlan that holds those of it."""


def merged(sections: Iterable[NodePlan]) -> NodePlan:
    """Return one plan of several, in their order."""
    every = tuple(sections)
    return NodePlan(
        **{field: tuple(obj for section in every for obj in getattr(section, field)) for field in KINDS.values()}
    )


def patched(plan: NodePlan, changes: Iterable[Change]) -> NodePlan:
    """Return a plan after changes, which are the differences of another plan from it."""
    by_kind: dict[str, dict[Any, Any]] = {}
    for change in changes:
        by_kind.setdefault(change.kind, {})[change.key] = change.want
    fields: dict[str, tuple[Any, ...]] = {}
    for kind, changed in by_kind.items():
        kept = (obj for obj in getattr(plan, KINDS[kind]) if obj.key not in changed)
        fields[KINDS[kind]] = (*kept, *(want for want in changed.values() if want is not None))
    return msgspec.structs.replace(plan, **fields)


def between(before: NodePlan, after: NodePlan) -> tuple[Change, ...]:
    """Return the changes that lead from one plan to another, kind by kind."""
    return tuple(
        change
        for kind, field in KINDS.items()
        for change in compare(
            kind,
            {obj.key: obj for obj in getattr(before, field)},
            {obj.key: obj for obj in getattr(after, field)},
        )
    )
