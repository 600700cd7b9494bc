"""The controller before a real API server, with the token and the rights of deploy/rbac.yaml and no more."""

import asyncio
import base64
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from podway.api.kinds.network_config import ChannelSettings
from podway.channel.certificate import Credential
from podway.controller.controller import METRICS
from podway.errors import AgentError
from podway.identity import tls
from podway.kernel import netns
from podway.store.base import Store
from podway.store.kubernetes.access import read_kubeconfig
from podway.store.kubernetes.store import KubernetesStore
from tests.kubernetes import ROOT, Answer, ApiServer, running_api_server
from tests.metrics.text_format import parse
from tests.patience import PATIENCE, eventually

pytestmark = pytest.mark.kernel

KINDS = "/apis/podway.io/v1"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with a controller on node c."""
    with running_api_server(tmp_path_factory.mktemp("controlled")) as made:
        made.kubectl("apply", "-f", str(ROOT / "deploy/rbac.yaml"))
        made.ask("POST", "/api/v1/nodes", {"metadata": {"name": "c"}})
        yield made


@pytest.fixture(scope="module")
def token(server: ApiServer) -> str:
    return server.token("c", of="controller")


@pytest.fixture
def controller(server: ApiServer, token: str, tmp_path: Path) -> Iterator[Path]:
    """A controller that runs, and its log."""
    config, log = tmp_path / "config", tmp_path / "log"
    config.write_text(yaml.safe_dump(server.kubeconfig(token=token)))
    command = [sys.executable, "-m", "podway", "--store", f"kubernetes://{config}", "controller"]
    command += ["--name", "one", "--metrics", "127.0.0.1:9181"]
    with open(log, "ab") as file:
        process = netns.run(server.fd, lambda: subprocess.Popen(command, stderr=file))
    yield log
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    assert '"level": "error"' not in log.read_text(), "a right is missing"


def make(server: ApiServer, plural: str, kind: str, name: str, spec: dict[str, Any]) -> None:
    document = {"apiVersion": "podway.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    server.ask("POST", f"{KINDS}/{plural}", document)


def fetch(server: ApiServer, port: int) -> str:
    """Return the metrics that are served at a port beside the API server."""
    with server.socket() as plain:
        plain.connect(("127.0.0.1", port))
        plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = plain.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    return body.decode()


def gone(server: ApiServer, path: str) -> bool:
    try:
        server.ask("GET", path)
    except Answer as answer:
        return answer.status == 404
    return False


def accepted(server: ApiServer, path: str) -> dict[str, Any]:
    """Return the condition Accepted of an object, empty if it has none of its generation."""
    found = server.ask("GET", f"{KINDS}/{path}")
    for one in found.get("status", {}).get("conditions", []):
        if one["type"] == "Accepted" and one["observedGeneration"] == found["metadata"]["generation"]:
            condition: dict[str, Any] = one
            return condition
    return {}


def test_what_people_wrote_is_judged_and_kubectl_shows_it(server: ApiServer, controller: Path) -> None:
    make(server, "ippools", "IPPool", "first", {"cidr": "10.0.0.0/16"})
    make(
        server,
        "addressblocks",
        "AddressBlock",
        "10-0-1-0-24",
        {"cidr": "10.0.1.0/24", "pool": "first", "node": "c"},
    )
    make(server, "ippools", "IPPool", "second", {"cidr": "10.0.128.0/17"})
    make(server, "networkconfigs", "NetworkConfig", "default", {"serviceCidrs": ["10.0.9.0/24"]})
    rules = [{"cidr": "10.0.0.0/8", "action": "accept", "maxLength": 24}] * 2
    make(server, "bgppeers", "BGPPeer", "rules", {"address": "192.0.2.1", "asn": 64512, "import": rules})
    expected = {
        "ippools/first": ("True", "Accepted", "nothing contradicts it"),
        "ippools/second": ("False", "Overlaps", "10.0.128.0/17 overlaps 10.0.0.0/16 of IPPool/first"),
        "networkconfigs/default": ("False", "Overlaps", "10.0.9.0/24 overlaps 10.0.0.0/16 of IPPool/first"),
        "bgppeers/rules": ("False", "Invalid", "spec.import[1]: cannot match"),
    }
    for path, (status, reason, words) in expected.items():
        eventually(lambda path=path: accepted(server, path), f"{path} is judged")
        told = accepted(server, path)
        assert (told["status"], told["reason"]) == (status, reason)
        assert words in told["message"]
    server.ask("PATCH", f"{KINDS}/ippools/first", {"spec": {"cidr": "10.3.0.0/16"}}, content=MERGE)
    eventually(lambda: accepted(server, "ippools/first").get("reason") == "InUse", "a pool in use is not changed")
    server.ask("PATCH", f"{KINDS}/ippools/first", {"spec": {"cidr": "10.0.0.0/16"}}, content=MERGE)
    server.ask("DELETE", f"{KINDS}/networkconfigs/default")
    server.ask("DELETE", f"{KINDS}/ippools/second")
    eventually(lambda: accepted(server, "ippools/first").get("reason") == "Accepted", "set back, it holds")
    assert "True" in server.kubectl("get", "ippools", "first", "-o", "wide")
    measured = parse(fetch(server, 9181))
    assert {name for name, _ in measured} == {metric.name for metric in METRICS}
    assert measured["podway_controller_leads", ()] == measured["podway_controller_store_in_touch", ()] == 1
    assert measured["podway_controller_not_accepted", (("kind", "BGPPeer"),)] == 1
    assert measured["podway_controller_work_undone", ()] == 0


def test_what_a_node_had_is_given_back_when_kubernetes_has_it_no_more(server: ApiServer, controller: Path) -> None:
    server.ask("POST", "/api/v1/nodes", {"metadata": {"name": "n7"}})
    make(server, "ippools", "IPPool", "p7", {"cidr": "10.7.0.0/16"})
    make(
        server, "addressblocks", "AddressBlock", "10-7-1-0-24", {"cidr": "10.7.1.0/24", "pool": "p7", "node": "n7"}
    )
    leases = "/apis/coordination.k8s.io/v1/namespaces/podway/leases"
    spent = {"holderIdentity": "k", "leaseDurationSeconds": 30, "renewTime": "2026-01-01T00:00:00.000000Z"}
    server.ask("POST", leases, {"metadata": {"name": "n7"}, "spec": spent})
    eventually(lambda: accepted(server, "ippools/p7"), "the controller works")
    server.ask("DELETE", "/api/v1/nodes/n7")

    block = f"{KINDS}/addressblocks/10-7-1-0-24"
    eventually(lambda: gone(server, block), "the block is given back", within=2 * PATIENCE)
    eventually(lambda: gone(server, f"{leases}/n7"), "and the lease")
    assert accepted(server, "ippools/p7")["status"] == "True"


@pytest.fixture(scope="module")
def agents(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    """Stores as agents open them, with a token of the node's."""

    def opened(node: str) -> Store:
        server.ask("POST", "/api/v1/nodes", {"metadata": {"name": node}})
        path = tmp_path_factory.mktemp(node) / "config"
        path.write_text(yaml.safe_dump(server.kubeconfig(token=server.token(node))))
        return KubernetesStore(lambda: read_kubeconfig(path), sockets=lambda address: server.socket(address[0]))

    return opened


