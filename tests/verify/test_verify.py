"""verify on a real network: it passes when all is well, and finds and locates whatever is broken.

Every fault is made on a cluster of its own; what is asserted is the cause named first, where it was, and whom
it hit. A proof that cannot fail is worth nothing.
"""

import json
import subprocess

import msgspec
import pytest

from podway.api.addresses import Family
from podway.errors import InvalidInput
from podway.prove.world import Absent, NodePoint
from podway.verify.report import Report, Verdict, to_json, to_text
from podway.verify.verify import path_of, verify
from tests.verify.hand_cluster import Cluster, run

pytestmark = pytest.mark.kernel

TIMEOUT = 1.0


def prove(cluster: Cluster) -> Report:
    return verify(cluster.world(), timeout=TIMEOUT)


def hit(report: Report, number: int = 0) -> set[tuple[str, str, str]]:
    return {(p.sender, p.receiver, p.family) for p in report.findings[number].pairs}


def problems(report: Report) -> list[str]:
    return [finding.problem for finding in report.findings]


def pods_between(one: int, other: int, *families: str) -> set[tuple[str, str, str]]:
    """Return every pair from a pod of one node to a pod of the other."""
    return {
        (f"pod default/p{one}{i}", f"pod default/p{other}{j}", family)
        for i in (2, 3)
        for j in (2, 3)
        for family in families
    }


def test_a_healthy_cluster_is_proved(cluster: Cluster) -> None:
    report = prove(cluster)
    assert report.findings == ()
    assert [(rule.proved, rule.tried, rule.total) for rule in report.rules] == [(8, 8, 8), (24,) * 3, (32,) * 3]
    assert report.holds
    assert report.retried == report.packets_missed == 0
    document = json.loads(to_json(report))
    assert document["holds"] is True
    assert document["apiVersion"] == "podway.io/v1"
    assert [rule["verdict"] for rule in document["rules"]] == ["proved"] * 3
    assert "All three rules hold." in to_text(report)


def test_nothing_is_left_in_the_pods(cluster: Cluster) -> None:
    prove(cluster)
    for pod in (cluster.pod(1, 2), cluster.node(1)):
        assert cluster.on(pod, "ss -Hanutw") == ""


def test_a_large_mtu_is_proved_at_full_size(cluster: Cluster) -> None:
    for node in (1, 2):
        run(f"ip -n {cluster.prefix}-fab link set port{node} mtu 9000")
        cluster.on_node(node, "ip link set eth0 mtu 9000")
        for number in (2, 3):
            cluster.on_node(node, f"ip link set veth{number} mtu 9000")
            cluster.on(cluster.pod(node, number), "ip link set eth0 mtu 9000")
    assert prove(cluster).holds
    path = path_of(cluster.world(), "pod default/p12", "pod default/p22", Family.IPV6)
    assert {hop.length for hop in path} == {9000}


@pytest.mark.parametrize("family", list(Family))
def test_the_path_of_one_packet(cluster: Cluster, family: Family) -> None:
    path = path_of(cluster.world(), "pod default/p12", "pod default/p23", family)
    assert [(hop.point, hop.interface, hop.direction, hop.hop_limit) for hop in path] == [
        ("pod default/p12", "eth0", "out", 64),
        ("node n1", "veth2", "in", 64),
        ("node n1", "eth0", "out", 63),
        ("node n2", "eth0", "in", 63),
        ("node n2", "veth3", "out", 62),
        ("pod default/p23", "eth0", "in", 62),
    ]
    assert {hop.length for hop in path} == {1500}
    assert len({(hop.source, hop.destination) for hop in path}) == 1
    assert all(hop.since_last >= 0 for hop in path)


def test_the_path_ends_where_the_packet_is_lost(cluster: Cluster) -> None:
    cluster.on_node(1, "ip route del 10.77.2.0/24")
    path = path_of(cluster.world(), "pod default/p12", "pod default/p23", Family.IPV4, timeout=TIMEOUT)
    assert [hop.point for hop in path] == ["pod default/p12", "node n1"]
    with pytest.raises(InvalidInput, match="no pod default/none"):
        path_of(cluster.world(), "pod default/none", "pod default/p23", Family.IPV4)


