"""What a node takes from its pods: real packets by raw sockets, each beside its lawful counterpart that passes."""

import secrets
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

from podway.api.addresses import Family
from podway.api.kinds.ip_pool import Attach
from podway.kernel.node import Kernel
from podway.plan.objects import NodePlan
from podway.plan.wiring import GATEWAY_MAC
from podway.probe.packet import internet_checksum
from tests.kernel.guard_lab import (
    BLOCKS,
    HERE,
    REDIRECT,
    ROUTER,
    THERE,
    GuardLab,
    cluster,
    guard_lab,
    icmp_error,
    ip_packet,
    listening,
    mac_of,
    send_frame,
    udp,
)
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel

BFD = 3784


@pytest.fixture
def lab(new_netns: Callable[[], TestNamespace], attach: Attach) -> Iterator[GuardLab]:
    with guard_lab(new_netns, cluster(attach)) as lab:
        for number in (7, 8):
            lab.run_pod(new_netns(), number, attach)
        yield lab


def test_a_pods_error_about_what_the_node_sent_to_another_node_changes_no_path_mtu(
    lab: GuardLab, family: Family
) -> None:
    pod, other = lab.pods[0], THERE[family].ip
    with lab.node.udp(HERE[family].ip) as sock:
        port = sock.getsockname()[1]
        quoted = ip_packet(HERE[family].ip, other, 17, udp(port, BFD, b"x" * 64))
        pod.send(icmp_error(family, pod.address[family], HERE[family].ip, quoted))
        pod.send(icmp_error(family, pod.address[family], HERE[family].ip, quoted, REDIRECT[family]))
        assert not lab.narrowed(other)
        # A router of the fabric is believed.
        packet = icmp_error(family, ROUTER[family].ip, HERE[family].ip, quoted)
        send_frame(lab.fabric, packet, mac_of(lab.node), mac_of(lab.fabric))
        assert lab.narrowed(other)


def test_a_pods_error_about_what_was_sent_to_it_is_believed(lab: GuardLab, family: Family) -> None:
    pod = lab.pods[0]
    with lab.node.udp(HERE[family].ip) as sock:
        port, own = sock.getsockname()[1], pod.address[family]
        quoted = ip_packet(HERE[family].ip, own, 17, udp(port, 9, b"x" * 64))
        pod.send(icmp_error(family, own, HERE[family].ip, quoted))
        assert lab.narrowed(own)
        sock.connect((str(own), 9))
        sock.send(b"x")  # nobody listens there: the pod's kernel says so
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


@pytest.mark.parametrize("victim", ["another pod of the node", "a pod of another node"])
def test_a_pods_error_about_what_others_exchange_reaches_nobody(
    lab: GuardLab, family: Family, victim: str
) -> None:
    pod, near = lab.pods
    far = ip_network(BLOCKS[family][1]).network_address + 7
    target, where = (near.address[family], near.netns) if victim.startswith("another") else (far, lab.fabric)
    mark = secrets.token_bytes(8)
    forged = ip_packet(target, THERE[family].ip, 17, udp(1, 2, mark))
    lawful = ip_packet(target, pod.address[family], 17, udp(1, 2, mark))
    bridged = near.lease.attach == "bridge" and where is near.netns
    to = near.mac if bridged else GATEWAY_MAC
    with listening(where) as heard:
        pod.send(icmp_error(family, pod.address[family], target, forged), to)
        assert not heard.has(mark, 0.3)
        pod.send(icmp_error(family, pod.address[family], target, lawful), to)
        assert heard.has(mark, 5)


