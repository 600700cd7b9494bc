"""What becomes of packets to random Services: the same as kube-proxy, asked besides, makes of them.

Both read one API server, and each has a machine of the same name and addresses, with a client outside, a pod and
hosts that serve. PODWAY_KUBE_PROXY_ROUNDS says how many clusters are tried, PODWAY_KUBE_PROXY_SEED which.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from podway.health.sources import kube_proxy
from podway.kernel import netns
from tests.kubernetes import ROOT, ApiServer, programs, running_api_server
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE
from tests.system.kubernetes_machine import Machine

pytestmark = pytest.mark.kernel

ROUNDS = int(os.environ.get("PODWAY_KUBE_PROXY_ROUNDS", "2"))
SEED = int(os.environ.get("PODWAY_KUBE_PROXY_SEED", "1"))
SERVICES = 12
DRAWS = 12
"""How often an address is asked: what another one finds is waited for."""
PAIRS = 20
"""How many pairs are asked at once: with both proxies 500 sockets, and a process often may have 1,024."""
SILENCE = 0.3
"""Seconds after which a connection counts as dropped, from when the control, asked after it, has answered."""

SERVED = (8080, 8081)
BACKENDS = "10.50.0.0/16"
LISTED = "10.96.200.1"
"""The last Service of each round: who serves it has read all before it."""
HERE = "n1.example.org"
"""Both proxies' node, which Machine calls so."""
PLACES = ("node", "outside", "pod")
NAMESPACE = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

SETTINGS = """
apiVersion: podway.io/v1
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.244.0.0/16, natOutgoing: true}
---
apiVersion: podway.io/v1
kind: NetworkConfig
metadata: {name: default}
spec: {dataPath: ebpf, services: all, serviceCidrs: [10.96.0.0/12]}
"""

Frontend = tuple[str, int]
Pair = tuple[str, Frontend]
"""Who asks whom."""
Fate = frozenset[str]
CONTROL: Pair = ("node", (LISTED, 80))
"""What is answered by both, or the machine is too busy yet to tell what is dropped."""


class Site:
    """A machine with what is around it, each in a network namespace: hosts that serve, a client outside, a pod."""

    def __init__(self, make: Callable[[], TestNamespace]) -> None:
        self.node, self.hosts, self.outside, self.pod = make(), make(), make(), make()
        self.node.sh(f"ip link add eth0 type veth peer name eth0 netns {self.hosts.name}")
        self.node.sh(f"ip link add out0 type veth peer name eth0 netns {self.outside.name}")
        self.node.sh("ip addr add 172.30.0.1/24 dev eth0; ip addr add 172.29.0.1/24 dev out0")
        self.node.sh("ip link set eth0 up; ip link set out0 up; ip route add default via 172.30.0.254")
        # Else the kernel tells a client of one refusal in a second, and says nothing of the others.
        self.node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/icmp_ratemask")
        self.hosts.sh("ip addr add 172.30.0.254/24 dev eth0; ip link set eth0 up")
        self.hosts.sh(f"ip route add local {BACKENDS} dev lo; ip route add default via 172.30.0.1")
        self.outside.sh("ip addr add 172.29.0.2/24 dev eth0; ip link set eth0 up")
        self.outside.sh("ip route add default via 172.29.0.1")
        self.agent = Path()
        """Where the agent is asked, if it is Podway's."""
        self.listening = [self._listen(port) for port in SERVED]

    def _listen(self, port: int) -> socket.socket:
        sock = netns.run(self.hosts.fd, lambda: socket.socket(socket.AF_INET))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
        sock.listen(1024)
        sock.setblocking(False)
        return sock

    def sockets(self, place: str, count: int) -> list[socket.socket]:
        """Open sockets in a place; the caller closes them."""
        namespace: TestNamespace = getattr(self, place)
        made = netns.run(namespace.fd, lambda: [socket.socket(socket.AF_INET) for _ in range(count)])
        for sock in made:
            sock.setblocking(False)
        return made


async def ask(sock: socket.socket, frontend: Frontend) -> str:
    """Connect; return who answered or `refused`, if anything comes back."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(sock, frontend)
        return (await loop.sock_recv(sock, 64)).decode()
    except ConnectionRefusedError:
        return "refused"


async def serves(site: Site) -> bool:
    """Tell whether a site's node reaches the last Service by now."""
    (sock,) = site.sockets("node", 1)
    with sock, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            return ":" in await ask(sock, (LISTED, 80))
    return False


