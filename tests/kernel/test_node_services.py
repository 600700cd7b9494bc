"""The rules and maps of Services for a node itself, in a namespace: to whom they lead, and what stays."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from typing import Any

import pytest

from podway.api.addresses import Family
from podway.api.kinds.endpoint_slice import EndpointPort
from podway.api.kinds.service import ClientIPConfig, ServicePort, SessionAffinityConfig
from podway.cluster.view import ClusterView
from podway.kernel import netns
from podway.kernel.node import Kernel
from podway.plan.objects import NodePlan
from podway.plan.services import plan_services
from podway.plan.uplink import Uplink
from podway.services.maps import Delta
from podway.services.node_maps import NodeDelta, NodeKey, NodeMaps, difference
from podway.services.planner import ServicePlanner
from tests import builders
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE, eventually
from tests.services.clusters import NODE, VIP, VIP6, endpoint, piece, service

pytestmark = pytest.mark.kernel

OWN = ("192.0.2.1", "2001:db8::1")
BACKENDS = {4: ("192.0.2.11", "192.0.2.12"), 6: ("2001:db8::11", "2001:db8::12")}
FAMILIES = ((4, socket.AF_INET, VIP), (6, socket.AF_INET6, VIP6))


def plan(*pools: str) -> NodePlan:
    """Return the tables of a node that is served, in a cluster with these pools."""
    config = builders.config(services="all", service_cidrs=("10.96.0.0/16", "fd00:96::/112"))
    view = ClusterView.of([config, *(builders.pool(f"pool{n}", cidr) for n, cidr in enumerate(pools))])
    uplink = Uplink("d0", 1500, tuple(ip_interface(f"{one}/{24 if '.' in one else 64}") for one in OWN))
    return NodePlan(tables=plan_services(view, uplink, engine=True).tables)


class Node:
    """A node on which everything is: the client, and two backends at addresses of its own."""

    def __init__(self, node: TestNamespace) -> None:
        self.sh, self.fd = node.sh, node.fd
        self.kernel = Kernel(node.fd)
        self.maps = NodeMaps((4, 6))
        self._planner = ServicePlanner(NODE)
        node.sh(
            "ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up;"
            f"for a in {' '.join((*OWN, *BACKENDS[4], *BACKENDS[6]))}; do ip addr add $a dev d0 nodad; done;"
            "ip route add 10.96.0.0/16 dev d0; ip route add fd00:96::/112 dev d0"
        )
        self.servers = {
            address: self._server(family, address)
            for number, family, _ in FAMILIES
            for address in BACKENDS[number]
        }

    def _server(self, family: int, address: str) -> socket.socket:
        server = netns.run(self.fd, lambda: socket.socket(family))
        server.bind((address, 8080))
        server.listen(64)
        server.setblocking(False)
        return server

    def close(self) -> None:
        for server in self.servers.values():
            server.close()
        self.kernel.close()

    def tell(self, *objects: Any) -> NodeDelta:
        """Have the maps follow objects; return what that changed."""
        for obj in objects:
            self._planner.put(obj)
        delta: Delta = self._planner.settle()
        change = self.maps.change(delta)
        for _ in self.kernel.services.write(change):
            pass
        return change

    def read(self) -> dict[NodeKey, Any]:
        """Return what the kernel's maps have."""
        steps = self.kernel.services.read((Family.IPV4, Family.IPV6))
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: dict[NodeKey, Any] = end.value
                return found

    def led_to(self, family: int, vip: str) -> str:
        """Connect to a Service, and return who was called."""
        with netns.run(self.fd, lambda: socket.socket(family)) as client:
            client.connect((vip, 80))
            called: list[str] = []

            def came() -> bool:
                for address, server in self.servers.items():
                    with contextlib.suppress(BlockingIOError):
                        taken, _ = server.accept()
                        taken.close()
                        called.append(address)
                return bool(called)

            eventually(came)
            (found,) = called
            return found

    def remembered(self) -> int:
        """Return how many clients the kernel remembers."""
        listed = [self.sh(f"nft list map {ip} podway-services affinity") for ip in ("ip", "ip6")]
        return sum(text.count(" expires ") for text in listed)


@pytest.fixture(scope="module")
def node(new_netns_of_file: Callable[[], TestNamespace]) -> Iterator[Node]:
    made = Node(new_netns_of_file())
    assert not made.kernel.apply(plan("10.244.0.0/16")).failures
    yield made
    made.close()


def slices(number: int) -> list[Any]:
    """Return the slices of so many backends."""
    four, six = ([endpoint(one) for one in BACKENDS[version][:number]] for version in (4, 6))
    return [piece("four", *four), piece("six", *six, kind="IPv6")]


def web(seconds: int = 0) -> Any:
    affinity: dict[str, Any] = {}
    if seconds:
        config = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=seconds))
        affinity = {"session_affinity": "ClientIP", "session_affinity_config": config}
    return service("web", cluster_ips=(VIP, VIP6), **affinity)


def test_rules_change_around_what_is_in_the_maps(node: Node) -> None:
    node.tell(web(), *slices(2))
    for _, family, vip in FAMILIES:
        assert {node.led_to(family, vip) for _ in range(32)} == {one for one in node.servers if is_of(one, family)}
    before = node.read()
    assert before == dict(node.maps.entries())
    after = plan("10.244.0.0/16", "10.245.0.0/16", "fd00:245::/64")
    report = node.kernel.apply(after)
    assert {change.key[1] for change in report.changes} == {"podway-services"}
    assert not report.failures
    assert node.read() == before
    assert not node.kernel.apply(after).changes


