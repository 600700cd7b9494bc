"""What is said before kube-proxy is replaced, and by what its rules are removed: pure."""

from typing import Any

import pytest
import yaml

from podway.deploy.errands import SWEEPER
from podway.deploy.kube_proxy import Proxy, judge, podways_witness, server_for, sweeper
from podway.deploy.objects import AGENT, IMAGE, Choices, objects, server_of, workload
from podway.deploy.preflight import Facts

PROXY = {
    "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
    "spec": {
        "selector": {"matchLabels": {"k8s-app": "kube-proxy"}},
        "template": {
            "spec": {
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "containers": [
                    {
                        "name": "kube-proxy",
                        "image": "registry.k8s.io/kube-proxy:v1.37.2",
                        "imagePullPolicy": "Always",
                        "command": ["/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf"],
                        "securityContext": {"privileged": True},
                        "volumeMounts": [
                            {"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"},
                            {"name": "lib-modules", "mountPath": "/lib/modules", "readOnly": True},
                        ],
                    }
                ],
                "volumes": [
                    {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
                    {"name": "lib-modules", "hostPath": {"path": "/lib/modules"}},
                ],
            }
        },
    },
}


def config(mode: str = "", server: str = "https://[2001:db8::1]:6443") -> dict[str, Any]:
    kubeconfig = {"clusters": [{"name": "default", "cluster": {"server": server}}]}
    return {"data": {"config.conf": yaml.safe_dump({"mode": mode}), "kubeconfig.conf": yaml.safe_dump(kubeconfig)}}


def kernel(release: str) -> dict[str, Any]:
    return {"metadata": {"name": "n1"}, "status": {"nodeInfo": {"kernelVersion": release}}}


def said(level: str, nodes: tuple[Any, ...] = (), services: tuple[str, ...] = ("10.96.0.0/12",), **of: Any) -> str:
    """Return what is said at a level, one line each."""
    facts = Facts(version="v1.37.2", nodes=nodes, services=services)
    found = judge(facts, Proxy(**{"daemonset": PROXY, "config": config(), **of}))
    return "\n".join(f"{one.what} | {one.hint}" for one in found if one.level == level)


def test_nothing_is_wrong_with_what_kubeadm_makes() -> None:
    assert said("fails") == ""
    assert "agents ask the API server at 2001:db8::1 port 6443" in said("holds")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"daemonset": None}, "there is no DaemonSet kube-system/kube-proxy to stop"),
        ({"config": config("ipvs")}, "connections that IPVS leads would end"),
        ({"config": None}, "kubectl -n podway set env daemonset/podway-agent KUBERNETES_SERVICE_HOST"),
        ({"config": {"data": {"kubeconfig.conf": "clusters: ["}}}, "nobody says where the API server is"),
        ({"config": config(server="https://host:port")}, "nobody says where the API server is"),
        ({"config": {"data": None}}, "nobody says where the API server is"),
        ({"config": {"data": {"kubeconfig.conf": "[1]"}}}, "nobody says where the API server is"),
        ({"config": {"data": {"kubeconfig.conf": "clusters: []"}}}, "nobody says where the API server is"),
        ({"config": {"data": {"kubeconfig.conf": "clusters: [5]"}}}, "nobody says where the API server is"),
        ({"config": {"data": {"kubeconfig.conf": "clusters: {a: b}"}}}, "nobody says where the API server is"),
        ({"config": {"data": {"kubeconfig.conf": "clusters: [{cluster: null}]"}}}, "nobody says where the API"),
        ({"services": ("10.96.0.1/32", "fd00::1/128")}, "podway set config serviceCidrs=CIDR"),
        ({"nodes": (kernel("6.1.0-18-amd64"),)}, "Node n1: its kernel 6.1.0-18-amd64 cannot run the flow engine"),
        ({"nodes": (kernel("5.15.0"),)}, "use kernel 6.6 or newer there"),
    ],
)
def test_what_forbids_it_is_said(given: dict[str, Any], words: str) -> None:
    assert words in said("fails", **given)


@pytest.mark.parametrize("release", ["6.6.0", "6.12.1-cloud", "6.12+", "6.6-rc1", "7.0.3", "7"])
def test_kernels_that_can_run_the_engine_are_taken(release: str) -> None:
    assert said("fails", nodes=(kernel(release),)) == ""


def test_ranges_that_are_set_count_where_the_api_server_tells_none() -> None:
    settings = {"spec": {"serviceCidrs": ["10.96.0.0/12"]}}
    assert said("fails", services=("10.96.0.1/32",), settings=settings) == ""


def test_where_agents_were_told_the_api_server_is_counts() -> None:
    made = objects(Choices(server=("10.0.0.9", "6443")))
    agent = workload(made, AGENT)
    assert server_of(agent) == ("10.0.0.9", "6443")
    assert server_of(workload(objects(), AGENT)) is None
    assert server_for(Facts(version="", agent=agent), Proxy(config=config())) == ("10.0.0.9", "6443")


def test_rules_are_removed_by_kube_proxys_own_image_and_rights_between_two_looks() -> None:
    made = sweeper(PROXY, workload(objects(), AGENT))
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == (SWEEPER, "podway")
    spec = made["spec"]["template"]["spec"]
    stopped, clean, gone = spec["initContainers"]
    assert clean["command"] == ["/usr/local/bin/kube-proxy", "--cleanup"]
    assert clean["image"] == "registry.k8s.io/kube-proxy:v1.37.2"
    assert clean["securityContext"] == {"privileged": True}
    assert stopped["image"] == gone["image"] == IMAGE
    assert [one["imagePullPolicy"] for one in (stopped, clean, gone)] == ["IfNotPresent", "Always", "IfNotPresent"]
    assert [one["name"] for one in clean["volumeMounts"]] == [one["name"] for one in spec["volumes"]]
    assert [one["name"] for one in spec["volumes"]] == ["lib-modules"], "its ConfigMap is in another namespace"


def test_the_agent_is_asked_at_its_socket() -> None:
    spec = podways_witness(workload(objects(), AGENT))["spec"]["template"]["spec"]
    (ask,) = spec["initContainers"]
    (mount,) = ask["volumeMounts"]
    assert ask["command"][3] == f"{mount['mountPath']}/agent.sock"
    assert [one["hostPath"]["path"] for one in spec["volumes"]] == ["/run/podway"]
