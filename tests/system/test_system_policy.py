"""Policies in a lab on SQLite, by packets: what they allow arrives and nothing else, in every form of network."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from podway.api.kinds.pod import ContainerPort
from podway.lab.facts import PoolSettings
from tests.patience import PATIENCE, eventually
from tests.system.policy_lab import CLUSTER_POLICY, FAMILIES, SOON, Place, PolicyLab, policy_lab

pytestmark = pytest.mark.kernel

FORMS = {
    "none": PoolSettings(),
    "vxlan": PoolSettings(encapsulation="vxlan"),
    "ipip": PoolSettings(encapsulation="ipip"),
    "bridge": PoolSettings(attach="bridge"),
}
ALL = "client near ops/far node1 node2"


@pytest.fixture(scope="module", params=FORMS)
def shared(request: pytest.FixtureRequest) -> Iterator[PolicyLab]:
    """Two nodes with pods: web and near on the first, client and ops/far on the second."""
    with policy_lab(FORMS[request.param]) as made:
        made.run(
            "web",
            "node1",
            80,
            443,
            8080,
            labels={"app": "web"},
            ports=[ContainerPort(name="http", container_port=8080)],
        )
        made.run("near", "node1", labels={"app": "near"})
        made.run("client", "node2", 80, labels={"app": "client"})
        made.run("ops/far", "node2", 80, labels={"app": "client"})
        made.lab.podway("set", "ns/ops", "labels.team=ops")
        yield made


@pytest.fixture
def lab(shared: PolicyLab) -> Iterator[PolicyLab]:
    """The module's lab; after each test there are its first pods and no policies."""
    first = set(shared.pods)
    yield shared
    for name in shared.pods.keys() - first:
        shared.remove(name)
    shared.forget_policies()


def test_default_deny_lets_nobody_in_but_the_own_node_and_its_end_everybody(lab: PolicyLab) -> None:
    web = lab.pods["web"]
    lab.reached_by(web, ALL)
    lab.policy(podSelector={"matchLabels": {"app": "web"}})
    lab.reached_by(web, "node1")
    lab.reached_by(lab.pods["client"], "web near ops/far node1 node2")
    lab.forget_policies()
    lab.reached_by(web, ALL)


def test_default_deny_of_egress_lets_nothing_out(lab: PolicyLab) -> None:
    lab.policy(podSelector={"matchLabels": {"app": "near"}}, policyTypes=["Egress"])
    lab.reached_by(lab.pods["client"], "web ops/far node1 node2")
    lab.reached_by(lab.pods["web"], "client ops/far node1 node2")
    to = [{"podSelector": {"matchLabels": {"app": "client"}}}]
    lab.policy(podSelector={"matchLabels": {"app": "near"}}, policyTypes=["Egress"], egress=[{"to": to}])
    lab.reached_by(lab.pods["client"], "web near ops/far node1 node2")
    lab.reached_by(lab.pods["ops/far"], "web client node1 node2")


def test_pods_are_allowed_by_their_labels_and_by_those_of_their_namespace(lab: PolicyLab) -> None:
    web, pod = lab.pods["web"], {"matchLabels": {"app": "client"}}
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": [{"podSelector": pod}]}])
    lab.reached_by(web, "client node1")
    space = {"matchLabels": {"team": "ops"}}
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": [{"namespaceSelector": space}]}])
    lab.reached_by(web, "ops/far node1")
    lab.policy(
        podSelector={"matchLabels": {"app": "web"}},
        ingress=[{"from": [{"namespaceSelector": {}, "podSelector": pod}]}],
    )
    lab.reached_by(web, "client ops/far node1")


def test_ports_by_number_by_range_and_by_name(lab: PolicyLab) -> None:
    web = lab.pods["web"]
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": [{"port": 80, "endPort": 443}]}])
    lab.reached_by(web, "client near node1", among="client near node1")
    lab.reached_by(web, "client near node1", 443, among="client near node1")
    lab.reached_by(web, "node1", 8080, among="client near node1")
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": [{"port": "http"}]}])
    lab.reached_by(web, "client near node1", 8080, among="client near node1")
    lab.reached_by(web, "node1", 443, among="client near node1")


