"""Faults of settings, routes, firewalls and paths, caused in a lab: each is named, and gone once repaired."""

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from podway.kernel import netns
from podway.lab import names
from tests.health.health_lab import HealthLab

pytestmark = pytest.mark.kernel


@contextlib.contextmanager
def broken(lab: HealthLab, node: str, how: str, repaired: str) -> Iterator[None]:
    lab.sh(node, how)
    try:
        yield
    finally:
        lab.sh(node, repaired)


@contextlib.contextmanager
def other_device(lab: HealthLab, address: str = "198.51.100.1/24") -> Iterator[None]:
    """A second device on node1 that is up and has an address."""
    add = f"ip link add br9 type bridge; ip link set br9 up; ip address add {address} dev br9"
    with broken(lab, "node1", add, "ip link del br9"):
        yield


FIREWALLS = {
    "a policy": (
        "nft 'add table inet x; add chain inet x f { type filter hook forward priority 0; policy drop; }'",
        "nft delete table inet x",
        "nft inet x f",
        ("the policy drops", "nft insert rule inet x f ip saddr 10.244.0.0/16 accept"),
    ),
    "a rule": (
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; "
        "add rule ip x f ip daddr 10.244.0.0/16 iifname eth0 drop'",
        "nft delete table ip x",
        "nft ip x f",
        (
            "drops packets from other nodes{pods} to pods here",
            "nft insert rule ip x f ip daddr 10.244.0.0/16 accept",
        ),
    ),
    "one protocol": (
        "nft 'add table inet x; add chain inet x f { type filter hook forward priority 0; }; "
        "add rule inet x f meta l4proto udp drop'",
        "nft delete table inet x",
        "nft inet x f",
        ("drops UDP packets from pods to other nodes{pods}",),
    ),
    "iptables-nft": (
        "iptables-nft -P FORWARD DROP",
        "iptables-nft -P FORWARD ACCEPT; nft delete table ip filter",
        "nft ip filter FORWARD",
        ("the policy drops", "iptables -I FORWARD -s 10.244.0.0/16 -j ACCEPT"),
    ),
    "Docker": (
        "iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER; "
        "iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; "
        "iptables-nft -P FORWARD DROP",
        "nft delete table ip filter",
        "nft ip filter FORWARD",
        ("the policy drops", "iptables -I DOCKER-USER -d 10.244.0.0/16 -j ACCEPT"),
    ),
    "iptables-legacy": (
        "iptables-legacy -A FORWARD -s 10.244.0.0/16 -j REJECT",
        "iptables-legacy -F",
        "iptables-legacy ip filter FORWARD",
        ("reject", "iptables-legacy -I FORWARD"),
    ),
    "firewalld": (
        """nft 'table inet firewalld {
          chain zones { iifname "trusted0" accept; reject with icmpx type admin-prohibited; };
          chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname "lo" accept
            ct state invalid drop
            jump zones; }; }'""",
        "nft delete table inet firewalld",
        "nft inet firewalld zones",
        ("reject", "firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16"),
    ),
    "BGP": (
        "nft 'add table inet x; add chain inet x i { type filter hook input priority 0; }; "
        "add rule inet x i tcp dport { 22, 179 } ct state new drop'",
        "nft delete table inet x",
        "nft inet x i",
        ("BGP (TCP 179) from other nodes", "nft insert rule inet x i ip saddr 172.30.0.0/16 tcp dport 179 accept"),
    ),
}


@pytest.mark.parametrize("maker", FIREWALLS)
def test_rules_of_others_that_drop(lab: HealthLab, maker: str) -> None:
    how, repaired, chain, templates = FIREWALLS[maker]
    # What the flow engine carries, between pods, passes others' rules by.
    words = [words.format(pods="" if lab.carries else "' pods") for words in templates]
    with broken(lab, "node1", how, repaired):
        found = lab.finding("firewall", f"node1: {chain}", *words)
        if not found["advice"].startswith("firewall-cmd"):  # whose rules a daemon keeps, which is not here
            lab.sh("node1", found["advice"])
            assert [one for one in lab.doctor()["findings"] if one["check"] == "firewall"] == []