def test_masquerade_is_nat(cluster: Cluster) -> None:
    rules = 'table ip t { chain c { type nat hook postrouting priority 100; oifname "eth0" masquerade; }; }'
    cluster.nft(cluster.node(1), rules)
    report = prove(cluster)
    assert problems(report) == ["node n1 translates source addresses to 172.30.0.1 (NAT)"]
    finding = report.findings[0]
    assert finding.code == "address-translated"
    assert hit(report) >= pods_between(1, 2, "IPv4")
    assert all(sender != "node n1" for sender, _, _ in hit(report))
    assert {pair.protocols for pair in finding.pairs} == {("TCP", "UDP", "ICMP")}
    assert "of node n1" in finding.last_seen
    assert cluster.node(1) in finding.advice
    assert [rule.verdict for rule in report.rules] == [Verdict.PROVED, Verdict.FAILED, Verdict.FAILED]


def test_nat_inside_the_receiver_is_found(cluster: Cluster) -> None:
    """Source NAT on input shows to nobody but the socket that is spoken to."""
    rules = "table ip t { chain c { type nat hook input priority 100; ip saddr 10.77.1.2 snat to 10.9.9.9; }; }"
    cluster.nft(cluster.pod(2, 3), rules)
    report = prove(cluster)
    assert problems(report) == ["pod default/p23 translates source addresses to 10.9.9.9 (NAT)"]
    assert hit(report) == {("pod default/p12", "pod default/p23", "IPv4")}
    assert report.findings[0].pairs[0].protocols == ("TCP", "UDP")


def test_destination_nat_is_found(cluster: Cluster) -> None:
    rules = (
        "table ip t { chain c { type nat hook prerouting priority -100; ip daddr 10.77.2.3 dnat to 10.77.2.2; }; }"
    )
    cluster.nft(cluster.node(1), rules)
    report = prove(cluster)
    assert problems(report)[0] == "node n1 translates destination addresses to 10.77.2.2 (NAT)"
    assert hit(report) == {(f"pod default/p1{i}", "pod default/p23", "IPv4") for i in (2, 3)}


def test_a_source_that_the_route_prefers_is_not_the_nodes_own(cluster: Cluster) -> None:
    cluster.on_node(1, "ip route replace 10.77.1.2 dev veth2 src 169.254.1.1")
    report = prove(cluster)
    assert "node n1 sends from 169.254.1.1, which is not its own address" in problems(report)[0]
    assert hit(report) == {("node n1", "pod default/p12", "IPv4")}


def test_vxlan_is_encapsulation(cluster: Cluster) -> None:
    for node, other in ((1, 2), (2, 1)):
        run(f"ip -n {cluster.prefix}-fab link set port{node} mtu 1600")
        cluster.on_node(node, "ip link set eth0 mtu 1600")
        cluster.on_node(
            node,
            f"ip link add vx type vxlan id 7 dstport 8472 local 172.30.0.{node} remote 172.30.0.{other} dev eth0",
        )
        cluster.on_node(node, f"ip link set vx address 02:00:00:00:09:0{node} mtu 1500 up")
        cluster.on_node(node, f"ip neigh add 172.30.9.{other} lladdr 02:00:00:00:09:0{other} dev vx")
        cluster.on_node(
            node, f"ip route replace 10.77.{other}.0/24 via 172.30.9.{other} dev vx onlink src 172.30.0.{node}"
        )
    report = prove(cluster)
    wrapped = [f for f in report.findings if f.code == "encapsulated"]
    assert {f.problem for f in wrapped} == {
        f"packets from node n{a} to n{b}'s block 10.77.{b}.0/24 cross eth0 of node n{a} "
        f"wrapped in VXLAN (VNI 7, port 8472) from 172.30.0.{a} to 172.30.0.{b}: "
        "the route there leads into vx (vxlan)"
        for a, b in ((1, 2), (2, 1))
    }
    found = {(p.sender, p.receiver, p.family) for f in wrapped for p in f.pairs}
    assert found >= pods_between(1, 2, "IPv4") | pods_between(2, 1, "IPv4")
    assert all(family == "IPv4" for _, _, family in found)


