"""JSON merge patches (RFC 7396): what changes between two documents, and what becomes of one by that. Pure.

A patch names what changes and says nothing of all else, so who patches an object needs not know all of its fields.
A null removes a member; lists are replaced as a whole. So a patch cannot say that a member becomes null, and
documents that hold nulls are none of these.
"""

from typing import Any, TypeAlias

Document: TypeAlias = dict[str, Any]
"""A JSON object."""


def apply(document: Document, patch: Document) -> Document:
    """Return a document after a patch (RFC 7396, section 2). Neither is changed."""
    after = dict(document)
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        elif isinstance(value, dict):
            there = after.get(name)
            after[name] = apply(there if isinstance(there, dict) else {}, value)
        else:
            after[name] = value
    return after


def between(before: Document, after: Document) -> Document:
    """Return the patch that leads from one document to another, an empty one if they are equal."""
    patch: Document = {name: None for name in before if name not in after}
    for name, value in after.items():
        there = before.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            if inner := between(there, value):
                patch[name] = inner
        elif name not in before or there != value:
            patch[name] = value
    return patch
