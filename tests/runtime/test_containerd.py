"""Containerd's CRI plugin, as a kubelet drives it: RunPodSandbox calls libcni, which calls us."""

import json

import pytest

from tests.runtime.busybox_image import PAGE
from tests.runtime.cri_client import CriError
from tests.runtime.real_lab import RealLab
from tests.runtime.runtimes import CONTAINERD_NODE, Containerd

pytestmark = pytest.mark.kernel

OTHER_POD = "on-node1"
PORTS = {8081: 80}
LIMITS = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}


def run(containerd: Containerd, name: str = "web") -> str:
    return containerd.cri.run_pod(name, namespace="shop", host_ports=PORTS, annotations=LIMITS)


def test_a_pod_has_the_addresses_that_the_agent_leased(containerd: Containerd, lab: RealLab) -> None:
    pod = run(containerd)
    lease = lab.leases(CONTAINERD_NODE)[pod]
    assert containerd.cri.addresses(pod) == lease["addresses"]
    assert len(lease["addresses"]) == 2
    assert (lease["pod"], lease["network"]) == ("shop/web", "podway")
    assert all(lab.ping(OTHER_POD, address) for address in lease["addresses"])
    for address in lab.addresses(CONTAINERD_NODE):
        assert lab.fetch("node1", address, 8081) == PAGE


def test_limits_of_the_pods_annotations(containerd: Containerd, lab: RealLab) -> None:
    pod = run(containerd)
    link = lab.leases(CONTAINERD_NODE)[pod]["link"]
    qdiscs = json.loads(containerd.host.run("tc", "-json", "qdisc").stdout)
    rates = {one["dev"]: one["options"]["rate"] * 8 for one in qdiscs if one["kind"] == "tbf"}
    assert rates.pop(link) == 8_000_000
    assert list(rates.values()) == [16_000_000]  # on a device of the plugin's, to which the link redirects


def test_stop_and_remove(containerd: Containerd, lab: RealLab) -> None:
    before = lab.leases(CONTAINERD_NODE)
    pods = [containerd.cri.run_pod(f"p{n}", namespace="shop", host_ports={}, annotations={}) for n in range(3)]
    stated = [containerd.cri.addresses(pod) for pod in pods]
    assert len({address for both in stated for address in both}) == 6
    for pod in pods:
        containerd.cri.stop(pod)
        containerd.cri.stop(pod)  # a kubelet does so, too
        containerd.cri.remove(pod)
    assert lab.leases(CONTAINERD_NODE) == before
    assert list(containerd.host.path("/var/lib/cni/results").iterdir()) == []
    assert lab.spooled(CONTAINERD_NODE) == []


def test_what_containerd_calls(containerd: Containerd) -> None:
    pod = run(containerd)
    containerd.cri.stop(pod)
    added, *rest = containerd.witness.calls(pod)
    assert added.command == "ADD"
    assert {call.command for call in rest} == {"DEL"}
    named = {key: added.arguments[f"K8S_POD_{key}"] for key in ("NAMESPACE", "NAME", "INFRA_CONTAINER_ID")}
    assert named == {"NAMESPACE": "shop", "NAME": "web", "INFRA_CONTAINER_ID": pod}
    # libcni hands the whole chain's result back.
    assert rest[0].config["prevResult"]["ips"] == added.config["prevResult"]["ips"]


def test_while_the_agent_is_down_a_pod_fails_with_advice_and_succeeds_later(
    containerd: Containerd, lab: RealLab
) -> None:
    before = lab.leases(CONTAINERD_NODE)
    lab.stop_agent(CONTAINERD_NODE)
    try:
        with pytest.raises(CriError) as refused:
            run(containerd)
        assert "no answer from the Podway agent at /run/podway/cni.sock" in str(refused.value)
        assert "then try again" in str(refused.value)
        assert containerd.cri.pods() == []
        assert list(containerd.host.path("/run/netns").iterdir()) == []
    finally:
        lab.start_agent(CONTAINERD_NODE)
    assert lab.leases(CONTAINERD_NODE) == before
    assert all(lab.ping(OTHER_POD, address) for address in containerd.cri.addresses(run(containerd)))


def test_while_the_agent_is_down_a_pod_stops_and_nothing_is_left_later(
    containerd: Containerd, lab: RealLab
) -> None:
    pod = run(containerd)
    lab.stop_agent(CONTAINERD_NODE)
    try:
        containerd.cri.stop(pod)
        containerd.cri.remove(pod)
        assert lab.spooled(CONTAINERD_NODE) == [f"{pod}:eth0"]
    finally:
        lab.start_agent(CONTAINERD_NODE)
    assert pod not in lab.leases(CONTAINERD_NODE)
    assert lab.spooled(CONTAINERD_NODE) == []
