"""Agents whose store is a Kubernetes API: two nodes, a real API server over veths, which goes and comes back."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from podway.agent.metrics import METRICS
from podway.agent.opening import TAINT
from podway.cni.conflist import FILE_NAME
from podway.kernel import netns
from tests.kubernetes import ROOT, ApiServer, running_api_server
from tests.metrics.text_format import parse
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE, eventually
from tests.system.kubernetes_machine import PODWAY, Machine

pytestmark = pytest.mark.kernel


def taints_of(server: ApiServer, name: str) -> set[str]:
    taints = server.ask("GET", f"/api/v1/nodes/{name}")["spec"].get("taints", [])
    return {taint["key"] for taint in taints}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """An API server of this test's own."""
    with running_api_server(tmp_path / "server", hosts=("172.31.1.1", "172.31.2.1")) as made:
        made.kubectl("apply", "-f", str(ROOT / "deploy/rbac.yaml"))
        yield made


@pytest.fixture
def machines(
    new_netns: Callable[[], TestNamespace], tmp_path: Path, server: ApiServer
) -> Iterator[tuple[Machine, Machine]]:
    first, second = new_netns(), new_netns()
    first.sh(f"ip link add eth0 type veth peer name eth0 netns {second.name}")
    for number, namespace in enumerate((first, second), 1):
        namespace.sh(f"ip link set eth0 up; ip addr add 172.30.0.{number}/24 dev eth0")
    made = Machine(first, tmp_path, 1, server), Machine(second, tmp_path, 2, server)
    yield made
    for machine in made:
        machine.end()


POOL = """
apiVersion: podway.io/v1
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.244.0.0/16, blockSize: 29}
"""


def reach(pod: TestNamespace, address: str) -> None:
    """Wait until a pod reaches an address."""
    eventually(
        lambda: pod.run("ping", "-nc1", "-W1", address, check=False).returncode == 0,
        f"{address} answers",
        every=0.2,
    )


def test_pods_come_and_go_while_the_api_server_is_away(
    machines: tuple[Machine, Machine], server: ApiServer, new_netns: Callable[[], TestNamespace]
) -> None:
    """Nothing is lost, and nothing is leaked. Agents have the rights of deploy/rbac.yaml and no more."""
    one, two = machines
    one.podway("apply", "-f", "-", text=POOL)
    one.start()
    two.start()
    early, other = new_netns(), new_netns()
    one.add(early, "early")
    other_address = two.add(other, "other")
    reach(early, other_address)
    for node in server.ask("GET", "/api/v1/nodes")["items"]:
        assert node["metadata"]["annotations"]["podway.io/interface-addresses"].startswith("172.30.0.")
        assert node["status"]["addresses"][0]["type"] == "InternalIP", "as the kubelet wrote it"

    measured = parse(two.namespace.sh("curl -sS http://172.30.0.1:9180/metrics"))
    # What has no value yet has no line: a refused request, say, or the tables of a flow engine that is off.
    assert {name for name, _ in measured if name in {metric.name for metric in METRICS}} == {
        metric.name
        for metric in METRICS
        if metric.kind != "histogram" and not metric.name.startswith(("podway_flow_table_", "hubble_"))
    }
    assert measured["podway_leases", ()] == 1
    assert measured["podway_cni_request_seconds_count", (("command", "ADD"), ("outcome", "done"))] == 1
    assert measured["podway_agent_loop_step_seconds_count", ()] > 10
    assert measured["podway_addresses", (("pool", "pods"), ("state", "leased"))] == 1
    assert measured["podway_store_unreachable_seconds", ()] == 0
    assert len(measured) < 120, "few enough for thousands of nodes"

    server.stop_api()
    late = new_netns()
    late_address = one.add(late, "late")  # of the block that its node has: an ADD asks the API server nothing
    reach(late, other_address)
    one.remove("early")
    eventually(lambda: one.status()["store"]["problem"], "the agent knows that its store is away")
    lost = parse(two.namespace.sh("curl -sS http://172.30.0.1:9180/metrics"))
    assert lost["podway_store_unreachable_seconds", ()] > 0
    one.stop()
    one.start()  # by what its predecessor knew
    reach(late, other_address)

    server.start_api()
    third = new_netns()
    third_address = two.add(third, "third")
    reach(third, late_address)
    assert len({late_address, other_address, third_address}) == 3
    one.podway("set", "pool/pods", "encapsulation=vxlan")
    eventually(lambda: "dev podway-vxlan" in one.namespace.sh("ip route"), "a change of now reaches the agent")
    reach(late, third_address)
    blocks = server.ask("GET", "/apis/podway.io/v1/addressblocks")["items"]
    assert sorted(block["spec"]["node"] for block in blocks) == [one.name, two.name]
    leases = server.ask("GET", "/apis/coordination.k8s.io/v1/namespaces/podway/leases")["items"]
    assert [lease["metadata"]["name"] for lease in leases] == [one.name, two.name]


