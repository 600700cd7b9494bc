"""The agent dies and comes back: nothing is lost, doubled or done twice."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from podway.cni.spec import Code
from podway.kernel.rtnl import links
from podway.lab import names, topology
from tests.patience import eventually
from tests.system.system_lab import PodUnderTest, SystemLab, running_lab

pytestmark = pytest.mark.kernel


def pod_links(lab: SystemLab, node: str) -> set[str]:
    with topology.connection(names.node_netns(lab.name, node)) as connection:
        return {link.name for link in links.dump(connection) if link.name.startswith("pway")}


def test_a_second_start_writes_nothing_and_pods_keep_talking(lab: SystemLab) -> None:
    here, there = lab.add("node1"), lab.add("node2")
    before = lab.leases("node1")
    tables = lab.sh("node1", "nft -s list ruleset; ip route; ip -6 route; ip -d link | grep -v ether")
    bird = lab.status("node1")["routing"]["bird"]
    lab.kill_agent("node1")
    assert all(here.reaches(address) for address in there.addresses)
    lab.start_agent("node1")
    assert lab.status("node1")["kernel_writes"] == 0
    assert lab.status("node1")["routing"]["bird"] == bird
    assert lab.leases("node1") == before
    assert lab.sh("node1", "nft -s list ruleset; ip route; ip -6 route; ip -d link | grep -v ether") == tables
    assert all(there.reaches(address) for address in here.addresses)
    # What was adopted is as good as what was added: it can be checked and deleted, and its address is taken.
    assert here.check().ok
    assert here.cni("DEL").ok
    assert pod_links(lab, "node1") == set()


def test_while_the_agent_is_down(lab: SystemLab) -> None:
    """ADD is put off, STATUS says so, DEL is carried out when the agent is back, also for a pod that is gone."""
    pod, gone, stays = lab.add(), lab.add(), lab.add()
    lab.kill_agent("node1")
    refused = lab.new_pod().cni("ADD")
    assert (refused.status, refused.code) == (1, Code.TRY_AGAIN_LATER)
    assert lab.new_pod().cni("STATUS").code == Code.NOT_AVAILABLE
    assert pod.cni("DEL").ok
    gone.vanish()
    assert gone.cni("DEL", path="").ok
    lab.start_agent("node1")
    assert set(lab.leases("node1")) == {stays.attachment}
    assert pod_links(lab, "node1") == {stays.link}
    assert not list((lab.run_dir("node1") / "cni-deletes").iterdir())
    assert "eth0" not in pod.sh("ip link")


def test_a_namespace_that_vanishes_frees_its_addresses(lab: SystemLab) -> None:
    pod, other = lab.add(), lab.add()
    pod.vanish()
    eventually(lambda: set(lab.leases("node1")) == {other.attachment})
    assert pod_links(lab, "node1") == {other.link}
    assert sum(block["cooling"] for block in lab.status("node1")["blocks"]) >= 2
    # ... and while no agent runs:
    lab.kill_agent("node1")
    other.vanish()
    eventually(lambda: not pod_links(lab, "node1"))
    lab.start_agent("node1")
    assert lab.leases("node1") == {}
    assert lab.status("node1")["drift"] == {"now": [], "repaired": [], "refused": []}


def test_a_pod_that_vanishes_while_the_agent_cannot_listen(lab: SystemLab) -> None:
    """The kernel's announcements are lost when their buffer is full; the lease is found dead all the same."""
    pod, other = lab.add(), lab.add()
    agent = int(lab.status("node1")["pid"])
    os.kill(agent, signal.SIGSTOP)
    try:
        flood = "".join(f"route add 100.{64 + n // 250}.{n % 250}.0/24 via 172.30.0.2\n" for n in range(12_000))
        lab.sh("node1", "ip -batch -", stdin=flood)
        lab.sh("node1", "ip -batch -", stdin=flood.replace("add", "del"))
        pod.vanish()
        eventually(lambda: pod.link not in pod_links(lab, "node1"))
    finally:
        os.kill(agent, signal.SIGCONT)
    eventually(lambda: set(lab.leases("node1")) == {other.attachment})
    assert lab.status("node1")["drift"]["now"] == []
    assert other.check().ok


