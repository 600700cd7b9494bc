"""The programs of a Kubernetes in a lab, and where they are found."""

import os
import shutil
from pathlib import Path

import msgspec

from podway.errors import InvalidArgument, LabError

PROGRAMS = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *("kubelet", "kube-proxy", "kubectl"),
)
BUILD = "build them once, which takes ten minutes: ./dev kubernetes"

LOOPBACK_PLUGIN = "loopback"
STANDARD_PLUGINS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
"""Where distributions have the plugins of the CNI project."""
CHAINABLE = ("loopback", "portmap", "bandwidth", "tuning")


class Programs(msgspec.Struct, frozen=True):
    """A directory with the programs of one release, and that of the standard CNI plugins."""

    directory: Path
    plugins: Path

    def path(self, name: str) -> str:
        """Return where a program is."""
        return str(self.directory / name)

    @property
    def version(self) -> str:
        """The release, such as v1.37.2, as its directory is called."""
        return self.directory.name


def cache() -> Path:
    """Return where `./dev kubernetes` and `./dev image` leave what they build."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podway"


def default_image() -> Path:
    """Return where `./dev image` leaves Podway's image."""
    return cache() / "image" / "podway.tar"


def find_programs(wanted: str = "") -> Programs:
    """Return the programs of a release (`1.37`, `v1.37.2`), the newest that was built if none is named.

    KUBERNETES_PROGRAMS names a directory in place of those that were built. Raises LabError if a program is
    missing, InvalidArgument if no such release was built.
    """
    named = os.environ.get("KUBERNETES_PROGRAMS", "")
    built = sorted((cache() / "kubernetes").glob("v*"), key=_order)
    found = [Path(named)] if named else [path for path in built if _is(path.name, wanted)]
    if wanted and not found and built:
        there = ", ".join(path.name for path in built)
        raise InvalidArgument(
            f"Kubernetes {wanted} was not built here", hint=f"there is {there}; or {BUILD} {wanted}"
        )
    directory = found[-1] if found else cache() / "kubernetes"
    if missing := [name for name in PROGRAMS if not os.access(directory / name, os.X_OK)]:
        raise LabError(f"Kubernetes' {', '.join(missing)}: not in {directory}", hint=BUILD)
    if missing := [name for name in ("containerd", "runc") if shutil.which(name) is None]:
        raise LabError(f"{' and '.join(missing)}: not installed", hint="install containerd and runc (Debian)")
    for plugins in STANDARD_PLUGINS:
        if os.access(plugins / LOOPBACK_PLUGIN, os.X_OK):
            return Programs(directory, plugins)
    raise LabError(
        f"the CNI plugin {LOOPBACK_PLUGIN}, which containerd runs for every pod, is not installed",
        hint="install containernetworking-plugins (Debian)",
    )


def _is(version: str, wanted: str) -> bool:
    wanted = wanted.removeprefix("v")
    return not wanted or version.removeprefix("v") == wanted or version.startswith(f"v{wanted}.")


def _order(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.removeprefix("v").split(".") if part.isdecimal())
