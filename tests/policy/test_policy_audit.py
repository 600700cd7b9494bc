"""Policies that only report: they deny nothing, and what they would deny is told by name."""

from typing import Any

import pytest

from podway.policy.explain import explain, find_end
from podway.policy.lint import lint
from tests.policy.clusters import Planned, audited, cluster_policy, namespace, network_policy, pod, resource

WEB = pod("x", "web", "10.1.1.1", labels={"app": "web"})
CLIENT = pod("x", "client", "10.1.1.2", labels={"app": "client"}, node="n2")
CLOSED = network_policy("closed", podSelector={"matchLabels": {"app": "web"}})


def asked(*manifests: Any) -> Any:
    objects = [resource(one) for one in (namespace("x"), WEB, CLIENT, *manifests)]
    source, destination = (find_end(objects, f"x/{name}", "x") for name in ("client", "web"))
    [found] = explain(objects, source, destination, 6, 80)
    return found.allowed, [reason.audit for reason in found.reasons]


def test_an_audited_policy_isolates_nobody_and_says_whom_it_would() -> None:
    allowed, (egress, ingress) = asked(audited(CLOSED))
    assert (allowed, egress) == (True, "")
    assert "NetworkPolicy/x/closed" in ingress
    assert asked(CLOSED) == (False, ["", ""])


def test_what_others_enforce_goes_on_and_what_they_allow_counts_in_the_audit() -> None:
    """What an audited policy would allow is denied now all the same: that is no matter of the audit."""
    from_client = network_policy(
        "client",
        podSelector={"matchLabels": {"app": "web"}},
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
    )
    assert asked(audited(CLOSED), from_client) == (True, ["", ""]), "the other one allows it also then"
    assert asked(CLOSED, audited(from_client)) == (False, ["", ""])
    admin = cluster_policy("admin", ingress=[{"action": "Deny", "name": "no", "from": [{"namespaces": {}}]}])
    allowed, (_, ingress) = asked(audited(admin), from_client)
    assert allowed
    assert "ClusterNetworkPolicy/admin" in ingress


@pytest.mark.parametrize("mark", ["", "false", "True", "yes"])
def test_what_is_not_marked_with_true_is_enforced(mark: str) -> None:
    policy = audited(CLOSED)
    policy["metadata"]["annotations"]["podway.io/audit"] = mark
    assert asked(policy) == (False, ["", ""])
    fields = [field for _, (field, _, _) in lint([resource(one) for one in (WEB, policy)])]
    assert ("metadata.annotations[podway.io/audit]" in fields) == (mark in ("True", "yes"))


def test_the_mark_comes_and_goes() -> None:
    planned = Planned(WEB, CLIENT, CLOSED)
    assert not planned.allows("10.1.1.2", "10.1.1.1")
    before = planned.maps["n1"].endpoints["x", "web"]
    planned.put(audited(CLOSED))
    assert planned.allows("10.1.1.2", "10.1.1.1")
    assert planned.maps["n1"].endpoints["x", "web"].ingress_audit == before.ingress, "the set is there already"
    planned.put(CLOSED)
    assert not planned.allows("10.1.1.2", "10.1.1.1")
    assert planned.maps["n1"].endpoints["x", "web"] == before
