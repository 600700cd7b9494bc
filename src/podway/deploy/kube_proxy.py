"""kube-proxy, which Podway replaces, and the way back; no Service is without somebody who serves it meanwhile.

kube-proxy's rules come first where both serve. So Podway serves on every node before kube-proxy ends, and its
rules are removed only then, by its own `--cleanup`; the other way round kube-proxy has written its rules
everywhere before Podway stops. Connections stay with whom they were led to: the kernel's connection tracking
knows that, whoever's rules are gone.

kube-proxy is stopped by a selector that no node fulfils, and which is taken out again: its DaemonSet stays. An
annotation of it is there from before the first step until after the last one of the way back, so that whoever does
it again after an attempt that failed begins with what may be missing.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import yaml

from podway.api.resource import GROUP
from podway.deploy.api import Api, Right, place
from podway.deploy.errands import SWEEPER, WITNESS, errand, run_errand, until_done, until_ended_of
from podway.deploy.objects import AGENT, Object, containers, server_of
from podway.deploy.preflight import Facts, Finding
from podway.deploy.rollout import Report, is_heard
from podway.errors import ClusterError, PodwayError
from podway.kernel.support import version_of

NAMESPACE, NAME = "kube-system", "kube-proxy"
"""Where kubeadm has it: the DaemonSet and its ConfigMap."""
REPLACED = f"{GROUP}/kube-proxy"
"""A label that no node has, which its pods need while Podway serves in their place; and an annotation."""
ENGINE_KERNEL = (6, 6)
"""From when on kernels have tcx, and the flow engine is used (docs/datapath.md)."""
FIND_RIGHTS = (Right("get", "apps", "daemonsets", NAMESPACE),)
"""What somebody must be allowed who asks whether kube-proxy was replaced."""
BACK_RIGHTS = (Right("patch", "apps", "daemonsets", NAMESPACE), Right("patch", GROUP, "networkconfigs"))
"""What else, beside running errands, who brings it back."""
RIGHTS = (
    *FIND_RIGHTS,
    *BACK_RIGHTS,
    Right("get", "", "configmaps", NAMESPACE),
    Right("get", GROUP, "networkconfigs"),
    Right("create", GROUP, "networkconfigs"),
    *(Right(verb, "apps", "daemonsets", "podway") for verb in ("create", "patch", "delete")),
)
"""What somebody must be allowed who replaces kube-proxy or brings it back."""
SECONDS = "60"
"""For how long a node is asked before its kubelet begins anew, with a pause."""

_SETTINGS = place(f"{GROUP}/v1", "networkconfigs", "", "default")
_DAEMONSET = place("apps/v1", "daemonsets", NAMESPACE, NAME)


T = TypeVar("T")


class _Configuration(msgspec.Struct, frozen=True):
    """What is read of a KubeProxyConfiguration."""

    mode: str = ""


class _Cluster(msgspec.Struct, frozen=True):
    server: str = ""


class _Named(msgspec.Struct, frozen=True):
    cluster: _Cluster = _Cluster()


class _Kubeconfig(msgspec.Struct, frozen=True):
    """What is read of a kubeconfig."""

    clusters: tuple[_Named, ...] = ()


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of kube-proxy, and of Podway's own settings for Services, as the API has them."""

    daemonset: Object | None = None
    config: Object | None = None
    """The ConfigMap of kubeadm."""
    settings: Object | None = None
    """The NetworkConfig."""

    @property
    def replaced(self) -> bool:
        """Whether Podway serves in its place, or somebody has begun with that, or not ended the way back."""
        if self.daemonset is None:
            return False
        return self.stopped or REPLACED in (self.daemonset["metadata"].get("annotations") or {})

    @property
    def stopped(self) -> bool:
        """Whether it has no pods, since no node fulfils its selector."""
        return self.daemonset is not None and REPLACED in _selector(self.daemonset)

    @property
    def mode(self) -> str:
        """In which mode it serves, as its configuration says; empty if that is unknown or its own choice."""
        return self._document("config.conf", _Configuration).mode

    @property
    def server(self) -> tuple[str, str] | None:
        """Host and port at which it asks the API server without the Service, None if that is unknown."""
        clusters = self._document("kubeconfig.conf", _Kubeconfig).clusters
        try:
            url = urlsplit(clusters[0].cluster.server if clusters else "")
            return (url.hostname, str(url.port or 443)) if url.hostname else None
        except ValueError:
            return None

    def _document(self, key: str, kind: type[T]) -> T:
        """Return what its configuration says under a key; where it cannot be read, as if nothing were said."""
        data = (self.config or {}).get("data") or {}
        try:
            return msgspec.convert(yaml.safe_load(data.get(key, "")), kind)
        except (yaml.YAMLError, msgspec.ValidationError):
            return kind()


UNKNOWN = Proxy()
"""Where nobody asked."""


async def find(api: Api) -> Proxy:
    """Ask for its DaemonSet alone: whether it was replaced. Raises StoreUnavailable and StoreForbidden."""
    return Proxy(daemonset=await api.find(_DAEMONSET))


