"""Services in a lab on SQLite, by connections of pods: they are served from endpoints that come and go."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from podway.lab.facts import PoolSettings
from tests.patience import eventually
from tests.system.policy_lab import FAMILIES, Place, PolicyLab, policy_lab

pytestmark = pytest.mark.kernel

VIPS = ("10.96.0.10", "fd00:96::10")
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "selector": {"app": "web"},
        "clusterIP": VIPS[0],
        "clusterIPs": list(VIPS),
        "ports": [{"port": 80, "targetPort": 8080}],
    },
}
VIP = Place("web", "", VIPS)


@pytest.fixture(scope="module", params=["none", "bridge"])
def lab(request: pytest.FixtureRequest) -> Iterator[PolicyLab]:
    """Two nodes, with a pod that serves on each, and one that asks."""
    with policy_lab(PoolSettings(attach="bridge" if request.param == "bridge" else "routed")) as made:
        made.lab.podway("set", "config", "services=pods", "--wait")
        made.run("web1", "node1", 8080, labels={"app": "web"})
        made.run("web2", "node2", 8080, labels={"app": "web"})
        made.run("client", "node1", labels={"app": "client"})
        made.apply(SERVICE)
        yield made


def all_reach(lab: PolicyLab, clients: str) -> bool:
    """Whether all of these pods reach the Service in both families."""
    places = [lab.pods[name] for name in clients.split()]
    return all(
        place.source_to(VIP, family, 80) == place.address(family) for place in places for family in FAMILIES
    )


def backends(lab: PolicyLab, node: str) -> int:
    found: int = lab.lab.status(node)["services"]["backends"]
    return found


def test_pods_reach_a_service_and_themselves_by_it(lab: PolicyLab) -> None:
    """The pods that serve reach all backends, so now and then themselves."""
    eventually(lambda: backends(lab, "node1") == backends(lab, "node2") == 4)
    for _ in range(10):
        assert all_reach(lab, "client web1 web2")


@pytest.mark.parametrize("family", FAMILIES)
def test_flows_name_the_service_that_was_called_and_what_it_became(lab: PolicyLab, family: int) -> None:
    eventually(lambda: backends(lab, "node1") == backends(lab, "node2") == 4)
    assert lab.pods["client"].source_to(VIP, family, 80) == lab.pods["client"].address(family)
    called = {"address": VIP.address(family), "port": 80, "namespace": "default", "name": "web"}

    def seen() -> bool:
        text = lab.lab.podway("flows", "--service", "web", "--from", "client", "-o", "jsonl", check=False)
        records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        mine = [one for one in records if one["event"] == "new" and one["service"]["address"] == called["address"]]
        assert mine
        for one in mine:
            assert one["service"] == called
            assert one["node"] == "node1", "the node of who was called sees the backend's address alone"
            assert one["destination"]["port"] == 8080
            assert one["destination"]["who"]["name"] in ("web1", "web2")
        return True

    eventually(seen)


def test_another_port_and_no_endpoints_are_refused_at_once(lab: PolicyLab) -> None:
    client = lab.pods["client"]
    eventually(lambda: backends(lab, "node1") == 4)
    nobody = json.loads(json.dumps(SERVICE))
    nobody["spec"]["selector"] = {"app": "nobody"}
    for family in FAMILIES:
        assert client.source_to(VIP, family, 81) is None
        with client.open(family, socket.SOCK_DGRAM) as asking:  # UDP hears of it by ICMP
            asking.settimeout(5)
            asking.connect((VIP.address(family), 81))
            asking.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                asking.recv(10)
    lab.apply(nobody)
    eventually(lambda: backends(lab, "node1") == 0)
    assert [client.source_to(VIP, family, 80) for family in FAMILIES] == [None, None]
    lab.apply(SERVICE)
    eventually(lambda: backends(lab, "node1") == 4)
    assert all_reach(lab, "client")


def test_policy_hears_of_the_backend(lab: PolicyLab) -> None:
    eventually(lambda: backends(lab, "node1") == 4)
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": [{"port": 80}]}])

    def reaches() -> set[Any]:
        found = set()
        for family in FAMILIES:
            try:
                found.add(lab.pods["client"].source_to(VIP, family, 80))
            except TimeoutError:
                found.add("denied")
        return found

    eventually(lambda: reaches() == {"denied"})
    lab.policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": [{"port": 8080}]}])
    eventually(lambda: "denied" not in reaches())
    lab.forget_policies()


def test_a_one_way_sender_moves_when_its_backend_goes(lab: PolicyLab) -> None:
    """Whoever sends from one port and hears nothing back is led to who is there: of UDP nothing else tells."""
    eventually(lambda: backends(lab, "node1") == 4)
    udp = json.loads(json.dumps(SERVICE))
    udp["metadata"]["name"], udp["spec"]["clusterIP"], udp["spec"]["clusterIPs"] = (
        "udp",
        "10.96.0.11",
        ["10.96.0.11"],
    )
    udp["spec"]["ports"] = [{"port": 53, "targetPort": 5353, "protocol": "UDP"}]
    udp["spec"]["selector"] = {"app": "udp"}
    servers = {}
    for name, node in (("u1", "node1"), ("u2", "node2")):
        place = lab.run(name, node, labels={"app": "udp"})
        servers[name] = server = place.open(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 5353))
        server.setblocking(False)
    lab.apply(udp)
    sender = lab.pods["client"].open(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind(("", 40000))

    def heard() -> set[str]:
        sender.sendto(b"x", ("10.96.0.11", 53))
        found = set()
        for name, server in servers.items():
            try:
                while server.recv(10):
                    found.add(name)
            except BlockingIOError:
                pass
        return found

    eventually(lambda: bool(heard()))
    (one,) = {name for _ in range(3) for name in heard()}
    servers.pop(one).close()
    lab.remove(one)
    eventually(lambda: heard() == set(servers))
    for server in servers.values():
        server.close()
    sender.close()
    lab.lab.podway("delete", "service/udp")


def test_an_agent_that_starts_anew_changes_nothing_and_connections_go_on(lab: PolicyLab) -> None:
    eventually(lambda: backends(lab, "node1") == 4)
    client = lab.pods["client"]
    with client.open(socket.AF_INET) as asking:
        asking.connect((VIPS[0], 80))
        lab.lab.kill_agent("node1")
        lab.lab.start_agent("node1")
        eventually(lambda: backends(lab, "node1") == 4)
        asking.sendall(b"still there")
    assert all_reach(lab, "client")


def test_switched_off_nothing_is_led(lab: PolicyLab) -> None:
    eventually(lambda: backends(lab, "node1") == 4)
    lab.lab.podway("set", "config", "services=off", "--wait")
    eventually(lambda: lab.lab.status("node1")["services"]["in_force"] == "off")
    with pytest.raises(OSError, match=r"."):
        assert lab.pods["client"].source_to(VIP, socket.AF_INET, 80)
    lab.lab.podway("set", "config", "services=pods", "--wait")
    eventually(lambda: backends(lab, "node1") == 4)
    assert all_reach(lab, "client")