@pytest.mark.parametrize(
    ("command", "device"),
    [("ip link set veth3 mtu 1400", "veth3 of node n2"), ("ip link set eth0 mtu 1400", "eth0 of node n2")],
)
def test_a_small_mtu_is_found(cluster: Cluster, command: str, device: str) -> None:
    cluster.on_node(2, command)
    report = prove(cluster)
    assert problems(report)[0] == f"the MTU of {device} is 1400, but packets of 1500 bytes must pass"
    assert ("pod default/p12", "pod default/p23", "IPv4") in hit(report)
    assert all("UDP" in pair.protocols and "ICMP" in pair.protocols for pair in report.findings[0].pairs)


def test_a_cleared_dont_fragment_flag_is_found(cluster: Cluster) -> None:
    rules = (
        "table ip t { chain c { type filter hook prerouting priority -200; "
        "ip saddr 10.77.1.2 ip frag-off set ip frag-off & 0xbfff; }; }"
    )
    cluster.nft(cluster.node(1), rules)
    report = prove(cluster)
    assert {finding.code for finding in report.findings} == {"dont-fragment-cleared"}
    assert {problem.rpartition(" leaving by ")[2] for problem in problems(report)} >= {"eth0 of node n1"}
    assert all("pod default/p12" in pair[:2] for f in range(len(report.findings)) for pair in hit(report, f))


def test_a_missing_route_is_found(cluster: Cluster) -> None:
    cluster.on_node(1, "ip -6 route del fd77:0:0:2::/64")
    report = prove(cluster)
    assert problems(report) == ["node n1 has no route to n2's block fd77:0:0:2::/64"]
    assert hit(report) >= pods_between(1, 2, "IPv6")
    assert all(family == "IPv6" for _, _, family in hit(report))


def test_a_missing_pod_route_is_told_from_a_missing_block_route(cluster: Cluster) -> None:
    cluster.on_node(2, "ip route del 10.77.2.3")
    report = prove(cluster)
    problem = (
        "node n2 has no route to pod default/p23 (10.77.2.3): only the blackhole route of its own block matches"
    )
    assert problem in problems(report)
    number = problems(report).index(problem)
    assert ("pod default/p12", "pod default/p23", "IPv4") in hit(report, number)
    assert all("pod default/p23" in pair[:2] for f in range(len(report.findings)) for pair in hit(report, f))


def test_a_blackhole_is_found(cluster: Cluster) -> None:
    cluster.on_node(1, "ip route replace blackhole 10.77.2.0/24")
    report = prove(cluster)
    problem = (
        "node n1 throws packets for n2's block 10.77.2.0/24 away: its route to 10.77.2.0/24 is of type blackhole"
    )
    assert problem in problems(report)
    assert hit(report, problems(report).index(problem)) >= pods_between(1, 2, "IPv4")


def test_a_route_into_the_wrong_device_is_found(cluster: Cluster) -> None:
    cluster.on_node(1, "ip route replace 10.77.2.0/24 dev veth2")
    report = prove(cluster)
    problem = "node n1 routes packets for n2's block 10.77.2.0/24 out of veth2 (veth) instead of eth0"
    assert problem in problems(report)


def test_a_firewall_drop_is_located(cluster: Cluster) -> None:
    rules = 'table inet t { chain c { type filter hook forward priority 0; iifname "eth0" udp dport > 0 drop; }; }'
    cluster.nft(cluster.node(2), rules)
    report = prove(cluster)
    assert problems(report) == [
        "node n2 drops packets from other nodes to its pods, though it has the right route: a firewall rule or an "
        "eBPF program does it"
    ]
    finding = report.findings[0]
    assert "entering by eth0 of node n2" in finding.last_seen
    assert {pair.protocols for pair in finding.pairs} == {("UDP",)}
    assert hit(report) >= pods_between(1, 2, "IPv4", "IPv6")


def test_who_rejects_is_told(cluster: Cluster) -> None:
    rules = (
        "table inet t { chain c { type filter hook forward priority 0; "
        'iifname "eth0" ip daddr 10.77.2.3 reject with icmpx admin-prohibited; }; }'
    )
    cluster.nft(cluster.node(2), rules)
    report = prove(cluster)
    assert report.findings[0].detail == (
        "node n2 answered: communication administratively prohibited (ICMP); first seen leaving by eth0 of node n2"
    )