async def look(api: Api) -> Proxy:
    """Ask what there is of kube-proxy. Raises StoreUnavailable and StoreForbidden."""
    return msgspec.structs.replace(
        await find(api),
        config=await api.find(place("v1", "configmaps", NAMESPACE, NAME)),
        settings=await api.find(_SETTINGS),
    )


def _selector(daemonset: Object) -> dict[str, str]:
    return dict(daemonset["spec"]["template"]["spec"].get("nodeSelector") or {})


def server_for(facts: Facts, proxy: Proxy) -> tuple[str, str] | None:
    """Return where agents will ask the API server: where they were told, else where kube-proxy does."""
    return server_of(facts.agent) or proxy.server


def judge(facts: Facts, proxy: Proxy) -> tuple[Finding, ...]:
    """Return what is to be said before kube-proxy is replaced. Pure."""
    return (*_proxy(proxy), *_server(facts, proxy), *_ranges(facts, proxy), *_kernels(facts))


def _proxy(proxy: Proxy) -> Iterator[Finding]:
    if proxy.daemonset is None:
        hint = (
            "where the nodes' own software or a cloud runs it, have that leave it out (k3s server "
            "--disable-kube-proxy), then: podway set config dataPath=ebpf services=all --wait"
        )
        yield Finding("fails", f"there is no DaemonSet {NAMESPACE}/{NAME} to stop, as kubeadm makes it", hint)
    elif proxy.mode == "ipvs":
        hint = f"have it go over to nftables first: mode in ConfigMap {NAMESPACE}/{NAME}, then start its pods anew"
        yield Finding("fails", "kube-proxy is in mode ipvs: connections that IPVS leads would end with it", hint)
    elif proxy.stopped:
        yield Finding("holds", "kube-proxy is stopped already")
    else:
        yield Finding("holds", f"kube-proxy can be stopped, in mode {proxy.mode or 'of its own choice'}")


