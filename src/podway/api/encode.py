"""Resources to Kubernetes' shape: apiVersion and kind first, what is empty left out."""

from collections.abc import Sequence
from typing import Any

import msgspec

from podway.api.resource import Resource, api_version


def to_builtins(value: msgspec.Struct) -> dict[str, Any]:
    """Return a Struct as plain dicts, lists and scalars; a resource with its apiVersion and kind.

    Secrets are left out: this is for people, files and other programs.
    """
    value = without_secrets(value)
    shape: dict[str, Any] = msgspec.to_builtins(value)
    if isinstance(value, Resource):
        return {"apiVersion": api_version(type(value)), "kind": value.KIND, **shape}
    return shape


def without_secrets(value: msgspec.Struct) -> msgspec.Struct:
    """Return a Struct as people may see it."""
    return value.redacted() if isinstance(value, Resource) else value


def to_list(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a Kubernetes `List` of objects."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def to_json(value: dict[str, Any]) -> str:
    """Return indented JSON text."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def to_yaml(value: dict[str, Any]) -> str:
    """Return YAML text, which podway.api.decode reads back to the same value."""
    from podway.api.documents import dump

    return dump(value)