async def fates(sites: tuple[Site, Site], pairs: list[Pair]) -> list[tuple[Fate, Fate]]:
    """Return what becomes of several connections of each pair, at each of the sites.

    What has no answer counts as dropped only when the control, asked after it, is answered: else a busy machine
    would drop everything, at both sites alike.
    """
    with contextlib.ExitStack() as stack:
        opened = [
            (pair, [stack.enter_context(sock) for sock in site.sockets(pair[0], DRAWS)])
            for pair in (*pairs, CONTROL)
            for site in sites
        ]
        asked = [[asyncio.ensure_future(ask(sock, pair[1])) for sock in socks] for pair, socks in opened]
        every = [task for tasks in asked for task in tasks]
        try:
            controls = [task for tasks in asked[-len(sites) :] for task in tasks]
            async with asyncio.timeout(PATIENCE):
                answers = await asyncio.gather(*controls)
            assert "refused" not in answers, f"{CONTROL} was served, and is not any more"
            await asyncio.wait(every, timeout=SILENCE)
            found = [frozenset(task.result() if task.done() else "dropped" for task in tasks) for tasks in asked]
        finally:
            for task in every:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)  # before their sockets are closed
    return list(zip(found[: -len(sites) : 2], found[1 : -len(sites) : 2], strict=True))


async def answer(listening: socket.socket) -> None:
    """Tell each client whom it reached."""
    loop = asyncio.get_running_loop()
    while True:
        taken, _ = await loop.sock_accept(listening)
        with taken:
            address, port = taken.getsockname()
            await loop.sock_sendall(taken, f"{address}:{port}".encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of this file's own."""
    hosts = tuple(f"172.31.{number}.1" for number in range(1, 5))
    with running_api_server(tmp_path_factory.mktemp("server"), hosts=hosts) as made:
        made.kubectl("apply", "-f", str(ROOT / "deploy/rbac.yaml"))
        yield made


@pytest.fixture(scope="module")
def sites(
    new_netns_of_file: Callable[[], TestNamespace], tmp_path_factory: pytest.TempPathFactory, server: ApiServer
) -> Iterator[tuple[Site, Site]]:
    """Podway's and kube-proxy's."""
    directory = tmp_path_factory.mktemp("machines")
    ours, theirs = Site(new_netns_of_file), Site(new_netns_of_file)
    machine = Machine(ours.node, directory, 1, server)
    assert machine.name == HERE
    labels = {"metadata": {"labels": {"topology.kubernetes.io/zone": "a"}}}
    server.ask("PATCH", f"/api/v1/nodes/{HERE}", labels, content="application/merge-patch+json")
    proxy = None
    try:
        machine.podway("apply", "-f", "-", text=SETTINGS)
        machine.start()
        ours.agent = machine.directory / "agent.sock"
        machine.add(ours.pod, "client")
        theirs.node.sh(f"ip link add pod0 type veth peer name eth0 netns {theirs.pod.name}; ip link set pod0 up")
        theirs.node.sh("ip addr add 10.244.0.1/32 dev pod0; ip route add 10.244.0.9 dev pod0")
        theirs.pod.sh("ip addr add 10.244.0.9/32 dev eth0; ip link set eth0 up")
        theirs.pod.sh("ip route add 10.244.0.1 dev eth0; ip route add default via 10.244.0.1")
        theirs.hosts.sh("ip route replace 10.244.0.0/16 via 172.30.0.1")
        proxy = _kube_proxy(theirs.node, directory, server)
        yield ours, theirs
    finally:
        if proxy is not None:
            proxy.kill()
            proxy.wait()
        machine.end()
        for site in (ours, theirs):
            for sock in site.listening:
                sock.close()


def _kube_proxy(
    node: TestNamespace, directory: Path, server: ApiServer, *, mode: str = "nftables", number: int = 2
) -> "subprocess.Popen[bytes]":
    """Start kube-proxy in a namespace, with a link of this number to the API server."""
    node.sh(f"ip link add api0 type veth peer name api{number} netns {server.pid}")
    node.sh(f"ip link set api0 up; ip addr add 172.31.{number}.2/24 dev api0")
    server.inside("ip", "link", "set", f"api{number}", "up")
    server.inside("ip", "addr", "add", f"172.31.{number}.1/24", "dev", f"api{number}")
    kubeconfig = directory / "kube-proxy.config"
    kubeconfig.write_text(yaml.safe_dump(server.kubeconfig(host=f"172.31.{number}.1")))
    config = directory / "kube-proxy.json"
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": HERE,
        "clusterCIDR": "10.244.0.0/16",
        "nftables": {"minSyncPeriod": "100ms"},
        "iptables": {"minSyncPeriod": "100ms"},
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        # Zero: these are the whole machine's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
    }
    config.write_bytes(msgspec.json.encode(document))
    # Not from a thread that enters the namespace: the signal comes when the thread ends that started it.
    enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={node.path}", "--"]
    with open(directory / "kube-proxy.log", "ab") as log:
        command = [*enter, str(programs() / "kube-proxy"), f"--config={config}"]
        return subprocess.Popen(command, stdout=log, stderr=log)


