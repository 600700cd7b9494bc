"""Columns of the tables that `podway get` shows: how a cell's text is made of an object. Pure."""

from calendar import timegm
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from time import strptime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from podway.api.resource import Resource

R = TypeVar("R", bound="Resource")
T = TypeVar("T")


class Cluster:
    """What a column may look at beyond its own row: all objects, the time (seconds since 1970), agents' answers.

    `ask` tells of which nodes agents know already that they are gone (podway.cli.agents.doubts).
    """

    def __init__(
        self, objects: Iterable["Resource"], now: float, ask: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        self.objects = tuple(objects)
        self.now = now
        self._ask = ask
        self._by_kind: dict[type[Any], tuple[Any, ...]] = {}
        self._kept: dict[Callable[..., Any], Any] = {}
        self._by_name: dict[tuple[type[Any], str], Mapping[str, Any]] = {}

    @cached_property
    def doubts(self) -> Mapping[str, str]:
        """What agents say of nodes that seem to be gone; asked only if a column shows it."""
        return self._ask()

    def of(self, kind: type[R]) -> tuple[R, ...]:
        """Return all objects of a kind."""
        if kind not in self._by_kind:
            self._by_kind[kind] = tuple(obj for obj in self.objects if isinstance(obj, kind))
        return self._by_kind[kind]

    def kept(self, make: Callable[[Sequence["Resource"]], T]) -> T:
        """Return what a function makes of all objects, made once however often it is asked for."""
        if make not in self._kept:
            self._kept[make] = make(self.objects)
        found: T = self._kept[make]
        return found

    def named(self, kind: type[R], namespace: str = "") -> Mapping[str, R]:
        """Return the objects of a kind in a namespace by their name, in none if the kind's are in none."""
        asked = (kind, namespace)
        if asked not in self._by_name:
            every = (obj for obj in self.of(kind) if obj.metadata.namespace == namespace)
            self._by_name[asked] = {obj.metadata.name: obj for obj in every}
        return self._by_name[asked]


class Column(msgspec.Struct, frozen=True):
    """A column: its header, and how a row's text is made. `wide` columns appear with -o wide only.

    `path` (JSONPath) and `type` are for `kubectl get`, which shows a field as it is; it goes without the others.
    """

    header: str
    text: Callable[[Any, Cluster], str]
    wide: bool = False
    path: str = ""
    type: str = "string"


def age_of(timestamp: str, *, now: float) -> str:
    """Return how long ago an RFC 3339 time in UTC was: `5s`, `3m12s`, `7h`, `4d`. Empty if it is empty."""
    return age(now - timegm(strptime(timestamp[:19], "%Y-%m-%dT%H:%M:%S"))) if timestamp else ""


def age(seconds: float) -> str:
    """Return a duration with the precision that its length deserves."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 2:
        return f"{whole}s"
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 48:
        return f"{hours}h"
    return f"{days}d"


def _labels(obj: "Resource", _: Cluster) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(obj.metadata.labels.items()))


NAME = Column("NAME", lambda obj, _: obj.metadata.name)
NAMESPACE = Column("NAMESPACE", lambda obj, _: obj.metadata.namespace)
AGE = Column(
    "AGE",
    lambda obj, cluster: age_of(obj.metadata.creation_timestamp, now=cluster.now),
    path=".metadata.creationTimestamp",
    type="date",
)
LABELS = Column("LABELS", _labels, wide=True)
