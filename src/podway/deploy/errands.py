"""Errands: short-lived DaemonSets by which something is done once on every node, without anybody entering it.

Its work is an init container's, so a pod of it is ready when its node's work is done; a DaemonSet's pods never end
by themselves. One that is not wanted now is parked: it stays, and has no pods, since no node fulfils its selector.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

import msgspec

from podway.api.resource import GROUP
from podway.deploy.api import Api, Right, place
from podway.deploy.objects import NAMESPACE, Object, containers, image_of
from podway.deploy.rollout import LOOK, Progress, Report, agents_on, is_heard
from podway.errors import ClusterError

CLEANER, FETCHER = "podway-cleaner", "podway-fetcher"
WITNESS, SWEEPER = "podway-witness", "podway-sweeper"
"""Errands about kube-proxy: that tell whether somebody serves Services, and that remove its rules."""
ERRANDS = (CLEANER, FETCHER, WITNESS, SWEEPER)
PARKED = f"{GROUP}/parked"
"""A label that no node has: an errand whose pods need it has none."""
FORGET_RIGHTS = (Right("delete", "apps", "daemonsets", NAMESPACE),)
"""What somebody must be allowed who removes errands."""
SILENT_LOOKS = 5
"""How often one looks again at nodes of which no kubelet is heard."""


_TELLING = {"terminationMessagePolicy": "FallbackToLogsOnError"}
"""Work that fails says why in its pod's status."""


def errand(
    name: str, agent: Object, *, image: str = "", work: Sequence[Object] = (), volumes: Sequence[Object] = ()
) -> dict[str, Any]:
    """Return a DaemonSet whose pods do the `work` (init containers) and then wait, on all nodes of the agents.

    `agent` is the agents' DaemonSet, and `image` another image than theirs.
    """
    pod = agent["spec"]["template"]["spec"]
    labels = {"app.kubernetes.io/name": "podway", "app.kubernetes.io/component": name.removeprefix("podway-")}
    usual = {
        "image": image or image_of(agent),
        "imagePullPolicy": pod["containers"][0].get("imagePullPolicy", "IfNotPresent"),
    }
    nobody = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "capabilities": {"drop": ["ALL"]},
    }
    waiting = {"name": "done", "command": ["python3", "-c", "import signal; signal.pause()"]}
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "priorityClassName": "system-node-critical",
        "hostNetwork": True,
        "nodeSelector": pod.get("nodeSelector", {}),
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 1,
        "containers": [{**usual, **waiting, "securityContext": nobody}],
        "volumes": list(volumes),
    }
    if work:
        spec["initContainers"] = [{**usual, **_TELLING, **one} for one in work]
    if secrets := pod.get("imagePullSecrets"):
        spec["imagePullSecrets"] = secrets
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def fetcher(agent: Object, image: str) -> dict[str, Any]:
    """Return the errand that has every node fetch an image."""
    return errand(FETCHER, agent, image=image)


def cleaner(agent: Object) -> dict[str, Any]:
    """Return the errand that takes Podway out of nodes, by the agents' image and with the rights that they have.

    It sees all of /run, so that not even a directory stays there.
    """
    pod = agent["spec"]["template"]["spec"]
    (container,) = (one for one in pod["containers"] if one["name"] == "agent")
    plugins, configuration = _mount(container, "plugins"), _mount(container, "configuration")
    run = {"name": "all-of-run", "mountPath": "/run", "mountPropagation": "HostToContainer"}
    clean = {
        "name": "clean",
        "args": [
            *("uninstall", "--with-pods", "--plugin-dir", plugins["mountPath"]),
            *("--conf-dir", configuration["mountPath"]),
        ],
        "securityContext": container["securityContext"],
        "volumeMounts": [plugins, configuration, run],
    }
    volumes = [one for one in pod["volumes"] if one["name"] in {"plugins", "configuration"}]
    all_of_run = {"name": "all-of-run", "hostPath": {"path": "/run", "type": "Directory"}}
    return errand(CLEANER, agent, work=[clean], volumes=[*volumes, all_of_run])


class Cleaning(msgspec.Struct, frozen=True, kw_only=True):
    """By what nodes are cleaned, and where; what is empty is as the agents have it."""

    image: str = ""
    plugins: str = ""
    """The nodes' directory of CNI plugins."""
    configuration: str = ""
    """The nodes' directory of CNI configurations."""


def cleaning(made: Object, chosen: Cleaning) -> dict[str, Any]:
    """Return a cleaner with what was chosen."""
    changed = deepcopy(dict(made))
    for container in containers(changed) if chosen.image else ():
        container["image"] = chosen.image
    for volume in changed["spec"]["template"]["spec"]["volumes"]:
        if path := {"plugins": chosen.plugins, "configuration": chosen.configuration}.get(volume["name"]):
            volume["hostPath"]["path"] = path
    return changed


def cleans_by(made: Object) -> Cleaning:
    """Return by what a cleaner cleans, and where."""
    paths = {one["name"]: one["hostPath"]["path"] for one in made["spec"]["template"]["spec"]["volumes"]}
    return Cleaning(image=image_of(made), plugins=paths["plugins"], configuration=paths["configuration"])


def _mount(container: Object, name: str) -> dict[str, Any]:
    return next(dict(one) for one in container["volumeMounts"] if one["name"] == name)


