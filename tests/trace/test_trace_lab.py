"""Traces in a real lab: good ways, and faults that must be found at the right hop for the right reason."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from podway.api.addresses import Family
from podway.channel.client import call
from podway.errors import AgentError, InvalidInput
from podway.kernel import netns
from podway.lab import agents as lab_agents
from podway.lab import pods
from podway.lab.paths import lab_dir
from podway.trace.report import Direction, Verdict
from podway.verify.asked import verify_by_agents
from podway.verify.report import to_json
from tests.patience import PATIENCE, eventually
from tests.trace.trace_lab import TraceLab

pytestmark = pytest.mark.kernel

BOTH = (Family.IPV4, Family.IPV6)


def visited(direction: Direction) -> list[str]:
    return [hop.label for hop in direction.hops]


def limits(direction: Direction) -> list[int]:
    return [seen.hop_limit for hop in direction.hops for seen in hop.seen]


def lost(verdict: Verdict, direction: Direction) -> tuple[str, str]:
    assert verdict.outcome == "lost", verdict
    assert verdict.hop is not None
    return direction.hops[verdict.hop - 1].label, verdict.problem


@pytest.mark.parametrize(("protocol", "port"), [("ICMP", 0), ("TCP", 80), ("TCP", 81), ("TCP", 0), ("UDP", 0)])
def test_pods_of_two_nodes(lab: TraceLab, protocol: str, port: int) -> None:
    report = lab.trace("a", "b", protocol=protocol, port=port, families=BOTH)
    assert report.delivered
    assert [family.family for family in report.families] == ["IPv4", "IPv6"]
    for family in report.families:
        there, back = family.there, family.back
        assert visited(there) == ["pod default/a", "node node1", "node node2", "pod default/b"]
        assert visited(back) == list(reversed(visited(there)))
        assert limits(there) == [64, 64, 63, 63, 62, 62][: lab.sights(6)]
        assert len(limits(back)) == lab.sights(6)
        # Nothing sees a packet leave by a host link that the flow engine has carried past it.
        assert [hop.carried for hop in there.hops] == [False, False, lab.carries, False]
        assert [hop.carried for hop in back.hops] == [False, False, lab.carries, False]
        assert all(hop.on_plan for direction in (there, back) for hop in direction.hops)
        assert (there.verdict.basis, back.verdict.basis) == ("probe", "answer")
        for verdict in (there.verdict, back.verdict):
            assert (verdict.source_kept, verdict.encapsulated, verdict.problem) == (True, False, "")
        on_the_node = there.hops[1]
        assert on_the_node.planned is not None
        assert on_the_node.kernel is not None
        assert (on_the_node.planned.owner, on_the_node.planned.learned_from) == ("bird", "node2")
        assert (on_the_node.kernel.owner, on_the_node.kernel.learned_from) == ("bird", "node2")
        assert on_the_node.kernel.route == on_the_node.planned.route
        assert on_the_node.kernel.neighbour is not None
        assert on_the_node.kernel.neighbour.state == "permanent"
        at_home = there.hops[-1].kernel
        assert at_home is not None
        assert at_home.type == "local"
        sizes = {seen.length for hop in there.hops for seen in hop.seen}
        assert (sizes == {1500}) == (protocol != "TCP")


@pytest.mark.parametrize(
    ("source", "target", "hops"),
    [
        ("a", "c", ["pod default/a", "node node1", "pod default/c"]),
        ("a", "node1", ["pod default/a", "node node1"]),
        ("node1", "a", ["node node1", "pod default/a"]),
        ("a", "node2", ["pod default/a", "node node1", "node node2"]),
        ("node2", "a", ["node node2", "node node1", "pod default/a"]),
        ("node1", "node3", ["node node1", "node node3"]),
        ("a", "a", ["pod default/a"]),
        ("node1", "node1", ["node node1"]),
    ],
)
def test_every_kind_of_way(lab: TraceLab, source: str, target: str, hops: list[str]) -> None:
    report = lab.trace(source, target, families=BOTH)
    assert report.delivered
    for family in report.families:
        assert visited(family.there) == hops
        assert visited(family.back) == hops[::-1]
        for direction in (family.there, family.back):
            assert all(hop.seen and hop.on_plan for hop in direction.hops)


def test_who_answered_is_told(lab: TraceLab) -> None:
    words = [lab.trace("a", "b", protocol="TCP", port=port).families[0].there.verdict for port in (80, 81)]
    assert words[0].answered_by == "a server answered (SYN-ACK)"
    assert words[1].answered_by == "answered: nobody listens there, connection refused (TCP RST)"
    udp = lab.trace("a", "b", protocol="UDP").families[0].there.verdict
    assert udp.answered_by == "answered: nobody listens there, port unreachable (ICMP)"


def test_a_dry_run_sends_nothing(lab: TraceLab) -> None:
    asked: list[str] = []
    ask = lab.asker()

    def noted(node: str, method: str, **params: object) -> object:
        asked.append(method)
        return ask(node, method, **params)

    report = lab.trace("a", "b", dry_run=True, ask=noted)
    assert report.delivered
    assert {family.there.verdict.basis for family in report.families} == {"kernel"}
    assert not {"trace.prepare", "trace.capture", "trace.send"} & set(asked)
    assert not limits(report.families[0].there)


def test_it_works_over_the_channel_between_machines(lab: TraceLab) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        report = lab.trace("a", "b", ask=lab.asker(remote=True))
        if not report.silent or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert report.silent == ()
    assert report.delivered
    assert limits(report.families[0].there) == [64, 64, 63, 63, 62, 62][: lab.sights(6)]


# Faults that others cause, and that stand while the agents run.


def test_a_firewall_inside_the_pod(lab: TraceLab) -> None:
    with lab.nft("b", "chain c { type filter hook input priority 0; tcp dport 80 drop; }"):
        family = lab.trace("a", "b", protocol="TCP", port=80).families[0]
    where, why = lost(family.there.verdict, family.there)
    assert (where, "in its own network stack" in why) == ("pod default/b", True)


def test_a_black_hole_of_anothers(lab: TraceLab) -> None:
    target = f"{lab.address('b')}/32"
    with lab.changed("node1", f"ip route add blackhole {target} proto static", f"ip route del blackhole {target}"):
        sent, dry = (lab.trace("a", "b", dry_run=dry).families[0] for dry in (False, True))
    for family in (sent, dry):
        where, why = lost(family.there.verdict, family.there)
        assert (where, f"its route to {target} is of type blackhole" in why) == ("node node1", True)
        assert family.there.verdict.advice == f"`ip route del blackhole {target}`"
        assert family.there.hops[1].on_plan is False
    assert (sent.there.verdict.basis, dry.there.verdict.basis) == ("probe", "kernel")


def test_the_way_back_alone_is_broken(lab: TraceLab) -> None:
    target = f"{lab.address('a')}/32"
    with lab.changed("node2", f"ip route add blackhole {target} proto static", f"ip route del blackhole {target}"):
        report = lab.trace("a", "b")
    family = report.families[0]
    assert not report.delivered
    assert family.there.verdict.outcome == "delivered"
    assert lost(family.back.verdict, family.back)[0] == "node node2"


def test_a_pod_without_a_default_route(lab: TraceLab) -> None:
    with lab.changed("c", "ip route del default", "ip route add default via 169.254.1.1 dev eth0 proto 112"):
        family = lab.trace("c", "b").families[0]
        back = lab.trace("b", "c").families[0].back
    assert lost(family.there.verdict, family.there)[0] == "pod default/c"
    assert "pod default/c has no route to " in family.there.verdict.problem
    assert family.there.verdict.last_seen == "it did not leave pod default/c"
    assert lost(back.verdict, back)[0] == "pod default/c"


def test_a_route_into_the_wrong_device(lab: TraceLab) -> None:
    target = lab.address("b")
    with lab.changed("node1", f"ip route add {target} dev lo proto static", f"ip route del {target} dev lo"):
        family = lab.trace("a", "b").families[0]
    where, why = lost(family.there.verdict, family.there)
    assert (where, why.endswith("out of lo instead of eth0")) == ("node node1", True)


def test_a_detour_arrives_and_is_told(lab: TraceLab) -> None:
    target = lab.address("b")
    third = lab.sh("node3", "ip -4 -br addr show dev eth0").split()[2].split("/")[0]
    with lab.changed(
        "node1", f"ip route add {target} via {third} proto static", f"ip route del {target} via {third}"
    ):
        report = lab.trace("a", "b")
    there = report.families[0].there
    assert report.delivered
    assert visited(there) == ["pod default/a", "node node1", "node node3", "node node2", "pod default/b"]
    assert limits(there) == [64, 64, 63, 63, 62, 62, 61, 61][: lab.sights(8)]
    assert there.hops[2].planned is None
    assert (there.verdict.code, there.verdict.hop) == ("detour", 2)
    assert f"via {third} dev eth0 by the route to {target}/32" in there.verdict.problem
    assert there.verdict.advice == f"`ip route del {target}/32 via {third} dev eth0`"


def test_a_small_mtu_between_the_nodes(lab: TraceLab) -> None:
    """The bridge drops what is too large, and nobody says a word: only a smaller packet tells."""
    with lab.changed("fabric", "ip link set port2 mtu 1400", "ip link set port2 mtu 1500"):
        family = lab.trace("a", "b").families[0]
        small = lab.trace("a", "b", protocol="TCP", port=80)
    where, why = lost(family.there.verdict, family.there)
    assert where == "node node1"
    assert why == (
        "packets of more than 1404 bytes do not pass between node node1 and node node2, but pods' cross in 1500"
    )
    assert small.delivered


def test_a_small_mtu_that_is_told(lab: TraceLab) -> None:
    target = lab.address("b")
    gateway = lab.sh("node2", "ip -4 -br addr show dev eth0").split()[2].split("/")[0]
    route = f"{target} via {gateway}"
    with lab.changed("node1", f"ip route add {route} mtu lock 1400 proto static", f"ip route del {route}"):
        verdict = lab.trace("a", "b").families[0].there.verdict
    assert (verdict.outcome, verdict.hop) == ("lost", 2)
    assert "only 1400 bytes fit" in verdict.problem


# Addresses that are no pod's and no node's.


@contextmanager
def outside(lab: TraceLab) -> Iterator[str]:
    """Make the fabric a router to an address outside; it knows the way back to node1's pods."""
    router, beyond = "172.30.0.254", "192.0.2.1"
    own = lab.sh("node1", "ip -4 -br addr show dev eth0").split()[2].split("/")[0]
    block = f"{lab.address('a')}/32"
    with (
        lab.changed(
            "fabric",
            f"ip addr add {router}/16 dev fabric0; ip addr add {beyond}/32 dev fabric0; "
            f"ip route add {block} via {own}",
            f"ip addr flush dev fabric0; ip route flush {block}",
        ),
        lab.changed("node1", f"ip route add default via {router}", "ip route del default"),
    ):
        yield beyond


