"""Pods on the bridge: the rules of the network hold, the agent may die at any time, and both attaches coexist."""

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address

import pytest

from podway.api.addresses import gateway_of
from podway.api.kinds.ip_pool import IPPool
from podway.cni.spec import Code
from podway.kernel import netns
from podway.lab.facts import PoolSettings
from tests.patience import eventually
from tests.system.system_lab import PodUnderTest, SystemLab

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def bridged() -> Iterator[SystemLab]:
    """Two dual-stack nodes, whose pools attach pods to the bridge; tests use `lab`."""
    lab = SystemLab()
    lab.up(2, pool_settings=PoolSettings(attach="bridge"))
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def lab(bridged: SystemLab) -> Iterator[SystemLab]:
    """The module's lab: after each test pools attach to the bridge, all agents run, and all pods are gone."""
    yield bridged
    attach(bridged, "bridge")
    for node in ("node1", "node2"):
        if not bridged.ready(node):
            bridged.start_agent(node)
    bridged.remove_pods()


def attach(lab: SystemLab, how: str) -> None:
    """Change both pools, and wait until the agents know."""
    pools = lab.store(lambda store: store.list(IPPool)).items
    if {pool.spec.attach for pool in pools} == {how}:
        return
    lab.podway("apply", "-f", "-", stdin="\n---\n".join(manifest(pool, how) for pool in pools))
    eventually(lambda: all(how == probe(lab, node) for node in ("node1", "node2")))


def manifest(pool: IPPool, how: str) -> str:
    document = {
        "apiVersion": "podway.io/v1",
        "kind": "IPPool",
        "metadata": {"name": pool.metadata.name},
        "spec": {"cidr": pool.spec.cidr, "attach": how},
    }
    return json.dumps(document)


def probe(lab: SystemLab, node: str) -> str:
    """Return how a new pod of a node is attached."""
    pod = lab.add(node)
    how = "bridge" if on_bridge(lab, pod) else "routed"
    assert pod.cni("DEL").ok
    return how


def on_bridge(lab: SystemLab, pod: PodUnderTest) -> bool:
    return "master cni0" in lab.sh(pod.node, f"ip link show {pod.link}")


def test_the_bridge_that_goes_with_its_last_pod_is_no_repair(lab: SystemLab) -> None:
    pod = lab.add("node1")
    attach(lab, "routed")
    before = lab.repaired("node1")
    assert pod.cni("DEL").ok
    eventually(lambda: "cni0" not in lab.sh("node1", "ip link show"))
    assert lab.repaired("node1") == before
    # What somebody else takes away is one, also when our own plan has just changed.
    lab.add("node1")
    lab.sh(
        "node1", "ip route del blackhole $(ip route show type blackhole proto 112 | awk '/./ {print $2; exit}')"
    )
    eventually(lambda: len(lab.repaired("node1")) > len(before))


def correct(lab: SystemLab, node: str = "node1") -> bool:
    drift = lab.status(node)["drift"]
    return not drift["now"] and not drift["refused"]


def tcp(server: PodUnderTest, client: PodUnderTest) -> bool:
    """Tell whether TCP connections to all of a pod's addresses carry data, from one of the client's own."""
    for address in server.addresses:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        place = (str(address), 80)
        with (
            inside(server, partial(socket.create_server, place, family=family)) as listening,
            inside(client, partial(socket.create_connection, place, 1)) as one,
        ):
            other, peer = listening.accept()
            with other:
                one.sendall(b"hello")
                if other.recv(9) != b"hello" or ip_address(peer[0]) not in client.addresses:
                    return False
    return True


def inside(pod: PodUnderTest, make: Callable[[], socket.socket]) -> socket.socket:
    """Make a socket in a pod's namespace."""
    with netns.opened(pod.path) as fd:
        return netns.run(fd, make)


def test_the_rules_of_the_network_hold(lab: SystemLab) -> None:
    """Pod to pod, pod to node and node to pod, here and across nodes; no first packet has to wait."""
    here, beside, there = lab.add("node1"), lab.add("node1"), lab.add("node2")
    assert all(on_bridge(lab, pod) for pod in (here, beside, there))
    for one, other in ((here, beside), (beside, here), (here, there), (there, beside)):
        assert all(one.reaches(address) for address in other.addresses)
    for pod in (here, there):
        for node in ("172.30.0.1", "172.30.0.2", "fd70:6f64:7761:7900::1", "fd70:6f64:7761:7900::2"):
            assert pod.reaches(node)
        for address in pod.addresses:
            for node in ("node1", "node2"):
                lab.sh(node, f"ping -n -q -c 1 -W 0.2 {address}")
    assert tcp(beside, here)
    assert tcp(there, here)
    # Through the gateway to another node, and without it to the next pod.
    assert f"via {gateway_of(lab.block_of(here.addresses[0]))}" in here.sh(f"ip route get {there.addresses[0]}")
    assert "via" not in here.sh(f"ip route get {beside.addresses[0]}")


