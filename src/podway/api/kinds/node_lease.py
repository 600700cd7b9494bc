"""Lease: by what a node's agent shows that it lives.

Each agent renews the one of its node's name, in Podway's namespace. Agents do not watch leases: whoever wants to
know whether an agent lives (`get nodes`, `doctor`, an agent that would take a name) asks then. So a sign of life
costs the other nodes nothing.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import ClassVar, Literal

from podway.api.columns import AGE, NAME, NAMESPACE, Column, age
from podway.api.fields import Problem
from podway.api.meta import Record
from podway.api.resource import Names, Resource

LEASES = "podway"
"""The namespace of the leases of nodes' agents."""

CONTROLLER = "podway-controller"
"""The lease there by which one of several controllers works: no node may have its name."""


class LeaseSpec(Record, frozen=True, kw_only=True):
    """Who holds a lease, and until when."""

    holder_identity: str = ""
    """The kernel that the node's agent runs on; two different ones of a name are a mistake."""
    lease_duration_seconds: int = 0
    """How long after it was renewed the lease counts."""
    renew_time: str = ""
    """When it was renewed last: RFC 3339 with microseconds, in UTC."""


class NodeLease(Resource, frozen=True, kw_only=True):
    """A Kubernetes Lease (coordination.k8s.io): its holder lives for as long as it renews it."""

    KIND: ClassVar = "Lease"
    NAMESPACED: ClassVar = True
    NAMES: ClassVar = Names("leases")
    COLUMNS: ClassVar = (
        NAMESPACE,
        NAME,
        Column("HOLDER", lambda lease, _: lease.spec.holder_identity or "nobody"),
        Column("RENEWED", lambda lease, cluster: _renewed(lease, cluster.now)),
        AGE,
    )

    api_version: Literal["coordination.k8s.io/v1"] = "coordination.k8s.io/v1"
    kind: Literal["Lease"] = "Lease"
    spec: LeaseSpec = LeaseSpec()

    @property
    def renewed(self) -> float | None:
        """When it was renewed last, in seconds since 1970; None if it never was."""
        return datetime.fromisoformat(self.spec.renew_time).timestamp() if self.spec.renew_time else None

    def holds(self, now: float) -> bool:
        """Tell whether it shows at a time, in seconds since 1970, that its holder lives.

        Clocks differ a little; a time of renewal that lies further ahead is the word of one that was wrong.
        """
        if self.renewed is None or not self.spec.holder_identity:
            return False
        return abs(now - self.renewed) < self.spec.lease_duration_seconds

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in times."""
        try:
            aware = not self.spec.renew_time or datetime.fromisoformat(self.spec.renew_time).tzinfo is not None
        except ValueError:
            aware = False
        if not aware:
            yield (
                "spec.renewTime",
                f"{self.spec.renew_time!r} is no time",
                "write it as 2026-01-31T12:00:00.000000Z",
            )
        if self.spec.lease_duration_seconds < 0:
            yield "spec.leaseDurationSeconds", "is negative", "write how many seconds the lease counts"


def micro_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _renewed(lease: NodeLease, now: float) -> str:
    return "never" if lease.renewed is None else f"{age(now - lease.renewed)} ago"
