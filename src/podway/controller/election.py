"""Who of several controllers works: the one that holds a Lease. Pure: it is told what its clock says.

As Kubernetes' own components do it (client-go, tools/leaderelection): whoever holds the lease renews it; the
others take it once they saw nobody renew it for as long as it counts, by their own clocks, so clocks need not
agree. Nobody is fenced off: two that take themselves for the holder for a moment do the same work twice, and every
write names the version that it was made to.
"""

from typing import Literal

import msgspec

from podway.api.kinds.node_lease import CONTROLLER, LEASES, LeaseSpec, NodeLease, micro_time
from podway.api.meta import Metadata

DURATION = 15
"""Seconds that others wait for a holder that is silent."""
DEADLINE = 10.0
"""Seconds after its last renewal when a holder stops to work: before others may begin."""
INTERVAL = 2.0
"""Seconds between looks."""

Step = Literal["create", "take", "renew", "wait"]
"""What is to be done with the lease: made, taken from one that is gone, renewed, or left to whom has it."""


class Candidate:
    """One controller in the election. Times are in seconds by a clock of its own that only goes forward."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen: tuple[LeaseSpec, float] | None = None
        """What the lease said last, and since when."""
        self._renewed: float | None = None

    def look(self, lease: NodeLease | None, now: float) -> Step:
        """Return what to do about the lease as it was found; None if there is none."""
        if lease is None:
            return "create"
        if self._seen is None or self._seen[0] != lease.spec:
            self._seen = (lease.spec, now)
        holder = lease.spec.holder_identity
        if holder == self.name:
            return "renew"
        counts = max(lease.spec.lease_duration_seconds, 1)
        return "take" if not holder or now - self._seen[1] >= counts else "wait"

    def wrote(self, now: float) -> None:
        """Note that the lease was written as this one's; `now` is from before it was sent."""
        self._renewed = now

    def lost(self) -> None:
        """Note that another one has the lease."""
        self._renewed = None

    def leads(self, now: float) -> bool:
        """Tell whether this one is to work now."""
        return self._renewed is not None and now - self._renewed < DEADLINE


def held(by: str, wall: float, lease: NodeLease | None = None) -> NodeLease:
    """Return the lease as held by somebody ("": nobody) from a time in seconds since 1970; it was `lease` before.

    Who gives it up leaves a second of it: whoever looks next takes it.
    """
    spec = LeaseSpec(holder_identity=by, lease_duration_seconds=DURATION if by else 1, renew_time=micro_time(wall))
    if lease is None:
        return NodeLease(metadata=Metadata(name=CONTROLLER, namespace=LEASES), spec=spec)
    return msgspec.structs.replace(lease, spec=spec)
