"""Uplinks of less than IPv6 needs with an outer header: IPv4 goes on, nothing leaves bare, everything returns."""

import json
from collections.abc import Iterator

import pytest

from podway.api.addresses import Address
from podway.lab import state
from tests.patience import eventually
from tests.system.switch_traffic import bare, mtu_of
from tests.system.system_lab import PodUnderTest, SystemLab

pytestmark = pytest.mark.kernel

NODES = ("node1", "node2")
SMALLEST_IPV4, SMALLEST_IPV6 = 576, 1280
"""RFC 791 and RFC 8200: what every host and link takes."""

WAYS = [
    ("vxlan", "bgp", "routed"),
    ("vxlan", "store", "bridge"),
    ("ipip", "bgp", "bridge"),
    ("ipip", "store", "routed"),
]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def overlaid(request: pytest.FixtureRequest) -> Iterator[tuple[SystemLab, tuple[PodUnderTest, PodUnderTest]]]:
    """Two nodes whose IPv4 pods cross by this encapsulation, and IPv6 pods by VXLAN; a dual-stack pod on each."""
    encapsulation, distribution, attach = request.param
    lab = SystemLab()
    lab.up(len(NODES))
    try:
        overlay(lab, encapsulation, distribution, attach)
        one, other = (lab.add(node) for node in NODES)
        for address in other.addresses:
            eventually(lambda address=address: "dev podway-" in lab.sh(one.node, f"ip route get {address}"))
            eventually(lambda address=address: answers(one, address))
        yield lab, (one, other)
    finally:
        lab.down()


def overlay(lab: SystemLab, encapsulation: str, distribution: str, attach: str) -> None:
    """Change both pools at once: their pods are the same, so they are attached alike."""
    common = {"distribution": distribution, "attach": attach}
    pools = [
        {"name": "ipv4", "spec": {"cidr": "10.244.0.0/16", "encapsulation": encapsulation, **common}},
        {"name": "ipv6", "spec": {"cidr": "fd00:244::/56", "encapsulation": "vxlan", **common}},
    ]
    manifests = [
        {"apiVersion": "podway.io/v1", "kind": "IPPool", "metadata": {"name": pool["name"]}, "spec": pool["spec"]}
        for pool in pools
    ]
    lab.podway("apply", "-f", "-", stdin="\n---\n".join(map(json.dumps, manifests)))
    for node in NODES:
        eventually(lambda node=node: settled(lab, node))


def settled(lab: SystemLab, node: str) -> bool:
    """Tell whether a node sends as the pools ask for."""
    crossing = lab.status(node)["encapsulation"]
    return bool(crossing["sends"]) and not crossing["pending"]


def set_mtu(lab: SystemLab, mtu: int) -> None:
    """Change the uplinks' MTU. Below 1280 the kernel takes the nodes' own IPv6 addresses: they are set anew."""
    for node in NODES:
        own = next(one for one in state.load(lab.name).addresses(node) if one.version == 6)
        lab.sh(node, f"ip link set eth0 mtu {mtu}")
        if mtu >= SMALLEST_IPV6:
            lab.sh(node, f"ip -6 address replace {own} dev eth0 nodad")


def wiring_of(pod: PodUnderTest) -> str:
    """Return a pod's addresses, routes and permanent neighbours."""
    return pod.sh(
        "ip -o address; ip route; ip -6 route; ip neigh show nud permanent; ip -6 neigh show nud permanent"
    )


def answers(pod: PodUnderTest, address: Address, size: int = 100) -> bool:
    """Tell whether a ping of so many bytes, IP header and all, is answered; the pod may cut it.

    `ping` itself waits for a minute (MAXWAIT) after an ICMP error.
    """
    room = size - (28 if address.version == 4 else 48)
    return "status 0" in pod.sh(f"timeout 1 ping -n -q -c 1 -W 1 -s {room} {address}", check=False)


@pytest.mark.parametrize("mtu", [1300, SMALLEST_IPV6, 1000, SMALLEST_IPV4])
def test_ipv4_goes_on_and_everything_returns_with_the_mtu(
    overlaid: tuple[SystemLab, tuple[PodUnderTest, PodUnderTest]], mtu: int
) -> None:
    lab, pods = overlaid
    one, other = pods
    four, six = other.addresses
    before, mtu_before = [wiring_of(pod) for pod in pods], mtu_of(one)
    with bare(lab, pods) as escaped:
        set_mtu(lab, mtu)
        eventually(lambda: answers(one, four, 1300))
        eventually(lambda: not answers(one, six))
        eventually(lambda: answers(one, four))
        assert "nreachable" in one.sh(f"timeout 1 ping -n -c 1 -W 1 {six}", check=False), "the pod is told"
        assert [wiring_of(pod) for pod in pods] == before, "pods keep IPv6"
        assert mtu_of(one) == SMALLEST_IPV6
        for node in NODES:
            eventually(lambda node=node: lab.status(node)["drift"]["now"] == [])
        if mtu >= SMALLEST_IPV6:
            assert "IPPool/ipv6: IPv6 crosses to no other node" in lab.podway("status", "node1")
            assert "IPPool/ipv6" in lab.podway("doctor", check=False)
        set_mtu(lab, 1500)
        eventually(lambda: answers(one, six))
        eventually(lambda: mtu_of(one) == mtu_before)
    assert escaped == []
    assert [wiring_of(pod) for pod in pods] == before
    eventually(lambda: answers(one, four, mtu_before))
    for node in NODES:
        eventually(lambda node=node: lab.status(node)["drift"]["now"] == [])
        assert lab.status(node)["drift"]["refused"] == []


def test_an_agent_that_starts_below_it_finds_all_in_place(
    overlaid: tuple[SystemLab, tuple[PodUnderTest, PodUnderTest]],
) -> None:
    lab, (one, other) = overlaid
    set_mtu(lab, SMALLEST_IPV6)
    eventually(lambda: not answers(one, other.addresses[1]))
    held = lab.leases("node1")
    lab.kill_agent("node1")
    lab.start_agent("node1")
    assert lab.leases("node1") == held
    assert answers(one, other.addresses[0])
    fresh = lab.add("node1")
    assert answers(fresh, other.addresses[0])
    assert answers(fresh, one.addresses[1]), "IPv6 within the node is not concerned"
    set_mtu(lab, 1500)
    eventually(lambda: answers(fresh, other.addresses[1]))
