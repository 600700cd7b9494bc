"""Objects of any kind at a Kubernetes API, as its administrator: found, applied, deleted; and who may do what.

Whoever applies is a field manager (server-side apply): what a newer Podway leaves out goes, and what others have
set stays where the manifests say nothing of it. Where they do, the field is in conflict, and whoever applies says
whether to overwrite it. Lists without keys, such as arguments, are one field.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from podway.deploy.objects import Object, subject
from podway.errors import FieldConflict, InvalidInput, NotFound, StoreError, StoreUnavailable
from podway.store.kubernetes.client import MERGE_PATCH, Client, Refused, Status, decoded

MANAGER = "podway-cluster"
"""The field manager of what is applied here."""
APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
PAGE = "500"
FIELD_MANAGER_CONFLICT = "FieldManagerConflict"
"""The type of a cause for which the API server does not apply (metav1.CauseTypeFieldManagerConflict)."""
AT_ONCE = 16
"""Requests that are under way at the same time."""

T = TypeVar("T")


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool


class _Review(msgspec.Struct, frozen=True):
    """A SelfSubjectAccessReview, as far as it is an answer."""

    status: _ReviewStatus


_object = msgspec.json.Decoder(dict[str, Any])
_review = msgspec.json.Decoder(_Review)


class Right(msgspec.Struct, frozen=True, order=True):
    """To do something with a resource: what RBAC allows or does not."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        of = f"{self.resource}.{self.group}" if self.group else self.resource
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {of}{f' {self.name}' if self.name else ''}{where}"


def plural(kind: str) -> str:
    """Return the resource of a kind that Kubernetes or Podway defines."""
    lower = kind.lower()
    return f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"


def resource_of(obj: Object) -> tuple[str, str, str]:
    """Return the group, the resource and the namespace of an object, of which the first and last may be empty."""
    group, slash, _ = obj["apiVersion"].partition("/")
    return group if slash else "", plural(obj["kind"]), obj["metadata"].get("namespace", "")


def place(api_version: str, resource: str, namespace: str = "", name: str = "") -> str:
    """Return the path of a resource, or of one object of it."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{within}/{resource}{f'/{name}' if name else ''}"


def place_of(obj: Object) -> str:
    """Return the path of an object."""
    _, resource, namespace = resource_of(obj)
    return place(obj["apiVersion"], resource, namespace, obj["metadata"]["name"])


def _held(status: Status) -> tuple[tuple[str, str], ...]:
    causes = [one for one in status.details.causes if one.get("reason") == FIELD_MANAGER_CONFLICT]
    managers = [re.match(r'conflict with "([^"]*)"', one.get("message", "")) for one in causes]
    return tuple(
        (str(one.get("field", "?")), manager.group(1) if manager else str(one.get("message", "?")))
        for one, manager in zip(causes, managers, strict=True)
    )


class Api:
    """A Kubernetes API, by objects of any kind. All it does may raise StoreUnavailable and StoreForbidden."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._turn = asyncio.Semaphore(AT_ONCE)

    @property
    def server(self) -> str:
        """The URL of the server that is asked."""
        return self._client.servers[0]

    async def find(self, path: str, **query: str) -> dict[str, Any] | None:
        """Return what is at a path; None if nothing is."""
        try:
            return decoded(_object, await self._ask("GET", path, query=query))
        except NotFound:
            return None

    async def list(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return all objects of a resource, none if the API server does not know it."""
        items: list[dict[str, Any]] = []
        more = ""
        while True:
            page = await self.find(path, **query, limit=PAGE, **({"continue": more} if more else {}))
            if page is None:
                return items
            if "items" not in page:  # it would be an empty cluster
                raise StoreUnavailable(f"the API server's answer is no list ({path}): it has no items")
            items += page["items"] or []
            more = page.get("metadata", {}).get("continue", "")
            if not more:
                return items

    async def conflicts(self, obj: Object) -> tuple[tuple[str, str], ...]:
        """Return the fields that others have set otherwise than an object states, each with its manager.

        Nothing is changed (a dry run). Raises InvalidInput if the object cannot be as it is stated.
        """
        if await self.find(place_of(obj)) is None:
            return ()
        try:
            await self.apply(obj, force=False, dryRun="All")
        except FieldConflict as error:
            return error.held
        return ()

    async def apply(self, obj: Object, *, force: bool, **more: str) -> dict[str, Any]:
        """Have an object be as stated, in the fields that are; `force` overwrites what others have set otherwise.

        Raises InvalidInput if it cannot be so, and FieldConflict.
        """
        query = {"fieldManager": MANAGER, "force": str(force).lower(), **more}
        body = msgspec.json.encode(obj)
        try:
            answer = await self._ask("PATCH", place_of(obj), query=query, body=body, content=APPLY)
        except NotFound as error:
            raise StoreError(f"{subject(obj)} cannot be applied: {error.message}") from error
        return decoded(_object, answer)

    async def patch(self, path: str, body: Any, content: str = MERGE_PATCH) -> None:
        """Change an object, unless it is gone."""
        try:
            await self._ask("PATCH", path, body=msgspec.json.encode(body), content=content)
        except NotFound:
            return

    async def delete(self, path: str) -> bool:
        """Delete an object and, after it, what it owns; tell whether it was there."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            await self._ask("DELETE", path, body=msgspec.json.encode(options))
        except NotFound:
            return False
        return True

    async def text(self, path: str, **query: str) -> str:
        """Return what is at a path as text, such as a log; empty if nothing is."""
        try:
            return (await self._ask("GET", path, query=query)).decode(errors="replace")
        except (NotFound, InvalidInput):
            return ""

    async def denied(self, rights: Sequence[Right]) -> tuple[Right, ...]:
        """Return those of the rights that whoever asks does not have (SelfSubjectAccessReview)."""
        if await self._may(Right("*", "*", "*")):
            return ()
        allowed = await asyncio.gather(*(self._may(right) for right in rights))
        return tuple(right for right, may in zip(rights, allowed, strict=True) if not may)

    async def _may(self, right: Right) -> bool:
        resource, _, subresource = right.resource.partition("/")
        attributes = {
            **{"verb": right.verb, "group": right.group, "resource": resource, "subresource": subresource},
            **{"namespace": right.namespace, "name": right.name},
        }
        body = msgspec.json.encode({"spec": {"resourceAttributes": attributes}})
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = await self._ask("POST", path, body=body)
        return decoded(_review, answer).status.allowed

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content: str = "application/json",
    ) -> bytes:
        async with self._turn:
            try:
                return await self._client.request(method, path, query=query, body=body, content=content)
            except Refused as error:
                words = error.status.message or str(error)
                if error.status.code == 404:
                    raise NotFound(words) from error
                if held := _held(error.status):
                    raise FieldConflict(words, held) from error
                if error.status.code in (400, 422):
                    raise InvalidInput(f"the API server does not take it: {words}") from error
                raise StoreError(f"the API server does not do it ({method} {path}): {words}") from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()
