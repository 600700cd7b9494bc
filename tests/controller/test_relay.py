"""Agents asked through a real API server, by commands with no way to any node: who may, and who may not."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from podway.channel.admin import Method
from podway.channel.server import Channel
from podway.cluster.view import ClusterView
from podway.controller.following import Facts
from podway.controller.relay import Relay
from podway.errors import AgentError
from podway.kernel import netns
from podway.store.kubernetes.access import read_kubeconfig
from podway.store.kubernetes.store import KubernetesStore
from tests.kubernetes import ADMIN, NOBODY, ROOT, ApiServer, running_api_server
from tests.patience import PATIENCE, eventually

pytestmark = pytest.mark.kernel

HERE = "192.0.2.1"
"""An address of the API server's namespace: a proxy goes to no loopback address."""
RELAY = 9182


class Agent:
    """What answers on node n: a real channel, whose certificate the controller signed, and a few answers."""

    def __init__(self, server: ApiServer, config: Path) -> None:
        self._server, self._config = server, config
        self._stop = threading.Event()
        self._thread = threading.Thread(target=netns.run, args=(server.fd, lambda: asyncio.run(self._run())))

    async def _run(self) -> None:
        store = KubernetesStore(lambda: read_kubeconfig(self._config))
        state: Any = SimpleNamespace(
            node="n",
            uplink=SimpleNamespace(node_addresses=(ip_address(HERE),)),
            view=ClusterView.of([]),
        )
        channel = Channel(store, state, requested=True)
        methods = {
            "routes": Method(self._routes, remote=True),
            "heard": Method(self._fail, remote=True),
            "secret": Method(self._routes),
            "capture.begin": Method(self._begin, remote=True, operators=True),
            "capture.take": Method(self._take, remote=True, operators=True),
            "capture.end": Method(self._end, remote=True, operators=True),
        }
        running = asyncio.create_task(channel.run(methods))
        await asyncio.to_thread(self._stop.wait)
        running.cancel()
        channel.close()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()

    async def _routes(self) -> Any:
        return [{"network": "10.244.1.0/24", "protocol": "own", "in_kernel": True, "node": "n"}]

    async def _begin(self, **_: Any) -> Any:
        return {"node": "n", "links": {}}

    async def _take(self, capture: str) -> Any:
        data = base64.b64encode(bytes.fromhex("45000014") + bytes(16)).decode()
        return {"frames": [["", "eth0", 65534, True, time.time_ns(), 20, data]], "lost": 0, "more": False}

    async def _end(self, capture: str) -> None:
        pass

    async def _fail(self) -> Any:
        raise AgentError("BIRD is silent", hint="look at its log")

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


