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
