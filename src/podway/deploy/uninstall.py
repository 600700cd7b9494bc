"""Podway leaves a cluster, and nothing of it is left: not in the API, and not on the nodes.

Agents end first. Then a DaemonSet of their image does on every node what `podway uninstall` does on a host.
Only when all nodes are clean the objects go, those by which the rest could be done again last.
"""

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from podway.agent.opening import CONDITION, TAINT
from podway.api.resource import GROUP
from podway.deploy.api import JSON_PATCH, STRATEGIC, Api, Right, place, place_of
from podway.deploy.objects import AGENT, CONTROLLER, NAMESPACE, Object, image_of, objects, subject
from podway.deploy.preflight import gather, rights
from podway.deploy.rollout import LOOK, OF, Progress, Report, agents_on, is_heard
from podway.errors import ClusterError

CLEANER = "podway-cleaner"
REASON = "PodwayIsUp"
GONE_SECONDS = 120.0
"""Seconds that an API server may take to remove what was deleted."""
_PREFIX = f"{GROUP}/"


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """What of Podway there is in a cluster, and who uses it."""

    objects: tuple[Object, ...]
    pods: tuple[str, ...]
    """Pods that have their network of Podway: NAMESPACE/NAME on NODE."""
    nodes: tuple[Object, ...]
    agent: Object | None
    resources: tuple[str, ...]
    """Objects of Podway's own kinds, such as `IPPool: 1`, which go with their definitions."""


async def find(api: Api) -> Present:
    """Return what there is. Raises ClusterError if whoever asks may not remove it."""
    made = objects()
    facts = await gather(api, rights(made, ("get", "delete")))
    needed = (
        Right("patch", "", "nodes"),
        Right("patch", "", "nodes/status"),
        Right("patch", "apps", "daemonsets"),
    )
    denied = (*facts.denied, *await api.denied(needed))
    if denied:
        told = "; ".join(f"you may not {right}" for right in denied)
        raise ClusterError(f"nothing was changed: {told}", hint="have RBAC allow it, or ask as a cluster-admin")
    there = await asyncio.gather(*(api.find(place_of(one)) for one in made))
    ours = [one for one, found in zip(made, there, strict=True) if found is not None]
    known = {one["metadata"]["name"] for one in ours}
    others = [
        {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", **one}
        for one in facts.definitions
        if one["spec"]["group"] == GROUP and one["metadata"]["name"] not in known
    ]
    pods = await api.list(place("v1", "pods"))
    counts = [
        (one["spec"]["names"]["kind"], await api.list(place(f"{GROUP}/v1", one["spec"]["names"]["plural"])))
        for one in facts.definitions
        if one["spec"]["group"] == GROUP
    ]
    return Present(
        objects=(*ours, *others),
        pods=tuple(using(pods)) if facts.agent is not None else (),
        nodes=tuple(facts.nodes),
        agent=facts.agent,
        resources=tuple(f"{kind}: {len(found)}" for kind, found in counts if found),
    )


def using(pods: Sequence[Object]) -> Iterator[str]:
    """Yield the pods that have addresses of the pod network, those on their nodes' own network being none."""
    for pod in pods:
        status = pod.get("status", {})
        if pod["spec"].get("hostNetwork") or status.get("phase") in {"Succeeded", "Failed"}:
            continue
        if status.get("podIP"):
            metadata = pod["metadata"]
            yield f"{metadata['namespace']}/{metadata['name']} on {pod['spec'].get('nodeName', '?')}"


def cleaner(daemonset: Object) -> dict[str, Any]:
    """Return the DaemonSet that takes Podway out of nodes: of the agents' image, with the rights that they have.

    Its pods are ready when their nodes are clean. They see all of /run, so that not even a directory stays there.
    """
    pod = daemonset["spec"]["template"]["spec"]
    (agent,) = (one for one in pod["containers"] if one["name"] == "agent")
    labels = {"app.kubernetes.io/name": "podway", "app.kubernetes.io/component": "cleaner"}
    plugins, configuration = _mount(agent, "plugins"), _mount(agent, "configuration")
    run = {"name": "all-of-run", "mountPath": "/run", "mountPropagation": "HostToContainer"}
    volumes = [one for one in pod["volumes"] if one["name"] in {"plugins", "configuration"}]
    usual = {"image": image_of(daemonset), "imagePullPolicy": agent.get("imagePullPolicy", "IfNotPresent")}
    clean = {
        **usual,
        "name": "clean",
        "args": [
            *("uninstall", "--with-pods", "--plugin-dir", plugins["mountPath"]),
            *("--conf-dir", configuration["mountPath"]),
        ],
        "securityContext": agent["securityContext"],
        "volumeMounts": [plugins, configuration, run],
    }
    done = {
        **usual,
        "name": "done",
        "command": ["python3", "-c", "import signal; signal.pause()"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": CLEANER, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": False,
                    "priorityClassName": "system-node-critical",
                    "hostNetwork": True,
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"operator": "Exists"}],
                    "terminationGracePeriodSeconds": 1,
                    "initContainers": [clean],
                    "containers": [done],
                    "volumes": [
                        *volumes,
                        {"name": "all-of-run", "hostPath": {"path": "/run", "type": "Directory"}},
                    ],
                },
            },
        },
    }


def _mount(container: Object, name: str) -> dict[str, Any]:
    return next(dict(one) for one in container["volumeMounts"] if one["name"] == name)


