"""The node's own device and addresses change, and pods go on: found, followed, told while something is lost."""

import json
import time
from collections.abc import Iterator

import pytest

from podway.api.kinds.node import Node
from podway.lab.facts import PoolSettings
from tests.patience import eventually
from tests.system.system_lab import SystemLab

pytestmark = pytest.mark.kernel

POOLS = {
    "bgp": PoolSettings(),
    "store": PoolSettings(distribution="store"),
    "vxlan by bgp": PoolSettings(encapsulation="vxlan"),
    "vxlan by store": PoolSettings(distribution="store", encapsulation="vxlan"),
    "ipip by bgp": PoolSettings(encapsulation="ipip"),
}


class Pair:
    """A lab of two nodes with a pod each."""

    def __init__(self, pool_settings: PoolSettings) -> None:
        self.lab = SystemLab()
        self.lab.up(2, pool_settings=pool_settings)
        self.near, self.far = self.lab.add("node1"), self.lab.add("node2")
        eventually(self.talk)

    def talk(self) -> bool:
        """Whether the pods reach each other, each family both ways."""
        return all(
            one.reaches(address, within=0.3)
            for one, other in ((self.near, self.far), (self.far, self.near))
            for address in other.addresses
        )

    def sh(self, script: str) -> str:
        return self.lab.sh("node1", script)

    @property
    def uplink(self) -> tuple[str, list[str]]:
        told = self.lab.status("node1")["uplink"]
        return told["device"], told["addresses"]

    @property
    def problem(self) -> str:
        return str(self.lab.status("node1")["uplink"]["problem"])

    @property
    def registered(self) -> set[str]:
        node = self.lab.store(lambda store: store.get(Node, "node1"))
        return {str(address) for address in node.internal_addresses}

    def healthy(self) -> bool:
        status = self.lab.status("node1")
        drift = status["drift"]
        return not (status["uplink"]["problem"] or drift["now"] or drift["refused"]) and self.talk()

    def findings(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self.lab.podway("doctor", "node1", "-o", "json", check=False))[
            "findings"
        ]
        return found


