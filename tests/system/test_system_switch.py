"""Switching from one encapsulation to another on a running cluster, under traffic."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from podway.kernel.bpf import tcx
from podway.plan.remote import GUARD_METRIC, STORE_METRIC
from tests.patience import eventually
from tests.system.switch_traffic import Connections, Packets, bare, in_node, larger_mtu, mtu_of, opened, send_whole
from tests.system.system_lab import PodUnderTest, SystemLab, running_lab

pytestmark = pytest.mark.kernel

NODES = ("node1", "node2", "node3")
VXLAN, IPIP = "podway-vxlan", "podway-ipip"


@pytest.fixture(scope="module")
def shared_three() -> Iterator[SystemLab]:
    with running_lab(3) as lab:
        yield lab


@pytest.fixture
def three(shared_three: SystemLab) -> Iterator[SystemLab]:
    """The module's lab; after the test all packets cross as they are again, and no overlay device is left."""

    def go_back() -> None:
        switch(shared_three, "encapsulation=none when=always distribution=bgp")
        for node in NODES:
            eventually(partial(has_no_device, shared_three, node))

    yield shared_three
    shared_three.restore(go_back)


@pytest.fixture
def pods(three: SystemLab) -> list[PodUnderTest]:
    return [three.add(node) for node in NODES]


def switch(lab: SystemLab, ipv4: str, ipv6: str = "") -> None:
    """Change both pools, and wait until all nodes have switched."""
    lab.podway("set", "pool/ipv4", *ipv4.split())
    lab.podway("set", "pool/ipv6", *(ipv6 or ipv4).split(), "--wait")


def routes(lab: SystemLab, node: str) -> str:
    return lab.sh(node, "ip -4 route; ip -6 route")


def remote_routes(lab: SystemLab, node: str) -> list[str]:
    """Return the routes to blocks of other nodes."""
    return [line for line in routes(lab, node).splitlines() if "via" in line and "244" in line.split()[0]]


def remote_blocks(lab: SystemLab, node: str, device: str) -> set[str]:
    """Return the blocks of other nodes to which a route by a device leads."""
    return {line.split()[0] for line in remote_routes(lab, node) if f"dev {device} " in line}


def blocks_of(pod: PodUnderTest) -> set[str]:
    """Return the blocks that a pod's addresses are in: those of its node."""
    return {str(pod.lab.block_of(address)) for address in pod.addresses}


def devices(lab: SystemLab, node: str) -> set[str]:
    present = lab.sh(node, "ip -o link")
    return {name for name in (VXLAN, IPIP) if f" {name}" in present}


def has_no_device(lab: SystemLab, node: str) -> bool:
    return devices(lab, node) == set()


def check_size(pods: list[PodUnderTest], mtu: int) -> None:
    """A packet of the whole MTU passes; of one byte more a node tells the MTU, to a pod that believed in more."""
    source, target = pods[0], pods[1]
    for address in target.addresses:
        with opened(target, address) as receiver, larger_mtu(source, 1600):
            receiver.bind((str(address), 0))
            assert send_whole(source, address, mtu, receiver) == 0
            assert send_whole(source, address, mtu + 1, receiver) == mtu


def refused_on(lab: SystemLab, node: str) -> str:
    return " ".join(lab.status(node)["drift"]["refused"])


def counts_ipip(lab: SystemLab) -> bool:
    counted = lab.status("node1")["ipip"]
    return bool(counted.get("encapsulated") and counted.get("decapsulated"))


STEPS = [
    # IPv4 pool, IPv6 pool, MTU of the pods, and the device by which each family crosses.
    ("encapsulation=vxlan", "", 1450, {"4": VXLAN, "6": VXLAN}),
    ("encapsulation=ipip", "encapsulation=none", 1480, {"4": IPIP, "6": "eth0"}),
    ("distribution=store", "", 1480, {"4": IPIP, "6": "eth0"}),
    ("encapsulation=vxlan", "", 1450, {"4": VXLAN, "6": VXLAN}),
    ("when=cross-subnet", "", 1450, {"4": "eth0", "6": "eth0"}),
    ("distribution=bgp", "", 1450, {"4": "eth0", "6": "eth0"}),
    ("encapsulation=none when=always", "", 1500, {"4": "eth0", "6": "eth0"}),
]

OUTAGE = 0 if tcx.is_supported() else 60
"""Packets that may be lost where IPIP comes.

A kernel without tcx stops a device's queues for some milliseconds when a clsact qdisc is put onto it
(dev_deactivate in qdisc_graft, net/sched/sch_api.c).
"""


def test_switching_breaks_no_connection_and_loses_no_packet(three: SystemLab, pods: list[PodUnderTest]) -> None:
    with Packets(pods) as packets, Connections(pods, 200) as connections:
        assert packets.lost() == []
        former = "eth0"
        for ipv4, ipv6, mtu, ways in STEPS:
            switch(three, ipv4, ipv6)
            lost = packets.forget(packets.lost(patience=0.7))
            tolerated = OUTAGE if former != IPIP == ways["4"] else 0
            assert len(lost) <= tolerated, f"{ipv4}, {ipv6}: {lost}"
            former = ways["4"]
            assert connections.failures == []
            for node in NODES:
                for line in remote_routes(three, node):
                    family = "6" if ":" in line.split()[0] else "4"
                    assert f"dev {ways[family]}" in line, line
            for pod in pods:
                assert mtu_of(pod) == mtu, ipv4
            check_size(pods, mtu)
            # The device goes, and its counters with it, only when no node sends in its form any more.
            eventually(lambda ways=ways: counts_ipip(three) == (ways["4"] == IPIP))
        assert packets.received > 1000
        assert connections.rounds > 10
    for node in NODES:
        eventually(partial(has_no_device, three, node))
        assert three.status(node)["drift"]["now"] == []
        assert three.repaired(node) == []


