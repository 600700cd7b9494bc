"""Whether Podway can be the network of a cluster: pure judgements of what an API server tells; and the asking.

Nothing is changed, and no node is entered: kernels are judged by what kubelets say of them.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Literal, TypeAlias

import msgspec

from podway.api.addresses import Network, host_network
from podway.api.crd import VERSION, definition, own_kinds
from podway.api.resource import GROUP
from podway.deploy.api import Api, Right, place, resource_of
from podway.deploy.objects import NAMESPACE, POOLS, Object, subject
from podway.errors import UnsupportedSystem
from podway.kernel.support import require_kernel

MINIMUM = (1, 32)
"""The oldest Kubernetes: since then the token of a pod tells its node, by which agents' rights are judged."""
ARCHITECTURES = {"amd64", "arm64"}
COMMON_NAME = 64
"""Characters of a certificate's common name (RFC 5280, ub-common-name), which is the node's name."""
MANAGED_BY = "app.kubernetes.io/managed-by"

OTHERS: Mapping[str, tuple[str, ...]] = {
    "Antrea": ("antrea-agent", "crd.antrea.io", "antrea"),
    "Calico": ("calico-node", "crd.projectcalico.org", "projectcalico.org/", "CalicoIsUp"),
    "Canal": ("canal",),
    "Cilium": ("cilium", "cilium.io", "io.cilium.", "network.cilium.io/", "CiliumIsUp"),
    "Flannel": ("kube-flannel-ds", "kube-flannel", "flannel.alpha.coreos.com/", "FlannelIsUp"),
    "kindnet": ("kindnet",),
    "Kube-OVN": ("kube-ovn-cni", "kubeovn.io", "ovn.kubernetes.io/"),
    "kube-router": ("kube-router",),
    "OVN-Kubernetes": ("ovnkube-node", "k8s.ovn.org"),
    "Weave Net": ("weave-net", "WeaveIsUp"),
    "the Amazon VPC plugin": ("aws-node", "crd.k8s.amazonaws.com"),
    "the Azure plugin": ("azure-cni", "azure-cns"),
}
"""What other plugins are known by: a DaemonSet, the group of their definitions, what stands on their Nodes."""

