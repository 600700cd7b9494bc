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
from podway.deploy import kube_proxy
from podway.deploy.api import JSON_PATCH, STRATEGIC, Api, Right, place, place_of
from podway.deploy.errands import (
    CLEANER,
    Cleaning,
    cleaner,
    cleaning,
    cleans_by,
    forget_errand,
    parked,
    resumed,
    until_done,
    until_ended,
)
from podway.deploy.objects import AGENT, CONTROLLER, NAMESPACE, Object, objects, subject, workload
from podway.deploy.preflight import gather, is_helms, rights
from podway.deploy.rollout import LOOK, Report
from podway.errors import ClusterError

REASON = "PodwayIsUp"
GONE_SECONDS = 120.0
"""Seconds that an API server may take to remove what was deleted."""
_PREFIX = f"{GROUP}/"
_AS_AGENTS = Cleaning()


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """What of Podway there is in a cluster, and who uses it."""

    objects: tuple[Object, ...]
    pods: tuple[str, ...]
    """Pods that have their network of Podway: NAMESPACE/NAME on NODE."""
    nodes: tuple[Object, ...]
    agent: Object | None
    proxy: kube_proxy.Proxy
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
        Right("create", "apps", "daemonsets", NAMESPACE),
        *kube_proxy.FIND_RIGHTS,
    )
    denied = (*facts.denied, *await api.denied(needed))
    proxy = kube_proxy.UNKNOWN if {*denied} & {*kube_proxy.FIND_RIGHTS} else await kube_proxy.find(api)
    if proxy.replaced:
        denied += await api.denied(kube_proxy.BACK_RIGHTS)
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
    if is_helms(facts.agent):
        raise ClusterError("Helm installed Podway here", hint="first helm uninstall, then this")
    pods = await api.list(place("v1", "pods")) if ours or others else []
    counts = [
        (one["spec"]["names"]["kind"], await api.list(place(f"{GROUP}/v1", one["spec"]["names"]["plural"])))
        for one in facts.definitions
        if one["spec"]["group"] == GROUP
    ]
    return Present(
        objects=(*ours, *others),
        pods=tuple(using(pods)),
        nodes=tuple(facts.nodes),
        agent=facts.agent,
        proxy=proxy,
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


async def uninstall(
    api: Api,
    present: Present,
    report: Report,
    *,
    without: Collection[str] = (),
    chosen: Cleaning = _AS_AGENTS,
    patience: float = 300.0,
) -> None:
    """Take Podway out of a cluster, `without` the nodes of these names, which stay as they are.

    Nodes are cleaned by the image and in the directories of the agents, also when an attempt before this one has
    already removed those, unless others are `chosen`.

    Raises ClusterError if a node cannot be cleaned; then the objects are still there, and it can be done again.
    The cleaner is parked then, so that no node is cleaned behind the back of a Podway that is installed later.
    """
    made = objects()
    namespaces = [one for one in made if one["kind"] == "Namespace"]
    # What was removed by hand, or by Helm, may have left nodes as they were.
    await api.apply(namespaces[0], force=True)
    known = cleaner(present.agent) if present.agent else await _begun(api)
    work = cleaning(known or cleaner(workload(made, AGENT)), chosen)
    by = cleans_by(work)
    if not known:
        report("no agents tell by what and where nodes are to be cleaned: see --image, --plugin-dir, --conf-dir")
    report(f"nodes are cleaned by {by.image}, in {by.plugins} and {by.configuration}")
    if present.proxy.replaced:
        serving = present.agent or workload(made, AGENT)
        await kube_proxy.bring_back(
            api, present.proxy, serving, report, patience=patience, image=by.image, without=without
        )
    # It is parked before the agents' DaemonSet goes, of which it is made: another attempt finds it.
    await api.apply(parked(work), force=True)
    # First the controller: it would write statuses, and one that signs nothing is missed by nobody now.
    await api.delete(place("apps/v1", "deployments", NAMESPACE, CONTROLLER))
    await api.delete(place("apps/v1", "daemonsets", NAMESPACE, AGENT))
    report("agents and controller end")
    clean = False
    try:
        # Pods of another attempt's cleaner go, too: they would be taken for those that clean now.
        await until_ended(api, (AGENT, CLEANER), patience, without)
        await api.apply(work, force=True)
        await until_done(api, work, report, "the node is clean", patience=patience, without=without)
        clean = True
    except ClusterError as error:
        raise ClusterError(
            f"the objects stay: {error.message}",
            hint="do it again when it can be: podway cluster uninstall; or without a node: --without-node NAME",
        ) from error
    finally:
        # Also when it is interrupted: nothing may clean nodes when nobody waits for it any more.
        if not clean:
            await api.apply(parked(work), force=True)
    await forget_errand(api, CLEANER)
    for node in await api.list(place("v1", "nodes")):
        await forget(api, node)
    report(f"{len(present.nodes)} Node objects have nothing of Podway any more")
    unwanted = [*namespaces, *(one for one in present.objects if one["kind"] != "Namespace")]
    for obj in reversed(unwanted):
        await api.delete(place_of(obj))
    await _until_gone(api, unwanted)
    report(f"{len(present.objects)} objects are gone")
    for name in sorted(without):
        report(f"{name}: left as it is; clean it there: podway uninstall --with-pods")


async def _begun(api: Api) -> dict[str, Any] | None:
    """Return the errand that an attempt before this one has left, None if there is none."""
    found = await api.find(place("apps/v1", "daemonsets", NAMESPACE, CLEANER))
    if found is None:
        return None
    metadata = {name: found["metadata"][name] for name in ("name", "namespace", "labels")}
    return resumed({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": found["spec"]})


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
