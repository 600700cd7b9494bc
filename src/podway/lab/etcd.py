"""The etcd that a lab may have as its store, and the controller beside it, in a namespace of their own.

Nodes reach it over their segment, as they would any: it can be cut off, killed and started again.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from podway.errors import LabError, StoreError
from podway.lab import facts, names, processes, topology
from podway.lab.fabric import Fabric
from podway.lab.kubernetes.programs import cache
from podway.lab.paths import etcd_dir, lab_dir, lab_store, store_file
from podway.lab.processes import Spawned

PROGRAM = "etcd"
PORT = 2379
PREFIX = "podway"
READY_SECONDS = 60.0
KEPT = "5m"
"""Of how long ago changes are kept."""


def find_program() -> str:
    """Return where etcd is: installed, or built for Kubernetes in a lab. Raises LabError."""
    named = os.environ.get("KUBERNETES_PROGRAMS", "")
    built = [*((cache() / "kubernetes").glob(f"v*/{PROGRAM}")), *([Path(named) / PROGRAM] if named else [])]
    found = shutil.which(PROGRAM) or next((str(path) for path in reversed(built) if os.access(path, os.X_OK)), "")
    if not found:
        raise LabError("there is no etcd here for a lab's store", hint="install etcd-server (Debian, Ubuntu)")
    return found


def create(lab: str, fabric: Fabric) -> None:
    """Make the namespace, and start an empty etcd there. Raises LabError and KernelError."""
    topology.create_control(lab, fabric)
    host = fabric.control[0].ip
    store_file(lab).write_text(f"etcd://{f'[{host}]' if host.version == 6 else host}:{PORT}/{PREFIX}\n")
    etcd_dir(lab).mkdir()
    start(lab)


def start(lab: str) -> Spawned:
    """Start etcd with what it had stored, and wait until it answers. Raises LabError."""
    url = f"http://{lab_store(lab).removeprefix('etcd://').removesuffix(f'/{PREFIX}')}"
    peer = "http://127.0.0.1:2380"
    process = processes.spawn(
        [
            *(find_program(), "--name=lab", f"--data-dir={etcd_dir(lab) / 'data'}", "--log-level=warn"),
            *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}"),
            *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=lab={peer}"),
            *("--auto-compaction-mode=periodic", f"--auto-compaction-retention={KEPT}"),
        ],
        namespace=names.control_netns(lab),
        mark=names.control_mark(lab),
        log=etcd_dir(lab) / "etcd.log",
    )
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            facts.ask(lab, lambda store: store.unknown())
        except StoreError as error:
            ended = process.ended()
            if ended is not None or time.monotonic() > deadline:
                what = f"ended with status {ended}" if ended is not None else f"does not answer: {error}"
                raise LabError(f"lab {lab}: etcd {what}; its log: {etcd_dir(lab) / 'etcd.log'}") from error
            time.sleep(0.05)
        else:
            return process


def start_controller(lab: str) -> Spawned:
    """Start the controller, which signs the agents' certificates."""
    return processes.spawn(
        [sys.executable, "-m", "podway", "controller", "--store", lab_store(lab)],
        namespace=names.control_netns(lab),
        mark=names.control_mark(lab),
        log=lab_dir(lab) / "controller.log",
    )