def test_bgp_takes_over_from_the_store_when_nothing_else_is_to_be_done(
    three: SystemLab, pods: list[PodUnderTest]
) -> None:
    three.podway("set", "pool/ipv4", "distribution=store", "--wait")
    for node in NODES:  # BGP advertises for a while beside the store
        eventually(lambda node=node: "proto bird" not in three.sh(node, "ip -4 route"))
    with Packets(pods) as packets:
        assert packets.lost() == []
        three.podway("set", "pool/ipv4", "distribution=bgp", "--wait")
        assert packets.lost(patience=0.7) == []
        assert packets.received > 100


def test_nothing_leaves_bare_when_a_device_goes_while_birds_routes_from_before_stand(
    three: SystemLab, pods: list[PodUnderTest]
) -> None:
    """BIRD hangs meanwhile: its bare routes stay behind ours, which the kernel takes with their device."""
    four, six = pods[1].addresses
    birds = [int(three.status(node)["routing"]["bird"]) for node in NODES]
    for bird in birds:
        os.kill(bird, signal.SIGSTOP)
    try:
        three.podway("set", "pool/ipv4", "encapsulation=vxlan")
        three.podway("set", "pool/ipv6", "encapsulation=vxlan", "distribution=store")
        blocks = blocks_of(pods[1])
        eventually(lambda: blocks <= remote_blocks(three, "node1", VXLAN))
        assert blocks <= remote_blocks(three, "node1", "eth0"), "BIRD's stand behind them"
        with bare(three, pods) as escaped:
            three.kill_agent("node1")  # which would put it right
            three.sh("node1", f"ip link del {VXLAN}")
            for address in (four, six):
                ping = f"timeout 1 ping -n -c 1 -W 1 {address}"
                eventually(lambda ping=ping: "nreachable" in pods[0].sh(ping, check=False))
    finally:
        for bird in birds:
            os.kill(bird, signal.SIGCONT)
    assert escaped == []
    three.start_agent("node1")
    for address in (four, six):
        eventually(lambda address=address: pods[0].reaches(address))


def test_an_agent_killed_in_the_middle_goes_on_where_it_was(three: SystemLab, pods: list[PodUnderTest]) -> None:
    with Packets(pods) as packets, Connections(pods, 12) as connections:
        three.kill_agent("node2")
        three.podway("set", "pool/ipv4", "encapsulation=vxlan")
        three.podway("set", "pool/ipv6", "encapsulation=vxlan")
        # The others send it no encapsulation that it does not accept; it changes nothing while it is away.
        # Each family's block of node3 switches, at a moment of its own and with two routes for a while.
        for device, blocks in ((VXLAN, blocks_of(pods[2])), ("eth0", blocks_of(pods[1]))):
            eventually(lambda device=device, blocks=blocks: remote_blocks(three, "node1", device) == blocks)
        assert remote_blocks(three, "node2", VXLAN) == set()
        assert "waits for node2 to accept vxlan" in str(three.status("node1")["encapsulation"]["pending"])
        assert "waits for node2 to accept vxlan" in three.podway("status", "node1")
        three.start_agent("node2")
        eventually(lambda: all(VXLAN in line for node in NODES for line in remote_routes(three, node)))
        # Until BIRD has changed its own routes, some of ours stand beside them.
        eventually(lambda: three.status("node3")["encapsulation"]["pending"] == [])
        assert f"metric {STORE_METRIC}" not in routes(three, "node3")
        eventually(lambda: f"metric {GUARD_METRIC}" not in routes(three, "node3"))
        three.kill_agent("node3")  # its routes stand; a start on a node that is right changes nothing
        before = routes(three, "node3")
        three.start_agent("node3")
        assert routes(three, "node3") == before
        switch(three, "encapsulation=none")
        assert packets.lost() == []
        assert connections.failures == []


def test_a_node_whose_port_is_taken_is_sent_nothing_that_it_cannot_take(
    three: SystemLab, pods: list[PodUnderTest]
) -> None:
    block = str(three.block_of(pods[2].addresses[0]))
    eventually(partial(has_no_device, three, "node3"))  # a former switch has come to its end
    with in_node(three, "node3", pods[2].addresses[0]) as taken:
        taken.bind(("", 4789))
        with Packets(pods) as packets:
            three.podway("set", "pool/ipv4", "encapsulation=vxlan")
            eventually(lambda: any(VXLAN in line for line in remote_routes(three, "node1")))
            eventually(lambda: "UDP port 4789 is taken" in refused_on(three, "node3"))
            assert "UDP port 4789 is taken" in three.podway("status", "node3")
            (way,) = [line for line in remote_routes(three, "node1") if line.startswith(block)]
            assert "dev eth0" in way
            assert packets.lost() == []
