"""What load balancers hear of a node: by an HTTP client that is not ours, of real ports."""

import asyncio
import json
import socket
from collections.abc import Callable
from http.client import HTTPConnection
from ipaddress import ip_interface
from typing import Any, cast

import msgspec
import pytest

from podway.agent.service_health import ServiceHealth
from podway.api.kinds.node import Node, NodeSpec, Taint
from podway.api.kinds.service import ServicePort
from podway.cluster.view import ClusterView
from podway.kernel import netns
from podway.plan.uplink import Uplink
from podway.reconcile.state import NodeState
from podway.services.health import LEAVING_TAINT, PROXY_PORT, endpoints_here, health_checks, stays
from podway.services.planner import ServicePlanner
from tests import builders
from tests.namespaces import TestNamespace
from tests.patience import eventually
from tests.services.clusters import NODE, OTHER, VIP, VIP6, endpoint, piece, service

LOCAL: Any = {"type": "LoadBalancer", "external_traffic_policy": "Local"}


def balanced(name: str, port: int, **more: Any) -> Any:
    return service(name, **{**LOCAL, "health_check_node_port": port, "cluster_ips": (VIP, VIP6), **more})


def test_which_services_are_asked_for() -> None:
    services = [
        balanced("b", 30001, created="2025-01-01T00:00:00Z"),  # the older one's
        balanced("a", 30001, created="2026-01-01T00:00:00Z"),
        balanced("c", 30002, external_traffic_policy="Cluster"),
        balanced("d", 30003, type="NodePort"),
        balanced("e", 30004, labels={"service.kubernetes.io/service-proxy-name": "x"}),
        balanced("f", 0),
        balanced("g", 30005, cluster_ips=(VIP,)),
    ]
    assert [(one.port, one.service[1], one.versions) for one in health_checks(services)] == [
        (30005, "g", (4,)),
        (30001, "b", (4, 6)),
    ]


def test_who_counts_is_ready_here_and_counts_once() -> None:
    planner = ServicePlanner(NODE)
    ports = (ServicePort(name="a", port=80), ServicePort(name="b", port=81))
    named = tuple(msgspec.structs.replace(piece("x").ports[0], name=one) for one in "ab")  # type: ignore[index]
    ends = [
        endpoint("10.1.0.1"),
        endpoint("10.1.0.2", ready=False),
        endpoint("10.1.0.3", ready=False, serving=True, terminating=True),
        endpoint("10.1.1.1", OTHER),
    ]
    planner.put(service("web", *ports))
    planner.put(piece("s", *ends, ports=named))
    assert endpoints_here(planner, ("shop", "web"), 4) == 1
    assert endpoints_here(planner, ("shop", "web"), 6) == 0
    assert endpoints_here(planner, ("shop", "none"), 4) == 0


@pytest.mark.parametrize(
    ("taint", "deleted", "well"),
    [("", "", True), (LEAVING_TAINT, "", False), ("x", "2026-01-01T00:00:00Z", False)],
)
def test_a_node_that_is_being_removed_is_no_place_for_connections(taint: str, deleted: str, *, well: bool) -> None:
    made: Node = builders.node(NODE)
    meta = msgspec.structs.replace(made.metadata, deletion_timestamp=deleted)
    taints = (Taint(key=taint, effect="NoSchedule"),) if taint else ()
    assert stays(msgspec.structs.replace(made, metadata=meta, spec=NodeSpec(taints=taints))) is well


class Served:
    """Who serves Services, as far as it is asked."""

    def __init__(self, planner: ServicePlanner) -> None:
        self.planner: ServicePlanner | None = planner
        self.in_force = True
        self.node = self
        self.waits = 0.0


def ask(port: int, path: str = "/", host: str = "127.0.0.1") -> tuple[int, dict[str, str], Any]:
    """Return status, headers and text of a page."""
    connection = HTTPConnection(host, port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.kernel
def test_load_balancers_are_answered_as_kube_proxy_answers(new_netns: Callable[[], TestNamespace]) -> None:
    config = builders.config(services="all", service_cidrs=("10.96.0.0/16", "fd00:96::/112"))
    web = balanced("web", 30001)
    uplink = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"), ip_interface("fd70::1/64")))
    planner = ServicePlanner(NODE)
    planner.put(web)

    async def main() -> None:
        state = NodeState(NODE, ClusterView.of([config, web, builders.node(NODE)]), uplink)
        served = Served(planner)
        health = ServiceHealth(state, cast(Any, served))
        running = asyncio.ensure_future(health.run())

        async def asked(port: int, path: str = "/", host: str = "127.0.0.1") -> tuple[int, dict[str, str], Any]:
            return await asyncio.to_thread(ask, port, path, host)

        async def comes_to(ports: list[int]) -> None:
            health.trigger()
            await asyncio.to_thread(eventually, lambda: health.ports == ports)

        with socket.create_server(("127.0.0.1", PROXY_PORT)):
            await comes_to([PROXY_PORT, 30001])  # of IPv6 it is free
            await asyncio.to_thread(eventually, lambda: f"port {PROXY_PORT} " in health.problem)
        health.trigger()
        await asyncio.to_thread(eventually, lambda: not health.problem)
        told = {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 0, "serviceProxyHealthy": True}
        status, headers, text = await asked(30001)
        assert (status, text) == (503, told)
        planner.put(piece("s", endpoint("10.1.0.1"), endpoint("10.1.0.2")))
        status, headers, text = await asked(30001, "/any")
        assert (status, text) == (200, {**told, "localEndpoints": 2})
        assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
        assert headers["Content-Type"] == "application/json"
        assert (await asked(30001, host="::1"))[0] == 503, "of IPv6 there are none"
        served.waits = 61.0
        assert (await asked(30001))[0] == (await asked(PROXY_PORT, "/livez"))[0] == 503
        served.waits = 0.0
        for path, eligible in (("/healthz", True), ("/livez", None)):
            status, _, text = await asked(PROXY_PORT, path)
            assert (status, text.get("nodeEligible")) == (200, eligible)
        leaving = msgspec.structs.replace(builders.node(NODE), spec=NodeSpec(taints=(Taint(key=LEAVING_TAINT),)))
        state.follow(ClusterView.of([config, web, leaving]))
        assert [(await asked(PROXY_PORT, path))[0] for path in ("/healthz", "/livez")] == [503, 200]
        assert (await asked(30001))[0] == 200, "that is the load balancer's own business"
        state.follow(ClusterView.of([config, balanced("web", 30002), leaving]))
        await comes_to([PROXY_PORT, 30002])
        state.follow(ClusterView.of([builders.config(services="pods")]))
        await comes_to([])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    netns.run(new_netns().fd, lambda: asyncio.run(main()))
