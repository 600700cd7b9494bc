"""What makes one object right: rules for metadata here, and for its own fields in each kind's module. Pure.

Rules that need the rest of the cluster are in podway.api.rules.
"""

from collections.abc import Iterator

from podway.api.fields import LABEL, Problem, check_label_key, check_labels, check_name, check_timestamp
from podway.api.resource import Resource, invalid
from podway.errors import InvalidObject


def validate(obj: Resource) -> None:
    """Check every field of an object; raises InvalidObject for the first that cannot be right."""
    for problem in problems(obj):
        raise problem


def problems(obj: Resource) -> Iterator[InvalidObject]:
    """Yield everything that cannot be right in an object by itself."""
    for field, problem, hint in (*_metadata(obj), *obj.problems()):
        yield invalid(obj, field, problem, hint)


def _metadata(obj: Resource) -> Iterator[Problem]:
    meta = obj.metadata
    yield from check_name("metadata.name", meta.name, obj.NAME_FORM)
    if obj.ONLY and meta.name != obj.ONLY:
        yield "metadata.name", f"{meta.name!r} has no effect", f"the one {obj.KIND} is named {obj.ONLY}"
    if obj.NAMESPACED:
        yield from check_name("metadata.namespace", meta.namespace, LABEL)
    elif meta.namespace:
        yield "metadata.namespace", f"{obj.KIND} objects are in no namespace", "remove this field"
    if meta.creation_timestamp:
        yield from check_timestamp("metadata.creationTimestamp", meta.creation_timestamp)
    yield from check_labels("metadata.labels", meta.labels)
    for name in meta.annotations:
        yield from check_label_key("metadata.annotations", name)
