"""Captures of a pod's real packets on all nodes that they cross, read back with tshark."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from podway.agent import capturing
from podway.channel.client import call
from podway.errors import AgentError
from tests.patience import PATIENCE, eventually
from tests.system.policy_lab import PolicyLab, policy_lab

pytestmark = pytest.mark.kernel

PORT, OTHER = 80, 81
FIELDS = (
    "frame.interface_name",
    "frame.protocols",
    "ip.dst",
    "tcp.dstport",
    "frame.comment",
    "frame.interface_description",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """Two nodes: web on the first, client on the second."""
    with policy_lab() as made:
        made.run("web", "node1", PORT, OTHER, labels={"app": "web"})
        made.run("client", "node2", labels={"app": "client"})
        yield made


@contextlib.contextmanager
def capturing_to(
    lab: PolicyLab, path: str, *options: str, pod: str = "web"
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a capture that has begun; it is ended as ^C ends it, unless it ended by itself."""
    command = [sys.executable, "-m", "podway", "--lab", lab.lab.name, "capture", pod, "-o", path, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        eventually(lambda: sessions(lab, "node1") > 0)
        time.sleep(0.3)
        try:
            yield running
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)
                running.wait(PATIENCE)


def sessions(lab: PolicyLab, node: str) -> int:
    """How many packet sockets are open for captures in a node's namespace: those that hear every device."""
    lines = Path(f"/proc/{agent_pid(lab, node)}/net/packet").read_text().splitlines()[1:]
    return sum(line.split()[3:5] == ["0003", "0"] for line in lines)


def agent_pid(lab: PolicyLab, node: str) -> int:
    return int(lab.lab.status(node)["pid"])


def connect(lab: PolicyLab, port: int = PORT) -> None:
    with lab.pods["client"].open(socket.AF_INET) as client, contextlib.suppress(TimeoutError):
        client.connect((lab.pods["web"].address(socket.AF_INET), port))


def read(path: Path) -> list[dict[str, str]]:
    """What tshark says of each packet."""
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "occurrence=l", *(f"-e{one}" for one in FIELDS)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in said.splitlines()]


@pytest.mark.parametrize(
    ("encapsulation", "outer"),
    [("vxlan", "eth:ethertype:ip:udp:vxlan:eth:ethertype:ip:tcp"), ("ipip", "eth:ethertype:ip:ip:tcp")],
)
def test_a_pods_packets_are_seen_on_both_nodes_bare_and_with_their_outer_headers(
    lab: PolicyLab, tmp_path: Path, encapsulation: str, outer: str
) -> None:
    lab.lab.podway("set", "pool/ipv4", f"encapsulation={encapsulation}", "--wait")
    path = tmp_path / "web.pcapng"
    with capturing_to(lab, str(path), "--filter", f"tcp port {PORT}"):
        connect(lab)
        connect(lab, OTHER)
    found = read(path)
    assert {one["tcp.dstport"] for one in found if one["ip.dst"] == lab.pods["web"].address(socket.AF_INET)} == {
        str(PORT)
    }
    devices = {one["frame.interface_name"] for one in found}
    assert {"node1 eth0", "node2 eth0"} <= devices
    assert ("node1 podway-vxlan" in devices) == (encapsulation == "vxlan")
    assert "default/web eth0" in devices
    assert any(one["frame.interface_description"] == "link of pod default/client" for one in found)
    for one in found:
        if one["frame.interface_name"] in ("node1 eth0", "node2 eth0"):
            assert one["frame.protocols"] == outer
    comments = [one["frame.comment"] for one in found if one["frame.comment"]]
    assert any(one.startswith("node1: allowed") for one in comments), comments
    assert any(one.startswith("node2: allowed") for one in comments), comments
    times = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.time_epoch"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert times == sorted(times)


def test_a_packet_that_was_refused_says_by_which_policy(lab: PolicyLab, tmp_path: Path) -> None:
    lab.policy("closed", podSelector={"matchLabels": {"app": "web"}})
    eventually(lambda: lab.data_path("node1")["rule_sets"])
    path = tmp_path / "web.pcapng"
    with capturing_to(lab, str(path)):
        connect(lab)
    lab.forget_policies()
    comments = [one["frame.comment"] for one in read(path) if "node1" in one["frame.interface_name"]]
    assert any(
        one.startswith("node1: denied, DENIED_INGRESS") and "isolated by NetworkPolicy/default/closed" in one
        for one in comments
    ), comments


