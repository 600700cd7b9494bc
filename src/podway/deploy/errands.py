"""Errands: short-lived DaemonSets by which something is done once on every node, without anybody entering it.

Its work is an init container's, so a pod of it is ready when its node's work is done; a DaemonSet's pods never end
by themselves.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Any

from podway.deploy.api import Api, place
from podway.deploy.objects import AGENT, NAMESPACE, Object, image_of
from podway.deploy.rollout import COMPONENT, LOOK, Progress, Report, agents_on, is_heard
from podway.errors import ClusterError

CLEANER, FETCHER = "podway-cleaner", "podway-fetcher"
SILENT_LOOKS = 5
"""How often one looks again at nodes of which no kubelet is heard."""


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
        spec["initContainers"] = [{**usual, **one} for one in work]
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


def _mount(container: Object, name: str) -> dict[str, Any]:
    return next(dict(one) for one in container["volumeMounts"] if one["name"] == name)


async def run_errand(
    api: Api, made: Object, report: Report, done: str, *, patience: float, without: Collection[str] | None = None
) -> None:
    """Have an errand done on every node, and remove it. `done` is what is said of a node where it is done.

    Nodes of which no kubelet is heard are left out if `without` is None; else all are needed but those. Raises
    ClusterError that names the nodes where it could not be done, and why; the errand stays then.
    """
    name = made["metadata"]["name"]
    await api.apply(made)
    component = made["metadata"]["labels"]["app.kubernetes.io/component"]
    progress, since, looks = Progress(report, done), time.monotonic(), 0
    while True:
        nodes, pods = await asyncio.gather(
            api.list(place("v1", "nodes")),
            api.list(place("v1", "pods", NAMESPACE), labelSelector=f"{COMPONENT}{component}"),
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
    await forget_errand(api, name)


async def forget_errand(api: Api, name: str) -> None:
    """Remove an errand, whether it is done or not."""
    await api.delete(place("apps/v1", "daemonsets", NAMESPACE, name))


async def until_no_agents(api: Api, without: Collection[str], patience: float) -> None:
    """Wait until agents have ended on all nodes but these and those that are not heard. Raises ClusterError."""
    deadline = time.monotonic() + patience
    while True:
        nodes = {one["metadata"]["name"]: one for one in await api.list(place("v1", "nodes"))}
        pods = await api.list(place("v1", "pods", NAMESPACE), labelSelector=f"{COMPONENT}agent")
        on = {pod["spec"].get("nodeName", "") for pod in pods} & nodes.keys()
        left = sorted(name for name in on if name not in without and is_heard(nodes[name]))
        if not left:
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"agents ({AGENT}) do not end on {', '.join(left)}")
        await asyncio.sleep(LOOK)