def test_the_controller_signs_for_the_node_that_asks_and_keeps_the_key(
    server: ApiServer, controller: Path, agents: Callable[[str], Store]
) -> None:
    async def scenario() -> tuple[tls.Credentials, tls.Credentials]:
        found = []
        for node in ("a1", "a2"):
            store = agents(node)
            credential = Credential(store, node, requested=True)
            for _ in range(60):  # the authority may not be there yet
                try:
                    await credential.keep(ChannelSettings())
                    break
                except AgentError:
                    await asyncio.sleep(0.5)
            before = credential.credentials
            await credential.keep(ChannelSettings())
            assert credential.credentials == before, "what is right is not asked for again"
            assert before is not None
            found.append(before)
            await store.close()
        return found[0], found[1]

    first, second = asyncio.run(scenario())
    assert shake(first, second) == f"spiffe://{first.cluster}/node/a2"
    authority = server.ask("GET", f"{KINDS}/clusterauthorities/default")
    assert "PRIVATE KEY" not in str(authority)
    keys = server.ask("GET", "/api/v1/namespaces/podway-authority/secrets/keys")["data"]
    assert all("PRIVATE KEY" in base64.b64decode(one).decode() for one in keys.values())
    assert len(keys) == len(authority["spec"]["authorities"]) == 1
    server.ask("DELETE", "/api/v1/nodes/a1")
    path = f"{KINDS}/nodecertificates/a1"
    eventually(lambda: gone(server, path), "what a removed node asked for is forgotten", within=2 * PATIENCE)


def test_what_is_no_request_is_told_so(server: ApiServer, controller: Path) -> None:
    server.ask("POST", "/api/v1/nodes", {"metadata": {"name": "bad"}})
    make(
        server, "nodecertificates", "NodeCertificate", "bad", {"request": "-----BEGIN CERTIFICATE REQUEST-----\nx"}
    )
    path = f"{KINDS}/nodecertificates/bad"
    eventually(lambda: server.ask("GET", path).get("status", {}).get("problem"), "the request is refused")
    assert "no certificate request" in server.ask("GET", path)["status"]["problem"]


