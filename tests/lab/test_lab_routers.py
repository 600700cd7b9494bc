"""Routers between racks: forwarding, and the ICMP errors that real ones send."""

import subprocess
from ipaddress import ip_address

import pytest

from podway.api.addresses import Family
from podway.lab import names, topology
from podway.plan.objects import Route
from tests.lab.router_lab import POOLS, RouterLab
from tests.patience import ANSWERED

pytestmark = pytest.mark.kernel


@pytest.fixture
def racks(lab_name: str) -> RouterLab:
    """Two racks of two nodes each."""
    return RouterLab(lab_name, nodes=4)


def _pings(lab: RouterLab, address: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return lab.on_node("node1", *ANSWERED, *options, address)


@pytest.mark.usefixtures("untouched_root")
@pytest.mark.parametrize("family", list(Family))
def test_nodes_of_two_racks_reach_each_other_through_both_routers(racks: RouterLab, family: Family) -> None:
    far, near = racks.address("node3", family), racks.address("node2", family)
    crossing = _pings(racks, far)
    assert "ttl=62" in crossing.stdout, "two routers are on the way"
    assert "ttl=64" in _pings(racks, near).stdout, "none is inside the rack"
    hops = [_pings(racks, far, "-t", str(ttl)).stdout for ttl in (1, 2)]
    gateway = next(str(address.ip) for address in racks.fabric.gateways(1) if address.version == family)
    spine = next(str(address.ip) for address in racks.fabric.spine(2) if address.version == family)
    for said, router in zip(hops, (gateway, spine), strict=True):
        assert f"From {router} " in said
        assert "exceeded" in said


@pytest.mark.parametrize(("family", "headers"), [(Family.IPV4, 28), (Family.IPV6, 48)])
def test_routers_say_which_size_a_narrow_spine_takes(racks: RouterLab, family: Family, headers: int) -> None:
    racks.on_router(1, "ip", "link", "set", "spine", "mtu", "1400")
    far = racks.address("node3", family)
    exact, over = (str(1400 - headers + more) for more in (0, 1))
    refused = _pings(racks, far, "-M", "do", "-s", over)
    assert refused.returncode == 1
    assert "mtu" in refused.stdout
    assert "1400" in refused.stdout
    assert _pings(racks, far, "-M", "do", "-s", exact).returncode == 0
    assert "1400" in racks.on_node("node1", "ip", "route", "get", far).stdout


@pytest.mark.parametrize("family", list(Family))
def test_routers_that_were_told_nothing_deliver_no_pod_packet_as_it_is(racks: RouterLab, family: Family) -> None:
    pods = {
        node: str(POOLS[family == 6][number << 8 | 5]) for number, node in enumerate(("node1", "node3"), start=1)
    }
    for node, pod in pods.items():
        bits = 32 if family == 4 else 128
        racks.on_node(node, "ip", "address", "add", f"{pod}/{bits}", "dev", "lo", *["nodad"] * (family == 6))
    # Both nodes know which way a pod would be, as they would by BGP between them.
    for node, peer in (("node1", "node3"), ("node3", "node1")):
        gateway = next(a for a in racks.fabric.gateways(racks.places[node].rack) if a.version == family)
        wanted = Route(family.network(int(ip_address(pods[peer])), family.bits), device="eth0", gateway=gateway.ip)
        topology.route(names.node_netns(racks.name, node), [wanted])
    asked = _pings(racks, pods["node3"], "-I", pods["node1"], "-w1")
    assert asked.returncode == 1
    # The rest of the way is right: once the routers know both pods, the answer comes.
    for rack, mine, other in ((1, "node1", "node3"), (2, "node3", "node1")):
        for node, via in ((mine, racks.address(mine, family)), (other, None)):
            spine = next(str(a.ip) for a in racks.fabric.spine(3 - rack) if a.version == family)
            racks.on_router(rack, "ip", "route", "add", pods[node], "via", via or spine)
    assert _pings(racks, pods["node3"], "-I", pods["node1"]).returncode == 0


def test_racks_and_their_routers_take_no_room_in_the_machines_neighbour_tables(lab_name: str) -> None:
    lab = RouterLab(lab_name, nodes=6, racks=3)
    for node in lab.places:
        for family in Family:
            assert lab.on_node(node, *ANSWERED, lab.address("node5", family)).returncode == 0
    shown = [lab.on_node(node, "ip", "neighbour").stdout for node in lab.places]
    shown += [lab.on_router(rack, "ip", "neighbour").stdout for rack in lab.fabric.numbers]
    states = {line.split()[-1] for text in shown for line in text.splitlines() if not line.startswith("fe80:")}
    assert states == {"PERMANENT"}
