"""CNI through the real plugin and agent: what the specification says of each command, and of wiring."""

import pytest

from podway.cni.spec import Code
from tests.patience import PATIENCE, eventually
from tests.system.system_lab import Answer, PodUnderTest, SystemLab

pytestmark = pytest.mark.kernel


def refused(answer: Answer, code: int, *words: str) -> None:
    assert answer.status == 1
    assert answer.code == code, answer.output
    for word in words:
        assert word in answer.words


def test_a_pod_can_be_reached_at_once_and_has_the_uplinks_mtu(lab: SystemLab) -> None:
    """No address is tentative: nothing waited for duplicate-address detection."""
    other = lab.add("node2")
    pod = lab.add("node1")
    assert all(other.reaches(address) for address in pod.addresses)
    assert "tentative" not in pod.sh("ip -6 addr") + lab.sh("node1", f"ip -6 addr show dev {pod.link}")
    assert pod.added is not None
    host, inside = pod.added.output["interfaces"]
    assert (host["name"], host["mtu"], inside["mtu"]) == (pod.link, 1500, 1500)
    assert f"link/ether {inside['mac']}" in pod.sh("ip link show dev eth0")
    # A full-size packet passes unfragmented, one byte more does not.
    assert "status 0" in pod.sh(f"ping -n -c1 -W{PATIENCE:g} -M do -s 1472 {other.addresses[0]}", check=False)
    assert "status 0" in pod.sh(f"ping -n -c1 -W{PATIENCE:g} -M do -s 1452 {other.addresses[1]}", check=False)
    assert "status 0" not in pod.sh(f"ping -n -c1 -W1 -M do -s 1473 {other.addresses[0]}", check=False)


def mtus(lab: SystemLab, pod: PodUnderTest) -> tuple[int, int]:
    """Return the MTU of both ends of a pod's link."""
    looks = (lab.sh("node1", f"ip -o link show {pod.link}"), pod.sh("ip -o link show eth0"))
    host, inside = (int(look.split(" mtu ")[1].split()[0]) for look in looks)
    return host, inside


def test_both_ends_of_a_pods_link_follow_the_mtu(lab: SystemLab) -> None:
    """Were they to differ, the larger end's packets would vanish without an ICMP message."""
    pod, tuned, other = lab.add("node1"), lab.add("node1"), lab.add("node2")
    tuned.sh("ip link set eth0 mtu 1300")  # as a chained plugin does
    manifest = "apiVersion: podway.io/v1\nkind: NetworkConfig\nmetadata: {name: default}\nspec: {mtu: %d}\n"
    try:
        lab.podway("apply", "-f", "-", stdin=manifest % 1400)
        eventually(lambda: mtus(lab, pod) == (1400, 1400))
        assert mtus(lab, tuned) == (1400, 1300)
        assert "status 0" in pod.sh(f"ping -n -c1 -W{PATIENCE:g} -M do -s 1372 {other.addresses[0]}", check=False)
        assert pod.check().ok
        assert mtus(lab, lab.add("node1")) == (1400, 1400)
        lab.kill_agent("node1")
    finally:
        lab.podway("apply", "-f", "-", stdin=manifest % 0)
    lab.start_agent("node1")
    assert mtus(lab, pod) == (1500, 1500)
    assert "status 0" in pod.sh(f"ping -n -c1 -W{PATIENCE:g} -M do -s 1472 {other.addresses[0]}", check=False)
    lab.sh("node1", "ip link set eth0 mtu 1450")
    eventually(lambda: mtus(lab, pod) == (1450, 1450))
    lab.sh("node1", "ip link set eth0 mtu 1500")
    eventually(lambda: mtus(lab, pod) == (1500, 1500))
    assert lab.repaired("node1") == []


def test_the_same_attachment_again_and_again(lab: SystemLab) -> None:
    """No DEL strikes the ADD that follows it at once."""
    pod = lab.new_pod()
    for _ in range(25):
        pod.add()
        assert pod.cni("DEL").ok
    pod.add()
    assert lab.leases("node1") == {pod.attachment: pod.addresses}
    assert pod.check().ok
    assert lab.repaired("node1") == []


def test_a_pod_that_flushes_its_neighbours_still_talks(lab: SystemLab) -> None:
    pod, other = lab.add("node1"), lab.add("node2")
    pod.sh("ip neigh flush all nud permanent; ip -6 neigh flush all nud permanent; ip neigh flush all")
    assert all(pod.reaches(address) for address in other.addresses)


