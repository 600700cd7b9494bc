"""Policies that report and do not drop: how one is marked, and what its mark means. Pure."""

from podway.api.resource import Resource

AUDIT = "podway.io/audit"
"""The annotation that marks a policy. Only `true` does: whatever else it says, the policy is enforced."""

SETTABLE = {"audit": ("annotations", AUDIT)}
"""How `podway set` calls it."""


def is_audited(policy: Resource) -> bool:
    """Tell whether a policy only reports what it would deny."""
    return policy.metadata.annotations.get(AUDIT) == "true"
