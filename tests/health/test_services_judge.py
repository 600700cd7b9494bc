"""What the doctor says of node ports that are a program's, too."""

import socket
from collections.abc import Callable
from ipaddress import ip_interface

import pytest

from podway.api.kinds.service import ServicePort
from podway.cluster.view import ClusterView
from podway.health.checks.services import services
from podway.health.facts import NodeFacts, Settings
from podway.health.sources import settings
from podway.plan.uplink import Uplink
from tests import builders
from tests.services.clusters import VIP, VIP6, endpoint, piece, service


@pytest.mark.parametrize(("served", "count"), [("all", 1), ("pods", 0)])
def test_a_node_port_at_which_a_program_listens_is_told_where_podway_serves_it(
    node_facts: Callable[..., NodeFacts], served: str, count: int
) -> None:
    ports = (ServicePort(name="a", port=80, node_port=30080), ServicePort(name="b", port=81, node_port=30081))
    web = service("web", *ports, type="NodePort", cluster_ips=(VIP, VIP6))
    config = builders.config(services=served, data_path="ebpf")
    objects = (config, web, piece("one", endpoint("10.1.0.1")))
    facts = node_facts(memory={"view": ClusterView.of(objects)}, settings=Settings(tcp_ports=frozenset({30080})))
    found = [one.found for one in services(facts) if "node port" in one.found]
    assert len(found) == count
    assert all("30080/TCP" in one for one in found)


@pytest.mark.kernel
def test_where_programs_listen_is_seen() -> None:
    uplink = Uplink("lo", 65536, (ip_interface("127.0.0.1/8"),))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        seen = settings.read(uplink).tcp_ports
        assert server.getsockname()[1] in seen
        assert client.getsockname()[1] not in seen
