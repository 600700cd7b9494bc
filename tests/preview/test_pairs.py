"""Which pairs of pods a change of policies allows or denies: as the judge of single connections says of each."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.resource import Resource
from podway.policy.explain import Judge, find_end
from podway.preview import pairs
from podway.preview.pairs import PairChange, changed_pairs, decides
from tests.policy.clusters import cluster_policy, namespace, network_policy, pod, resource

PODS = {("x", "web-1"): "web", ("x", "web-2"): "web", ("x", "client"): "client", ("y", "client"): "client"}
MANIFESTS = [
    namespace("x", team="x"),
    namespace("y"),
    *(
        pod(
            space,
            name,
            f"10.1.{number}.1",
            labels={"app": app, "pod-template-hash": name},
            node=f"n{number % 2 + 1}",
        )
        for number, ((space, name), app) in enumerate(PODS.items())
    ),
]
ONLY_80 = network_policy(
    podSelector={"matchLabels": {"app": "web"}},
    ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 80}]}],
)


def cluster(*policies: Any) -> list[Resource]:
    return [resource(one) for one in (*MANIFESTS, *policies)]


def test_what_is_denied_is_grouped_by_workload_and_ports() -> None:
    found = changed_pairs(cluster(), cluster(ONLY_80))
    everything = "TCP; UDP; SCTP; other protocols"
    assert found.complete
    assert found.changes == (
        PairChange("denied", "x[app=client]", "x[app=web]", "TCP 0-79, 81-65535; UDP; SCTP; other protocols", 2),
        PairChange("denied", "x[app=web]", "x[app=web]", everything, 2),
        PairChange("denied", "y[app=client]", "x[app=web]", everything, 2),
    )
    back = changed_pairs(cluster(ONLY_80), cluster())
    assert {one.change for one in back.changes} == {"allowed"}
    assert [(one.source, one.ports, one.pairs) for one in back.changes] == [
        (one.source, one.ports, one.pairs) for one in found.changes
    ]


def test_what_changes_nothing_for_pods_tells_of_no_pair() -> None:
    outside = network_policy(
        "out",
        podSelector={"matchLabels": {"app": "web"}},
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 80}]}],
        egress=[{}],
    )
    assert not changed_pairs(cluster(ONLY_80), cluster(ONLY_80, outside)).changes
    assert decides([("Namespace", "", "x")])
    assert not decides([("IPPool", "", "default")])


def test_more_than_is_compared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MOST_PAIRS", 2)
    assert not changed_pairs(cluster(), cluster(ONLY_80)).complete


PEERS = st.sampled_from(
    [
        {"podSelector": {"matchLabels": {"app": "web"}}},
        {"namespaceSelector": {"matchLabels": {"team": "x"}}},
        {"ipBlock": {"cidr": "10.1.0.0/23"}},
        {"ipBlock": {"cidr": "10.1.1.1/32"}},
    ]
)
PORTS = st.lists(
    st.sampled_from([{"port": 80}, {"port": 53, "protocol": "UDP"}, {"port": 80, "endPort": 90}]), max_size=2
)
RULES = st.lists(st.builds(lambda peer, ports: (peer, ports), PEERS, PORTS), max_size=2)


@st.composite
def policies(draw: Any) -> list[Any]:
    found = []
    for name in draw(st.sets(st.sampled_from(["a", "b"]))):
        spec: dict[str, Any] = {"podSelector": draw(st.sampled_from([{}, {"matchLabels": {"app": "web"}}]))}
        spec["policyTypes"] = draw(st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]))
        spec["ingress"] = [{"from": [peer], "ports": ports} for peer, ports in draw(RULES)]
        spec["egress"] = [{"to": [peer], "ports": ports} for peer, ports in draw(RULES)]
        found.append(network_policy(name, where=draw(st.sampled_from(["x", "y"])), **spec))
    if draw(st.booleans()):
        action = draw(st.sampled_from(["Deny", "Accept", "Pass"]))
        found.append(cluster_policy(ingress=[{"action": action, "from": [{"namespaces": {}}]}]))
    return found


@given(policies(), policies())
@settings(deadline=None, max_examples=40)
def test_all_pairs_are_told_that_the_judge_of_connections_finds(before: Any, after: Any) -> None:
    objects = cluster(*before), cluster(*after)
    told = changed_pairs(*objects)
    judges = [Judge(one) for one in objects]
    expected = set()
    for (space, name), (other, called) in product(PODS, PODS):
        ends = [find_end(objects[0], f"{a}/{b}", a) for a, b in ((space, name), (other, called))]
        if ends[0] == ends[1]:
            continue
        addresses = ends[0].addresses[0], ends[1].addresses[0]
        for protocol, port in ((6, 80), (6, 85), (6, 443), (17, 53), (132, 1)):
            verdicts = [
                all(r.allowed for r in judge.reasons(ends[0], ends[1], addresses, protocol, port))
                for judge in judges
            ]
            if verdicts[0] != verdicts[1]:
                place = "allowed" if verdicts[1] else "denied"
                expected.add((place, f"{space}[app={PODS[space, name]}]", f"{other}[app={PODS[other, called]}]"))
    assert {(one.change, one.source, one.target) for one in told.changes} == expected
