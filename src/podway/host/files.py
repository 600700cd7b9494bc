"""The files that a plain host needs: the plugin, its configuration, and the agent's systemd unit.

Nothing is started: who installs Podway decides when it begins to act.
"""

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from podway.cni.conflist import FILE_NAME, render_conflist
from podway.cni.files import chained, put
from podway.cni.files import plugin as shim
from podway.cni.spec import NETWORK
from podway.errors import InvalidInput, NeedsRoot
from podway.host.program import program

Outcome: TypeAlias = Literal["written", "unchanged", "removed", "was not there"]

UNIT_NAME = "podway-agent.service"


class HostPaths(msgspec.Struct, frozen=True):
    """Where runtimes and systemd look; the defaults are theirs."""

    plugins: Path = Path("/opt/cni/bin")
    configuration: Path = Path("/etc/cni/net.d")
    units: Path = Path("/etc/systemd/system")

    @property
    def every(self) -> tuple[Path, ...]:
        """All files of ours."""
        return (self.plugins / NETWORK, self.configuration / FILE_NAME, self.units / UNIT_NAME)


def install(paths: HostPaths, *, overwrite: bool = False) -> dict[Path, Outcome]:
    """Write the plugin, its configuration and the unit; return what became of each file.

    A file that differs from ours is somebody's work: it stays, and nothing at all is written, unless
    `overwrite`. Raises InvalidInput naming it, UnsupportedSystem if the plugin was never compiled, and NeedsRoot
    if this user may not write all of them.
    """
    plugin, configuration, unit = paths.every
    wanted = {
        plugin: shim(),
        configuration: render_conflist(chained=chained(paths.plugins)),
        unit: _unit(),
    }
    for path in wanted:
        _require_writable(path.parent)
    # The plugin is ours whatever its version; the two texts may have been edited.
    edited = [path for path in (configuration, unit) if path.exists() and path.read_bytes() != wanted[path]]
    if edited and not overwrite:
        raise InvalidInput(
            f"{edited[0]} is there already and differs from what would be written",
            hint="compare them; --overwrite replaces it",
        )
    return {path: _write(path, text, 0o755 if path == plugin else 0o644) for path, text in wanted.items()}


def install_plugin(directory: Path) -> dict[Path, Outcome]:
    """Write the plugin alone, and return what became of it: the agent writes the configuration once pods can come.

    Raises UnsupportedSystem if it was never compiled, and NeedsRoot if this user may not write it.
    """
    _require_writable(directory)
    path = directory / NETWORK
    return {path: _write(path, shim(), 0o755)}


def remove(paths: HostPaths) -> dict[Path, Outcome]:
    """Remove what `install` wrote; return what became of each file."""
    for path in paths.every:
        if path.exists():
            _require_writable(path.parent)
    outcomes: dict[Path, Outcome] = {}
    for path in paths.every:
        outcomes[path] = "removed" if path.exists() else "was not there"
        path.unlink(missing_ok=True)
    return outcomes


def _require_writable(directory: Path) -> None:
    """Raise NeedsRoot if this user may not make files in a directory, or make the directory."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise NeedsRoot(f"writing to {directory}")


def _unit() -> bytes:
    with as_file(files("podway.host") / UNIT_NAME) as template:
        text = template.read_text()
    return text.replace("/opt/podway/bin/podway", program()).encode()


def _write(path: Path, text: bytes, mode: int) -> Outcome:
    return "written" if put(path, text, mode) else "unchanged"