SHORT = """
apiVersion: podway.io/v1
kind: NetworkConfig
metadata: {name: default}
spec: {channel: {certificateLifetimeSeconds: 6, authorityLifetimeSeconds: 36}}
"""


@contextlib.contextmanager
def controller(server: ApiServer, token: str) -> Iterator[None]:
    """Have a controller run beside the API server, with the rights of deploy/rbac.yaml and no more."""
    config = server.directory / "controller.config"
    config.write_text(yaml.safe_dump(server.kubeconfig(token=token)))
    command = [*PODWAY, "--store", f"kubernetes://{config}", "controller"]
    with open(server.directory / "controller.log", "ab") as log:
        process = netns.run(server.fd, lambda: subprocess.Popen(command, stderr=log))
    try:
        yield
    finally:
        process.kill()  # it gives nothing up
        process.wait()


def until(machine: Machine) -> datetime:
    """Return when the certificate of a machine's agent ends."""
    return datetime.fromisoformat(machine.status()["channel"]["certificate"])


def test_the_controller_may_be_away_for_longer_than_certificates_live(
    machines: tuple[Machine, Machine], server: ApiServer, new_netns: Callable[[], TestNamespace]
) -> None:
    """Pods come and go all the same, and agents have new certificates when it is there again."""
    one, two = machines
    one.podway("apply", "-f", "-", text=POOL)
    one.start()
    two.start()
    assert "no certificate authority yet" in one.status()["channel"]["problem"]
    token = server.token(one.name, of="controller")
    with controller(server, token):
        eventually(lambda: two.status()["channel"]["certificate"], "a certificate is signed", within=2 * PATIENCE)
        early = new_netns()
        one.add(early, "early")
        # A command asks agents over the network, by the authority's keys, which an administrator may read.
        answer = one.podway("status", two.name, "--remote")
        assert "certificate until" in answer
        one.podway("apply", "-f", "-", text=SHORT)
        soon = timedelta(minutes=1)
        eventually(
            lambda: until(two) < datetime.now(UTC) + soon, "a short one takes its place", within=2 * PATIENCE
        )
    last = until(two)
    eventually(lambda: datetime.now(UTC) > last + timedelta(seconds=1), "the certificate has ended")
    late = new_netns()
    reach(early, two.add(late, "late"))
    one.remove("early")
    assert two.status()["drift"]["now"] == []
    with controller(server, token):
        eventually(lambda: until(two) > last, "the agent has a new certificate", within=3 * PATIENCE)


def test_a_node_is_open_to_pods_once_one_can_be_attached(
    machines: tuple[Machine, Machine], server: ApiServer, tmp_path: Path
) -> None:
    """Not before: a kubelet takes its node for ready as soon as there is a CNI configuration."""
    one, _ = machines
    content = "application/merge-patch+json"
    taints = [{"key": TAINT, "effect": "NoSchedule"}]
    server.ask("PATCH", f"/api/v1/nodes/{one.name}", {"spec": {"taints": taints}}, content=content)
    plugins, configurations = tmp_path / "bin", tmp_path / "net.d"
    plugin, configuration = plugins / "podway", configurations / FILE_NAME
    asked = [sys.executable, "-m", "podway.channel.alive", str(one.directory / "agent.sock")]

    def ready() -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*asked, "--ready"], capture_output=True, text=True)

    one.start("--cni-dirs", str(plugins), str(configurations))
    eventually(lambda: "no IPPool serves" in ready().stderr, "the agent says why no pod can come")
    assert subprocess.run(asked).returncode == 0, "which is no reason to kill it"
    assert plugin.exists()
    assert not configurations.exists()
    assert TAINT in taints_of(server, one.name)

    one.podway("apply", "-f", "-", text=POOL)
    eventually(configuration.exists, "the configuration is written")
    eventually(lambda: ready().returncode == 0, "the agent is ready")
    node = server.ask("GET", f"/api/v1/nodes/{one.name}")
    assert TAINT not in taints_of(server, one.name)
    assert [(each["type"], each["status"]) for each in node["status"]["conditions"]] == [
        ("NetworkUnavailable", "False")
    ]
    assert one.status()["leases"] == 0, "nothing is left of the trial"

    text, mode = configuration.read_bytes(), plugin.stat().st_mode
    configuration.write_text("{}")
    plugin.unlink()
    eventually(lambda: plugin.exists() and configuration.read_bytes() == text, "both are as they were")
    assert plugin.stat().st_mode == mode

    # A node that is registered anew, as by a kubelet that lost it, is opened again.
    server.ask("DELETE", f"/api/v1/nodes/{one.name}")
    server.ask("POST", "/api/v1/nodes", {"metadata": {"name": one.name}, "spec": {"taints": taints}})
    eventually(lambda: TAINT not in taints_of(server, one.name), "the new one is open")