def test_an_error_in_fragments_is_no_way_round(lab: GuardLab) -> None:
    """The first fragment tells that it is an error, and quotes nothing."""
    pod, family = lab.pods[0], Family.IPV4
    with lab.node.udp(HERE[family].ip) as sock:
        quoted = ip_packet(HERE[family].ip, THERE[family].ip, 17, udp(sock.getsockname()[1], BFD, b"x" * 64))
        whole = icmp_error(family, pod.address[family], HERE[family].ip, quoted)
        for first, last in ((0, 8), (8, len(whole) - 20)):
            part = ip_packet(pod.address[family], HERE[family].ip, 1, whole[20 + first : 20 + last])
            field = (first // 8) | (0x2000 if first == 0 else 0)
            head = part[:6] + struct.pack("!H", field) + part[8:10] + b"\0\0" + part[12:20]
            head = head[:10] + internet_checksum(head).to_bytes(2, "big") + head[12:]
            pod.send(head + part[20:])
        assert not lab.narrowed(THERE[family].ip)


@pytest.mark.parametrize("encapsulation", ["vxlan", "ipip"])
def test_a_pods_packets_in_the_form_of_a_tunnel_reach_no_node(
    new_netns: Callable[[], TestNamespace], attach: Attach, family: Family, encapsulation: str
) -> None:
    """Also where the sending node only takes the encapsulation off any more."""
    with guard_lab(new_netns, cluster(attach, encapsulations=encapsulation)) as lab:
        pod, far = lab.run_pod(new_netns(), 7, attach), ip_network(BLOCKS[family][1]).network_address + 7
        for target, arrives in ((THERE[family].ip, False), (ROUTER[family].ip, True), (far, True)):
            mark = secrets.token_bytes(8)
            protocol, body = (17, udp(5, 4789, mark)) if encapsulation == "vxlan" else (4, b"E" * 40 + mark)
            with listening(lab.fabric) as heard:
                pod.send(ip_packet(pod.address[family], target, protocol, body))
                assert heard.has(mark, 5 if arrives else 0.3) is arrives


TAMPERINGS = {
    "nft delete table ip podway": "nft table ip podway is missing",
    "nft flush chain ip6 podway control": "nft table ip6 podway is altered",
    "nft delete element ip podway nodes '{ 192.0.2.2 }'": "element 192.0.2.2 of nft set",
    "nft add element ip6 podway nodes '{ 2001:db8::9 }'": "2001:db8::9 of nft set ip6 podway nodes is not in",
    "nft flush set ip6 podway nodes": "element 2001:db8::2 of nft set ip6 podway nodes is missing",
    "nft add table bridge podway": "nft table bridge podway is not in the plan",
}


@pytest.mark.parametrize("command", TAMPERINGS)
def test_rules_that_somebody_changes_are_told_and_put_right(
    new_netns: Callable[[], TestNamespace], command: str
) -> None:
    with guard_lab(new_netns, cluster(encapsulations="vxlan")) as lab:
        lab.run_pod(new_netns(), 7)
        lab.node.sh(command)
        plan = lab.plan()
        assert TAMPERINGS[command] in "\n".join(change.difference for change in lab.kernel.diff(plan))
        assert lab.kernel.apply(plan).failures == ()
        with Kernel.open(lab.node.fd) as again:
            assert again.diff(plan) == []
            assert (again.apply(plan).changes, again.writes) == ((), 0)
        assert lab.kernel.apply(NodePlan()).failures == ()
        assert "podway" not in lab.node.sh("nft list tables")


def test_nodes_come_and_go_without_a_table_loaded_anew(new_netns: Callable[[], TestNamespace]) -> None:
    """Counters that go on tell so."""
    with guard_lab(new_netns, cluster(encapsulations="vxlan")) as lab:
        pod = lab.run_pod(new_netns(), 7)
        for count in (1, 2):
            pod.send(ip_packet(pod.address[Family.IPV4], THERE[Family.IPV4].ip, 17, udp(5, 4789)))
            assert lab.dropped("ip podway", "pod") == count
            lab.follow(cluster(encapsulations="vxlan", more=[ROUTER]))
            assert str(ROUTER[Family.IPV6].ip) in lab.node.sh("nft list set ip6 podway nodes")
            lab.follow(cluster(encapsulations="vxlan"))
            assert str(ROUTER[Family.IPV6].ip) not in lab.node.sh("nft list set ip6 podway nodes")
