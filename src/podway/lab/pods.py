"""Pods of a lab: what a kubelet and its container runtime do, as far as the network sees it.

A pod's container id is a digest of its object's uid, so nothing about a running pod needs to be remembered
that the store and the kernel do not know.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import ip_interface
from pathlib import Path

import msgspec

import podway.cni
from podway.agent.options import AgentOptions
from podway.api.kinds.pod import Container, ContainerPort, Pod, PodAddress, PodSpec, PodStatus
from podway.api.meta import Metadata
from podway.api.validate import validate
from podway.cni.conflist import FILE_NAME
from podway.errors import AlreadyExists, LabError, NotFound, PodwayError
from podway.kernel import netns
from podway.lab import chain as chains
from podway.lab import facts, names, processes, resolving, serving, state, topology
from podway.lab.chain import PluginChain
from podway.lab.outside import NAME as OUTSIDE
from podway.lab.paths import lab_dir, lab_store
from podway.lab.state import LabState, node_dir
from podway.store.base import Store
from podway.suggestion import did_you_mean

SERVE = "lab.podway.io/serve"
"""Pod annotation: the port of the pod's little server (podway.lab.echo)."""
DNS = "lab.podway.io/dns"
"""Pod annotation: the pod is the lab's DNS server (podway.lab.dns)."""
WANTED = "lab.podway.io/addresses"
"""Pod annotation: the addresses that were asked for, comma-separated."""

IFNAME = "eth0"
SHIM = Path(podway.cni.__file__).parent / "bin"
STANDARD_PLUGINS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
"""Where plugins are usually installed, by hand and by Debian."""

GRACE_SECONDS = 1.0
"""How long a pod's processes may take to end; a kubelet allows 30, but here nothing needs them."""


def run(
    lab: str,
    name: str,
    *,
    namespace: str = "default",
    node: str = "",
    labels: Mapping[str, str] | None = None,
    addresses: Sequence[str] = (),
    serve: int | None = None,
    ports: Sequence[ContainerPort] = (),
    resolves: bool = False,
) -> Pod:
    """Run a pod, on the node with the fewest unless `node` names one; return it with its addresses.

    `serve` is the port of a little server in it, `ports` are those that policies may call by names; with
    `resolves` it is the lab's DNS.
    When anything fails, what was made is removed again. Raises LabError with the plugin's words, InvalidObject,
    StoreError or KernelError.
    """
    annotations = {SERVE: str(serve)} if serve is not None else {}
    if resolves:
        annotations[DNS] = "true"
    if addresses:
        annotations[WANTED] = ",".join(addresses)
    with state.locked(lab, shared=True):
        current = state.load(lab)
        current.require_plain()
        pod = Pod(
            metadata=Metadata(name=name, namespace=namespace, labels=dict(labels or {}), annotations=annotations),
            spec=PodSpec(node_name=_choose_node(current, node), containers=_containers(ports)),
        )
        validate(pod)
        try:
            created = facts.ask(lab, lambda store: _create(store, pod))
        except AlreadyExists as error:
            raise LabError(
                f"lab {lab}: there is a pod {namespace}/{name} already",
                hint=f"remove it: podway lab rm {name} -n {namespace}",
            ) from error
        try:
            return start(current, created)
        except BaseException:
            facts.ask(lab, lambda store: store.delete(Pod, name, namespace=namespace))
            raise