def test_the_result_names_bridge_port_and_pod(lab: SystemLab) -> None:
    pod = lab.add()
    assert pod.added is not None
    result = pod.added.output
    assert [entry["name"] for entry in result["interfaces"]] == ["cni0", pod.link, "eth0"]
    assert [bool(entry.get("sandbox")) for entry in result["interfaces"]] == [False, False, True]
    blocks = [lab.block_of(address) for address in pod.addresses]
    assert [entry["gateway"] for entry in result["ips"]] == [str(gateway_of(block)) for block in blocks]
    assert [entry["interface"] for entry in result["ips"]] == [2, 2]
    assert [int(entry["address"].split("/")[1]) for entry in result["ips"]] == [b.prefixlen for b in blocks]
    assert pod.check().ok


def test_a_port_taken_off_the_bridge_is_told_by_check_and_put_back(lab: SystemLab) -> None:
    """CHECK may come before or after the agent has put it back."""
    pod, other = lab.add(), lab.add()
    lab.sh("node1", f"bridge link set dev {pod.link} locked off; ip link set {pod.link} nomaster")
    told = pod.check()
    assert told.ok or f"port {pod.link} of cni0" in told.words
    eventually(lambda: on_bridge(lab, pod) and pod.check().ok)
    assert other.reaches(pod.addresses[0])
    assert any(f"port {pod.link} of cni0 was" in what for what in lab.repaired("node1"))


def test_a_bridge_that_was_deleted_comes_back_with_its_ports(lab: SystemLab) -> None:
    pods = [lab.add() for _ in range(3)]
    lab.sh("node1", "ip link del cni0")
    eventually(lambda: correct(lab) and all(on_bridge(lab, pod) for pod in pods))
    assert all(pods[0].reaches(address) for pod in pods[1:] for address in pod.addresses)
    assert pods[1].reaches("172.30.0.2")
    # ... and while no agent runs:
    held = lab.leases("node1")
    lab.kill_agent("node1")
    lab.sh("node1", "ip link del cni0")
    lab.start_agent("node1")
    assert lab.leases("node1") == held
    assert correct(lab)
    assert all(pods[0].reaches(address) for pod in pods[1:] for address in pod.addresses)


def test_a_bridge_of_somebody_else_is_named_and_left_alone(lab: SystemLab) -> None:
    lab.kill_agent("node1")  # it would be quicker to make its own anew
    lab.sh("node1", "ip link del cni0; ip link add cni0 type bridge")
    lab.start_agent("node1")
    refused = lab.new_pod().cni("ADD")
    assert refused.code == Code.KERNEL_FAILURE
    assert "cni0" in refused.words
    assert "ip link delete cni0" in refused.words
    eventually(lambda: any("cni0" in problem for problem in lab.status("node1")["drift"]["refused"]))
    assert "group default" in lab.sh("node1", "ip link show cni0")
    lab.sh("node1", "ip link del cni0")
    eventually(lambda: lab.new_pod().cni("ADD").ok and correct(lab))


def test_a_second_start_writes_nothing_and_pods_keep_talking(lab: SystemLab) -> None:
    here, beside, there = lab.add("node1"), lab.add("node1"), lab.add("node2")
    before = lab.leases("node1")
    lab.kill_agent("node1")
    assert all(here.reaches(address) for address in (*beside.addresses, *there.addresses))
    lab.start_agent("node1")
    assert lab.status("node1")["kernel_writes"] == 0
    assert lab.leases("node1") == before
    assert here.check().ok
    assert here.cni("DEL").ok
    assert correct(lab)
    assert lab.repaired("node1") == []


def nothing_left(lab: SystemLab, pod: PodUnderTest) -> bool:
    look = lab.sh("node1", "ip -br link; ip route; ip -6 route; ip neigh; ip -6 neigh; bridge fdb show br cni0")
    return pod.link not in look and not any(f"{address} " in look for address in pod.addresses)


def test_nothing_is_left_of_a_pod_that_went(lab: SystemLab) -> None:
    deleted, vanished, unseen = lab.add(), lab.add(), lab.add()
    assert deleted.cni("DEL").ok
    assert nothing_left(lab, deleted)
    vanished.vanish()
    eventually(lambda: nothing_left(lab, vanished))
    lab.kill_agent("node1")
    unseen.vanish()
    eventually(lambda: unseen.link not in lab.sh("node1", "ip -br link"))
    lab.start_agent("node1")
    assert nothing_left(lab, unseen)
    assert lab.leases("node1") == {}
    assert sum(block["leased"] for block in lab.status("node1")["blocks"]) == 0
    assert lab.repaired("node1") == []


