"""One engine for every kind of kernel object: compare what is with what should be, by key and value.

It knows no kind by name. Each (podway.kernel.kinds) tells what a plan wants of it, lists what the kernel has
that bears our mark, and carries out changes.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from podway.errors import KernelError, PodwayError
from podway.plan.objects import NodePlan

Action: TypeAlias = Literal["add", "replace", "remove"]


class Change(msgspec.Struct, frozen=True):
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

    def _told(self, verb: str) -> str:
        if self.action == "add":
            return f"{self.want} {verb} missing"
        if self.action == "remove":
            return f"{self.have} {verb} not in the plan"
        return f"{self.want} {verb} altered{self._how()}"

    def _how(self) -> str:
        if type(self.have) is not type(self.want):
            return f" (it was {self.have})"
        if not isinstance(self.want, msgspec.Struct):
            return ""
        pairs = (
            (field, getattr(self.have, field), getattr(self.want, field)) for field in self.want.__struct_fields__
        )
        told = [f"{field} {have}, not {want}" for field, have, want in pairs if have != want]
        return f" ({'; '.join(told)})"


class Report(msgspec.Struct, frozen=True):
    """What applying a plan did: the changes made, and an error for each that could not be."""

    changes: tuple[Change, ...] = ()
    failures: tuple[PodwayError, ...] = ()


class Kind(Protocol):
    """One kind of kernel object, on one node."""

    name: str
    mends_only: bool
    """Objects of this kind are made and removed elsewhere; the engine only puts them right."""

    def wanted(self, plan: NodePlan) -> Mapping[Any, Any]:
        """Return what a plan wants, by key, in the form in which `list` would show it."""
        ...

    def list(self, plan: NodePlan) -> Mapping[Any, Any]:
        """Return what the kernel has of ours, by key; also what has a key that the plan wants.

        Raises KernelError.
        """
        ...

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Carry out changes; return the failures by the change's position."""
        ...


def diff(kind: Kind, plan: NodePlan) -> list[Change]:
    """Return what must change of one kind, additions and replacements first. Raises PodwayError."""
    return list(compare(kind.name, kind.list(plan), kind.wanted(plan), mends_only=kind.mends_only))


def compare(
    kind: str, have: Mapping[Hashable, Any], want: Mapping[Hashable, Any], *, mends_only: bool = False
) -> Iterable[Change]:
    """Yield the changes that make `have` into `want`.

    What must go goes last, so that a successor is in place before.
    """
    for key, value in want.items():
        there = have.get(key)
        if there != value and not (mends_only and there is None):
            yield Change(kind, key, there, value)
    if not mends_only:
        for key, value in have.items():
            if key not in want:
                yield Change(kind, key, value, None)


def apply(kinds: Iterable[Kind], plan: NodePlan) -> Report:
    """Make the kernel what the plan says, kind after kind; one failure does not stop the rest."""
    made: list[Change] = []
    failures: list[PodwayError] = []
    for kind in kinds:
        try:
            changes = diff(kind, plan)
            failed = kind.apply(changes) if changes else {}
        except PodwayError as error:
            failures.append(error)
            continue
        made += [change for position, change in enumerate(changes) if position not in failed]
        failures += failed.values()
    return Report(tuple(made), tuple(failures))
