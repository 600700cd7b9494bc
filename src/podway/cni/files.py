"""The files that a container runtime reads: the plugin and its configuration; written whole or not at all."""

import os
from importlib.resources import files
from pathlib import Path

from podway.cni.conflist import Chained
from podway.cni.spec import NETWORK
from podway.errors import UnsupportedSystem

CHAINED: dict[Chained, str] = {
    "portmap": "pods' host ports will not work",
    "bandwidth": "pods' bandwidth annotations will not work",
}
"""Standard plugins that are chained behind ours where they are installed, and what is missing without them."""


def chained(directory: Path) -> tuple[Chained, ...]:
    """Return those of CHAINED that are installed in a directory: a missing one would fail every pod's ADD."""
    return tuple(name for name in CHAINED if os.access(directory / name, os.X_OK))


def plugin() -> bytes:
    """Return the plugin's executable. Raises UnsupportedSystem if it was never compiled."""
    try:
        return (files("podway.cni") / "bin" / NETWORK).read_bytes()
    except FileNotFoundError as error:
        raise UnsupportedSystem(
            "the CNI plugin is not part of this installation of Podway",
            hint="it is compiled when the package is built: install gcc and libc6-dev, then `./dev setup`",
        ) from error


def put(path: Path, content: bytes, mode: int) -> bool:
    """Write a file unless it is so already; tell whether it had to be. Raises OSError.

    A runtime may execute or read the file at this moment: it sees the old one or the new one, never half.
    """
    try:
        if path.read_bytes() == content and path.stat().st_mode & 0o777 == mode:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.chmod(mode)
    fresh.replace(path)
    return True
