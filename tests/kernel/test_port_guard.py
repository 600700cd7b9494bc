"""What a bridge takes from its ports: forged frames beside lawful ones, without br_netfilter's help."""

import secrets
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podway.api.addresses import Address, Family
from tests.kernel.guard_lab import (
    HERE,
    THERE,
    GuardLab,
    cluster,
    guard_lab,
    icmp,
    icmp_error,
    ip_packet,
    listening,
    udp,
)
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel

ARP, REQUEST, REPLY = 0x0806, 1, 2
ALL_NODES = ("ff02::1", "33:33:00:00:00:01")
BROADCAST = "ff:ff:ff:ff:ff:ff"
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, SOLICITATION, ADVERTISEMENT, NEIGHBOUR_REDIRECT = (
    133,
    134,
    135,
    136,
    137,
)
SOURCE_LINK_LAYER, TARGET_LINK_LAYER = 1, 2


@pytest.fixture
def lab(new_netns: Callable[[], TestNamespace]) -> Iterator[GuardLab]:
    with guard_lab(new_netns, cluster("bridge")) as lab:
        lab.node.sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done")
        for number in (7, 8, 9):
            lab.run_pod(new_netns(), number, "bridge")
        yield lab


def arrives(
    lab: GuardLab, packet: bytes, part: bytes, *, to: str = "", kind: int = 0, wait: float = 0.0, **how: Any
) -> bool:
    """Tell whether what the first pod sends to a hardware address, the second pod's by default, arrives there."""
    pod, other = lab.pods[:2]
    with listening(other.netns) as heard:
        pod.send(packet, to or other.mac, kind=kind, **how)
        return heard.has(part, wait or 0.3)


def arp(operation: int, mac: str, source: Address, target: Address) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + bytes.fromhex(mac.replace(":", "")) + source.packed + bytes(6) + target.packed


def discovery(
    kind: int, source: Address, target: Address, *options: tuple[int, str], destination: str = ALL_NODES[0]
) -> bytes:
    """A message of neighbour discovery about a target, with link-layer address options."""
    rest = b"".join(bytes([number, 1]) + bytes.fromhex(mac.replace(":", "")) for number, mac in options)
    body = icmp(Family.IPV6, (kind, 0), bytes(4), target.packed + rest)
    return ip_packet(source, destination, 58, body, hop_limit=255)


def test_pods_of_the_bridge_find_each_other(lab: GuardLab, family: Family) -> None:
    """By ARP and neighbour discovery of their own kernels, also after they forgot all."""
    first, second, _ = lab.pods
    for pod in (first, second):
        pod.netns.sh("ip neigh flush all; ip -6 neigh flush all")
    first.netns.sh(f"ping -n -c 3 -i 0.05 -W 5 {second.address[family]}")
    second.netns.sh(f"ping -n -c 3 -i 0.05 -W 5 {HERE[family].ip}")
    # An address of its own that is checked for duplicates (RFC 5227, RFC 4862) stays the pod's.
    if family is Family.IPV6:
        first.netns.sh(f"ip -6 addr del {first.address[family]}/122 dev eth0")
        first.netns.sh(f"ip -6 addr add {first.address[family]}/122 dev eth0")
        first.netns.sh(
            "for n in $(seq 100); do ip -6 addr show dev eth0 tentative | grep -q inet || exit 0; sleep .1; done;"
            "exit 1"
        )
        second.netns.sh(f"ping -n -c 1 -W 5 {first.address[family]}")


@pytest.mark.parametrize("source", ["own", "another pod's", "nobody's", "another node's"])
def test_a_source_that_is_not_the_pods_reaches_no_other_pod(lab: GuardLab, family: Family, source: str) -> None:
    pod, other, third = lab.pods
    sources = {
        "own": pod.address[family],
        "another pod's": third.address[family],
        "nobody's": pod.address[family] + 40,
        "another node's": THERE[family].ip,
    }
    mark = secrets.token_bytes(8)
    packet = ip_packet(sources[source], other.address[family], 17, udp(5, 6, mark))
    assert arrives(lab, packet, mark, wait=5 if source == "own" else 0.3) is (source == "own")


def test_the_answers_of_a_dhcp_server_are_not_a_pods_to_give(lab: GuardLab, family: Family) -> None:
    pod, other, _ = lab.pods
    ports = {Family.IPV4: (67, 68), Family.IPV6: (547, 546)}[family]
    for source_port, lawful in ((ports[0], False), (ports[1], True)):
        mark = secrets.token_bytes(8)
        packet = ip_packet(pod.address[family], other.address[family], 17, udp(source_port, ports[1], mark))
        assert arrives(lab, packet, mark, wait=5 if lawful else 0.3) is lawful


def test_an_error_about_what_others_exchange_does_not_cross_the_bridge(lab: GuardLab, family: Family) -> None:
    pod, other, third = lab.pods
    for destination, lawful in ((third, False), (pod, True)):
        mark = secrets.token_bytes(8)
        quoted = ip_packet(other.address[family], destination.address[family], 17, udp(1, 2, mark))
        error = icmp_error(family, pod.address[family], other.address[family], quoted)
        assert arrives(lab, error, mark, wait=5 if lawful else 0.3) is lawful