class Cluster:
    """Random Services with their endpoints."""

    def __init__(self, server: ApiServer, chance: random.Random) -> None:
        self._server = server
        self._chance = chance
        self._made: list[str] = []
        self.frontends: set[Frontend] = {("10.96.250.250", 80), ("198.51.100.250", 80)}
        """What is to be asked, also what nobody serves."""
        self.sticky: set[Frontend] = set()
        self.fenced: set[Frontend] = set()
        """What has loadBalancerSourceRanges, by which Podway binds clients outside only (docs/services.md)."""
        self.manifests: list[Any] = []

    def build(self) -> None:
        for number in range(SERVICES):
            self._service(number)
        self.build_last()

    def build_last(self) -> None:
        """Make the Service alone that is there in every round."""
        self._create(
            NAMESPACE, {"metadata": {"name": "last"}, "spec": {"clusterIP": LISTED, "ports": [{"port": 80}]}}
        )
        self._slice("last", "last", [{"name": "", "port": SERVED[0]}], [self._endpoint(0)])

    def remove(self) -> None:
        for path in self._made:
            self._server.ask("DELETE", path)

    def _create(self, path: str, body: Any) -> Any:
        made = self._server.ask("POST", path, body)
        self._made.append(f"{path}/{made['metadata']['name']}")
        self.manifests.append(body)
        return made

    def _maybe(self, share: float) -> bool:
        return self._chance.random() < share

    def _service(self, number: int) -> None:
        chance, name = self._chance, f"s{number}"
        ports: list[dict[str, Any]] = [
            {"name": f"p{at}", "port": 80 + at, "targetPort": at} for at in range(1, chance.randint(2, 3))
        ]
        spec: dict[str, Any] = {"type": chance.choice(["ClusterIP", "NodePort", "LoadBalancer"]), "ports": ports}
        spec["internalTrafficPolicy"] = chance.choice(["Cluster", "Cluster", "Local"])
        if self._maybe(0.3):
            spec["externalIPs"] = [f"192.0.2.{number + 1}"]
        if spec["type"] != "ClusterIP" or "externalIPs" in spec:
            spec["externalTrafficPolicy"] = chance.choice(["Cluster", "Local"])
        if spec["type"] == "LoadBalancer" and self._maybe(0.5):
            spec["loadBalancerSourceRanges"] = [
                chance.choice(["172.29.0.0/24", "10.244.0.0/16", "203.0.113.0/24"])
            ]
        if self._maybe(0.2):
            spec["sessionAffinity"] = "ClientIP"
        labels = chance.choice([*[{}] * 8, {"service.kubernetes.io/service-proxy-name": "x"}])
        made = self._create(NAMESPACE, {"metadata": {"name": name, "labels": labels}, "spec": spec})
        places = [made["spec"]["clusterIP"], *spec.get("externalIPs", ())]
        if spec["type"] == "LoadBalancer":
            mode = chance.choice(["VIP", "VIP", "Proxy"])
            ingress = [{"ip": f"198.51.100.{number + 1}", "ipMode": mode}]
            status = {"status": {"loadBalancer": {"ingress": ingress}}}
            content = "application/merge-patch+json"
            self._server.ask("PATCH", f"{NAMESPACE}/{name}/status", status, content=content)
            places.append(ingress[0]["ip"])
            if "loadBalancerSourceRanges" in spec:
                self.fenced |= {(ingress[0]["ip"], port["port"]) for port in ports}
        found = {(place, port["port"]) for place in places for port in (*ports, {"port": 99})}
        found |= {("172.30.0.1", port["nodePort"]) for port in made["spec"]["ports"] if "nodePort" in port}
        self.frontends |= found
        if "sessionAffinity" in spec:
            self.sticky |= found
        served = [{"name": f"p{at}", "port": chance.choice(SERVED)} for at in range(1, 3)]
        for piece in range(chance.randint(0, 2)):
            ends = [self._endpoint(number * 10 + piece * 4 + at) for at in range(chance.randint(0, 3))]
            self._slice(f"{name}-{piece}", name, served, ends)

    def _endpoint(self, number: int) -> dict[str, Any]:
        chance = self._chance
        ready = self._maybe(0.7)
        ending = not ready and self._maybe(0.6)
        found: dict[str, Any] = {
            "addresses": [f"10.50.0.{number + 1}"],
            "conditions": {"ready": ready, "serving": ready or self._maybe(0.7), "terminating": ending},
            "nodeName": chance.choice([HERE, "n2"]),
        }
        if self._maybe(0.7):
            found["hints"] = {"forZones": [{"name": chance.choice("ab")}]}
            if self._maybe(0.4):
                found["hints"]["forNodes"] = [{"name": chance.choice([HERE, "n2"])}]
        if number == 0:
            found["conditions"] = {"ready": True}
        return found

    def _slice(self, name: str, of: str, ports: list[Any], ends: list[Any]) -> None:
        labels = {"kubernetes.io/service-name": of}
        body = {"metadata": {"name": name, "labels": labels}, "addressType": "IPv4"}
        self._create(SLICES, {**body, "ports": ports, "endpoints": ends})