@pytest.mark.parametrize("stage", ["created", "host", "pod", "committed"])
def test_killed_at_each_stage_of_wiring(lab: SystemLab, stage: str) -> None:
    """Before the last stage nothing remains; after it the lease stands, and the runtime's DEL removes it."""
    lab.kill_agent("node1")
    process = lab.start_agent_with("node1", die_at=stage)
    pod = lab.new_pod()
    assert pod.cni("ADD").code == Code.TRY_AGAIN_LATER
    eventually(lambda: process.ended() is not None)
    assert pod_links(lab, "node1") == {pod.link}
    lab.start_agent("node1")
    held = set(lab.leases("node1"))
    assert held == ({pod.attachment} if stage == "committed" else set())
    assert pod_links(lab, "node1") == ({pod.link} if stage == "committed" else set())
    # A runtime that got no result deletes, then tries again.
    assert pod.cni("DEL").ok
    pod.add()
    assert pod.check().ok


class Churn:
    """Random ADDs and DELs by several runtimes at once, while the agent is killed at random instants."""

    def __init__(self, lab: SystemLab, *, operations: int, kills: int, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.left = operations
        self.wanted_kills = kills
        self.kills = 0
        self.lock = threading.Lock()
        self.alive: dict[str, PodUnderTest] = {}

    def work(self, slot: int) -> None:
        """One runtime, with two pods' namespaces of its own."""
        sandboxes = [self.lab.new_pod() for _ in range(2)]
        turns = 0
        while self.take_turn():
            turns += 1
            pod = sandboxes[self.random.randrange(2)]
            if pod.added is not None:
                assert pod.cni("DEL").ok
                pod.added = None
                continue
            pod.container = f"c{slot}x{turns}"
            answer = pod.cni("ADD")
            if answer.ok:
                pod.added = answer
            else:
                assert answer.code == Code.TRY_AGAIN_LATER, answer.output
                time.sleep(0.1)
                assert pod.cni("DEL").ok  # as runtimes do after a failed ADD
        for pod in sandboxes:
            if pod.added is not None:
                self.alive[pod.container] = pod

    def take_turn(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0 or self.kills < self.wanted_kills

    def kill_now_and_then(self, stop: threading.Event) -> None:
        while not stop.is_set():
            time.sleep(self.random.uniform(0.0, 0.4))
            self.lab.kill_agent("node1")
            self.kills += 1
            self.lab.start_agent("node1")


def test_no_address_is_doubled_or_leaked_whenever_the_agent_is_killed() -> None:
    with running_lab(1, ["10.244.0.0/24", "fd00:244::/64"], [26, 122]) as lab:
        churn = Churn(lab, operations=400, kills=12, seed=1)
        stop = threading.Event()
        with ThreadPoolExecutor(5) as threads:
            killer = threads.submit(churn.kill_now_and_then, stop)
            try:
                for runtime in [threads.submit(churn.work, slot) for slot in range(4)]:
                    runtime.result()
            finally:
                stop.set()
            killer.result()
        eventually(lambda: not list((lab.run_dir("node1") / "cni-deletes").iterdir()))
        assert "kernel refused" not in lab.log("node1")
        held = lab.leases("node1")
        assert {attachment.container for attachment in held} == set(churn.alive)
        given = [address for addresses in held.values() for address in addresses]
        assert len(given) == len(set(given)) == 2 * len(churn.alive)
        assert pod_links(lab, "node1") == {pod.link for pod in churn.alive.values()}
        for pod in churn.alive.values():
            assert held[pod.attachment] == pod.addresses
            assert pod.check().ok
            assert pod.reaches("172.30.0.1")
            pod.cni("DEL")
        assert sum(block["leased"] for block in lab.status("node1")["blocks"]) == 0
        routes = lab.sh("node1", "ip route show proto 112; ip -6 route show proto 112").splitlines()
        assert all(route.startswith("blackhole") for route in routes)
