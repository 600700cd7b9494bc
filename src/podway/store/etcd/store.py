"""The store that is an etcd.

Versions of kinds are `CLUSTER.REVISION`. A cluster is told from one that was made anew at the same address by
etcd's own number of it, and by a text that stands beside the objects; a database that was set back to an older
state, by a revision that it has not reached yet. An object's version is the revision in which it was written last:
it is not stored, so what others write by hand has one as well.

A key is written only if it is still what it was when it was read (a transaction that compares mod_revision), so
nobody's change is undone, and what is no field of Podway's types stays.

etcd's leases are not used for signs of life: they delete a key when it is not renewed, and with it who was there
last and when, which `get nodes` and `doctor` tell. So Lease objects are objects as all others, and etcd has to be
told to forget old revisions (--auto-compaction-retention), which it wants anyway.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, NamedTuple, TypeVar, cast

import msgspec

from podway.api.checked import RejectedObject, check
from podway.api.merge_patch import Document
from podway.api.resource import Key, Resource, key, subject
from podway.errors import (
    AlreadyExists,
    Conflict,
    InvalidObject,
    NotFound,
    StoreError,
    StoreForbidden,
    StoreTooNew,
    StoreUnavailable,
    VersionExpired,
)
from podway.store.base import Bookmark, Event, Listing, R
from podway.store.connections import Sockets, plain_socket
from podway.store.etcd.access import Access
from podway.store.etcd.client import OUT_OF_RANGE, Client, Refused
from podway.store.etcd.keys import OWNED, Layout, Range
from podway.store.objects import (
    Alteration,
    alter,
    check_version,
    encode,
    identity,
    patching,
    replacing,
    replacing_status,
    with_metadata,
)

FORMAT = 1
"""The form in which this Podway writes."""
PAGE = 500
"""Objects in one answer."""
STEP = 50
"""Objects that are read before others have their turn."""
TRIES = 10
"""How often a change for which any version will do is made again because somebody was quicker."""

LIST_AGAIN = "list this kind again, then watch from the version of that list"


class _Header(msgspec.Struct, frozen=True):
    cluster_id: int = 0
    revision: int = 0


class _Value(msgspec.Struct, frozen=True):
    """A key and its value (mvccpb.KeyValue)."""

    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0


class _Found(msgspec.Struct, frozen=True):
    """What was read of a range (etcdserverpb.RangeResponse)."""

    header: _Header = _Header()
    kvs: tuple[_Value, ...] = ()
    more: bool = False


class _Done(msgspec.Struct, frozen=True):
    response_range: _Found = _Found()


class _Transaction(msgspec.Struct, frozen=True):
    """What came of a transaction (etcdserverpb.TxnResponse)."""

    header: _Header = _Header()
    succeeded: bool = False
    responses: tuple[_Done, ...] = ()


class _Change(msgspec.Struct, frozen=True):
    """A change of a key (mvccpb.Event)."""

    kv: _Value
    type: str = "PUT"
    prev_kv: _Value | None = None


class _Watched(msgspec.Struct, frozen=True):
    """What a watch tells (etcdserverpb.WatchResponse)."""

    header: _Header = _Header()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: tuple[_Change, ...] = ()


class _Line(msgspec.Struct, frozen=True):
    result: _Watched | None = None
    error: Any = None


class _Identity(msgspec.Struct, frozen=True):
    """What stands beside the objects."""

    uid: str
    format: int = FORMAT


T = TypeVar("T")

# The gateway writes numbers of 64 bits as text.
_found = msgspec.json.Decoder(_Found, strict=False)
_transaction = msgspec.json.Decoder(_Transaction, strict=False)
_line = msgspec.json.Decoder(_Line, strict=False)


class _Stored(NamedTuple):
    about: Key
    owner: str
    value: _Value
    found: Resource | RejectedObject


class EtcdStore:
    """See podway.store.base.Store. Nothing is asked before it is needed."""

    def __init__(self, access: Access, *, sockets: Sockets = plain_socket) -> None:
        self._client = Client(access, sockets)
        self._layout = Layout(access.prefix)

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """See Store.list."""
        cluster = await self._which()
        values, revision = await self._values(self._layout.of_kind(kind, namespace))
        counting = _first_claims(self._layout, kind, values) if kind.KIND in OWNED else None
        found: list[tuple[Key, Resource | RejectedObject]] = []
        for number, value in enumerate(values):
            if number % STEP == STEP - 1:
                await asyncio.sleep(0)
            one = self._read(kind, value)
            if counting is None or counting[one.about] == value.key:
                found.append((one.about, one.found))
            else:
                found.append(_outdone(one))
        found.sort(key=lambda one: one[0])
        return Listing(
            tuple(cast("R", one) for _, one in found if not isinstance(one, RejectedObject)),
            f"{cluster}.{revision}",
            tuple(one for _, one in found if isinstance(one, RejectedObject)),
        )

    async def unknown(self) -> tuple[RejectedObject, ...]:
        """See Store.unknown."""
        ranges = [_range(one, keys_only=True) for one in self._layout.unknown()]
        done = await self._transact((), ranges, harmless=True)
        keys = [self._layout.stranger(value.key) for one in done.responses for value in one.response_range.kvs]
        found = [check(each, b"") for each in keys if each is not None]
        return tuple(one for one in found if isinstance(one, RejectedObject))

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """See Store.get."""
        found = (await self._stored(kind, (kind.KIND, namespace, name))).found
        if isinstance(found, RejectedObject):
            raise found.error
        return cast("R", found)

    async def create(self, obj: R) -> R:
        """See Store.create."""
        about = key(obj)
        await self._which()
        made = with_metadata(obj, **identity(None), resource_version="")
        where = self._layout.key(about, _owner(obj))
        kind = self._layout.of_kind(type(obj))
        # Whoever claims a block reads the others' claims in the same transaction: the first one counts.
        others = [_range(kind, keys_only=True)] if obj.KIND in OWNED else []
        done = await self._transact(
            [_compare(where, "CREATE", 0)], [_put(where, encode(made)), *others], about=about
        )
        if not done.succeeded:
            raise AlreadyExists(f"{subject(about)} exists already")
        if others:
            claims = done.responses[-1].response_range.kvs
            if _first_claims(self._layout, type(obj), claims)[about] != where:
                await self._transact([_compare(where, "MOD", done.header.revision)], [_delete(where)], about=about)
                raise AlreadyExists(f"{subject(about)} exists already")
        return with_metadata(made, resource_version=str(done.header.revision))

    async def update(self, obj: R) -> R:
        """See Store.update."""
        return cast("R", await self._alter(type(obj), key(obj), obj.metadata.resource_version, replacing(obj)))

    async def update_status(self, obj: R) -> R:
        """See Store.update_status."""
        version = obj.metadata.resource_version
        return cast("R", await self._alter(type(obj), key(obj), version, replacing_status(obj)))

    async def patch(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch."""
        wanted, alteration = (kind.KIND, namespace, name), patching(kind, patch, status=False)
        return cast("R", await self._alter(kind, wanted, resource_version or None, alteration))

    async def patch_status(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch_status."""
        wanted, alteration = (kind.KIND, namespace, name), patching(kind, patch, status=True)
        return cast("R", await self._alter(kind, wanted, resource_version or None, alteration))

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """See Store.delete."""
        unwanted = (kind.KIND, namespace, name)
        for trial in range(TRIES):
            stored = await self._stored(kind, unwanted)
            if resource_version:
                check_version(unwanted, stored.found, resource_version)
            where = stored.value.key
            compared = [_compare(where, "MOD", stored.value.mod_revision)]
            if (await self._transact(compared, [_delete(where)], about=unwanted)).succeeded:
                return
            await asyncio.sleep(random.uniform(0, 0.02) * trial)
        raise _outrun(unwanted)

    async def watch(self, kind: type[Resource], version: str) -> AsyncGenerator[Event | Bookmark, None]:
        """See Store.watch."""
        cluster, _, number = version.rpartition(".")
        if cluster != await self._which() or not (number.isascii() and number.isdecimal() and len(number) < 20):
            raise VersionExpired(f"{version!r} is no version of kind {kind.KIND} here", hint=LIST_AGAIN)
        since, where = int(number), self._layout.of_kind(kind)
        asked = {
            **{"key": where.key, "range_end": where.end, "start_revision": since + 1},
            **{"progress_notify": True, "prev_kv": True},
        }
        claims: _Claims | None = None
        async with aclosing(self._client.stream("watch", {"create_request": asked})) as lines:
            async for line in lines:
                told = self._told_by(kind, since, line)
                if told.created:
                    claims = await self._reach(kind, since, told.header.revision)
                    yield Bookmark(version)
                for event, revision in self._events(kind, told.events, since, claims):
                    since, here = revision, f"{cluster}.{revision}"
                    yield Bookmark(here) if event is None else Event(event.type, event.object, here)
                if told.header.revision > since and not (told.created or told.events):
                    since = told.header.revision
                    yield Bookmark(f"{cluster}.{since}")

    async def close(self) -> None:
        """See Store.close."""
        await self._client.close()

    # Which cluster.

    async def _which(self) -> str:
        """Return what tells this cluster from others, having it written down if it is new."""
        where = self._layout.identity
        found = await self._range(Range(where))
        if not found.kvs:
            mine = encode(_Identity(str(uuid.uuid4())))
            try:
                await self._transact([_compare(where, "CREATE", 0)], [_put(where, mine)])
            except StoreForbidden as error:
                raise StoreForbidden(
                    f"nothing is stored below {where.decode()} yet, and who asks may not begin: {error.message}",
                    hint="let one who may write everything there ask once: podway --store URL get nodes",
                ) from error
            found = await self._range(Range(where))
        try:
            stored = msgspec.json.decode(found.kvs[0].value, type=_Identity)
        except (IndexError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StoreUnavailable(
                f"what etcd has in {where.decode()} tells no cluster: {error}",
                hint=f"if nothing else is stored there: etcdctl del {where.decode()}",
            ) from error
        if stored.format > FORMAT:
            raise StoreTooNew(
                f"etcd's {where.decode()} is written in form {stored.format}, and this Podway knows {FORMAT}",
                hint="use a newer Podway",
            )
        return f"{found.header.cluster_id:x}-{stored.uid}"

    # Reading.

    async def _values(self, where: Range, *, keys_only: bool = False, at: int = 0) -> tuple[Sequence[_Value], int]:
        """Return what is in a range as it was in one revision, and the revision: the newest if none is given."""
        for trial in range(TRIES):
            values: list[_Value] = []
            revision, start = at, where.key
            try:
                while True:
                    rest = Range(start, where.end)
                    page = await self._range(rest, limit=PAGE, revision=revision, keys_only=keys_only)
                    values += page.kvs
                    revision = revision or page.header.revision
                    if not page.more or not page.kvs:
                        return values, revision
                    start = page.kvs[-1].key + b"\0"
            except Refused as error:
                # It took too long to read on: begin anew.
                if error.code != OUT_OF_RANGE or at or trial + 1 == TRIES:
                    raise
        raise AssertionError  # the last trial returns or raises

    async def _range(self, where: Range, **options: Any) -> _Found:
        asked = {"key": where.key, **({"range_end": where.end} if where.end else {}), **options}
        return _decoded(_found, await self._client.request("kv/range", asked, harmless=True))

    async def _stored(self, kind: type[Resource], wanted: Key) -> _Stored:
        """Return an object as it is stored. Raises NotFound."""
        where = self._layout.key(wanted)
        if kind.KIND in OWNED and "/" not in wanted[2]:
            values, _ = await self._values(self._layout.of_kind(kind), keys_only=True)
            where = _first_claims(self._layout, kind, values).get(wanted, where)
        found = await self._range(Range(where))
        if not found.kvs:
            raise NotFound(f"{subject(wanted)} does not exist")
        return self._read(kind, found.kvs[0])

    def _read(self, kind: type[Resource], value: _Value) -> _Stored:
        about, owner = self._layout.read(kind, value.key)
        found, version = check(about, value.value), str(value.mod_revision)
        if isinstance(found, RejectedObject):
            if found.found is not None:
                known = with_metadata(found.found, resource_version=version)
                found = msgspec.structs.replace(found, found=known)
            return _Stored(about, owner, value, found)
        found = with_metadata(found, resource_version=version)
        if _owner(found) != owner:
            problem = f"spec.node: it is a claim of node {owner or '?'}, and says that it is {_owner(found)}'s"
            return _Stored(about, owner, value, RejectedObject(about, problem, found))
        return _Stored(about, owner, value, found)

    # Writing.

    async def _alter(
        self, kind: type[Resource], wanted: Key, expected: str | None, alteration: Alteration
    ) -> Resource:
        """Make of an object what an alteration makes of it, if it has the version that is expected."""
        for trial in range(TRIES):
            stored = await self._stored(kind, wanted)
            if expected is not None:
                check_version(wanted, stored.found, expected)
            body = alter(stored.value.value, stored.found, alteration, None)
            if body is None:
                return cast("Resource", stored.found)
            after: Resource = msgspec.json.decode(body, type=kind)
            before, where = stored.value.key, self._layout.key(wanted, _owner(after))
            compared = [_compare(before, "MOD", stored.value.mod_revision)]
            moved = [_delete(before)] if where != before else []
            done = await self._transact(compared, [*moved, _put(where, body)], about=wanted)
            if done.succeeded:
                return with_metadata(after, resource_version=str(done.header.revision))
            await asyncio.sleep(random.uniform(0, 0.02) * trial)
        raise _outrun(wanted)

    async def _transact(
        self,
        compared: Sequence[Mapping[str, Any]],
        work: Sequence[Mapping[str, Any]],
        *,
        about: Key | None = None,
        harmless: bool = False,
    ) -> _Transaction:
        try:
            asked = {"compare": compared, "success": work}
            return _decoded(_transaction, await self._client.request("kv/txn", asked, harmless=harmless))
        except Refused as error:
            if about is not None and "too large" in error.message:
                raise InvalidObject(
                    subject(about), "", f"is too large for etcd: {error.message}", hint="nothing was changed"
                ) from error
            raise StoreUnavailable(f"etcd does not do it: {error.message}") from error

    # Watching.

    def _told_by(self, kind: type[Resource], since: int, line: bytes) -> _Watched:
        try:
            read = _line.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StoreUnavailable(f"etcd wrote what is no answer of a watch: {error}") from error
        if read.result is None:
            raise StoreUnavailable(f"etcd ended a watch of kind {kind.KIND}: {read.error}")
        told = read.result
        if told.compact_revision:
            raise _expired(kind, since, f"it has forgotten all before {told.compact_revision}")
        if told.canceled:
            raise self._client.judged_watch(told.cancel_reason or "it canceled the watch")
        return told

    async def _reach(self, kind: type[Resource], since: int, newest: int) -> "_Claims | None":
        """Find out whether etcd has every change after a revision, and who claimed what then.

        It begins a watch right behind the revision that was forgotten last, too, though a deletion in that one
        is then missing (in etcd 3.4); and one behind a revision that it has yet to reach.
        """
        if since > newest:
            raise _expired(kind, since, f"it is at {newest}: it was set back to an older state")
        where, owned = self._layout.of_kind(kind), kind.KIND in OWNED
        try:
            if not owned:
                await self._range(where, limit=1, keys_only=True, revision=since)
                return None
            values, _ = await self._values(where, keys_only=True, at=since)
        except Refused as error:
            raise _expired(kind, since, error.message) from error
        return _Claims(self._layout, kind, values)

    def _events(
        self, kind: type[Resource], changes: Sequence[_Change], since: int, claims: "_Claims | None"
    ) -> Iterator[tuple[Event | None, int]]:
        """Yield what changes are, None: nothing, each with the revision from which a watch goes on behind it.

        Of several changes in one revision (of another hand: Podway makes none) that is so only behind the last.
        """
        for number, change in enumerate(changes):
            revision = change.kv.mod_revision
            later = changes[number + 1].kv.mod_revision if number + 1 < len(changes) else 0
            since = since if later == revision else revision
            type_: Literal["added", "modified", "deleted"]
            if change.type == "DELETE":
                about, _ = self._layout.read(kind, change.kv.key)
                bare = encode({"metadata": {"namespace": about[1], "name": about[2]}})
                value, type_ = change.prev_kv or _Value(change.kv.key, bare), "deleted"
            else:
                value = change.kv
                type_ = "added" if value.create_revision == value.mod_revision else "modified"
            counts = claims is None or claims.counts(change)
            yield Event(type_, self._read(kind, value).found, "") if counts else None, since


class _Claims:
    """Which claims count of a kind whose objects stand below their owners' names."""

    def __init__(self, layout: Layout, kind: type[Resource], values: Sequence[_Value]) -> None:
        self._layout = layout
        self._kind = kind
        self._known: dict[Key, dict[bytes, int]] = {}
        for value in values:
            self._note(value)

    def _note(self, value: _Value) -> None:
        about, _ = self._layout.read(self._kind, value.key)
        self._known.setdefault(about, {})[value.key] = value.create_revision

    def counts(self, change: _Change) -> bool:
        """Note a change, and tell whether it is of the claim that counts: listings alone tell of others.

        Raises VersionExpired if another one counts from now on.
        """
        about, _ = self._layout.read(self._kind, change.kv.key)
        if change.type != "DELETE":
            self._note(change.kv)
            return _first(self._known[about]) == change.kv.key
        known = self._known.get(about, {})
        counted = bool(known) and _first(known) == change.kv.key
        known.pop(change.kv.key, None)
        if not known:
            self._known.pop(about, None)
        elif counted:
            raise _expired(self._kind, change.kv.mod_revision, f"of two claims of {about[2]} the other counts now")
        return counted


def _first(claims: Mapping[bytes, int]) -> bytes:
    return min(claims, key=lambda where: (claims[where], where))


def _first_claims(layout: Layout, kind: type[Resource], values: Iterable[_Value]) -> dict[Key, bytes]:
    """Return where the claim is that counts, by what is claimed."""
    claims: dict[Key, dict[bytes, int]] = {}
    for value in values:
        claims.setdefault(layout.read(kind, value.key)[0], {})[value.key] = value.create_revision
    return {about: _first(known) for about, known in claims.items()}


def _outdone(one: _Stored) -> tuple[Key, RejectedObject]:
    """Return what is told of a claim of what another node claimed before."""
    about = (one.about[0], one.about[1], f"{one.owner}/{one.about[2]}")
    return about, RejectedObject(about, f"node {one.owner} claims what another node claimed before")


def _owner(obj: Resource) -> str:
    return OWNED[obj.KIND](obj) if obj.KIND in OWNED else ""


def _range(where: Range, **options: Any) -> dict[str, Any]:
    return {"request_range": {"key": where.key, "range_end": where.end, **options}}


def _put(where: bytes, body: bytes) -> dict[str, Any]:
    return {"request_put": {"key": where, "value": body}}


def _delete(where: bytes) -> dict[str, Any]:
    return {"request_delete_range": {"key": where}}


def _compare(where: bytes, target: Literal["CREATE", "MOD"], revision: int) -> dict[str, Any]:
    return {"key": where, "target": target, "result": "EQUAL", f"{target.lower()}_revision": revision}


def _decoded(decoder: msgspec.json.Decoder[T], answer: bytes) -> T:
    try:
        return decoder.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"etcd answers what is none of its answers: {error}") from error


def _expired(kind: type[Resource], since: int, why: str) -> VersionExpired:
    return VersionExpired(
        f"etcd no longer has every change of kind {kind.KIND} after {since}: {why}", hint=LIST_AGAIN
    )


def _outrun(about: Key) -> StoreError:
    return Conflict(f"{subject(about)} is changed all the time: others are quicker", hint="try again")
