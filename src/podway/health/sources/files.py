"""What lies on the node's disk: the runtime's configuration, the plugin, DELs that wait, and room."""

import os
import time
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Literal

import msgspec

from podway.cni.conflist import FILE_NAME
from podway.cni.spec import NETWORK
from podway.cni.spool import UNFINISHED
from podway.health.facts import Disk, Files

SUFFIXES = (".conf", ".conflist", ".json")
"""What libcni reads (ConfFiles and its callers in libcni and in container runtimes)."""


class Places(msgspec.Struct, frozen=True):
    """Where to look; `disks` are files and directories whose file system must have room."""

    configuration: Path
    plugins: Path
    spool: Path
    disks: tuple[Path, ...]


def read(places: Places) -> Files:
    """Return what is there. Raises OSError."""
    plugin = places.plugins / NETWORK
    lacking, unreadable = _chained(places)
    return Files(
        str(places.configuration),
        _configurations(places.configuration),
        str(plugin),
        _compare(plugin),
        tuple(_waiting(places.spool)),
        tuple(_disk(path) for path in places.disks if path.exists()),
        lacking,
        unreadable,
    )


def _configurations(directory: Path) -> tuple[str, ...] | None:
    if not directory.is_dir():
        return None
    return tuple(sorted(entry.name for entry in directory.iterdir() if entry.suffix in SUFFIXES))


def _chained(places: Places) -> tuple[tuple[str, ...], str]:
    """Return the chained plugins that are missing, and why our configuration cannot be read."""
    path = places.configuration / FILE_NAME
    try:
        plugins = msgspec.json.decode(path.read_bytes(), type=_Configuration).plugins
    except FileNotFoundError:
        return (), ""
    except msgspec.MsgspecError as error:
        return (), f"{path} is no network configuration list: {error}"
    chained = [plugin.type for plugin in plugins if plugin.type != NETWORK]
    return tuple(name for name in chained if not (places.plugins / name).is_file()), ""


class _Plugin(msgspec.Struct, frozen=True):
    type: str


class _Configuration(msgspec.Struct, frozen=True):
    plugins: tuple[_Plugin, ...]


def _compare(plugin: Path) -> Literal["same", "other", "missing", "unknown"]:
    if not plugin.exists():
        return "missing"
    try:
        ours = (files("podway.cni") / "bin" / NETWORK).read_bytes()
    except FileNotFoundError:
        return "unknown"  # this installation has no compiled plugin to compare with
    return "same" if plugin.read_bytes() == ours else "other"


def _waiting(spool: Path) -> Iterable[float]:
    """Yield how long each DEL waits, in seconds."""
    try:
        entries = list(os.scandir(spool))
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            if not entry.name.startswith(UNFINISHED):
                yield time.time() - entry.stat().st_mtime
        except FileNotFoundError:
            continue  # carried out meanwhile


def _disk(path: Path) -> Disk:
    status = os.statvfs(path)
    return Disk(str(path), status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)
