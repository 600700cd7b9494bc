"""The cluster's objects as the controller knows them: kept by an informer for each kind."""

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial

import structlog

from podway.api.checked import RejectedObject
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.node_certificate import NodeCertificate
from podway.api.kinds.service import Service
from podway.api.resource import Key, R, Resource, key
from podway.errors import StoreError
from podway.services.outside import concerns
from podway.store.base import Event, Listing, Store
from podway.store.informer import Informer

log = structlog.get_logger(__name__)

FOLLOWED: tuple[type[Resource], ...] = (
    Node,
    IPPool,
    AddressBlock,
    BGPPeer,
    NetworkConfig,
    NodeCertificate,
    Namespace,
    Service,
)


def _matters(obj: Resource | RejectedObject) -> bool:
    """Tell whether an object is kept: of tens of thousands of Services few have addresses outside."""
    return not isinstance(obj, Service) or concerns(obj)


class Facts:
    """All objects of the kinds that are followed, and those of them that are rejected."""

    def __init__(self) -> None:
        self._objects: dict[Key, Resource] = {}
        self._rejected: dict[Key, RejectedObject] = {}
        self._listed: set[str] = set()

    @property
    def complete(self) -> bool:
        """Whether every kind was listed."""
        return len(self._listed) == len(FOLLOWED)

    def lacking(self, kinds: Iterable[type[Resource]]) -> tuple[str, ...]:
        """Return which of these kinds were not listed yet: of one that was not, nothing may be held to be gone."""
        return tuple(kind.KIND for kind in kinds if kind.KIND not in self._listed)

    def hear(self, kind: type[Resource], one: Event | Listing[Resource]) -> bool:
        """Take over a listing of a kind, or one change; tell whether it matters."""
        if isinstance(one, Listing):
            for table in (self._objects, self._rejected):
                for known in [known for known in table if known[0] == kind.KIND]:
                    del table[known]
            self._objects.update((key(obj), obj) for obj in one.items if _matters(obj))
            self._rejected.update((each.key, each) for each in one.rejected)
            self._listed.add(kind.KIND)
            return True
        obj = one.object
        about = obj.key if isinstance(obj, RejectedObject) else key(obj)
        was = self._objects.pop(about, None) is not None, self._rejected.pop(about, None) is not None
        if one.type == "deleted" or not _matters(obj):
            return any(was)
        if isinstance(obj, RejectedObject):
            self._rejected[about] = obj
        else:
            self._objects[about] = obj
        return True

    def of(self, kind: type[R]) -> Iterator[R]:
        """Yield the objects of a kind."""
        return (obj for obj in self._objects.values() if isinstance(obj, kind))

    @property
    def objects(self) -> tuple[Resource, ...]:
        """All objects that are facts."""
        return tuple(self._objects.values())

    @property
    def rejected(self) -> tuple[RejectedObject, ...]:
        """Those that are none."""
        return tuple(self._rejected.values())

    @property
    def registered(self) -> frozenset[str]:
        """The names of all nodes, also of those that are rejected."""
        return frozenset(name for kind, _, name in (*self._objects, *self._rejected) if kind == Node.KIND)


class Following:
    """Keeps facts as they are in the store, and sets `changed` when they change."""

    def __init__(self, store: Store) -> None:
        self.facts = Facts()
        self.changed = asyncio.Event()
        self.problems: dict[str, str] = {}
        """Why the store cannot be asked, by kind."""
        self._store = store

    async def run(self) -> None:
        """Follow for ever."""
        async with asyncio.TaskGroup() as tasks:
            for kind in FOLLOWED:
                informer = Informer(
                    self._store,
                    kind,
                    version=None,
                    hear=partial(self._hear, kind),
                    lost=partial(self._lost, kind.KIND),
                    reached=partial(self._reached, kind.KIND),
                )
                tasks.create_task(informer.run())

    def _hear(self, kind: type[Resource], one: Event | Listing[Resource]) -> None:
        if self.facts.hear(kind, one):
            self.changed.set()

    def _lost(self, kind: str, error: StoreError) -> None:
        if self.problems.get(kind) != error.message:
            log.error("the store cannot be asked", kind=kind, problem=error.message, hint=error.hint)
        self.problems[kind] = error.message

    def _reached(self, kind: str) -> None:
        if self.problems.pop(kind, None) is not None:
            log.info("the store can be asked again", kind=kind)
