"""The kernel answers on a segment for Services' addresses that are planned, and hosts hear of who does."""

from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface

import pytest

from podway.api.addresses import Address
from podway.kernel.node import Kernel
from podway.plan.objects import NodePlan
from podway.plan.segment import plan_segment
from podway.plan.uplink import Uplink
from tests.namespaces import TestNamespace
from tests.patience import eventually

pytestmark = pytest.mark.kernel

ADDRESSES = (ip_address("172.30.9.200"), ip_address("fd00:9::200"))
NUMBERS = {"one": 1, "other": 2, "host": 3}


class Segment:
    """Two nodes and a host on a segment."""

    def __init__(self, bridge: TestNamespace, ends: dict[str, TestNamespace]) -> None:
        self.ends = ends
        bridge.sh("ip link add name lan type bridge; ip link set lan up")
        for name, number in NUMBERS.items():
            end = ends[name]
            bridge.sh(f"ip link add p{number} type veth peer name eth0 netns {end.name}")
            bridge.sh(f"ip link set p{number} master lan up")
            end.sh(
                f"ip address add 172.30.9.{number}/24 dev eth0; ip address add fd00:9::{number}/64 dev eth0 nodad"
            )
            end.sh(
                "sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.ipv6.conf.all.forwarding=1; ip link set eth0 up"
            )
        self.macs = {name: end.sh("ip -br link show eth0").split()[2] for name, end in ends.items()}

    def found(self, address: Address) -> str:
        """Ask for an address from the host; return which node has it by its cache."""
        host = self.ends["host"]
        host.run("ping", "-c1", "-W1", str(address), check=False)
        return self.known(address)

    def known(self, address: Address) -> str:
        words = self.ends["host"].sh(f"ip neighbour show {address}").split()
        return next((name for name, mac in self.macs.items() if mac in words), "")


@pytest.fixture
def segment(new_netns: Callable[[], TestNamespace]) -> Segment:
    return Segment(new_netns(), {name: new_netns() for name in NUMBERS})


@pytest.fixture
def kernels(segment: Segment) -> Iterator[dict[str, Kernel]]:
    with Kernel.open(segment.ends["one"].fd) as one, Kernel.open(segment.ends["other"].fd) as other:
        yield {"one": one, "other": other}


UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.9.1/24"), ip_interface("fd00:9::1/64")))
PLAN = plan_segment(ADDRESSES, UPLINK)


def test_the_node_answers_whose_turn_it_is_and_hosts_hear_of_another(
    segment: Segment, kernels: dict[str, Kernel]
) -> None:
    assert kernels["one"].apply(PLAN).failures == ()
    for address in ADDRESSES:
        eventually(lambda address=address: segment.found(address) == "one", f"{address} is answered for")
    assert kernels["one"].answered_on("eth0") == set(ADDRESSES)
    kernels["one"].apply(NodePlan())
    kernels["other"].apply(PLAN)
    kernels["other"].announce("eth0", ADDRESSES)
    for address in ADDRESSES:
        eventually(lambda address=address: segment.known(address) == "other", f"the host hears of {address}")
    assert kernels["one"].answered_on("eth0") == frozenset()
    assert segment.ends["one"].sh("ip neighbour show proxy; ip route show 172.30.9.200") == ""
    # No process of the node is reached by such an address.
    assert "172.30.9.200" not in segment.ends["other"].sh("ip address; ip route show table local")


def test_what_others_take_away_is_put_back_and_what_they_made_stays(
    segment: Segment, kernels: dict[str, Kernel]
) -> None:
    node, kernel = segment.ends["one"], kernels["one"]
    node.sh("ip neighbour add proxy 172.30.9.77 dev eth0")
    kernel.apply(PLAN)
    assert not kernel.apply(PLAN).changes
    node.sh("ip neighbour del proxy 172.30.9.200 dev eth0; ip route del fd00:9::200")
    told = sorted(map(str, kernel.apply(PLAN).changes))
    assert told == [
        "proxy for 172.30.9.200 on eth0 was missing: added",
        "route fd00:9::200/128 dev podway-lb was missing: added",
    ]
    kernel.apply(NodePlan())
    assert node.sh("ip neighbour show proxy").split()[0] == "172.30.9.77"
    assert len(node.sh("ip neighbour show proxy").splitlines()) == 1
