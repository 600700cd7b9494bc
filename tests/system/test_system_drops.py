"""What the kernel itself drops of pods' packets, as agents record it: the reason and the device."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from podway.lab import names
from tests.patience import PATIENCE, eventually
from tests.system.policy_lab import PolicyLab, policy_lab
from tests.system.system_lab import sh

pytestmark = pytest.mark.kernel

SOON = 15.0
"""Seconds: a neighbour has failed after three."""

FILTERED, ABSENT, NOWHERE = "198.51.100.7", "10.244.77.7", "203.0.113.77"


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """Two nodes, of which the first has a pod and another's firewall."""
    with policy_lab() as made:
        made.run("client", "node1")
        firewall = "table inet other { chain forward { type filter hook forward priority 0;"
        in_node(made, f"nft '{firewall}\n ip daddr {FILTERED} drop\n}}\n}}'")
        in_node(made, f"ip route add {FILTERED} via 172.30.0.2")
        in_node(made, f"ip route add {ABSENT} via 172.30.0.250")
        eventually(lambda: made.lab.status("node1")["flows"]["kernel_drops"]["traced"], within=PATIENCE)
        yield made


def in_node(lab: PolicyLab, script: str, node: str = "node1") -> str:
    return sh(names.node_netns(lab.lab.name, node), script)


def send(lab: PolicyLab, address: str, port: int, count: int = 1) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.pods["client"].open(family, socket.SOCK_DGRAM) as client:
        for _ in range(count):
            with contextlib.suppress(OSError):  # what the node answered to the one before
                client.sendto(b"x", (address, port))


def drops(lab: PolicyLab, *options: str) -> list[dict[str, Any]]:
    text = lab.lab.podway("flows", "--event", "drop", "--last", "10000", "-o", "jsonl", *options)
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (FILTERED, "NETFILTER_DROP"),
        (ABSENT, "NEIGH_FAILED"),
        (NOWHERE, "IP_INNOROUTES"),
        ("2001:db8::7", "IP_INNOROUTES"),
    ],
)
def test_a_packet_that_the_kernel_drops_is_recorded_with_its_reason(
    lab: PolicyLab, address: str, reason: str
) -> None:
    send(lab, address, 4242)
    eventually(lambda: drops(lab, "--port", "4242", "--cidr", address), within=SOON)
    [one, *_] = drops(lab, "--port", "4242", "--cidr", address)
    assert (one["reason"], one["verdict"], one["node"]) == (f"KERNEL_{reason}", "dropped", "node1")
    assert one["source"]["who"]["name"] == "client"
    assert one["protocol"] == "udp"
    assert one["device"]
    assert drops(lab, "--reason", f"kernel-{reason}", "--cidr", address)
    assert not drops(lab, "--reason", "kernel-xdp")


def test_what_rp_filter_drops_is_recorded(lab: PolicyLab) -> None:
    in_node(lab, "sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
    pod = lab.pods["client"].address(socket.AF_INET)
    in_node(lab, "ip addr add 198.18.0.1/32 dev lo", "node2")
    try:
        in_node(lab, f"ping -n -q -c 1 -W 0.2 -I 198.18.0.1 {pod} || true", "node2")
        eventually(lambda: drops(lab, "--reason", "kernel-ip-rpfilter", "--node", "node1"), within=SOON)
    finally:
        in_node(lab, "ip addr del 198.18.0.1/32 dev lo", "node2")
    [one] = drops(lab, "--reason", "kernel-ip-rpfilter", "--node", "node1")
    assert (one["source"]["address"], one["destination"]["address"], one["device"]) == ("198.18.0.1", pod, "eth0")
    assert one["message"] == "8/0"


def test_of_a_flood_each_packet_is_recorded_or_counted_as_lost(lab: PolicyLab) -> None:
    def untold() -> int:
        flows = lab.lab.status("node1")["flows"]
        return int(flows["lost"]) + int(flows["kernel_drops"]["withheld"])

    before = untold()
    sent = 30_000
    send(lab, FILTERED, 4343, sent)

    def all_told() -> bool:
        sums = json.loads(lab.lab.podway("flows", "--by", "reason", "--port", "4343", "-o", "json"))["items"]
        told = sum(one["dropped"] for one in sums)
        lost = untold() - before
        assert told + lost == sent, (told, lost)
        return bool(told)

    eventually(all_told, within=30)


def test_what_is_dropped_in_another_namespace_or_is_no_pods_is_none_of_the_nodes(lab: PolicyLab) -> None:
    in_node(lab, f"ping -n -q -c 1 -W 0.2 {NOWHERE} || true")
    sh(lab.pods["client"].path.rpartition("/")[2], "ping -n -q -c 1 -W 0.2 127.9.9.9 || true")
    send(lab, NOWHERE, 4444)
    eventually(lambda: drops(lab, "--port", "4444"), within=SOON)
    assert {one["source"]["who"].get("name") for one in drops(lab, "--cidr", NOWHERE)} == {"client"}
    assert lab.lab.status("node1")["flows"]["kernel_drops"].items() >= {"traced": True, "problem": ""}.items()