@pytest.mark.parametrize("loose", [False, True], ids=["", "all.rp_filter=2"])
def test_a_spoofed_source_is_stopped(lab: SystemLab, loose: bool) -> None:
    """Neither another pod's address nor one of nobody's gets out of a pod, whatever all.rp_filter is."""
    spoofer, victim, target = lab.add("node1"), lab.add("node1"), lab.add("node2")
    if loose:
        lab.sh("node1", "sysctl -qw net.ipv4.conf.all.rp_filter=2")
        eventually(lambda: "fib saddr" in lab.sh("node1", "nft list chain ip podway pod"))
    try:
        for source, destination in (
            *zip(victim.addresses, target.addresses, strict=True),
            ("192.0.2.7", target.addresses[0]),
            ("2001:db8::7", target.addresses[1]),
        ):
            length = 128 if ":" in str(source) else 32
            spoofer.sh(f"ip addr add {source}/{length} dev eth0 {'nodad' if length == 128 else ''}")
            before = received(target)
            assert "status 0" not in spoofer.sh(f"ping -n -c2 -i0.2 -W0.3 -I {source} {destination}", check=False)
            assert received(target) == before
            spoofer.sh(f"ip addr del {source}/{length} dev eth0")
        # With its own address it is heard, so the counts above mean something.
        before = received(target)
        assert all(spoofer.reaches(address) for address in target.addresses)
        assert received(target) != before
    finally:
        lab.sh("node1", "sysctl -qw net.ipv4.conf.all.rp_filter=0")
    eventually(lambda: "fib saddr" not in lab.sh("node1", "nft list chain ip podway pod"))


def received(pod: PodUnderTest) -> tuple[str, ...]:
    """Return how many echo requests a pod has received, by family."""
    text = pod.sh("cat /proc/net/snmp6; nstat -asz IcmpInEchos").split("\n")
    return tuple(line for line in text if line.startswith(("Icmp6InEchos ", "IcmpInEchos")))


