"""Building a lab that is a whole Kubernetes, with Podway installed as `podway cluster install` does.

    podway-<lab>-fabric       podway-<lab>-control                       podway-<lab>-node1 …
      fabric0 (bridge)
        ├── control ─────────── eth0: etcd, kube-apiserver,
        │                       controller-manager, scheduler
        └── port1 … ─────────────────────────────────────────────────── eth0: containerd, kubelet, kube-proxy, pods

The daemons of a node live in namespaces of its own, not only for the network: they find their files where they do
on any machine (node.sh). Their agent's sockets are where those of every lab's agents are.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import yaml

from podway.api.addresses import Family, Network
from podway.errors import InvalidArgument, LabError
from podway.kernel.support import require_all
from podway.lab import cluster, names, processes, state, topology
from podway.lab.agents import Report
from podway.lab.fabric import plan_fabric
from podway.lab.facts import lab_access, lab_sockets
from podway.lab.kubernetes.control import SERVICES, ControlPlane, tail
from podway.lab.kubernetes.images import make_images
from podway.lab.kubernetes.machine import Machine
from podway.lab.kubernetes.pki import Authority
from podway.lab.kubernetes.programs import Programs
from podway.lab.paths import admin_config, control_dir, data_dir
from podway.lab.state import LabNode, LabState
from podway.plan.objects import Route

READY_SECONDS = 180.0
PAUSE = 0.2


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole Kubernetes is built of: programs, Podway's image, and its manifest if not the usual one."""

    programs: Programs
    image: Path
    manifest: Path | None
    pools: tuple[Network, ...]
    proxy: str = "nftables"
    """kube-proxy's mode; empty: there is none."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The cluster's: of pods, Services and nodes alike. The first is that of a Service that asks for none."""
        return tuple(map(Family.of, self.pools))


def up(lab: str, *, nodes: int, settings: Settings, report: Report) -> LabState:
    """Build a Kubernetes of so many nodes and return the lab's state; when anything fails, it is removed again.

    All nodes are Ready then. Raises LabError, InvalidArgument, KernelError or
    UnsupportedSystem.
    """
    names.require_lab_name(lab)
    require_all()
    _require_usable(settings)
    fabric = plan_fabric(settings.pools, nodes=nodes, racks=1, families=settings.families)
    built = LabState(lab, tuple(map(str, fabric.estate)), kubernetes=str(settings.programs.directory))
    cluster.make_directory(lab)
    try:
        with state.locked(lab):
            state.save(built)
            topology.create_fabric(lab, fabric)
            for index in range(1, nodes + 1):
                built = cluster.make_node(built, f"node{index}", LabNode(index))
            _Builder(built, settings, report).build()
    except BaseException:
        cluster.down(lab)
        raise
    return built


def _require_usable(settings: Settings) -> None:
    for pool in settings.pools:
        services = SERVICES[Family.of(pool)]
        if pool.overlaps(services):
            raise InvalidArgument(f"--pool {pool}: overlaps {services}, where Services have their addresses")
    if len(set(settings.families)) < len(settings.pools):
        raise InvalidArgument(
            "--pool: Podway makes one pool of each family when it is installed", hint="add others by kubectl"
        )
    if not settings.image.exists():
        raise LabError(
            f"Podway's image is not in {settings.image}", hint="build it: ./dev image; or name it: --image"
        )
    if settings.manifest is not None and not settings.manifest.exists():
        raise LabError(
            f"Podway's manifest is not in {settings.manifest}", hint="name it: --manifest deploy/podway.yaml"
        )


def control_plane(lab: str, current: LabState) -> ControlPlane:
    """Return the control plane of a lab. Raises LabError if it has none."""
    if not current.kubernetes:
        raise LabError(
            f"lab {lab} is no Kubernetes",
            hint=f"remove it and build one: podway lab up --kubernetes{names.option(lab)}",
        )
    return ControlPlane(
        names.control_netns(lab),
        names.control_mark(lab),
        tuple(interface.ip for interface in current.fabric.control),
        control_dir(lab),
        admin_config(lab),
        Programs(Path(current.kubernetes), Path()),
    )


def machine(current: LabState, node: str) -> Machine:
    """Return a node of a lab that is a Kubernetes."""
    lab = current.name
    return Machine(
        node,
        names.node_netns(lab, node),
        f"{lab}/{node}",
        tuple(interface.ip for interface in current.addresses(node)),
        data_dir(lab) / node,
        state.node_dir(lab, node),
    )


def execute_on_node(lab: str, node: str, command: Sequence[str]) -> int:
    """Run a command on a node, in all its namespaces, on our own terminal; return its exit status.

    Raises LabError.
    """
    current = state.load(lab)
    current.node(node)
    return machine(current, node).enter(command)


def kubectl(lab: str, arguments: Sequence[str]) -> int:
    """Run kubectl on our own terminal, as an administrator; return its exit status. Raises LabError."""
    control = control_plane(lab, state.load(lab))
    command = [control.programs.path("kubectl"), f"--kubeconfig={control.config}", *arguments]
    return processes.run(command, namespace=control.namespace)


