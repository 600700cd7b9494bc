"""Fixtures for tests with real container runtimes: a lab of two nodes, podman on one, containerd on the other.

Nothing of the machine's own is touched: each runtime lives on a NodeHost. What is not installed is skipped,
with its package's name.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.runtime.busybox_image import make_rootfs
from tests.runtime.node_host import NodeHost
from tests.runtime.real_lab import RealLab, new_lab, root_namespace
from tests.runtime.runtimes import CONTAINERD_NODE, PODMAN_NODE, STANDARD, Containerd, Podman


@pytest.fixture(scope="package")
def lab() -> Iterator[RealLab]:
    """A dual-stack lab of two nodes, with a pod on each; the root namespace is compared before and after."""
    before = root_namespace()
    with new_lab("--nodes=2", "--pool=10.244.0.0/16", "--pool=fd00:10:244::/56") as lab:
        for node in (PODMAN_NODE, CONTAINERD_NODE):
            lab.podway("lab", "run", f"on-{node}", "--node", node)
        yield lab
    assert root_namespace() == before


@pytest.fixture(scope="package")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container's root file system."""
    busybox = Path("/bin/busybox")
    if not busybox.exists() or b"/ld-linux" in busybox.read_bytes():
        pytest.skip("not installed: busybox-static")
    return make_rootfs(tmp_path_factory.mktemp("image") / "rootfs", busybox)


@pytest.fixture(scope="package")
def podman_on_node(lab: RealLab, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    require("podman", "crun", "curl")
    with closing(NodeHost(lab.name, PODMAN_NODE, tmp_path_factory.mktemp("podman"))) as host:
        podman = Podman.on(host, rootfs)
        info = podman("info", "--format={{.Host.NetworkBackend}}", check=False)
        if info.stdout.strip() != "cni":
            pytest.skip(f"this podman has no CNI backend: {info.stderr or info.stdout}")
        yield podman


@pytest.fixture
def podman(podman_on_node: Podman) -> Iterator[Podman]:
    """Podman on a node, without any container."""
    yield podman_on_node
    podman_on_node("rm", "--all", "--force", "--time=0")


@pytest.fixture(scope="package")
def containerd_on_node(
    lab: RealLab, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    require("containerd", "crun", "curl")
    with closing(NodeHost(lab.name, CONTAINERD_NODE, tmp_path_factory.mktemp("containerd"))) as host:
        yield Containerd.on(host, rootfs)


@pytest.fixture
def containerd(containerd_on_node: Containerd) -> Iterator[Containerd]:
    """Containerd on a node, without any pod."""
    yield containerd_on_node
    for pod in containerd_on_node.cri.pods():
        containerd_on_node.cri.stop(pod)
        containerd_on_node.cri.remove(pod)


def require(*programs: str) -> None:
    """Skip the test unless Debian's packages are installed: these, called as their programs, and the plugins."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not STANDARD.is_dir():
        missing.append("containernetworking-plugins")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
