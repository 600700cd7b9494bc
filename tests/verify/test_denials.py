"""What policies deny where each node enforces them, and where one does without the flow engine."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from podway.api.addresses import Family
from podway.cluster.view import ClusterView
from podway.probe.build import Protocol
from podway.prove.probe import Pair
from podway.prove.world import PodPoint, World
from podway.trace.names import Subject
from podway.trace.policy import PolicyJudge
from podway.verify.asked import _Held
from podway.verify.policy import Denials
from podway.verify.services import plan_calls
from tests import builders
from tests.policy.clusters import network_policy, node, pod, resource
from tests.services.clusters import endpoint, piece, service
from tests.trace.test_trace_page import good

CLIENT, WEB = ip_address("10.1.0.1"), ip_address("10.1.0.2")
POINTS = PodPoint("x/client", "n1", "", (CLIENT,)), PodPoint("x/web", "n2", "", (WEB,))
ENDS = Subject("pod x/client", "n1", "x/client", (CLIENT,)), Subject("pod x/web", "n2", "x/web", (WEB,))
SHUT_OUT = network_policy("shut", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Ingress"])
SHUT_IN = network_policy("shut", podSelector={"matchLabels": {"app": "client"}}, policyTypes=["Egress"])


def _view(policy: Any, path: str = "auto") -> ClusterView:
    manifests = (
        node("n1"),
        node("n2"),
        pod("x", "client", str(CLIENT), labels={"app": "client"}),
        pod("x", "web", str(WEB), labels={"app": "web"}, node="n2"),
        policy,
    )
    config = builders.config(data_path=path, services="off" if path == "kernel" else "pods")
    calls = service(), piece("one", endpoint(str(WEB), "n2"))
    return ClusterView.of((config, *calls, *map(resource, manifests)))


@pytest.mark.parametrize(
    ("policy", "fallbacks", "said"),
    [
        (SHUT_OUT, {}, "ingress of Pod/x/web"),
        (SHUT_OUT, {"n1": "no tcx"}, "ingress of Pod/x/web"),
        (SHUT_OUT, {"n2": "no tcx"}, ""),
        (SHUT_IN, {"n2": "no tcx"}, "egress of Pod/x/client"),
        (SHUT_IN, {"n1": "no tcx"}, ""),
    ],
)
def test_a_policy_is_expected_to_hold_where_somebody_enforces_it(
    policy: Any, fallbacks: Mapping[str, str], said: str
) -> None:
    """Each end's node sees to its own pod."""
    view = _view(policy)
    denials = Denials(World((), POINTS, (), view=view, fallbacks=fallbacks), 80)
    assert denials.of(*POINTS, (CLIENT, WEB), 6, 80).partition(":")[0] == said
    unheld = [(one.subject, one.reason) for one in denials.unheld]
    (where,) = fallbacks or ("",)
    assert unheld == ([] if said else [(f"policies on node {where}", "nothing enforces them there: no tcx")])
    policy = PolicyJudge(view, fallbacks).said(*ENDS, (CLIENT, WEB), Protocol.TCP, 80)
    (shut,) = (one for one in policy if not one.allowed)
    traced = msgspec.structs.replace(good().families[0], policy=policy)
    held = _Held(Pair(*POINTS, Family.IPV4), Protocol.TCP, msgspec.structs.replace(good(), families=(traced,)))
    assert list(held.unheld) == ([] if said else [where])
    assert (shut.denies, shut.unenforced) == (bool(said), "" if said else f"node {where}: no tcx")


def test_nobody_enforces_what_settings_switch_off() -> None:
    view = _view(SHUT_OUT, "kernel")
    assert Denials(World((), POINTS, (), view=view), 80).of(*POINTS, (CLIENT, WEB), 6, 80) == ""
    said = PolicyJudge(view, {}).said(*ENDS, (CLIENT, WEB), Protocol.TCP, 80)
    assert [(one.direction, one.allowed, one.denies, one.unenforced) for one in said] == [
        ("egress", True, False, ""),
        ("ingress", False, False, "spec.dataPath of the NetworkConfig is kernel"),
    ]


def test_services_are_called_from_nodes_that_serve_them() -> None:
    view = _view(SHUT_IN)

    def callers(fallbacks: Mapping[str, str]) -> set[str]:
        world = World((), POINTS, (), view=view, fallbacks=fallbacks)
        return {call.client.node for call in plan_calls(world, Denials(world, 80))}

    assert callers({}) == {"n1", "n2"}
    assert callers({"n1": "no tcx"}) == {"n2"}
