"""What a Kubernetes leaves outside of a lab's namespaces and directory: cgroups, and its nodes' disks."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from podway.lab.paths import DATA, data_dir

CGROUPS = Path("/sys/fs/cgroup")
PARENT = "podway-lab"
"""The cgroup in which those of all labs' nodes are."""


def cgroup_of(lab: str, node: str) -> str:
    """Return a node's cgroup, below which its pods' are, as a path from the root of cgroups."""
    return f"/{PARENT}/{lab}-{node}"


def make_cgroup(cgroup: str) -> None:
    """Make a cgroup in each hierarchy of the machine's (man 7 cgroups), version 1 or 2. Raises OSError."""
    for hierarchy in _hierarchies():
        made = hierarchy
        for part in cgroup.strip("/").split("/"):
            _hand_on_controllers(made)
            above, made = made, made / part
            made.mkdir(exist_ok=True)
            for setting in (
                "cpuset.cpus",
                "cpuset.mems",
            ):  # of version 1: empty at first, and nothing can run then
                if (made / setting).exists() and not (made / setting).read_text().strip():
                    (made / setting).write_text((above / setting).read_text())


def remove(lab: str) -> None:
    """Remove all of it, as far as it is there; nothing of the lab's may run any more. Raises OSError."""
    for hierarchy in _hierarchies():
        for node in (hierarchy / PARENT).glob(f"{lab}-*"):
            for directory, _, _ in os.walk(node, topdown=False):
                os.rmdir(directory)
        with contextlib.suppress(OSError):  # another lab is in it
            (hierarchy / PARENT).rmdir()
    if data_dir(lab).exists():
        shutil.rmtree(data_dir(lab))
    for parent in (DATA, DATA.parent):
        with contextlib.suppress(OSError):  # so is somebody's else
            parent.rmdir()


def _hand_on_controllers(cgroup: Path) -> None:
    """Let cgroups below one of version 2 have all controllers that it has."""
    if (cgroup / "cgroup.subtree_control").exists():
        for controller in (cgroup / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):  # what cannot be handed on, kubelets do without
                (cgroup / "cgroup.subtree_control").write_text(f"+{controller}")


def _hierarchies() -> Iterator[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        yield CGROUPS
    elif CGROUPS.is_dir():
        for path in CGROUPS.iterdir():
            if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists():
                yield path
