"""What somebody changes by hand is put right within a second and reported; what is not ours is left alone."""

from collections.abc import Iterator

import pytest

from tests.patience import eventually
from tests.system.system_lab import PodUnderTest, SystemLab

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def wired(shared_lab: SystemLab) -> Iterator[tuple[PodUnderTest, PodUnderTest]]:
    """A pod on each node."""
    yield shared_lab.add("node1"), shared_lab.add("node2")
    shared_lab.remove_pods()


def correct(lab: SystemLab, node: str = "node1") -> bool:
    drift = lab.status(node)["drift"]
    return not drift["now"] and not drift["refused"]


def everything(lab: SystemLab) -> list[str]:
    """Return all that node1's kernel has, in no order, but for its doubts of the uplink's own address."""
    look = lab.sh("node1", "ip route; ip -6 route; ip addr; ip neigh show nud permanent; nft -s list ruleset")
    return sorted(look.replace(" tentative", "").splitlines())


TAMPERING = {
    "pod route": ("ip route del {v4}", "route {v4}/32 dev {link} src 172.30.0.1"),
    "pod route, IPv6": ("ip -6 route del {v6}", "route {v6}/128 dev {link}"),
    "pod route altered": ("ip route change {v4} dev {link} scope link proto 112", "route {v4}/32 dev {link}"),
    "block route": ("ip route del blackhole {block4}", "route {block4} blackhole"),
    "block route, IPv6": ("ip -6 route del {block6}", "route {block6} blackhole"),
    "block route altered": ("ip route replace unreachable {block4} proto 112", "route {block4} blackhole"),
    "neighbour": ("ip neigh del {v4} dev {link}", "neighbour {v4} on {link}"),
    "neighbour, IPv6": ("ip neigh del {v6} dev {link}", "neighbour {v6} on {link}"),
    "neighbour altered": (
        "ip neigh replace {v4} lladdr 02:00:00:00:00:99 dev {link} nud permanent",
        "neighbour {v4} on {link}",
    ),
    "host link address": ("ip addr del 169.254.1.1/32 dev {link}", "address 169.254.1.1/32 on {link}"),
    "host link address, IPv6": ("ip addr del fe80::1/128 dev {link}", "address fe80::1/128 on {link}"),
    "link down": ("ip link set {link} down", "link {link}"),
    "link MTU": ("ip link set {link} mtu 1400", "link {link}"),
    "link MAC": ("ip link set {link} address 02:00:00:00:00:99", "link {link}"),
    "link key": ("ip link property del dev {link} altname {altname}", "link {link}"),
    "link alias": ("ip link set {link} alias changed", "link {link}"),
    "link group": ("ip link set {link} group default", "link {link}"),
    "link name": ("ip link set {link} name other0", "link {link}"),
    "forwarding of the pod's link": (
        "sysctl -qw net.ipv4.conf.{link}.forwarding=0",
        "sysctl net/ipv4/conf/{link}",
    ),
    "rp_filter of the pod's link": ("sysctl -qw net.ipv4.conf.{link}.rp_filter=0", "sysctl net/ipv4/conf/{link}"),
    "forwarding of the uplink": ("sysctl -qw net.ipv4.conf.eth0.forwarding=0", "sysctl net/ipv4/conf/eth0"),
    "forwarding of the node": (
        "sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.ip_forward=0",
        "sysctl net/ipv4/conf/eth0/forwarding",
    ),
    "forwarding of the node, IPv6": (
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl net/ipv6/conf/all/forwarding",
    ),
    "nft table": ("nft delete table ip6 podway", "nft table ip6 podway"),
    "nft rules": ("nft flush chain ip6 podway prerouting", "nft table ip6 podway"),
    "nft rule": (
        "nft delete rule ip6 podway prerouting handle "
        "$(nft -a list chain ip6 podway prerouting | sed -n 's/.*iifgroup.*handle //p')",
        "nft table ip6 podway",
    ),
    "whole nft ruleset": ("nft flush ruleset", "nft table ip6 podway"),
    "the pod's link": ("ip link del {link}", "link {link}"),
    "learned route": ("ip route del {other4}", "route {other4} via 172.30.0.2 dev eth0"),
    "learned route, IPv6": ("ip -6 route del {other6}", "route {other6} via fd70:6f64:7761:7900::2 dev eth0"),
    "learned route altered": (
        "ip route replace {other4} via 172.30.0.77 dev eth0 metric 32 proto bird",
        "route {other4} via 172.30.0.2 dev eth0",
    ),
    "learned route altered, IPv6": (
        "ip -6 route change {other6} via fd70:6f64:7761:7900::77 dev eth0 metric 32 proto bird",
        "route {other6} via fd70:6f64:7761:7900::2 dev eth0",
    ),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_put_right_within_a_second_and_reported(
    shared_lab: SystemLab, wired: tuple[PodUnderTest, PodUnderTest], case: str
) -> None:
    lab, (pod, other) = shared_lab, wired
    names = {
        "v4": pod.addresses[0],
        "v6": pod.addresses[1],
        "link": pod.link,
        "altname": pod.attachment.altname,
        **{f"block{n}": lab.block_of(address) for n, address in zip((4, 6), pod.addresses, strict=True)},
        **{f"other{n}": lab.block_of(address) for n, address in zip((4, 6), other.addresses, strict=True)},
    }
    command, reported = (text.format(**names) for text in TAMPERING[case])
    before = lab.repaired("node1")
    seen = everything(lab)
    lab.sh("node1", command)

    def repaired() -> bool:
        new = lab.repaired("node1")[len(before) :]
        return correct(lab) and any(reported in line for line in new)

    eventually(repaired)
    eventually(lambda: pod.reaches(other.addresses[0], within=0.2))
    assert pod.reaches(other.addresses[1])
    assert other.reaches(pod.addresses[1])
    assert pod.check().ok
    if case != "the pod's link":  # which has another number now
        assert everything(lab) == seen


def test_a_foreign_route_in_place_of_a_learned_one_is_told_and_stays(
    shared_lab: SystemLab, wired: tuple[PodUnderTest, PodUnderTest]
) -> None:
    lab, (pod, other) = shared_lab, wired
    block, before = lab.block_of(other.addresses[0]), lab.repaired("node1")
    lab.sh("node1", f"ip route replace unreachable {block} metric 32 proto static")
    eventually(lambda: any(str(block) in line for line in lab.status("node1")["drift"]["refused"]))
    assert f"unreachable {block} proto static" in lab.sh("node1", "ip route")
    assert lab.repaired("node1") == before
    lab.sh("node1", f"ip route del unreachable {block}")
    eventually(lambda: correct(lab) and pod.reaches(other.addresses[0], within=0.2))


FOREIGN = (
    "ip link add foreign0 type veth peer name foreign1; ip link set foreign0 up; ip link set foreign1 up",
    "ip addr add 198.51.100.1/24 dev foreign0; ip -6 addr add 2001:db8::1/64 dev foreign0 nodad",
    "ip addr add 198.51.100.9/32 dev eth0",
    "ip route add 203.0.113.0/24 via 198.51.100.2 dev foreign0 proto static",
    "ip route add blackhole 10.99.0.0/16; ip route add 10.98.0.0/16 dev eth0 table 77",
    "ip neigh add 198.51.100.3 lladdr 02:00:00:00:00:03 dev foreign0 nud permanent",
    "nft add table inet other; nft add chain inet other c '{ type filter hook input priority 0; }'",
    "nft add table ip podway-like; sysctl -qw net.ipv4.conf.foreign0.rp_filter=2",
)


def test_what_is_not_ours_is_neither_touched_nor_reported(
    shared_lab: SystemLab, wired: tuple[PodUnderTest, PodUnderTest]
) -> None:
    lab, (pod, _) = shared_lab, wired
    before, writes = lab.repaired("node1"), lab.status("node1")["kernel_writes"]
    for script in FOREIGN:
        lab.sh("node1", script)
    look = "ip addr show dev foreign0; ip route show table all | grep -E '^(203|blackhole 10.99|10.98)';"
    look += "ip neigh show dev foreign0 nud permanent; nft list table inet other; nft list table ip podway-like;"
    look += "ip addr show dev eth0; sysctl net.ipv4.conf.foreign0.rp_filter"
    foreign = lab.sh("node1", look)
    # A repair of ours beside them, that is a full comparison, does not harm them either.
    eventually(lambda: lab.repaired("node1") == before, within=0.3)
    assert lab.status("node1")["kernel_writes"] == writes
    lab.sh("node1", f"ip route del {pod.addresses[0]}")
    eventually(lambda: len(lab.repaired("node1")) == len(before) + 1)
    assert lab.sh("node1", look) == foreign
    assert correct(lab)
    lab.sh("node1", "ip link del foreign0; nft delete table inet other; nft delete table ip podway-like")
    lab.sh("node1", "ip addr del 198.51.100.9/32 dev eth0; ip route del blackhole 10.99.0.0/16")
    lab.sh("node1", "ip route flush table 77")


def test_what_follows_from_a_setting_of_others_is_no_repair_but_a_repair_beside_it_is(
    shared_lab: SystemLab, wired: tuple[PodUnderTest, PodUnderTest]
) -> None:
    """A loose all.rp_filter makes the plan another one; a route taken away at that moment still is told."""
    lab, (pod, _) = shared_lab, wired
    before = lab.repaired("node1")
    lab.sh("node1", f"sysctl -qw net.ipv4.conf.all.rp_filter=2; ip route del {pod.addresses[0]}")
    asks = "nft list chain ip podway pod"
    eventually(lambda: "fib saddr" in lab.sh("node1", asks))
    eventually(lambda: len(lab.repaired("node1")) == len(before) + 1)
    assert str(pod.addresses[0]) in lab.repaired("node1")[-1]
    lab.sh("node1", "sysctl -qw net.ipv4.conf.all.rp_filter=0")
    eventually(lambda: "fib saddr" not in lab.sh("node1", asks))
    assert correct(lab)


def test_what_bears_our_mark_and_has_no_place_is_removed(
    shared_lab: SystemLab, wired: tuple[PodUnderTest, PodUnderTest]
) -> None:
    lab = shared_lab
    lab.sh("node1", "ip route add blackhole 10.77.0.0/24 proto 112; nft add table inet podway")
    eventually(lambda: "10.77" not in lab.sh("node1", "ip route; nft list tables"))
    eventually(lambda: "table inet podway" not in lab.sh("node1", "nft list tables"))
    assert correct(lab)


def test_ordinary_work_is_no_repair(lab: SystemLab) -> None:
    """Pods that come and go, also without a DEL, leave no trace among the repairs."""
    before = lab.repaired("node1")
    pods = [lab.add() for _ in range(8)]
    for pod in pods[:4]:
        assert pod.cni("DEL").ok
    for pod in pods[4:]:
        pod.vanish()
    eventually(lambda: not set(lab.leases("node1")) & {pod.attachment for pod in pods})
    eventually(lambda: correct(lab))
    assert lab.repaired("node1") == before


def test_a_pod_link_that_cannot_be_made_again_is_told_and_made_when_it_can(lab: SystemLab) -> None:
    """In its place stands another one, made by who removed it: the lease stays, and what is wrong is said."""
    pod, other = lab.add("node1"), lab.add("node2")
    pod.sh("ip link set eth0 down; ip link set eth0 name former; ip link add eth0 type bridge; ip link del former")
    eventually(lambda: any(pod.link in line for line in lab.status("node1")["drift"]["refused"]))
    assert pod.attachment in lab.leases("node1")
    assert pod.link in lab.podway("status", "node1")
    assert f"link {pod.link}" in lab.podway("doctor", "node1", check=False)
    assert not lab.status("node1")["failures"]
    pod.sh("ip link del eth0")
    eventually(lambda: pod.reaches(other.addresses[0], within=1))
    assert not lab.status("node1")["drift"]["refused"]
    assert any(f"link {pod.link}" in what for what in lab.repaired("node1"))
    assert pod.check().ok


def test_a_pod_that_removes_its_link_again_and_again_has_it_when_it_stops(lab: SystemLab) -> None:
    pod, other = lab.add("node1"), lab.add("node2")
    pod.sh("for i in $(seq 200); do ip link del eth0; done", check=False)
    eventually(lambda: pod.reaches(other.addresses[0], within=1))
    assert pod.attachment in lab.leases("node1")
    eventually(lambda: not lab.status("node1")["drift"]["refused"])
    assert lab.status("node1")["drift"]["now"] == []
    assert pod.cni("DEL").ok


def test_a_pod_that_cannot_be_wired_again_can_end(lab: SystemLab) -> None:
    ways = ("DEL", "its namespace goes")
    for way in ways:
        pod = lab.add("node1")
        pod.sh(
            "ip link set eth0 down; ip link set eth0 name former; ip link add eth0 type bridge; ip link del former"
        )
        eventually(lambda pod=pod: any(pod.link in line for line in lab.status("node1")["drift"]["refused"]))
        if way == "DEL":
            assert pod.cni("DEL").ok
        else:
            pod.vanish()
        eventually(lambda pod=pod: pod.attachment not in lab.leases("node1"))
        assert not lab.status("node1")["drift"]["refused"]
