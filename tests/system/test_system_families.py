"""Nodes of one family beside nodes of both: in VXLAN each pair crosses by outer headers that both can send."""

import subprocess
from collections.abc import Iterator
from itertools import permutations

import pytest

from podway.api.addresses import Address
from podway.lab import names
from podway.lab.facts import PoolSettings
from podway.plan.objects import VXLAN6_DEVICE, VXLAN_DEVICE
from tests.patience import eventually
from tests.system.switch_traffic import Packets
from tests.system.system_lab import PodUnderTest, SystemLab

pytestmark = pytest.mark.kernel

BACK = 30.0
"""Seconds after which a test gives up."""

STRAY = 3
"""Packets that may be lost when a node gets an address; without order between nodes it would be a hundred."""

V4 = {node: f"172.30.0.{number}/16" for number, node in enumerate(("node1", "node2", "node3", "node4"), 1)}
V6 = {node: f"fd70:6f64:7761:7900::{number}/64" for number, node in enumerate(V4, 1)}


class Cluster:
    """Four nodes with a pod each."""

    def __init__(self, pools: list[str], settings: PoolSettings) -> None:
        self.lab = SystemLab()
        self.lab.up(4, pools=pools, pool_settings=settings)
        self.pods = [self.lab.add(node) for node in V4]

    def lose(self, node: str, address: str) -> None:
        self.lab.sh(node, f"ip address del {address} dev eth0")

    def get(self, node: str, address: str) -> None:
        self.lab.sh(node, f"ip address add {address} dev eth0 nodad")

    def devices(self, node: str) -> set[str]:
        shown = self.lab.sh(node, "ip -br link show type vxlan").splitlines()
        return {line.split()[0] for line in shown}

    def pairs(self) -> Iterator[tuple[PodUnderTest, PodUnderTest, Address]]:
        for one, other in permutations(self.pods, 2):
            for address in other.addresses:
                yield one, other, address

    def reached(self) -> set[tuple[str, str]]:
        """Return the pairs of nodes whose pods reach each other in every family."""
        unreached = {
            (one.node, other.node) for one, other, address in self.pairs() if not one.reaches(address, within=3.0)
        }
        return set(permutations(V4, 2)) - unreached

    def whole(self) -> bool:
        """Whether all pods reach each other."""
        assert self.reached() == set(permutations(V4, 2))
        return True

    def by_ipv4_alone(self) -> bool:
        """Whether no node has the second device."""
        assert {node: self.devices(node) for node in V4} == {node: {VXLAN_DEVICE} for node in V4}
        return True

    def outer(self, one: PodUnderTest, other: PodUnderTest, address: Address) -> str:
        """Return the outer header's protocol and addresses of a ping as it leaves the node: tcpdump's words."""
        command = ["tcpdump", "-lnni", "eth0", "-c1", "-Q", "out", "udp dst port 4789"]
        with subprocess.Popen(
            ["ip", "netns", "exec", names.node_netns(self.lab.name, one.node), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as capture:
            try:
                assert capture.stderr is not None
                while "listening on" not in capture.stderr.readline():
                    pass
                assert one.reaches(address)
                printed, _ = capture.communicate(timeout=BACK)
            finally:
                capture.kill()
        return " ".join(printed.splitlines()[0].split()[1:5])


@pytest.fixture(params=["store", "bgp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Nodes that all have both families, in VXLAN; where BGP advertises the routes, of pods that have IPv6 alone.

    BGP advertises a family only between nodes that have it.
    """
    pools = ["fd00:244::/56"] if request.param == "bgp" else ["10.244.0.0/16", "fd00:244::/56"]
    found = Cluster(pools, PoolSettings(distribution=request.param, encapsulation="vxlan"))
    try:
        eventually(found.whole, within=BACK)
        yield found
    finally:
        found.lab.down()


def test_a_node_that_loses_ipv4_crosses_by_ipv6_and_goes_back_without_loss(cluster: Cluster) -> None:
    lab, (first, _, _, last) = cluster.lab, cluster.pods
    assert cluster.by_ipv4_alone()
    cluster.lose("node4", V4["node4"])
    eventually(cluster.whole, within=BACK)
    assert cluster.devices("node4") == {VXLAN6_DEVICE}
    assert cluster.devices("node1") == {VXLAN_DEVICE, VXLAN6_DEVICE}
    for address in last.addresses:
        there, back = (text.split("/")[0] for text in (V6["node1"], V6["node4"]))
        assert cluster.outer(first, last, address).startswith(f"IP6 {there}.")
        assert f"> {back}.4789" in cluster.outer(first, last, address)
    with Packets(cluster.pods) as packets:
        assert packets.lost() == []
        cluster.get("node4", V4["node4"])
        eventually(cluster.by_ipv4_alone, within=BACK)
        assert len(packets.lost()) <= STRAY
    for address in last.addresses:
        assert cluster.outer(first, last, address).startswith("IP 172.30.0.1.")
    assert [lab.repaired(node) for node in V4] == [[]] * 4


def test_every_pair_that_has_a_family_in_common_talks(cluster: Cluster) -> None:
    if len(cluster.pods[0].addresses) == 1:
        pytest.skip("BGP advertises nothing of IPv6 to a node without")
    lab = cluster.lab
    cluster.lose("node4", V4["node4"])
    cluster.lose("node3", V6["node3"])
    apart = {("node3", "node4"), ("node4", "node3")}
    eventually(lambda: cluster.reached() == set(permutations(V4, 2)) - apart, within=BACK)
    assert [cluster.devices(node) for node in V4] == [
        {VXLAN_DEVICE, VXLAN6_DEVICE},
        {VXLAN_DEVICE, VXLAN6_DEVICE},
        {VXLAN_DEVICE},
        {VXLAN6_DEVICE},
    ]
    (said,) = [one for one in lab.status("node3")["encapsulation"]["problems"] if "node4" in one]
    assert "it has only IPv6, and this node only IPv4" in said
    for one, other, family in (("node1", "node2", "IP "), ("node1", "node3", "IP "), ("node1", "node4", "IP6 ")):
        pods = {pod.node: pod for pod in cluster.pods}
        for address in pods[other].addresses:
            assert cluster.outer(pods[one], pods[other], address).startswith(family)
    # The two that cannot meet are told so at once, and nothing of theirs leaves bare.
    third = {pod.node: pod for pod in cluster.pods}["node3"]
    target = cluster.pods[3].addresses[0]
    # The kernel limits how often it says so.
    eventually(lambda: "nreachable" in third.sh(f"ping -n -c1 -W1 {target}", check=False), within=BACK)
    cluster.get("node3", V6["node3"])
    cluster.get("node4", V4["node4"])
    eventually(cluster.whole, within=BACK)
    eventually(cluster.by_ipv4_alone, within=BACK)
