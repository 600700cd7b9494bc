"""What pods send out of the cluster has their node's address as its source, and nothing else is translated."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podway.api.addresses import Address, Family
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.ip_pool import Attach
from podway.api.kinds.network_config import NatSettings
from podway.api.kinds.node import NAT_ADDRESSES
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.kernel import netns
from podway.plan.guard import NFT_FAMILY
from tests import builders
from tests.kernel.guard_lab import BLOCKS, HERE, POOLS, THERE, GuardLab, Pod, cluster, guard_lab
from tests.namespaces import TestNamespace
from tests.patience import ANSWERED, PATIENCE

pytestmark = pytest.mark.kernel

OUTSIDE = {Family.IPV4: ip_address("203.0.113.9"), Family.IPV6: ip_address("2001:db8:ffff::9")}
"""A host of the fabric that is in none of the cluster's ranges. Unlike others it knows the way to pods, so that
what is not translated arrives as well."""

CHOSEN = {Family.IPV4: ip_address("192.0.2.77"), Family.IPV6: ip_address("2001:db8::77")}
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@pytest.fixture
def lab(new_netns: Callable[[], TestNamespace], attach: Attach) -> Iterator[GuardLab]:
    with guard_lab(new_netns, cluster(attach)) as lab:
        for one, address in OUTSIDE.items():
            nodad = "nodad" if one is Family.IPV6 else ""
            lab.fabric.sh(f"ip addr add {address}/{one.bits} dev lo {nodad}")
            # A solicitation needs a link-local address, unless the device has the packet's; that takes seconds.
            lab.fabric.sh(f"{' '.join(ANSWERED)} -I {THERE[one].ip} {HERE[one].ip}")
        lab.run_pod(new_netns(), 7, attach)
        yield lab


def translated(view: ClusterView, *, on: bool) -> ClusterView:
    """Return the view with `natOutgoing` of all pools on or off."""
    for pool in tuple(view.pools.values()):
        attach = pool.spec.attach
        view = changed(view, builders.pool(pool.metadata.name, pool.spec.cidr, attach=attach, nat_outgoing=on))
    return view


def changed(view: ClusterView, obj: Resource) -> ClusterView:
    return view.after(view.change(obj))


@contextlib.contextmanager
def serving(lab: GuardLab, address: Address, kind: str) -> Iterator[socket.socket]:
    """Have a server of the fabric at an address while the block runs."""
    with _socket(lab.fabric, address, kind) as server:
        server.bind((str(address), 0))
        if kind == "tcp":
            server.listen()
        yield server


def _socket(namespace: TestNamespace, address: Address, kind: str) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = netns.run(namespace.fd, lambda: socket.socket(family, KINDS[kind]))
    sock.settimeout(PATIENCE)
    return sock


def source_seen(lab: GuardLab, pod: Pod, destination: Address, kind: str) -> tuple[Address, int, int]:
    """Talk from a pod to an address of the fabric; return address and port seen there, and the pod's own port."""
    with serving(lab, destination, kind) as server, _socket(pod.netns, destination, kind) as client:
        client.connect(server.getsockname()[:2])
        client.send(b"who am I?")
        if kind == "tcp":
            conversation, peer = server.accept()
            with conversation:
                conversation.settimeout(PATIENCE)
                assert conversation.recv(99) == b"who am I?"
                conversation.send(str(peer[0]).encode())
        else:
            request, peer = server.recvfrom(99)
            assert request == b"who am I?"
            server.sendto(str(peer[0]).encode(), peer)
        assert client.recv(99).decode() == peer[0]
        return ip_address(peer[0]), peer[1], client.getsockname()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pods_packets_leave_the_cluster_from_the_nodes_address(lab: GuardLab, family: Family, kind: str) -> None:
    pod = lab.pods[0]
    ports = [source_seen(lab, pod, OUTSIDE[family], kind) for _ in range(4)]
    assert {address for address, *_ in ports} == {HERE[family].ip}
    # Spread at random: of four not one may be the pod's own by chance.
    assert [seen == own for _, seen, own in ports].count(True) <= 1
    pod.netns.sh(f"ping -n -q -c 1 -W {PATIENCE:g} {OUTSIDE[family]}")


@pytest.mark.parametrize("kind", KINDS)
def test_between_pods_and_nodes_nothing_is_translated(lab: GuardLab, family: Family, kind: str) -> None:
    pod = lab.pods[0]
    other_pod = ip_network(BLOCKS[family][1]).network_address + 7
    for destination in (other_pod, THERE[family].ip):
        address, port, own = source_seen(lab, pod, destination, kind)
        assert (address, port) == (pod.address[family], own)


