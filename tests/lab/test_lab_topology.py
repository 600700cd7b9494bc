import subprocess
from ipaddress import ip_network

import pytest

from podway.kernel import netns
from podway.lab import names, topology
from podway.lab.fabric import plan_fabric
from podway.lab.state import LabNode
from tests.patience import ANSWERED, PATIENCE


@pytest.mark.kernel
@pytest.mark.usefixtures("untouched_root")
def test_nodes_reach_each_other_over_the_fabric_until_one_is_cut(lab_name: str) -> None:
    fabric = plan_fabric((ip_network("10.244.0.0/16"), ip_network("fd00::/48")), nodes=2, racks=1)
    topology.create_fabric(lab_name, fabric)
    for index in (1, 2):
        topology.create_node(lab_name, f"node{index}", LabNode(index), fabric)

    node1 = names.node_netns(lab_name, "node1")
    peers = [str(address.ip) for address in fabric.addresses(1, 2)]
    assert [_answered(node1, peer) for peer in peers] == [True, True]
    topology.cut_node(lab_name, 2)
    assert [_answered(node1, peer, within=1) for peer in peers] == [False, False]
    for _ in range(2):  # the second time there is nothing left, and that is fine
        topology.cut_node(lab_name, 2)
        topology.remove_node(lab_name, "node2", 2)
    assert topology.namespaces(lab_name) == [names.fabric_netns(lab_name), names.node_netns(lab_name, "node1")]


@pytest.mark.kernel
def test_introduced_nodes_take_no_room_in_the_machines_neighbour_tables(lab_name: str) -> None:
    fabric = plan_fabric((ip_network("fd00::/48"),), nodes=3, racks=1)
    places = {f"node{index}": LabNode(index) for index in (1, 2, 3)}
    topology.create_fabric(lab_name, fabric)
    for node, place in places.items():
        topology.create_node(lab_name, node, place, fabric)
    topology.introduce(lab_name, fabric, places)
    for peer in fabric.addresses(1, 3):
        assert _answered(names.node_netns(lab_name, "node1"), str(peer.ip))
    for node in ("node1", "node2", "node3"):
        command = ["ip", "-n", names.node_netns(lab_name, node), "neighbour"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert [line.split()[-1] for line in shown if not line.startswith("fe80:")] == ["PERMANENT"] * 4


@pytest.mark.kernel
def test_two_labs_use_the_same_names_and_addresses(lab_name: str) -> None:
    other = f"{lab_name[:-1]}z"
    fabric = plan_fabric((ip_network("10.244.0.0/16"),), nodes=2, racks=1)
    try:
        for lab in (lab_name, other):
            topology.create_fabric(lab, fabric)
            topology.create_node(lab, "node1", LabNode(1), fabric)
        topology.create_node(other, "node2", LabNode(2), fabric)
        peer = str(fabric.addresses(1, 2)[0].ip)
        assert _answered(names.node_netns(other, "node1"), peer)
        assert not _answered(names.node_netns(lab_name, "node1"), peer, within=1)
    finally:
        for namespace in topology.namespaces(other):
            netns.delete(namespace)


def _answered(namespace: str, address: str, within: float = PATIENCE) -> bool:
    """Tell whether one of many pings is answered: a device's first packets may come before its carrier."""
    command = ["ip", "netns", "exec", namespace, *ANSWERED, f"-w{within:g}", address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
