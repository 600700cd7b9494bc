"""Judges told facts: faults that no lab can have, and the edges of those that it can."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podway.api.kinds.network_policy import NetworkPolicy, NetworkPolicySpec
from podway.api.kinds.node import NAT_ADDRESSES
from podway.api.meta import LabelSelector, Metadata
from podway.api.resource import Resource
from podway.cluster.view import ClusterView
from podway.health.checks import every, of_clusters, of_nodes
from podway.health.checks.agent import channel, looking
from podway.health.checks.bgp import bgp_session, reflectors
from podway.health.checks.bridge import bridge_netfilter
from podway.health.checks.cluster import agent, clock, node_address, versions
from podway.health.checks.firewall import firewall, nat, nat_address
from podway.health.checks.host import forwarding, kernel
from podway.health.checks.kube_proxy import IPVS_DEVICE, kube_proxy
from podway.health.checks.limits import flow_tables
from podway.health.checks.plan import fight
from podway.health.checks.policies import policies
from podway.health.checks.services import services
from podway.health.doctor import summary
from podway.health.facts import (
    ClusterFacts,
    Firewall,
    Heard,
    KernelNetwork,
    KernelRoute,
    NodeSummary,
    Reflector,
    Repair,
    Session,
    Settings,
    Table,
)
from podway.health.facts import Device as HealthDevice
from podway.health.finding import Problem, Severity
from podway.health.ruleset import Chain, Condition, Rule, Ruleset
from podway.plan.bridge import BRIDGE_NETFILTER
from podway.plan.objects import Device, NodePlan, Sysctl
from podway.plan.wiring import GATEWAY_MAC
from tests import builders
from tests.services.clusters import service

CNI0 = Device("cni0", "bridge", GATEWAY_MAC, 1500)
DROPS = Chain("nft", "inet", "filter", "forward", hook="forward", policy="drop")
DOC = Path(__file__).parents[2] / "docs" / "doctor.md"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

Facts = Callable[..., Any]


def heard(node: str, **given: Any) -> Heard:
    received = given.pop("received", 1000.0)
    known = {"node": node, "version": "1", "at": 1000.0, "pod_mtu": 1500, **given}
    return Heard(NodeSummary(**known), received)


def cluster(*nodes: Heard, **given: Any) -> ClusterFacts:
    return ClusterFacts({each.summary.node: each for each in nodes}, **given)


def session(node: str, **given: Any) -> Session:
    return Session(f"{node}.ipv4", node, "192.0.2.2", 179, given.pop("state", "Connect"), NOW, **given)


def test_healthy_facts_have_no_problem(node_facts: Facts) -> None:
    assert [found for check in of_nodes() for found in check.examine(node_facts())] == []
    assert [found for check in of_clusters() for found in check.examine(cluster(heard("a"), heard("b")))] == []


def test_a_kernel_that_lacks_something(node_facts: Facts) -> None:
    lacking = "the kernel has no veth devices\n  hint: load veth (CONFIG_VETH)"
    (problem,) = kernel(node_facts(settings=Settings(unsupported=lacking)))
    assert (problem.found, problem.advice) == ("the kernel has no veth devices", "load veth (CONFIG_VETH)")


@pytest.mark.parametrize(
    ("devices", "settings", "chains", "found"),
    [
        ((CNI0,), (), (DROPS,), 1),
        ((CNI0,), (), (), 0),
        ((CNI0,), (Sysctl(BRIDGE_NETFILTER[0], "1"),), (DROPS,), 0),
        ((), (), (DROPS,), 0),
    ],
    ids=["rules that see nothing", "nobody's rules", "rules that see", "no bridge"],
)
def test_rules_that_do_not_see_the_bridge(
    node_facts: Facts, devices: Any, settings: Any, chains: Any, found: int
) -> None:
    plan = NodePlan(devices=devices, sysctls=settings)
    problems = list(bridge_netfilter(node_facts(memory={"plan": plan}, firewall=Firewall(Ruleset(chains)))))
    assert [problem.subject for problem in problems] == ["cni0"] * found
    assert all("nft inet filter forward" in problem.found for problem in problems)


BETWEEN_PODS = (
    "packets from pods to other nodes' pods, packets from other nodes' pods to pods here, "
    "packets between pods of this node"
)
WITH_NODES = "packets from pods to other nodes, packets from other nodes to pods here"


@pytest.mark.parametrize(
    ("attach", "enforced", "lost", "severity"),
    [
        ("routed", False, BETWEEN_PODS, "error"),
        ("routed", True, WITH_NODES, "warning"),
        ("bridge", True, f"{BETWEEN_PODS}, {WITH_NODES}", "error"),
    ],
    ids=["the stack forwards", "the flow engine carries", "a bridge's ports are left to the stack"],
)
def test_what_the_flow_engine_carries_passes_others_rules_by(
    node_facts: Facts, attach: str, enforced: bool, lost: str, severity: str
) -> None:
    own, other = (builders.node(f"node{n}", f"172.30.0.{n}/16") for n in (1, 2))
    blocks = [builders.block(f"10.244.{n}.0/24", "main", f"node{n}") for n in (1, 2)]
    view = ClusterView.of((own, other, builders.pool("main", "10.244.0.0/16", attach=attach), *blocks))
    masquerades = Rule((Condition("saddr", ("10.244.0.0/16",)),), "masquerade")
    translates = Chain("nft", "inet", "x", "p", (masquerades,), hook="postrouting", priority=100, translates=True)
    facts = node_facts(
        memory={"view": view, "enforced": enforced}, firewall=Firewall(Ruleset((DROPS, translates)))
    )
    (dropped,) = firewall(facts)
    assert dropped.found == f"the policy drops {lost}"
    (translated,) = nat(facts)
    assert translated.severity == severity


def test_what_is_probably_not_meant_by_policies_is_told_where_they_are_enforced(node_facts: Facts) -> None:
    meant = NetworkPolicy(
        metadata=Metadata(name="closed", namespace="default"),
        spec=NetworkPolicySpec(pod_selector=LabelSelector(match_labels={"app": "web"})),
    )
    view = ClusterView.of((builders.config(data_path="ebpf"), meant))
    assert view.enforces
    (problem,) = policies(node_facts(memory={"view": view, "enforced": True}, policies=1))
    assert (problem.subject, problem.severity) == ("NetworkPolicy/default/closed", "warning")
    assert problem.found == "spec.podSelector: selects no pod"
    (problem,) = policies(node_facts(memory={"view": view, "enforced": False}, policies=1))
    assert problem.found.startswith("nothing enforces")


def test_a_node_that_fell_back_is_told_of_where_that_costs_something(node_facts: Facts) -> None:
    """What is not enforced or served there, and what the node lacks for it."""
    reason = "its kernel has no tcx"

    def told(check: Any, objects: Iterable[Resource], count: int) -> list[tuple[str, str]]:
        view = ClusterView.of((builders.config(data_path="auto", services="pods"), *objects))
        memory = {"view": view, "fallback": reason, "policy_problem": reason, "services_problem": "no engine"}
        return [(one.found, one.severity) for one in check(node_facts(memory=memory, policies=count))]

    assert told(policies, (), 0) == told(services, (), 0) == []
    policy = f"nothing enforces the cluster's policies here, of which there are 2: {reason}"
    assert told(policies, (), 2) == [(policy, "warning")]
    (served, *_) = told(services, (service(),), 0)
    assert served == (f"Podway serves none of the cluster's 1 Services here: {reason}", "warning")


def test_a_source_that_could_not_be_read(node_facts: Facts) -> None:
    (problem,) = looking(node_facts(unseen={"firewall": "nft says no"}))
    assert problem.subject == "firewall"
    assert "nft says no" in problem.found


@pytest.mark.parametrize(
    ("hours", "severity"), [(24.0, None), (6.0, None), (4.0, "warning"), (-1.0, "error")], ids=str
)
def test_a_certificate_near_its_end(node_facts: Facts, hours: float, severity: str | None) -> None:
    """It lives for 24 hours, and is renewed long before its end."""
    found = list(channel(node_facts(now=0.0, memory={"certificate_expires": hours * 3600})))
    assert [problem.severity for problem in found] == ([] if severity is None else [severity])


def test_a_default_route_that_router_advertisements_will_not_renew(node_facts: Facts) -> None:
    route = KernelRoute(ip_network("::/0"), "unicast", "eth0", None, 9, 1024, 254)
    advertised = KernelNetwork(routes=(route,))
    for accept, expected in (("1", 1), ("2", 0), ("0", 0)):
        values = {"net/ipv6/conf/eth0/accept_ra": accept}
        assert len(list(forwarding(node_facts(network=advertised, settings=Settings(values))))) == expected
    assert not list(forwarding(node_facts(settings=Settings({"net/ipv6/conf/eth0/accept_ra": "1"}))))


def test_three_repairs_are_a_fight_while_they_are_recent(node_facts: Facts) -> None:
    repairs = tuple(Repair(at, "route r was missing: added") for at in (100.0, 200.0, 300.0))
    assert len(list(fight(node_facts(now=400.0, memory={"repairs": repairs})))) == 1
    assert not list(fight(node_facts(now=400.0, memory={"repairs": repairs[:2]})))
    assert not list(fight(node_facts(now=750.0, memory={"repairs": repairs})))


def test_two_nodes_with_one_address() -> None:
    nodes = (heard("a", addresses=("192.0.2.1",)), heard("b", addresses=("192.0.2.1", "fd00::1")))
    (problem,) = node_address(cluster(*nodes))
    assert problem.subject == "192.0.2.1"
    assert "a and b" in problem.found


def test_nodes_that_nobody_could_ask_count_by_their_last_sign() -> None:
    seen = {"a": 2.0, "b": 500.0, "c": 3.0}
    (problem,) = agent(cluster(heard("a", seen=seen)))
    assert problem.subject == "b"
    assert not list(agent(cluster(heard("a", seen=seen), whole=False))), "only one was asked for"
    (silent,) = agent(cluster(heard("a", seen=seen), silent={"b": "refused"}))
    assert "refused" in silent.found


def test_an_agent_that_cannot_tell_who_lives_hides_no_dead_one(node_facts: Facts) -> None:
    """The store did not answer it just then."""
    names = ("a", "b", "c", "old")
    view = ClusterView.of(
        builders.node(name, notes={"podway.io/agent-seen": "940"} if name == "old" else {}) for name in names
    )
    renewed = {"a": 999.0, "b": 500.0}
    told = {
        name: Heard(summary(node_facts(memory={"node": name, "view": view}, renewed=known)), 1000.0)
        for name, known in (("a", renewed), ("c", {}))
    }
    assert told["a"].summary.seen == {"a": 1.0, "b": 500.0, "old": 60.0}
    assert told["c"].summary.seen == {"old": 60.0}
    assert set(told["c"].summary.nodes) == set(names)
    assert {problem.subject for problem in agent(ClusterFacts(told))} == {"b", "old"}


def test_clocks_are_compared_with_the_middle_one() -> None:
    nodes = (heard("a", at=1000.1), heard("b", at=1000.4), heard("c", at=940.0))
    (problem,) = clock(cluster(*nodes))
    assert (problem.subject, problem.found) == ("c", "its clock is 60 s behind")
    assert not list(clock(cluster(heard("a", at=1001.0))))


def test_the_version_of_most_is_the_right_one() -> None:
    nodes = (heard("a", version="2"), heard("b", version="1"), heard("c", version="2"))
    (problem,) = versions(cluster(*nodes))
    assert problem.subject == "b"


def test_of_two_ends_the_reason_that_says_more_is_told() -> None:
    """One end only sees silence; the other sees that it has no route."""
    one = heard("a", sessions=(session("b", answer="silent"),))
    other = heard("b", sessions=(session("a", way="unreachable"),))
    (problem,) = bgp_session(cluster(one, other))
    assert problem.subject == "a - b IPv4"
    assert "no route from b" in problem.found
    assert "on a Connect" in problem.found
    assert "on b Connect" in problem.found


def test_a_dead_node_is_one_finding_whatever_falls_with_it() -> None:
    dead = {"answer": "silent", "ping": False}
    nodes = [
        heard(name, sessions=(session("c", **dead), session(other, state="Established")), seen={"c": 50.0})
        for name, other in (("a", "b"), ("b", "a"))
    ]
    facts = cluster(*nodes, silent={"c": "refused"})
    (problem,) = bgp_session(facts)
    assert problem.subject == "c"
    assert (
        "its agent does not answer either: it is dead or cut off; its sessions with a, b are down" in problem.found
    )
    assert not list(agent(facts)), "the same death is not told again"
    assert len(list(agent(cluster(heard("a"), silent={"c": "refused"})))) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"answer": "refused"}, "BIRD does not run there"),
        ({"answer": "silent", "ping": False}, "dead or cut off"),
        ({"answer": "silent"}, "the port is filtered"),
        ({"answer": "unreachable"}, "the port is filtered"),
        ({"answer": "silent", "signatures": 3}, "password"),
        ({"answer": "open", "state": "Active", "last_error": "Received: Bad peer AS"}, "AS numbers"),
        ({"answer": "open", "state": "OpenSent"}, "hangs"),
        ({"answer": "open", "state": "Idle", "last_error": "Hold timer expired"}, "BIRD: Hold timer expired"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_likely_reason_of_a_session_that_is_down(given: dict[str, Any], words: str) -> None:
    (problem,) = bgp_session(cluster(heard("a", sessions=(session("b", **given),))))
    assert words in problem.found


def reflecting(*found: Reflector, racks: int = 1) -> ClusterFacts:
    return cluster(heard("a", reflectors=found, racks=racks, nodes=tuple("abcde")))


def test_reflectors_that_are_too_few_or_lost() -> None:
    one, two = Reflector("a", "r1"), Reflector("b", "r1")
    gone = Reflector("c", "r2", ("a", "b", "d", "e"), lost=True)
    assert not list(reflectors(reflecting(one, two)))
    (problem,) = reflectors(reflecting(one, two, racks=2))
    assert "in one rack" in problem.found
    (problem,) = reflectors(reflecting(one))
    assert (problem.severity, "only 1 route reflector left (a)" in problem.found) == (Severity.WARNING, True)
    (problem,) = reflectors(reflecting(one, two, gone))
    assert (problem.subject, "4 of 4 nodes have lost" in problem.found) == ("c", True)
    assert "podway delete node c" in problem.advice
    told = list(reflectors(reflecting(gone)))
    assert [problem.severity for problem in told] == [Severity.WARNING, Severity.ERROR]
    (problem,) = reflectors(reflecting(one, Reflector("b", "r2", ("e",)), racks=2))
    assert "other nodes still have theirs" in problem.found


def test_a_chosen_address_that_the_node_has_not(node_facts: Facts) -> None:
    here = builders.node("node1", "192.0.2.1/24", notes={NAT_ADDRESSES: "203.0.113.7,2001:db8::7"})
    held = HealthDevice("lo", "", 65536, True, (ip_interface("203.0.113.7/32"),))

    def found(*devices: HealthDevice, on: bool = True) -> list[Problem]:
        pools = [
            builders.pool(f"p{n}", cidr, nat_outgoing=on) for n, cidr in enumerate(("10.9.0.0/16", "fd09::/64"))
        ]
        memory = {"view": ClusterView.of([here, *pools])}
        return list(nat_address(node_facts(memory=memory, network=KernelNetwork(devices=devices))))

    four, six = found()
    assert "from 203.0.113.7, which" in four.found
    assert "from 2001:db8::7, which" in six.found
    (six,) = found(held)
    assert six.severity is Severity.WARNING
    assert "ip address add 2001:db8::7/128 dev lo" in six.advice
    assert "nat-addresses=" in six.advice
    assert found(on=False) == []


def test_every_check_says_what_it_looks_at_and_why() -> None:
    names = [check.name for check in every()]
    assert len(set(names)) == len(names)
    for check in every():
        assert check.looks_at
        assert check.why


def test_the_manual_lists_the_checks_as_they_are_declared() -> None:
    """Correct docs/doctor.md by what this shows."""
    rows = [
        f"| `{check.name}` | {check.looks_at} | {check.why} | {'caused' if check.caused else 'facts'} |"
        for check in every()
    ]
    listed = [line for line in DOC.read_text().splitlines() if line.endswith(("| caused |", "| facts |"))]
    assert listed == rows


@pytest.mark.parametrize(
    ("used", "severity"), [(899, None), (900, Severity.WARNING), (1000, Severity.ERROR)], ids=str
)
def test_tables_of_the_flow_engine_are_told_before_they_are_full(
    node_facts: Facts, used: int, severity: Severity | None
) -> None:
    facts = node_facts(memory={"tables": {"rules": Table(used, 1000), "flows": Table(5, 1000)}})
    found = [(one.subject, one.severity) for one in flow_tables(facts)]
    assert found == ([("table rules", severity)] if severity else [])


def test_kube_proxys_rules_are_found_where_podway_serves_in_its_place(node_facts: Facts) -> None:
    chains = (
        *(
            Chain("nft", family, "kube-proxy", name)
            for family in ("ip", "ip6")
            for name in ("services", "nodeports")
        ),
        *(Chain("iptables-legacy", "ip", "nat", name) for name in ("KUBE-SERVICES", "KUBE-SVC-X", "PREROUTING")),
        *(Chain("nft", "ip", "filter", name) for name in ("KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "INPUT")),
    )
    found = {
        "firewall": Firewall(Ruleset(chains)),
        "network": KernelNetwork(devices=(HealthDevice(IPVS_DEVICE, "dummy", 1500, False),)),
    }

    def told(services: str, **facts: Any) -> list[str]:
        view = ClusterView.of([builders.config(data_path="ebpf", services=services)])
        return [one.found for one in kube_proxy(node_facts(memory={"view": view}, **facts))]

    (problem,) = told("all", **found)
    assert problem.endswith(
        "2 chains in iptables-legacy ip nat, 2 chains in nft ip kube-proxy, 2 chains in nft ip6 kube-proxy, "
        f"device {IPVS_DEVICE}"
    )
    assert told("pods", **found) == [], "kube-proxy serves the rest there"
    others = {"firewall": Firewall(Ruleset(chains[-4:]))}
    assert told("all", **others) == []