@pytest.fixture(scope="module", params=POOLS)
def formed(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A pair for each way in which routes are distributed and packets cross."""
    pair = Pair(POOLS[request.param])
    try:
        yield pair
    finally:
        pair.lab.down()


@pytest.fixture
def pair(formed: Pair) -> Iterator[Pair]:
    """The pair, which every test leaves as it was."""
    before = formed.uplink
    yield formed
    eventually(formed.healthy)
    assert formed.uplink == before


V4, V6 = "172.30.0.1/16", "fd70:6f64:7761:7900::1/64"
ADDRESSES = [V4, V6]


def test_an_agent_that_starts_finds_the_uplink_where_it_went(pair: Pair) -> None:
    """BIRD runs on without an agent; what it then has lost, an agent that starts repairs."""
    for was, name in (("eth0", "ens5"), ("ens5", "eth0")):
        pair.lab.kill_agent("node1")
        pair.sh(f"ip link set {was} name {name}; ip address add fd70:6f64:7761:7900::a/64 dev {name} nodad")
        time.sleep(1)
        pair.sh(f"ip address del fd70:6f64:7761:7900::a/64 dev {name}")
        pair.lab.start_agent("node1")
        assert pair.uplink == (name, ADDRESSES)
        eventually(pair.healthy)


def test_a_renamed_uplink_is_followed_there_and_back(pair: Pair) -> None:
    for name in ("ens5", "eth0"):
        was = pair.uplink[0]
        pair.sh(f"ip link set {was} name {name}")
        eventually(lambda name=name: pair.uplink == (name, ADDRESSES))
        eventually(pair.healthy)
        assert pair.registered == {"172.30.0.1", "fd70:6f64:7761:7900::1"}


@pytest.mark.parametrize("pause", [0, 1.5])
def test_a_bridge_takes_the_uplink_over_and_gives_it_back(pair: Pair, pause: float) -> None:
    """Also seconds later, as by DHCP; while the address is nowhere, that is told."""
    beside = pair.lab.add("node1")
    pair.sh("ip link add br0 type bridge; ip link set br0 address $(cat /sys/class/net/eth0/address) up")
    pair.sh(f"ip link set eth0 master br0; ip address del {V4} dev eth0; ip address del {V6} dev eth0")
    if pause:
        eventually(lambda: "172.30.0.1" in pair.problem)
        assert [each["check"] for each in pair.findings() if "172.30.0.1" in each["found"]] == ["uplink"]
        assert "172.30.0.1" in pair.lab.podway("status", "node1")
        # Pods of one node need no address of its own, and nothing else is wrong than that.
        eventually(lambda: pair.near.reaches(beside.addresses[0], within=1))
        eventually(lambda: pair.lab.status("node1")["drift"]["now"] == [])
        time.sleep(pause)
    pair.sh(f"ip address add {V4} dev br0; ip address add {V6} dev br0 nodad")
    eventually(lambda: pair.uplink == ("br0", ADDRESSES))
    eventually(pair.healthy)
    pair.sh(f"ip address del {V4} dev br0; ip address del {V6} dev br0; ip link set eth0 nomaster")
    pair.sh(f"ip address add {V4} dev eth0; ip address add {V6} dev eth0 nodad; ip link del br0")
    eventually(lambda: pair.uplink == ("eth0", ADDRESSES))
    eventually(pair.healthy)
    # What the tunnel's programs and maps lose with a device comes with the new one: nobody else changed them.
    assert not [what for what in pair.lab.repaired("node1") if "IPIP" in what or "tunnel" in what]
    assert beside.cni("DEL").ok


def test_what_comes_beside_the_nodes_addresses_moves_nothing(pair: Pair) -> None:
    """Addresses that float (VRRP), second ones, private and ending ones; a second device that leads out."""
    before = pair.registered
    for address in ("172.30.9.9/32", "172.30.9.8/16", "fd70:6f64:7761:7900::9/128 nodad"):
        pair.sh(f"ip address add {address} dev eth0")
    pair.sh("ip address add fd70:6f64:7761:7900::a/64 dev eth0 nodad preferred_lft 0")
    pair.sh("ip link add wan0 up type veth peer wan1; ip link set wan1 up; ip address add 192.0.2.9/24 dev wan0")
    pair.sh("ip route add default via 192.0.2.1; ip route add default via 172.30.0.254 dev eth0 metric 100")
    pair.sh("ip address add fd70:6f64:7761:7900::b/64 dev eth0 nodad valid_lft 2 preferred_lft 1")
    eventually(lambda: "7900::b/" not in pair.sh("ip -6 address"))
    assert (pair.uplink, pair.registered) == (("eth0", ADDRESSES), before)
    assert pair.healthy()
    pair.lab.kill_agent("node1")
    pair.lab.start_agent("node1")
    assert (pair.uplink, pair.registered) == (("eth0", ADDRESSES), before)
    pair.sh("ip route del default via 192.0.2.1; ip route del default via 172.30.0.254; ip link del wan0")
    for address in ("172.30.9.9/32", "172.30.9.8/16", *(f"fd70:6f64:7761:7900::{n}" for n in ("9/128", "a/64"))):
        pair.sh(f"ip address del {address} dev eth0")


def test_an_address_that_another_machine_has_is_not_taken(pair: Pair) -> None:
    """Duplicate-address detection of a real kernel, against the other node's own address."""
    pair.sh("ip address add fd70:6f64:7761:7900::2/64 dev eth0")
    eventually(lambda: "dadfailed" in pair.sh("ip -6 address show dev eth0"))
    pair.sh(f"ip address del {V6} dev eth0")
    eventually(lambda: pair.uplink == ("eth0", [V4]))
    assert "fd70:6f64:7761:7900::2" not in pair.registered
    pair.sh(f"ip address add {V6} dev eth0 nodad; ip address del fd70:6f64:7761:7900::2/64 dev eth0")
    eventually(lambda: pair.uplink == ("eth0", ADDRESSES))


@pytest.mark.parametrize("away", [0.1, 1.5])
def test_addresses_leased_anew_while_others_float_on_the_uplink(pair: Pair, away: float) -> None:
    floating = ("172.30.9.9/32", "fd70:6f64:7761:7900::9/128")
    for address in floating:
        pair.sh(f"ip address add {address} dev eth0")
    for address in ADDRESSES:
        pair.sh(f"ip address del {address} dev eth0")
    time.sleep(away)
    pair.sh(f"ip address add {V4} dev eth0; ip address add {V6} dev eth0 nodad")
    eventually(lambda: pair.uplink == ("eth0", ADDRESSES))
    eventually(pair.healthy)
    assert pair.registered == {"172.30.0.1", "fd70:6f64:7761:7900::1"}
    for address in floating:
        pair.sh(f"ip address del {address} dev eth0")


def test_a_node_with_new_addresses_is_known_by_them(pair: Pair) -> None:
    new = ["172.30.7.7/16", "fd70:6f64:7761:7900::77/64"]
    for was, now in ((ADDRESSES, new), (new, ADDRESSES)):
        for old, fresh in zip(was, now, strict=True):
            pair.sh(f"ip address del {old} dev eth0; ip address add {fresh} dev eth0 nodad")
        eventually(lambda now=now: pair.uplink == ("eth0", now))
        eventually(pair.healthy)


def test_one_of_two_addresses_of_a_subnet_expires(pair: Pair) -> None:
    """Whichever it is: what is left of the subnet keeps the ways through it."""
    seconds = ("172.30.7.7/16", "fd70:6f64:7761:7900::77/64")
    for address in seconds:
        pair.sh(f"ip address add {address} dev eth0 valid_lft 2 preferred_lft 2")
    eventually(lambda: "7.7/" not in pair.sh("ip address") and "::77" not in pair.sh("ip address"))
    eventually(pair.healthy)
    assert pair.uplink == ("eth0", ADDRESSES)


def test_the_nodes_own_address_expires_beside_another_of_its_subnet(pair: Pair) -> None:
    second = "fd70:6f64:7761:7900::77/64"
    # Not by `ip address change`: with that the kernel has the subnet's route expire, too.
    anew = f"ip address del {V6} dev eth0; ip address add {V6} dev eth0 nodad valid_lft 2 preferred_lft 2"
    pair.sh(f"ip address add {second} dev eth0 nodad; {anew}")
    eventually(lambda: pair.uplink == ("eth0", [V4, second]))
    eventually(lambda: pair.registered == {"172.30.0.1", "fd70:6f64:7761:7900::77"})
    eventually(pair.healthy)
    # That one is the node's now, and stays though the former comes back, until it goes.
    pair.sh(f"ip address add {V6} dev eth0 nodad")
    eventually(pair.healthy)
    assert pair.uplink == ("eth0", [V4, second])
    pair.sh(f"ip address del {second} dev eth0")
    eventually(lambda: pair.uplink == ("eth0", ADDRESSES))
