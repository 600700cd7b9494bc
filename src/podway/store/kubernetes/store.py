"""The store that is a Kubernetes API.

Versions of kinds are `CLUSTER.NUMBER`: the uid of the namespace kube-system tells this cluster from one that was
made anew at the same address, and the number is the API's resourceVersion. Since Kubernetes 1.35 these are in
order for whoever looks (KEP-5504), so a database that was set back to an older state is found out: a watch from a
version that it has not reached yet would stand, and be silent about all that happens until then.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar, cast

import msgspec

from podway.api.checked import RejectedObject, check, key_in
from podway.api.kinds import KINDS
from podway.api.merge_patch import Document, between
from podway.api.resource import GROUP, Key, Resource, key, subject
from podway.errors import (
    AlreadyExists,
    Conflict,
    InvalidObject,
    NotFound,
    StoreForbidden,
    StoreUnavailable,
    VersionExpired,
)
from podway.store.announcements import Announcement
from podway.store.base import Bookmark, Event, Listing, R
from podway.store.connections import Sockets, plain_socket
from podway.store.kubernetes import events
from podway.store.kubernetes.access import Access
from podway.store.kubernetes.client import MERGE_PATCH, UNREADABLE, Client, Refused, SlowAnswer, Status, decoded
from podway.store.kubernetes.translation import TRANSLATIONS, Translation
from podway.store.objects import Alteration, check_version, encode, former, patching, replacing, replacing_status

PAGE = 500
"""Objects in one answer, where that comes in time."""
SHRINKING = 5
"""What that number is divided by where it does not."""
STEP = 50
"""Objects that are read before others have their turn."""
ABSENT = "absent"
"""The number in the version of a kind that the API server does not know."""
LOOK_AGAIN = 30.0
"""Seconds after which the API server is asked whether it knows such a kind by now."""
WATCH_SECONDS = (300, 600)
"""How long a server is asked to let a watch stand: not all that began together are to end together."""
REMEMBERED = 16
"""Objects of which the body is kept that was read last."""
TRIES = 10
"""How often a patch for which any version will do is made again because somebody was quicker."""

SERVERS = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
"""Where the addresses of all API servers are, each of which writes its own."""

LIST_AGAIN = "list this kind again, then watch from the version of that list"


class _ListMeta(msgspec.Struct, rename="camel", frozen=True):
    resource_version: str = ""
    more: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class _Meta(msgspec.Struct, rename="camel", frozen=True):
    resource_version: str = ""
    uid: str = ""
    annotations: dict[str, str] | None = None


class _Body(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()


class _WatchEvent(msgspec.Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _Endpoint(msgspec.Struct, frozen=True):
    addresses: tuple[str, ...] = ()


class _EndpointPort(msgspec.Struct, frozen=True):
    name: str = ""
    port: int = 0


class _EndpointSlice(msgspec.Struct, frozen=True):
    endpoints: tuple[_Endpoint, ...] = ()
    ports: tuple[_EndpointPort, ...] = ()


class _ApiResource(msgspec.Struct, frozen=True):
    name: str
    kind: str
    namespaced: bool = False


class _ApiResources(msgspec.Struct, frozen=True):
    resources: tuple[_ApiResource, ...] = ()


_NEVER_POSTED = frozenset(
    {"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "ownerReferences"}
)
"""Metadata of an object that is read, and does not say how one is to be made."""

T = TypeVar("T")

_Found: TypeAlias = Sequence[tuple[Key, Resource | RejectedObject]]

_any = msgspec.json.Decoder()
_page = msgspec.json.Decoder(_Page)
_body = msgspec.json.Decoder(_Body)
_event = msgspec.json.Decoder(_WatchEvent)
_resources = msgspec.json.Decoder(_ApiResources)
_endpoints = msgspec.json.Decoder(_EndpointSlice)


class KubernetesStore:
    """See podway.store.base.Store. With `later` it is found out when it is first needed where the API is."""

    def __init__(
        self, access: Callable[[], Access], *, later: bool = False, sockets: Sockets = plain_socket
    ) -> None:
        self._access = access
        self._sockets = sockets
        self._opened: Client | None = None
        self._closed = False
        if not later:
            _ = self._client
        self._cluster: tuple[int, str] | None = None
        """What tells the cluster from others, and how often a server had been lost when it was asked for."""
        self._last: dict[Key, bytes] = {}
        """What was read last of a few objects: whoever updates one has read it just before."""
        self._served: dict[str, str] = {}
        """By optional kind, the apiVersion under which it is served."""

    async def list(self, kind: type[R], *, namespace: str | None = None) -> Listing[R]:
        """See Store.list."""
        how = TRANSLATIONS[kind.KIND]
        cluster = await self._which()
        path = await self._place(how, namespace or how.space)
        if path is None:
            return Listing((), f"{cluster}.{ABSENT}")
        listed, version = await self._list(how, path)
        found = sorted(listed, key=lambda one: one[0])
        return Listing(
            tuple(cast("R", one) for _, one in found if not isinstance(one, RejectedObject)),
            f"{cluster}.{version}",
            tuple(one for _, one in found if isinstance(one, RejectedObject)),
        )

    async def unknown(self) -> tuple[RejectedObject, ...]:
        """See Store.unknown: objects of kinds that a newer Podway defined."""
        rejected: list[RejectedObject] = []
        try:
            answer = await self._client.request("GET", f"/apis/{GROUP}/v1")
            for one in decoded(_resources, answer).resources:
                if one.kind not in KINDS and "/" not in one.name:
                    keys, _ = await self._pages(f"/apis/{GROUP}/v1/{one.name}", partial(key_in, one.kind))
                    rejected += [cast("RejectedObject", check(each, b"")) for each in keys if each is not None]
        except Refused as error:
            if error.status.code != 404:
                raise _unexpected(error) from error
        return tuple(rejected)

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """See Store.get."""
        _, found = await self._get(TRANSLATIONS[kind.KIND], (kind.KIND, namespace, name))
        if isinstance(found, RejectedObject):
            raise found.error
        return cast("R", found)

    async def create(self, obj: R) -> R:
        """See Store.create."""
        how = TRANSLATIONS[obj.KIND]
        version = await self._version(how)
        metadata = {
            name: value for name, value in msgspec.to_builtins(obj.metadata).items() if name not in _NEVER_POSTED
        }
        shape = {**_document(encode(obj)), "apiVersion": version, "kind": obj.KIND, "metadata": metadata}
        path = how.path(version, obj.metadata.namespace)
        body = msgspec.json.encode(how.creating(how.writing(shape)))
        try:
            answer = await self._client.request("POST", path, query=_strictly(how), body=body)
        except Refused as error:
            raise _told(error.status, key(obj), creating=True) from error
        return cast("R", _fact(how, answer))

    async def update(self, obj: R) -> R:
        """See Store.update."""
        how, version = TRANSLATIONS[obj.KIND], obj.metadata.resource_version
        return cast("R", await self._alter(how, key(obj), version, replacing(obj), obj))

    async def update_status(self, obj: R) -> R:
        """See Store.update_status."""
        how, version = TRANSLATIONS[obj.KIND], obj.metadata.resource_version
        return cast("R", await self._alter(how, key(obj), version, replacing_status(obj), obj, status=True))

    async def patch(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch."""
        how, wanted = TRANSLATIONS[kind.KIND], (kind.KIND, namespace, name)
        alteration = patching(kind, patch, status=False)
        return cast("R", await self._alter(how, wanted, resource_version or None, alteration))

    async def patch_status(
        self, kind: type[R], name: str, patch: Document, *, namespace: str = "", resource_version: str = ""
    ) -> R:
        """See Store.patch_status."""
        how, wanted = TRANSLATIONS[kind.KIND], (kind.KIND, namespace, name)
        alteration = patching(kind, patch, status=True)
        return cast("R", await self._alter(how, wanted, resource_version or None, alteration, status=True))

    async def amend(
        self,
        kind: type[Resource],
        name: str,
        change: Callable[[Mapping[str, Any]], Document | None],
        *,
        status: bool = False,
    ) -> bool:
        """See podway.store.base.Shared."""
        how, about = TRANSLATIONS[kind.KIND], (kind.KIND, "", name)
        path = how.path(await self._version(how), "", name)
        for trial in range(TRIES):
            body, _ = await self._get(how, about)
            patch = change(_document(body))
            if patch is None:
                return False
            version = {"resourceVersion": _body.decode(body).metadata.resource_version}
            data = msgspec.json.encode({**patch, "metadata": {**patch.get("metadata", {}), **version}})
            try:
                where = f"{path}/status" if status else path
                self._remember(about, await self._client.request("PATCH", where, body=data, content=MERGE_PATCH))
            except Refused as error:
                self._last.pop(about, None)
                if error.status.code != 409 or trial + 1 == TRIES:
                    raise _told(error.status, about) from error
                await asyncio.sleep(random.uniform(0, 0.02) * trial)
            else:
                return True
        raise AssertionError  # the last trial returns or raises

    async def announce(self, announcement: Announcement, by: str, instance: str) -> None:
        """See podway.store.announcements.Announces."""
        where = events.path(announcement, by, instance)
        try:
            if announcement.written:
                body = msgspec.json.encode(events.series(announcement))
                try:
                    await self._client.request("PATCH", where, body=body, content=MERGE_PATCH)
                except Refused as error:
                    if error.status.code != 404:
                        raise
                else:
                    return
            # The first time, and again where the API server has forgotten it.
            body = msgspec.json.encode(events.event(announcement, by, instance))
            await self._client.request("POST", events.EVENTS, body=body)
        except Refused as error:
            raise _unexpected(error) from error

    async def delete(
        self, kind: type[Resource], name: str, *, namespace: str = "", resource_version: str = ""
    ) -> None:
        """See Store.delete."""
        how, unwanted = TRANSLATIONS[kind.KIND], (kind.KIND, namespace, name)
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if resource_version:
            if not resource_version.isdecimal():
                _, old = await self._get(how, unwanted)
                check_version(unwanted, old, resource_version)
            options["preconditions"] = {"resourceVersion": resource_version}
        path = how.path(await self._version(how), namespace, name)
        try:
            await self._client.request("DELETE", path, body=msgspec.json.encode(options))
        except Refused as error:
            raise _told(error.status, unwanted) from error

    async def watch(self, kind: type[Resource], version: str) -> AsyncGenerator[Event | Bookmark, None]:
        """See Store.watch."""
        how = TRANSLATIONS[kind.KIND]
        cluster, _, number = version.rpartition(".")
        if not (number == ABSENT or number.isdecimal()):
            raise _foreign(how, version)
        path = await self._place(how, how.space)
        if path is None or number == ABSENT:
            if cluster != await self._which():
                raise _foreign(how, version)
            yield Bookmark(version)
            if path is None:
                await self._appearance(how)
            raise VersionExpired(f"the API server knows kind {kind.KIND} by now", hint=LIST_AGAIN)
        await self._require_reached(how, path, int(number))
        query = {
            "watch": "1",
            "resourceVersion": number,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
        }
        try:
            async with aclosing(self._client.stream(path, query)) as lines:
                async for line in lines:
                    if line:
                        yield _told_by(how, cluster, line)
                    elif cluster == await self._which():  # the stream stands, whoever it was that answered
                        yield Bookmark(version)
                    else:
                        raise _foreign(how, version)
        except Refused as error:
            if error.status.code in (404, 410):
                raise _expired(how, number, error.status) from error
            raise _unexpected(error) from error

    async def send(self, path: str, document: Any, *, headers: Mapping[str, str] | None = None) -> bytes:
        """Post to the API what is no object of Podway's, such as a review; return the answer.

        Raises NotFound, StoreForbidden and StoreUnavailable.
        """
        try:
            body = msgspec.json.encode(document)
            return await self._client.request("POST", path, body=body, more=headers)
        except Refused as error:
            if error.status.code == 404:
                raise NotFound(f"{path} does not exist: {error.status.message}") from error
            raise _unexpected(error) from error

    async def post(self, path: str, document: Any) -> Any:
        """Post as `send` does; return the answer's document. Raises StoreUnavailable for what is none, too."""
        return decoded(_any, await self.send(path, document))

    async def close(self) -> None:
        """See Store.close."""
        self._closed = True
        if self._opened is not None:
            await self._opened.close()

    @property
    def _client(self) -> Client:
        if self._opened is None:
            if self._closed:
                raise StoreUnavailable("this store was closed")
            self._opened = Client(self._access(), self._sockets)
        return self._opened

    async def _which(self) -> str:
        """Return what tells this cluster from others."""
        if self._cluster is None or self._cluster[0] != self._client.generation:
            generation = self._client.generation
            try:
                answer = await self._client.request("GET", "/api/v1/namespaces/kube-system")
                uid = decoded(_body, answer).metadata.uid
                if not uid:
                    raise StoreUnavailable("the API server's answer is no namespace: it has no uid")
            except (Refused, StoreForbidden):
                uid = ""
            if self._client.in_cluster:
                await self._learn_servers()
            self._cluster = (generation, uid)
        return self._cluster[1]

    async def _learn_servers(self) -> None:
        """Find out where the API servers behind the Service `kubernetes` are: who asks them needs no Service."""
        try:
            found = decoded(_endpoints, await self._client.request("GET", SERVERS))
        except (Refused, StoreForbidden):
            return  # what was given does
        ports = [port.port for port in found.ports if port.name == "https"]
        hosts = [f"[{host}]" if ":" in host else host for end in found.endpoints for host in end.addresses]
        if ports and hosts:
            self._client.learn(tuple(f"https://{host}:{ports[0]}" for host in hosts))

    async def _version(self, how: Translation) -> str:
        """Return the apiVersion under which a kind is served, the first if none is."""
        await self._place(how, "")
        return self._served.get(how.kind.KIND, how.versions[0])

    async def _place(self, how: Translation, namespace: str) -> str | None:
        """Return where a kind's objects are; None if the API server does not know the kind, which may be."""
        if not how.optional:
            return how.path(how.versions[0], namespace)
        if how.kind.KIND not in self._served:
            for version in how.versions:
                try:
                    answer = await self._client.request("GET", f"/apis/{version}")
                except Refused as error:
                    if error.status.code != 404:
                        raise _unexpected(error) from error
                    continue
                resources = decoded(_resources, answer).resources
                if any(one.name == how.kind.NAMES.plural for one in resources):
                    self._served[how.kind.KIND] = version
                    break
            else:
                return None
        return how.path(self._served[how.kind.KIND], namespace)

    async def _appearance(self, how: Translation) -> None:
        """Wait until the API server knows a kind."""
        while await self._place(how, "") is None:  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(LOOK_AGAIN * random.uniform(0.8, 1.2))

    async def _require_reached(self, how: Translation, path: str, number: int) -> None:
        """Raise VersionExpired if the API server has not come to a version: its state is an older one."""
        try:
            answer = await self._client.request("GET", path, query={"limit": "1"})
        except Refused as error:
            raise _expired(how, str(number), error.status) from error
        reached = _listed(answer).metadata.resource_version
        if not reached.isdecimal() or int(reached) < number:
            raise VersionExpired(
                f"the API server is at {reached}, and kind {how.kind.KIND} was known at {number}: "
                "its database was set back",
                hint=LIST_AGAIN,
            )

    async def _list(self, how: Translation, path: str) -> tuple[_Found, str]:
        try:
            return await self._pages(path, partial(_checked, how))
        except Refused as error:
            if error.status.code == 404 and how.optional:
                former = self._served.pop(how.kind.KIND, None)
                other = await self._place(how, how.space)
                if other is None or self._served[how.kind.KIND] == former:
                    return [], ABSENT
                return await self._list(how, other)  # the same objects, in another version
            if error.status.code == 404:
                raise StoreUnavailable(
                    f"the API server does not know kind {how.kind.KIND} ({path})",
                    hint="apply Podway's custom resource definitions: deploy/crds.yaml",
                ) from error
            raise _unexpected(error) from error

    async def _pages(self, path: str, read: Callable[[bytes], T]) -> tuple[Sequence[T], str]:
        """Return what is read of all objects at a path, as they were at one version. Raises Refused."""
        query = {"limit": str(PAGE)}
        for trial in range(TRIES):
            found = []
            query.pop("continue", None)
            try:
                while True:
                    page = await self._ask_page(path, query)
                    for body in page.items or ():
                        found.append(read(bytes(body)))
                        if len(found) % STEP == 0:
                            await asyncio.sleep(0)
                    if not page.metadata.more:
                        return found, page.metadata.resource_version
                    query["continue"] = page.metadata.more
            except Refused as error:
                # It took too long to read on: begin anew, in parts that are no larger.
                if error.status.code != 410 or trial + 1 == TRIES:
                    raise
        raise AssertionError  # the last trial returns or raises

    async def _ask_page(self, path: str, query: dict[str, str]) -> _Page:
        """Return a part of a list: a smaller one, as are those after it, where an answer was not whole in time."""
        while True:
            limit = int(query["limit"])
            try:
                return _listed(await self._client.request("GET", path, query=query, divisible=limit > 1))
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, SlowAnswer) or limit == 1:
                    raise
                query["limit"] = str(max(1, limit // SHRINKING))

    async def _get(self, how: Translation, wanted: Key) -> tuple[bytes, Resource | RejectedObject]:
        path = how.path(await self._version(how), wanted[1], wanted[2])
        try:
            body = await self._client.request("GET", path)
        except Refused as error:
            raise _told(error.status, wanted) from error
        self._remember(wanted, body)
        return body, _checked(how, body)[1]

    def _remember(self, about: Key, body: bytes) -> None:
        self._last.pop(about, None)
        self._last[about] = body
        if len(self._last) > REMEMBERED:
            del self._last[next(iter(self._last))]

    async def _read(
        self, how: Translation, wanted: Key, expected: str | None
    ) -> tuple[bytes, Resource | RejectedObject, bool]:
        """Return an object as it is stored (True), or as it was read last if that is what is expected (False).

        Who writes to it then learns from the API server if it is another by now.
        """
        body = self._last.get(wanted)
        if expected and body is not None and _body.decode(body).metadata.resource_version == expected:
            return body, _checked(how, body)[1], False
        return *await self._get(how, wanted), True

    async def _alter(
        self,
        how: Translation,
        wanted: Key,
        expected: str | None,
        alteration: Alteration,
        obj: Resource | None = None,
        *,
        status: bool = False,
    ) -> Resource:
        """Make of an object what an alteration makes of it, if it has the version that is expected.

        What is sent names the version that the alteration was made to, so that nobody's change is undone.
        """
        for trial in range(TRIES):
            body, old, fresh = await self._read(how, wanted, expected)
            if expected is not None:
                _require_version(wanted, old, body, expected)
            before = how.reading(_document(body))
            after = how.writing(alteration(msgspec.json.encode(before), old))
            version = _body.decode(body).metadata.resource_version
            path = how.path(await self._version(how), wanted[1], wanted[2]) + ("/status" if status else "")
            try:
                if isinstance(old, RejectedObject) and how.own and not status:
                    assert obj is not None  # the others refuse to alter what is rejected
                    after["metadata"] = {**after["metadata"], "resourceVersion": version}
                    shape = {**after, "apiVersion": how.versions[0], "kind": how.kind.KIND}
                    data = msgspec.json.encode(shape)
                    answer = await self._client.request("PUT", path, query=_strictly(how), body=data)
                else:
                    patch = _patch(before, after, None if status else old)
                    if not patch and fresh:
                        return _readable(old)
                    if not patch:
                        self._last.pop(wanted)  # nothing would be written that says whether it is so still
                        continue
                    patch["metadata"] = {**patch.get("metadata", {}), "resourceVersion": version}
                    data = msgspec.json.encode(patch)
                    query = _strictly(how)
                    answer = await self._client.request("PATCH", path, query=query, body=data, content=MERGE_PATCH)
            except Refused as error:
                if error.status.code == 409 and expected is None and trial + 1 < TRIES:
                    await asyncio.sleep(random.uniform(0, 0.02) * trial)
                    continue
                self._last.pop(wanted, None)
                raise _told(error.status, wanted) from error
            self._remember(wanted, answer)
            return _readable(_checked(how, answer)[1]) if status else _fact(how, answer)
        raise AssertionError  # the last trial returns or raises


def _listed(answer: bytes) -> _Page:
    """Return a part of a list. Raises StoreUnavailable for what is none: it would be an empty cluster."""
    page = decoded(_page, answer)
    if not page.metadata.resource_version:
        raise StoreUnavailable("the API server's answer is no list: it has no resourceVersion")
    return page


def _strictly(how: Translation) -> Mapping[str, str]:
    """Return what has an API server refuse a field that it would otherwise drop without a word.

    Its definitions of Podway's own kinds may be older than this Podway.
    """
    return {"fieldValidation": "Strict"} if how.own else {}


def _patch(before: Document, after: Document, old: Resource | RejectedObject | None) -> Document:
    """Return the merge patch that alters a stored document. Of a rejected one of others' nothing is removed."""
    patch = after if isinstance(old, RejectedObject) else between(before, after)
    metadata = {name: value for name, value in patch.get("metadata", {}).items() if name not in _NEVER_PATCHED}
    patch = {name: value for name, value in patch.items() if name not in {"metadata", "apiVersion", "kind"}}
    return {**patch, "metadata": metadata} if metadata else patch


_NEVER_PATCHED = frozenset({"resourceVersion", "generation", "uid", "creationTimestamp", "name", "namespace"})
"""Metadata that the API server gives."""


def _require_version(wanted: Key, old: Resource | RejectedObject, body: bytes, expected: str) -> None:
    """Raise Conflict unless an object has the version that it is expected to have."""
    if isinstance(old, RejectedObject) and old.found is None:
        version = _body.decode(body).metadata.resource_version
        if expected not in ("", version):
            raise Conflict(f"{subject(wanted)} changed since it was read", hint="read it again, then decide again")
        return
    check_version(wanted, old, expected)


def _checked(how: Translation, body: bytes) -> tuple[Key, Resource | RejectedObject]:
    """Return an object's key, and the object or why it is none."""
    stored = key_in(how.kind.KIND, body)
    if stored is None:
        raise StoreUnavailable(f"the API server gave an object of kind {how.kind.KIND} without a name")
    found = check(stored, body)
    if isinstance(found, RejectedObject):
        found = check(stored, msgspec.json.encode(how.reading(_document(body))))
    return stored, found


def _readable(stored: Resource | RejectedObject) -> Resource:
    """Return what can be read of an object, a fact or not. Raises ObjectDamaged if nothing can."""
    found = former(stored)
    if found is None:
        assert isinstance(stored, RejectedObject)
        raise stored.error
    return found


def _fact(how: Translation, body: bytes) -> Resource:
    _, found = _checked(how, body)
    if isinstance(found, RejectedObject):
        raise found.error
    return found


def _told_by(how: Translation, cluster: str, line: bytes) -> Event | Bookmark:
    """Return what a line of a watch tells. Raises VersionExpired and StoreUnavailable."""
    try:
        event = _event.decode(line)
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=Status)
            if status.code == 410:
                raise _expired(how, "", status)
            raise StoreUnavailable(f"the API server ended a watch of kind {how.kind.KIND}: {status.message}")
        version = f"{cluster}.{_body.decode(event.object).metadata.resource_version}"
    except UNREADABLE as error:
        raise StoreUnavailable(f"the API server wrote what is no event: {error}") from error
    if event.type == "BOOKMARK":
        return Bookmark(version)
    type_ = _TYPES[event.type]
    return Event(type_, _checked(how, bytes(event.object))[1], version)


_TYPES: Mapping[str, Any] = {"ADDED": "added", "MODIFIED": "modified", "DELETED": "deleted"}


_UNKNOWN = "unknown field"
"""What an API server says of a field that its definitions lack, where it is to be strict."""
_OLDER = (
    "; the cluster's definitions are older than this Podway: `podway cluster upgrade`, or apply deploy/crds.yaml"
)


def _told(status: Status, about: Key, *, creating: bool = False) -> Exception:
    """Return the error that an API server's words are about an object."""
    match status.code:
        case 404 if creating:
            return StoreUnavailable(
                f"{subject(about)} cannot be created: {status.message}",
                hint="is its namespace there, and does the API server know its kind (deploy/crds.yaml)?",
            )
        case 404:
            return NotFound(f"{subject(about)} does not exist")
        case 409 if status.reason == "AlreadyExists":
            return AlreadyExists(f"{subject(about)} exists already")
        case 409:
            return Conflict(
                f"{subject(about)} changed since it was read: {status.message}",
                hint="read it again, then decide again",
            )
        case 400 | 413 | 422:
            cause: Mapping[str, Any] = status.details.causes[0] if status.details.causes else {}
            problem = str(cause.get("message") or status.message)
            hint = f"nothing was changed{_OLDER if _UNKNOWN in problem else ''}"
            return InvalidObject(subject(about), str(cause.get("field", "")), problem, hint=hint)
    return StoreUnavailable(f"{subject(about)}: the API server answers {status.code}: {status.message}")


def _expired(how: Translation, number: str, status: Status) -> VersionExpired:
    since = f" after {number}" if number else ""
    return VersionExpired(
        f"the API server no longer has every change of kind {how.kind.KIND}{since}: {status.message}",
        hint=LIST_AGAIN,
    )


def _foreign(how: Translation, version: str) -> VersionExpired:
    return VersionExpired(f"{version!r} is no version of kind {how.kind.KIND} here", hint=LIST_AGAIN)


def _unexpected(error: Refused) -> StoreUnavailable:
    return StoreUnavailable(f"the API server answers {error.status.code}: {error.status.message}")


def _document(body: bytes) -> Document:
    document: Document = msgspec.json.decode(body)
    return document