def start(current: LabState, pod: Pod) -> Pod:
    """Make a pod's sandbox and attach it; return the pod with its new status.

    When anything fails, what was made is removed again. Raises what `run` raises, but for InvalidObject.
    """
    lab, namespace = current.name, netns_of(current.name, pod)
    if netns.path_of(namespace).exists():
        # Somebody deleted the Pod of this name and not what ran: the agent frees its lease when the link is gone.
        _members(lab, pod).end(grace=GRACE_SECONDS)
        netns.delete(namespace)
    with ExitStack() as undo:
        path = topology.create_pod(namespace)
        undo.callback(netns.delete, namespace)
        chain, container = _chain(current, pod), _container(pod, path)
        result = chain.add(container)
        undo.callback(chain.delete, container)
        if SERVE in pod.metadata.annotations or is_dns(pod):
            undo.callback(_members(lab, pod).end)
            _serve(lab, pod)
        addresses = tuple(str(ip_interface(entry["address"]).ip) for entry in result.get("ips", ()))
        status = PodStatus(
            phase="Running",
            pod_ip=next(iter(addresses), ""),
            pod_ips=tuple(PodAddress(ip=address) for address in addresses),
        )
        running = msgspec.structs.replace(pod, status=status)
        stored = facts.ask(lab, lambda store: store.update_status(running))
        undo.pop_all()
    return stored


def restart(current: LabState, node: str) -> None:
    """Start those pods of a node anew that went with its power, as a kubelet does; they get new addresses.

    A pod that cannot start stays Pending. Raises LabError that names those.
    """
    lab = current.name
    found = facts.ask(lab, lambda store: facts.pods_on(store, node))
    gone = [pod for pod in found if not netns.path_of(netns_of(lab, pod)).exists()]
    lost = facts.ask(lab, lambda store: facts.mark_pending(store, gone))
    failures = []
    for pod in lost:
        try:
            start(current, pod)
        except PodwayError as error:
            failures.append(f"{pod.metadata.namespace}/{pod.metadata.name}: {error.message}")
    if failures:
        raise LabError(f"node {node} runs, but not all of its pods:\n  " + "\n  ".join(failures))


def remove(current: LabState, pod: Pod) -> None:
    """End a pod's processes, detach it, and remove its namespace and its object."""
    _tear_down(current, pod)
    meta = pod.metadata
    facts.ask(current.name, lambda store: store.delete(Pod, meta.name, namespace=meta.namespace))


def remove_all(lab: str, pods: Sequence[Pod], *, report: Callable[[Pod], None]) -> None:
    """Remove pods; `report` is told of each that is gone."""
    with state.locked(lab, shared=True):
        current = state.load(lab)
        for pod in pods:
            remove(current, pod)
            report(pod)


def remove_named(lab: str, name: str, namespace: str) -> None:
    """Remove a pod by name. Raises LabError if there is none."""
    with state.locked(lab, shared=True):
        remove(state.load(lab), find(lab, name, namespace))


def find(lab: str, name: str, namespace: str) -> Pod:
    """Return a pod. Raises LabError if there is none of this name."""
    try:
        return facts.ask(lab, lambda store: store.get(Pod, name, namespace=namespace))
    except NotFound:
        every = facts.ask(lab, lambda store: store.list(Pod)).items
        hint = _other_host(state.load(lab), name) or _others(
            f"{namespace}/{name}", [f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in every]
        )
        raise LabError(f"lab {lab}: no pod {namespace}/{name}", hint=hint) from None


def _other_host(current: LabState, name: str) -> str:
    """Return how to run a command on what is no pod, but has this name; empty if nothing has."""
    if name == OUTSIDE and current.outside:
        return "that is the host outside: podway lab outside -- COMMAND"
    if name in current.nodes:
        return f"that is a node: podway lab node {name} -- COMMAND"
    return ""


def _others(wanted: str, there: Sequence[str]) -> str:
    return did_you_mean(wanted, there, otherwise=f"there are {', '.join(there) or 'none'}", cutoff=0.75)


def netns_of(lab: str, pod: Pod) -> str:
    """Return the name of a pod's network namespace."""
    return names.pod_netns(lab, pod.metadata.namespace, pod.metadata.name)


def execute(lab: str, name: str, namespace: str, command: Sequence[str]) -> int:
    """Run a command in a pod's network namespace, with its DNS; return its exit status. Raises LabError."""
    current, pod = state.load(lab), find(lab, name, namespace)
    if not current.node(pod.spec.node_name).running:
        raise LabError(f"pod {namespace}/{name}: its node {pod.spec.node_name} is off")
    return processes.run(command, namespace=netns_of(lab, pod), files=resolving.files(lab, namespace))


