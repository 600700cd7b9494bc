"""CNI plugins to measure: ours in a lab's node, and the reference ones in the same node."""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import podway.cni
from bench.execution import Command
from bench.labs import Lab
from podway.kernel import netns
from podway.lab.state import node_dir

REFERENCE = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins are."""

_CNI_VERSION = "1.0.0"
"""The newest that the reference plugins of Debian 12 speak."""

_containers = itertools.count()


class Plugin(msgspec.Struct, frozen=True):
    """A plugin with its configuration."""

    name: str
    executable: Path
    configuration: Path
    environment: dict[str, str]

    def command(self, verb: str, container: str, namespace: Path | str, ifname: str = "eth0") -> Command:
        """Return how a runtime executes it."""
        environment = {
            **self.environment,
            "PATH": os.defpath,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(namespace),
            "CNI_IFNAME": ifname,
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container[:8]}",
            "CNI_PATH": f"{self.executable.parent}",
        }
        return Command((str(self.executable),), environment, self.configuration)


def new_container() -> str:
    """Return a container id that was not used before: 64 hexadecimal digits, as runtimes make them."""
    return hashlib.sha256(f"{os.getpid()}/{next(_containers)}".encode()).hexdigest()


@contextmanager
def plugins(lab: Lab, node: str) -> Iterator[dict[str, Plugin]]:
    """Give `podway`, `ptp` and `bridge`, by name, while the block runs.

    The reference plugins lease by host-local, whose files are in memory (/run), as our agent's store is.
    """
    with tempfile.TemporaryDirectory(prefix="podway-bench-", dir="/run") as directory:
        home = node_dir(lab.name, node)
        ours = {
            "PODWAY_CNI_SOCKET": str(home / "cni.sock"),
            "PODWAY_CNI_SPOOL": str(home / "cni-deletes"),
        }
        shim = Path(podway.cni.__file__).parent / "bin" / "podway"
        found = {"podway": Plugin("podway", shim, _configuration(directory, "podway"), ours)}
        for name, subnet, extra in (
            ("ptp", "10.98.0.0/16", {}),
            ("bridge", "10.97.0.0/16", {"bridge": "cni0", "isGateway": True}),
        ):
            ipam = {
                "type": "host-local",
                "dataDir": f"{directory}/leases",
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }
            configuration = _configuration(directory, name, ipam=ipam, **extra)
            found[name] = Plugin(name, REFERENCE / name, configuration, {})
        yield found


def sandbox_name(what: object) -> str:
    """Return a name for a network namespace that `sandboxes` will delete."""
    return f"podway-bench-{os.getpid()}-{what}"


@contextmanager
def sandboxes(count: int = 0) -> Iterator[list[Path]]:
    """Give the paths of so many empty network namespaces; delete all of ours afterwards."""
    try:
        yield [netns.create(sandbox_name(number)) for number in range(count)]
    finally:
        for name in netns.names():
            if name.startswith(sandbox_name("")):
                netns.delete(name)


def _configuration(directory: str, plugin: str, **rest: Any) -> Path:
    path = Path(directory) / f"{plugin}.conf"
    network = {"cniVersion": _CNI_VERSION, "name": f"bench-{plugin}", "type": plugin, **rest}
    path.write_bytes(msgspec.json.encode(network))
    return path
