"""The host `outside`: pods reach it as their nodes, and each other as themselves, in every form of network."""

import contextlib
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from podway.api.addresses import Address, Family, is_within
from podway.api.kinds.pod import Pod
from podway.kernel import netns
from podway.kernel.network import dump_routes
from podway.lab import agents, cluster, facts, names, outside, pods, processes, state, topology
from podway.lab.facts import PoolSettings
from tests.patience import PATIENCE, eventually

pytestmark = pytest.mark.kernel

DUAL = ("10.244.0.0/16", "fd00:10:244::/56")
FORMS = {
    "routed": {},
    "bridge": {"attach": "bridge"},
    "vxlan": {"encapsulation": "vxlan"},
    "bridge, vxlan": {"attach": "bridge", "encapsulation": "vxlan", "distribution": "store"},
    "ipip": {"encapsulation": "ipip"},
    "flow engine": {},
    "flow engine, vxlan": {"encapsulation": "vxlan"},
    "racks": {"encapsulation": "vxlan", "when": "cross-subnet"},
    "racks that learn pods' routes": {},
}


class Lab:
    """A lab of two nodes with the host, and a pod on each node that serves port 80."""

    def __init__(self, form: str) -> None:
        self.name = f"o{secrets.token_hex(4)}"
        settings: Any = FORMS[form]
        racks = 2 if form.startswith("racks") else 1
        cluster.up(
            self.name,
            nodes=2,
            pools=DUAL,
            block_sizes=(),
            asn=64512,
            report=lambda _: None,
            racks=racks,
            tor="bird" if form == "racks that learn pods' routes" else "none",
            pool_settings=PoolSettings(**settings),
        )
        try:
            self.state, new = outside.ensure(self.name)
            assert new
            if form.startswith("flow engine"):
                self.podway("set", "config", "dataPath=ebpf", "--wait")
            self.pods = [self.run(f"p{number}", f"node{number}") for number in (1, 2)]
        except BaseException:
            cluster.down(self.name)
            raise

    def run(self, name: str, node: str) -> Pod:
        return pods.run(self.name, name, node=node, serve=80)

    def outside(self, family: Family) -> Address:
        return next(one.ip for one in self.state.outside_interfaces if one.version == family)

    def node(self, name: str, family: Family) -> Address:
        return next(one.ip for one in state.load(self.name).addresses(name) if one.version == family)

    def seen_by(self, host: Address, pod: Pod) -> str:
        """Ask the server of a host from a pod; return which address it says that the pod has."""
        url = f"http://[{host}]/" if host.version == 6 else f"http://{host}/"
        path = netns.path_of(pods.netns_of(self.name, pod))
        command = ["nsenter", f"--net={path}", "curl", "-sS", "--max-time", f"{PATIENCE:g}", url]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        (found,) = re.findall(r"you are \[?([0-9a-f.:]+?)\]?:\d+$", answer.strip())
        return str(found)

    def sh(self, node: str, script: str) -> None:
        path = netns.path_of(names.node_netns(self.name, node))
        subprocess.run(["nsenter", f"--net={path}", "sh", "-euc", script], check=True)

    def podway(self, *words: str, check: bool = True) -> str:
        command = [sys.executable, "-m", "podway", "--lab", self.name, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module", params=FORMS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(request.param)
    try:
        yield lab
    finally:
        cluster.down(lab.name)


@pytest.fixture(scope="module")
def flat() -> Iterator[Lab]:
    lab = Lab("routed")
    try:
        yield lab
    finally:
        cluster.down(lab.name)


def test_the_host_sees_nodes_and_pods_see_pods(lab: Lab) -> None:
    for family in Family:
        for number, pod in enumerate(lab.pods, 1):
            other = lab.pods[number % 2]
            (own,) = (address for address in pod.addresses if address.version == family)
            (there,) = (address for address in other.addresses if address.version == family)
            assert lab.seen_by(lab.outside(family), pod) == str(lab.node(f"node{number}", family))
            assert lab.seen_by(there, pod) == str(own)
    # ... by all protocols, also between pods and nodes, and on the wire.
    lab.podway("verify")


def test_the_host_has_no_way_to_pods_and_none_of_the_clusters_ranges(lab: Lab) -> None:
    for pod in lab.pods:
        for address in pod.addresses:
            assert outside.execute(lab.name, ["ping", "-n", "-q", "-c1", "-W1", str(address)]) != 0
    for interface in lab.state.outside_interfaces:
        ranges = (*map(ip_network, DUAL), *lab.state.fabric.estate)
        assert not any(is_within(interface.network, each) for each in ranges)


def test_a_second_start_writes_nothing_and_a_lost_table_comes_back(flat: Lab) -> None:
    agent = agents.status(flat.name, "node1")
    subprocess.run(["kill", "-9", str(agent["pid"])], check=True)
    eventually(lambda: not _answers(flat.name))
    # What stands goes on standing, and what begins now is translated.
    assert flat.seen_by(flat.outside(Family.IPV4), flat.pods[0]) == str(flat.node("node1", Family.IPV4))
    cluster.start_node(flat.name, "node1", lambda _: None)
    assert agents.status(flat.name, "node1")["kernel_writes"] == 0
    for ip in ("ip", "ip6"):
        flat.sh("node1", f"nft delete table {ip} podway-nat")

    def repaired() -> bool:
        told = [repair["what"] for repair in agents.status(flat.name, "node1")["drift"]["repaired"]]
        return all(any(f"nft table {ip} podway-nat" in line for line in told) for ip in ("ip", "ip6"))

    eventually(repaired)
    for family in Family:
        assert flat.seen_by(flat.outside(family), flat.pods[0]) == str(flat.node("node1", family))
    # Whoever does it again and again is looked for.
    for times in (2, 3):
        flat.sh("node1", "nft delete table ip podway-nat")
        eventually(lambda times=times: _repairs(flat.name, "nft table ip podway-nat") == times)
    assert "3 times: nft table ip podway-nat was missing" in flat.podway("doctor", "node1", check=False)


def _repairs(lab: str, what: str) -> int:
    told = [repair["what"] for repair in agents.status(lab, "node1")["drift"]["repaired"]]
    return sum(f"{what} was" in line for line in told)


def _answers(lab: str) -> bool:
    with contextlib.suppress(Exception):
        return bool(agents.status(lab, "node1"))
    return False


def test_a_node_that_joins_is_known_and_knows_the_host(flat: Lab) -> None:
    cluster.add_node(flat.name, "node3", lambda _: None)
    new = flat.run("p3", "node3")
    for family in Family:
        assert flat.seen_by(flat.outside(family), new) == str(flat.node("node3", family))
        server = _socket(names.node_netns(flat.name, "node3"), family, socket.SOCK_DGRAM)
        with server, _socket(pods.netns_of(flat.name, flat.pods[0]), family, socket.SOCK_DGRAM) as client:
            server.bind((str(flat.node("node3", family)), 0))
            client.sendto(b"hello", server.getsockname()[:2])
            (own,) = (address for address in flat.pods[0].addresses if address.version == family)
            assert server.recvfrom(99)[1][0] == str(own)
    cluster.kill_node(flat.name, "node3")
    cluster.start_node(flat.name, "node3", lambda _: None)
    (again,) = (pod for pod in facts.ask(flat.name, lambda store: facts.pods_on(store, "node3")))
    assert flat.seen_by(flat.outside(Family.IPV4), again) == str(flat.node("node3", Family.IPV4))
    cluster.remove_node(flat.name, "node3")


def _socket(namespace: str, family: Family, kind: socket.SocketKind) -> socket.socket:
    with netns.opened(netns.path_of(namespace)) as fd:
        sock = netns.run(fd, lambda: socket.socket(family.af, kind))
    sock.settimeout(PATIENCE)
    return sock


def test_a_node_that_gets_another_address_is_followed(flat: Lab) -> None:
    host = flat.outside(Family.IPV4)
    # Else the kernel removes the second address of a subnet along with the first.
    flat.sh("node1", "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1")
    for was, now in (("172.30.0.1", "172.30.9.1"), ("172.30.9.1", "172.30.0.1")):
        flat.sh("node1", f"ip address add {now}/16 dev eth0; ip address del {was}/16 dev eth0")
        assert flat.seen_by(host, flat.pods[0]) == now
        eventually(lambda now=now: _nodes_known_to(flat, "node2") == {now})


def _nodes_known_to(lab: Lab, node: str) -> set[str]:
    path = netns.path_of(names.node_netns(lab.name, node))
    command = ["nsenter", f"--net={path}", "nft", "list", "set", "ip", "podway-nat", "nodes"]
    return set(re.findall(r"172\.30\.\d+\.\d+", subprocess.run(command, capture_output=True, text=True).stdout))


def test_switched_off_and_on_by_a_command(flat: Lab) -> None:
    host, pod = flat.outside(Family.IPV4), flat.pods[0]
    (own,) = (address for address in pod.addresses if address.version == 4)
    gateway = flat.node("node1", Family.IPV4)
    outside.execute(flat.name, ["ip", "route", "add", str(own), "via", str(gateway)])
    try:
        with _socket(names.outside_netns(flat.name), Family.IPV4, socket.SOCK_STREAM) as inward:
            inward.connect((str(own), 80))
            for value, source in (("false", own), ("true", gateway)):
                flat.podway("set", "pool/ipv4", f"natOutgoing={value}")
                eventually(lambda source=source: flat.seen_by(host, pod) == str(source))
                inward.send(b"still there?\n")
                assert b"still there?" in inward.recv(999)
    finally:
        outside.execute(flat.name, ["ip", "route", "del", str(own)])


def test_the_command_makes_it_once_and_runs_commands_there(flat: Lab) -> None:
    told = flat.podway("lab", "outside")
    assert str(flat.outside(Family.IPV4)) in told
    assert str(flat.outside(Family.IPV6)) in told
    assert outside.ensure(flat.name) == (state.load(flat.name), False)
    assert str(flat.outside(Family.IPV4)) in flat.podway("lab", "outside", "--", "ip", "-4", "address")
    assert "host outside" in flat.podway("lab", "status")
    for name, command in (("outside", "outside"), ("node1", "node node1")):
        told = flat.podway("lab", "exec", name, "--", "true", check=False)
        assert f"podway lab {command} -- COMMAND" in " ".join(told.split())


def test_it_goes_without_a_trace(flat: Lab) -> None:
    flat.podway("lab", "outside", "--remove")
    assert not netns.path_of(names.outside_netns(flat.name)).exists()
    assert state.load(flat.name).outside == ()
    assert not processes.Members([], marked=lambda mark: mark == f"{flat.name}/outside").pids()
    for node in ("node1", "node2"):
        routes = topology_routes(flat.name, node)
        assert not any(interface.network in routes for interface in flat.state.outside_interfaces)
    assert outside.ensure(flat.name)[1]


def topology_routes(lab: str, node: str) -> set[Any]:
    with topology.connection(names.node_netns(lab, node)) as there:
        return {route.destination for family in Family for route in dump_routes(there, family)}