TRANSLATIONS = {
    "nft": (
        "nft 'add table ip x; add chain ip x p { type nat hook postrouting priority 100; }; "
        "add rule ip x p ip saddr 10.244.0.0/16 oifname eth0 masquerade'",
        "nft delete table ip x",
        "nft ip x p",
        "error",
    ),
    "nft, IPv6": (
        "nft 'add table inet x; add chain inet x p { type nat hook postrouting priority 100; }; "
        "add rule inet x p ip6 saddr fd00:244::/56 masquerade'",
        "nft delete table inet x",
        "nft inet x p",
        "error",
    ),
    "all but pods": (
        "nft 'add table ip x; add chain ip x p { type nat hook postrouting priority 100; }; "
        "add rule ip x p ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade'",
        "nft delete table ip x",
        "nft ip x p",
        "warning",
    ),
    "iptables-nft": (
        "iptables-nft -t nat -A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE",
        "nft delete table ip nat",
        "nft ip nat POSTROUTING",
        "error",
    ),
    "iptables-legacy": (
        "iptables-legacy -t nat -A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE",
        "iptables-legacy -t nat -F",
        "iptables-legacy ip nat POSTROUTING",
        "error",
    ),
    "redirect": (
        "nft 'add table ip x; add chain ip x p { type nat hook prerouting priority -100; }; "
        "add rule ip x p ip daddr 10.244.0.0/16 meta l4proto tcp redirect to :8080'",
        "nft delete table ip x",
        "nft ip x p",
        "error",
    ),
}


@pytest.mark.parametrize("maker", TRANSLATIONS)
def test_rules_of_others_that_translate_pods_addresses(lab: HealthLab, maker: str) -> None:
    how, repaired, chain, severity = TRANSLATIONS[maker]
    with broken(lab, "node1", how, repaired):
        found = lab.finding("nat", f"node1: {chain}", "translates addresses of")
        among_pods = not lab.carries or maker == "redirect"
        assert found["severity"] == (severity if among_pods else "warning")
        lab.sh("node1", found["advice"])
        assert [one for one in lab.doctor()["findings"] if one["check"] == "nat"] == []


def test_translations_that_spare_pods_and_nodes_are_no_finding(lab: HealthLab) -> None:
    how = """nft 'table ip x { chain p { type nat hook postrouting priority 100;
        meta mark & 0x4000 == 0x4000 masquerade
        ip saddr 10.244.0.0/16 ip daddr != { 10.244.0.0/16, 172.30.0.0/16 } masquerade; }
        chain s { type nat hook prerouting priority -100;
        ip daddr 10.96.0.1 tcp dport 443 dnat to 10.244.0.9:6443
        tcp dport 30080 dnat to 10.244.0.9:80; }; }'"""
    with broken(lab, "node1", how, "nft delete table ip x"):
        assert lab.doctor()["findings"] == []


def test_a_firewall_that_lets_pods_pass_is_no_finding(lab: HealthLab) -> None:
    how = """nft 'table inet x { chain f { type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "eth0" accept
        ip saddr 10.244.0.0/16 accept
        ip6 saddr fd00:244::/56 accept
        ip saddr 203.0.113.0/24 drop
        limit rate 5/second drop; }; }'"""
    with broken(lab, "node1", how, "nft delete table inet x"):
        assert lab.doctor()["findings"] == []


def test_a_path_that_drops_large_packets(lab: HealthLab) -> None:
    lab.fabric("ip link set port2 mtu 1400")
    try:
        # A bridge's port passes 4 bytes more than its MTU, for a VLAN tag (__is_skb_forwardable, net/core/dev.c).
        finding = lab.finding("path-mtu", "node1 - node2", "up to 1404 bytes pass (IPv4, IPv6)", "nobody says so")
        assert "ping -M do -s 1472 172.30.0." in finding["advice"]
        assert [one["check"] for one in lab.doctor()["findings"]] == ["path-mtu"], "one cause is told once"
    finally:
        lab.fabric("ip link set port2 mtu 1500")


