"""What every kind of resource is: the base of the types in podway.api.kinds, and what tells objects apart.

A resource is frozen. What is parsed out of it is kept beside its fields (`dict=True`), and stays true.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import msgspec

from podway.api.columns import Column
from podway.api.fields import SUBDOMAIN, Problem
from podway.api.meta import Metadata, Record
from podway.errors import InvalidObject

GROUP = "podway.io"
"""The API group of Podway's own kinds; Kubernetes' own core kinds are in none."""


class Names(msgspec.Struct, frozen=True):
    """What people may call a kind besides its own name, in lower case.

    `plural`, and `short` for short, are what a CustomResourceDefinition states of a kind (spec.names). `usual`,
    where stated, are words (many, then one) by which Podway's commands call its objects in place of these.
    """

    plural: str
    short: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()


class Resource(Record, frozen=True, kw_only=True, gc=True):
    """Base of all kinds: what Podway has to know of a kind is stated here, and by the kind in its own module.

    The type's fields, in Kubernetes' shape, are the schema, and its docstrings the descriptions in it. A kind of
    Podway's own passes over no unknown field (`forbid_unknown_fields=True`); of Kubernetes' kinds Podway reads a
    few fields only.
    """

    KIND: ClassVar[str]
    NAMESPACED: ClassVar[bool]
    """Whether its objects are in namespaces (scope `Namespaced`), or the cluster's (scope `Cluster`)."""
    NAMES: ClassVar[Names]
    COLUMNS: ClassVar[tuple[Column, ...]]
    """What `podway get` shows."""

    NAME_FORM: ClassVar[re.Pattern[str]] = SUBDOMAIN
    """What an object's name must be like: SUBDOMAIN or LABEL (RFC 1123)."""
    ONLY: ClassVar[str] = ""
    """The name of the one object that there is, for a kind of which there is one."""
    COMPLETE: ClassVar[bool] = False
    """Whether the type has every field of the API: another one in a manifest is then a typing mistake."""
    LEAVES_STORE: ClassVar[bool] = True
    """Whether objects may be written down elsewhere: into snapshots, and into what an agent knew last."""
    IN_VIEW: ClassVar[bool] = False
    """Whether plans depend on the kind: every agent then keeps a table of its objects (podway.cluster.view)."""
    INDICES: ClassVar[Mapping[str, Callable[[Any], Iterable[Hashable]]]] = MappingProxyType({})
    """The indices of that table: what planners ask for, by name, and the values under which it has an object."""
    JUDGED: ClassVar[bool] = False
    """Whether its objects are judged among the others: in Kubernetes their status then has conditions."""
    READ_ONLY: ClassVar[tuple[str, ...]] = ()
    """Fields of the spec, as the API names them, that others write: an update leaves them as they are stored."""
    SELECTABLE: ClassVar[tuple[str, ...]] = ()
    """Fields by which an API server selects objects."""
    SETTABLE: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType({})
    """What `podway set` changes besides fields of the spec: where in the metadata it stands."""

    metadata: Metadata

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the kind's own fields, whatever the cluster is like."""
        yield from ()

    def redacted(self) -> Self:
        """Return what may be shown: the object without what is secret in it."""
        return self


R = TypeVar("R", bound=Resource)


def has_status(kind: type[Resource]) -> bool:
    """Tell whether a kind has a status apart from what is asked for: a subresource, which is written by itself."""
    return "status" in kind.__struct_fields__


Key: TypeAlias = tuple[str, str, str]
"""Kind, namespace and name: what tells two objects apart."""


def key(obj: Resource) -> Key:
    """Return an object's key."""
    return (obj.KIND, obj.metadata.namespace, obj.metadata.name)


def subject(obj_key: Key) -> str:
    """Return a key in the form that messages use: `IPPool/default`, `Pod/default/web`."""
    return "/".join(part for part in obj_key if part)


def invalid(obj: Resource, field: str, problem: str, hint: str) -> InvalidObject:
    """Return the error that names an object, the field of it that cannot be right, and what to do."""
    return InvalidObject(subject(key(obj)), field, problem, hint=hint)


def of_kind(kind: type[R], objects: Iterable[Resource]) -> Iterator[R]:
    """Yield the objects of one kind."""
    return (obj for obj in objects if isinstance(obj, kind))


@cache
def api_version(kind: type[Resource]) -> str:
    """Return a kind's `apiVersion`, GROUP/VERSION, or VERSION alone of Kubernetes' core kinds."""
    return str(next(field.default for field in msgspec.structs.fields(kind) if field.name == "api_version"))