def _containers(ports: Sequence[ContainerPort]) -> tuple[Container, ...]:
    return (Container(name="main", ports=tuple(ports)),) if ports else ()


async def _create(store: Store, pod: Pod) -> Pod:
    await facts.ensure_namespace(store, pod.metadata.namespace)
    return await store.create(pod)


def _choose_node(current: LabState, wanted: str) -> str:
    if wanted:
        if not current.node(wanted).running:
            raise LabError(f"lab {current.name}: node {wanted} is off", hint=f"podway lab node start {wanted}")
        return wanted
    if not current.running:
        raise LabError(f"lab {current.name}: no node is on", hint="podway lab node start NODE")
    every = facts.ask(current.name, lambda store: store.list(Pod)).items
    placed = [pod.spec.node_name for pod in every]
    return min(current.running, key=placed.count)


def network_list(lab: str) -> Path:
    """Return where the lab's network configuration list is; edit it to chain further plugins."""
    return lab_dir(lab) / FILE_NAME


def _chain(current: LabState, pod: Pod) -> PluginChain:
    lab, node = current.name, pod.spec.node_name
    agent = AgentOptions(node=node, store=lab_store(lab), run_dir=node_dir(lab, node))
    return PluginChain(
        network_list(lab),
        node=names.node_netns(lab, node),
        search=(SHIM, *STANDARD_PLUGINS),
        cache=lab_dir(lab) / "results",
        environment={
            "PATH": os.environ.get("PATH", os.defpath),
            "PODWAY_CNI_SOCKET": str(agent.cni_socket),
            "PODWAY_CNI_SPOOL": str(agent.cni_spool),
        },
    )


def _container(pod: Pod, path: str) -> chains.Container:
    meta = pod.metadata
    identity = hashlib.sha256(meta.uid.encode()).hexdigest()
    wanted = meta.annotations.get(WANTED, "")
    return chains.Container(
        id=identity,
        netns=path,
        ifname=IFNAME,
        args={
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": meta.namespace,
            "K8S_POD_NAME": meta.name,
            "K8S_POD_INFRA_CONTAINER_ID": identity,
            "K8S_POD_UID": meta.uid,
        },
        capabilities={"ips": wanted.split(",")} if wanted else {},
    )


def is_dns(pod: Pod) -> bool:
    """Tell whether a pod is the lab's DNS server."""
    return DNS in pod.metadata.annotations


def _serve(lab: str, pod: Pod) -> None:
    """Start the pod's little servers and wait until they listen."""
    meta = pod.metadata
    namespace, mark = netns_of(lab, pod), f"{lab}/{pod.spec.node_name}"
    log = node_dir(lab, pod.spec.node_name) / f"{meta.namespace}.{meta.name}.log"
    if port := meta.annotations.get(SERVE):
        greeting = f"I am pod {meta.namespace}/{meta.name} on {pod.spec.node_name}"
        serving.serve(int(port), greeting, namespace=namespace, mark=mark, log=log)
    if is_dns(pod):
        serving.serve_names(lab_store(lab), namespace=namespace, mark=mark, log=log)


def _tear_down(current: LabState, pod: Pod) -> None:
    _members(current.name, pod).end(grace=GRACE_SECONDS)
    namespace = netns_of(current.name, pod)
    # The leases of a node whose power was cut went with its kernel, and no plugin can run there.
    if current.node(pod.spec.node_name).running:
        path = netns.path_of(namespace)
        _chain(current, pod).delete(_container(pod, str(path) if path.exists() else ""))
    netns.delete(namespace)


def _members(lab: str, pod: Pod) -> processes.Members:
    return processes.Members([netns_of(lab, pod)], marked=lambda _: False)