def test_a_firewall_inside_a_pod_is_located(cluster: Cluster) -> None:
    rules = "table inet t { chain c { type filter hook input priority 0; ip6 nexthdr tcp drop; }; }"
    cluster.nft(cluster.pod(2, 3), rules)
    report = prove(cluster)
    assert problems(report) == [
        "packets arrive at pod default/p23 and end in its own network stack: a firewall rule inside does it"
    ]
    assert {(pair.family, pair.protocols) for pair in report.findings[0].pairs} == {("IPv6", ("TCP",))}


def test_a_firewall_on_the_way_out_of_a_pod_is_located(cluster: Cluster) -> None:
    rules = "table inet t { chain c { type filter hook output priority 0; ip daddr 10.77.1.2 drop; }; }"
    cluster.nft(cluster.pod(2, 3), rules)
    report = prove(cluster)
    sent = next(finding for finding in report.findings if "drops what it sends" in finding.problem)
    assert sent.problem.startswith("pod default/p23 drops what it sends, though it has the right route")
    assert sent.detail == "sending failed: Operation not permitted"
    assert "it did not leave pod default/p23" in sent.last_seen
    # What the pod's kernel answers (SYNs, echo requests) cannot be told from what it does not take.
    assert set(problems(report)) - {sent.problem} <= {
        "packets arrive at pod default/p23 and end in its own network stack: a firewall rule inside does it"
    }
    assert {frozenset(pair[:2]) for f in range(len(report.findings)) for pair in hit(report, f)} == {
        frozenset(("pod default/p12", "pod default/p23"))
    }


def test_an_address_that_two_pods_have_is_found(cluster: Cluster) -> None:
    """The store gives two pods of one node the same address, and both have it."""
    twin = cluster.pod(1, 3)
    cluster.on(twin, "ip addr add 10.77.1.2/32 dev eth0")
    cluster.on(twin, "ip addr del 10.77.1.3/32 dev eth0")
    world = cluster.world()
    pods = [
        msgspec.structs.replace(pod, addresses=(world.pods[0].addresses[0], pod.addresses[1]))
        if pod.name == "default/p13"
        else pod
        for pod in world.pods
    ]
    report = verify(msgspec.structs.replace(world, pods=tuple(pods)), timeout=TIMEOUT)
    first = report.findings[0]
    assert (first.code, first.points) == ("address-shared", ("pod default/p12", "pod default/p13"))
    assert report.rules[0].verdict is Verdict.FAILED
    strayed = [f for f in report.findings if f.problem.endswith("go to pod default/p12, where they end")]
    assert {pair.receiver for finding in strayed for pair in finding.pairs} >= {"pod default/p13"}
    assert all("pod default/p13" in (pair.sender, pair.receiver) for f in report.findings for pair in f.pairs)


def test_an_address_that_is_not_the_stores_is_found(cluster: Cluster) -> None:
    cluster.on(cluster.pod(1, 3), "ip addr del 10.77.1.3/32 dev eth0")
    report = prove(cluster)
    assert report.findings[0].code == "address-differs"
    assert report.findings[0].points == ("pod default/p13",)
    assert (
        Absent("pod default/p13", "10.77.1.3 cannot be bound: Cannot assign requested address") in report.unproved
    )
    assert [rule.verdict for rule in report.rules] == [Verdict.FAILED, Verdict.UNPROVED, Verdict.UNPROVED]


def test_a_pod_outside_its_nodes_block_is_found(cluster: Cluster) -> None:
    world = cluster.world()
    swapped = tuple(
        msgspec.structs.replace(block, node="n1") if str(block.network) == "10.77.2.0/24" else block
        for block in world.blocks
    )
    report = verify(msgspec.structs.replace(world, blocks=swapped), timeout=TIMEOUT)
    assert problems(report) == [
        f"pod default/p2{i} on node n2 has 10.77.2.{i}, which lies in n1's block 10.77.2.0/24" for i in (2, 3)
    ]
    assert not report.holds
    assert report.rules[0].proved == 4


