"""Who speaks to whom: workloads of namespaces, and what flowed between them. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping

from podway.api.kinds.namespace import Namespace
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource, of_kind
from podway.console.network import Shown
from podway.flows.query import PAIR, Row

OUTSIDE = "outside"
NODES = "nodes"
"""What stands in the place of a workload for what is none: the world, and the nodes themselves."""

_NAMES = ("app.kubernetes.io/name", "k8s-app", "app")
"""Labels that say what a pod is part of, the first that is there."""

_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"
"""The letters of the names that Kubernetes makes up (apimachinery, util/rand)."""

_MADE_UP = re.compile(rf"-(?:{_SAFE}{{6,10}}-)?{_SAFE}{{5}}$|-\d+$")


class Workload(Shown, frozen=True):
    """Pods of a namespace that are one thing. `name` is NAMESPACE/WORKLOAD."""

    name: str
    namespace: str
    pods: int
    running: int
    nodes: int


class Edge(Shown, frozen=True):
    """What went from one workload to another: flows that began, packets denied and dropped, bytes of those that
    ended, and when anything was seen last (seconds since 1970). A connection of two nodes is counted by both."""

    source: str
    target: str
    flows: int
    denied: int
    dropped: int
    octets: int
    last: float


class Talk(Shown, frozen=True):
    """All workloads and edges; `more` pairs are left out."""

    namespaces: tuple[str, ...]
    workloads: tuple[Workload, ...]
    edges: tuple[Edge, ...]
    more: int


def workload_of(name: str, labels: Mapping[str, str]) -> str:
    """Return what a pod is part of: what its labels say, else its name without the part that was made up."""
    said = next((labels[label] for label in _NAMES if labels.get(label)), "")
    return said or _MADE_UP.sub("", name) or name


def talk(objects: Iterable[Resource], rows: Iterable[Row], more: int = 0) -> Talk:
    """Return the workloads of a cluster, and of sums by pairs (podway.flows.query) what went between them."""
    known = tuple(objects)
    of_pods: dict[str, str] = {}
    members: dict[str, list[Pod]] = {}
    for pod in of_kind(Pod, known):
        space = pod.metadata.namespace
        name = f"{space}/{workload_of(pod.metadata.name, pod.metadata.labels)}"
        of_pods[f"{space}/{pod.metadata.name}"] = name
        members.setdefault(name, []).append(pod)
    edges: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        source, arrow, target = row.key.partition(PAIR)
        if not arrow:
            continue
        total = edges.setdefault((_end(source, of_pods), _end(target, of_pods)), [0, 0, 0, 0, 0.0])
        for at, value in enumerate((row.flows, row.denied, row.dropped, row.octets)):
            total[at] += value
        total[4] = max(total[4], row.last)
    for end in {end for pair in edges for end in pair} - {OUTSIDE, NODES}:
        members.setdefault(end, [])  # its pods are gone
    spaces = {one.metadata.name for one in of_kind(Namespace, known)}
    spaces |= {name.partition("/")[0] for name in members}
    return Talk(
        tuple(sorted(spaces)),
        tuple(_workloads(members)),
        tuple(
            Edge(source, target, int(total[0]), int(total[1]), int(total[2]), int(total[3]), total[4])
            for (source, target), total in edges.items()
        ),
        more,
    )


def _end(label: str, of_pods: Mapping[str, str]) -> str:
    if label in of_pods:
        return of_pods[label]
    space, slash, name = label.partition("/")
    if not slash:
        return OUTSIDE
    return NODES if space == "node" else f"{space}/{workload_of(name, {})}"


def _workloads(members: Mapping[str, Iterable[Pod]]) -> Iterator[Workload]:
    for name, pods in sorted(members.items()):
        every = tuple(pods)
        yield Workload(
            name,
            name.partition("/")[0],
            len(every),
            sum(pod.status.phase == "Running" for pod in every),
            len({pod.spec.node_name for pod in every}),
        )
