"""What is given before the command, and the store that follows from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from podway.errors import LabError
from podway.lab.paths import lab_dir, lab_store

if TYPE_CHECKING:  # `podway --help` does without msgspec
    from podway.store.base import Store

T = TypeVar("T")

SNAPSHOT = "snapshot:"
"""What the URL of a snapshot (podway.preview.snapshot) begins with; the rest is the file's path."""


class GlobalOptions(NamedTuple):
    """`podway --store URL --lab NAME`; `store` is None if it was not given."""

    store: str | None
    lab: str

    def store_url(self) -> str:
        """Return the URL of the store to use: the one given, else the lab's.

        Raises LabError if the lab's name cannot be one, or no such lab stands.
        """
        if self.store is not None:
            return self.store
        from podway.lab.names import require_lab_name

        require_lab_name(self.lab)
        try:
            stands = lab_dir(self.lab).exists()
        except PermissionError as error:
            raise LabError(f"the lab {self.lab!r} may not be read", hint="run this as root") from error
        if not stands:
            raise LabError(
                f"no lab {self.lab!r} stands here, and no store is named",
                hint="build one with `podway lab up`, or name a store: --store sqlite:///path, or PODWAY_STORE",
            )
        return lab_store(self.lab)

    def run(self, work: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
        """Open the store, run `work` with it, close it, return the answer.

        A missing store is made if `create` is true. Raises what opening and `work` raise.
        """
        import asyncio

        async def opened() -> T:
            store = _open(self.store_url(), create=create)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(opened())


def _open(url: str, *, create: bool) -> Store:
    if url.startswith(SNAPSHOT):
        from podway.preview.snapshot import read
        from podway.preview.store import SnapshotStore

        return SnapshotStore(read(Path(url.removeprefix(SNAPSHOT))))
    from podway.store.open import open_store

    return open_store(url, create=create)