def test_an_address_outside_the_cluster(lab: TraceLab) -> None:
    with outside(lab) as beyond:
        good, silent, coming = (
            lab.trace("a", beyond),
            lab.trace("a", "192.0.2.9"),
            lab.trace(beyond, "a"),
        )
    assert good.delivered
    assert visited(good.families[0].there) == ["pod default/a", "node node1"]
    assert [seen.interface for seen in good.families[0].there.hops[1].seen][1] == "eth0"
    verdict = silent.families[0].there.verdict
    assert (verdict.outcome, verdict.code) == ("unknown", "beyond")
    assert verdict.last_seen == "leaving by eth0 of node node1"
    assert not silent.delivered
    assert coming.delivered
    assert (coming.families[0].there.verdict.basis, coming.families[0].back.verdict.basis) == ("answer", "echo")


def test_no_way_out_of_the_cluster(lab: TraceLab) -> None:
    family = lab.trace("a", "192.0.2.1").families[0]
    assert lost(family.there.verdict, family.there) == ("node node1", "node node1 has no route to 192.0.2.1")


def test_an_address_of_a_block_that_no_pod_has(lab: TraceLab) -> None:
    free = lab.address("b") + 50
    family = lab.trace("a", str(free)).families[0]
    where, why = lost(family.there.verdict, family.there)
    assert (where, why.startswith(f"no pod has the address {free}")) == ("node node2", True)
    assert family.back.hops == ()
    with pytest.raises(InvalidInput, match="neither"):
        lab.trace("192.0.2.1", "192.0.2.2")


