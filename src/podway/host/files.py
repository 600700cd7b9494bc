"""The files that a plain host needs: the plugin, its configuration, and the agent's systemd unit.

Nothing is started: who installs Podway decides when it begins to act.
"""

import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from podway.cni.conflist import FILE_NAME, render_conflist
from podway.cni.spec import NETWORK
from podway.errors import InvalidInput, UnsupportedSystem

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
    `overwrite`. Raises InvalidInput naming it, UnsupportedSystem if the plugin was never compiled.
    """
    plugin, configuration, unit = paths.every
    wanted = {plugin: _shim(), configuration: render_conflist(chained=("portmap", "bandwidth")), unit: _unit()}
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
    outcomes: dict[Path, Outcome] = {}
    for path in paths.every:
        outcomes[path] = "removed" if path.exists() else "was not there"
        path.unlink(missing_ok=True)
    return outcomes


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
    program = shutil.which(sys.argv[0]) or f"{sys.executable} -m podway"
    return text.replace("/opt/podway/bin/podway", str(Path(program).absolute())).encode()


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
