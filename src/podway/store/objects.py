"""What every implementation of Store does with stored objects alike: their metadata and their versions."""

import time
import uuid

import msgspec

from podway.api.checked import RejectedObject
from podway.api.resource import Key, Resource, subject
from podway.errors import Conflict

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
    """Return the metadata that stay for an object's life; those of a new one if nothing is known of a former."""
    if former is not None:
        return {"uid": former.metadata.uid, "creation_timestamp": former.metadata.creation_timestamp}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"uid": str(uuid.uuid4()), "creation_timestamp": now}


def with_metadata(obj: Resource, **changes: str) -> Resource:
    """Return an object with some of its metadata changed."""
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, **changes))


def last_state(unwanted: Key, old: Resource | RejectedObject) -> bytes:
    """Return what is told of an object that is deleted: its last state, or of one that cannot be read its name."""
    last = former(old)
    return encode(last) if last else encode({"metadata": {"namespace": unwanted[1], "name": unwanted[2]}})
