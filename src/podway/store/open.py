"""Stores by URL."""

from pathlib import Path

from podway.errors import InvalidArgument
from podway.store.base import Store

SQLITE = "sqlite://"


def open_store(url: str, *, create: bool = True, later: bool = False) -> Store:
    """Open the store at a URL: `sqlite:///absolute/path`.

    A missing one is made if `create` is true. With `later` it is opened when it is first needed, and what is wrong
    with it is raised then.

    Raises InvalidArgument if the URL names no store, and StoreUnavailable, StoreDamaged or StoreTooNew.
    """
    path = path_of(url)
    from podway.store.sqlite import SqliteStore

    return SqliteStore(path, create=create, later=later)


def path_of(url: str) -> Path:
    """Return the file that a store's URL names. Raises InvalidArgument if it names none."""
    path = url.removeprefix(SQLITE)
    if not url.startswith(SQLITE) or not path.startswith("/") or path.endswith("/"):
        raise InvalidArgument(
            f"no store can be opened at {url!r}", hint="a store's URL is sqlite:///absolute/path/of/the/file"
        )
    return Path(path)
