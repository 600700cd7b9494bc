"""How far agents and controllers are: pure readings of what an API server tells, and waiting with progress."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from podway.deploy.api import Api, place
from podway.deploy.objects import AGENT, CONTROLLER, NAMESPACE, Object, image_of
from podway.errors import ClusterError, StoreUnavailable

Report: TypeAlias = Callable[[str], None]
"""Takes a line of progress."""

LOOK = 1.0
"""Seconds between looks at the pods."""
COMPONENT = "app.kubernetes.io/name=podway,app.kubernetes.io/component="
_WAITS = "it waits for its turn"
HASH = "controller-revision-hash"
LOG_LINES = "5"


class AgentOn(msgspec.Struct, frozen=True):
    """The agent on one node: `why` it is not ready, in words, empty if it is."""

    node: str
    image: str = ""
    why: str = ""
    pod: str = ""
    reachable: bool = True
    """Whether the node's kubelet is heard: who waits does not wait for one that is not."""

    @property
    def ready(self) -> bool:
        """Whether it serves pods, and is of the wanted revision."""
        return not self.why


def agents_on(nodes: Sequence[Object], pods: Sequence[Object], revision: str = "") -> tuple[AgentOn, ...]:
    """Return how agents are on the Linux nodes, by name; `revision` is what they ought to be of, if known."""
    by_node: dict[str, list[Object]] = {}
    for pod in pods:
        by_node.setdefault(_node_of(pod), []).append(pod)
    return tuple(
        _agent(node, by_node.get(node["metadata"]["name"], ()), revision)
        for node in sorted(nodes, key=lambda one: one["metadata"]["name"])
        if node.get("status", {}).get("nodeInfo", {}).get("operatingSystem", "linux") == "linux"
    )


