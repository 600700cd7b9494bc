"""`podway cluster` on a real API server: install, status, upgrade, back, uninstall that leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podway.deploy.objects import IMAGE
from podway.kernel import netns
from tests.deploy.played import PODS, SETS, Played, resources, sets_of
from tests.kubernetes import NOBODY, Answer, ApiServer
from tests.patience import PATIENCE, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

NEXT = "podway.io/podway:9.9.9"
NODES = ("n1", "n2", "n3")
MERGE = "application/merge-patch+json"


class Cluster:
    """An API server with three Nodes, and our command as somebody calls it who is not root there."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server = server
        self._config = directory / "config"
        self._config.write_text(yaml.safe_dump(server.kubeconfig()))

    def podway(self, *arguments: str, status: int = 0, token: str = "") -> str:
        config = self._config
        if token:
            config = config.with_name("other")
            config.write_text(yaml.safe_dump(self.server.kubeconfig(token=token)))
        with self.begun(*arguments, config=config) as process:
            out, err = process.communicate(timeout=80)
        assert process.returncode == status, out + err
        return out + err

    def begun(self, *arguments: str, config: Path | None = None) -> subprocess.Popen[str]:
        """Return the command as it runs."""
        command = [sys.executable, "-u", "-m", "podway", "cluster", *arguments]
        environment = {**os.environ, "KUBECONFIG": str(config or self._config), "PODWAY_LAB": "nosuchlab"}
        return netns.run(
            self.server.fd,
            lambda: subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            ),
        )

    def patch(self, path: str, body: Any) -> None:
        self.server.ask("PATCH", path, body, content=MERGE)

    def images(self) -> dict[str, str]:
        """Return what the agents on nodes run."""
        pods = self.server.ask("GET", f"{PODS}?labelSelector=app.kubernetes.io/component=agent")["items"]
        return {pod["spec"]["nodeName"]: pod["spec"]["containers"][0]["image"] for pod in pods}

    def running(self, component: str) -> int:
        """Return how many pods there are of a part of Podway."""
        found = self.server.ask("GET", f"{PODS}?labelSelector=app.kubernetes.io/component={component}")
        return len(found["items"])

    def cleans(self) -> dict[str, str]:
        """Return by which image nodes are cleaned, in which of their directories, and on which nodes."""
        spec = self.server.ask("GET", f"{SETS}/podway-cleaner")["spec"]["template"]["spec"]
        paths = {one["name"]: one["hostPath"]["path"] for one in spec["volumes"]}
        return {"image": spec["initContainers"][0]["image"], **paths, **spec["nodeSelector"]}

    def named(self) -> set[str]:
        """Return the path of every object that has something of Podway's in its name."""
        found = set()
        for path, resource in resources(self.server):
            for one in self._listed(f"{path}/{resource['name']}"):
                whole = f"{path}/{resource['name']}/{one['metadata']['name']}"
                found |= {whole} if "podway" in whole else set()
        return found

    def _listed(self, path: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                items: list[dict[str, Any]] = self.server.ask("GET", path)["items"]
            except Answer as answer:
                # A resource that has just been defined is not read from its store yet: one is to ask again.
                if answer.status != 429 or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return items


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server that knows nothing of Podway."""
    server = ApiServer(tmp_path_factory.mktemp("installed"))
    try:
        server.start()
        for number, name in enumerate(NODES, 1):
            labels = {"kubernetes.io/os": "linux"}
            server.ask("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
            status = {
                "addresses": [{"type": "InternalIP", "address": f"172.30.0.{number}"}],
                "nodeInfo": {"kernelVersion": "6.12.1", "operatingSystem": "linux", "architecture": "amd64"},
                "conditions": [
                    {"type": "Ready", "status": "False"},
                    {"type": "NetworkUnavailable", "status": "True", "reason": "NoNetwork"},
                ],
            }
            info = {"bootID": "", "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": ""}
            status["nodeInfo"] |= {**info, "machineID": "", "osImage": "", "systemUUID": ""}  # type: ignore[operator]
            server.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, content=MERGE)
        yield Cluster(server, tmp_path_factory.mktemp("config"))
    finally:
        server.stop()


@pytest.fixture(scope="module")
def played(cluster: Cluster) -> Iterator[Played]:
    cluster.server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "shop"}})
    with Played(cluster.server) as made:
        yield made


def test_who_may_too_little_is_told_by_verb_and_resource(cluster: Cluster) -> None:
    before = cluster.named()
    told = cluster.podway("install", "--kube-proxy", "replace", status=1, token=NOBODY)
    assert "you may not create networkconfigs.podway.io" in told
    assert "you may not get daemonsets.apps in namespace kube-system" in told
    assert "you may not patch daemonsets.apps in namespace podway" in told
    assert "you may not create customresourcedefinitions.apiextensions.k8s.io" in told
    assert "you may not list nodes" in told
    assert "nothing was changed" in told
    assert cluster.named() == before == set()


def test_ranges_that_overlap_are_told(cluster: Cluster) -> None:
    told = cluster.podway("install", "--pool", "10.96.0.0/16", status=1)
    assert "pool 10.96.0.0/16 (10.96.0.0/16) overlaps the Services' range 10.96.0.0/12" in told
    told = cluster.podway("install", "--pool", "172.30.0.0/16", status=1)
    assert "overlaps 172.30.0.2 of Node n2" in told
    assert cluster.named() == set()


def test_another_plugin_is_told(cluster: Cluster) -> None:
    containers = [{"name": "x", "image": "x"}]
    labels = {"app": "calico"}
    body = {
        "metadata": {"name": "calico-node"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
    }
    path = "/apis/apps/v1/namespaces/kube-system/daemonsets"
    cluster.server.ask("POST", path, body)
    try:
        told = cluster.podway("install", status=1)
        assert "Calico is the network here: DaemonSet/kube-system/calico-node" in told
    finally:
        cluster.server.ask("DELETE", f"{path}/calico-node")
    assert cluster.named() == set()


def test_a_node_without_address_is_told(cluster: Cluster) -> None:
    cluster.server.ask("POST", "/api/v1/nodes", {"metadata": {"name": "bare.example.com"}})
    try:
        told = cluster.podway("install", status=1)
        assert "Node bare.example.com has no InternalIP" in told
    finally:
        cluster.server.ask("DELETE", "/api/v1/nodes/bare.example.com")


def test_what_a_dry_run_prints_is_taken(cluster: Cluster) -> None:
    """Nobody is asked for it; what it prints the API server takes (but for kinds that it does not know yet)."""
    told = cluster.podway("install", "--dry-run", "--image", NEXT, "--pool", "10.9.0.0/16")
    documents = [one for one in yaml.safe_load_all(told) if one]
    kinds = {one["kind"] for one in documents}
    assert {"DaemonSet", "FlowSchema", "PriorityLevelConfiguration", "PodDisruptionBudget"} <= kinds
    config = next(one for one in documents if one["kind"] == "ConfigMap")
    assert config["data"]["pools"] == "10.9.0.0/16"
    assert told.count(NEXT) == 2
    assert cluster.named() == set()


def test_it_is_installed_and_waits_for_every_node(cluster: Cluster, played: Played) -> None:
    assert "podway cluster install" in cluster.podway("status", status=1)
    told = cluster.podway("install", "--encapsulation", "vxlan")
    for node in NODES:
        assert f"{node}: the agent is ready" in told
    assert f"3 of 3 nodes have a ready agent of {IMAGE}" in told
    assert "controller: 2 of 2 ready" in told
    pool = cluster.server.ask("GET", "/apis/podway.io/v1/ippools/default-ipv4")
    assert pool["spec"] == {"cidr": "10.244.0.0/16", "encapsulation": "vxlan", "when": "always"}


def test_doing_it_again_changes_nothing(cluster: Cluster, played: Played) -> None:
    before = cluster.server.ask("GET", f"{SETS}/podway-agent")["metadata"]["generation"]
    cluster.podway("install")
    assert cluster.server.ask("GET", f"{SETS}/podway-agent")["metadata"]["generation"] == before
    told = cluster.podway("install", "--pool", "10.55.0.0/16", status=1)
    assert "the cluster has pools already, which count alone: 10.244.0.0/16" in told
    assert f"{IMAGE} is installed, and not {NEXT}" in cluster.podway("install", "--image", NEXT, status=1)


def test_status_tells_versions_nodes_and_definitions(cluster: Cluster, played: Played) -> None:
    told = json.loads(cluster.podway("status", "-o", "json", status=1))
    assert [(one["node"], one["ready"], one["kernel"]) for one in told["nodes"]] == [
        (node, True, "6.12.1") for node in NODES
    ]
    assert set(told["definitions"].values()) == {"current"}
    assert told["problems"] == ["IPPool default-ipv4: not judged yet"], "no controller runs here"
    condition = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}
    status = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    cluster.patch("/apis/podway.io/v1/ippools/default-ipv4/status", {"status": status})
    shown = cluster.podway("status")
    assert "agents        3 of 3 ready" in shown
    assert "definitions   6 of 6 current" in shown
    assert f"n2     ready   {IMAGE.rpartition(':')[2]}" in shown


def test_no_agent_ends_for_an_image_that_is_not_everywhere(cluster: Cluster, played: Played) -> None:
    played.broken = {("podway-fetcher", "n2", NEXT)}
    told = cluster.podway("upgrade", "--image", NEXT, "--timeout", "3", status=1)
    assert f"nothing was changed, {NEXT} cannot be run everywhere: on 1 of 3 nodes" in told
    assert "n2: container done waits: ImagePullBackOff" in told
    assert cluster.images() == dict.fromkeys(NODES, IMAGE)
    assert not [one for one in cluster.named() if "fetcher" in one and "daemonsets" in one]


def test_an_upgrade_stops_at_the_node_that_fails_and_goes_back(cluster: Cluster, played: Played) -> None:
    played.broken = {("podway-agent", "n1", NEXT)}
    told = cluster.podway("upgrade", "--image", NEXT, "--timeout", "3", status=1)
    assert f"from {IMAGE} to {NEXT}" in told
    assert "n1: container agent waits: ImagePullBackOff: Back-off pulling image" in told
    assert "podway cluster upgrade --rollback" in told
    assert cluster.images() == {"n1": NEXT, "n2": IMAGE, "n3": IMAGE}, "the others keep theirs"
    deployment = cluster.server.ask("GET", "/apis/apps/v1/namespaces/podway/deployments/podway-controller")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE, "agents come first"
    told = cluster.podway("upgrade", "--rollback")
    assert f"back from {NEXT} to {IMAGE}" in told
    assert cluster.images() == dict.fromkeys(NODES, IMAGE)


def test_an_upgrade_goes_one_node_after_the_other(cluster: Cluster, played: Played) -> None:
    played.broken, played.most_unready = set(), 0
    told = cluster.podway("upgrade", "--image", NEXT)
    assert f"3 of 3 nodes have a ready agent of {NEXT}" in told
    assert cluster.images() == dict.fromkeys(NODES, NEXT)
    assert played.most_unready <= 1
    cluster.podway("upgrade", "--rollback")
    assert cluster.images() == dict.fromkeys(NODES, IMAGE)


def test_newer_definitions_are_told(cluster: Cluster, played: Played) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ippools.podway.io"
    cluster.patch(path, {"metadata": {"annotations": {"podway.io/version": "77.0.0"}}})
    told = cluster.podway("upgrade", status=1)
    assert "definitions are newer than this Podway: ippools.podway.io" in told
    assert "ippools.podway.io: newer" in cluster.podway("status", status=1)
    cluster.patch(path, {"metadata": {"annotations": {"podway.io/version": "0.0.1"}}})
    assert "will be brought up to date: ippools.podway.io" in cluster.podway("upgrade")


def test_what_others_have_set_is_named_and_not_overwritten(cluster: Cluster, played: Played) -> None:
    agent, deployments = f"{SETS}/podway-agent", "/apis/apps/v1/namespaces/podway/deployments"
    template = cluster.server.ask("GET", agent)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    ours = container["args"]
    mine = {"name": "MINE", "value": "stays"}
    container |= {"args": [*ours, "--metrics", "127.0.0.1:9000"], "env": [*container["env"], mine]}
    template["spec"]["tolerations"] = [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
    cluster.patch(f"{agent}?fieldManager=kubectl-edit", {"spec": {"template": template}})
    cluster.patch(f"{deployments}/podway-controller?fieldManager=kubectl", {"spec": {"replicas": 3}})
    changed = cluster.server.ask("GET", agent)["metadata"]["generation"]
    for command in ("install", "upgrade"):
        told = cluster.podway(command, status=1)
        assert "nothing was changed: others have set 3 fields otherwise" in told
        where = "DaemonSet/podway/podway-agent: .spec.template.spec"
        assert f'{where}.containers[name="agent"].args, set by kubectl-edit' in told
        assert f"{where}.tolerations, set by kubectl-edit" in told
        assert "Deployment/podway/podway-controller: .spec.replicas, set by kubectl" in told
        assert "--force-conflicts" in told
        assert cluster.server.ask("GET", agent)["metadata"]["generation"] == changed
    assert "overwritten: Deployment/podway/podway-controller: .spec.replicas" in cluster.podway(
        "upgrade", "--force-conflicts"
    )
    spec = cluster.server.ask("GET", agent)["spec"]["template"]["spec"]
    assert spec["containers"][0]["args"] == ours
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert mine in spec["containers"][0]["env"], "of which the manifests say nothing"
    assert cluster.server.ask("GET", f"{deployments}/podway-controller")["spec"]["replicas"] == 2
    cluster.podway("upgrade")


def test_going_back_leaves_what_others_have_set_beside_the_template(cluster: Cluster, played: Played) -> None:
    deployment = "/apis/apps/v1/namespaces/podway/deployments/podway-controller"
    cluster.podway("upgrade", "--image", NEXT)
    cluster.patch(f"{SETS}/podway-agent?fieldManager=kubectl", {"spec": {"minReadySeconds": 0}})
    strategy = {"rollingUpdate": {"maxUnavailable": 2}}
    cluster.patch(f"{SETS}/podway-agent?fieldManager=kubectl", {"spec": {"updateStrategy": strategy}})
    both = cluster.podway("upgrade", "--rollback", "--force-conflicts", status=2)
    assert "--rollback goes back to a whole pod template" in both
    cluster.podway("upgrade", "--rollback")
    assert cluster.images() == dict.fromkeys(NODES, IMAGE)
    assert cluster.server.ask("GET", f"{SETS}/podway-agent")["spec"]["updateStrategy"]["rollingUpdate"] == {
        "maxSurge": 0,
        "maxUnavailable": 2,
    }
    assert cluster.server.ask("GET", deployment)["spec"]["replicas"] == 2
    cluster.podway("upgrade", "--force-conflicts")


def test_what_kubectl_applied_is_its_own_until_it_is_handed_over(cluster: Cluster, played: Played) -> None:
    template = cluster.server.ask("GET", f"{SETS}/podway-agent")["spec"]["template"]
    template["spec"]["containers"][0]["image"] = "podway.io/podway:0.0.1"
    path = f"{SETS}/podway-agent?fieldManager=kubectl-client-side-apply"
    cluster.patch(path, {"spec": {"template": template}})
    told = cluster.podway("upgrade", status=1)
    assert 'containers[name="agent"].image, set by kubectl-client-side-apply' in told
    assert "kubectl-client-side-apply is kubectl apply: go on with it and this version's manifests" in told
    cluster.podway("upgrade", "--force-conflicts")
    cluster.podway("upgrade")


PROXY = f"{sets_of('kube-system')}/kube-proxy"
SERVER = "https://control.example.com:6443"


def kubeadms_proxy(cluster: Cluster, mode: str = "nftables") -> None:
    """Make kube-proxy as kubeadm does, as far as Podway looks at it."""
    labels = {"k8s-app": "kube-proxy"}
    container = {
        "name": "kube-proxy",
        "image": "registry.k8s.io/kube-proxy:v1.37.2",
        "command": ["/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf"],
        "volumeMounts": [
            {"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"},
            {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
        ],
    }
    volumes = [
        {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
        {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
    ]
    pod = {
        "containers": [container],
        "volumes": volumes,
        "hostNetwork": True,
        "nodeSelector": {"kubernetes.io/os": "linux"},
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    body = {
        "metadata": {"name": "kube-proxy"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    cluster.server.ask("POST", sets_of("kube-system"), body)
    clusters = [{"name": "default", "cluster": {"server": SERVER}}]
    data = {"config.conf": f"mode: {mode}\n", "kubeconfig.conf": yaml.safe_dump({"clusters": clusters})}
    config = {"metadata": {"name": "kube-proxy"}, "data": data}
    cluster.server.ask("POST", "/api/v1/namespaces/kube-system/configmaps", config)


def agents_server(cluster: Cluster) -> list[str]:
    """Return where agents are told that the API server is."""
    (container,) = cluster.server.ask("GET", f"{SETS}/podway-agent")["spec"]["template"]["spec"]["containers"]
    return [one["value"] for one in container["env"] if one["name"].startswith("KUBERNETES_SERVICE_")]


def proxys_selector(cluster: Cluster) -> dict[str, str]:
    spec: dict[str, Any] = cluster.server.ask("GET", PROXY)["spec"]["template"]["spec"]
    return dict(spec["nodeSelector"])


def agents_end_after_kube_proxy_came(story: list[tuple[str, str, str]]) -> bool:
    """Tell whether kube-proxy's pods were there before the nodes' first cleaner, which comes after the agents."""
    events = [(name, what) for name, what, _ in story]
    return events.index(("kube-proxy", "comes")) < events.index(("podway-cleaner", "comes"))


SOON = ("--timeout", "6")
"""Soon enough for a test in which a node fails, and long enough for the others on a machine that is busy."""
STOPPED = {"kubernetes.io/os": "linux", "podway.io/kube-proxy": "true"}


def test_a_kube_proxy_that_cannot_be_stopped_is_told(cluster: Cluster, played: Played) -> None:
    told = cluster.podway("install", "--kube-proxy", "replace", status=1)
    assert "there is no DaemonSet kube-system/kube-proxy to stop" in told
    assert "k3s server --disable-kube-proxy" in told
    assert "nobody says where the API server is without Services" in told
    assert agents_server(cluster) == [], "nothing was changed"


def test_kube_proxy_is_replaced_once_podway_serves_everywhere(cluster: Cluster, played: Played) -> None:
    kubeadms_proxy(cluster)
    eventually(lambda: ("kube-proxy", "comes", "off") in played.story)
    played.story.clear()
    told = cluster.podway("install", "--kube-proxy", "replace")
    assert "agents ask the API server at control.example.com port 6443" in told
    for node in NODES:
        assert f"{node}: Podway serves Services" in told
        assert f"{node}: kube-proxy's rules are gone" in told
    assert played.story == [
        ("podway-witness", "comes", "all"),
        ("kube-proxy", "goes", "all"),
        ("podway-sweeper", "comes", "all"),
    ]
    settings = cluster.server.ask("GET", "/apis/podway.io/v1/networkconfigs/default")["spec"]
    (ranges,) = cluster.server.ask("GET", "/apis/networking.k8s.io/v1/servicecidrs")["items"]
    assert (settings["dataPath"], settings["serviceCidrs"]) == ("ebpf", ranges["spec"]["cidrs"])
    assert agents_server(cluster) == ["control.example.com", "6443"]
    assert proxys_selector(cluster) == STOPPED
    left = {one["metadata"]["name"] for one in cluster.server.ask("GET", SETS)["items"]}
    assert left == {"podway-agent"}, "errands are gone"


def test_who_may_not_bring_it_back_is_told_only_where_it_was_replaced(cluster: Cluster, played: Played) -> None:
    told = cluster.podway("uninstall", "--yes", status=1, token=NOBODY)
    assert "you may not get daemonsets.apps in namespace kube-system" in told
    assert "networkconfigs" not in told, "whether it was is not known"
    roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system"
    metadata = {"metadata": {"name": "looks"}}
    rules = [{"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]}]
    cluster.server.ask("POST", f"{roles}/roles", {**metadata, "rules": rules})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "looks"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "nobody"}
    cluster.server.ask("POST", f"{roles}/rolebindings", {**metadata, "roleRef": role, "subjects": [subject]})
    replaced = (
        "you may not patch daemonsets.apps in namespace kube-system; you may not patch networkconfigs.podway.io"
    )
    eventually(lambda: replaced in cluster.podway("uninstall", "--yes", status=1, token=NOBODY))


def test_an_upgrade_leaves_kube_proxy_replaced(cluster: Cluster, played: Played) -> None:
    cluster.podway("upgrade")
    assert agents_server(cluster) == ["control.example.com", "6443"]
    assert proxys_selector(cluster) == STOPPED


def services(cluster: Cluster) -> str:
    """Return whom Podway is to serve."""
    return str(cluster.server.ask("GET", "/apis/podway.io/v1/networkconfigs/default")["spec"]["services"])


def is_marked(cluster: Cluster) -> bool:
    """Tell whether kube-proxy's DaemonSet says that Podway serves in its place."""
    return "podway.io/kube-proxy" in cluster.server.ask("GET", PROXY)["metadata"].get("annotations", {})


def test_kube_proxy_is_back_before_podway_stops(cluster: Cluster, played: Played) -> None:
    """Also where an attempt before that failed, after which Podway goes on."""
    played.story.clear()
    played.broken = {("podway-witness", "n2", IMAGE)}
    told = cluster.podway("install", "--kube-proxy", "keep", *SOON, status=1)
    assert "Podway goes on: on" in told
    assert "\n  n2: " in told
    assert (services(cluster), is_marked(cluster)) == ("all", True)
    played.broken = set()
    told = cluster.podway("install", "--kube-proxy", "keep")
    for node in NODES:
        assert f"{node}: kube-proxy runs" in told
        assert f"{node}: kube-proxy serves Services" in told
    assert played.story[0] == ("kube-proxy", "comes", "all")
    assert set(played.story[1:]) == {("podway-witness", "comes", "all")}
    assert (services(cluster), is_marked(cluster)) == ("pods", False)
    assert proxys_selector(cluster) == {"kubernetes.io/os": "linux"}


def test_kube_proxy_goes_on_where_podway_does_not_serve_on_a_node(cluster: Cluster, played: Played) -> None:
    played.story.clear()
    played.broken = {("podway-witness", "n2", IMAGE)}
    told = cluster.podway("install", "--kube-proxy", "replace", *SOON, status=1)
    assert "kube-proxy goes on: on" in told
    assert "\n  n2: " in told
    assert played.story == [("podway-witness", "comes", "all")]
    assert (services(cluster), is_marked(cluster)) == ("all", True)
    assert proxys_selector(cluster) == {"kubernetes.io/os": "linux"}
    played.broken = set()
    cluster.podway("install", "--kube-proxy", "keep")
    assert (services(cluster), is_marked(cluster)) == ("pods", False), "what had begun is taken back"


def test_what_becomes_of_kube_proxys_rules_is_told_where_they_cannot_be_removed(
    cluster: Cluster, played: Played
) -> None:
    """The API server refuses it: somebody's object of that name stays, whose selector cannot be changed."""
    pod = {"containers": [{"name": "x", "image": "x"}], "nodeSelector": {"example.com/none": "true"}}
    template = {"metadata": {"labels": {"app": "x"}}, "spec": pod}
    held = {"name": "podway-sweeper", "finalizers": ["example.com/held"]}
    spec = {"selector": {"matchLabels": {"app": "x"}}, "template": template}
    cluster.server.ask("POST", SETS, {"metadata": held, "spec": spec})
    told = cluster.podway("install", "--kube-proxy", "replace", status=1)
    cluster.patch(f"{SETS}/podway-sweeper", {"metadata": {"finalizers": None}})
    assert "Podway serves, and kube-proxy's rules stay, which nobody changes any more" in told
    assert "podway cluster install --kube-proxy keep" in told
    assert proxys_selector(cluster) == STOPPED


def leave_errand(cluster: Cluster, component: str) -> None:
    """Leave the DaemonSet of an errand that is done on every node, as a command does that was killed."""
    labels = {"app.kubernetes.io/name": "podway", "app.kubernetes.io/component": component}
    pod = {"containers": [{"name": "done", "image": IMAGE}]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    cluster.server.ask("POST", SETS, {"metadata": {"name": f"podway-{component}", "labels": labels}, "spec": spec})
    eventually(lambda: cluster.running(component) == len(NODES))


def test_no_uninstall_removes_agents_before_kube_proxy_serves(cluster: Cluster, played: Played) -> None:
    """Whatever somebody's witness said that a command has left which was killed."""
    leave_errand(cluster, "witness")
    played.broken = {("podway-witness", "n2", NEXT)}
    for _ in range(2):
        told = cluster.podway("uninstall", "--yes", "--with-pods", *SOON, "--image", NEXT, status=1)
        assert "Podway goes on: on" in told
        assert "\n  n2: " in told
        assert len(cluster.images()) == len(NODES)
        assert services(cluster) == "all"
    played.broken = set()


def test_uninstalling_says_what_still_uses_it_and_asks(cluster: Cluster, played: Played) -> None:
    server = cluster.server
    body = {"metadata": {"name": "web"}, "spec": {"nodeName": "n2", "containers": [{"name": "x", "image": "x"}]}}
    server.ask("POST", "/api/v1/namespaces/shop/pods", body)
    status = {"phase": "Running", "podIP": "10.244.2.2", "podIPs": [{"ip": "10.244.2.2"}]}
    cluster.patch("/api/v1/namespaces/shop/pods/web/status", {"status": status})
    told = cluster.podway("uninstall", "--yes", status=1)
    assert "has its network of Podway: pod shop/web on n2" in told
    assert "--with-pods" in told
    assert "interrupted" in cluster.podway("uninstall", "--with-pods", status=130), "nobody answers"
    assert len(cluster.images()) == 3, "nothing was changed"


def test_another_attempt_cleans_by_the_same_image_in_the_same_directories(
    cluster: Cluster, played: Played
) -> None:
    """Also when the agents' DaemonSet, which told them, is gone; options say others. n3 is not asked."""
    other = "/var/lib/other/cni/net.d"
    template = cluster.server.ask("GET", f"{SETS}/podway-agent")["spec"]["template"]
    template["spec"]["containers"][0]["image"] = NEXT
    volume = next(one for one in template["spec"]["volumes"] if one["name"] == "configuration")
    volume["hostPath"]["path"] = other
    cluster.patch(f"{SETS}/podway-agent", {"spec": {"template": template}})
    played.broken = {("podway-cleaner", node, image) for node in NODES for image in (NEXT, IMAGE)}
    played.broken.add(("podway-witness", "n3", NEXT))
    parked = {"kubernetes.io/os": "linux", "podway.io/parked": "true"}
    for _ in range(2):
        told = cluster.podway("uninstall", "--yes", "--with-pods", "--without-node", "n3", *SOON, status=1)
        assert f"nodes are cleaned by {NEXT}, in /opt/cni/bin and {other}" in told
        assert cluster.cleans()["configuration"] == other
        assert cluster.cleans().items() >= {"image": NEXT, "plugins": "/opt/cni/bin", **parked}.items()
        eventually(lambda: not cluster.images())
    options = ("--image", IMAGE, "--conf-dir", "/etc/cni/net.d", "--plugin-dir", "/usr/lib/cni")
    cluster.podway("uninstall", "--yes", "--with-pods", "--timeout", "2", *options, status=1)
    assert cluster.cleans().items() >= {"image": IMAGE, "plugins": "/usr/lib/cni"}.items()
    assert cluster.cleans()["configuration"] == "/etc/cni/net.d"
    told = cluster.podway("uninstall", "--conf-dir", "etc/cni", status=2)
    assert "--conf-dir etc/cni: it is a directory of every node" in told


def test_a_node_that_cannot_be_cleaned_keeps_the_objects(cluster: Cluster, played: Played) -> None:
    played.broken = set()
    cluster.podway("install")
    played.broken = {("podway-cleaner", "n3", IMAGE)}
    told = cluster.podway("uninstall", "--yes", "--with-pods", "--timeout", "3", status=1)
    assert "the objects stay: on 1 of 3 nodes it could not be done" in told
    assert "n3: container done waits: ImagePullBackOff" in told
    assert "--without-node NAME" in told
    assert cluster.server.ask("GET", "/apis/podway.io/v1/ippools")["items"]
    eventually(lambda: cluster.running("cleaner") == 0)
    told = cluster.podway("status", status=1)
    assert "DaemonSet podway-cleaner stands, of an uninstall that did not end: it is parked" in told
    assert "podway cluster uninstall, which ends what it began" in told


def test_an_uninstall_that_is_interrupted_cleans_no_node_any_more(cluster: Cluster, played: Played) -> None:
    played.broken = {("podway-cleaner", "n3", IMAGE)}
    with cluster.begun("uninstall", "--yes", "--with-pods") as process:
        assert process.stdout is not None
        assert any("n2: the node is clean" in line for line in process.stdout), "it had begun on nodes"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert cluster.cleans()["podway.io/parked"] == "true"
    eventually(lambda: cluster.running("cleaner") == 0)


def test_installing_again_removes_the_cleaner_before_any_agent_comes(cluster: Cluster, played: Played) -> None:
    """As one stands that was killed: with pods, which would clean what is installed."""
    template = {"spec": {"nodeSelector": {"podway.io/parked": None}}}
    cluster.patch(f"{SETS}/podway-cleaner", {"spec": {"template": template}})
    eventually(lambda: cluster.running("cleaner") == len(NODES))
    played.ending = 2.0
    told = cluster.podway("install")
    played.ending = 0.0
    assert "DaemonSet podway-cleaner is removed" in told
    assert played.cleaned_beside_agents == 0
    assert cluster.running("cleaner") == 0
    assert not [one for one in cluster.named() if "cleaner" in one and "daemonsets" in one]
    assert len(cluster.images()) == len(NODES)


def test_an_upgrade_removes_the_cleaner_too(cluster: Cluster, played: Played) -> None:
    leave_errand(cluster, "cleaner")
    told = cluster.podway("status", status=1)
    assert "podway-cleaner stands, of an uninstall that did not end: it takes Podway out of every node" in told
    assert "DaemonSet podway-cleaner is removed" in cluster.podway("upgrade")
    assert cluster.running("cleaner") == 0
    assert "cleaner" not in cluster.podway("status")


def test_uninstalling_leaves_nothing(cluster: Cluster, played: Played) -> None:
    """And kube-proxy serves again, which an attempt has brought back before any agent ended."""
    said = {"type": "NetworkUnavailable", "status": "False", "reason": "PodwayIsUp"}
    for node in NODES:
        path = f"/api/v1/nodes/{node}"
        annotations = {"podway.io/accepts": "none", "example.com/mine": "stays"}
        taints = [
            {"key": "mine", "effect": "NoSchedule"},
            {"key": "podway.io/agent-not-ready", "effect": "NoSchedule"},
        ]
        cluster.patch(path, {"metadata": {"annotations": annotations}, "spec": {"taints": taints}})
        cluster.patch(f"{path}/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}, said]}})
    told = cluster.podway("uninstall", "--yes", "--with-pods", "--without-node", "n3")
    assert "n3: left as it is; clean it there: podway uninstall" in told
    assert cluster.named() == set()
    assert proxys_selector(cluster) == {"kubernetes.io/os": "linux"}
    assert agents_end_after_kube_proxy_came(played.story)
    for node in cluster.server.ask("GET", "/api/v1/nodes")["items"]:
        assert node["metadata"]["annotations"] == {"example.com/mine": "stays"}
        assert [one["key"] for one in node["spec"]["taints"]] == ["mine"]
        assert [one["type"] for one in node["status"]["conditions"]] == ["Ready"]
    with pytest.raises(Answer):
        cluster.server.ask("GET", "/apis/podway.io/v1")
    assert "nothing of Podway is at" in cluster.podway("uninstall", "--yes")
