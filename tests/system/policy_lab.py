"""Pods of a lab whose policies are enforced, and connections between them.

A server is a listening socket alone: the kernel answers who connects, if his packets come through.
"""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from podway.api.kinds.pod import Pod
from podway.errors import PodwayError
from podway.kernel import netns
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import ENDPOINT, RULE_SET, Endpoint, RuleSet, unpack_address
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links
from podway.lab import names, pods
from podway.lab.cluster import DEFAULT_POOL_SETTINGS
from podway.lab.facts import PoolSettings
from tests.patience import eventually
from tests.system.system_lab import SystemLab

FAMILIES = (socket.AF_INET, socket.AF_INET6)
SOON = 0.4
"""Seconds after which a packet that did not come does not come: nothing but a verdict holds any up here."""

POLICY = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
CLUSTER_POLICY = {"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy"}


@contextlib.contextmanager
def policy_lab(pool_settings: PoolSettings = DEFAULT_POOL_SETTINGS) -> "Iterator[PolicyLab]":
    """Give a lab of two nodes while the block runs."""
    lab = SystemLab()
    lab.up(2, pool_settings=pool_settings)
    try:
        made = PolicyLab(lab)
        yield made
        made.close()
    finally:
        lab.down()


class Place:
    """Where a connection begins or ends: a network namespace and its addresses."""

    def __init__(self, name: str, path: str, addresses: tuple[str, ...]) -> None:
        self.name, self.path, self.addresses = name, path, addresses

    def open(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Open a socket there."""
        with netns.opened(self.path) as fd:
            made = netns.run(fd, lambda: socket.socket(family, kind))
        made.settimeout(SOON)
        return made

    def address(self, family: int) -> str:
        """Its address of a family."""
        return next(one for one in self.addresses if (":" in one) == (family == socket.AF_INET6))

    def source_to(self, service: "Place", family: int, port: int, *, within: float = SOON) -> str | None:
        """Connect from there to a Service; return the address from which it went, None if it was refused."""
        with self.open(family) as asking:
            asking.settimeout(within)
            try:
                asking.connect((service.address(family), port))
            except ConnectionRefusedError:
                return None
            assert asking.getpeername()[0] == service.address(family)
            return str(asking.getsockname()[0])


class PolicyLab:
    """A lab with pods of some labels and namespaces, which listen at some ports."""

    def __init__(self, lab: SystemLab) -> None:
        self.lab = lab
        self._stack = ExitStack()
        self.pods: dict[str, Place] = {}
        self._servers: dict[str, list[socket.socket]] = {}
        """Servers of which nobody takes what comes, by pod."""
        self.nodes = {name: self._node(name) for name in lab.nodes}
        lab.podway("set", "config", "dataPath=ebpf", "--wait")

    def close(self) -> None:
        """Remove the pods, and all policies."""
        self._stack.close()
        self.forget_policies()
        for name in list(self.pods):
            self.remove(name)

    def _node(self, name: str) -> Place:
        own = json.loads(self.lab.podway("get", "node", name, "-o", "json"))
        found = tuple(one["address"] for one in own["status"]["addresses"] if one["type"] == "InternalIP")
        return Place(name, str(netns.path_of(names.node_netns(self.lab.name, name))), found)

    def run(self, name: str, node: str, *ports: int, **options: Any) -> Place:
        """Run a pod, `namespace/name`, that listens."""
        namespace, _, own = name.rpartition("/")
        made = pods.run(self.lab.name, own, namespace=namespace or "default", node=node, **options)
        return self._enter(name, made, ports)

    def _enter(self, name: str, made: Pod, ports: tuple[int, ...]) -> Place:
        path = str(netns.path_of(pods.netns_of(self.lab.name, made)))
        place = self.pods[name] = Place(name, path, tuple(map(str, made.addresses)))
        for port in ports:
            for family in FAMILIES:
                self._servers.setdefault(name, []).append(self.listen(place, family, port))
        return place

    def listen(self, place: Place, family: int, port: int) -> socket.socket:
        """Have somebody listen, for as long as the lab stands."""
        server = self._stack.enter_context(place.open(family))
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        server.listen(4096)
        return server

    def _take_all(self, name: str) -> None:
        """Take what came to a pod's servers: a server whose queue is full lets nobody in any more."""
        for server in self._servers.get(name, ()):
            server.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()

    def remove(self, name: str) -> None:
        """Remove a pod."""
        namespace, _, own = name.rpartition("/")
        pods.remove_named(self.lab.name, own, namespace or "default")
        self._servers.pop(name, None)
        del self.pods[name]

    # Policies.

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply objects at once, as `podway apply` does with several documents."""
        text = "\n---\n".join(map(json.dumps, manifests))
        self.lab.podway("apply", "-f", "-", stdin=text)

    def policy(self, name: str = "p", namespace: str = "default", **spec: Any) -> None:
        """Apply a NetworkPolicy."""
        metadata = {"name": name, "namespace": namespace}
        self.apply({**POLICY, "metadata": metadata, "spec": {"podSelector": {}, **spec}})

    def forget_policies(self) -> None:
        """Delete all policies, and wait until all nodes know."""
        for kind in ("netpol", "cnp"):
            found = json.loads(self.lab.podway("get", kind, "-A", "-o", "json"))
            for one in found["items"]:
                meta = one["metadata"]
                where = ("-n", meta["namespace"]) if meta.get("namespace") else ()
                self.lab.podway("delete", kind, meta["name"], *where)
        eventually(lambda: not any(self.data_path(node)["rule_sets"] for node in self.lab.nodes))

    def data_path(self, node: str) -> dict[str, Any]:
        """What a node says of its data path."""
        found: dict[str, Any] = self.lab.status(node)["data_path"]
        return found

    # Connections.

    def connects(self, source: Place, target: Place, port: int, family: int) -> bool:
        """Tell whether a connection comes about."""
        with source.open(family) as client:
            try:
                client.connect((target.address(family), port))
            except (TimeoutError, ConnectionRefusedError):
                return False
        return True

    def who(self, target: Place, port: int = 80, *, among: str = "") -> set[str]:
        """Return who reaches a pod's port, in both families alike: pods, and nodes."""
        places = {**self.pods, **self.nodes}
        asked = {name: place for name, place in places.items() if place is not target}
        if among:
            asked = {name: places[name] for name in among.split()}
        with ThreadPoolExecutor() as threads:
            attempts = {
                name: [threads.submit(self.connects, place, target, port, family) for family in FAMILIES]
                for name, place in asked.items()
            }
            answers = {name: {one.result() for one in both} for name, both in attempts.items()}
        self._take_all(target.name)
        mixed = {name for name, both in answers.items() if len(both) > 1}
        assert not mixed, f"one family only: {mixed}"
        return {name for name, both in answers.items() if both == {True}}

    def reached_by(self, target: Place, expected: str, port: int = 80, *, among: str = "") -> None:
        """Wait until those reach a pod's port, and nobody else."""
        wanted = set(expected.split())

        def so() -> bool:
            found = self.who(target, port, among=among)
            assert found == wanted, f"{target.name}:{port} is reached by {sorted(found)}, not {sorted(wanted)}"
            return True

        eventually(so)

    # For who reads of a failure.

    def told(self) -> str:
        """Return what the nodes' agents and the kernel say: data paths, maps, servers, the ends of the logs."""
        parts = []
        for node in self.lab.nodes:
            try:
                parts.append(f"{node} says {json.dumps(self.data_path(node))}")
            except PodwayError as error:
                parts.append(f"{node} says nothing: {error}")
            parts += self._maps(self.nodes[node])
            parts.append("\n".join(self.lab.log(node).splitlines()[-40:]))
        parts += [f"{name} listens:\n{_listening(place)}" for name, place in self.pods.items()]
        return "\n".join(parts)

    def _maps(self, node: Place) -> list[str]:
        with netns.opened(node.path) as fd, Connection(fd) as connection:
            names = {link.index: link.name for link in links.dump(connection)}
            found = flow_programs.attached(connection, names)
            told = [f"  {one.place.hook.name} on {names[one.place.device]}: build {one.build:x}" for one in found]
            for one in found[:1]:
                with bpf.opened(one.program) as opened:
                    told.append(f"  active: {bpf.element(opened.maps['active'], 0)[::-1].hex()}")
                    for address, value in bpf.items(opened.maps["endpoints"]).items():
                        endpoint = Endpoint(*ENDPOINT.unpack(value))
                        told.append(f"  {unpack_address(address)}: {names.get(endpoint.ifindex)} {endpoint}")
                    every = RULE_SET.picker(*RuleSet._fields).iter_unpack(bpf.array(opened.maps["rule_sets"]))
                    sets = map(RuleSet._make, every)
                    told += [f"  rule set {number}: {one}" for number, one in enumerate(sets) if any(one)]
        return told


def _listening(place: Place) -> str:
    command = ["nsenter", f"--net={place.path}", "ss", "-Hltn"]
    return subprocess.run(command, capture_output=True, text=True).stdout