def _node_of(pod: Object) -> str:
    """Return for which node a pod is, also before a scheduler has placed it (the DaemonSet controller says it)."""
    spec = pod["spec"]
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    needed = (
        spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    for term in needed.get("nodeSelectorTerms", ()):
        for field in term.get("matchFields", ()):
            if field["key"] == "metadata.name":
                return str(field["values"][0])
    return ""


def _agent(node: Object, pods: Sequence[Object], revision: str) -> AgentOn:
    name, reachable = node["metadata"]["name"], is_heard(node)
    living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    if not living:
        why = "its old pod is ending" if pods else "there is no pod for it yet"
        return AgentOn(name, why=why if reachable else _silent(node), reachable=reachable)
    pod = max(living, key=lambda one: one["metadata"].get("creationTimestamp", ""))
    image = str(pod["spec"]["containers"][0]["image"])
    why = why_not_ready(pod)
    if not reachable:
        why = _silent(node)
    elif revision and pod["metadata"].get("labels", {}).get(HASH, "") != revision:
        why = f"{_WAITS}; the former one {'is ready' if not why else f'is not ready: {why}'}"
    return AgentOn(name, image, why, pod["metadata"]["name"], reachable)


def is_heard(node: Object) -> bool:
    """Tell whether a node's kubelet is heard, as far as the Node object says."""
    conditions = node.get("status", {}).get("conditions", ())
    return not any(one["type"] == "Ready" and one["status"] == "Unknown" for one in conditions)


def _silent(node: Object) -> str:
    conditions = node.get("status", {}).get("conditions", ())
    told = next((one.get("message", "") for one in conditions if one["type"] == "Ready"), "")
    return f"the node's kubelet is not heard: {told or 'it never was'}"


def why_not_ready(pod: Object) -> str:
    """Return in words why a pod is not ready; empty if it is."""
    status: Mapping[str, Any] = pod.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    if conditions.get("Ready", {}).get("status") == "True":
        return ""
    for one in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if told := _why_of(one):
            return told
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"it cannot be placed: {scheduled.get('message', '')}"
    if status.get("reason") or status.get("message"):
        return ": ".join(filter(None, (status.get("reason", ""), status.get("message", ""))))
    return "its containers have not begun yet"


def _why_of(container: Mapping[str, Any]) -> str:
    name, state = container["name"], container.get("state", {})
    last = container.get("lastState", {}).get("terminated", {})
    if "terminated" in state and (code := state["terminated"].get("exitCode")):
        return f"container {name} ended with status {code}{_message(state['terminated'])}"
    if "waiting" in state:
        told = f"container {name} waits: {state['waiting'].get('reason', '')}{_message(state['waiting'])}"
        return f"{told} (it ended with status {last.get('exitCode')}{_message(last)})" if last else told
    if "running" in state and not container.get("ready"):
        return f"container {name} runs since {state['running'].get('startedAt', '?')} and is not ready"
    return ""


def _message(state: Mapping[str, Any]) -> str:
    return f": {' '.join(state['message'].split())}" if state.get("message") else ""


def newest_revision(revisions: Iterable[Object], daemonset: Object) -> str:
    """Return the hash of a DaemonSet's newest revision, empty if its controller has made none yet."""
    own = [one for one in revisions if _owns(daemonset, one)]
    newest = max(own, key=lambda one: int(one["revision"]), default=None)
    return str(newest["metadata"]["labels"].get(HASH, "")) if newest else ""


def former_template(revisions: Iterable[Object], daemonset: Object) -> dict[str, Any] | None:
    """Return the pod template that a DaemonSet had before its present one; None if no other is known."""
    own = sorted((one for one in revisions if _owns(daemonset, one)), key=lambda one: -int(one["revision"]))
    for one in own[1:]:
        template: dict[str, Any] = {**one["data"]["spec"]["template"]}
        template.pop("$patch", None)  # the data are a strategic merge patch that replaces the template
        return template
    return None


def _owns(owner: Object, owned: Object) -> bool:
    uid = owner["metadata"].get("uid", "")
    return any(one.get("uid") == uid for one in owned["metadata"].get("ownerReferences", ()))


def daemonset_is_seen(daemonset: Object) -> bool:
    """Tell whether the DaemonSet controller knows the present template."""
    observed = daemonset.get("status", {}).get("observedGeneration", 0)
    return bool(observed >= daemonset["metadata"].get("generation", 0))


class Looked(msgspec.Struct, frozen=True):
    """Agents and controller at one moment."""

    agents: tuple[AgentOn, ...]
    seen: bool
    """Whether the DaemonSet's controller has taken its present template up."""
    controllers: tuple[int, int]
    """How many are ready, and how many there ought to be."""


async def look(api: Api) -> Looked:
    """Ask how agents and controllers are. Raises StoreUnavailable and StoreForbidden."""
    daemonset, deployment, nodes, pods, revisions = await asyncio.gather(
        api.find(place("apps/v1", "daemonsets", NAMESPACE, AGENT)),
        api.find(place("apps/v1", "deployments", NAMESPACE, CONTROLLER)),
        api.list(place("v1", "nodes")),
        api.list(place("v1", "pods", NAMESPACE), labelSelector=f"{COMPONENT}agent"),
        api.list(place("apps/v1", "controllerrevisions", NAMESPACE), labelSelector=f"{COMPONENT}agent"),
    )
    revision = newest_revision(revisions, daemonset) if daemonset else ""
    status = (deployment or {}).get("status", {})
    wanted = (deployment or {}).get("spec", {}).get("replicas", 1) if deployment else 0
    fresh = status.get("observedGeneration", 0) >= (deployment or {}).get("metadata", {}).get("generation", 0)
    ready = min(status.get("readyReplicas", 0), status.get("updatedReplicas", 0)) if fresh else 0
    return Looked(
        agents_on(nodes, pods, revision), daemonset is not None and daemonset_is_seen(daemonset), (ready, wanted)
    )


class Progress:
    """Tells what changed from look to look, each thing once; `done` is what is said of what is ready."""

    def __init__(self, report: Report, done: str = "the agent is ready") -> None:
        self._report = report
        self._done = done
        self._told: dict[str, str] = {}

    def tell(self, agents: Sequence[AgentOn]) -> bool:
        """Tell which became ready since the last time, and why others are not; return whether any did."""
        ready = sum(one.ready for one in agents)
        moved = False
        for one in agents:
            words = "ready" if one.ready else one.why
            if self._told.get(one.node) == words:
                continue
            if one.ready:
                moved = True
                self._report(f"{one.node}: {self._done} ({ready} of {len(agents)})")
            elif _is_worth_telling(one.why):
                self._report(f"{one.node}: {one.why}")
            self._told[one.node] = words
        return moved


def _is_worth_telling(why: str) -> bool:
    quiet = ("there is no pod", "its containers have not", _WAITS, "its old pod", "container agent runs")
    return not why.startswith(quiet) and "PodInitializing" not in why and "ContainerCreating" not in why


async def until_ready(api: Api, report: Report, patience: float) -> Looked:
    """Wait until the agents of all nodes that are heard are ready, each of which may take so many seconds.

    Raises ClusterError that names the nodes whose agents did not come up, and why.
    """
    progress, since = Progress(report), time.monotonic()
    while True:
        try:
            looked = await look(api)
        except StoreUnavailable as error:
            if time.monotonic() - since > patience:
                raise
            report(f"waiting: {error.message}")
            await asyncio.sleep(LOOK)
            continue
        if progress.tell(looked.agents):
            since = time.monotonic()
        awaited = [one for one in looked.agents if one.reachable and not one.ready]
        if looked.seen and not awaited:
            for one in looked.agents:
                if not one.reachable:
                    report(f"{one.node}: not waited for: {one.why}")
            return looked
        if time.monotonic() - since > patience:
            raise await _stuck(api, looked, awaited, patience)
        await asyncio.sleep(LOOK)


async def until_controlled(api: Api, report: Report, patience: float) -> None:
    """Wait until a controller works. Raises ClusterError."""
    deadline = time.monotonic() + patience
    while True:
        ready, wanted = (await look(api)).controllers
        if ready or not wanted:
            report(f"controller: {ready} of {wanted} ready")
            return
        if time.monotonic() > deadline:
            pods = await api.list(place("v1", "pods", NAMESPACE), labelSelector=f"{COMPONENT}controller")
            told = "; ".join(sorted(filter(None, map(why_not_ready, pods)))) or "there is no pod of it"
            raise ClusterError(
                f"no controller is ready after {patience:g} s: {told}",
                hint="pods do not need it, but certificates and removed nodes' blocks wait: "
                f"kubectl -n {NAMESPACE} describe deployment {CONTROLLER}",
            )
        await asyncio.sleep(LOOK)


async def _stuck(api: Api, looked: Looked, awaited: Sequence[AgentOn], patience: float) -> ClusterError:
    if not looked.seen:
        return ClusterError(
            f"nobody has taken up the DaemonSet {AGENT} for {patience:g} s",
            hint="does kube-controller-manager run?",
        )
    # Those that wait for their turn wait for another, which may be one on a node that is gone.
    gone = [one for one in looked.agents if not one.reachable]
    blamed = [one for one in awaited if not one.why.startswith(_WAITS)] or gone or awaited
    lines = []
    for one in blamed[:5]:
        lines.append(f"\n  {one.node}: {one.why}")
        lines += [f"\n    {line}" for line in await _last_words(api, one)]
    more = f"\n  and {len(blamed) - 5} more nodes" if len(blamed) > 5 else ""
    ready = sum(one.ready for one in looked.agents)
    which = blamed[0].pod or f"-l {COMPONENT}agent"
    return ClusterError(
        f"{ready} of {len(looked.agents)} agents are ready, and no other came up for {patience:g} s:"
        f"{''.join(lines)}{more}",
        hint=f"kubectl -n {NAMESPACE} describe pod {which}; pods go on meanwhile",
    )


async def _last_words(api: Api, agent: AgentOn) -> Iterator[str]:
    """Return the last events and lines of an agent's pod, as far as they can be had."""
    if not agent.pod:
        return iter(())
    events = await api.list(
        place("v1", "events", NAMESPACE), fieldSelector=f"involvedObject.name={agent.pod},type=Warning"
    )
    told = [" ".join(one.get("message", "").split()) for one in events[-2:]]
    try:
        path = place("v1", "pods", NAMESPACE, agent.pod) + "/log"
        log = await api.text(path, container="agent", tailLines=LOG_LINES)
    except StoreUnavailable:
        log = ""  # the kubelet cannot be asked: then its events are all there is
    return iter((*told, *log.splitlines()))


def images(looked: Looked) -> tuple[str, ...]:
    """Return the images that agents run, each once."""
    return tuple(sorted({one.image for one in looked.agents if one.image}))


def installed_image(daemonset: Object | None) -> str:
    """Return the image of the agents' DaemonSet, empty if there is none."""
    return image_of(daemonset) if daemonset else ""