def test_blocks_of_addresses_but_what_is_cut_out_of_them(lab: PolicyLab) -> None:
    web, client = lab.pods["web"], lab.pods["client"]
    blocks = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": [f"{client.address(socket.AF_INET)}/32"]}},
        {"ipBlock": {"cidr": "::/0", "except": [f"{client.address(socket.AF_INET6)}/128"]}},
    ]
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": blocks}])
    lab.reached_by(web, "near ops/far node1 node2")


def test_cluster_policies_come_before_and_after_those_of_namespaces(lab: PolicyLab) -> None:
    web = lab.pods["web"]
    everybody: list[dict[str, Any]] = [{"namespaces": {}}]
    subject = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}}
    near = [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "near"}}}}]
    base = {
        "tier": "Baseline",
        "priority": 1,
        "subject": subject,
        "ingress": [{"action": "Deny", "from": everybody}],
    }
    lab.apply({**CLUSTER_POLICY, "metadata": {"name": "baseline"}, "spec": base})
    lab.reached_by(web, "node1 node2")
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{}])
    lab.reached_by(web, ALL)
    admin = {"tier": "Admin", "priority": 1, "subject": subject, "ingress": [{"action": "Deny", "from": near}]}
    lab.apply({**CLUSTER_POLICY, "metadata": {"name": "admin"}, "spec": admin})
    lab.reached_by(web, "client ops/far node1 node2")


def test_labels_of_pods_and_namespaces_that_change_live(lab: PolicyLab) -> None:
    web = lab.pods["web"]
    space = {"matchLabels": {"team": "dev"}}
    peers = [{"podSelector": {"matchLabels": {"app": "client"}}}, {"namespaceSelector": space}]
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": peers}])
    lab.reached_by(web, "client node1")
    lab.lab.podway("set", "pod/near", "labels.app=client")
    lab.reached_by(web, "client near node1")
    lab.lab.podway("set", "ns/ops", "labels.team=dev")
    lab.reached_by(web, "client near ops/far node1")
    lab.lab.podway("set", "pod/near", "labels.app=near")
    lab.lab.podway("set", "ns/ops", "labels.team=ops")
    lab.reached_by(web, "client node1")
    lab.lab.podway("set", "pod/web", "labels.app=other")
    lab.reached_by(web, ALL)
    lab.lab.podway("set", "pod/web", "labels.app=web")
    lab.reached_by(web, "client node1")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_open_connection_ends_where_it_is_not_allowed_any_more_and_no_other_does(
    lab: PolicyLab, family: int
) -> None:
    web, port = lab.pods["web"], 9000 + int(family)
    server = lab.listen(web, family, port)
    server.settimeout(PATIENCE)
    with lab.pods["client"].open(family) as one, lab.pods["near"].open(family) as other:
        ends = []
        for client in (one, other):
            client.connect((web.address(family), port))
            ends.append(server.accept()[0])
            ends[-1].settimeout(SOON)
        for client, end in zip((one, other), ends, strict=True):
            client.sendall(b"before")
            assert end.recv(100) == b"before"
        pod = {"matchLabels": {"app": "near"}}
        lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": [{"podSelector": pod}]}])
        eventually(lambda: lab.data_path("node1")["rule_sets"] == 1)
        one.sendall(b"after")
        with pytest.raises(TimeoutError):
            ends[0].recv(100)
        ends[0].settimeout(PATIENCE)
        ends[0].sendall(b"after")
        with pytest.raises(ConnectionResetError):
            ends[0].recv(100)
        other.sendall(b"after")
        assert ends[1].recv(100) == b"after"
        for end in ends:
            end.close()


