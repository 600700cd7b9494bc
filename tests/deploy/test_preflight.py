"""What is said of a cluster before Podway comes, and of agents that do not come up: pure."""

from typing import Any

import pytest

from podway.api.crd import definition, own_kinds
from podway.deploy.errands import cleaner
from podway.deploy.install import Settings, planned
from podway.deploy.objects import IMAGE, objects, version_of, workload
from podway.deploy.preflight import Facts, Finding, definition_states, judge
from podway.deploy.rollout import agents_on, former_template, why_not_ready
from podway.deploy.uninstall import using
from podway.errors import InvalidObject

POOLS = ("10.244.0.0/16",)


def node(name: str, address: str = "172.30.0.1", **status: Any) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": address}]
    return {"metadata": {"name": name}, "status": {"addresses": addresses, **status}}


def said(level: str, **facts: Any) -> str:
    """Return what is said at a level, one line each."""
    given: dict[str, Any] = {"version": "v1.37.2", "nodes": [node("n1")], **facts}
    found: tuple[Finding, ...] = judge(Facts(**given), POOLS)
    return "\n".join(f"{one.what} | {one.hint}" for one in found if one.level == level)


def test_nothing_is_wrong_with_a_plain_cluster() -> None:
    assert said("fails") == said("warns") == ""


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"version": "v1.31.4"}, "Kubernetes v1.31.4 is too old"),
        ({"services": ("10.244.0.0/20",)}, "overlaps the Services' range 10.244.0.0/20"),
        ({"nodes": [node("n1", "10.244.3.4")]}, "overlaps 10.244.3.4 of Node n1"),
        ({"nodes": [{"metadata": {"name": "n1"}}]}, "Node n1 has no InternalIP"),
        ({"nodes": [node("n1", nodeInfo={"kernelVersion": "4.19.0-1"})]}, "Node n1: kernel 4.19.0-1 is too old"),
        ({"nodes": [node(f"{'x' * 60}.example.com")]}, "cannot have a name of 72 characters"),
        ({"definitions": [{"metadata": {"name": "new.podway.io"}, "spec": {"group": "podway.io"}}]}, "newer than"),
        ({"agent": {"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}}}, "helm upgrade"),
    ],
)
def test_what_forbids_it_is_said(facts: dict[str, Any], words: str) -> None:
    assert words in said("fails", **facts)


def test_another_plugin_is_known_by_what_it_leaves_on_nodes() -> None:
    marked = node("n1")
    marked["metadata"]["annotations"] = {"flannel.alpha.coreos.com/backend-type": "vxlan"}
    assert "Flannel is the network here: Node n1" in said("fails", nodes=[marked])
    condition = {"type": "NetworkUnavailable", "status": "False", "reason": "CiliumIsUp"}
    assert "Cilium is the network here" in said("fails", nodes=[node("n1", conditions=[condition])])
    left = {"metadata": {"name": "felixconfigurations"}, "spec": {"group": "crd.projectcalico.org"}}
    assert "Calico left its definitions" in said("warns", definitions=[left])
    ready = node("n1", conditions=[{"type": "Ready", "status": "True"}])
    assert "n1: Ready without Podway" in said("warns", nodes=[ready])
    assert said("warns", nodes=[ready], agent={"metadata": {}}) == ""


def test_pools_that_there_are_count_and_not_those_that_are_asked_for() -> None:
    pools = [{"metadata": {"name": "p"}, "spec": {"cidr": "10.9.0.0/16"}}]
    told = said("fails", services=("10.9.0.0/24",), pools=pools)
    assert "IPPool/p (10.9.0.0/16) overlaps the Services' range 10.9.0.0/24" in told
    assert said("fails", services=("10.244.0.0/24",), pools=pools) == ""


def test_definitions_are_compared_by_version_and_content() -> None:
    ours = [definition(kind) for kind in own_kinds()]
    assert set(definition_states(ours).values()) == {"current"}
    edited = [{**one, "spec": {**one["spec"], "scope": "Other"}} for one in ours]
    assert set(definition_states(edited).values()) == {"changed"}
    assert set(definition_states([]).values()) == {"missing"}
    bare = [{**one, "metadata": {"name": one["metadata"]["name"]}} for one in ours]
    assert set(definition_states(bare).values()) == {"older"}


def test_two_pools_of_one_family_are_refused() -> None:
    with pytest.raises(InvalidObject, match="two of one family"):
        planned(Settings(pools=("10.1.0.0/16", "10.2.0.0/16")))
    with pytest.raises(InvalidObject, match="ipip carries IPv4 only"):
        planned(Settings(pools=("fd00:1::/48",), encapsulation="ipip"))


def pod(on: str, **status: Any) -> dict[str, Any]:
    spec = {"nodeName": on, "containers": [{"name": "agent", "image": IMAGE}]}
    return {"metadata": {"name": f"a-{on}", "namespace": "podway"}, "spec": spec, "status": status}


WAITING = {"name": "agent", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}
ENDED = {"lastState": {"terminated": {"exitCode": 1, "message": "no BIRD"}}}


def test_why_an_agent_is_not_ready() -> None:
    assert why_not_ready(pod("n", conditions=[{"type": "Ready", "status": "True"}])) == ""
    told = why_not_ready(pod("n", containerStatuses=[{**WAITING, **ENDED}]))
    assert told == ("container agent waits: CrashLoopBackOff: back-off (it ended with status 1: no BIRD)")
    scheduled = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes fit"}
    assert why_not_ready(pod("n", conditions=[scheduled])) == "it cannot be placed: 0/3 nodes fit"


def test_a_node_that_is_not_heard_is_told_apart() -> None:
    silent = node("n1", conditions=[{"type": "Ready", "status": "Unknown", "message": "Kubelet stopped"}])
    (one,) = agents_on([silent], [pod("n1", conditions=[{"type": "Ready", "status": "True"}])])
    assert not one.reachable
    assert one.why == "the node's kubelet is not heard: Kubelet stopped"
    windows = node("w", nodeInfo={"operatingSystem": "windows"})
    assert agents_on([windows], []) == ()


def test_the_former_template_is_the_one_before_the_newest() -> None:
    owner = {"metadata": {"uid": "u"}}

    def revision(number: int, image: str, uid: str = "u") -> dict[str, Any]:
        template = {"$patch": "replace", "spec": {"containers": [{"image": image}]}}
        metadata = {"ownerReferences": [{"uid": uid}]}
        return {"revision": number, "metadata": metadata, "data": {"spec": {"template": template}}}

    all_of_them = [revision(3, "c"), revision(1, "a"), revision(2, "b"), revision(4, "other", "v")]
    assert former_template(all_of_them, owner) == {"spec": {"containers": [{"image": "b"}]}}
    assert former_template(all_of_them[:1], owner) is None


def test_the_cleaner_has_the_agents_image_and_rights_and_sees_what_it_removes() -> None:
    agent = workload(objects(), "podway-agent")
    made = cleaner(agent)["spec"]["template"]["spec"]
    (clean,) = made["initContainers"]
    assert clean["image"] == IMAGE
    assert clean["securityContext"] == agent["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    volumes = {one["name"]: one["hostPath"]["path"] for one in made["volumes"]}
    mounted = {one["mountPath"]: volumes[one["name"]] for one in clean["volumeMounts"]}
    assert mounted == {"/opt/cni/bin": "/opt/cni/bin", "/etc/cni/net.d": "/etc/cni/net.d", "/run": "/run"}


def test_who_uses_the_network() -> None:
    ours = pod("n1", phase="Running", podIP="10.244.1.2")
    host = {**ours, "spec": {**ours["spec"], "hostNetwork": True}}
    done = pod("n1", phase="Succeeded", podIP="10.244.1.3")
    assert list(using([ours, host, done])) == ["podway/a-n1 on n1"]


@pytest.mark.parametrize(
    ("image", "version"), [("a.b/c:1", "1"), ("a.b:5000/c", "latest"), ("c@sha256:12", "sha256:12")]
)
def test_versions_of_images(image: str, version: str) -> None:
    assert version_of(image) == version