def test_a_node_that_joins_or_moves_is_reached_untranslated_at_once(lab: GuardLab, family: Family) -> None:
    pod, new = lab.pods[0], OUTSIDE[family]
    assert source_seen(lab, pod, new, "udp")[0] == HERE[family].ip
    joined = builders.node("new", f"{new}/{family.bits}")
    lab.follow(changed(lab.view, joined))
    writes = lab.kernel.writes
    assert source_seen(lab, pod, new, "udp")[0] == pod.address[family]
    moved = builders.node("new", f"{CHOSEN[family]}/{family.bits}")
    lab.follow(changed(lab.view, moved))
    assert source_seen(lab, pod, new, "udp")[0] == HERE[family].ip
    assert lab.kernel.writes > writes
    table = lab.node.sh(f"nft list set {NFT_FAMILY[family]} podway-nat nodes")
    assert str(new) not in table
    assert str(CHOSEN[family]) in table


@pytest.mark.parametrize("reason", ["excluded", "services", "peer"])
def test_networks_that_are_stated_are_reached_untranslated(lab: GuardLab, family: Family, reason: str) -> None:
    pod, address = lab.pods[0], OUTSIDE[family]
    around = str(family.network(int(address) & ~0xFF, family.bits - 8))
    stated: dict[str, Resource] = {
        "excluded": builders.config(nat=NatSettings(excluded=(around,))),
        "services": builders.config(service_cidrs=(around,)),
        "peer": BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(address=str(address), asn=65001)),
    }
    lab.follow(changed(lab.view, stated[reason]))
    assert source_seen(lab, pod, address, "tcp")[0] == pod.address[family]
    lab.follow(lab.view.after(Change.of(stated[reason], None)))
    assert source_seen(lab, pod, address, "tcp")[0] == HERE[family].ip


def test_a_node_may_have_an_address_for_it(lab: GuardLab, family: Family) -> None:
    pod = lab.pods[0]
    for one, address in CHOSEN.items():
        lab.node.sh(f"ip addr add {address}/{one.bits} dev lo {'nodad' if one is Family.IPV6 else ''}")
        lab.fabric.sh(f"ip route add {address} via {HERE[one].ip}")
    notes = {NAT_ADDRESSES: ",".join(map(str, CHOSEN.values()))}
    lab.follow(changed(lab.view, builders.node("here", *map(str, HERE.values()), notes=notes)))
    assert source_seen(lab, pod, OUTSIDE[family], "tcp")[0] == CHOSEN[family]
    assert source_seen(lab, pod, THERE[family].ip, "tcp")[0] == pod.address[family]


def test_a_pool_that_does_not_ask_for_it_is_left_alone(lab: GuardLab, family: Family) -> None:
    pod = lab.pods[0]
    (name,) = (name for name, pool in lab.view.pools.items() if pool.family is family)
    attach = lab.view.pools[name].spec.attach
    lab.follow(changed(lab.view, builders.pool(name, POOLS[family], attach=attach, nat_outgoing=False)))
    assert source_seen(lab, pod, OUTSIDE[family], "tcp")[0] == pod.address[family]
    assert "chain" not in lab.node.sh(f"nft list table {NFT_FAMILY[family]} podway-nat")
    (other,) = (one for one in Family if one is not family)
    assert source_seen(lab, pod, OUTSIDE[other], "tcp")[0] == HERE[other].ip


def test_connections_to_and_from_pods_outlive_the_switch(lab: GuardLab, family: Family) -> None:
    """Of what was begun before it tracked connections the kernel sees an answer first, and must not mistake it."""
    pod, outside = lab.pods[0], OUTSIDE[family]
    lab.follow(translated(lab.view, on=False))
    with (
        _socket(pod.netns, pod.address[family], "tcp") as server,
        _socket(lab.fabric, outside, "tcp") as inward,
        serving(lab, outside, "tcp") as listener,
        _socket(pod.netns, outside, "tcp") as outward,
    ):
        server.bind((str(pod.address[family]), 0))
        server.listen()
        inward.bind((str(outside), 0))
        inward.connect(server.getsockname()[:2])
        serves, _ = server.accept()
        outward.connect(listener.getsockname()[:2])
        served, _ = listener.accept()
        with serves, served:
            for sock in (serves, served):
                sock.settimeout(PATIENCE)
            for on in (True, False, True):
                lab.follow(translated(lab.view, on=on))
                _talk(serves, inward)
                _talk(outward, served)
            # ... while a connection that is begun now is translated, and outlives every change but the end of all.
            with serving(lab, outside, "tcp") as other, _socket(pod.netns, outside, "tcp") as client:
                client.connect(other.getsockname()[:2])
                conversation, peer = other.accept()
                with conversation:
                    assert ip_address(peer[0]) == HERE[family].ip
                    conversation.settimeout(PATIENCE)
                    lab.follow(changed(lab.view, builders.config(service_cidrs=("198.18.0.0/15",))))
                    lab.follow(changed(lab.view, builders.node("new", "198.51.100.7/32")))
                    _talk(client, conversation)


