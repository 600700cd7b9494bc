"""What every implementation of Store does with stored objects alike: their metadata and their versions."""

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from podway.api.checked import RejectedObject, check
from podway.api.fields import check_timestamp
from podway.api.merge_patch import Document, apply, between
from podway.api.meta import OwnerReference
from podway.api.resource import Key, R, Resource, has_status, key, subject
from podway.errors import Conflict, InvalidObject

encode = msgspec.json.Encoder().encode
"""Write an object as the JSON that is stored."""


def check_version(stored: Key, old: Resource | RejectedObject, expected: str) -> None:
    """Raise Conflict unless an object has the version that it is expected to have."""
    last = former(old)
    version = last.metadata.resource_version if last else ""
    if version != expected:
        raise Conflict(
            f"{subject(stored)} changed since it was read: "
            f"it is at version {version or 'none'}, the change was made to {expected or 'none'}",
            hint="read it again, then decide again",
        )


def former(old: Resource | RejectedObject) -> Resource | None:
    """Return what can be read of a stored object, None if nothing can."""
    return old.found if isinstance(old, RejectedObject) else old


def identity(former: Resource | None) -> dict[str, str]:
    """Return the metadata that stay for an object's life; of what cannot be right in a former one, a new one's."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if former is None:
        return {"uid": str(uuid.uuid4()), "creation_timestamp": now}
    created = former.metadata.creation_timestamp
    wrong = bool(created) and any(check_timestamp("metadata.creationTimestamp", created))
    return {"uid": former.metadata.uid, "creation_timestamp": now if wrong else created}


def with_metadata(obj: R, **changes: Any) -> R:
    """Return an object with some of its metadata changed."""
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, **changes))


Alteration: TypeAlias = Callable[[bytes, Resource | RejectedObject], Document]
"""What becomes of a stored body, of which this could be read."""


def replacing(obj: Resource) -> Alteration:
    """Return the alteration that makes of an object what it is to be, but for its status.

    What is stored of it and is no field of the type stays as it is, and so does what others write (READ_ONLY), and
    who owns it. One that is rejected is replaced as a whole, but for its owners.
    """

    def alter(body: bytes, old: Resource | RejectedObject) -> Document:
        if isinstance(old, RejectedObject):
            after = _document(encode(with_metadata(obj, owner_references=(), **identity(former(old)))))
            if owners := _owners(body):
                after["metadata"]["ownerReferences"] = owners
            return after
        patch = between(_whole(old), _whole(_as_stored(obj, old)))
        if has_status(type(obj)):
            patch.pop("status", None)
        if isinstance(spec := patch.get("spec"), dict):
            patch["spec"] = {name: value for name, value in spec.items() if name not in type(obj).READ_ONLY}
        return apply(_document(body), patch)

    return alter


def _whole(obj: msgspec.Struct) -> Document:
    """Return an object as a document that has every part of it which the type always has, if only as {}.

    msgspec leaves out of a part what is as by default, and the part itself if it is the default's own object: one
    that was read would differ from it, and removing the part would remove what others wrote there.
    """
    document: Document = {}
    for field in msgspec.structs.fields(obj):
        value, whole = getattr(obj, field.name), isinstance(field.default, msgspec.Struct)
        if whole or field.required or value != _default(field):
            part = isinstance(value, msgspec.Struct) and (whole or field.required)
            document[field.encode_name] = _whole(value) if part else msgspec.to_builtins(value)
    return document


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def replacing_status(obj: Resource) -> Alteration:
    """Return the alteration that makes of an object's status what it is to be, and of nothing else."""

    def alter(body: bytes, old: Resource | RejectedObject) -> Document:
        if isinstance(old, RejectedObject):
            raise old.error
        patch = between(_whole(old), _whole(obj))
        return apply(_document(body), {name: value for name, value in patch.items() if name == "status"})

    return alter


def patching(kind: type[Resource], patch: Document, *, status: bool) -> Alteration:
    """Return the alteration by a merge patch: of the status alone, or of all but the status.

    It raises InvalidObject if what becomes of the object is no fact. The status of one that is rejected, if it can
    be read at all, is altered all the same: there it is said why.
    """
    if status or has_status(kind):
        patch = {name: value for name, value in patch.items() if (name == "status") is status}

    def alter(body: bytes, old: Resource | RejectedObject) -> Document:
        if isinstance(old, RejectedObject):
            if status and old.found is not None:
                return apply(_document(body), patch)
            raise old.error
        kept = {name: value for name, value in _document(body)["metadata"].items() if name in _IDENTITY}
        after = apply(_document(body), patch)
        after["metadata"] = {**{n: v for n, v in after["metadata"].items() if n not in _IDENTITY}, **kept}
        found = check(key(old), msgspec.json.encode(after))
        if isinstance(found, RejectedObject):
            field, _, problem = found.problem.partition(": ")
            raise InvalidObject(subject(key(old)), field, problem or field, hint="nothing was changed")
        return after

    return alter


_IDENTITY = frozenset({"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"})
"""Metadata that no patch changes."""


def alter(
    body: bytes, old: Resource | RejectedObject, alteration: Alteration, version: str | None
) -> bytes | None:
    """Return what is to be stored under a new version; None if an alteration changes nothing.

    Where the version is not stored with it (None), it is left out.
    """
    after = alteration(body, old)
    if not isinstance(old, RejectedObject) and after == _document(body):
        return None
    metadata = {name: value for name, value in after["metadata"].items() if name != "resourceVersion"}
    after["metadata"] = metadata if version is None else {**metadata, "resourceVersion": version}
    return msgspec.json.encode(after)


def _as_stored(obj: R, old: Resource) -> R:
    kept = {name: getattr(old.metadata, name) for name in ("resource_version", "owner_references")}
    return with_metadata(obj, **identity(old), **kept)


class _Meta(msgspec.Struct, rename="camel", frozen=True):
    owner_references: list[Document] = []


class _Body(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()


def _owners(body: bytes) -> list[Document]:
    """Return a stored object's owners with all that is said of them, none if that cannot be read."""
    try:
        owners = msgspec.json.decode(body, type=_Body).metadata.owner_references
        msgspec.convert(owners, list[OwnerReference])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    return owners


def _document(body: bytes) -> Document:
    document: Document = msgspec.json.decode(body)
    return document


def last_state(unwanted: Key, old: Resource | RejectedObject) -> bytes:
    """Return what is told of an object that is deleted: its last state, or of one that cannot be read its name."""
    last = former(old)
    return encode(last) if last else encode({"metadata": {"namespace": unwanted[1], "name": unwanted[2]}})