def test_a_pod_is_isolated_from_its_first_packet_on(lab: PolicyLab) -> None:
    # Who is isolated already tells that the node has heard of the policy.
    lab.policy(podSelector={"matchExpressions": [{"key": "app", "operator": "In", "values": ["late", "web"]}]})
    lab.reached_by(lab.pods["web"], "node1", among="client near node1")
    address = _free_address(lab.pods["near"])
    pinging = subprocess.Popen(
        ["nsenter", f"--net={lab.pods['client'].path}", "ping", "-n", "-i", "0.01", "-w", "60", address],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        late = lab.run("late", "node1", 80, labels={"app": "late"}, addresses=[address])
        assert lab.who(late, among="client near node1") == {"node1"}
    finally:
        pinging.terminate()
        told = pinging.communicate()[0]
    assert "bytes from" not in told
    lab.forget_policies()
    lab.reached_by(late, "client near node1", among="client near node1")


def test_policies_are_in_force_while_the_agent_is_dead_and_the_next_one_writes_nothing(lab: PolicyLab) -> None:
    web, pod = lab.pods["web"], {"matchLabels": {"app": "client"}}
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": [{"podSelector": pod}]}])
    lab.reached_by(web, "client node1")
    pings = {}
    for name in ("client", "near"):
        command = ["ping", "-n", "-q", "-i", "0.01", "-w", "600", web.address(socket.AF_INET)]
        pings[name] = subprocess.Popen(
            ["nsenter", f"--net={lab.pods[name].path}", *command], stdout=subprocess.PIPE, text=True
        )
    try:
        lab.lab.kill_agent("node1")
        assert lab.who(web, among="client near ops/far node1") == {"client", "node1"}
        lab.lab.start_agent("node1")
        assert lab.lab.status("node1")["kernel_writes"] == 0
        assert lab.who(web, among="client near ops/far node1") == {"client", "node1"}
    finally:
        for one in pings.values():
            one.send_signal(2)
        told = {name: one.communicate()[0] for name, one in pings.items()}
    sent, got = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", told["client"])[0])
    assert sent == got
    assert " 0 received" in told["near"]
    assert not lab.lab.status("node1")["drift"]["now"]


def test_what_changed_while_the_agent_was_dead_is_in_force_with_the_next_one(lab: PolicyLab) -> None:
    lab.policy(podSelector={"matchLabels": {"app": "web"}})
    lab.reached_by(lab.pods["web"], "node1")
    lab.lab.kill_agent("node1")
    lab.lab.podway("delete", "netpol", "p")
    lab.policy("q", podSelector={"matchLabels": {"app": "near"}})
    lab.lab.start_agent("node1")
    lab.reached_by(lab.pods["web"], ALL)
    lab.reached_by(lab.pods["client"], "web near ops/far node1 node2")


def test_status_and_explanations_say_what_is_in_force(lab: PolicyLab) -> None:
    lab.policy(podSelector={"matchLabels": {"app": "web"}})
    lab.reached_by(lab.pods["web"], "node1")
    told = lab.lab.podway("policy", "explain", "near", "web", "--port", "80", check=False)
    assert "denied" in told
    assert "not enforced" not in told
    status = lab.lab.status("node1")["data_path"]
    assert status["tables"]["rules"] == {"used": status["rules"], "room": 262144}
    assert status["tables"]["endpoints"]["used"] == 4, "two pods in two families"
    assert status["nearly_full"] == []


def test_an_agent_that_starts_takes_off_an_engine_that_is_not_wanted_any_more(lab: PolicyLab) -> None:
    lab.policy(podSelector={"matchLabels": {"app": "web"}})
    lab.reached_by(lab.pods["web"], "node1")
    lab.lab.kill_agent("node1")
    lab.lab.podway("set", "config", "dataPath=kernel")
    lab.lab.start_agent("node1")
    lab.reached_by(lab.pods["web"], ALL)
    assert not lab.lab.status("node1")["drift"]["now"]
    lab.lab.podway("set", "config", "dataPath=ebpf", "--wait")
    lab.reached_by(lab.pods["web"], "node1")


def test_trace_names_the_rule_that_lets_a_packet_pass_or_stops_it(lab: PolicyLab) -> None:
    pod = {"matchLabels": {"app": "client"}}
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": [{"podSelector": pod}]}])
    lab.reached_by(lab.pods["web"], "client node1")
    passed = lab.lab.podway("trace", "client", "web", "--port", "80")
    assert "allowed: rule ingress[0] of NetworkPolicy/default/p allows it" in " ".join(passed.split())
    for more in ((), ("--dry-run",)):
        stopped = lab.lab.podway("trace", "near", "web", "--port", "80", *more, check=False)
        told = " ".join(stopped.split())
        assert "NOT DELIVERED" in told
        assert "policies deny it: ingress of Pod/default/web: it is isolated by NetworkPolicy/default/p" in told


def test_verify_proves_what_policies_deny_and_finds_what_a_node_lets_through(lab: PolicyLab) -> None:
    lab.policy(podSelector={"matchLabels": {"app": "web"}})
    lab.reached_by(lab.pods["web"], "node1")
    told = lab.lab.podway("verify", check=False)
    assert "All three rules hold" in told
    assert "what policies deny does not arrive" in told
    lab.lab.kill_agent("node2")
    lab.policy("q", "ops", podSelector={})
    report = json.loads(lab.lab.podway("verify", "-o", "json", check=False))
    lab.lab.start_agent("node2")
    assert not report["holds"]
    (found,) = report["findings"]
    assert found["code"] == "policy-not-held"
    assert "NetworkPolicy/ops/q" in found["problem"]
    assert {pair["receiver"] for pair in found["pairs"]} == {"pod ops/far"}


def _free_address(near: Place) -> str:
    """An address of the first node that no pod has."""
    return near.address(socket.AF_INET).rpartition(".")[0] + ".50"


def test_a_limit_of_a_pods_bandwidth_holds_as_soon_as_it_is_there(lab: PolicyLab) -> None:
    node, web = "node1", ip_address(lab.pods["web"].address(socket.AF_INET))
    link = next(one.link for one, addresses in lab.lab.leases(node).items() if web in addresses)

    def counts() -> bool:
        (before,) = json.loads(lab.lab.sh(node, f"tc -s -j qdisc show dev {link} root"))
        for name in ("client", "near"):
            assert lab.connects(lab.pods[name], lab.pods["web"], 80, socket.AF_INET)
        (after,) = json.loads(lab.lab.sh(node, f"tc -s -j qdisc show dev {link} root"))
        # Two packets towards the pod of each connection that is made and closed, at least.
        return bool(after["packets"] - before["packets"] >= 4)

    lab.lab.sh(node, f"tc qdisc add dev {link} root tbf rate 400mbit burst 256kb latency 50ms")
    try:
        eventually(counts)
    finally:
        lab.lab.sh(node, f"tc qdisc del dev {link} root")


VIPS = {socket.AF_INET: "10.96.0.10", socket.AF_INET6: "fd00:96::10"}


@contextmanager
def translated(lab: PolicyLab, node: str, target: Place, port: int) -> Iterator[Place]:
    """A Service as kube-proxy serves it on a node, by its firewall, with one backend at that port."""
    families = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
    for name, family in families.items():
        backend = target.address(family) if name == "ip" else f"[{target.address(family)}]"
        rules = "\n".join(
            f"{name} daddr {VIPS[family]} {protocol} dport {port} dnat to {backend}:{port}"
            for protocol in ("tcp", "udp")
        )
        chain = f"chain pre {{\ntype nat hook prerouting priority dstnat;\n{rules}\n}}"
        lab.lab.sh(node, "nft -f -", stdin=f"table {name} foreign {{\n{chain}\n}}\n")
    try:
        yield Place("service", "", tuple(VIPS.values()))
    finally:
        for name in families:
            lab.lab.sh(node, f"nft delete table {name} foreign")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_service_that_another_proxy_translates_answers_a_pod_that_lets_nobody_in(
    lab: PolicyLab, family: socket.AddressFamily
) -> None:
    """The engine sees the call to the Service, and the answer of a backend: the stack knows what joins them."""
    web, client = lab.pods["web"], lab.pods["client"]
    lab.policy(podSelector={"matchLabels": {"app": "client"}}, policyTypes=["Ingress"])
    lab.reached_by(client, "node2")
    with ExitStack() as stack:
        service = stack.enter_context(translated(lab, "node2", web, 9901))
        server = lab.listen(web, family, 9901)
        server.settimeout(PATIENCE)
        call = stack.enter_context(client.open(family))
        call.settimeout(PATIENCE)
        call.connect((service.address(family), 9901))
        end = stack.enter_context(server.accept()[0])
        names = stack.enter_context(web.open(family, socket.SOCK_DGRAM))
        names.bind((web.address(family), 9901))
        ask = stack.enter_context(client.open(family, socket.SOCK_DGRAM))
        ask.connect((service.address(family), 9901))
        for one in (names, ask):
            one.settimeout(PATIENCE)
        for _ in range(2):
            end.sendall(b"down")
            assert call.recv(100) == b"down"
            call.sendall(b"up")
            assert end.recv(100) == b"up"
            ask.send(b"who?")
            names.sendto(b"me", names.recvfrom(100)[1])
            assert ask.recv(100) == b"me"


def test_a_connection_that_another_proxy_translates_goes_on_whoever_speaks_first_when_the_engine_begins(
    lab: PolicyLab,
) -> None:
    web, client = lab.pods["web"], lab.pods["client"]
    lab.lab.podway("set", "config", "dataPath=kernel", "--wait")
    with ExitStack() as stack:
        stack.callback(lab.lab.podway, "set", "config", "dataPath=ebpf", "--wait")
        service = stack.enter_context(translated(lab, "node2", web, 9902))
        server = lab.listen(web, socket.AF_INET, 9902)
        server.settimeout(PATIENCE)
        call = stack.enter_context(client.open(socket.AF_INET))
        call.settimeout(PATIENCE)
        call.connect((service.address(socket.AF_INET), 9902))
        end = stack.enter_context(server.accept()[0])
        lab.lab.podway("set", "config", "dataPath=ebpf", "--wait")
        for _ in range(2):
            end.sendall(b"down")
            assert call.recv(100) == b"down"
            call.sendall(b"up")
            assert end.recv(100) == b"up"


def test_the_data_path_is_switched_under_open_connections(lab: PolicyLab) -> None:
    web = lab.pods["web"]
    server = lab.listen(web, socket.AF_INET, 9900)
    server.settimeout(PATIENCE)
    ping = ["ping", "-n", "-q", "-i", "0.002", "-w", "600", web.address(socket.AF_INET)]
    pinging = subprocess.Popen(
        ["nsenter", f"--net={lab.pods['client'].path}", *ping], stdout=subprocess.PIPE, text=True
    )
    with lab.pods["client"].open(socket.AF_INET) as client:
        client.connect((web.address(socket.AF_INET), 9900))
        end = server.accept()[0]
        client.settimeout(PATIENCE)
        for path in ("kernel", "ebpf", "kernel", "ebpf"):
            lab.lab.podway("set", "config", f"dataPath={path}", "--wait")
            eventually(lambda path=path: all(lab.data_path(n)["in_force"] == path for n in lab.lab.nodes))
            end.sendall(b"down")
            assert client.recv(100) == b"down"
            client.sendall(b"up")
            assert end.recv(100) == b"up"
        end.close()
    pinging.send_signal(2)
    sent, got = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", pinging.communicate()[0])[0])
    assert sent - got <= 1, f"{sent - got} of {sent}"  # the last may be under way
