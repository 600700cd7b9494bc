"""Whole labs: real agents, real BIRDs, the CNI plugin executed as a runtime does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.errors import InvalidObject, LabError
from podway.lab import agents, cluster, facts, names, pods, processes, state, topology
from podway.lab.facts import PoolSettings
from podway.lab.paths import lab_dir
from podway.store.base import Store
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel

DUAL = ("10.244.0.0/16", "fd00:10:244::/56")


def _podway(lab: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "podway", "--lab", lab, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def build(lab_name: str) -> Callable[..., str]:
    """Give a function that builds the lab of this test."""

    def up(*, nodes: int = 2, pools: tuple[str, ...] = DUAL, block_sizes: tuple[int, ...] = ()) -> str:
        cluster.up(lab_name, nodes=nodes, pools=pools, block_sizes=block_sizes, asn=64512, report=lambda _: None)
        return lab_name

    return up


def _blocks(lab: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for block in facts.ask(lab, lambda store: store.list(AddressBlock)).items:
        found.setdefault(block.spec.node, []).append(block.spec.cidr)
    return found


async def _update(obj: IPPool, store: Store) -> IPPool:
    return await store.update(obj)


def _traces(lab: str) -> list[str]:
    marked = processes.Members([], marked=lambda mark: mark.startswith(f"{lab}/")).pids()
    return [*topology.namespaces(lab), *map(str, marked), *(["directory"] if lab_dir(lab).exists() else [])]


@pytest.mark.usefixtures("untouched_root")
def test_pods_of_two_nodes_talk_with_their_own_addresses_and_nothing_stays(build: Callable[..., str]) -> None:
    lab = build()
    for pod, node in (("a", "node1"), ("b", "node2")):
        done = _podway(lab, "lab", "run", pod, "--node", node, "--serve", "8080", "--label", f"app={pod}")
        assert done.returncode == 0, done.stderr
    stored = {pod.metadata.name: pod for pod in facts.ask(lab, lambda store: store.list(Pod)).items}
    assert [pod.metadata.labels for pod in stored.values()] == [{"app": "a"}, {"app": "b"}]
    assert [[address.version for address in pod.addresses] for pod in stored.values()] == [[4, 6], [4, 6]]
    for own, peer in zip(stored["a"].addresses, stored["b"].addresses, strict=True):
        asking = (
            "import socket, sys; s = socket.create_connection((sys.argv[1], 8080), 5); s.sendall(b'hi\\n');"
            "print(s.makefile().readline().strip())"
        )
        done = _podway(lab, "lab", "exec", "a", "--", sys.executable, "-c", asking, str(peer))
        shown = f"[{own}]" if own.version == 6 else str(own)
        assert done.stdout.startswith(f"I am pod default/b on node2, you are {shown}:"), done.stderr
    assert _podway(lab, "lab", "down").returncode == 0
    assert _traces(lab) == []


def test_a_pod_gets_the_wanted_address_the_emptiest_node_and_its_lease_returns(build: Callable[..., str]) -> None:
    lab = build(pools=("10.244.0.0/16",), block_sizes=(26,))
    wanted = str(ip_network(_blocks(lab)["node1"][0])[9])
    first = pods.run(lab, "first", addresses=[wanted], node="node1", namespace="shop")
    assert [str(address) for address in first.addresses] == [wanted]
    assert pods.run(lab, "second").spec.node_name == "node2"
    with pytest.raises(LabError, match=wanted):  # leased already
        pods.run(lab, "third", addresses=[wanted], node="node1")
    with pytest.raises(LabError, match="a pod shop/first already"):
        pods.run(lab, "first", namespace="shop")
    with pytest.raises(InvalidObject, match=r"metadata\.name"):
        pods.run(lab, "No_Name")
    assert agents.status(lab, "node1")["leases"] == 1
    pods.remove_named(lab, "first", "shop")
    assert agents.status(lab, "node1")["leases"] == 0
    left = [pod.metadata.name for pod in facts.ask(lab, lambda store: store.list(Pod)).items]
    assert left == ["second"]
    assert names.pod_netns(lab, "shop", "first") not in topology.namespaces(lab)


def test_a_server_that_cannot_listen_undoes_the_pod(
    build: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = build(nodes=1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LabError, match="no server on port 80"):
        pods.run(lab, "web", serve=80)
    assert facts.ask(lab, lambda store: store.list(Pod)).items == ()
    assert agents.status(lab, "node1")["leases"] == 0
    assert names.pod_netns(lab, "default", "web") not in topology.namespaces(lab)


def test_nodes_come_go_and_lose_their_power(build: Callable[..., str]) -> None:
    lab = build(nodes=3)
    before = _blocks(lab)
    pods.run(lab, "web", node="node2", serve=80)

    cluster.kill_node(lab, "node2")
    assert not any("node2" in name or "web" in name for name in topology.namespaces(lab))
    assert processes.Members([], marked=lambda mark: mark == f"{lab}/node2").pids() == []
    assert _blocks(lab) == before
    deadline = time.monotonic() + PATIENCE
    while before["node2"][0] in _podway(lab, "lab", "node", "node1", "--", "ip", "route").stdout:
        assert time.monotonic() < deadline, "the routes of a dead node stay"
    for refused in (
        lambda: cluster.kill_node(lab, "node2"),
        lambda: pods.run(lab, "late", node="node2"),
        lambda: pods.execute(lab, "web", "default", ["true"]),
        lambda: cluster.execute_on_node(lab, "node2", ["true"]),
    ):
        with pytest.raises(LabError, match="off"):
            refused()

    cluster.start_node(lab, "node2", lambda _: None)
    assert _blocks(lab) == before
    asked = pods.find(lab, "web", "default").addresses[0]
    url = f"http://{asked}/"
    fetch = ["-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).read())", url]
    assert "pod default/web" in _podway(lab, "lab", "node", "node3", "--", sys.executable, *fetch).stdout

    cluster.add_node(lab, "node7", lambda _: None)
    assert str(state.load(lab).addresses("node7")[0].ip).endswith(".7")
    cluster.remove_node(lab, "node2")
    assert set(_blocks(lab)) == {"node1", "node3", "node7"}
    registered = facts.ask(lab, lambda store: store.list(Node)).items
    assert [node.metadata.name for node in registered] == ["node1", "node3", "node7"]
    assert facts.ask(lab, lambda store: store.list(Pod)).items == ()
    with pytest.raises(LabError, match="no node 'node2'") as caught:
        cluster.remove_node(lab, "node2")
    assert "node1, node3, node7" in caught.value.hint


def test_deleting_a_node_whose_agent_lives_says_what_happens(build: Callable[..., str]) -> None:
    lab = build(nodes=2, pools=("10.244.0.0/16",))
    done = _podway(lab, "delete", "node", "node2")
    assert (done.returncode, done.stdout) == (0, "Node/node2 deleted\n")
    before, after = done.stderr.splitlines()
    assert "registers the node again" in before
    assert "podway lab node rm node2" in before
    assert after == "Node/node2: its agent runs, and has registered it again"
    os.kill(agents.status(lab, "node2")["pid"], signal.SIGKILL)
    done = _podway(lab, "delete", "node/node2")
    before, after = done.stderr.splitlines()
    assert "If it still runs" in before
    assert "its blocks (10.244.2.0/24)" in after


def test_an_agent_that_was_killed_starts_again_on_the_same_node(build: Callable[..., str]) -> None:
    lab = build(nodes=1)
    pods.run(lab, "web")
    with pytest.raises(LabError, match="runs already"):
        cluster.start_node(lab, "node1", lambda _: None)
    os.kill(agents.status(lab, "node1")["pid"], signal.SIGKILL)
    assert _podway(lab, "lab", "rm", "web").returncode == 0, "a DEL must not need the agent"
    cluster.start_node(lab, "node1", lambda _: None)
    pods.run(lab, "web2")
    assert agents.status(lab, "node1")["leases"] == 1


def test_nodes_have_converged_once_packets_cross_as_is_asked_for(lab_name: str) -> None:
    """Not while routes still lead through an overlay that is not asked for any more."""
    cluster.up(
        lab_name,
        nodes=2,
        pools=DUAL,
        block_sizes=(),
        asn=64512,
        report=lambda _: None,
        pool_settings=PoolSettings(encapsulation="vxlan"),
    )
    ours = {node: processes.Spawned(agents.status(lab_name, node)["pid"]) for node in ("node1", "node2")}
    for process in ours.values():
        os.kill(process.pid, signal.SIGSTOP)
    for pool in facts.ask(lab_name, lambda store: store.list(IPPool)).items:
        bare = msgspec.structs.replace(pool, spec=msgspec.structs.replace(pool.spec, encapsulation="none"))
        facts.ask(lab_name, partial(_update, bare))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(agents.wait_converged, state.load(lab_name), ours, lambda _: None)
        try:
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1.0)
        finally:
            for process in ours.values():
                os.kill(process.pid, signal.SIGCONT)
        waiting.result(timeout=PATIENCE)
    for family, blocks in (("-4", "10.244."), ("-6", "fd00:10:244")):
        command = ["ip", "-j", "-n", names.node_netns(lab_name, "node1"), family, "route", "show"]
        routes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        # Below the best one BIRD's may still stand for a moment.
        routes.sort(key=lambda route: route.get("metric", 0), reverse=True)
        best = {route["dst"]: route.get("dev") for route in routes if route["dst"].startswith(blocks)}
        assert best
        assert "podway-vxlan" not in best.values()


def test_a_node_joins_although_another_ones_agent_is_dead_and_that_is_said(build: Callable[..., str]) -> None:
    lab = build(nodes=3, pools=("10.244.0.0/22",))
    dead = agents.status(lab, "node2")["pid"]
    os.kill(dead, signal.SIGKILL)
    told: list[str] = []
    cluster.add_node(lab, "node4", told.append)
    assert [line for line in told if line.startswith("node2: its agent does not answer")], told
    assert told[-1] == "3 address ranges known on 3 nodes"
    routes = {node: _podway(lab, "lab", "node", node, "--", "ip", "route").stdout for node in ("node1", "node4")}
    (block,) = _blocks(lab)["node4"]
    assert block in routes["node1"]
    assert "10.244.3.0/24 via" in routes["node4"]
    told.clear()
    cluster.start_node(lab, "node2", told.append)
    assert told[-1] == "4 address ranges known on all 4 nodes"
    cluster.add_node(lab, "late", told.append)
    assert "late: no IPv4 block is left for it: its pods get no address; add a pool" in told


@pytest.mark.parametrize(("attempt", "racks"), [(0, []), (1, []), (2, []), (1, ["--racks", "2", "--tor", "frr"])])
def test_down_removes_what_a_killed_up_left(lab_name: str, attempt: int, racks: list[str]) -> None:
    command = [sys.executable, "-m", "podway", "--lab", lab_name, "lab", "up", "--nodes", "2", *racks]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as building:
        deadline = time.monotonic() + PATIENCE
        while not lab_dir(lab_name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.5) * attempt)
        building.kill()
    assert _traces(lab_name)
    done = _podway(lab_name, "lab", "down")
    assert done.returncode == 0, done.stderr
    assert _traces(lab_name) == []
    again = _podway(lab_name, "lab", "down")
    assert (again.returncode, f"no lab '{lab_name}'" in again.stderr) == (1, True)


def test_an_up_that_fails_shows_the_agents_log_and_leaves_nothing(
    build: Callable[..., str], lab_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(LabError, match=r"node1: its agent ended with status 1.*\n(.|\n)*encodings"):
        build(nodes=1)
    assert _traces(lab_name) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--pool", "10.244.1.0/16"], "host bits set"),
        (["--pool", "127.0.0.0/16"], "loopback"),
        (["--pool", "10.244.0.0/16", "--block-size", "12"], "spec.blockSize"),
        (["--pool", "10.244.0.0/16", "--block-size", "122"], "no pool is"),
        (["--pool", "10.0.0.0/8", "--pool", "10.1.0.0/16"], "overlaps"),
        (["--asn", "0"], "reserved"),
        (["--nodes", "0"], "choose 1 to"),
        (["--racks", "4"], "a rack would be empty"),
        (["--racks", "2", "--nodes", "251"], "choose 1 to 250"),
        (["--tor", "frr"], "a flat segment has no routers"),
        (["--pool", "fd00::/48", "--encapsulation", "ipip"], "IPIP carries IPv4 packets"),
        (["--node-family", "ipv6", "--encapsulation", "ipip"], "between IPv4 nodes"),
        (["--pool", "10.244.0.0/23"], "choose --block-size 25, or a larger --pool, such as 10.244.0.0/22"),
        (["--pool", "10.244.0.0/28", "--block-size", "29"], "2 blocks of /29, and 3 nodes need one each"),
        (["--pool", "10.0.0.0/23", "--pool", "10.1.0.0/23"], "2 blocks of /24, and 3 nodes"),
        (["--pool", "10.244.0.0/16", "--pool", "fd00::/121"], "--block-size 123"),
        (["--data-path", "kernel", "--services", "pods"], "--services needs the flow engine"),
    ],
)
def test_what_cannot_be_built_is_said_and_nothing_is_left(lab_name: str, options: list[str], problem: str) -> None:
    done = _podway(lab_name, "lab", "up", *options)
    assert done.returncode == 2
    assert problem in done.stderr
    assert _traces(lab_name) == []


def test_a_lab_is_built_once_and_one_command_changes_it_at_a_time(
    build: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = build(nodes=1, pools=("10.244.0.0/20",), block_sizes=(28,))
    pool = facts.ask(lab, lambda store: store.list(IPPool)).items[0]
    assert (pool.spec.cidr, pool.block_prefix) == ("10.244.0.0/20", 28)
    with pytest.raises(LabError, match="exists already"):
        build()
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.1)
    with state.locked(lab, shared=True):
        pods.run(lab, "beside")
        with pytest.raises(LabError, match="another command"):
            cluster.down(lab)
    assert lab in [path.name for path in Path(lab_dir(lab)).parent.iterdir()]
    assert json.loads((lab_dir(lab) / "lab.json").read_text())["nodes"] == {
        "node1": {"index": 1, "running": True, "rack": 1}
    }


def test_a_command_inside_ends_as_in_a_shell(build: Callable[..., str], tmp_path: Path) -> None:
    lab = build(nodes=1)
    pods.run(lab, "web", namespace="shop")
    script = tmp_path / "no-script"
    script.write_text("exit 0")
    for inside in (
        ["exec", "shop/web"],
        ["exec", "web", "-n", "shop"],
        ["exec", "pod/shop/web"],
        ["node", "node1"],
    ):
        for command, status, told in (
            (["--", "sh", "-c", "exit 7"], 7, ""),
            (["sh", "-c", "exit 7"], 7, ""),  # its options are not ours, also without --
            (["--", "sh", "-c", "kill -9 $$"], 128 + 9, ""),
            (["--", "no-such-command"], 127, "podway: no-such-command: No such file or directory\n"),
            (["--", str(script)], 126, f"podway: {script}: Permission denied\n"),
        ):
            done = _podway(lab, "lab", *inside, *command)
            assert (done.returncode, done.stderr) == (status, told)
    for words, told in (
        (["exec", "shop/web", "-n", "default", "--", "true"], "leave one of the two out"),
        (["exec", "shop/web"], "missing argument 'COMMAND...'"),
        (["node", "node1"], "podway lab node node1 -- COMMAND..."),
        (["run", "x", "--ip", "10.244.0.300"], "does not appear to be"),
        (["run", "No_Name"], "metadata.name"),
        (["run", "x", "--label", "a"], "no KEY=VALUE"),
        (["node", "add", "a.b"], "not a node's name"),
        (["node", "add", "node2", "--rack", "5"], "there is no rack 5"),
    ):
        done = _podway(lab, "lab", *words)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_the_lab_may_be_named_in_several_places(build: Callable[..., str]) -> None:
    lab = build(nodes=1)
    for words in (["node", "--lab", lab, "node1", "true"], ["status", "--lab", lab], ["--lab", lab, "status"]):
        done = _podway("another", "lab", *words)
        assert done.returncode == 0, done.stderr
    twice = _podway("another", "lab", "down", lab)
    assert (twice.returncode, f"{lab} or --lab another?" in twice.stderr) == (2, True)
    environment = {**os.environ, "PODWAY_LAB": "another"}
    command = [sys.executable, "-m", "podway", "lab", "down", lab]
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert _traces(lab) == []


def test_too_little_privilege_names_the_capability(lab_name: str) -> None:
    command = [sys.executable, "-m", "podway", "--lab", lab_name, "lab", "up"]
    unprivileged = ["capsh", "--drop=cap_net_admin", "--", "-c", '"$0" "$@"', *command]
    done = subprocess.run(unprivileged, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "CAP_NET_ADMIN" in done.stderr