Level: TypeAlias = Literal["fails", "warns", "holds"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: whether Podway can be there beside it, and what to do if not."""

    level: Level
    what: str
    hint: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a cluster before Podway comes, or is changed. Objects are as the API has them."""

    version: str
    nodes: Sequence[Object] = ()
    daemonsets: Sequence[Object] = ()
    definitions: Sequence[Object] = ()
    services: tuple[str, ...] = ()
    """The ranges of Services; those of which one address alone is known as /32 or /128."""
    pools: Sequence[Object] = ()
    configured: tuple[str, ...] = ()
    """The networks that the ConfigMap has, if Podway is installed."""
    agent: Object | None = None
    controller: Object | None = None
    denied: tuple[Right, ...] = ()


async def gather(api: Api, rights: Sequence[Right]) -> Facts:
    """Ask an API server for the facts. Raises StoreUnavailable and StoreForbidden."""
    version = await api.find("/version") or {}
    denied = await api.denied(rights)

    async def listed(group: str, api_version: str, resource: str) -> list[dict[str, Any]]:
        # What may not be read is told as a denied right, and not looked at.
        return [] if Right("list", group, resource) in denied else await api.list(place(api_version, resource))

    async def found(
        group: str, api_version: str, resource: str, namespace: str, name: str
    ) -> dict[str, Any] | None:
        if any(one.verb == "get" and (one.group, one.resource) == (group, resource) for one in denied):
            return None
        return await api.find(place(api_version, resource, namespace, name))

    nodes, daemonsets, definitions, ranges, pools = await asyncio.gather(
        listed("", "v1", "nodes"),
        listed("apps", "apps/v1", "daemonsets"),
        listed("apiextensions.k8s.io", "apiextensions.k8s.io/v1", "customresourcedefinitions"),
        listed("networking.k8s.io", "networking.k8s.io/v1", "servicecidrs"),
        listed(GROUP, f"{GROUP}/v1", "ippools"),
    )
    agent, controller, config, service = await asyncio.gather(
        found("apps", "apps/v1", "daemonsets", NAMESPACE, "podway-agent"),
        found("apps", "apps/v1", "deployments", NAMESPACE, "podway-controller"),
        found("", "v1", "configmaps", NAMESPACE, "podway"),
        found("", "v1", "services", "default", "kubernetes"),
    )
    addresses = (service or {}).get("spec", {}).get("clusterIPs", ())
    services = tuple(cidr for one in ranges for cidr in one.get("spec", {}).get("cidrs", ()))
    told = (config or {}).get("data", {}).get(POOLS, "")
    return Facts(
        version=version.get("gitVersion", ""),
        nodes=nodes,
        daemonsets=daemonsets,
        definitions=definitions,
        services=services or tuple(str(host_network(ip_address(one))) for one in addresses),
        pools=[one for one in pools if one["spec"].get("use", "pods") == "pods"],
        configured=tuple(part.strip() for part in told.split(",") if part.strip()),
        agent=agent,
        controller=controller,
        denied=denied,
    )


def rights(made: Iterable[Object], verbs: Sequence[str]) -> tuple[Right, ...]:
    """Return what somebody must be allowed who does this with these objects, and what they look at.

    Who makes roles must have what the roles allow, or the right to escalate (the RBAC page of Kubernetes).
    """
    needed = set(_READ)
    for obj in made:
        group, resource, namespace = resource_of(obj)
        needed |= {Right(verb, group, resource, namespace) for verb in verbs}
        if obj["kind"] in {"Role", "ClusterRole"} and "patch" in verbs:
            needed |= set(_granted(obj))
    return tuple(sorted(needed))


_READ = (
    Right("list", "", "nodes"),
    Right("list", "", "pods"),
    Right("list", "apps", "daemonsets"),
    Right("list", "apiextensions.k8s.io", "customresourcedefinitions"),
    Right("list", "networking.k8s.io", "servicecidrs"),
    Right("list", GROUP, "ippools"),
    Right("get", "", "services", "default"),
)


def _granted(role: Object) -> Iterator[Right]:
    namespace = role["metadata"].get("namespace", "")
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    for verb in rule["verbs"]:
                        yield Right(verb, group, resource, namespace, name)


def judge(facts: Facts, pools: Sequence[str]) -> tuple[Finding, ...]:
    """Return what is to be said of a cluster before Podway comes with these networks for pods."""
    return (
        *_version(facts.version),
        *_rights(facts.denied),
        *_helm(facts),
        *_definitions(facts.definitions),
        *_nodes(facts.nodes),
        *_kernels(facts.nodes),
        *_ranges(facts, pools),
        *_others(facts),
    )


def _version(told: str) -> Iterator[Finding]:
    numbers = tuple(map(int, re.findall(r"\d+", told)[:2]))
    if not numbers:
        yield Finding("warns", "the API server does not say its version", "Podway needs Kubernetes 1.32 or newer")
    elif numbers < MINIMUM:
        hint = f"upgrade to {'.'.join(map(str, MINIMUM))} or newer: earlier tokens of pods do not tell their node"
        yield Finding("fails", f"Kubernetes {told} is too old", hint)
    else:
        yield Finding("holds", f"Kubernetes {told}")


def _rights(denied: Sequence[Right]) -> Iterator[Finding]:
    if not denied:
        yield Finding("holds", "you may do all that is needed")
    for right in denied:
        yield Finding("fails", f"you may not {right}", "have RBAC allow it, or ask as a cluster-admin")


def is_helms(agent: Object | None) -> bool:
    """Tell whether the agents' DaemonSet is of a release of Helm."""
    return bool((agent or {}).get("metadata", {}).get("labels", {}).get(MANAGED_BY, "") == "Helm")


def _helm(facts: Facts) -> Iterator[Finding]:
    if is_helms(facts.agent):
        hint = "change it by helm upgrade, helm rollback or helm uninstall"
        yield Finding("fails", "Podway was installed by Helm here", hint)


def definition_state(found: Object, ours: Object) -> str:
    """Return how a definition that there is stands to ours: `current`, `older`, `newer`, or `changed`."""
    theirs = _numbers(found["metadata"].get("annotations", {}).get(VERSION, ""))
    own = _numbers(ours["metadata"]["annotations"][VERSION])
    if theirs != own:
        return "newer" if theirs > own else "older"
    return "current" if contains(found["spec"], ours["spec"]) else "changed"


def contains(found: Any, wanted: Any) -> bool:
    """Tell whether what is wanted is there: an API server adds what it takes for granted."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and contains(found[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(contains, found, wanted))
    return bool(found == wanted)


def definition_states(definitions: Sequence[Object]) -> dict[str, str]:
    """Return the state of each of our definitions by name; `unknown` are those that this Podway has not."""
    there = {one["metadata"]["name"]: one for one in definitions if one["spec"]["group"] == GROUP}
    ours = {made["metadata"]["name"]: made for made in map(definition, own_kinds())}
    states = {
        name: definition_state(there[name], made) if name in there else "missing" for name, made in ours.items()
    }
    return states | dict.fromkeys(there.keys() - ours.keys(), "unknown")


def _definitions(definitions: Sequence[Object]) -> Iterator[Finding]:
    states = definition_states(definitions)
    newer = sorted(name for name, state in states.items() if state in {"newer", "unknown"})
    if newer:
        hint = "use the `podway` that made them, or a newer one: agents set aside what they cannot read"
        yield Finding("fails", f"definitions are newer than this Podway: {', '.join(newer)}", hint)
    older = sorted(name for name, state in states.items() if state in {"older", "changed"})
    if older:
        yield Finding("holds", f"definitions that will be brought up to date: {', '.join(older)}")


def _nodes(nodes: Sequence[Object]) -> Iterator[Finding]:
    if not nodes:
        yield Finding("warns", "there is no Node yet", "agents start as nodes are registered")
        return
    yield Finding("holds", f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}")
    for node in nodes:
        name, told = node["metadata"]["name"], node.get("status", {}).get("addresses", ())
        if not any(one["type"] == "InternalIP" for one in told):
            hint = (
                "its kubelet has to tell one (--node-ip), or the cloud's controller; `kubectl describe node` shows"
            )
            yield Finding("fails", f"Node {name} has no InternalIP", hint)
        if len(name) > COMMON_NAME:
            hint = f"register it under a name of at most {COMMON_NAME} characters (kubelet --hostname-override)"
            yield Finding(
                "fails", f"Node {name}: its certificate cannot have a name of {len(name)} characters", hint
            )
    full = [node["metadata"]["name"] for node in nodes if "." in node["metadata"]["name"]]
    if full:
        yield Finding("holds", f"{_some(full)}: full names; that is how `podway` knows these nodes, too")


def _kernels(nodes: Sequence[Object]) -> Iterator[Finding]:
    kernels = set()
    for node in nodes:
        name, info = node["metadata"]["name"], node.get("status", {}).get("nodeInfo", {})
        if info.get("operatingSystem", "linux") != "linux":
            yield Finding("warns", f"Node {name} runs {info['operatingSystem']}", "Podway leaves it alone")
            continue
        if info.get("architecture") and info["architecture"] not in ARCHITECTURES:
            hint = "the image has to be built there: ./dev image"
            yield Finding("warns", f"Node {name} is of architecture {info['architecture']}", hint)
        if release := info.get("kernelVersion", ""):
            try:
                require_kernel(release)
                kernels.add(release)
            except UnsupportedSystem as error:
                yield Finding("fails", f"Node {name}: {error.message}", error.hint)
    if kernels:
        yield Finding("holds", f"kernels {_some(sorted(kernels))}")


def _ranges(facts: Facts, pools: Sequence[str]) -> Iterator[Finding]:
    there = {one["metadata"]["name"]: ip_network(one["spec"]["cidr"]) for one in facts.pools}
    wanted: dict[str, Network] = {f"IPPool/{name}": network for name, network in there.items()}
    if not there:
        wanted = {f"pool {text}": ip_network(text) for text in pools}
    taken = [(f"the Services' range {text}", ip_network(text)) for text in facts.services]
    for node in facts.nodes:
        for one in node.get("status", {}).get("addresses", ()):
            if one["type"] in {"InternalIP", "ExternalIP"}:
                name = node["metadata"]["name"]
                taken.append((f"{one['address']} of Node {name}", host_network(ip_address(one["address"]))))
    found = [
        Finding("fails", f"{name} ({network}) overlaps {what}", "choose another range: --pool CIDR")
        for name, network in wanted.items()
        for what, other in taken
        if network.version == other.version and network.overlaps(other)
    ]
    yield from found[:_SHOWN]
    if len(found) > _SHOWN:
        yield Finding("fails", f"and {len(found) - _SHOWN} more addresses of nodes lie in it")
    if not found:
        ranges = ", ".join(str(network) for network in wanted.values())
        services = ", ".join(facts.services) or "no range that is told"
        yield Finding("holds", f"pods in {ranges} overlap neither nodes nor Services ({services})")


_SHOWN = 5


def _others(facts: Facts) -> Iterator[Finding]:
    sets = {one["metadata"]["name"]: subject({"kind": "DaemonSet", **one}) for one in facts.daemonsets}
    groups = {one["spec"]["group"] for one in facts.definitions}
    marks = {mark: node["metadata"]["name"] for node in facts.nodes for mark in _marks(node)}
    others = False
    for plugin, known in OTHERS.items():
        runs = [sets[name] for name in known if name in sets]
        on = [f"Node {node} ({mark})" for mark, node in marks.items() if mark.startswith(known)]
        left = [group for group in known if group in groups]
        if runs or on:
            others = True
            hint = f"remove {plugin} first, and what it left on the nodes: /etc/cni/net.d, links, firewall rules"
            yield Finding("fails", f"{plugin} is the network here: {', '.join(runs) or on[0]}", hint)
        elif left:
            yield Finding("warns", f"{plugin} left its definitions here: {', '.join(left)}", "are its pods gone?")
    if facts.agent is not None or others:
        return
    ready = [node["metadata"]["name"] for node in facts.nodes if is_ready(node)]
    if ready:
        hint = "look into /etc/cni/net.d there: runtimes take the first file, and Podway's is 10-podway.conflist"
        what = f"{_some(ready)}: Ready without Podway, so there is a CNI configuration of another plugin"
        yield Finding("warns", what, hint)
    else:
        yield Finding("holds", "no other network plugin was found")


def _marks(node: Object) -> Iterator[str]:
    yield from node["metadata"].get("annotations", {})
    for one in node.get("status", {}).get("conditions", ()):
        if one["type"] == "NetworkUnavailable" and one["status"] == "False":
            yield one.get("reason", "")


def is_ready(node: Object) -> bool:
    """Tell whether a Node object says that its kubelet runs pods."""
    conditions = node.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