def is_of(address: str, family: int) -> bool:
    """Tell whether an address is of a socket's family."""
    return (":" in address) == (family == socket.AF_INET6)


def test_what_others_did_to_a_table_is_undone_with_what_is_in_its_maps_if_that_cannot_be_kept(node: Node) -> None:
    wanted, table = plan("10.244.0.0/16"), "ip podway-services"
    node.kernel.apply(wanted)
    node.tell(web(), *slices(2))
    there = node.read()
    for wrong in (
        f"flush chain {table} refuse",
        f"add chain {table} more",
        f"add set {table} odd {{ type mark; }}",
        *(
            f"add chain {table} {name}; add rule {table} {name} return"
            for name in ("keep_x", "keep_07", "keep_4294967296")
        ),
    ):
        node.sh(f"nft '{wrong}'")
        assert node.read() == there
        assert len(node.kernel.apply(wanted).changes) == 1
        assert (node.read(), node.kernel.apply(wanted).changes) == (there, ())
    node.sh(f"nft 'delete table {table}; add table {table}; add map {table} stays {{ type mark : mark; }}'")
    node.kernel.apply(wanted)
    assert {key.version for key in node.read()} == {6}
    assert not node.kernel.apply(wanted).changes
    for _ in node.kernel.services.write(difference(dict(node.maps.entries()), node.read())):
        pass


def test_a_client_stays_until_its_backend_goes_or_the_time_is_over(node: Node) -> None:
    node.tell(web(3600), *slices(2))
    for number, family, vip in FAMILIES:
        (first,) = {node.led_to(family, vip) for _ in range(16)}
        assert first in BACKENDS[number]
    assert node.remembered() == 2
    assert node.tell(*slices(1)).left
    for number, family, vip in FAMILIES:
        assert {node.led_to(family, vip) for _ in range(4)} == {BACKENDS[number][0]}
    node.tell(*slices(2))  # who comes takes no client over
    for number, family, vip in FAMILIES:
        assert {node.led_to(family, vip) for _ in range(16)} == {BACKENDS[number][0]}
    assert not node.kernel.apply(plan("10.246.0.0/16")).failures
    assert node.remembered() == 2  # other rules, and another agent: what is remembered is the kernel's
    node.tell(web(1))
    for _, family, vip in FAMILIES:
        node.led_to(family, vip)
    eventually(lambda: node.remembered() == 0)
    node.tell(web(3600))
    for _, family, vip in FAMILIES:
        node.led_to(family, vip)
    assert node.remembered() == 2
    node.tell(web())  # without affinity nothing is remembered, nor is it when it comes again
    assert node.remembered() == 0
    assert node.read() == dict(node.maps.entries())


def test_a_one_way_sender_of_udp_moves_with_its_backend_also_from_nobody(node: Node) -> None:
    port = ServicePort(port=53, protocol="UDP")
    dns = service("dns", port, cluster_ips=("10.96.0.11",))

    def ends(*addresses: str) -> Any:
        return piece("dns", *map(endpoint, addresses), of="dns", ports=(EndpointPort(port=8080, protocol="UDP"),))

    with contextlib.ExitStack() as stack:
        sender, *servers = (
            stack.enter_context(netns.run(node.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            for _ in range(3)
        )
        for server, address in zip(servers, BACKENDS[4], strict=True):
            server.bind((address, 8080))
            server.settimeout(PATIENCE)
        sender.bind(("192.0.2.1", 40000))
        node.tell(dns)
        for number in (0, 1, 0):
            node.tell(ends(BACKENDS[4][number]))
            sender.sendto(b"x", ("10.96.0.11", 53))
            assert servers[number].recv(10) == b"x"
        node.tell(ends())
        with pytest.raises(PermissionError):  # what netfilter does not let out
            sender.sendto(b"x", ("10.96.0.11", 53))


def test_sctp_is_led_to_the_same_port(node: Node) -> None:
    """By crafted packets: kernels without SCTP sockets track its connections all the same."""
    sctp = service("sctp", ServicePort(port=7000, protocol="SCTP"), cluster_ips=("10.96.0.12",))
    ports = (EndpointPort(port=7000, protocol="SCTP"),)
    node.tell(sctp, piece("sctp", endpoint(BACKENDS[4][1]), of="sctp", ports=ports))
    init = struct.pack(">BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 7)  # RFC 9260, section 3.3.2
    packet = struct.pack(">HHII", 40000, 7000, 0, 0x5AFE0000) + init
    with contextlib.ExitStack() as stack:
        heard, sender = (
            stack.enter_context(
                netns.run(node.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP))
            )
            for _ in range(2)
        )
        heard.bind((BACKENDS[4][1], 0))
        heard.settimeout(PATIENCE)
        sender.sendto(packet, ("10.96.0.12", 0))
        data, (source, _) = heard.recvfrom(2048)
    assert source == OWN[0]
    assert (data[20:28], data[32:]) == (
        packet[:8],
        init,
    )  # between them is the checksum, which the kernel fills in