# What a trace must not do, and what may happen meanwhile.


def _packet_sockets(lab: TraceLab, place: str) -> int:
    return len(lab.sh(place, "cat /proc/net/packet").splitlines()) - 1


def test_captures_end_with_the_trace(lab: TraceLab) -> None:
    lab.trace("a", "b", protocol="TCP", port=80)
    for place in ("node1", "node2", "a", "b"):
        assert _packet_sockets(lab, place) == 0


@pytest.mark.slow
def test_captures_end_by_themselves(lab: TraceLab) -> None:
    ask = lab.asker()
    name, mark = secrets.token_hex(4), secrets.token_hex(8)
    ask("node1", "trace.capture", trace=name, mark=mark, port=61000, links=[""])
    assert _packet_sockets(lab, "node1") == 1
    deadline = time.monotonic() + PATIENCE
    while _packet_sockets(lab, "node1"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with pytest.raises(AgentError, match="has ended"):
        ask("node1", "trace.collect", trace=name)


def test_a_server_never_hears_of_the_probe(lab: TraceLab) -> None:
    """A SYN that is reset at once is no connection: accept() does not return."""
    with netns.opened(netns.path_of(lab.namespace("c"))) as inside:
        server = netns.run(inside, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    with server:
        server.bind((str(lab.address("c")), 7777))
        server.listen()
        server.settimeout(0.3)
        report = lab.trace("b", "c", protocol="TCP", port=7777)
        assert report.families[0].there.verdict.answered_by == "a server answered (SYN-ACK)"
        with pytest.raises(TimeoutError):
            server.accept()


def test_users_traffic_is_not_taken_for_the_probe(lab: TraceLab) -> None:
    target = str(lab.address("b"))
    stop = threading.Event()

    def chatter() -> None:
        asking = f"import socket\nwhile True: socket.create_connection(('{target}', 80), 2).close()"
        path = netns.path_of(lab.namespace("a"))
        with subprocess.Popen(["nsenter", f"--net={path}", sys.executable, "-c", asking]) as users:
            stop.wait()
            users.kill()

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        time.sleep(0.2)
        there = lab.trace("a", "b", protocol="TCP", port=80).families[0].there
    finally:
        stop.set()
        thread.join()
    assert there.verdict.outcome == "delivered"
    assert [len(hop.seen) for hop in there.hops] == [1, 2, lab.sights(2), 1]
    assert len({seen.source_port for hop in there.hops for seen in hop.seen}) == 1


def test_an_agent_that_does_not_answer_leaves_a_gap(lab: TraceLab) -> None:
    pid = lab_agents.status(lab.name, "node2")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        report = lab.trace("a", "b")
        dry = lab.trace("a", "b", dry_run=True)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [silent.node for silent in report.silent] == ["node2"]
    there = report.families[0].there
    assert report.delivered, "the answer came back, so both ways are good"
    assert visited(there) == ["pod default/a", "node node1", "node node2", "pod default/b"]
    assert [len(hop.seen) for hop in there.hops] == [1, 2, 0, 0]
    assert there.hops[2].problem == "the agent of node2 does not answer"
    assert dry.families[0].there.verdict.outcome == "unknown"


def test_a_pod_that_dies_meanwhile(lab: TraceLab) -> None:
    pods.run(lab.name, "mayfly", node="node2")
    ask = lab.asker()

    def deadly(node: str, method: str, **params: object) -> object:
        if method == "trace.send":
            pods.remove_named(lab.name, "mayfly", "default")
        return ask(node, method, **params)

    report = lab.trace("a", "mayfly", ask=deadly)
    verdict = report.families[0].there.verdict
    assert verdict.outcome != "delivered"
    assert verdict.problem
    assert not report.delivered


def test_an_agent_refuses_what_cannot_be(lab: TraceLab) -> None:
    path = lab_dir(lab.name) / "nodes" / "node1" / "agent.sock"
    for method, params, problem in (
        ("trace.way", {"destination": "nonsense"}, "address 'nonsense'"),
        ("trace.setting", {"name": "kernel/../../../etc/passwd"}, "forwarding and rp_filter only"),
        ("trace.capture", {"trace": "x", "mark": "12", "port": 5000, "links": []}, "8 bytes"),
        ("trace.capture", {"trace": "x", "mark": "00" * 8, "port": 53, "links": []}, "services"),
        ("trace.ground", {"link": "pway0"}, "no pod of node node1 has the link"),
        ("trace.send", {"trace": "none", "size": 1}, "has ended"),
        ("trace.capture", {"trace": "y", "mark": "00" * 8, "port": 5000, "links": ["pway0"]}, "no pod of node"),
        ("trace.send", {"trace": "y", "size": 1}, "no probe was prepared"),
    ):
        with pytest.raises(AgentError, match=problem):
            call(path, method, **params)
    call(path, "trace.end", trace="y")


def test_the_command(lab: TraceLab) -> None:
    def podway(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "podway", "--lab", lab.name, "trace", *words]
        environment = {**os.environ, "COLUMNS": "80"}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    good = podway("a", "b", "--port", "80", "-4")
    assert good.returncode == 0, good.stderr
    assert "There   delivered; a server answered (SYN-ACK); original source kept (no NAT)" in good.stdout
    assert "\x1b" not in good.stdout
    document = json.loads(podway("a", "b", "-o", "json").stdout)
    assert (document["apiVersion"], document["kind"], document["delivered"]) == (
        "podway.io/v1",
        "TraceReport",
        True,
    )
    assert [family["family"] for family in document["families"]] == ["IPv4", "IPv6"]
    bad = podway("a", "192.0.2.1")
    assert (bad.returncode, "NOT DELIVERED at hop 2, node1" in bad.stdout) == (1, True)
    for words, status, problem in (
        (("a", "bb"), 1, "did you mean b"),
        (("a", "b", "--port", "0"), 2, "range"),
        (("a", "b", "--port", "65536"), 2, "range"),
        (("a", "b", "--port", "80", "--proto", "icmp"), 2, "means nothing to ICMP"),
    ):
        done = podway(*words)
        assert (done.returncode, problem in done.stderr) == (status, True), done.stderr


def test_agents_prove_the_three_rules(lab: TraceLab) -> None:
    """Of both families, by a sample."""

    def proved() -> bool:
        report = verify_by_agents(lab.resources(), lab.asker(), sample_size=2)
        counts = [(rule.proved, rule.tried, rule.total) for rule in report.rules]
        assert counts == [(6, 6, 6), (4, 4, 12), (4, 4, 36)], to_json(report)
        assert (report.nodes, report.pods, report.families) == (3, 3, ("IPv4", "IPv6"))
        assert report.probes == 3 * 8
        return report.holds

    eventually(proved, every=1)  # an answer that is late is none


def test_agents_tell_what_breaks_the_rules(lab: TraceLab) -> None:
    drop = (
        f"chain f {{ type filter hook forward priority 0; ip daddr {lab.address('b')} udp dport 1-65535 drop; }}"
    )

    def told() -> bool:
        few = [one for one in lab.resources() if one.metadata.name not in {"c", "node3"}]
        report = verify_by_agents(few, lab.asker(), sample_size=2)
        assert not report.holds
        assert [str(rule.verdict) for rule in report.rules[:2]] == ["proved", "failed"], to_json(report)
        assert (report.rules[1].proved, report.rules[1].tried) == (3, 4), to_json(report)
        found = [one for one in report.findings if 2 in one.rules]
        assert {one.code for one in found} == {"lost"}, to_json(report)
        broken = {(pair.sender, pair.receiver, pair.family, pair.protocols) for one in found for pair in one.pairs}
        return ("pod default/a", "pod default/b", "IPv4", ("UDP",)) in broken

    with lab.nft("node2", drop):
        eventually(told, every=1)


def test_what_a_silent_agent_could_not_prove_is_not_proved(lab: TraceLab) -> None:
    asked = lab.asker()

    def ask(node: str, method: str, **params: object) -> object:
        if node == "node2":
            raise AgentError("it does not answer")
        return asked(node, method, **params)

    def unproved() -> bool:
        report = verify_by_agents(lab.resources(), ask, sample_size=2)
        assert not report.holds
        assert (report.nodes, report.pods) == (2, 2)
        assert not report.findings
        return {one.subject for one in report.unproved} == {"node node2", "pod default/b"}

    eventually(unproved, every=1)