TAMPERED = {
    "address": ("ip addr del {v4}/32 dev eth0", "address {v4}/32 is missing"),
    "address, IPv6": ("ip addr del {v6}/128 dev eth0", "address {v6}/128 is missing"),
    "route": ("ip route del default", "default via 169.254.1.1"),
    "route altered": ("ip route change default via 169.254.1.1 dev eth0 src {v4}", "altered"),
    "route, IPv6": ("ip -6 route del default", "default via fe80::1"),
    "link down": ("ip link set eth0 down", "eth0: is down"),
    "link renamed": ("ip link set eth0 down; ip link set eth0 name eth7", "the interface is missing"),
    "MTU": ("ip link set eth0 mtu 1400", "MTU is 1400, should be 1500"),
    "MAC": ("ip link set eth0 address 02:00:00:00:00:99", "MAC is 02:00:00:00:00:99"),
    "neighbour": ("ip neigh del 169.254.1.1 dev eth0", "neighbour 169.254.1.1"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_check_names_what_was_tampered_with(lab: SystemLab, case: str) -> None:
    pod = lab.add()
    assert pod.check().ok
    command, words = TAMPERED[case]
    names = {"v4": pod.addresses[0], "v6": pod.addresses[1]}
    pod.sh(command.format(**names))
    refused(pod.check(), Code.CHECK_FAILED, words.format(**names), "DEL and ADD")


def test_check_compares_with_the_result_it_is_given(lab: SystemLab) -> None:
    pod, other = lab.add(), lab.add()
    assert other.added is not None
    wrong = pod.cni("CHECK", config={"prevResult": other.added.output})
    refused(wrong, Code.CHECK_FAILED, f"address {other.addresses[0]} of prevResult")
    pod.cni("DEL")
    refused(pod.check(), Code.CHECK_FAILED, "has no eth0")


def test_a_second_add_is_refused_and_harms_nothing(lab: SystemLab) -> None:
    """CNI, "ADD": an interface of this name in the container is an error."""
    pod = lab.add()
    refused(pod.cni("ADD"), Code.INTERFACE_TAKEN, pod.container, "DEL it before")
    assert pod.check().ok
    assert lab.leases("node1")[pod.attachment] == pod.addresses
    # Nor may another container have this name in the same namespace.
    thief = lab.new_pod()
    refused(thief.cni("ADD", path=pod.path), Code.INTERFACE_TAKEN, "eth0")
    assert thief.attachment not in lab.leases("node1")
    assert pod.check().ok


def test_delete_twice_and_after_the_namespace_vanished(lab: SystemLab) -> None:
    pod, gone = lab.add(), lab.add()
    assert pod.cni("DEL").ok
    assert pod.cni("DEL").ok
    assert "eth0" not in pod.sh("ip link")
    gone.vanish()
    assert gone.cni("DEL").ok
    assert gone.cni("DEL", path="").ok
    assert lab.new_pod().cni("DEL").ok
    eventually(lambda: lab.leases("node1") == {})


def test_another_networks_requests_touch_nothing(lab: SystemLab) -> None:
    pod = lab.add()
    other = {"name": "other-network"}
    assert pod.cni("DEL", config=other).ok
    assert pod.cni("GC", config={**other, "cni.dev/valid-attachments": []}).ok
    assert pod.check().ok
    assert pod.added is not None
    refused(pod.cni("CHECK", config={**other, "prevResult": pod.added.output}), Code.CHECK_FAILED, "other-network")
    refused(pod.cni("ADD", config=other), Code.INTERFACE_TAKEN, "on network podway")


def test_garbage_collection_removes_exactly_what_is_not_listed(lab: SystemLab) -> None:
    keep, second, stale, elsewhere = lab.add(), lab.new_pod(), lab.add(), lab.new_pod()
    elsewhere.add(config={"name": "other-network"})
    # A second interface of a container that stays, but is not listed itself.
    second.container, second.netns, second.ifname = keep.container, keep.netns, "net1"
    keep.sh("ip route del default; ip route del 169.254.1.1; ip -6 route del default")
    second.add()
    valid = [{"containerID": keep.container, "ifname": "eth0"}, {"containerID": "unknown", "ifname": "eth0"}]
    assert keep.cni("GC", config={"cni.dev/valid-attachments": valid}).ok
    assert set(lab.leases("node1")) == {keep.attachment, elsewhere.attachment}
    assert "eth0" in keep.sh("ip link")
    assert "eth0" not in stale.sh("ip link")
    assert "net1" not in keep.sh("ip link")
    elsewhere.cni("DEL", config={"name": "other-network"})
    assert set(lab.leases("node1")) == {keep.attachment}


@pytest.mark.parametrize("ifname", ["eth0", "net1", "a", "fifteen-bytes-x", "pway0", "veth.5", "ü"])
def test_any_interface_name(lab: SystemLab, ifname: str) -> None:
    pod = lab.new_pod(ifname=ifname).add()
    assert pod.reaches("172.30.0.1")
    assert f" {ifname}@" in pod.sh("ip -o link")
    assert pod.check().ok
    assert pod.cni("DEL").ok
    assert pod.attachment not in lab.leases("node1")


def test_several_interfaces_of_one_container(lab: SystemLab) -> None:
    """Each is a lease of its own; a pod has room for one network with default routes, and that is told."""
    first, second, other = lab.add(), lab.new_pod(), lab.add("node2")
    second.container, second.netns, second.ifname = first.container, first.netns, "net1"
    refused(second.cni("ADD"), Code.INTERFACE_TAKEN, "net1", "only one network with default routes")
    assert "net1" not in first.sh("ip link")
    assert set(lab.leases("node1")) == {first.attachment}
    assert first.check().ok
    first.sh("ip route del default; ip route del 169.254.1.1; ip -6 route del default")
    second.add()
    assert not set(first.addresses) & set(second.addresses)
    assert all(other.reaches(address) for address in second.addresses)
    assert second.check().ok
    assert first.cni("DEL").ok
    assert set(lab.leases("node1")) == {second.attachment}
    assert second.check().ok


def test_a_namespace_that_is_none_of_a_pods(lab: SystemLab) -> None:
    pod = lab.new_pod()
    refused(pod.cni("ADD", path="/run/netns/there-is-none"), Code.INVALID_ENVIRONMENT, "there-is-none")
    refused(pod.cni("ADD", path="/etc/hostname"), Code.INVALID_ENVIRONMENT, "no network namespace")
    node = f"/run/netns/podway-{lab.name}-node1"
    refused(pod.cni("ADD", path=node), Code.INVALID_ENVIRONMENT, "node's own")
    assert lab.leases("node1") == {}