async def uninstall(
    api: Api, present: Present, report: Report, *, without: Collection[str] = (), patience: float = 300.0
) -> None:
    """Take Podway out of a cluster, `without` the nodes of these names, which stay as they are.

    Raises ClusterError if a node cannot be cleaned; then the objects are still there, and it can be done again.
    """
    # First the controller: it would write statuses, and one that signs nothing is missed by nobody now.
    await api.delete(place("apps/v1", "deployments", NAMESPACE, CONTROLLER))
    agent = present.agent or await api.find(place("apps/v1", "daemonsets", NAMESPACE, CLEANER))
    if agent is not None:
        await api.delete(place("apps/v1", "daemonsets", NAMESPACE, AGENT))
        report("agents and controller end")
        await _until_no_agents(api, without, patience)
        if present.agent is not None:
            await api.apply(cleaner(present.agent))
        await _until_clean(api, report, without, patience)
        await api.delete(place("apps/v1", "daemonsets", NAMESPACE, CLEANER))
    for node in await api.list(place("v1", "nodes")):
        await forget(api, node)
    report(f"{len(present.nodes)} Node objects have nothing of Podway any more")
    for obj in reversed(present.objects):
        await api.delete(place_of(obj))
    await _until_gone(api, present.objects)
    report(f"{len(present.objects)} objects are gone")
    for name in sorted(without):
        report(f"{name}: left as it is; clean it there: podway uninstall --with-pods")


async def _until_no_agents(api: Api, without: Collection[str], patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        nodes = {one["metadata"]["name"]: one for one in await api.list(place("v1", "nodes"))}
        pods = await api.list(place("v1", "pods", NAMESPACE), labelSelector=f"{OF}agent")
        on = {pod["spec"].get("nodeName", "") for pod in pods} & nodes.keys()
        left = sorted(name for name in on if name not in without and is_heard(nodes[name]))
        if not left:
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"agents do not end on {', '.join(left)}", hint=_again(left[0]))
        await asyncio.sleep(LOOK)


async def _until_clean(api: Api, report: Report, without: Collection[str], patience: float) -> None:
    progress, since = Progress(report, "the node is clean"), time.monotonic()
    while True:
        nodes, pods, cleaners = await asyncio.gather(
            api.list(place("v1", "nodes")),
            api.list(place("v1", "pods", NAMESPACE), labelSelector=f"{OF}cleaner"),
            api.find(place("apps/v1", "daemonsets", NAMESPACE, CLEANER)),
        )
        found = [one for one in agents_on(nodes, pods) if one.node not in without]
        if progress.tell(found):
            since = time.monotonic()
        waiting = [one for one in found if not one.ready]
        if not waiting:
            return
        # One whose kubelet is silent will not be clean however long one waits.
        if time.monotonic() - since > (patience if any(one.reachable for one in waiting) else LOOK * 5):
            told = "".join(f"\n  {one.node}: {one.why}" for one in waiting[:5])
            raise ClusterError(
                f"{len(waiting)} of {len(found)} nodes are not clean, and the objects stay:{told}",
                hint=_again(waiting[0].node),
            )
        if cleaners is None:
            raise ClusterError(f"the DaemonSet {CLEANER} was deleted by somebody", hint="podway cluster uninstall")
        await asyncio.sleep(LOOK)


def _again(node: str) -> str:
    return f"do it again when it can be: podway cluster uninstall; or without that node: --without-node {node}"


async def forget(api: Api, node: Object) -> None:
    """Take what Podway wrote off a Node object: annotations, labels, its condition, its taint."""
    name, metadata = node["metadata"]["name"], node["metadata"]
    path = place("v1", "nodes", "", name)
    changes: dict[str, Any] = {}
    for part in ("annotations", "labels"):
        if ours := [each for each in metadata.get(part, {}) if each.startswith(_PREFIX)]:
            changes[part] = dict.fromkeys(ours)
    if changes:
        await api.patch(path, {"metadata": changes})
    conditions = node.get("status", {}).get("conditions", ())
    if any(one["type"] == CONDITION and one.get("reason") == REASON for one in conditions):
        patch = {"status": {"conditions": [{"type": CONDITION, "$patch": "delete"}]}}
        await api.patch(f"{path}/status", patch, STRATEGIC)
    keys = [one["key"] for one in node.get("spec", {}).get("taints", ())]
    if TAINT in keys:
        at = f"/spec/taints/{keys.index(TAINT)}"
        # Whoever else changes the list meanwhile has the test fail, and nothing of theirs is undone.
        steps = [{"op": "test", "path": f"{at}/key", "value": TAINT}, {"op": "remove", "path": at}]
        await api.patch(path, steps, JSON_PATCH)


async def _until_gone(api: Api, unwanted: Sequence[Object]) -> None:
    deadline = time.monotonic() + GONE_SECONDS
    left = list(unwanted)
    while left:
        found = await asyncio.gather(*(api.find(place_of(one)) for one in left))
        there = [(one, is_there) for one, is_there in zip(left, found, strict=True) if is_there is not None]
        left = [one for one, _ in there]
        if left and time.monotonic() > deadline:
            told = "".join(f"\n  {subject(one)}: {_why_there(is_there)}" for one, is_there in there)
            raise ClusterError(
                f"{len(left)} objects are deleted and do not go:{told}",
                hint="somebody's finalizer holds them, or what is in them: look at it, then do it again",
            )
        if left:
            await asyncio.sleep(LOOK / 2)


def _why_there(found: Object) -> str:
    conditions = found.get("status", {}).get("conditions") or ()
    told = [
        one.get("message", "") for one in conditions if one["status"] == "True" and one["type"].startswith(_HELD)
    ]
    finalizers = [*found["metadata"].get("finalizers", ()), *found.get("spec", {}).get("finalizers", ())]
    return "; ".join(filter(None, (*told, f"finalizers {', '.join(finalizers)}" if finalizers else "")))


_HELD = ("NamespaceContentRemaining", "NamespaceFinalizersRemaining", "NamespaceDeletion", "Terminating")
