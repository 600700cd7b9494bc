"""The one interface through which Podway reads and writes the cluster's facts.

Modelled on the Kubernetes API: every object carries a `resource_version`, an update succeeds only if
that is still the stored one, a list tells the revision it was taken at, and a watch continues from a
revision without a gap. Embedded SQLite implements it for one machine (podway.store.sqlite).
"""

from collections.abc import AsyncIterator
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

from podway.api.checked import SetAside
from podway.api.resource import Resource

R = TypeVar("R", bound=Resource)


class Listing(msgspec.Struct, Generic[R], frozen=True):
    """Objects as they all were at one revision; `aside` are those that are no facts (podway.api.checked)."""

    items: tuple[R, ...]
    revision: int
    aside: tuple[SetAside, ...] = ()


class Event(msgspec.Struct, frozen=True):
    """One change. `object` is the new state, or for `deleted` the last state before deletion.

    A state that is no fact (podway.api.checked) is told as set aside.
    """

    type: Literal["added", "modified", "deleted"]
    object: Resource | SetAside
    revision: int


class Store(Protocol):
    """Where the cluster's facts live. What is stored and no fact is set aside (podway.api.checked).

    Every method may raise StoreUnavailable, StoreDamaged or StoreTooNew besides what it names.
    """

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """Return all objects of a kind, ordered by namespace and name."""
        ...

    async def list_all(self) -> Listing[Resource]:
        """Return every object of every kind as they all were at one revision."""
        ...

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """Return one object. Raises NotFound, and ObjectDamaged if it is set aside."""
        ...

    async def create(self, obj: R) -> R:
        """Store a new object; return it with uid, resource version and creation time filled in.

        Raises AlreadyExists.
        """
        ...

    async def update(self, obj: R) -> R:
        """Replace an object that nobody changed since it was read; return it as stored.

        One that is set aside is replaced, too; what nothing could be read of has no version (an empty one).
        Raises NotFound, and Conflict if `metadata.resource_version` is not the stored one.
        """
        ...

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """Delete an object; with `resource_version` only if that is still the stored one.

        Raises NotFound or Conflict.
        """
        ...

    def watch(self, since: int) -> AsyncIterator[Event]:
        """Yield every change after revision `since`, in order, for ever, without a gap.

        Raises RevisionGone if changes after `since` are no longer kept.
        """
        ...

    async def close(self) -> None:
        """Release files and connections."""
        ...
