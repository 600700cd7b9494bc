"""Podman and containerd on a host of their own, and what each reads: plugins, network, settings."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import podway.cni
from podway.cni.conflist import FILE_NAME, render_conflist
from tests.patience import PATIENCE
from tests.runtime.busybox_image import SERVE, archive
from tests.runtime.by_hand import Libcni
from tests.runtime.cri_client import Cri, CriError
from tests.runtime.node_host import NodeHost
from tests.runtime.witness import Witness

SHIM = Path(podway.cni.__file__).parent / "bin" / "podway"
STANDARD = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins has its plugins."""

PODMAN_NODE, CONTAINERD_NODE = "node1", "node2"
IMAGE = "podway.test/server:1"

CONTAINERS_CONF = """
[containers]
cgroups = "disabled"
log_driver = "none"

[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"

[network]
network_backend = "cni"
network_config_dir = "{0}/net.d"
cni_plugin_dirs = ["{0}/plugins"]
"""
"""man 5 containers.conf."""

CONTAINERD_TOML = """
version = 2

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{1}"
disable_apparmor = true
disable_tcp_service = true
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{0}/plugins"
conf_dir = "{0}/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{0}/crun"
"""
"""containerd/docs/cri/config.md."""

CRUN = """#!/bin/sh
# containerd cannot be told to do without cgroups, crun can.
exec crun --cgroup-manager=disabled "$@"
"""


@dataclass(frozen=True)
class Podman:
    """Podman with the CNI network backend."""

    host: NodeHost
    rootfs: Path
    witness: Witness
    libcni: Libcni

    @classmethod
    def on(cls, host: NodeHost, rootfs: Path) -> "Podman":
        """Lay out what podman reads on a host."""
        # Podman knows no rates of its own: they stand in the configuration, in bits a second and bits.
        witness = _furnish(host.directory, ingressRate=8_000_000, ingressBurst=800_000)
        (host.directory / "containers.conf").write_text(CONTAINERS_CONF.format(host.directory))
        network = host.directory / "net.d" / FILE_NAME
        return cls(host, rootfs, witness, Libcni(host, network, host.directory / "plugins"))

    def __call__(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run podman; its output is text."""
        conf = {"CONTAINERS_CONF": str(self.host.directory / "containers.conf")}
        return self.host.run("podman", *arguments, check=check, environment=conf)

    def run(self, *options: str, network: str = "podway") -> str:
        """Run a container that serves the page; return its id."""
        return self._run(*options, f"--network={network}").stdout.strip()

    def refused(self, *options: str, network: str = "podway") -> str:
        """Fail to run a container; return podman's words."""
        done = self._run(*options, f"--network={network}", check=False)
        assert done.returncode != 0
        return done.stderr

    def _run(self, *options: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self("run", "--detach", *options, "--rootfs", str(self.rootfs), *SERVE, check=check)

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what podman says of a container."""
        found: dict[str, Any] = json.loads(self("inspect", container).stdout)[0]
        return found

    def addresses(self, container: str, network: str = "podway") -> list[str]:
        """Return a container's addresses, which podman took from the plugins' result."""
        stated = self.inspect(container)["NetworkSettings"]["Networks"][network]
        return [stated["IPAddress"], stated["GlobalIPv6Address"]]

    def netns(self, container: str) -> str:
        """Return the path of a running container's network namespace."""
        return str(self.inspect(container)["NetworkSettings"]["SandboxKey"])


@dataclass(frozen=True)
class Containerd:
    """Containerd with its CRI plugin."""

    host: NodeHost
    cri: Cri
    witness: Witness

    @classmethod
    def on(cls, host: NodeHost, rootfs: Path) -> "Containerd":
        """Start containerd on a host, and wait until it is ready."""
        directory = host.directory
        witness = _furnish(directory)
        (directory / "config.toml").write_text(CONTAINERD_TOML.format(directory, IMAGE))
        (directory / "crun").write_text(CRUN)
        (directory / "crun").chmod(0o755)
        (directory / "image.tar").write_bytes(archive(rootfs, IMAGE))
        host.start(["containerd", "--config", directory / "config.toml"], directory / "containerd.log")
        cri = Cri(host.path("/run/containerd/containerd.sock"))
        _wait_until_ready(cri, directory / "containerd.log")
        host.run("ctr", "--namespace=k8s.io", "images", "import", directory / "image.tar")
        return cls(host, cri, witness)


def _furnish(directory: Path, **bandwidth: int) -> Witness:
    """Lay out a plugin directory, and a network: ours, Debian's plugins chained to it, a witness at its end."""
    plugins, networks = directory / "plugins", directory / "net.d"
    plugins.mkdir()
    networks.mkdir()
    for plugin in (SHIM, *STANDARD.iterdir()):
        (plugins / plugin.name).symlink_to(plugin)
    witness = Witness(directory / "witness.log")
    witness.install(plugins)
    text = render_conflist(chained=("tuning", "portmap", "bandwidth"), sysctls={"net.core.somaxconn": "500"})
    network = json.loads(text)
    network["plugins"][-1] |= bandwidth
    network["plugins"].append(witness.config)
    (networks / FILE_NAME).write_text(json.dumps(network))
    return witness


def _wait_until_ready(cri: Cri, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if cri.network_ready():
                return
            problem = "its network is not ready"
        except CriError as error:
            problem = str(error)
        assert time.monotonic() < deadline, f"{problem}\n{log.read_text()}"
        time.sleep(0.1)
