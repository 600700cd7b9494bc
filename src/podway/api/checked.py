"""Where stored objects become facts: what cannot be read, or cannot be right, is rejected.

Everything that the rest of Podway reads of a store has passed here, so planners need not doubt an object's
fields. The rules are those by which `podway apply` refuses (podway.api.validate): an object that was rejected
was written by another hand, by another Podway, or was damaged on the disk.
"""

import msgspec

from podway.api.kinds import KINDS
from podway.api.resource import Key, Resource, key, subject
from podway.api.validate import problems
from podway.errors import ObjectDamaged

_decoders: dict[str, msgspec.json.Decoder[Resource]] = {
    name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()
}


class RejectedObject(msgspec.Struct, frozen=True):
    """A stored object that is no fact, and why; `found` is what could be read of it, None if nothing could."""

    key: Key
    problem: str
    found: Resource | None = None

    def __str__(self) -> str:
        return f"{subject(self.key)} is rejected: {self.problem}"

    @property
    def error(self) -> ObjectDamaged:
        """The error to raise for who asks for this object."""
        kind, namespace, name = self.key
        where = f" -n {namespace}" if namespace else ""
        return ObjectDamaged(
            str(self),
            hint=f"`podway apply -f` a right one in its place, or `podway delete {kind.lower()} {name}{where}`; "
            "until then everything else goes on, by its last good state where that is known",
            found=self.found,
        )


def check(stored: Key, body: bytes) -> Resource | RejectedObject:
    """Return the object that is stored under a key, or why it is none."""
    kind = stored[0]
    if kind not in _decoders:
        return RejectedObject(stored, f"{kind} is no kind that this Podway knows; a newer one may have written it")
    try:
        found = _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return RejectedObject(stored, f"it cannot be read: {error}")
    if key(found) != stored:
        return RejectedObject(stored, f"it says of itself that it is {subject(key(found))}")
    wrong = next(problems(found), None)
    if wrong is not None:
        return RejectedObject(stored, f"{wrong.field}: {wrong.problem}", found)
    return found


class _Named(msgspec.Struct):
    name: str
    namespace: str = ""


class _Body(msgspec.Struct):
    metadata: _Named


def key_in(kind: str, body: bytes) -> Key | None:
    """Return the key of an object as its body says, None if that cannot be read."""
    try:
        named = msgspec.json.decode(body, type=_Body).metadata
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return (kind, named.namespace, named.name)
