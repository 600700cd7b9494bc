"""A store in this process's memory, for tests: it promises what every store does, and little more.

Its versions are in no order that could be seen, watches end when asked, and the history of a kind is forgotten
when asked: so whoever orders versions, or takes a watch for endless, is found out.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from typing import Literal, NamedTuple, cast

import msgspec

from podway.api.checked import RejectedObject, check
from podway.api.kinds import KINDS
from podway.api.merge_patch import Document
from podway.api.resource import Key, Resource, key, subject
from podway.errors import AlreadyExists, NotFound, StoreUnavailable, VersionExpired
from podway.store.base import Bookmark, Event, Listing, R
from podway.store.objects import (
    Alteration,
    alter,
    check_version,
    encode,
    identity,
    last_state,
    patching,
    replacing,
    replacing_status,
    with_metadata,
)


class _Change(NamedTuple):
    version: str
    type: Literal["added", "modified", "deleted"]
    key: Key
    body: bytes


class MemoryCluster:
    """What a cluster's stores have in common: open one MemoryStore for each who is to use it."""

    def __init__(self) -> None:
        self.bodies: dict[Key, bytes] = {}
        self.history: dict[str, list[_Change]] = {}
        self.beginnings: dict[str, str] = {}
        """By kind the version from which on its history is kept."""
        self.changed = asyncio.Event()
        """Set, and put anew, whenever something happens that a watch must look at."""
        self.ended = 0
        """How often all watches were ended."""

    def log(
        self, kind: str, type_: Literal["added", "modified", "deleted"], about: Key, body: bytes, version: str
    ) -> None:
        """Note a change under a version of its own."""
        self.history.setdefault(kind, []).append(_Change(version, type_, about, body))
        self.wake()

    def newest(self, kind: str) -> str:
        """Return the version of a kind as it is now."""
        kept = self.history.get(kind)
        return kept[-1].version if kept else self.beginnings.setdefault(kind, secrets.token_hex(6))

    def after(self, kind: str, version: str) -> list[_Change]:
        """Return the changes of a kind after a version. Raises VersionExpired."""
        if version == self.newest(kind):
            return []
        kept = self.history.get(kind, [])
        if version == self.beginnings.get(kind):
            return list(kept)
        for number, change in enumerate(kept, start=1):
            if change.version == version:
                return kept[number:]
        raise VersionExpired(f"changes of kind {kind} after {version} are no longer kept", hint="list it again")

    def forget(self, kind: type[Resource]) -> None:
        """Keep no history of a kind."""
        newest = self.newest(kind.KIND)
        self.history.pop(kind.KIND, None)
        self.beginnings[kind.KIND] = newest

    def end_watches(self) -> None:
        """End all watches, as an API server does now and then."""
        self.ended += 1
        self.wake()

    def wake(self) -> None:
        """Have all watches look."""
        self.changed.set()
        self.changed = asyncio.Event()


class MemoryStore:
    """One user's way into a cluster in memory; see podway.store.base.Store."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._closed = False

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """See Store.list."""
        self._require_open()
        keys = sorted(k for k in self._cluster.bodies if k[0] == kind.KIND and namespace in (None, k[1]))
        found = [self._stored(each) for each in keys]
        return Listing(
            tuple(cast("R", one) for one in found if not isinstance(one, RejectedObject)),
            self._cluster.newest(kind.KIND),
            tuple(one for one in found if isinstance(one, RejectedObject)),
        )

    async def unknown(self) -> tuple[RejectedObject, ...]:
        """See Store.unknown."""
        self._require_open()
        found = (self._stored(each) for each in sorted(self._cluster.bodies) if each[0] not in KINDS)
        return tuple(one for one in found if isinstance(one, RejectedObject))

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """See Store.get."""
        self._require_open()
        found = self._stored((kind.KIND, namespace, name))
        if isinstance(found, RejectedObject):
            raise found.error
        return cast("R", found)

    async def create(self, obj: R) -> R:
        """See Store.create."""
        self._require_open()
        if key(obj) in self._cluster.bodies:
            raise AlreadyExists(f"{subject(key(obj))} exists already")
        version = secrets.token_hex(6)
        new = with_metadata(obj, **identity(None), resource_version=version)
        return self._put(type(obj), key(new), version, encode(new), "added")

    async def update(self, obj: R) -> R:
        """See Store.update."""
        return self._alter(type(obj), key(obj), obj.metadata.resource_version, replacing(obj))

    async def update_status(self, obj: R) -> R:
        """See Store.update_status."""
        return self._alter(type(obj), key(obj), obj.metadata.resource_version, replacing_status(obj))

    async def patch(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch."""
        wanted = (kind.KIND, namespace, name)
        return self._alter(kind, wanted, resource_version or None, patching(kind, patch, status=False))

    async def patch_status(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch_status."""
        wanted = (kind.KIND, namespace, name)
        return self._alter(kind, wanted, resource_version or None, patching(kind, patch, status=True))

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """See Store.delete."""
        self._require_open()
        unwanted = (kind.KIND, namespace, name)
        old = self._stored(unwanted)
        if resource_version:
            check_version(unwanted, old, resource_version)
        del self._cluster.bodies[unwanted]
        self._cluster.log(kind.KIND, "deleted", unwanted, last_state(unwanted, old), secrets.token_hex(6))

    async def watch(self, kind: type[Resource], version: str) -> AsyncGenerator[Event | Bookmark, None]:
        """See Store.watch."""
        ended = self._cluster.ended
        self._require_open()
        self._cluster.after(kind.KIND, version)
        yield Bookmark(version)
        while self._cluster.ended == ended:
            self._require_open()
            changed = self._cluster.changed
            for change in self._cluster.after(kind.KIND, version):
                version = change.version
                yield Event(change.type, check(change.key, change.body), version)
            if changed is self._cluster.changed:
                await changed.wait()

    async def close(self) -> None:
        """See Store.close."""
        self._closed = True
        self._cluster.wake()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("this store in memory was closed")

    def _stored(self, wanted: Key) -> Resource | RejectedObject:
        body = self._cluster.bodies.get(wanted)
        if body is None:
            raise NotFound(f"{subject(wanted)} does not exist")
        return check(wanted, body)

    def _alter(self, kind: type[R], wanted: Key, expected: str | None, alteration: Alteration) -> R:
        self._require_open()
        old, version = self._stored(wanted), secrets.token_hex(6)
        if expected is not None:
            check_version(wanted, old, expected)
        body = alter(self._cluster.bodies[wanted], old, alteration, version)
        if body is None:
            return cast("R", old)
        return self._put(kind, wanted, version, body, "modified")

    def _put(
        self, kind: type[R], about: Key, version: str, body: bytes, change: Literal["added", "modified"]
    ) -> R:
        self._cluster.bodies[about] = body
        self._cluster.log(kind.KIND, change, about, body, version)
        return msgspec.json.decode(body, type=kind)