def test_packets_are_piped_as_they_come_over_the_network_and_it_ends_when_nobody_reads(lab: PolicyLab) -> None:
    with capturing_to(lab, "-", "--remote", pod="default/client") as running:
        connect(lab)
        command = ["tshark", "-l", "-r", "-", "-c", "2", "-T", "fields", "-eframe.interface_name"]
        said = subprocess.run(
            command, stdin=running.stdout, capture_output=True, text=True, timeout=PATIENCE
        ).stdout
        assert "client" in said
        assert running.stdout
        running.stdout.close()
        connect(lab)
        assert running.wait(PATIENCE) == 0
    eventually(lambda: not sessions(lab, "node1") and not sessions(lab, "node2"))


def test_it_ends_with_the_number_of_packets_or_the_time_that_was_wanted(lab: PolicyLab, tmp_path: Path) -> None:
    path = tmp_path / "web.pcapng"
    with capturing_to(lab, str(path), "-c", "3", "--snaplen", "60") as running:
        for _ in range(3):
            connect(lab)
        assert running.wait(PATIENCE) == 0
    assert len(read(path)) == 3
    with capturing_to(lab, str(path), "--duration", "1") as running:
        assert running.wait(PATIENCE) == 0
        assert running.stderr
        assert b"0 packets" in running.stderr.read()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_the_kernel_had_no_room_for_is_counted_exactly(
    lab: PolicyLab,
) -> None:
    ask = partial(call, lab.lab.run_dir("node2") / "agent.sock")
    sent, sender = 60_000, lab.pods["client"]
    ask("capture.begin", capture="flood", expression=f"udp dst port {OTHER}", pods=[])
    try:
        with sender.open(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(sent):
                client.sendto(b"x", (lab.pods["web"].address(socket.AF_INET), OTHER))
        links, lost, more = [], 0, True
        while more:
            taken: Any = ask("capture.take", capture="flood")
            links += [one[1] for one in taken["frames"]]
            lost, more = lost + taken["lost"], taken["more"]
    finally:
        ask("capture.end", capture="flood")
    assert lost
    seen = set(links)  # where each leaves the pod, on the wire, and with VXLAN at its device
    assert {"eth0", *seen} == seen
    assert len(links) + lost == len(seen) * sent, {one: links.count(one) for one in seen}


def test_a_capture_that_nobody_asks_for_any_more_ends(lab: PolicyLab) -> None:
    ask = partial(call, lab.lab.run_dir("node1") / "agent.sock")
    ask("capture.begin", capture="forgotten", expression="tcp", pods=["default/web"])
    assert sessions(lab, "node1") == 1
    eventually(lambda: not sessions(lab, "node1"), within=capturing.LIFETIME + PATIENCE)
    with pytest.raises(AgentError, match="has ended"):
        ask("capture.take", capture="forgotten")


def test_there_are_so_many_captures_on_a_node_and_no_more(lab: PolicyLab) -> None:
    ask = partial(call, lab.lab.run_dir("node1") / "agent.sock")
    try:
        for number in range(capturing.MOST):
            ask("capture.begin", capture=str(number), expression="tcp")
        said = lab.lab.podway("capture", "web", "-o", "-", "--node", "node1", check=False)
        assert "captures run on this node already" in said
    finally:
        for number in range(capturing.MOST):
            ask("capture.end", capture=str(number))
    assert not sessions(lab, "node1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("nobody",), "no pod or node is called 'nobody'"),
        (("node1",), "has no network of a pod's own"),
        (("web", "--filter", "tcp prot 80"), "--filter 'tcp prot 80'"),
        (("web", "--filter", "host nobody"), "no pod or node is called 'nobody'"),
        (("web", "-o", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("web", "--node", "node9"), "there is no node 'node9'"),
    ],
)
def test_what_cannot_be_captured(lab: PolicyLab, options: tuple[str, ...], said: str) -> None:
    assert said in lab.lab.podway("capture", *options, check=False)


def test_a_node_that_does_not_answer_is_said_and_the_rest_is_captured(lab: PolicyLab, tmp_path: Path) -> None:
    path = tmp_path / "web.pcapng"
    lab.lab.kill_agent("node2")
    try:
        with capturing_to(lab, str(path)) as running:
            connect(lab)
            running.send_signal(signal.SIGINT)
            assert running.wait(PATIENCE) == 1
            assert running.stderr
            assert b"node2/agent.sock" in running.stderr.read()
    finally:
        lab.lab.start_agent("node2")
    assert {one["frame.interface_name"].split()[0] for one in read(path)} == {"node1", "default/web"}
