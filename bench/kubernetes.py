"""One agent that starts in a Kubernetes cluster of 5,000 nodes: a real API server, and as many blocks."""

import os
import secrets
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.loop import NODES, far_nodes
from bench.report import Row, Section
from bench.samples import median, mib
from podway.api.encode import to_builtins
from podway.errors import AgentError
from tests.kubernetes import ROOT, ApiServer, running_api_server
from tests.namespaces import TestNamespace
from tests.patience import eventually
from tests.system.kubernetes_machine import Machine

ROUNDS = 3
ADDRESS = "10.200.255.1"
"""The agent's node's, in the others' subnet."""
WITHIN = 600.0
START_TARGET, MEMORY_TARGET = 10.0, 160 << 20

POOL = """
apiVersion: podway.io/v1
kind: IPPool
metadata: {name: ipv4}
spec: {cidr: 10.0.0.0/9, encapsulation: vxlan, distribution: store}
"""

IMAGES = [
    {
        "names": [
            f"registry.example/team-{number}/application@sha256:{number:064x}",
            f"registry.example/team-{number}/application:v1.{number}",
        ],
        "sizeBytes": 10_000_000 + number,
    }
    for number in range(50)
]
"""As many as a kubelet tells (--node-status-max-images)."""


def measure() -> Section:
    with _cluster() as (server, machine):
        listed = len(server.ask("GET", "/api/v1/nodes?limit=500&resourceVersion=")["items"])
        if listed != 500:
            raise RuntimeError(f"the API server shows {listed} nodes of a page of 500")
        starts = [_start(machine) for _ in range(ROUNDS)]
    times, sizes, received = (list(column) for column in zip(*starts, strict=True))
    return Section(
        f"An agent's start among {NODES} nodes of a Kubernetes cluster",
        f"One real agent, a real kube-apiserver and etcd on the same machine; {NODES} Node objects as kubelets "
        f"write them (10 KB: 50 images, conditions), {NODES} AddressBlocks, whose routes the store distributes. "
        f"From the agent's start until it is ready and its kernel has a route to every block: {ROUNDS} times, the "
        "first one in an empty kernel. Memory is the largest VmRSS until then (VmHWM); received is what came by "
        "the link to the API server.",
        (
            Row(
                "from the agent's start to ready",
                f"{median(times):.1f} s (worst {max(times):.1f} s)",
                f"≤ {START_TARGET:g} s",
                median(times) <= START_TARGET,
            ),
            Row(
                "most resident memory",
                f"{mib(median(sizes))} (largest {mib(max(sizes))})",
                f"≤ {mib(MEMORY_TARGET)}",
                max(sizes) <= MEMORY_TARGET,
            ),
            Row(
                "received of the API server",
                f"{median(received) / 1e6:.1f} MB (most {max(received) / 1e6:.1f} MB)",
            ),
        ),
    )


@contextmanager
def _cluster() -> Iterator[tuple[ApiServer, Machine]]:
    """Have an API server with all objects, and a node's namespace for an agent."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running_api_server(directory / "server", hosts=("172.31.1.1",)))
        server.kubectl("apply", "-f", str(ROOT / "deploy/rbac.yaml"))
        server.put(dict(_documents()))
        namespace = TestNamespace(f"bench-{os.getpid()}-{secrets.token_hex(3)}")
        stack.callback(namespace.remove)
        namespace.sh("ip link add eth0 type veth peer name far0; ip link set far0 up; ip link set eth0 up")
        namespace.sh(f"ip addr add {ADDRESS}/16 dev eth0")
        machine = Machine(namespace, directory, 1, server, address=ADDRESS)
        stack.callback(machine.end)
        machine.podway("apply", "-f", "-", text=POOL)
        yield server, machine


def _documents() -> Iterator[tuple[str, Any]]:
    """Yield the other nodes and their blocks as they are stored, by their keys."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    kinds = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready", "NetworkUnavailable")
    conditions = [
        {
            "type": kind,
            "status": str(kind == "Ready"),
            "reason": "AsKubeletsSay",
            "message": f"{kind} is what it is to be",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        for kind in kinds
    ]
    info = {"kubeletVersion": "v1.37.2", "osImage": "Debian GNU/Linux 12", "architecture": "amd64"}
    for node, block in far_nodes():
        document = _stored(to_builtins(node), now)
        document["status"] |= {"conditions": conditions, "nodeInfo": info, "images": IMAGES}
        yield f"minions/{node.metadata.name}", document
        yield f"podway.io/addressblocks/{block.metadata.name}", _stored(to_builtins(block), now)


def _stored(document: dict[str, Any], now: str) -> dict[str, Any]:
    """Give an object what the API server gives one that is created."""
    document["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now, "generation": 1}
    return document


def _start(machine: Machine) -> tuple[float, int, int]:
    """Start the agent; return the seconds until it is ready, its largest memory, and received bytes; end it."""
    before, began = _received(machine), time.monotonic()
    machine.start(within=WITHIN)
    # Of its state, which it compares with the kernel for the answer, it is asked as late as can be.
    eventually(lambda: _routes(machine) >= NODES, "the kernel has all routes", within=WITHIN, every=0.1)
    eventually(lambda: _ready(machine), "the agent is ready", within=WITHIN, every=0.5)
    took = time.monotonic() - began
    found = took, _most_resident(machine.status()["pid"]), _received(machine) - before
    machine.stop()
    return found


def _ready(machine: Machine) -> bool:
    try:
        return bool(machine.status()["ready"])
    except AgentError:
        return False  # one that is busy


def _routes(machine: Machine) -> int:
    return machine.namespace.sh("cat /proc/thread-self/net/route").count("\n") - 1


def _received(machine: Machine) -> int:
    """Return how many bytes came by the link to the API server."""
    return int(machine.namespace.sh("cat /proc/thread-self/net/dev").partition("api0:")[2].split()[0])


def _most_resident(pid: int) -> int:
    """Return the largest resident memory of a process so far, in bytes (VmHWM, proc_pid_status(5))."""
    _, _, rest = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")
    return int(rest.split()[0]) * 1024
