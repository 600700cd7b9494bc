import subprocess
from ipaddress import ip_network

import pytest

from podway.errors import LabError
from podway.kernel import netns
from podway.lab import names, topology


@pytest.mark.parametrize(
    ("pools", "families"),
    [
        (("10.244.0.0/16",), [4]),
        (("fd00::/48",), [4, 6]),
        (("10.0.0.0/8", "fd00::/8"), None),
        (("172.16.0.0/12",), [4]),
        (("0.0.0.0/1", "128.0.0.0/1"), None),
    ],
)
def test_nodes_get_subnets_beside_the_pools(pools: tuple[str, ...], families: list[int] | None) -> None:
    networks = tuple(map(ip_network, pools))
    if families is None:
        with pytest.raises(LabError, match="leave no IPv"):
            topology.choose_subnets(networks)
        return
    subnets = topology.choose_subnets(networks)
    assert [subnet.version for subnet in subnets] == families
    assert not any(a.overlaps(b) for a in subnets for b in networks if a.version == b.version)


@pytest.mark.kernel
@pytest.mark.usefixtures("untouched_root")
def test_nodes_reach_each_other_over_the_fabric_until_one_is_cut(lab_name: str) -> None:
    subnets = topology.choose_subnets((ip_network("10.244.0.0/16"), ip_network("fd00::/48")))
    topology.create_fabric(lab_name)
    for index in (1, 2):
        uplink = topology.node_addresses(index, subnets)
        topology.create_node(lab_name, f"node{index}", index, uplink)

    def reached() -> list[bool]:
        peers = [str(address.ip) for address in topology.node_addresses(2, subnets)]
        return [_ping(names.node_netns(lab_name, "node1"), peer) for peer in peers]

    assert reached() == [True, True]
    topology.cut_node(lab_name, 2)
    assert reached() == [False, False]
    for _ in range(2):  # the second time there is nothing left, and that is fine
        topology.cut_node(lab_name, 2)
        topology.remove_node(lab_name, "node2", 2)
    assert topology.namespaces(lab_name) == [names.fabric_netns(lab_name), names.node_netns(lab_name, "node1")]


@pytest.mark.kernel
def test_introduced_nodes_take_no_room_in_the_machines_neighbour_tables(lab_name: str) -> None:
    subnets = topology.choose_subnets((ip_network("fd00::/48"),))
    topology.create_fabric(lab_name)
    for index in (1, 2, 3):
        topology.create_node(lab_name, f"node{index}", index, topology.node_addresses(index, subnets))
    topology.introduce(lab_name, {f"node{index}": index for index in (1, 2, 3)}, subnets)
    for peer in topology.node_addresses(3, subnets):
        assert _ping(names.node_netns(lab_name, "node1"), str(peer.ip))
    for node in ("node1", "node2", "node3"):
        command = ["ip", "-n", names.node_netns(lab_name, node), "neighbour"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert [line.split()[-1] for line in shown if not line.startswith("fe80:")] == ["PERMANENT"] * 4


@pytest.mark.kernel
def test_two_labs_use_the_same_names_and_addresses(lab_name: str) -> None:
    other = f"{lab_name[:-1]}z"
    subnets = topology.choose_subnets((ip_network("10.244.0.0/16"),))
    try:
        for lab in (lab_name, other):
            topology.create_fabric(lab)
            topology.create_node(lab, "node1", 1, topology.node_addresses(1, subnets))
        topology.create_node(other, "node2", 2, topology.node_addresses(2, subnets))
        peer = str(topology.node_addresses(2, subnets)[0].ip)
        assert _ping(names.node_netns(other, "node1"), peer)
        assert not _ping(names.node_netns(lab_name, "node1"), peer)
    finally:
        for namespace in topology.namespaces(other):
            netns.delete(namespace)


def _ping(namespace: str, address: str) -> bool:
    command = ["ip", "netns", "exec", namespace, "ping", "-c1", "-W1", address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
