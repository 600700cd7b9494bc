"""What every resource has: Kubernetes' object metadata and label selectors."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import msgspec

REDACTED = "(redacted)"
"""What is shown in place of a secret value."""


class Rule(msgspec.Struct, frozen=True):
    """What a Kubernetes API server judges itself: a rule in CEL for the field at `path`, which it calls `self`."""

    path: str
    rule: str
    message: str


class Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True, gc=False):
    """Base of all parts of a resource: frozen, camelCase on the wire, unknown fields passed over.

    They are trees of plain values, in which nothing leads back: the garbage collector need not walk through the
    thousands that an agent knows.

    A part of Podway's own kinds says here what podway.api.crd cannot read off its fields. Paths are those of a
    manifest (`spec.import[].cidr`). What is right by `problems` is right by these, too.
    """

    LIMITS: ClassVar[Mapping[str, tuple[int, int]]] = MappingProxyType({})
    """The least and the most that numbers may be; for `podway.api.fields.check_limits`, too."""
    SCHEMA: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """More of the schemas of fields (OpenAPI v3): patterns, lengths."""
    RULES: ClassVar[tuple[Rule, ...]] = ()


class StrictRecord(Record, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of one of Podway's own kinds: an unknown field is an error, since it is a typing mistake."""


class OwnerReference(Record, frozen=True, kw_only=True):
    """Who an object is part of, by kind and name; at most one is its `controller`.

    Read, and never written: an update leaves an object's owners as they are, with all that is said of them.
    """

    kind: str
    name: str
    controller: bool = False


class Metadata(Record, frozen=True, kw_only=True):
    """Kubernetes ObjectMeta, as far as Podway reads it.

    `resource_version` is opaque to readers; an update succeeds only if it is still the stored one.
    `generation` counts what is asked for (the spec) where an API server counts it, and is 0 elsewhere.
    """

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()


class SelectorRequirement(StrictRecord, frozen=True, kw_only=True):
    """One `matchExpressions` entry of a label selector."""

    SCHEMA: ClassVar = {
        "key": {"minLength": 1, "maxLength": 317},
        "values": {"maxItems": 64},
        "values[]": {"maxLength": 63},
    }
    RULES: ClassVar = (
        Rule(
            "",
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            "operators In and NotIn need values, the others take none",
        ),
    )

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(StrictRecord, frozen=True, kw_only=True):
    """Kubernetes LabelSelector: all requirements must hold; an empty selector matches everything."""

    SCHEMA: ClassVar = {"matchLabels": {"maxProperties": 64}, "matchExpressions": {"maxItems": 64}}

    match_labels: dict[str, str] = {}
    match_expressions: tuple[SelectorRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether an object with these labels is selected."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(meets(labels, one.key, one.operator, one.values) for one in self.match_expressions)


def selector_text(selector: LabelSelector) -> str:
    """Return a selector as people write it: `app=web,tier in (a,b),!old`; `all` if it is empty."""
    words = {"In": "{} in ({})", "NotIn": "{} notin ({})", "Exists": "{}", "DoesNotExist": "!{}"}
    parts = [f"{key}={value}" for key, value in selector.match_labels.items()]
    parts += [words[one.operator].format(one.key, ",".join(one.values)) for one in selector.match_expressions]
    return ",".join(parts) or "all"


def meets(labels: Mapping[str, str], label: str, operator: str, values: Collection[str]) -> bool:
    """Tell whether labels meet one condition; the operators are those of Kubernetes' `matchExpressions`.

    One that nobody knows is met by nothing, nor is `NotIn` without values, which the API refuses.
    """
    value = labels.get(label)
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return bool(values) and value not in values
        case "Exists":
            return value is not None
        case _:
            return operator == "DoesNotExist" and value is None