class Setting:
    """An API server with Podway's roles, a controller that relays, and an agent."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server, self.directory = server, directory

    def config(self, token: str) -> Path:
        path = self.directory / f"{token[-40:]}.config"
        if not path.exists():
            path.write_text(yaml.safe_dump(self.server.kubeconfig(token=token)))
        return path

    def podway(self, token: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as one who has this token."""
        environment = {**os.environ, "KUBECONFIG": str(self.config(token))}
        program = str(Path(sys.executable).with_name("kubectl-podway"))
        command = [program, *arguments]
        return netns.run(
            self.server.fd,
            lambda: subprocess.run(
                command, check=False, capture_output=True, text=True, env=environment, timeout=PATIENCE
            ),
        )

    def shows(self, token: str, *arguments: str) -> str:
        """Return what a command prints that succeeds."""
        done = self.podway(token, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(
        self, token: str = "", question: Any = None, *, path: str = "/ask", length: int = 0
    ) -> tuple[int, Any]:
        """Ask the relay itself, past the API server; return status and answer."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(HERE, RELAY, context=context, timeout=PATIENCE)
        plain = self.server.socket()
        plain.connect((HERE, RELAY))
        connection.sock = context.wrap_socket(plain)
        try:
            asked = question or {"node": "n", "method": "routes", "params": {}, "timeout": 5}
            body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
            headers = {"Content-Length": str(length or len(body)), **({"Podway-Token": token} if token else {})}
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def token(self, account: str = "podway-viewer", *audiences: str) -> str:
        path = f"/api/v1/namespaces/podway/serviceaccounts/{account}/token"
        asked = {"spec": {"audiences": [*audiences], "expirationSeconds": 600}}
        found: str = self.server.ask("POST", path, asked)["status"]["token"]
        return found


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    directory = tmp_path_factory.mktemp("relay")
    with running_api_server(directory / "api") as server, contextlib.ExitStack() as stack:
        server.inside("ip", "address", "add", f"{HERE}/32", "dev", "lo")
        server.kubectl("apply", "-f", str(ROOT / "deploy/rbac.yaml"))
        server.ask("POST", "/api/v1/nodes", {"metadata": {"name": "n"}})
        addresses = {"status": {"addresses": [{"type": "InternalIP", "address": HERE}]}}
        server.ask("PATCH", "/api/v1/nodes/n/status", addresses, content="application/merge-patch+json")
        made = Setting(server, directory)
        (directory / "controller.config").write_text(
            yaml.safe_dump(server.kubeconfig(token=server.token("n", of="controller")))
        )
        # The proxy goes to addresses only that a pod has.
        pod = {"status": {"phase": "Running", "podIP": HERE, "podIPs": [{"ip": HERE}]}}
        path = "/api/v1/namespaces/podway/pods/controller-n/status"
        server.ask("PATCH", path, pod, content="application/merge-patch+json")
        for document in _service():
            server.ask("POST", document.pop("path"), document)
        command = [sys.executable, "-m", "podway", "controller", "--name", "one", "--relay", f"{HERE}:{RELAY}"]
        command += ["--store", f"kubernetes://{directory}/controller.config"]
        with open(directory / "controller.log", "ab") as log:
            process = netns.run(server.fd, lambda: subprocess.Popen(command, stderr=log))
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.send_signal, signal.SIGTERM)
        agent = Agent(server, made.config(ADMIN))
        agent.start()
        stack.callback(agent.end)
        eventually(lambda: made.shows(ADMIN, "get", "routes"))
        yield made
        assert '"level": "error"' not in (directory / "controller.log").read_text(), "a right is missing"


def _service() -> list[dict[str, Any]]:
    """Return the Service, and where it leads: to the controller's pod, which nobody else writes here."""
    manifest = list(yaml.safe_load_all((ROOT / "deploy/controller.yaml").read_text()))
    service = next(one for one in manifest if one["kind"] == "Service")
    service["spec"].pop("selector")
    metadata, pod = {"name": "podway-controller", "namespace": "podway"}, {"kind": "Pod", "name": "controller-n"}
    target = {"targetRef": {**pod, "namespace": "podway"}}
    port = {"name": "relay", "port": RELAY}
    return [
        {"path": "/api/v1/namespaces/podway/services", **service},
        {
            "path": "/api/v1/namespaces/podway/endpoints",
            **{"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata},
            "subsets": [{"addresses": [{"ip": HERE, **target}], "ports": [port]}],
        },
        {
            "path": "/apis/discovery.k8s.io/v1/namespaces/podway/endpointslices",
            **{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4"},
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "podway-controller"}},
            "endpoints": [{"addresses": [HERE], "conditions": {"ready": True}, **target}],
            "ports": [port],
        },
    ]


def test_an_operator_sees_what_agents_know_and_nobody_else_does(setting: Setting) -> None:
    refused = setting.podway(NOBODY, "get", "routes")
    assert refused.returncode == 1
    assert "forbids it" in refused.stderr
    group = "rbac.authorization.k8s.io"
    for kind, scope in (("ClusterRole", "clusterrolebindings"), ("Role", "namespaces/podway/rolebindings")):
        binding = {
            "metadata": {"name": "operators"},
            "roleRef": {"apiGroup": group, "kind": kind, "name": "podway-operator"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "nobody"}],
        }
        setting.server.ask("POST", f"/apis/{group}/v1/{scope}", binding)
    eventually(lambda: setting.shows(NOBODY, "get", "routes"))
    assert "10.244.1.0/24" in setting.shows(NOBODY, "get", "routes")
    # What the agent says of itself, and what nobody but its own node may ask.
    silent = setting.podway(NOBODY, "status")
    assert "agent of n: " in silent.stdout + silent.stderr
    log = (setting.directory / "controller.log").read_text()
    assert '"user": "system:serviceaccount:podway:podway-viewer"' in log, "asked by the controller, not directly"


