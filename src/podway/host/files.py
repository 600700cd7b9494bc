"""The files that a plain host needs: the plugin, its configuration, and the agent's systemd unit.

Nothing is started: who installs Podway decides when it begins to act.
"""

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from podway.cni.conflist import FILE_NAME, Chained, render_conflist
from podway.cni.spec import NETWORK
from podway.errors import InvalidInput, NeedsRoot, UnsupportedSystem
from podway.host.program import program

Outcome: TypeAlias = Literal["written", "unchanged", "removed", "was not there"]

UNIT_NAME = "podway-agent.service"

CHAINED: dict[Chained, str] = {
    "portmap": "pods' host ports will not work",
    "bandwidth": "pods' bandwidth annotations will not work",
}
"""Standard plugins that are chained behind ours where they are installed, and what is missing without them."""


class HostPaths(msgspec.Struct, frozen=True):
    """Where runtimes and systemd look; the defaults are theirs."""

    plugins: Path = Path("/opt/cni/bin")
    configuration: Path = Path("/etc/cni/net.d")
    units: Path = Path("/etc/systemd/system")

    @property
    def every(self) -> tuple[Path, ...]:
        """All files of ours."""
        return (self.plugins / NETWORK, self.configuration / FILE_NAME, self.units / UNIT_NAME)


def chained(paths: HostPaths) -> tuple[Chained, ...]:
    """Return those of CHAINED that are installed beside our plugin: a missing one would fail every pod's ADD."""
    return tuple(name for name in CHAINED if os.access(paths.plugins / name, os.X_OK))


def install(paths: HostPaths, *, overwrite: bool = False) -> dict[Path, Outcome]:
    """Write the plugin, its configuration and the unit; return what became of each file.

    A file that differs from ours is somebody's work: it stays, and nothing at all is written, unless
    `overwrite`. Raises InvalidInput naming it, UnsupportedSystem if the plugin was never compiled, and NeedsRoot
    if this user may not write all of them.
    """
    plugin, configuration, unit = paths.every
    wanted = {plugin: _shim(), configuration: render_conflist(chained=chained(paths)), unit: _unit()}
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


def _shim() -> bytes:
    try:
        return (files("podway.cni") / "bin" / NETWORK).read_bytes()
    except FileNotFoundError as error:
        raise UnsupportedSystem(
            "the CNI plugin is not part of this installation of Podway",
            hint="it is compiled when the package is built: install gcc and libc6-dev, then `./dev setup`",
        ) from error


def _unit() -> bytes:
    with as_file(files("podway.host") / UNIT_NAME) as template:
        text = template.read_text()
    return text.replace("/opt/podway/bin/podway", program()).encode()


def _write(path: Path, text: bytes, mode: int) -> Outcome:
    if path.exists() and path.read_bytes() == text:
        return "unchanged"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A runtime may execute or read the file at this moment: it sees the old one or the new one, never half.
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(text)
    fresh.chmod(mode)
    fresh.replace(path)
    return "written"
