"""Which ports of pods no peer may call."""

from typing import Any

from podway.api.resource import key
from podway.policy.lint import Doors
from tests.policy.clusters import cluster_policy, namespace, network_policy, pod, resource

TCP = 6


def _shut(*policies: Any, port: int = 80) -> list[str]:
    web = resource(pod("x", "web", "10.0.0.1", labels={"app": "web"}, ports=[("http", "TCP", 80)]))
    doors = Doors([resource(namespace("x")), web, *map(resource, policies)])
    return [name for _, _, name in doors.shut_by(web, TCP, port)]


def test_a_pod_that_no_policy_isolates_is_open() -> None:
    assert _shut() == []
    assert _shut(network_policy(podSelector={"matchLabels": {"app": "other"}})) == []
    assert _shut(network_policy(podSelector={}, policyTypes=["Egress"])) == []


def test_a_pod_whose_policies_speak_of_other_ports_is_shut() -> None:
    closed = network_policy(podSelector={})
    other = network_policy("other", podSelector={}, ingress=[{"ports": [{"port": 81, "protocol": "TCP"}]}])
    assert _shut(closed) == ["p"]
    assert _shut(closed, other) == ["p", "other"]
    assert _shut(closed, other, port=81) == []


def test_whoever_may_come_in_opens_it() -> None:
    peer = {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}
    assert _shut(network_policy(podSelector={}, ingress=[peer])) == []
    assert _shut(network_policy(podSelector={}, ingress=[{"ports": [{"port": "http"}]}])) == []


def test_policies_of_the_cluster_are_not_guessed_at() -> None:
    every = cluster_policy("c", subject={"namespaces": {}}, tier="Admin", priority=1)
    assert key(resource(every))[2] == "c"
    assert _shut(network_policy(podSelector={}), every) == []