async def run_errand(
    api: Api, made: Object, report: Report, done: str, *, patience: float, without: Collection[str] | None = None
) -> None:
    """Have an errand done on every node, and remove it, done or not. `done` is said of a node where it is done.

    Pods of it that another command has left do not count. Nodes of which no kubelet is heard are left out if
    `without` is None; else all are needed but those. Raises ClusterError that names the nodes where it could not
    be done, and why.
    """
    name = made["metadata"]["name"]
    await forget_errand(api, name)
    await until_ended(api, (name,), patience, without or ())
    try:
        await api.apply(made, force=True)
        await until_done(api, made, report, done, patience=patience, without=without)
    finally:
        await forget_errand(api, name)


async def until_done(
    api: Api, made: Object, report: Report, done: str, *, patience: float, without: Collection[str] | None = None
) -> None:
    """Wait until a DaemonSet has a ready pod on every node, as `run_errand` does. Raises ClusterError."""
    selector = _labels(made)
    progress, since, looks = Progress(report, done), time.monotonic(), 0
    while True:
        nodes, pods = await asyncio.gather(
            api.list(place("v1", "nodes")),
            api.list(place("v1", "pods", made["metadata"]["namespace"]), labelSelector=selector),
        )
        found = [one for one in agents_on(nodes, pods) if one.node not in (without or ())]
        if progress.tell(found):
            since = time.monotonic()
        waiting = [one for one in found if not one.ready and (one.reachable or without is not None)]
        if not waiting:
            break
        looks += 1
        hopeless = looks >= SILENT_LOOKS and not any(one.reachable for one in waiting)
        if hopeless or time.monotonic() - since > patience:
            told = "".join(f"\n  {one.node}: {one.why}" for one in waiting[:5])
            raise ClusterError(f"on {len(waiting)} of {len(found)} nodes it could not be done:{told}")
        await asyncio.sleep(LOOK)


def _labels(made: Object) -> str:
    """Return the selector by which a DaemonSet finds its pods, as queries have it."""
    return ",".join(f"{name}={value}" for name, value in sorted(made["spec"]["selector"]["matchLabels"].items()))


async def forget_errand(api: Api, name: str) -> bool:
    """Remove an errand, whether it is done or not; tell whether it was there."""
    return await api.delete(place("apps/v1", "daemonsets", NAMESPACE, name))


async def forget_errands(api: Api, report: Report, patience: float) -> None:
    """Remove what errands others have left, and wait until their pods have ended.

    A cleaner that stays would take Podway out of every node that comes or is started anew. Raises ClusterError
    that names the nodes where a pod does not end.
    """
    for name in ERRANDS:
        if await forget_errand(api, name):
            report(f"DaemonSet {name} is removed, which a command that did not end well had left")
    await until_ended(api, ERRANDS, patience)


async def until_ended(api: Api, names: Sequence[str], patience: float, without: Collection[str] = ()) -> None:
    """Wait until pods of these DaemonSets have ended, on all nodes but `without` and those that are not heard.

    Raises ClusterError that names the nodes where one does not end.
    """
    components = ",".join(name.removeprefix("podway-") for name in names)
    selector = f"app.kubernetes.io/name=podway,app.kubernetes.io/component in ({components})"
    await _until_ended(api, NAMESPACE, selector, " and ".join(names), patience, without)


async def until_ended_of(api: Api, made: Object, patience: float) -> None:
    """Wait until the pods of one DaemonSet have ended, as `until_ended` does. Raises ClusterError."""
    await _until_ended(api, made["metadata"]["namespace"], _labels(made), made["metadata"]["name"], patience)


async def _until_ended(
    api: Api, namespace: str, selector: str, told: str, patience: float, without: Collection[str] = ()
) -> None:
    deadline = time.monotonic() + patience
    while True:
        pods, nodes = await asyncio.gather(
            api.list(place("v1", "pods", namespace), labelSelector=selector), api.list(place("v1", "nodes"))
        )
        heard = {one["metadata"]["name"] for one in nodes if is_heard(one)}
        # A kubelet that comes back does not start what is being deleted: that one is not waited for.
        awaited = [
            pod["spec"].get("nodeName", "?")
            for pod in pods
            if pod["spec"].get("nodeName") in heard or "deletionTimestamp" not in pod["metadata"]
        ]
        left = sorted(set(awaited) - set(without))
        if not left:
            return
        if time.monotonic() > deadline:
            raise ClusterError(
                f"pods of {told} do not end on {', '.join(left)}",
                hint=f"kubectl -n {namespace} get pods -o wide; then do it again",
            )
        await asyncio.sleep(LOOK / 2)


def parked(made: Object) -> dict[str, Any]:
    """Return an errand that stays as it is known, and that no node fulfils: it has no pods."""
    return _with_selector(made, {**_selector(made), PARKED: "true"})


def resumed(made: Object) -> dict[str, Any]:
    """Return an errand that has its nodes again, whether it was parked or not."""
    return _with_selector(made, {name: value for name, value in _selector(made).items() if name != PARKED})


def is_parked(made: Object) -> bool:
    """Tell whether an errand is kept without pods."""
    return PARKED in _selector(made)


def _selector(made: Object) -> dict[str, str]:
    return dict(made["spec"]["template"]["spec"].get("nodeSelector", {}))


def _with_selector(made: Object, selector: dict[str, str]) -> dict[str, Any]:
    template = made["spec"]["template"]
    pod = {**template["spec"], "nodeSelector": selector}
    return {**made, "spec": {**made["spec"], "template": {**template, "spec": pod}}}