def shake(asker: tls.Credentials, answerer: tls.Credentials) -> str:
    """Have one speak TLS with the other; return whom the asker then speaks with."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor() as pool:
        server = pool.submit(tls.server_context(answerer).wrap_socket, theirs, server_side=True)
        with tls.client_context(asker).wrap_socket(ours) as client, server.result(PATIENCE):
            return tls.holder(client)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/api/v1/nodes/c", {"metadata": {"annotations": {"podway.io/accepts": "x"}}}),
        ("DELETE", "/api/v1/nodes/c", None),
        ("GET", "/api/v1/pods", None),
        ("GET", "/api/v1/secrets", None),
        ("GET", "/api/v1/namespaces/podway/secrets", None),
        ("PATCH", "/api/v1/namespaces/default", {"metadata": {"labels": {"x": "y"}}}),
        ("PATCH", "/api/v1/namespaces/default/services/kubernetes", {"metadata": {"labels": {"x": "y"}}}),
        ("PATCH", f"{KINDS}/ippools/none", {"spec": {"cidr": "10.9.0.0/16"}}),
        ("DELETE", f"{KINDS}/ippools/none", None),
        ("POST", f"{KINDS}/addressblocks", {}),
        ("POST", f"{KINDS}/nodecertificates", {}),
        ("DELETE", f"{KINDS}/clusterauthorities/default", None),
        ("GET", "/api/v1/namespaces/podway-authority/secrets", None),
        ("GET", "/api/v1/namespaces/podway-authority/secrets/others", None),
        ("GET", "/apis/coordination.k8s.io/v1/leases", None),
        ("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", {}),
    ],
)
def test_a_stolen_token_of_it_does_nothing_else(
    server: ApiServer, token: str, method: str, path: str, body: Any
) -> None:
    with pytest.raises(Answer, match="cannot") as refused:
        server.ask(method, path, body, content=MERGE if method == "PATCH" else "application/json", token=token)
    assert refused.value.status == 403


def test_an_operator_is_told_of_what_does_not_hold(server: ApiServer, controller: Path) -> None:
    make(server, "ippools", "IPPool", "first-of-two", {"cidr": "10.60.0.0/16"})
    make(server, "ippools", "IPPool", "second-of-two", {"cidr": "10.60.1.0/24"})
    events = "/apis/events.k8s.io/v1/namespaces/default/events"

    def told() -> bool:
        found = [one for one in server.ask("GET", events)["items"] if one["regarding"]["name"] == "second-of-two"]
        return len(found) == 1 and found[0]["reason"] == "SetAside" and "10.60.0.0/16" in found[0]["note"]

    eventually(told, "there is an Event about the pool that overlaps")
    assert "second-of-two" in server.kubectl("events", "--types", "Warning")


def test_services_get_addresses_outside_and_a_full_pool_is_told(server: ApiServer, controller: Path) -> None:
    def addresses(name: str) -> list[str]:
        found = server.ask("GET", f"/api/v1/namespaces/default/services/{name}")
        return [one["ip"] for one in found["status"]["loadBalancer"].get("ingress", [])]

    def serve(name: str, **spec: Any) -> None:
        spec = {"type": "LoadBalancer", "ports": [{"port": 80}], "allocateLoadBalancerNodePorts": False, **spec}
        server.ask("POST", "/api/v1/namespaces/default/services", {"metadata": {"name": name}, "spec": spec})

    make(server, "ippools", "IPPool", "outside", {"cidr": "192.0.2.8/31", "use": "services"})
    serve("web")
    eventually(lambda: addresses("web") == ["192.0.2.8"], "the Service has an address")
    serve("other", loadBalancerClass="example.com/lb")
    serve("shop")
    serve("late")
    eventually(lambda: addresses("shop") + addresses("late") == ["192.0.2.9"], "one of two gets the last address")
    have, lack = ("shop", "late") if addresses("shop") else ("late", "shop")
    told = server.kubectl("get", "service", lack, "-o", "jsonpath={.status.conditions[*].message}")
    assert told == "no IPv4 address is free in IPPool/outside"
    eventually(lambda: "PoolFull" in server.kubectl("get", "events", "-n", "default"), "an Event tells it")
    server.ask(
        "PATCH", f"/api/v1/namespaces/default/services/{have}", {"spec": {"type": "ClusterIP"}}, content=MERGE
    )
    eventually(lambda: addresses(lack) == ["192.0.2.9"], "what one gave up is the other's")
    assert addresses("web") == ["192.0.2.8"]
    assert addresses("other") == []
