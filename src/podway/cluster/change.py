"""One change of one object: what informers tell and what decides which plans are made anew."""

from typing import Generic, Self, TypeVar

import msgspec

from podway.api.resource import Key, Resource, key

R = TypeVar("R", bound=Resource)


class Change(msgspec.Struct, Generic[R], frozen=True):
    """An object's key, its former state and its present one; None where there is none, or none is known."""

    key: Key
    old: R | None
    new: R | None

    @classmethod
    def of(cls, old: R | None, new: R | None) -> Self:
        """Return the change between two states, one of which there must be."""
        obj = new if new is not None else old
        assert obj is not None
        return cls(key(obj), old, new)

    @property
    def kind(self) -> str:
        """The object's kind."""
        return self.key[0]

    @property
    def empty(self) -> bool:
        """Whether nothing changed: an object came again as it was, or what is not known was deleted."""
        return self.old is self.new or self.old == self.new

    @property
    def only_status(self) -> bool:
        """Whether an object is asked for as before, and only what is observed of it changed."""
        old, new = self.old, self.new
        if old is None or new is None or not old.JUDGED:
            return False
        metadata = msgspec.structs.replace(new.metadata, resource_version=old.metadata.resource_version)
        return bool(
            msgspec.structs.replace(old, status=None)
            == msgspec.structs.replace(new, metadata=metadata, status=None)
        )