class _Builder:
    """Builds what is not there yet of a lab whose nodes are wired."""

    def __init__(self, current: LabState, settings: Settings, report: Report) -> None:
        self._lab, self._state, self._settings, self._report = current.name, current, settings, report
        self._begun = time.monotonic()
        control = control_plane(self._lab, current)
        self._control = msgspec.structs.replace(control, programs=settings.programs)
        self._machines = [machine(current, node) for node in current.nodes]

    def build(self) -> None:
        self._wire_control()
        authority = Authority(self._control.directory / "pki", self._control.url)
        archives = [*make_images(self._control.directory), self._settings.image.resolve()]
        with ThreadPoolExecutor(1 + len(self._machines)) as threads:
            control = threads.submit(self._control.start, authority)
            booted = [threads.submit(self._boot, each, archives) for each in self._machines]
            control.result()
            self._tell("the API server is ready")
            for one in booted:
                one.result()
        for each in self._machines:
            each.start_kubelet(self._settings.programs, authority)
        if self._settings.proxy:
            config = authority.issue_config("kube-proxy", "system:kube-proxy")
            pods = ",".join(map(str, self._settings.pools))
            for each in self._machines:
                each.start_proxy(self._settings.programs, config, self._settings.proxy, pods)
        self._until("registered", lambda nodes: len(nodes) == len(self._machines))
        self._tell(f"{len(self._machines)} kubelets have registered their nodes")
        self._install(self._settings.manifest)

    def _wire_control(self) -> None:
        lab, control = self._lab, self._control
        control.directory.mkdir(parents=True, exist_ok=True)
        topology.create_control(lab, self._state.fabric)
        # An address of a Service needs a way, too, before kube-proxy gives it another.
        ways = [
            Route(Family.of(interface).default_route, device=topology.UPLINK, gateway=interface.ip)
            for interface in self._state.fabric.control
        ]
        for each in self._machines:
            topology.route(each.namespace, ways)
        # An API server asks pods, too: as proxy, as webhooks. It stands on no node, so it goes by way of one.
        addresses = self._machines[0].addresses
        to_pods = [
            Route(pool, device=topology.UPLINK, gateway=address)
            for pool, address in zip(self._settings.pools, addresses, strict=True)
        ]
        topology.route(self._control.namespace, to_pods)

    def _boot(self, node: Machine, archives: Sequence[Path]) -> None:
        node.boot(self._settings.programs)
        node.start_runtime()
        node.import_images(archives)

    def _install(self, manifest: Path | None) -> None:
        if manifest is None:
            asyncio.run(self._install_by_command())
        else:
            self._control.kubectl("apply", "-f", "-", text=with_pools(manifest.read_text(), self._settings.pools))
            self._tell(f"{manifest.name} is applied")
        self._until("Ready", lambda nodes: all(map(is_ready, nodes)))
        self._tell("all nodes are Ready")

    async def _install_by_command(self) -> None:
        from podway.deploy import install
        from podway.deploy.api import Api
        from podway.store.kubernetes.client import Client

        api = Api(Client(lab_access(self._lab), lab_sockets(self._lab)))
        settings = install.Settings(pools=tuple(map(str, self._settings.pools)), patience=READY_SECONDS)
        try:
            await install.install(api, settings, self._tell, lambda finding: None)
        finally:
            await api.close()

    def _until(self, what: str, holds: Callable[[Sequence[Mapping[str, Any]]], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not holds(nodes := self._nodes()):
            if time.monotonic() > deadline:
                raise LabError(f"not all nodes are {what} after {READY_SECONDS:g} s:\n{self._explain(nodes)}")
            time.sleep(PAUSE)

    def _nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._control.kubectl("get", "nodes", "-o", "json").stdout)[
            "items"
        ]
        return found

    def _explain(self, nodes: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(_explanations(nodes, self._machines))

    def _tell(self, what: str) -> None:
        self._report(f"{what} after {time.monotonic() - self._begun:.1f} s")


def with_pools(manifest: str, pools: Sequence[Network]) -> str:
    """Return Podway's manifest with other pools than those of its ConfigMap."""
    documents = [document for document in yaml.safe_load_all(manifest) if document]
    for document in documents:
        if document["kind"] == "ConfigMap" and "pools" in document["data"]:
            document["data"]["pools"] = ",".join(map(str, pools))
    return yaml.safe_dump_all(documents)


def is_ready(node: Mapping[str, Any]) -> bool:
    """Tell whether a Node object says that its kubelet runs pods."""
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", ()))


def _explanations(nodes: Sequence[Mapping[str, Any]], machines: Sequence[Machine]) -> Iterator[str]:
    by_name = {node["metadata"]["name"]: node for node in nodes}
    for each in machines:
        if each.name not in by_name:
            yield f"  {each.name}: not registered; its kubelet's log ends:\n{tail(each.log('kubelet'))}"
        elif not is_ready(by_name[each.name]):
            conditions = by_name[each.name]["status"].get("conditions", ())
            told = next((one["message"] for one in conditions if one["type"] == "Ready"), "it says nothing")
            yield f"  {each.name}: {told}"