def test_without_a_token_for_podway_nothing_is_asked(setting: Setting) -> None:
    """Whoever reaches the port: no token, one that is none, others' audience, others' account."""
    setting.server.ask("POST", "/api/v1/namespaces/podway/serviceaccounts", {"metadata": {"name": "other"}})
    for token, who in (
        ("", "nobody"),
        ("nonsense", "nobody"),
        (ADMIN, "nobody"),  # an administrator's token is no proof here: it could be used elsewhere
        (setting.token("podway-viewer"), "nobody"),
        (setting.token("podway-viewer", "others"), "nobody"),
        (setting.token("other", "podway.io"), "system:serviceaccount:podway:other"),
    ):
        status, answer = setting.ask(token)
        assert (status, answer["error"]) == (200, f"{who} may not ask the agent of n for `routes`")
        assert "get agents/routes" in answer["hint"]


def test_a_viewer_is_told_what_the_agent_says_and_what_is_wrong_with_the_question(setting: Setting) -> None:
    token = setting.token("podway-viewer", "podway.io")
    asked = {"node": "n", "method": "routes", "params": {}, "timeout": 5}
    assert setting.ask(token)[1]["result"][0]["network"] == "10.244.1.0/24"
    told = setting.ask(token, {**asked, "method": "heard"})[1]
    assert "BIRD is silent" in told["error"]
    assert told["hint"] == "look at its log"
    for question, words in (
        ({**asked, "method": "secret"}, "may not ask the agent of n for `secret`"),
        ({**asked, "node": "m"}, "no node 'm'"),
        ({**asked, "params": {"node": "x"}}, "not a question"),
        ({**asked, "params": {"x": 1}}, "x"),
        ({"node": 5}, "not a question"),
        (b"\xff", "not a question"),
    ):
        status, answer = setting.ask(token, question)
        assert status == 200
        assert words in answer["error"]
    assert setting.ask(token, path="/other")[0] == 404
    assert setting.ask(token, length=2 << 20)[0] == 413


def test_packets_are_asked_for_directly_by_who_may_read_the_keys(setting: Setting) -> None:
    """And the controller relays none, whatever RBAC says of it."""
    pod = {"metadata": {"name": "web"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}}
    setting.server.ask("POST", "/api/v1/namespaces/default/pods", pod)
    ready = {"status": {"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}]}}
    content = "application/merge-patch+json"
    setting.server.ask("PATCH", "/api/v1/namespaces/default/pods/web/status", ready, content=content)
    path = setting.directory / "web.pcapng"
    command = ("capture", "web", "--duration", "1", "-o", str(path))
    done = setting.podway(ADMIN, *command)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    assert " 0 packets" not in done.stderr
    log = (setting.directory / "controller.log").read_text()
    assert '"method": "capture' not in log, "not through the controller"

    done = setting.podway(setting.server.token("n"), *command)  # an agent may not read the keys
    assert done.returncode == 1
    assert "keys of the cluster's certificate authorities cannot be read" in done.stderr
    assert "RBAC" not in done.stderr
    token = setting.token("podway-viewer", "podway.io")
    asked = {"node": "n", "method": "capture.begin", "params": {}, "timeout": 5}
    _, answer = setting.ask(token, asked)
    assert answer["error"] == "`capture.begin` is not asked through the API server"
    assert "RBAC" not in answer["hint"]


def test_two_controllers_may_relay_on_one_node(setting: Setting) -> None:
    async def both() -> None:
        store = KubernetesStore(lambda: read_kubeconfig(setting.config(ADMIN)))
        relays = [Relay(store, Facts) for _ in range(2)]
        for relay in relays:
            await relay.start(HERE, RELAY)
            relay.close()
        await store.close()

    netns.run(setting.server.fd, lambda: asyncio.run(both()))  # beside the one that runs


def test_a_controller_without_a_kubernetes_api_relays_nothing() -> None:
    command = [sys.executable, "-m", "podway", "controller", "--relay", ":9182", "--store", "etcd://127.0.0.1:1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "--relay: questions come through a Kubernetes API" in done.stderr