def _server(facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    server = server_for(facts, proxy)
    if server is None:
        hint = (
            f"tell them: kubectl -n podway set env daemonset/{AGENT} KUBERNETES_SERVICE_HOST=ADDRESS "
            "KUBERNETES_SERVICE_PORT=PORT"
        )
        what = (
            "nobody says where the API server is without Services, so no agent could start on a node that booted"
        )
        yield Finding("fails", what, hint)
    else:
        yield Finding("holds", f"agents ask the API server at {server[0]} port {server[1]}")


def _ranges(facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    if not service_cidrs(facts, proxy):
        hint = "set what the API server has as --service-cluster-ip-range: podway set config serviceCidrs=CIDR"
        yield Finding("fails", "the ranges of Services' addresses are unknown", hint)


def service_cidrs(facts: Facts, proxy: Proxy) -> tuple[str, ...]:
    """Return the ranges of Services' addresses: those that are set, else those that the API server tells."""
    there = (proxy.settings or {}).get("spec", {}).get("serviceCidrs") or ()
    # Where there are no ServiceCIDRs, one address of the range is all that is known.
    told = [text for text in facts.services if (network := ip_network(text)).prefixlen < network.max_prefixlen]
    return tuple(there or told)


def _kernels(facts: Facts) -> Iterator[Finding]:
    for node in facts.nodes:
        info = node.get("status", {}).get("nodeInfo", {})
        release = str(info.get("kernelVersion", ""))
        numbers = version_of(release)
        if info.get("operatingSystem", "linux") == "linux" and numbers and numbers < ENGINE_KERNEL:
            what = (
                f"Node {node['metadata']['name']}: its kernel {release} cannot run the flow engine, which serves"
            )
            yield Finding("fails", what, "use kernel 6.6 or newer there, or keep kube-proxy")


async def replace(api: Api, facts: Facts, proxy: Proxy, agent: Object, report: Report, patience: float) -> None:
    """Have Podway serve all Services, then stop kube-proxy, then remove its rules.

    `agent` is the agents' DaemonSet. Raises ClusterError that names the nodes at which it stopped; whoever served
    there goes on, and it can be done again.
    """
    daemonset = proxy.daemonset
    assert daemonset is not None, "judged before"
    await api.patch(_DAEMONSET, _annotated("podway cluster install --kube-proxy keep brings it back"))
    spec = {"dataPath": "ebpf", "services": "all", "serviceCidrs": list(service_cidrs(facts, proxy))}
    await _set(api, spec)
    report("NetworkConfig: dataPath=ebpf services=all; network policies are in force from now on")
    told, meanwhile = "Podway serves Services", "kube-proxy " + ("stays stopped" if proxy.stopped else "goes on")
    with _stopping_with(meanwhile, _LOOK_AT):
        await run_errand(api, podways_witness(agent), report, told, patience=patience)
    await api.patch(_DAEMONSET, _selecting("true"))
    report(f"DaemonSet {NAMESPACE}/{NAME} is stopped: no node has the label {REPLACED}, which it asks for now")
    meanwhile = "Podway serves, and kube-proxy's rules stay, which nobody changes any more"
    hint = "do it again when it can be; or bring kube-proxy back: podway cluster install --kube-proxy keep"
    with _stopping_with(meanwhile, hint):
        await until_ended_of(api, daemonset, patience)
        await run_errand(api, sweeper(daemonset, agent), report, "kube-proxy's rules are gone", patience=patience)
    for node in await api.list(place("v1", "nodes")):
        if not is_heard(node):
            name = node["metadata"]["name"]
            report(f"{name}: it is not heard: once it is back, do this again, or kube-proxy --cleanup there")


async def bring_back(
    api: Api,
    proxy: Proxy,
    agent: Object,
    report: Report,
    *,
    patience: float,
    image: str = "",
    without: Collection[str] | None = None,
) -> None:
    """Start kube-proxy again, wait until it serves on every node, then have Podway serve pods alone.

    Nodes are asked by `image`, or the agents', and `without` is as `run_errand` has it. The flow engine goes on to
    lead the connections of pods. Raises ClusterError that names the nodes where kube-proxy does not serve; Podway
    goes on to serve there, and it can be done again.
    """
    daemonset = proxy.daemonset
    assert daemonset is not None, "it was replaced, so it is there"
    await api.patch(_DAEMONSET, _selecting(None))
    with _stopping_with("Podway goes on", _LOOK_AT):
        await until_done(api, daemonset, report, "kube-proxy runs", patience=patience, without=without)
        asked = proxys_witness(agent, image)
        await run_errand(api, asked, report, "kube-proxy serves Services", patience=patience, without=without)
    # Where there are no settings any more Podway serves nobody.
    await api.patch(_SETTINGS, {"spec": {"services": "pods"}})
    await api.patch(_DAEMONSET, _annotated(None))
    report("NetworkConfig: services=pods; kube-proxy serves nodes' own processes and clients outside")


def _annotated(told: str | None) -> dict[str, Any]:
    return {"metadata": {"annotations": {REPLACED: told}}}


def _selecting(value: str | None) -> dict[str, Any]:
    return {"spec": {"template": {"spec": {"nodeSelector": {REPLACED: value}}}}}


async def _set(api: Api, spec: dict[str, Any]) -> None:
    """Set fields of the cluster's settings, which are made where there are none; the others stay."""
    if await api.find(_SETTINGS) is not None:
        await api.patch(_SETTINGS, {"spec": spec})
        return
    made = {"apiVersion": f"{GROUP}/v1", "kind": "NetworkConfig", "metadata": {"name": "default"}, "spec": spec}
    await api.apply(made, force=False)


_LOOK_AT = "see podway status and podway doctor, then do it again"


@contextmanager
def _stopping_with(meanwhile: str, hint: str) -> Iterator[None]:
    """Say of whatever ends this early what there is `meanwhile`."""
    try:
        yield
    except PodwayError as error:
        raise ClusterError(f"{meanwhile}: {error.message}", hint=hint) from error


def podways_witness(agent: Object) -> dict[str, Any]:
    """Return the errand that is done on a node when its agent serves Services to all."""
    run = {"name": "run", "mountPath": "/run/podway", "readOnly": True}
    volumes = [one for one in agent["spec"]["template"]["spec"]["volumes"] if one["name"] == "run"]
    command = ["python3", "-m", "podway.channel.alive", f"{run['mountPath']}/agent.sock", "--serves", SECONDS]
    work = {"name": "ask", "command": command, "securityContext": _with(), "volumeMounts": [run]}
    return errand(WITNESS, agent, work=[work], volumes=volumes)


def proxys_witness(agent: Object, image: str = "") -> dict[str, Any]:
    """Return the errand that is done on a node when kube-proxy has written its rules there."""
    return errand(WITNESS, agent, image=image, work=[_looking("serves")])


def sweeper(daemonset: Object, agent: Object) -> dict[str, Any]:
    """Return the errand that removes kube-proxy's rules, by its own image and with the rights that it had.

    Nothing is removed where a kube-proxy answers.
    """
    (container,) = (one for one in containers(daemonset) if one["name"] == NAME)
    volumes = [one for one in daemonset["spec"]["template"]["spec"].get("volumes", ()) if "hostPath" in one]
    names = {one["name"] for one in volumes}
    clean = {
        "name": "clean",
        "image": container["image"],
        "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
        "command": [(container.get("command") or [NAME])[0], "--cleanup"],
        "securityContext": container.get("securityContext", {}),
        "volumeMounts": [one for one in container.get("volumeMounts", ()) if one["name"] in names],
    }
    return errand(SWEEPER, agent, work=[_looking("stopped"), clean, _looking("gone")], volumes=volumes)


def _looking(wanted: str) -> dict[str, Any]:
    command = ["python3", "-m", "podway.health.sources.kube_proxy", wanted, SECONDS]
    return {"name": wanted, "command": command, "securityContext": _with("NET_ADMIN")}


def _with(*capabilities: str) -> dict[str, Any]:
    """Return the rights of a container that has none but these."""
    rights = {"drop": ["ALL"], "add": [*capabilities]}
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": rights}
