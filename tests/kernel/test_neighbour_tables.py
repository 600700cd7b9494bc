"""Neighbours that a pod invents: the kernel keeps 1,024 for the whole machine, so none may be a pod's to make."""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

import pytest

from podway.api.addresses import Family
from podway.api.kinds.ip_pool import Attach
from podway.kernel import netns
from podway.plan.host_facts import HostFacts
from podway.plan.wiring import GATEWAY_MAC
from tests.kernel.guard_lab import (
    HERE,
    ROUTER,
    THERE,
    GuardLab,
    Pod,
    cluster,
    ethernet,
    guard_lab,
    icmp,
    ip_packet,
    udp,
)
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel

MANY = 200
BROADCAST, ALL_SOLICITED = "ff:ff:ff:ff:ff:ff", "33:33:ff:00:00:01"
GATEWAY = ip_address("fe80::1")


@pytest.fixture(params=["0", "2"], ids=["strict", "loose"])
def lab(
    request: pytest.FixtureRequest, new_netns: Callable[[], TestNamespace], attach: Attach
) -> Iterator[GuardLab]:
    with guard_lab(new_netns, cluster(attach), HostFacts(all_rp_filter=request.param)) as lab:
        lab.run_pod(new_netns(), 7, attach)
        yield lab


def flood(pod: Pod, kind: int, packets: Iterable[bytes], to: str = GATEWAY_MAC) -> None:
    with netns.run(pod.netns.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as sock:
        sock.bind(("eth0", 0))
        for packet in packets:
            sock.send(ethernet(to, pod.mac, kind, packet))


def neighbours(lab: GuardLab, family: Family) -> set[str]:
    """Return whom the node has asked for or heard of; not those that are permanent, nor multicast."""
    lines = lab.node.sh(f"ip -{family.value} neigh show nud all").splitlines()
    return {line.split()[0] for line in lines if "PERMANENT" not in line and "NOARP" not in line}


def test_invented_sources_make_no_neighbours(lab: GuardLab) -> None:
    (pod,) = lab.pods
    before = {family: neighbours(lab, family) for family in Family}
    invented = [ip_address("fe80::5:0") + number for number in range(MANY)]
    option = bytes([1, 1]) + bytes.fromhex(pod.mac.replace(":", ""))
    asks = icmp(Family.IPV6, (135, 0), bytes(4), GATEWAY.packed + option)
    flood(pod, 0x86DD, [ip_packet(s, "ff02::1:ff00:1", 58, asks, hop_limit=255) for s in invented], ALL_SOLICITED)
    echo = icmp(Family.IPV6, (128, 0), bytes(4))
    flood(pod, 0x86DD, [ip_packet(s, GATEWAY, 58, echo) for s in invented])
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes.fromhex(pod.mac.replace(":", ""))
    gateway = ip_address("169.254.1.1") if pod.lease.attach == "routed" else pod.address[Family.IPV4] - 6
    sources = [ip_address("10.9.0.1") + number for number in range(MANY)]
    flood(pod, 0x0806, [head + s.packed + bytes(6) + gateway.packed for s in sources], BROADCAST)
    assert {family: neighbours(lab, family) for family in Family} == before
    # The pod itself finds its gateway.
    pod.netns.sh("ip neigh flush all nud permanent; ip -6 neigh flush all nud permanent")
    for family in Family:
        pod.netns.sh(f"ping -n -c 2 -i 0.1 -W 5 {HERE[family].ip}")


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_invented_destinations_make_few_neighbours(lab: GuardLab, family: Family) -> None:
    (pod,) = lab.pods
    kind = 0x0800 if family is Family.IPV4 else 0x86DD
    before = neighbours(lab, family)
    scanned = [HERE[family].ip + 9 + number for number in range(MANY)]
    for protocol in (17, 6):
        body = udp(1, 2) if protocol == 17 else struct.pack("!HHIIBBHHH", 1, 2, 0, 0, 0x50, 2, 9, 0, 0)
        flood(pod, kind, [ip_packet(pod.address[family], target, protocol, body) for target in scanned])
    if family is Family.IPV6:
        flood(pod, kind, [ip_packet(pod.address[family], GATEWAY + 9 + n, 17, udp(1, 2)) for n in range(MANY)])
    made = neighbours(lab, family) - before
    assert 0 < len(made) < MANY / 2
    assert lab.kernel.diff(lab.plan()) == []
    # What lies beyond routers is asked of nobody, and whom the pod has spoken with goes on answering.
    beyond = [ip_address("203.0.113.1" if family is Family.IPV4 else "2001:db8:9::1") + n for n in range(MANY)]
    flood(pod, kind, [ip_packet(pod.address[family], target, 17, udp(1, 2)) for target in beyond])
    assert not neighbours(lab, family) & set(map(str, beyond))


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_whom_a_pod_speaks_with_it_reaches_also_while_it_scans(lab: GuardLab, family: Family) -> None:
    (pod,) = lab.pods
    for site in (THERE, ROUTER):
        pod.netns.sh(f"ping -n -c 1 -W 5 {site[family].ip}")
    kind = 0x0800 if family is Family.IPV4 else 0x86DD
    flood(pod, kind, [ip_packet(pod.address[family], HERE[family].ip + 9 + n, 17, udp(1, 2)) for n in range(MANY)])
    for site in (THERE, ROUTER):
        pod.netns.sh(f"ping -n -c 1 -W 5 {site[family].ip}")


def test_a_gateway_that_an_older_agent_made_wider_is_put_right(new_netns: Callable[[], TestNamespace]) -> None:
    with guard_lab(new_netns, cluster()) as lab:
        link = lab.run_pod(new_netns(), 7).wiring.link.name
        lab.node.sh(f"ip -6 addr del fe80::1/128 dev {link}; ip -6 addr add fe80::1/64 dev {link} nodad")
        lab.kernel.apply(lab.plan())
        assert lab.kernel.apply(lab.plan()).failures == ()
        assert lab.kernel.diff(lab.plan()) == []
