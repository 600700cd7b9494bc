"""What the doctor says of node ports that are a program's, too."""

import contextlib
import itertools
import socket
from collections.abc import Callable
from ipaddress import ip_interface

import pytest

from podway.api.kinds.service import ServicePort
from podway.cluster.view import ClusterView
from podway.health.checks.services import services
from podway.health.facts import NodeFacts, Settings
from podway.health.sources import settings
from podway.kernel import netns
from podway.plan.uplink import Uplink
from tests import builders
from tests.namespaces import TestNamespace
from tests.services.clusters import VIP, VIP6, endpoint, piece, service


@pytest.mark.parametrize(("served", "count"), [("all", 1), ("pods", 0)])
def test_a_node_port_at_which_a_program_listens_is_told_where_podway_serves_it(
    node_facts: Callable[..., NodeFacts], served: str, count: int
) -> None:
    ports = (ServicePort(name="a", port=80, node_port=30080), ServicePort(name="b", port=81, node_port=30081))
    web = service("web", *ports, type="NodePort", cluster_ips=(VIP, VIP6))
    config = builders.config(services=served, data_path="ebpf")
    objects = (config, web, piece("one", endpoint("10.1.0.1")))
    held = Settings(served_ports={"TCP": frozenset({30080})})
    facts = node_facts(memory={"view": ClusterView.of(objects)}, settings=held)
    found = [one.found for one in services(facts) if "node port" in one.found]
    assert len(found) == count
    assert all("30080/TCP" in one for one in found)


@pytest.mark.kernel
def test_where_programs_listen_for_others_is_seen(new_netns: Callable[[], TestNamespace]) -> None:
    node = new_netns()
    node.sh("ip addr add 192.0.2.1/24 dev lo; ip addr add 2001:db8::1/64 dev lo nodad")
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    places = (*loopback, "0.0.0.0", "192.0.2.1", "::", "2001:db8::1", "::ffff:192.0.2.1")
    kinds = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
    free = itertools.count(2000)  # what the kernel chooses may be the same at two addresses
    with contextlib.ExitStack() as stack:

        def opened(address: str, kind: int) -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made = stack.enter_context(netns.run(node.fd, lambda: socket.socket(family, kind)))
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind((address, next(free)))
            if kind == socket.SOCK_STREAM:
                made.listen()
            return made

        servers = {
            (protocol, address): opened(address, kind) for protocol, kind in kinds.items() for address in places
        }
        clients = (opened("0.0.0.0", socket.SOCK_DGRAM), stack.enter_context(netns.run(node.fd, socket.socket)))
        for client, protocol in zip(clients, ("UDP", "TCP"), strict=True):
            client.connect(servers[protocol, "192.0.2.1"].getsockname())
        seen = netns.run(node.fd, lambda: settings.read(Uplink("lo", 65536, (ip_interface("127.0.0.1/8"),))))
        for protocol in kinds:
            assert seen.served_ports[protocol] == {
                server.getsockname()[1]
                for (of, address), server in servers.items()
                if of == protocol and address not in loopback
            }
        all_udp = (clients[0], *(server for (of, _), server in servers.items() if of == "UDP"))
        assert seen.udp_ports == {each.getsockname()[1] for each in all_udp}