@pytest.mark.parametrize("stage", ["created", "host", "pod", "committed"])
def test_killed_at_each_stage_of_wiring(lab: SystemLab, stage: str) -> None:
    lab.kill_agent("node1")
    process = lab.start_agent_with("node1", die_at=stage)
    pod = lab.new_pod()
    assert pod.cni("ADD").code == Code.TRY_AGAIN_LATER
    eventually(lambda: process.ended() is not None)
    lab.start_agent("node1")
    assert set(lab.leases("node1")) == ({pod.attachment} if stage == "committed" else set())
    assert correct(lab)
    assert pod.cni("DEL").ok
    pod.add()
    assert pod.check().ok


def test_no_address_is_doubled_or_leaked_whenever_the_agent_is_killed(lab: SystemLab) -> None:
    chance = random.Random(1)
    stop, kills = threading.Event(), 0

    def kill_now_and_then() -> None:
        nonlocal kills
        while not stop.is_set():
            time.sleep(chance.uniform(0.0, 0.3))
            lab.kill_agent("node1")
            lab.start_agent("node1")
            kills += 1

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    alive: list[PodUnderTest] = []
    try:
        while kills < 4:
            pod = lab.new_pod()
            answer = pod.cni("ADD")
            if answer.ok:
                pod.added = answer
                alive.append(pod)
            else:
                assert answer.code == Code.TRY_AGAIN_LATER, answer.output
                time.sleep(0.1)
                assert pod.cni("DEL").ok
            if len(alive) > 6:
                assert alive.pop(chance.randrange(6)).cni("DEL").ok
    finally:
        stop.set()
        killer.join()
    eventually(lambda: not list((lab.run_dir("node1") / "cni-deletes").iterdir()))
    held = lab.leases("node1")
    assert held == {pod.attachment: pod.addresses for pod in alive}
    given = [address for addresses in held.values() for address in addresses]
    assert len(given) == len(set(given)) == 2 * len(alive) > 0
    assert correct(lab)
    for pod in alive:
        assert pod.check().ok
        assert pod.cni("DEL").ok
    assert "dev cni0 proto 112" not in lab.sh("node1", "ip route; ip -6 route")


def test_a_changed_pool_is_for_new_pods_and_both_kinds_reach_each_other(lab: SystemLab) -> None:
    old, far = lab.add("node1"), lab.add("node2")
    attach(lab, "routed")
    new = lab.add("node1")
    assert (on_bridge(lab, old), on_bridge(lab, new)) == (True, False)
    assert lab.block_of(old.addresses[0]) == lab.block_of(new.addresses[0])
    for one, other in ((old, new), (new, old), (old, far), (far, new)):
        assert all(one.reaches(address) for address in other.addresses)
    assert tcp(new, old)
    assert tcp(old, new)
    # Restarted, the agent knows which is which.
    lab.kill_agent("node1")
    lab.start_agent("node1")
    assert lab.status("node1")["kernel_writes"] == 0
    assert old.check().ok
    assert new.check().ok
    # With its last pod the bridge goes, where no pool wants one.
    assert "cni0" in lab.sh("node1", "ip -br link")
    assert old.cni("DEL").ok
    attached = lab.add("node1")
    lab.sh("node1", f"ip route del {attached.addresses[0]}")  # makes the agent look
    eventually(lambda: "cni0" not in lab.sh("node1", "ip -br link") and correct(lab))
    assert new.reaches(far.addresses[0])


def test_pools_that_want_different_things_of_one_pod_are_refused(lab: SystemLab) -> None:
    pools = lab.store(lambda store: store.list(IPPool)).items
    refusal = lab.podway("apply", "-f", "-", stdin=manifest(pools[0], "routed"), check=False)
    assert f"IPPool/{pools[0].metadata.name}: spec.attach: is routed, but bridge in IPPool/" in refusal
    assert lab.store(lambda store: store.list(IPPool)).items == pools
    # Selectors that differ may meet in a pod, which only the agent sees.
    special = json.loads(manifest(pools[0], "routed"))
    special["metadata"]["name"], special["spec"]["cidr"] = "special", "10.77.0.0/16"
    special["spec"]["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": "odd"}}
    lab.podway("apply", "-f", "-", stdin=json.dumps(special))
    try:
        pod = lab.new_pod()
        eventually(lambda: not pod.cni("ADD", namespace="odd").ok or not pod.cni("DEL").ok)
        refused = pod.cni("ADD", namespace="odd")
        assert refused.code == Code.INVALID_CONFIG
        assert "IPPool/special" in refused.words
        assert "spec.attach" in refused.words
        assert sum(block["leased"] for block in lab.status("node1")["blocks"]) == 0
    finally:
        special["spec"]["disabled"] = True
        lab.podway("apply", "-f", "-", stdin=json.dumps(special))
