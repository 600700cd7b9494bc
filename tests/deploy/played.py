"""What DaemonSet controller, kubelets and garbage collector do, as far as rollouts need it: on a real API server.

`./dev test-kubernetes` has the real ones; this is quick, and a node can be made to fail at will.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.kubernetes import Answer, ApiServer

NAMESPACES = ("podway", "kube-system")


def pods_of(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def sets_of(namespace: str) -> str:
    return f"/apis/apps/v1/namespaces/{namespace}/daemonsets"


def revisions_of(namespace: str) -> str:
    return f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions"


PODS, SETS = pods_of("podway"), sets_of("podway")
DEPLOYMENTS = "/apis/apps/v1/namespaces/podway/deployments"
MERGE = "application/merge-patch+json"
LOOK = 0.1


class Played:
    """Runs in a thread from `with` to its end; `broken` are DaemonSets, nodes and images that do not come up."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.broken: set[tuple[str, str, str]] = set()
        self.most_unready = 0
        """How many nodes at most had no ready agent at one moment while a template was replaced."""
        self.ending = 0.0
        """Seconds that pods take to end once their DaemonSet is gone."""
        self.cleaned_beside_agents = 0
        """How often pods of the cleaner were there while there was a DaemonSet of agents."""
        self.story: list[tuple[str, str, str]] = []
        """Which DaemonSets got pods, `comes`, or lost their last, `goes`, and whom Podway was to serve then."""
        self._orphans: dict[str, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> "Played":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._end.wait(LOOK):
                for namespace in NAMESPACES:
                    self._sets(namespace)
                self._controllers()
                self._namespaces()
        except BaseException as error:  # noqa: BLE001 - told where the test ends
            self.failure = error

    def _items(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.ask("GET", path)["items"]
        return found

    def _sets(self, namespace: str) -> None:
        sets = self._items(sets_of(namespace))
        uids = {one["metadata"]["uid"] for one in sets}
        names = {one["metadata"]["name"] for one in sets}
        pods = [one["metadata"]["name"] for one in self._items(pods_of(namespace))]
        cleaners = [name for name in pods if name.startswith("podway-cleaner-")]
        self.cleaned_beside_agents += bool(cleaners and "podway-agent" in names)
        for path in (pods_of(namespace), revisions_of(namespace)):
            for one in self._items(path):
                if not any(owner["uid"] in uids for owner in one["metadata"].get("ownerReferences", ())):
                    since = self._orphans.setdefault(one["metadata"]["uid"], time.monotonic())
                    if path == pods_of(namespace) and time.monotonic() - since < self.ending:
                        continue
                    self._delete(f"{path}/{one['metadata']['name']}?gracePeriodSeconds=0")
        for one in sets:
            self._set(one)

    def _set(self, daemonset: dict[str, Any]) -> None:
        name, template = daemonset["metadata"]["name"], daemonset["spec"]["template"]
        path = pods_of(daemonset["metadata"]["namespace"])
        mark = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
        owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": daemonset["metadata"]["uid"]}
        self._revise(daemonset, mark, owner)
        own = [pod for pod in self._items(path) if pod["metadata"]["name"].startswith(f"{name}-")]
        by_node = {pod["spec"]["nodeName"]: pod for pod in own}
        wanted = template["spec"].get("nodeSelector", {}).items()
        found = self._items("/api/v1/nodes")
        nodes = [one["metadata"]["name"] for one in found if wanted <= one["metadata"]["labels"].items()]
        for node in by_node.keys() - set(nodes):
            self._delete(f"{path}/{by_node[node]['metadata']['name']}?gracePeriodSeconds=0")
        if bool(by_node) != bool(nodes):
            self.story.append((name, "comes" if nodes else "goes", self._served()))
        unready = [node for node in nodes if node not in by_node or not self._is_ready(by_node[node])]
        fresh = bool(by_node)
        for node in nodes:
            if node not in by_node:
                self._create(daemonset, node, mark, owner)
        old = [node for node in nodes if node in by_node and self._mark(by_node[node]) != mark]
        if fresh and old and name == "podway-agent":
            self.most_unready = max(self.most_unready, len(unready))
        # As the DaemonSet controller does with maxUnavailable: 1.
        first = [node for node in old if node in unready] or ([] if unready else old[:1])
        for node in first:
            self._delete(f"{path}/{by_node[node]['metadata']['name']}?gracePeriodSeconds=0")
        status = {"observedGeneration": daemonset["metadata"]["generation"]}
        counts = dict.fromkeys(("currentNumberScheduled", "numberMisscheduled", "numberReady"), 0)
        body = {"status": {**status, **counts, "desiredNumberScheduled": len(nodes)}}
        if daemonset.get("status", {}).get("observedGeneration") != daemonset["metadata"]["generation"]:
            self._patch(f"{sets_of(daemonset['metadata']['namespace'])}/{name}/status", body)

    def _served(self) -> str:
        try:
            settings = self.server.ask("GET", "/apis/podway.io/v1/networkconfigs/default")
        except Answer:
            return "off"  # there are none yet, or no such kind
        return str(settings["spec"].get("services", "off"))

    def _revise(self, daemonset: dict[str, Any], mark: str, owner: dict[str, Any]) -> None:
        path = revisions_of(daemonset["metadata"]["namespace"])
        found = [one for one in self._items(path) if owner["uid"] in json.dumps(one["metadata"])]
        newest = max((one["revision"] for one in found), default=0)
        same = [one for one in found if one["metadata"]["labels"]["controller-revision-hash"] == mark]
        name = f"{daemonset['metadata']['name']}-{mark}"
        if same and same[0]["revision"] < newest:
            self.server.ask("PUT", f"{path}/{name}", {**same[0], "revision": newest + 1})
        if same:
            return
        labels = {**daemonset["spec"]["template"]["metadata"]["labels"], "controller-revision-hash": mark}
        body = {
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "data": {"spec": {"template": {**daemonset["spec"]["template"], "$patch": "replace"}}},
            "revision": newest + 1,
        }
        self.server.ask("POST", path, body)

    def _create(self, daemonset: dict[str, Any], node: str, mark: str, owner: dict[str, Any]) -> None:
        template, path = daemonset["spec"]["template"], pods_of(daemonset["metadata"]["namespace"])
        labels = {**template["metadata"]["labels"], "controller-revision-hash": mark}
        name = f"{daemonset['metadata']['name']}-{node}-{mark}"
        body = {
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {**template["spec"], "nodeName": node},
        }
        self.server.ask("POST", path, body)
        container = template["spec"]["containers"][0]
        if (daemonset["metadata"]["name"], node, container["image"]) in self.broken:
            state = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
            one = {"name": container["name"], "ready": False, "restartCount": 0, "image": "", "imageID": ""}
            status = {"phase": "Pending", "containerStatuses": [{**one, "state": state}]}
        else:
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        self._patch(f"{path}/{name}/status", {"status": status})

    def _controllers(self) -> None:
        for one in self._items(DEPLOYMENTS):
            generation, replicas = one["metadata"]["generation"], one["spec"]["replicas"]
            if one.get("status", {}).get("observedGeneration") != generation:
                told = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), replicas)
                path = f"{DEPLOYMENTS}/{one['metadata']['name']}/status"
                self._patch(path, {"status": {"observedGeneration": generation, **told}})

    def _namespaces(self) -> None:
        for one in self._items("/api/v1/namespaces"):
            name = one["metadata"]["name"]
            if one["status"].get("phase") != "Terminating":
                continue
            for path in self._namespaced(name):
                for each in self._items(path):
                    self._delete(f"{path}/{each['metadata']['name']}?gracePeriodSeconds=0")
            one["spec"]["finalizers"] = []
            self.server.ask("PUT", f"/api/v1/namespaces/{name}/finalize", one)

    def _namespaced(self, namespace: str) -> Iterator[str]:
        for path, resource in resources(self.server):
            if resource["namespaced"] and "delete" in resource["verbs"]:
                yield f"{path}/namespaces/{namespace}/{resource['name']}"

    @staticmethod
    def _mark(pod: dict[str, Any]) -> str:
        return str(pod["metadata"]["labels"]["controller-revision-hash"])

    @staticmethod
    def _is_ready(pod: dict[str, Any]) -> bool:
        conditions = pod["status"].get("conditions") or ()
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def _patch(self, path: str, body: dict[str, Any]) -> None:
        try:
            self.server.ask("PATCH", path, body, content=MERGE)
        except Answer as answer:
            if answer.status != 404:
                raise

    def _delete(self, path: str) -> None:
        try:
            self.server.ask("DELETE", path)
        except Answer as answer:
            if answer.status != 404:
                raise


def resources(server: ApiServer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every resource that an API server lists, with the path of its group and version."""
    groups = server.ask("GET", "/apis")["groups"]
    for path in ("/api/v1", *(f"/apis/{one['preferredVersion']['groupVersion']}" for one in groups)):
        for resource in server.ask("GET", path)["resources"]:
            if "/" not in resource["name"] and "list" in resource["verbs"]:
                yield path, resource
