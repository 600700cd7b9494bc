"""Findings, checks, and the registry of all checks."""

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import msgspec

from podway.health.facts import ClusterFacts, NodeFacts

Facts = TypeVar("Facts")


class Severity(enum.StrEnum):
    """`error`: pods' traffic is lost, or will be at the next change. `warning`: it is at risk."""

    ERROR = "error"
    WARNING = "warning"


class Problem(msgspec.Struct, frozen=True):
    """What a judge returns. `subject` is the object below the node, empty for the node itself."""

    found: str
    advice: str
    subject: str = ""
    severity: Severity = Severity.ERROR


class Finding(msgspec.Struct, frozen=True):
    """One fault: what it concerns, what was found, why that matters, and what repairs it."""

    check: str
    severity: Severity
    subject: str
    found: str
    why: str
    advice: str


class Check(msgspec.Struct, Generic[Facts], frozen=True):
    """A check as declared. `caused` says whether its test causes the fault on a real kernel.

    Where a fault cannot be caused in a lab, the test gives the judge facts instead.
    """

    name: str
    looks_at: str
    why: str
    caused: bool
    judge: Callable[[Facts], Iterable[Problem]]

    def examine(self, facts: Facts, node: str = "") -> Iterator[Finding]:
        """Yield what is wrong; subjects begin with the node's name, if given."""
        for problem in self.judge(facts):
            subject = ": ".join(part for part in (node, problem.subject) if part)
            yield Finding(self.name, problem.severity, subject, problem.found, self.why, problem.advice)


NODE_CHECKS: dict[str, Check[NodeFacts]] = {}
"""Checks of one node's facts, made by its agent."""

CLUSTER_CHECKS: dict[str, Check[ClusterFacts]] = {}
"""Checks that need the answers of all nodes, made by the command."""


def node_check(name: str, *, looks_at: str, why: str, caused: bool = True) -> Callable[[Any], Any]:
    """Register the judge of a node's facts below."""
    return _registering(NODE_CHECKS, name, looks_at, why, caused)


def cluster_check(name: str, *, looks_at: str, why: str, caused: bool = True) -> Callable[[Any], Any]:
    """Register the judge of the whole cluster's facts below."""
    return _registering(CLUSTER_CHECKS, name, looks_at, why, caused)


def _registering(
    registry: dict[str, Any], name: str, looks_at: str, why: str, caused: bool
) -> Callable[[Any], Any]:
    def register(judge: Any) -> Any:
        registry[name] = Check(name, looks_at, why, caused, judge)
        return judge

    return register
