"""Whole labs of racks: nodes in their racks, pods across them, and BGP with the routers."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import pytest

from podway.api.addresses import Family
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import ASN, RACK, Node
from podway.api.kinds.pod import Pod
from podway.errors import InvalidArgument
from podway.lab import cluster, facts, names, pods, processes, state, topology
from podway.lab.fabric import Tor
from podway.lab.facts import PoolSettings
from podway.lab.paths import lab_dir
from tests.patience import ONCE, PATIENCE

pytestmark = pytest.mark.kernel

DUAL = ("10.244.0.0/16", "fd00:10:244::/56")


@pytest.fixture
def build(lab_name: str) -> Callable[..., str]:
    """Give a function that builds the lab of this test."""

    def up(
        *,
        nodes: int,
        racks: int = 2,
        tor: Tor = "none",
        pools: Sequence[str] = DUAL,
        node_families: Sequence[Family] = (),
        pool_settings: PoolSettings = cluster.DEFAULT_POOL_SETTINGS,
    ) -> str:
        cluster.up(
            lab_name,
            nodes=nodes,
            pools=pools,
            block_sizes=(),
            asn=64512,
            report=lambda _: None,
            racks=racks,
            tor=tor,
            node_families=node_families,
            pool_settings=pool_settings,
        )
        return lab_name

    return up


def _ping(namespace: str, address: object, within: float) -> str:
    command = ["ip", "netns", "exec", namespace, *ONCE, f"-W{within:g}", str(address)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _ttls(lab: str, asking: str, asked: str, within: float = PATIENCE) -> list[str]:
    """Return the TTLs with which the answers of one pod come to another, one a family; empty where none came."""
    found = {pod.metadata.name: pod for pod in facts.ask(lab, lambda store: store.list(Pod)).items}
    namespace = names.pod_netns(lab, "default", asking)
    said = [_ping(namespace, address, within) for address in found[asked].addresses]
    return [text.partition("ttl=")[2].partition(" ")[0] for text in said]


def _racks(lab: str) -> dict[str, str]:
    nodes = facts.ask(lab, lambda store: store.list(Node)).items
    return {node.metadata.name: node.metadata.labels[RACK] for node in nodes}


def _traces(lab: str) -> list[str]:
    marked = processes.Members([], marked=lambda mark: mark.startswith(f"{lab}/")).pids()
    return [*topology.namespaces(lab), *map(str, marked), *(["directory"] if lab_dir(lab).exists() else [])]


@pytest.mark.usefixtures("untouched_root")
def test_nodes_join_leave_and_lose_power_in_their_racks(build: Callable[..., str]) -> None:
    lab = build(nodes=3)
    assert _racks(lab) == {"node1": "rack1", "node2": "rack1", "node3": "rack2"}
    pods.run(lab, "near", node="node2")
    pods.run(lab, "far", node="node3")
    pods.run(lab, "asking", node="node1")
    assert _ttls(lab, "asking", "near") == ["62", "62"]
    assert _ttls(lab, "asking", "far", within=1) == ["", ""], "the routers know nothing of pods"

    command = [sys.executable, "-m", "podway", "--lab", lab, "lab"]
    assert subprocess.run([*command, "node", "add", "node9", "--rack", "2"]).returncode == 0
    cluster.kill_node(lab, "node3")
    cluster.add_node(lab, "node4", lambda _: None)
    cluster.start_node(lab, "node3", lambda _: None)
    assert _racks(lab) == {
        "node1": "rack1",
        "node2": "rack1",
        "node3": "rack2",
        "node4": "rack1",  # the emptiest, and the first of those
        "node9": "rack2",
    }
    shown = subprocess.run([*command, "status"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[1] for line in shown.splitlines()] == [
        "RACK",
        "rack1",
        "rack1",
        "rack2",
        "rack1",
        "rack2",
    ]
    for node, address in (("node9", "172.30.2.9"), ("node4", "172.30.1.4"), ("node3", "172.30.2.3")):
        assert str(state.load(lab).addresses(node)[0].ip) == address
        assert "ttl=" in _ping(names.node_netns(lab, "node1"), address, PATIENCE)
    cluster.remove_node(lab, "node9")
    assert "node9" not in _racks(lab)
    with pytest.raises(InvalidArgument, match="no rack 3") as caught:
        cluster.add_node(lab, "node10", lambda _: None, rack=3)
    assert "racks 1 to 2" in caught.value.hint
    cluster.down(lab)
    assert _traces(lab) == []


@pytest.mark.parametrize("tor", ["bird", "frr"])
def test_pods_cross_racks_as_they_are_once_nodes_peer_with_the_routers(
    build: Callable[..., str], tor: Tor
) -> None:
    lab = build(nodes=3, tor=tor)
    (config,) = facts.ask(lab, lambda store: store.list(NetworkConfig)).items
    assert config.spec.bgp.topology == "none"
    nodes = facts.ask(lab, lambda store: store.list(Node)).items
    assert [node.metadata.annotations[ASN] for node in nodes] == ["64601", "64602", "64603"]
    for pod, node in (("a", "node1"), ("b", "node2"), ("c", "node3")):
        pods.run(lab, pod, node=node)
    assert _ttls(lab, "a", "b") == ["62", "62"], "neighbours send to each other straight"
    assert _ttls(lab, "a", "c") == _ttls(lab, "c", "a") == ["60", "60"], "two nodes and two routers"
    cluster.add_node(lab, "node4", lambda _: None, rack=2)
    pods.run(lab, "d", node="node4")
    assert _ttls(lab, "a", "d") == ["60", "60"]
    cluster.kill_node(lab, "node3")
    block = str(
        next(
            pod for pod in facts.ask(lab, lambda store: store.list(Pod)).items if pod.metadata.name == "c"
        ).addresses[0]
    )
    deadline = time.monotonic() + PATIENCE
    way = ["ip", "-n", names.tor_netns(lab, 1), "route", "get", block]
    while subprocess.run(way, capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "the routers keep a dead node's routes"
    cluster.down(lab)
    assert _traces(lab) == []


def test_encapsulated_pod_packets_cross_routers_that_know_nothing_of_pods(build: Callable[..., str]) -> None:
    lab = build(nodes=2, pool_settings=PoolSettings(encapsulation="vxlan", when="cross-subnet"))
    for pod, node in (("a", "node1"), ("b", "node2")):
        pods.run(lab, pod, node=node)
    assert _ttls(lab, "a", "b") == ["62", "62"], "the routers see the outer packet's TTL only"


def test_pods_have_a_family_that_their_nodes_lack(build: Callable[..., str]) -> None:
    pool_settings = PoolSettings(encapsulation="vxlan", distribution="store")
    lab = build(nodes=2, racks=1, pools=DUAL[:1], node_families=(Family.IPV6,), pool_settings=pool_settings)
    assert [address.version for address in state.load(lab).addresses("node1")] == [6]
    for pod, node in (("a", "node1"), ("b", "node2")):
        pods.run(lab, pod, node=node)
    assert _ttls(lab, "a", "b") == ["62"]
