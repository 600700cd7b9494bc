"""Nodes, BIRD and the store go away and come back."""

import os
import sqlite3
from collections.abc import Iterator

import msgspec
import pytest

from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.node import Node
from podway.api.meta import Metadata
from podway.cni.spec import Code
from podway.lab import cluster, topology
from podway.lab.paths import lab_dir
from tests.patience import eventually
from tests.system.system_lab import SystemLab, running_lab

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab() -> Iterator[SystemLab]:
    """Three nodes."""
    with running_lab(3) as three:
        yield three


@pytest.fixture(autouse=True)
def restored(lab: SystemLab) -> Iterator[None]:
    """What a test killed runs again after it, and its pods are gone."""
    yield
    lab.restore()


def test_a_killed_nodes_routes_are_gone_within_a_second_and_it_comes_back(lab: SystemLab) -> None:
    lab.podway("lab", "run", "web", "--node", "node3", "--serve", "80")
    blocks = [str(block) for block, owner in lab.blocks().items() if owner == "node3"]
    routes = "ip route; ip -6 route"
    for node in ("node1", "node2"):
        assert all(block in lab.sh(node, routes) for block in blocks)
    topology.cut_node(lab.name, 3)  # with this the node is dead for the others
    for node in ("node1", "node2"):
        eventually(lambda node=node: not any(block in lab.sh(node, routes) for block in blocks), every=0.01)
    assert lab.status("node1")["drift"]["now"] == []
    cluster.kill_node(lab.name, "node3")
    cluster.start_node(lab.name, "node3", lambda _: None)
    blocks = [str(block) for block, owner in lab.blocks().items() if owner == "node3"]
    for node in ("node1", "node2"):
        assert all(block in lab.sh(node, routes) for block in blocks)
    pod = lab.add("node1")
    address = msgspec.json.decode(lab.podway("get", "pods", "web", "-o", "json"))["status"]["podIP"]
    assert pod.reaches(address)
    lab.podway("lab", "rm", "web")


def test_bird_killed_is_started_again_and_no_route_is_lost(lab: SystemLab) -> None:
    here, there = lab.add("node1"), lab.add("node2")
    before = lab.sh("node1", "ip route; ip -6 route")
    bird = lab.status("node1")["routing"]["bird"]
    lab.kill(bird)

    def revived() -> bool:
        routing = lab.status("node1")["routing"]
        assert lab.sh("node1", "ip route; ip -6 route") == before
        assert here.reaches(there.addresses[0])
        assert there.reaches(here.addresses[1])
        return (
            routing["bird"] not in (0, bird)
            and len(routing["peers"]) == 4
            and all(peer["state"] == "Established" for peer in routing["peers"])
        )

    eventually(revived, every=0.1)
    assert lab.status("node1")["routing"]["problem"] == ""


def test_agent_and_bird_killed_together_lose_no_route(lab: SystemLab) -> None:
    here, there = lab.add("node1"), lab.add("node2")
    before = lab.sh("node1", "ip route; ip -6 route")
    bird = lab.status("node1")["routing"]["bird"]
    lab.kill_agent("node1")
    lab.kill(bird)
    assert here.reaches(there.addresses[0])
    lab.start_agent("node1")
    assert lab.sh("node1", "ip route; ip -6 route") == before
    assert here.reaches(there.addresses[0])
    assert there.reaches(here.addresses[1])
    eventually(lambda: all(peer["state"] == "Established" for peer in lab.status("node1")["routing"]["peers"]))
    assert lab.sh("node1", "ip route; ip -6 route") == before


def test_news_while_bird_was_dead_reach_it(lab: SystemLab) -> None:
    """A plan that could not be handed over is handed over later."""
    lab.kill(lab.status("node1")["routing"]["bird"])
    pool = IPPool(metadata=Metadata(name="late"), spec=IPPoolSpec(cidr="10.250.0.0/24", block_size=28))
    lab.store(lambda store: store.create(pool))
    eventually(lambda: any(block["pool"] == "late" for block in lab.status("node1")["blocks"]))
    eventually(lambda: "10.250.0" in (lab.run_dir("node1") / "bird.conf").read_text())
    mine = next(str(block) for block, owner in lab.blocks().items() if owner == "node1" and "10.250" in str(block))
    eventually(lambda: mine in lab.sh("node2", "ip route"))
    assert lab.status("node1")["routing"]["problem"] == ""


