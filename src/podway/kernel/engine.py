"""One engine for every kind of kernel object: it brings what is to what should be.

It compares by key and value (podway.plan.changes) and knows no kind by name. Each (podway.kernel.kinds) tells
what a plan wants of it, lists what the kernel has that bears our mark, and carries out changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from podway.errors import KernelError, PodwayError
from podway.plan.changes import Change, compare
from podway.plan.objects import NodePlan

SLICE = 200
"""Objects after which an audit may pause: to read and compare them takes some two milliseconds."""


class Consequence(KernelError):
    """What failed only because something else did, which a report tells already: it stays out of that."""


class Report(msgspec.Struct, frozen=True):
    """What applying a plan did: the changes made, and an error for each that could not be.

    `found` are those of the changes that nobody had asked for, nor did they come of what was asked for: somebody
    else's doing, found on the way and put right.
    """

    changes: tuple[Change, ...] = ()
    failures: tuple[PodwayError, ...] = ()
    found: tuple[Change, ...] = ()


Compared: TypeAlias = Literal[False, "by key", "in parts"]


class Kind(Protocol):
    """One kind of kernel object, on one node."""

    name: str
    repairs_only: bool
    """Objects of this kind are made and removed elsewhere; the engine only puts them right."""
    compared: Compared
    """They are few, and what a plan says is not what `apply` takes: only a comparison tells what is to be done.

    Each has a plan's key, or an object of a plan is several of them."""

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


class Scannable(ABC):
    """A kind of which a node may hold thousands: it tells one by one what is wanted and what there is.

    Such objects are made and removed by the engine alone (`repairs_only` is no matter).
    """

    name: str

    @abstractmethod
    def pairs(self, plan: NodePlan) -> Iterable[tuple[Any, Any]]:
        """Yield what `wanted` returns."""

    @abstractmethod
    def scan(self, plan: NodePlan, wanted: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
        """Yield what `list` returns: reading the kernel's answers takes longer than they do."""

    def wanted(self, plan: NodePlan) -> Mapping[Any, Any]:
        """Return what a plan wants, by key, in the form in which `list` would show it."""
        return dict(self.pairs(plan))

    def list(self, plan: NodePlan) -> Mapping[Any, Any]:
        """Return what the kernel has of ours, by key. Raises KernelError."""
        return dict(self.scan(plan, self.wanted(plan)))


def one_by_one(changes: Iterable[Change], carry_out: Callable[[Change], None]) -> dict[int, KernelError]:
    """Carry out each change by itself; return the failures by the change's position, as a kind's `apply` does."""
    failures = {}
    for position, change in enumerate(changes):
        try:
            carry_out(change)
        except KernelError as error:
            failures[position] = error
    return failures


def diff(kind: Kind, plan: NodePlan) -> list[Change]:
    """Return what must change of one kind, additions and replacements first. Raises PodwayError."""
    return list(compare(kind.name, kind.list(plan), kind.wanted(plan), repairs_only=kind.repairs_only))


def audit(kinds: Iterable[Kind], plan: NodePlan) -> Iterator[Change | None]:
    """Yield what differs from a plan, and now and then None, where a caller may let others go first.

    What others do meanwhile may make a difference out of nothing: whoever acts on one looks again. Raises
    PodwayError.
    """
    for kind in kinds:
        if not isinstance(kind, Scannable):
            yield from diff(kind, plan)
            yield None
            continue
        for number, change in enumerate(_compared(kind, plan)):
            if change is not None or number % SLICE == SLICE - 1:
                yield change
        yield None


def _compared(kind: Scannable, plan: NodePlan) -> Iterator[Change | None]:
    """Yield the changes that a kind needs, and None for each object that is read and right.

    What the kernel has is not gathered: there may be thousands, and most are as they are wanted.
    """
    want: dict[Any, Any] = {}
    for key, value in kind.pairs(plan):
        want[key] = value
        yield None
    missing = set(want)
    for key, value in kind.scan(plan, want):
        missing.discard(key)
        wanted = want.get(key)
        yield None if wanted == value else Change(kind.name, key, value, wanted)
    for key, value in want.items() if missing else ():
        yield Change(kind.name, key, None, value) if key in missing else None


def carry_out(kinds: Sequence[Kind], changes: Iterable[Change], plan: Callable[[], NodePlan]) -> Report:
    """Carry out changes of what is wanted without a look at the rest, in the order that `apply` has.

    What stands in the kernel in another form than in a plan, or carries other objects, is compared all the same
    (`compared`): `plan` returns the one that the changes lead to, which takes a while to put together.
    """
    by_kind: dict[str, list[Change]] = {}
    for change in changes:
        by_kind.setdefault(change.kind, []).append(change)
    report = _Progress()
    removals: list[tuple[Kind, list[Change]]] = []
    for kind in kinds:
        mine = by_kind.get(kind.name, [])
        if kind.repairs_only:
            mine = [change for change in mine if change.action == "replace"]
        if not mine:
            continue
        found = mine
        if kind.compared:
            try:
                found = diff(kind, plan())
            except PodwayError as error:
                report.failures.append(error)
                continue
        if any(change.action != "remove" for change in mine):
            report.carry_out(kind, [change for change in found if change.action != "remove"])
        # Of what is replaced and stands in the kernel as several things, some may be in no one's way any more.
        if kind.compared == "in parts" or any(change.action == "remove" for change in mine):
            removals.append((kind, [change for change in found if change.action == "remove"]))
    for kind, gone in reversed(removals):
        report.carry_out(kind, gone)
    return Report(tuple(report.changes), tuple(report.failures))


def apply(kinds: Iterable[Kind], plan: NodePlan, *, removes: bool = True) -> Report:
    """Make the kernel what the plan says; one failure does not stop the rest.

    First kind after kind is added and replaced, then in reverse order removed: nothing goes before its
    successor is in place, and no device before the routes through it have moved away. Without `removes` what is
    not in the plan stays.
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
    for kind, changes in reversed(removals if removes else ()):
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