def test_nodes_of_different_mtu(lab: HealthLab) -> None:
    with broken(lab, "node2", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"):
        lab.finding("mtu-apart", "", "1400 on node2 and more on node1", "spec.mtu")


def test_ping_filtered_between_nodes(lab: HealthLab) -> None:
    how = (
        "nft 'add table inet x; add chain inet x i { type filter hook input priority 0; }; "
        "add rule inet x i icmp type echo-request drop'"
    )
    with broken(lab, "node2", how, "nft delete table inet x"):
        lab.finding("ping", "node1: to node2", "no answer to ICMP echo from 172.30.0.2")


def test_a_device_whose_subnet_overlaps_a_pool(lab: HealthLab) -> None:
    with other_device(lab, "10.244.200.1/24"):
        lab.finding("overlap", "node1: br9", "10.244.200.0/24 overlaps IPPool/")


def test_a_device_whose_subnet_holds_another_node(lab: HealthLab) -> None:
    with other_device(lab, "172.30.0.14/28"):
        lab.finding("overlap", "node1: br9", "holds 172.30.0.2, the address of node node2")


@pytest.mark.parametrize("metric", ["metric 1", "more specific"])
def test_a_second_owner_of_a_route(lab: HealthLab, metric: str) -> None:
    block = lab.block("node2")
    route = f"{block} via 198.51.100.9 dev br9 metric 1" if metric == "metric 1" else f"{block[:-5]}.77/32 dev br9"
    destination = route.partition(" ")[0]
    with other_device(lab), broken(lab, "node1", f"ip route add {route}", f"ip route del {route}"):
        lab.finding("route-owner", f"node1: route {destination}", "by hand", f"ip route del {destination}")


def test_a_rule_that_leads_pods_packets_elsewhere(lab: HealthLab) -> None:
    block = lab.block("node2")
    how = f"ip route add default dev br9 table 100; ip rule add to {block} table 100 pref 100"
    with other_device(lab), broken(lab, "node1", how, "ip rule del pref 100; ip route flush table 100"):
        lab.finding("route-owner", f"node1: route {block}", "dev br9", "in table 100")


def test_strict_rp_filter_where_ways_differ(lab: HealthLab) -> None:
    route = f"{lab.block('node2')} via 198.51.100.9 dev br9 metric 1"
    how = f"sysctl -qw net.ipv4.conf.all.rp_filter=1; ip route add {route}"
    repaired = f"sysctl -qw net.ipv4.conf.all.rp_filter=0; ip route del {route}"
    with other_device(lab), broken(lab, "node1", how, repaired):
        lab.finding("rp-filter", "node1: eth0", "all 1, eth0 0", "leads through br9", "rp_filter=2")


def test_devices_and_routes_of_another_pod_network(lab: HealthLab) -> None:
    how = (
        "ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0; ip link add cali123 type bridge; "
        "ip link set cali123 up; ip route add 192.0.2.0/24 dev cali123 proto 80"
    )
    with broken(lab, "node1", how, "ip link del flannel.1; ip link del cali123"):
        lab.finding("leftovers", "node1: flannel.1", "Flannel", "ip link delete flannel.1")
        lab.finding("leftovers", "node1: cali123", "Calico")
        lab.finding("leftovers", "node1: route 192.0.2.0/24", "ip route del 192.0.2.0/24 dev cali123")


def test_a_route_in_the_place_of_ours(lab: HealthLab) -> None:
    block = lab.block("node1")
    how = f"ip route del blackhole {block}; ip route add {block} dev br9 proto static"
    with other_device(lab), broken(lab, "node1", how, f"ip route del {block} proto static"):
        lab.finding("drift", "node1", f"route {block} blackhole")


def test_somebody_who_changes_a_setting_again_and_again(lab: HealthLab) -> None:
    try:
        for _ in range(4):
            lab.sh("node1", "sysctl -qw net.ipv4.conf.eth0.forwarding=0; sleep 0.3")
        lab.finding("fight", "node1", "sysctl net/ipv4/conf/eth0/forwarding", "NetworkManager")
    finally:
        lab.restart_agent("node1")


def test_packets_with_wrong_checksums(lab: HealthLab) -> None:
    lab.doctor()  # what was counted before is not counted again
    payload = struct.pack("!HHHH", 40000, 9, 16, 0x1234) + b"12345678"  # a UDP header whose checksum is wrong
    with netns.opened(netns.path_of(names.node_netns(lab.name, "node2"))) as fd:
        sock = netns.run(fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP))
    with sock:
        for _ in range(3):
            sock.sendto(payload, ("172.30.0.1", 0))
    lab.finding("checksums", "node1: eth0", "Udp.InCsumErrors +3", "ethtool -K eth0")