@pytest.mark.parametrize(
    ("namespace", "command", "problem"),
    [
        ("n2", "ip link set veth3 down", "veth3 of node n2 is down"),
        ("p23", "ip link set eth0 down", "eth0 of pod default/p23 is down"),
        ("n2", "ip link set eth0 down", "eth0 of node n2 is down"),
        ("fab", "ip link set port2 down", "eth0 of node n2 has no carrier"),
    ],
)
def test_a_link_that_is_down_is_found(cluster: Cluster, namespace: str, command: str, problem: str) -> None:
    cluster.on(f"{cluster.prefix}-{namespace}", command)
    assert problem in problems(prove(cluster))


def test_a_node_that_does_not_forward_is_found(cluster: Cluster) -> None:
    cluster.on_node(1, "sysctl -qw net.ipv4.conf.veth2.forwarding=0")
    report = prove(cluster)
    assert problems(report) == ["node n1 does not forward IPv4: net/ipv4/conf/veth2/forwarding is 0"]


def test_a_wrong_neighbour_is_found(cluster: Cluster) -> None:
    cluster.on_node(1, "ip neigh replace 172.30.0.2 lladdr 02:00:00:00:99:99 dev eth0")
    report = prove(cluster)
    assert problems(report) == [
        "node n1 sends packets for 172.30.0.2 to hardware address 02:00:00:00:99:99, "
        "but eth0 of node n2 has 02:00:00:00:01:02"
    ]


def test_a_spoof_filter_that_is_in_the_way_is_found(cluster: Cluster) -> None:
    cluster.on_node(2, "ip route replace 10.77.1.2 dev veth2")
    report = prove(cluster)
    problem = (
        "node n2 drops packets from n1's block 10.77.1.0/24 that enter by eth0: its route back to them leads "
        "elsewhere (rp_filter)"
    )
    assert problem in problems(report)
    assert hit(report, problems(report).index(problem)) >= {("pod default/p12", "pod default/p22", "IPv4")}


def test_one_pod_alone_has_no_other_to_reach(cluster: Cluster) -> None:
    world = cluster.world()
    report = verify(msgspec.structs.replace(world, pods=world.pods[:1]), timeout=TIMEOUT)
    assert [rule.verdict for rule in report.rules] == [Verdict.PROVED, Verdict.VACUOUS, Verdict.PROVED]
    assert report.holds


def test_no_pods_prove_nothing(cluster: Cluster) -> None:
    report = verify(msgspec.structs.replace(cluster.world(), pods=()), timeout=TIMEOUT)
    assert {rule.verdict for rule in report.rules} == {Verdict.UNPROVED}
    assert not report.holds


def test_a_pod_or_node_that_is_gone_leaves_the_proof_open(cluster: Cluster) -> None:
    run(f"ip netns del {cluster.pod(2, 3)}")
    report = prove(cluster)
    assert not report.holds
    assert report.unproved[0].subject == "pod default/p23"
    assert report.findings == ()
    world = cluster.world()
    gone = tuple(
        n if n.name == "n1" else NodePoint("n2", "/run/netns/none", n.addresses, "eth0") for n in world.nodes
    )
    report = verify(msgspec.structs.replace(world, nodes=gone), timeout=TIMEOUT)
    assert {absent.subject for absent in report.unproved} == {"node n2", "pod default/p22", "pod default/p23"}
    assert not report.holds


def test_a_sample_says_how_much_was_tried(cluster: Cluster) -> None:
    report = verify(cluster.world(), sample_size=5, timeout=TIMEOUT, seed=7)
    assert [(rule.tried, rule.total) for rule in report.rules[1:]] == [(10, 24), (10, 32)]
    assert report.sample is not None
    assert (report.sample.pairs, report.sample.seed) == (5, 7)
    assert report.holds
    assert "10 of 10 pairs tried, of 24" in to_text(report)


def test_other_traffic_is_not_captured(cluster: Cluster) -> None:
    """A flood of somebody else's packets beside the probes: the captures let none of it through."""
    target = cluster.on(cluster.pod(2, 3), "ip -4 -br addr show dev eth0").split()[2].split("/")[0]
    with subprocess.Popen(
        ["ip", "netns", "exec", cluster.pod(1, 2), "ping", "-q", "-i", "0.002", "-w", "3", target],
        stdout=subprocess.DEVNULL,
    ) as flood:
        busy = prove(cluster)
        flood.terminate()
    quiet = prove(cluster)
    assert busy.holds
    assert abs(busy.packets - quiet.packets) <= quiet.packets // 50
