"""What an agent knew last of the cluster, in a file, for its next start.

A running agent goes on by what it knows while the store is away, and by an object's last good state while that
object is rejected; with this file one that is started again meanwhile does the same. It is in the run directory,
which does not outlive a reboot, and neither do pods.

It may be older than what its agent did last. So until the store has listed everything nothing is taken away that
the kernel has and the file does not tell of, BIRD keeps the configuration that it has, and what judges pods stays
as it is (podway.reconcile.reconciler, podway.reconcile.enforcement).

The file is a List of manifests with nothing redacted, so that `podway apply -f` makes a lost store's objects anew.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from podway.agent.identity import kernel_instance
from podway.api.checked import RejectedObject, check, key_in
from podway.api.kinds import KINDS
from podway.api.resource import Resource, api_version, key
from podway.cluster.view import OPTIONAL, SERVING, ClusterView
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

FILE = "last-known.json"

REST, RESTS = 2.0, 30.0
"""Seconds between two writings at least, and how often as long as one took: changes come in bursts."""


class LastKnown:
    """Keeps the file of an agent up to date; `store` is the URL of the store whose cluster it tells of."""

    def __init__(self, run_dir: Path, store: str) -> None:
        self._path = run_dir / FILE
        self._store = store
        self._wanted = asyncio.Event()

    def load(self) -> ClusterView | None:
        """Return what the last agent on this kernel knew of this store, None if the file does not tell."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("what was known last cannot be read", file=str(self._path), problem=str(error))
            return None
        if (kept.instance, kept.store) != (kernel_instance(), self._store):
            return None
        found: list[Resource] = []
        rejected = [RejectedObject((one.kind, one.namespace, one.name), one.problem) for one in kept.rejected]
        for item in kept.items:
            read = _object(item)
            if isinstance(read, RejectedObject):  # by this Podway, which may be older or newer than who wrote it
                rejected.append(read)
            elif read is not None:
                found.append(read)
        view = ClusterView.of(found, rejected=rejected)
        return view.unfollowed(SERVING) if kept.judging and view.enforces else view.unfollowed()

    def trigger(self) -> None:
        """Ask for the file to be written: something else is known."""
        self._wanted.set()

    async def run(self, state: NodeState) -> None:
        """Write the file when asked, for ever. Raises OSError."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await asyncio.sleep(max(REST, RESTS * await asyncio.to_thread(self._write, state.view)))

    def _write(self, view: ClusterView) -> float:
        """Write the file; return for how many seconds that kept a processor busy, others' turns not counted."""
        began = time.thread_time()
        # Up to an empty list: `[]}`.
        head = msgspec.json.encode(
            _File(kernel_instance(), self._store, judging=not view.unjudged, rejected=list(_rejected(view)))
        )
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)  # else it would keep its mode
        with open(fresh, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            # One by one: all at once, as plain values, they would take more memory than all that the agent knows.
            file.write(head[:-2])
            for number, obj in enumerate(_objects(view)):
                file.write((b"," if number else b"") + msgspec.json.encode(_item(obj)))
            file.write(head[-2:])
        fresh.replace(self._path)
        return time.thread_time() - began


class _Rejected(msgspec.Struct):
    kind: str
    namespace: str
    name: str
    problem: str


class _File(msgspec.Struct, rename="camel"):
    instance: str
    store: str
    api_version: str = "v1"
    kind: str = "List"
    judging: bool = False
    """Whether it has all pods and policies; else it says nothing of them."""
    rejected: list[_Rejected] = []
    """What was no fact: a policy that cannot be read isolates all the same, and settings are not the defaults."""
    items: list[msgspec.Raw] = []


def _objects(view: ClusterView) -> Iterator[Resource]:
    """Yield a view's objects that may be written down.

    Not Services and endpoints, which may be hundreds of thousands: the data path keeps what came of them.
    """
    left_out = {kind.KIND for kind in (OPTIONAL if view.unjudged else SERVING)}
    for name, table in view.tables.items():
        if KINDS[name].LEAVES_STORE and name not in left_out:
            yield from table.values()


def _rejected(view: ClusterView) -> Iterator[_Rejected]:
    """Yield what of a view's rejected objects may be written down."""
    for (kind, namespace, name), one in view.rejected.items():
        if kind in KINDS and KINDS[kind].LEAVES_STORE:
            yield _Rejected(kind, namespace, name, one.problem)


def _item(obj: Resource) -> dict[str, Any]:
    metadata = msgspec.structs.replace(obj.metadata, resource_version="")
    shape: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(obj, metadata=metadata))
    return {"apiVersion": api_version(type(obj)), "kind": obj.KIND, **shape}


class _Head(msgspec.Struct):
    kind: str


def _object(item: msgspec.Raw) -> Resource | RejectedObject | None:
    """Read an object; None if not even its name can be read."""
    try:
        kind = KINDS[msgspec.json.decode(item, type=_Head).kind]
    except (KeyError, msgspec.MsgspecError):
        return None
    try:
        found = msgspec.json.decode(item, type=kind)
    except msgspec.MsgspecError as error:
        named = key_in(kind.KIND, bytes(item))
        return RejectedObject(named, f"it cannot be read: {error}") if named else None
    return check(key(found), msgspec.json.encode(found))
