"""Services for a node's own processes, in a lab on SQLite: by connections from the nodes' namespaces."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Any

import msgspec
import pytest

from podway.api.kinds.service import LoadBalancerIngress, LoadBalancerStatus, ServiceStatus
from podway.api.kinds.service import Service as ServiceObject
from podway.kernel import netns
from podway.lab import names, outside
from podway.lab.facts import PoolSettings
from podway.store.base import Store
from tests.patience import PATIENCE, eventually
from tests.system.policy_lab import FAMILIES, Place, PolicyLab, policy_lab

pytestmark = pytest.mark.kernel

RANGES = ("10.96.0.0/16", "fd00:96::/112")
NODES = ("node1", "node2")


class Service(Place):
    """A Service of the pods that have a label of its name."""

    def __init__(self, name: str, number: int, protocol: str = "TCP", **spec: Any) -> None:
        addresses = (f"10.96.0.{number}", f"fd00:96::{number}")
        super().__init__(name, "", addresses)
        port = {"port": 80, "targetPort": 8080, "protocol": protocol}
        own = {"clusterIPs": list(addresses), "clusterIP": addresses[0], "ports": [port]}
        self.manifest: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"app": name}, **own, **spec},
        }


WEB = Service("web", 10)
UDP = Service("udp", 11, "UDP")


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """Two nodes, with a pod that serves on each; what one sends the other is encapsulated."""
    with policy_lab(PoolSettings(encapsulation="vxlan", when="always")) as made:
        made.lab.podway("set", "config", "services=all", f"serviceCidrs={','.join(RANGES)}", "--wait")
        for node, name in zip(NODES, ("web1", "web2"), strict=True):
            made.run(name, node, 8080, labels={"app": "web"})
        made.apply(WEB.manifest)
        settled(made, 4)
        yield made


def settled(lab: PolicyLab, backends: int) -> None:
    """Wait until both nodes serve so many backends, in both families together, and have nothing to write."""

    def told(node: str) -> tuple[str, int, bool]:
        found = lab.lab.status(node)["services"]
        return found["in_force"], found["backends"], found["pending"]

    eventually(lambda: {told(node) for node in NODES} == {("all", backends, False)})


def call(client: Place, service: Place, family: int, port: int = 80) -> str | None:
    """Connect to a Service; return the source; None if it was refused."""
    return client.source_to(service, family, port, within=5)


def heard(lab: PolicyLab, *pods: str) -> dict[str, set[str]]:
    """Return from where each pod was called since this was asked last."""
    found: dict[str, set[str]] = {pod: set() for pod in pods}
    for pod in pods:
        for server in lab._servers[pod]:
            server.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    taken, peer = server.accept()
                    taken.close()
                    found[pod].add(str(peer[0]))
    return found


def nft(lab: PolicyLab, node: str, *words: str) -> str:
    """Run nft in a node's namespace; of what is not there nothing is shown."""
    command = ["ip", "netns", "exec", names.node_netns(lab.lab.name, node), "nft", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode or "No such file" in done.stderr, done.stderr
    return done.stdout


def reach_all(lab: PolicyLab, node: str) -> None:
    """Assert that a node reaches all backends from its own address, by which they know it."""
    heard(lab, "web1", "web2")
    for family in FAMILIES:
        own = lab.nodes[node].address(family)
        assert {call(lab.nodes[node], WEB, family) for _ in range(24)} == {own}
        assert heard(lab, "web1", "web2") == {"web1": {own}, "web2": {own}}


def test_a_nodes_processes_reach_all_backends_in_every_encapsulation(lab: PolicyLab) -> None:
    for mode in ("vxlan", "ipip", "none"):
        for pool in json.loads(lab.lab.podway("get", "pools", "-o", "json"))["items"]:
            if mode == "ipip" and ":" in pool["spec"]["cidr"]:
                continue  # IPIP carries IPv4 only
            lab.lab.podway("set", f"pool/{pool['metadata']['name']}", f"encapsulation={mode}", "--wait")
        for node in NODES:
            reach_all(lab, node)


def test_another_port_and_no_endpoints_are_refused_at_once(lab: PolicyLab) -> None:
    node = lab.nodes["node1"]
    nobody = Service("nobody", 12)
    lab.apply(nobody.manifest)
    eventually(lambda: "10.96.0.12 . tcp . 80 : goto refuse" in nft(lab, "node1", "list", "map", "ip", *REFUSED))
    for family in FAMILIES:
        assert call(node, WEB, family, 81) is None
        assert call(node, nobody, family) is None
        with node.open(family, socket.SOCK_DGRAM) as asking:  # UDP hears of it by ICMP
            asking.settimeout(5)
            asking.connect((WEB.address(family), 80))
            with contextlib.suppress(PermissionError):  # what netfilter does not let out
                asking.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                asking.recv(10)


REFUSED = ("podway-services", "refused")


def test_what_no_service_has_is_dropped(lab: PolicyLab) -> None:
    for family in FAMILIES:
        with lab.nodes["node1"].open(family) as asking, pytest.raises(TimeoutError):
            asking.connect((Service("none", 99).address(family), 80))


def test_policies_see_the_nodes_address(lab: PolicyLab) -> None:
    """A node always reaches its own pods; those of others only if their policies let it."""
    own = lab.nodes["node1"].address(socket.AF_INET)
    labels = {"matchLabels": {"app": "web"}}
    lab.policy(podSelector=labels, ingress=[{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}])

    def denied() -> bool:
        with lab.nodes["node1"].open(socket.AF_INET) as asking:
            try:
                asking.connect((lab.pods["web2"].address(socket.AF_INET), 8080))
            except TimeoutError:
                return True
        return False

    eventually(denied)
    heard(lab, "web1", "web2")
    with contextlib.ExitStack() as stack:
        for _ in range(24):  # one of them at least is led to the pod that is not here
            asking = stack.enter_context(lab.nodes["node1"].open(socket.AF_INET))
            asking.setblocking(False)
            asking.connect_ex((WEB.address(socket.AF_INET), 80))
        eventually(lambda: heard(lab, "web1")["web1"] == {own})
        assert heard(lab, "web2") == {"web2": set()}
    lab.policy(podSelector=labels, ingress=[{"from": [{"ipBlock": {"cidr": f"{own}/32"}}]}])
    eventually(lambda: not denied())
    heard(lab, "web1", "web2")
    assert {call(lab.nodes["node1"], WEB, socket.AF_INET) for _ in range(24)} == {own}
    assert heard(lab, "web1", "web2") == {"web1": {own}, "web2": {own}}
    lab.forget_policies()


def test_a_client_stays_with_its_backend(lab: PolicyLab) -> None:
    lab.apply(Service("web", 10, sessionAffinity="ClientIP").manifest)
    eventually(lambda: "goto same_" in nft(lab, "node1", "list", "map", "ip6", "podway-services", "services"))
    heard(lab, "web1", "web2")
    for family in FAMILIES:
        for _ in range(16):
            call(lab.nodes["node1"], WEB, family)
        assert sum(map(bool, heard(lab, "web1", "web2").values())) == 1
    lab.apply(WEB.manifest)
    eventually(lambda: "goto any_" in nft(lab, "node1", "list", "map", "ip6", "podway-services", "services"))


def test_a_one_way_sender_moves_when_its_backend_goes(lab: PolicyLab) -> None:
    """Also to nobody, and from nobody to who comes."""
    servers = {}
    for name, node in (("udp1", "node1"), ("udp2", "node2")):
        place = lab.run(name, node, labels={"app": "udp"})
        servers[name] = server = place.open(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 8080))
        server.setblocking(False)
    lab.apply(UDP.manifest)
    settled(lab, 8)
    sender = lab.nodes["node1"].open(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind(("", 40000))

    def got() -> set[str]:
        with contextlib.suppress(OSError):  # nobody is there, or nobody any more
            sender.sendto(b"x", (UDP.address(socket.AF_INET), 80))
        found = set()
        for name, server in servers.items():
            with contextlib.suppress(BlockingIOError):
                while server.recv(10):
                    found.add(name)
        return found

    first: list[str] = []

    def led() -> bool:
        first.extend(got())
        return bool(first)

    eventually(led)
    (gone,) = set(first)
    (left,) = set(servers) - {gone}
    servers.pop(gone).close()
    lab.remove(gone)
    eventually(lambda: got() == {left})
    servers.pop(left).close()
    lab.remove(left)
    settled(lab, 4)
    servers["udp3"] = lab.run("udp3", "node2", labels={"app": "udp"}).open(socket.AF_INET, socket.SOCK_DGRAM)
    servers["udp3"].bind(("0.0.0.0", 8080))
    servers["udp3"].setblocking(False)
    eventually(lambda: got() == {"udp3"})
    servers.pop("udp3").close()
    lab.remove("udp3")
    sender.close()
    settled(lab, 4)


def test_what_others_change_is_put_right_and_what_is_right_costs_nothing(lab: PolicyLab) -> None:
    nft(lab, "node1", "flush", "map", "ip", "podway-services", "services")
    lab.lab.kill_agent("node1")
    lab.lab.start_agent("node1")
    settled(lab, 4)
    reach_all(lab, "node1")
    nft(lab, "node1", "delete", "table", "ip6", "podway-services")
    eventually(lambda: "goto any_" in nft(lab, "node1", "list", "table", "ip6", "podway-services"))
    settled(lab, 4)
    reach_all(lab, "node1")
    lab.lab.kill_agent("node1")
    lab.lab.start_agent("node1")
    settled(lab, 4)
    assert lab.lab.status("node1")["kernel_writes"] == 0


LOCAL = {"externalTrafficPolicy": "Local"}
PORT = 30080
EXTERNAL = ("198.18.0.10", "2001:db8:10::10")


@pytest.fixture(scope="module")
def client(lab: PolicyLab) -> Place:
    """A host outside, which is told that the external addresses are node1's."""
    made, _ = outside.ensure(lab.lab.name)
    host = outside_netns(lab)
    for family, address in zip(FAMILIES, EXTERNAL, strict=True):
        way = ["via", lab.nodes["node1"].address(family)]
        subprocess.run(["ip", "-n", host, "route", "add", address, *way], check=True)
    return Place("outside", str(netns.path_of(host)), tuple(str(one.ip) for one in made.outside_interfaces))


def open_up(lab: PolicyLab, **spec: Any) -> None:
    """Have the Service `web` reached from outside, by a node port and an external address."""
    port = {"port": 80, "targetPort": 8080, "nodePort": PORT}
    spec = {"type": "NodePort", "ports": [port], "externalIPs": list(EXTERNAL), **spec}
    lab.apply(Service("web", 10, **spec).manifest)
    told = "outside" if spec.get("externalTrafficPolicy") == "Local" else "services"
    for node in NODES:
        map_ = ("list", "map", "ip6", "podway-services", told)
        eventually(lambda node=node, map_=map_: f"tcp . {PORT} : goto" in nft(lab, node, *map_))
    settled(lab, 4)
    heard(lab, "web1", "web2")


def knock(client: Place, address: str, port: int, family: int) -> bool | None:
    """Connect from outside; return whether that was possible, None if nobody answered."""
    with client.open(family) as asking:
        try:
            asking.connect((address, port))
        except ConnectionRefusedError:
            return False
        except TimeoutError:
            return None
        return True


def test_a_node_port_leads_to_all_backends_and_those_here_see_the_client(lab: PolicyLab, client: Place) -> None:
    open_up(lab)
    for family in FAMILIES:
        node = lab.nodes["node1"].address(family)
        for where, port in ((node, PORT), (EXTERNAL[FAMILIES.index(family)], 80)):
            assert all(knock(client, where, port, family) for _ in range(24))
            assert heard(lab, "web1", "web2") == {"web1": {client.address(family)}, "web2": {node}}
    pod = lab.run("asker", "node1")
    for family in FAMILIES:
        for node in NODES:  # the own node's by eBPF, which keeps the source everywhere
            assert all(knock(pod, lab.nodes[node].address(family), PORT, family) for _ in range(24))
            far = pod.address(family) if node == "node1" else lab.nodes[node].address(family)
            seen = {"web1": {far}, "web2": {pod.address(family)}}
            assert heard(lab, "web1", "web2") == seen
        assert all(knock(lab.nodes["node2"], lab.nodes["node2"].address(family), PORT, family) for _ in range(24))
        own = {lab.nodes["node2"].address(family)}
        assert heard(lab, "web1", "web2") == {"web1": own, "web2": own}
    lab.remove("asker")


FURTHER = "198.18.1.1"
"""Another address of node1."""


def test_node_ports_are_served_at_the_addresses_that_settings_name(lab: PolicyLab, client: Place) -> None:
    open_up(lab)
    node = names.node_netns(lab.lab.name, "node1")
    own = lab.nodes["node1"].address(socket.AF_INET)
    with contextlib.ExitStack() as undone:  # the lab is everybody's
        for netns, kind, what in (
            (node, "address", [f"{FURTHER}/32", "dev", "lo"]),
            (outside_netns(lab), "route", [FURTHER, "via", own]),
        ):
            subprocess.run(["ip", "-n", netns, kind, "add", *what], check=True)
            undone.callback(subprocess.run, ["ip", "-n", netns, kind, "del", *what], check=True)
        assert knock(client, FURTHER, PORT, socket.AF_INET) is False
        undone.callback(lab.lab.podway, "set", "config", "nodePortAddresses=primary", "--wait")
        lab.lab.podway("set", "config", "nodePortAddresses=198.18.1.0/24", "--wait")
        eventually(lambda: knock(client, FURTHER, PORT, socket.AF_INET))
        eventually(lambda: knock(client, own, PORT, socket.AF_INET) is False)
        lab.lab.podway("set", "config", "nodePortAddresses=primary", "--wait")
        eventually(lambda: knock(client, own, PORT, socket.AF_INET))
        eventually(lambda: knock(client, FURTHER, PORT, socket.AF_INET) is False)
    settled(lab, 4)


def outside_netns(lab: PolicyLab) -> str:
    return names.outside_netns(lab.lab.name)


def health(client: Place, address: str, port: int, family: int, path: str = "/") -> tuple[int, str]:
    """Ask by HTTP, as a load balancer does; return status and text."""
    with client.open(family) as asking:
        asking.settimeout(PATIENCE)
        asking.connect((address, port))
        asking.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        head, _, text = asking.makefile("rb").read().partition(b"\r\n\r\n")
    return int(head.split()[1]), text.decode()


def test_with_the_policy_local_clients_keep_their_address(lab: PolicyLab, client: Place) -> None:
    open_up(lab, type="LoadBalancer", healthCheckNodePort=PORT + 1, **LOCAL)
    for node in NODES:
        eventually(lambda node=node: lab.lab.status(node)["services"]["health_checks"] == [10256, PORT + 1])
        for family in FAMILIES:
            address = lab.nodes[node].address(family)
            status, text = health(client, address, PORT + 1, family)
            assert (status, json.loads(text)["localEndpoints"]) == (200, 1)
            assert health(client, address, 10256, family, "/healthz")[0] == 200
    for family in FAMILIES:
        for node, pod in zip(NODES, ("web1", "web2"), strict=True):
            assert all(knock(client, lab.nodes[node].address(family), PORT, family) for _ in range(8))
            assert heard(lab, pod) == {pod: {client.address(family)}}
    lab.remove("web2")
    settled(lab, 2)
    for family in FAMILIES:
        node2 = lab.nodes["node2"]
        checked = [health(client, lab.nodes[node].address(family), PORT + 1, family)[0] for node in NODES]
        assert checked == [200, 503]
        assert knock(client, node2.address(family), PORT, family) is None  # dropped, so that another node is asked
        assert knock(node2, node2.address(family), PORT, family)  # who is in the cluster is led anywhere
    lab.remove("web1")
    settled(lab, 0)
    for family in FAMILIES:
        assert knock(client, lab.nodes["node2"].address(family), PORT, family) is False
    for node, name in zip(NODES, ("web1", "web2"), strict=True):
        lab.run(name, node, 8080, labels={"app": "web"})
    settled(lab, 4)


def test_a_load_balancer_lets_in_whom_its_ranges_name(lab: PolicyLab, client: Place) -> None:
    own = [f"{client.address(family)}/{bits}" for family, bits in zip(FAMILIES, (32, 128), strict=True)]
    inside = [f"{client.address(family)}/{bits}" for family, bits in zip(FAMILIES, (24, 64), strict=True)]
    around = [str(ip_interface(one).network) for one in inside]
    # Ranges that lie in others, and are left when those go.
    for ranges, reached in ((["192.0.2.0/24", "2001:db8:1::/48"], None), ([*around, *own], True), (own, True)):
        web = Service("web", 10, type="LoadBalancer", loadBalancerSourceRanges=ranges)
        lab.apply(web.manifest)
        lab.lab.store(balance)
        for table, family, address, told in zip(("ip", "ip6"), FAMILIES, EXTERNAL, ranges[:2], strict=True):
            there = told.removesuffix("/32").removesuffix("/128")
            eventually(lambda table=table, there=there: there in nft(lab, "node1", "list", "set", table, *ALLOWED))
            settled(lab, 8)  # those of the fenced addresses are told apart
            assert knock(client, address, 80, family) is reached
    lab.apply(WEB.manifest)
    settled(lab, 4)


ALLOWED = ("podway-services", "allowed")


async def balance(store: Store) -> None:
    """Give the Service `web` its addresses outside, as a load balancer's controller does."""
    made = await store.get(ServiceObject, "web", namespace="default")
    ingress = tuple(LoadBalancerIngress(ip=one) for one in EXTERNAL)
    status = ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress))
    await store.update_status(msgspec.structs.replace(made, status=status))


def test_policies_see_the_client(lab: PolicyLab, client: Place) -> None:
    open_up(lab, **LOCAL)
    own = client.address(socket.AF_INET)
    labels = {"matchLabels": {"app": "web"}}
    node = lab.nodes["node1"].address(socket.AF_INET)
    for cidr, reached in (("192.0.2.0/24", None), (f"{own}/32", True)):
        lab.policy(podSelector=labels, ingress=[{"from": [{"ipBlock": {"cidr": cidr}}]}])
        eventually(lambda reached=reached: knock(client, node, PORT, socket.AF_INET) is reached)
    lab.forget_policies()
    lab.apply(WEB.manifest)
    settled(lab, 4)


def test_switched_off_nothing_is_left(lab: PolicyLab) -> None:
    lab.lab.podway("set", "config", "services=pods", "--wait")
    eventually(lambda: "podway-services" not in nft(lab, "node1", "list", "tables"))
    command = ["ip", "-n", names.node_netns(lab.lab.name, "node1"), "route", "show", RANGES[0]]
    eventually(lambda: not subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lab.lab.podway("set", "config", "services=all", "--wait")
    settled(lab, 4)
    reach_all(lab, "node1")
