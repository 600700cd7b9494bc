"""What every resource has: Kubernetes' object metadata and label selectors."""

from collections.abc import Mapping
from typing import Literal

import msgspec

REDACTED = "(redacted)"
"""What is shown in place of a secret value."""


class Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """Base of all parts of a resource: frozen, camelCase on the wire, unknown fields passed over."""


class StrictRecord(Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of one of Podway's own kinds: an unknown field is an error, since it is a typing mistake."""


class Metadata(Record, frozen=True, kw_only=True):
    """Kubernetes ObjectMeta, as far as Podway reads it.

    `resource_version` is opaque to readers; an update succeeds only if it is still the stored one.
    """

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class SelectorRequirement(StrictRecord, frozen=True, kw_only=True):
    """One `matchExpressions` entry of a label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(StrictRecord, frozen=True, kw_only=True):
    """Kubernetes LabelSelector: all requirements must hold; an empty selector matches everything."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[SelectorRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether an object with these labels is selected."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_holds(requirement, labels) for requirement in self.match_expressions)


def selector_text(selector: LabelSelector) -> str:
    """Return a selector as people write it: `app=web,tier in (a,b),!old`; `all` if it is empty."""
    words = {"In": "{} in ({})", "NotIn": "{} notin ({})", "Exists": "{}", "DoesNotExist": "!{}"}
    parts = [f"{key}={value}" for key, value in selector.match_labels.items()]
    parts += [words[one.operator].format(one.key, ",".join(one.values)) for one in selector.match_expressions]
    return ",".join(parts) or "all"


def _holds(requirement: SelectorRequirement, labels: Mapping[str, str]) -> bool:
    present = requirement.key in labels
    match requirement.operator:
        case "In":
            return present and labels[requirement.key] in requirement.values
        case "NotIn":
            return not present or labels[requirement.key] not in requirement.values
        case "Exists":
            return present
        case "DoesNotExist":
            return not present
