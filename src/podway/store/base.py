"""The one interface through which Podway reads and writes the cluster's facts.

It is what the Kubernetes API can do, and no more: objects are listed and watched kind by kind; every object has a
`resource_version`, and an update succeeds only if that is still the stored one; a watch goes on from a version
without a gap. Versions are opaque: whoever has one may hand it back or compare it for equality, and nothing else.
There is an order within one kind, and none between kinds.

It is asynchronous, as a client of an API server over HTTP is. Agents run in asyncio; commands ask one thing at a
time, by a thin layer that runs one question to its end (podway.cli.options).
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import msgspec

from podway.api.checked import RejectedObject
from podway.api.kinds import KINDS
from podway.api.merge_patch import Document
from podway.api.resource import Resource

R = TypeVar("R", bound=Resource)


class Listing(msgspec.Struct, Generic[R], frozen=True):
    """All objects of a kind at one version; `rejected` are those that are no facts (podway.api.checked)."""

    items: tuple[R, ...]
    version: str
    rejected: tuple[RejectedObject, ...] = ()


class Event(msgspec.Struct, frozen=True):
    """One change, and the version of its kind from which a watch goes on behind it.

    `object` is the new state, or for `deleted` the last state before deletion, under some version. An object may
    be told as modified, with a deletion timestamp, before it is deleted. A state that is no fact
    (podway.api.checked) is told as rejected.
    """

    type: Literal["added", "modified", "deleted"]
    object: Resource | RejectedObject
    version: str


class Bookmark(msgspec.Struct, frozen=True):
    """No change: the watch stands, and goes on from this version."""

    version: str


class Store(Protocol):
    """Where the cluster's facts live. What is stored and no fact is rejected (podway.api.checked).

    Every method may raise StoreUnavailable, StoreDamaged or StoreTooNew besides what it names.
    """

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """Return all objects of a kind, ordered by namespace and name."""
        ...

    async def unknown(self) -> tuple[RejectedObject, ...]:
        """Return what is stored of kinds that this Podway does not know, as far as the store can tell."""
        ...

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """Return one object. Raises NotFound, and ObjectDamaged if it is rejected."""
        ...

    async def create(self, obj: R) -> R:
        """Store a new object; return it with uid, resource version and creation time filled in.

        An API server leaves out the status of some kinds (pods, custom resources): who needs to be sure of it
        writes it by `update_status`.

        Raises AlreadyExists.
        """
        ...

    async def update(self, obj: R) -> R:
        """Make of an object that nobody changed since it was read what it is to be; return it as stored.

        Its status, if the kind has one, stays as it is, and so does what others stored in it that is no field of
        Podway's type. One that is rejected is replaced as a whole; what nothing could be read of has no version
        (an empty one). What changes nothing makes no event. Raises NotFound, and Conflict if
        `metadata.resource_version` is not the stored one.
        """
        ...

    async def update_status(self, obj: R) -> R:
        """Make of an object's status what it is to be, and of nothing else; return it as stored.

        Raises as `update`, and ObjectDamaged if the object is rejected.
        """
        ...

    async def patch(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """Change what a JSON merge patch (RFC 7396) names, but for the status; return the object as stored.

        Only if `resource_version` is still the stored one, where it is given. Raises NotFound, Conflict,
        InvalidObject if no fact would come of it, and ObjectDamaged if the object is rejected.
        """
        ...

    async def patch_status(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """Change what a merge patch names of the status, and nothing else; otherwise as `patch`.

        The status of an object that is rejected is changed, too, if the object can be read at all; it stays
        rejected, and what could be read of it is returned.
        """
        ...

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """Delete an object; with `resource_version` only if that is still the stored one.

        Raises NotFound or Conflict.
        """
        ...

    def watch(self, kind: type[Resource], version: str) -> AsyncGenerator[Event | Bookmark, None]:
        """Yield a bookmark once the watch stands, then every change of a kind after a version, in order.

        The version is a listing's of this kind, or one that a watch of it told. There is no gap. A watch may end
        at any time: it is taken up again from the version that came last.

        Raises VersionExpired if changes of this kind after the version are no longer kept.
        """
        ...

    async def close(self) -> None:
        """Release files and connections. Watches end with StoreUnavailable."""
        ...


@runtime_checkable
class Shared(Protocol):
    """A store whose objects are others' too, with more in them than Podway's types have."""

    async def amend(
        self,
        kind: type[Resource],
        name: str,
        change: Callable[[Mapping[str, Any]], Document | None],
        *,
        status: bool = False,
    ) -> bool:
        """Change of an object what Podway's types leave out; tell whether it had to be changed.

        `change` gets the whole object as it is stored, and returns the JSON merge patch (RFC 7396) that makes of
        it what it is to be, None if it is so. It is asked again if somebody else was quicker. With `status` the
        patch is of the status. Raises NotFound, StoreForbidden, StoreUnavailable, and InvalidObject.
        """
        ...


class Everything(msgspec.Struct, frozen=True):
    """Objects of several kinds, each kind as it was at some moment of its own, and those that are no facts."""

    items: tuple[Resource, ...]
    rejected: tuple[RejectedObject, ...]
    versions: Mapping[str, str]
    """From which version each kind is to be watched, by the kind's name."""


async def list_all(store: Store, kinds: Iterable[type[Resource]] = tuple(KINDS.values())) -> Everything:
    """Return all objects of these kinds, of every one if none are named, ordered by kind, namespace and name."""
    listings = {kind.KIND: await store.list(kind) for kind in sorted(kinds, key=lambda kind: kind.KIND)}
    return Everything(
        tuple(obj for listing in listings.values() for obj in listing.items),
        (*(one for listing in listings.values() for one in listing.rejected), *await store.unknown()),
        {kind: listing.version for kind, listing in listings.items()},
    )