def test_arp_speaks_only_of_the_pod_itself(lab: GuardLab) -> None:
    pod, other, third = lab.pods
    own, foreign = pod.address[Family.IPV4], third.address[Family.IPV4]
    gateway, asked, nobody = pod.address[Family.IPV4] - 6, other.address[Family.IPV4], type(own)(0)
    lawful = {
        "a request": (REQUEST, pod.mac, own, asked),
        "an answer": (REPLY, pod.mac, own, asked),
        "an announcement": (REQUEST, pod.mac, own, own),
        "a probe": (REQUEST, pod.mac, nobody, own),
    }
    forged = {
        "another pod's address": (REPLY, pod.mac, foreign, asked),
        "the gateway's address": (REPLY, pod.mac, gateway, asked),
        "a request from another": (REQUEST, pod.mac, foreign, asked),
        "another pod's hardware address": (REPLY, third.mac, own, asked),
        "another pod's both": (REPLY, third.mac, foreign, asked),
        "a probe for another's address": (REQUEST, pod.mac, nobody, foreign),
        "an answer from no address": (REPLY, pod.mac, nobody, own),
    }
    for what, said in {**lawful, **forged}.items():
        packet = arp(*said)
        for to in (other.mac, BROADCAST):
            found = arrives(lab, packet, packet, to=to, kind=ARP, wait=5 if what in lawful else 0.15)
            assert found is (what in lawful), what


def test_neighbour_discovery_speaks_only_of_the_pod_itself(lab: GuardLab) -> None:
    pod, other, third = lab.pods
    own, asked, foreign = (each.address[Family.IPV6] for each in lab.pods)
    nobody = type(own)(0)
    lawful = {
        "an advertisement": discovery(ADVERTISEMENT, own, own, (TARGET_LINK_LAYER, pod.mac)),
        "an advertisement without option": discovery(ADVERTISEMENT, own, own),
        "one of the link-local address": discovery(ADVERTISEMENT, pod.link_local, pod.link_local),
        "a solicitation": discovery(SOLICITATION, own, asked, (SOURCE_LINK_LAYER, pod.mac)),
        "a solicitation without option": discovery(SOLICITATION, pod.link_local, asked),
        "a check for duplicates": discovery(SOLICITATION, nobody, own),
        "a router solicitation": discovery(ROUTER_SOLICITATION, pod.link_local, own),
    }
    forged = {
        "another pod's address": discovery(ADVERTISEMENT, own, foreign, (TARGET_LINK_LAYER, pod.mac)),
        "the gateway's address": discovery(ADVERTISEMENT, own, type(own)("fe80::1"), (TARGET_LINK_LAYER, pod.mac)),
        "another's hardware address": discovery(ADVERTISEMENT, own, own, (TARGET_LINK_LAYER, third.mac)),
        "two options": discovery(
            ADVERTISEMENT, own, own, (TARGET_LINK_LAYER, pod.mac), (TARGET_LINK_LAYER, third.mac)
        ),
        "an option of another kind": discovery(ADVERTISEMENT, own, own, (SOURCE_LINK_LAYER, pod.mac)),
        "a solicitation from another": discovery(SOLICITATION, foreign, asked, (SOURCE_LINK_LAYER, pod.mac)),
        "a solicitation that misleads": discovery(SOLICITATION, own, asked, (SOURCE_LINK_LAYER, third.mac)),
        "an invented link-local address": discovery(SOLICITATION, type(own)("fe80::5"), asked),
        "a check for another's address": discovery(SOLICITATION, nobody, foreign),
        "a router advertisement": discovery(ROUTER_ADVERTISEMENT, pod.link_local, own),
        "a redirect": discovery(NEIGHBOUR_REDIRECT, pod.link_local, own),
    }
    for what, packet in {**lawful, **forged}.items():
        for to in (other.mac, ALL_NODES[1]):
            found = arrives(lab, packet, packet[40:], to=to, wait=5 if what in lawful else 0.15)
            assert found is (what in lawful), what


def test_a_router_advertisement_changes_no_neighbour(lab: GuardLab) -> None:
    """As it did: default route, MTU and a prefix of the attacker's choice."""
    pod, other, _ = lab.pods
    other.netns.sh("echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra")
    before = other.netns.sh("ip -6 route; ip -6 addr show dev eth0")
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 9000, 9000, 0) + type(pod.link_local)("2001:db8:bad::").packed
    mtu = struct.pack("!BBHI", 5, 1, 0, 1280)
    body = icmp(Family.IPV6, (134, 0), struct.pack("!BBH", 64, 0, 1800), bytes(8) + prefix + mtu)
    packet = ip_packet(pod.link_local, ALL_NODES[0], 58, body, hop_limit=255)
    assert not arrives(lab, packet, packet[40:], to=ALL_NODES[1])
    assert other.netns.sh("ip -6 route; ip -6 addr show dev eth0") == before


def test_what_is_neither_ip_nor_arp_stays_in_the_port(lab: GuardLab) -> None:
    _, other, third = lab.pods
    mark = secrets.token_bytes(8)
    forged = ip_packet(third.address[Family.IPV4], other.address[Family.IPV4], 17, udp(5, 6, mark))
    tagged = struct.pack("!HH", 7, 0x0800) + forged
    for kind, packet in ((0x88B5, mark), (0x8100, tagged), (0x88A8, tagged)):
        assert not arrives(lab, packet, mark, kind=kind)


def test_a_pod_that_leaves_leaves_no_word_of_it(lab: GuardLab) -> None:
    pod = lab.pods.pop(0)
    assert hex(int(pod.address[Family.IPV4])) in lab.node.sh("nft list set bridge podway pods4")
    lab.kernel.release(pod.wiring)
    assert lab.kernel.unwire(pod.wiring.link.name)
    assert lab.kernel.diff(lab.plan()) == []
    assert hex(int(pod.address[Family.IPV4])) not in lab.node.sh("nft list set bridge podway pods4")
