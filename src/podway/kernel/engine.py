"""One engine for every kind of kernel object: it brings what is to what should be.

It compares by key and value (podway.plan.changes) and knows no kind by name. Each (podway.kernel.kinds) tells
what a plan wants of it, lists what the kernel has that bears our mark, and carries out changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from podway.errors import KernelError, PodwayError
from podway.plan.changes import Change, compare
from podway.plan.objects import NodePlan


class Consequence(KernelError):
    """What failed only because something else did, which a report tells already: it stays out of that."""


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


def apply(kinds: Iterable[Kind], plan: NodePlan) -> Report:
    """Make the kernel what the plan says; one failure does not stop the rest.

    First kind after kind is added and replaced, then in reverse order removed: nothing goes before its
    successor is in place, and no device before the routes through it have moved away.
    """
    report = _Progress()
    removals: list[tuple[Kind, list[Change]]] = []
    for kind in kinds:
        try:
            changes = diff(kind, plan)
        except PodwayError as error:
            report.failures.append(error)
            continue
        report.carry_out(kind, [change for change in changes if change.action != "remove"])
        removals.append((kind, [change for change in changes if change.action == "remove"]))
    for kind, changes in reversed(removals):
        report.carry_out(kind, changes)
    return Report(tuple(report.changes), tuple(report.failures))


class _Progress:
    """A report in the making."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.failures: list[PodwayError] = []

    def carry_out(self, kind: Kind, changes: Sequence[Change]) -> None:
        """Have a kind carry out changes, and note what became of them."""
        if not changes:
            return
        try:
            failed = kind.apply(changes)
        except PodwayError as error:
            self.failures.append(error)
            return
        self.changes += [change for position, change in enumerate(changes) if position not in failed]
        self.failures += [error for error in failed.values() if not isinstance(error, Consequence)]