def test_a_rejected_bird_configuration_leaves_the_running_one_and_is_reported(lab: SystemLab) -> None:
    here, there = lab.add("node1"), lab.add("node2")
    spoilt = lab.run_dir("node1") / "spoilt"
    lab.kill_agent("node1")
    lab.start_agent_with("node1", spoil=str(spoilt))
    running = (lab.run_dir("node1") / "bird.conf").read_text()
    spoilt.touch()
    pool = IPPool(metadata=Metadata(name="refused"), spec=IPPoolSpec(cidr="10.249.0.0/24", block_size=28))
    lab.store(lambda store: store.create(pool))
    try:
        eventually(lambda: lab.status("node1")["routing"]["problem"])
        problem = lab.status("node1")["routing"]["problem"]
        assert "bird.new" in problem or "syntax error" in problem
        assert (lab.run_dir("node1") / "bird.conf").read_text() == running
        assert here.reaches(there.addresses[0])
        assert "syntax error" in lab.podway("status", "node1")
        limited = here.cni("STATUS")
        assert limited.code == Code.LIMITED_CONNECTIVITY
        # An agent that starts now finds BIRD with what it took last, and starts all the same.
        lab.kill_agent("node1")
        lab.start_agent_with("node1", spoil=str(spoilt))
        assert lab.status("node1")["routing"]["problem"]
        assert here.reaches(there.addresses[0])
        assert lab.add("node1").reaches(there.addresses[1])
    finally:
        spoilt.unlink()
    eventually(lambda: not lab.status("node1")["routing"]["problem"])
    assert "10.249.0.0" in (lab.run_dir("node1") / "bird.conf").read_text()
    lab.kill_agent("node1")
    lab.start_agent("node1")


@pytest.mark.parametrize("how", ["moved away", "locked"])
def test_pods_come_and_go_while_the_store_is_away(lab: SystemLab, how: str) -> None:
    file, rejected = lab_dir(lab.name) / "store.db", lab_dir(lab.name) / "aside.db"
    here = lab.add("node1")
    if how == "moved away":
        file.rename(rejected)
    else:
        blocker = sqlite3.connect(file, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
    try:
        if how == "moved away":
            eventually(lambda: "store.db" in lab.status("node1")["store"]["problem"])
        pods = [lab.add(node) for node in ("node1", "node2")]
        assert all(here.reaches(pod.addresses[0]) and here.reaches(pod.addresses[1]) for pod in pods)
        assert pods[0].check().ok
        assert pods[0].cni("DEL").ok
        assert pods[1].cni("STATUS").ok
    finally:
        if how == "moved away":
            rejected.rename(file)
        else:
            blocker.execute("ROLLBACK")
            blocker.close()
    eventually(lambda: lab.status("node1")["store"]["problem"] == "")
    name = f"after-{how.partition(' ')[0]}"
    number = 1 + ("locked" in how)
    pool = IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=f"10.25{number}.0.0/24", block_size=28))
    lab.store(lambda store: store.create(pool))
    eventually(lambda: any(block["pool"] == name for block in lab.status("node1")["blocks"]))
    nodes = len(lab.store(lambda store: store.list(Node)).items)
    # Pods get addresses of this pool from now on: every node has a block, and the way to the others'.
    for node in ("node1", "node2"):
        eventually(lambda node=node: lab.sh(node, "ip route").count(f"10.25{number}.0.") >= nodes)


def test_an_add_that_needs_a_block_while_the_store_is_away_is_put_off() -> None:
    with running_lab(1, ["10.244.0.0/24"], [29]) as lab:
        file, rejected = lab_dir(lab.name) / "store.db", lab_dir(lab.name) / "aside.db"
        lab.add()
        file.rename(rejected)
        try:
            answers = [lab.new_pod().cni("ADD") for _ in range(12)]
            late = [answer for answer in answers if not answer.ok]
            assert len(late) >= 2
            assert all(answer.code == Code.TRY_AGAIN_LATER for answer in late)
            assert "store.db" in late[0].words
        finally:
            rejected.rename(file)
        pod = lab.new_pod()
        eventually(lambda: pod.cni("ADD").ok)


def test_removing_and_adding_nodes_while_pods_talk(lab: SystemLab) -> None:
    here, there = lab.add("node1"), lab.add("node2")
    cluster.add_node(lab.name, "node4", lambda _: None)
    pod = lab.add("node4")
    assert here.reaches(pod.addresses[0])
    assert pod.reaches(there.addresses[1])
    pod.cni("DEL")
    cluster.remove_node(lab.name, "node4")
    lab.pods.remove(pod)
    assert "node4" not in lab.blocks().values()
    assert here.reaches(there.addresses[0])
    assert not any(os.path.exists(f"/run/netns/podway-{lab.name}-{name}") for name in ("node4",))
    eventually(lambda: len(lab.status("node1")["routing"]["peers"]) == 4)


def test_a_node_deleted_from_the_cluster_while_its_agent_runs_registers_again(lab: SystemLab) -> None:
    """Its pods live: neither their addresses nor their block may become another's."""
    pod, other = lab.add("node1"), lab.add("node2")
    blocks = lab.blocks()
    lab.podway("delete", "node", "node1")
    eventually(lambda: "node1" in lab.podway("get", "nodes"))
    eventually(lambda: other.reaches(pod.addresses[0], within=0.3))
    assert lab.blocks() == blocks