async def compare(sites: tuple[Site, Site], cluster: Cluster) -> dict[Pair, tuple[Fate, Fate]]:
    """Ask both until they agree on everything, or for as long as one may wait; return where they do not."""
    servers = [asyncio.ensure_future(answer(sock)) for site in sites for sock in site.listening]
    loop = asyncio.get_running_loop()
    try:
        deadline = loop.time() + PATIENCE
        while unserved := [at for at, site in enumerate(sites) if not await serves(site)]:
            assert loop.time() < deadline, f"not all is served by {unserved}"
            await asyncio.sleep(0.05)
        open_ = [
            (place, frontend)
            for place in PLACES
            for frontend in sorted(cluster.frontends - (set() if place == "outside" else cluster.fenced))
        ]
        known: dict[Pair, tuple[Fate, Fate]] = {}
        deadline = 0.0
        while open_ and (not deadline or loop.time() < deadline):
            for at in range(0, len(open_), PAIRS):
                some = open_[at : at + PAIRS]
                known |= zip(some, await fates(sites, some), strict=True)
            # Not before all were asked once: how long that takes tells how busy the machine is.
            deadline = deadline or loop.time() + PATIENCE
            open_ = [pair for pair in open_ if not agree(*known[pair], sticky=pair[1] in cluster.sticky)]
        return {pair: known[pair] for pair in open_}
    finally:
        for one in servers:
            one.cancel()


def agree(ours: Fate, theirs: Fate, *, sticky: bool) -> bool:
    """Tell whether two fates are the same; with affinity each client has one backend, whichever."""
    if sticky and not (ours | theirs) & {"refused", "dropped"}:
        return len(ours) == len(theirs) == 1
    return ours == theirs


@pytest.mark.parametrize("number", range(ROUNDS))
def test_packets_fare_as_with_kube_proxy(sites: tuple[Site, Site], server: ApiServer, number: int) -> None:
    cluster = Cluster(server, random.Random(SEED * 1000 + number))
    try:
        cluster.build()
        differing = asyncio.run(compare(sites, cluster))
    finally:
        cluster.remove()
    lines = [f"{pair}: {sorted(ours)}, kube-proxy {sorted(theirs)}" for pair, (ours, theirs) in differing.items()]
    assert not lines, "\n".join([*lines, yaml.safe_dump_all(cluster.manifests)])


def seen(node: TestNamespace, wanted: str, seconds: float) -> str:
    """Return what is missing of what is wanted of kube-proxy in a namespace, after so many seconds."""
    return netns.run(node.fd, lambda: kube_proxy.main(wanted, seconds))


@pytest.mark.parametrize(("mode", "number"), [("iptables", 3), ("nftables", 4)])
def test_kube_proxy_is_seen_while_it_serves_and_nothing_of_it_after_its_cleanup(
    new_netns: Callable[[], TestNamespace],
    tmp_path: Path,
    server: ApiServer,
    sites: tuple[Site, Site],
    mode: str,
    number: int,
) -> None:
    """`sites` have made the Node without which kube-proxy waits for half a minute."""
    node, cluster = new_netns(), Cluster(server, random.Random(SEED))
    assert "no rules for Services" in seen(node, "serves", 0)
    proxy = _kube_proxy(node, tmp_path, server, mode=mode, number=number)
    try:
        cluster.build_last()
        assert seen(node, "serves", PATIENCE) == "", (tmp_path / "kube-proxy.log").read_text()
        assert "a kube-proxy runs here" in seen(node, "stopped", 0)
        assert "a kube-proxy runs here" in seen(node, "gone", 0)
    finally:
        proxy.kill()
        proxy.wait()
        cluster.remove()
    assert seen(node, "stopped", 0) == ""
    assert "chains in nft ip" in seen(node, "gone", 0)
    node.sh("nft add table ip others; nft add chain ip others mine")
    node.run(str(programs() / "kube-proxy"), "--cleanup")
    # As errands ask: the exit status is what counts.
    node.run(sys.executable, "-m", "podway.health.sources.kube_proxy", "gone", "0")
    assert "chain mine" in node.sh("nft list ruleset")


def test_the_agent_says_that_it_serves_services_to_all(sites: tuple[Site, Site]) -> None:
    ours, _ = sites
    asked = [sys.executable, "-m", "podway.channel.alive", str(ours.agent), "--serves", str(PATIENCE)]
    assert ours.node.run(*asked).stderr == ""