def _talk(first: socket.socket, second: socket.socket) -> None:
    """Send something both ways."""
    for one, other in ((first, second), (second, first)):
        one.send(b"still there?")
        assert other.recv(99) == b"still there?"


@pytest.mark.parametrize(
    "damage",
    [
        "nft delete table {ip} podway-nat",
        "nft flush chain {ip} podway-nat leaving",
        "nft delete element {ip} podway-nat nodes '{{ {there} }}'",
        "nft flush ruleset",
    ],
)
def test_what_somebody_does_to_the_table_is_put_right(lab: GuardLab, family: Family, damage: str) -> None:
    assert lab.kernel.diff(lab.plan()) == []
    lab.node.sh(damage.format(ip=NFT_FAMILY[family], there=THERE[family].ip))
    assert lab.kernel.diff(lab.plan()) != []
    assert lab.kernel.apply(lab.plan()).failures == ()
    assert lab.kernel.diff(lab.plan()) == []
    test_a_pods_packets_leave_the_cluster_from_the_nodes_address(lab, family, "udp")
    test_between_pods_and_nodes_nothing_is_translated(lab, family, "udp")


@pytest.mark.parametrize("outside", [False, True])
def test_beside_rules_for_services_like_kube_proxys(lab: GuardLab, family: Family, *, outside: bool) -> None:
    """A Service's endpoint is a pod of another node, or a host outside."""
    pod, ip = lab.pods[0], NFT_FAMILY[family]
    service = {Family.IPV4: ip_address("10.96.0.10"), Family.IPV6: ip_address("fd00:96::10")}[family]
    endpoint = OUTSIDE[family] if outside else ip_network(BLOCKS[family][1]).network_address + 7
    lab.follow(changed(lab.view, builders.config(service_cidrs=("10.96.0.0/12", "fd00:96::/112"))))
    lab.node.sh(
        f"nft -f - <<'END'\ntable {ip} kube-proxy {{\n"
        f"chain service {{ type nat hook prerouting priority dstnat; {ip} daddr {service} dnat to {endpoint}; }}\n"
        "chain outgoing { type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade; }\n"
        "}\nEND"
    )
    with serving(lab, endpoint, "tcp") as server, _socket(pod.netns, service, "tcp") as client:
        client.connect((str(service), server.getsockname()[1]))
        conversation, peer = server.accept()
        with conversation:
            conversation.settimeout(PATIENCE)
            _talk(client, conversation)
        assert ip_address(peer[0]) == (HERE[family].ip if outside else pod.address[family])


def test_the_nodes_own_packets_are_not_looked_at(lab: GuardLab, family: Family) -> None:
    """Also not those from an address of a pool, such as the bridge's."""
    own = ip_network(BLOCKS[family][0]).network_address + 1
    lab.node.sh(f"ip addr add {own}/{family.bits} dev lo {'nodad' if family is Family.IPV6 else ''}")
    with lab.node.udp(own) as client, serving(lab, OUTSIDE[family], "udp") as server:
        client.sendto(b"hello", server.getsockname()[:2])
        _, peer = server.recvfrom(99)
        assert ip_address(peer[0]) == own


@pytest.mark.parametrize("encapsulations", ["", "vxlan"])
def test_outer_packets_of_vxlan_are_not_tracked(
    new_netns: Callable[[], TestNamespace], encapsulations: Any
) -> None:
    view = cluster("routed", encapsulations)
    for pool in tuple(view.pools.values()):
        spec = {"encapsulation": encapsulations} if encapsulations else {}
        view = changed(view, builders.pool(pool.metadata.name, pool.spec.cidr, **spec))
    with guard_lab(new_netns, view) as lab:
        with lab.node.udp(HERE[Family.IPV4].ip) as sock:
            sock.sendto(b"outer", (str(THERE[Family.IPV4].ip), 4789))
            sock.sendto(b"other", (str(THERE[Family.IPV4].ip), 4790))
        tracked = lab.node.sh("cat /proc/net/nf_conntrack; conntrack -L 2>/dev/null || true")
        assert "dport=4790" in tracked
        assert ("dport=4789" in tracked) == (not encapsulations)
