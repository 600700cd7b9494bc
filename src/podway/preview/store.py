"""A snapshot as a store: for reading only."""

from collections.abc import AsyncGenerator
from typing import NoReturn

from podway.api.checked import RejectedObject
from podway.api.merge_patch import Document
from podway.api.resource import Resource, key, subject
from podway.errors import InvalidInput, NotFound
from podway.preview.snapshot import Snapshot
from podway.store.base import Bookmark, Event, Listing, R


class SnapshotStore:
    """The objects of a snapshot. What would change one raises InvalidInput."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._objects = {key(obj): obj for obj in snapshot.objects}
        self._taken = snapshot.taken

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """Return all objects of a kind, ordered by namespace and name."""
        found = [obj for obj in self._objects.values() if isinstance(obj, kind)]
        here = [obj for obj in found if namespace is None or obj.metadata.namespace == namespace]
        return Listing(tuple(sorted(here, key=key)), self._taken)

    async def unknown(self) -> tuple[RejectedObject, ...]:
        """Return nothing: what is not known is in no snapshot."""
        return ()

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """Return one object. Raises NotFound."""
        found = self._objects.get((kind.KIND, namespace, name))
        if not isinstance(found, kind):
            raise NotFound(f"{subject((kind.KIND, namespace, name))} does not exist in the snapshot")
        return found

    async def create(self, obj: R) -> R:
        """Raise InvalidInput."""
        _refuse()

    async def update(self, obj: R) -> R:
        """Raise InvalidInput."""
        _refuse()

    async def update_status(self, obj: R) -> R:
        """Raise InvalidInput."""
        _refuse()

    async def patch(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """Raise InvalidInput."""
        _refuse()

    async def patch_status(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """Raise InvalidInput."""
        _refuse()

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """Raise InvalidInput."""
        _refuse()

    def watch(self, kind: type[Resource], version: str) -> AsyncGenerator[Event | Bookmark, None]:
        """Raise InvalidInput: nothing ever happens in a snapshot."""
        _refuse()

    async def close(self) -> None:
        """Do nothing."""


def _refuse() -> NoReturn:
    raise InvalidInput("a snapshot cannot be changed or watched", hint="name the cluster's store with --store")
