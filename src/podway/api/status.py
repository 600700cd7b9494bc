"""What is observed of an object that is judged among the others: conditions, as Kubernetes has them.

The controller writes them (podway.controller), and people read them; nothing that Podway does depends on one.
"""

from podway.api.meta import Record

ACCEPTED = "Accepted"
"""The type of the condition that tells whether an object holds."""


class Condition(Record, frozen=True, kw_only=True):
    """One observation (Kubernetes' metav1.Condition): of which generation of the object it is, and since when."""

    type: str
    status: str
    observed_generation: int = 0
    last_transition_time: str = ""
    reason: str = ""
    message: str = ""


class JudgedStatus(Record, frozen=True, kw_only=True):
    """What is observed of an object."""

    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of a type, None if it was not observed."""
        return next((one for one in self.conditions if one.type == kind), None)


def accepted(status: JudgedStatus) -> str:
    """Return for people whether an object holds: `yes`, `no: REASON`, or `-` where nobody judged it."""
    found = status.condition(ACCEPTED)
    if found is None:
        return "-"
    return "yes" if found.status == "True" else f"no: {found.reason}"
