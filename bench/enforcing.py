"""Policies while they change, in a cluster of ten thousand pods: how soon they are in force, and what leaks."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec

from bench.attach import against_ptp, alternate, ratio
from bench.execution import timed
from bench.labs import Lab, RunningPod, inside, lab
from bench.plugins import Plugin, new_container, plugins, sandboxes
from bench.report import Row
from bench.samples import median, ms, percentile
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_policy import (
    NetworkPolicy,
    NetworkPolicyIngressRule,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
)
from podway.api.kinds.pod import Pod, PodAddress, PodSpec, PodStatus
from podway.api.lease import LINK_PREFIX
from podway.api.meta import LabelSelector, Metadata
from podway.errors import LabError
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import ENDPOINT, RULE_SET, STATE, Endpoint, RuleSet, State, pack_address
from podway.kernel.rtnl import links
from podway.lab import names, topology
from podway.lab.paths import lab_store
from podway.policy.planner import PolicyPlanner
from podway.store.base import Store
from podway.store.open import open_store

PODS, POLICIES, SPACES, NODES = 10_000, 1000, 100, 100
LAB_NODES = 3
EVENTS = 100
COMPILES = 5
STARTS = int(os.environ.get("PODWAY_BENCH_STARTS", "500"))
"""10,000 take some minutes."""
ADDS = 40
PATIENCE = 120.0
"""Seconds that a change may take at most, or all agents to know the whole cluster."""
_ENGINE = ("--data-path", "ebpf")
_PROBED = 9999
_FIRST_PORT = 20_000
_APPS = 10

HOW = (
    f"Policies: {PODS:,} pods, {POLICIES:,} policies; the planner of one node by itself, in processor time; and "
    f"{LAB_NODES} real agents with all of it in their store, {EVENTS} changes of a policy that selects a pod of "
    "each node: from before it is written to the store until the last node's maps have it. "
    f"{STARTS:,} pods (PODWAY_BENCH_STARTS) start and end under default deny while another node's pod sends to "
    f"every address of their node. ADD as in the benchmark of ADD and DEL, {ADDS} rounds, with the flow engine."
)


def measured() -> Iterator[Row]:
    """Yield what was found."""
    yield from _planned()
    with lab(nodes=LAB_NODES, options=_ENGINE) as cluster:
        watched = [cluster.run_pod(f"web-{node}", node, namespace=_space(0)) for node in cluster.nodes]
        asyncio.run(_fill(cluster))
        yield _told(asyncio.run(_change(cluster, watched)))
    with (
        lab(nodes=2, options=_ENGINE) as cluster,
        plugins(cluster, "node1") as known,
        sandboxes(3) as paths,
    ):
        yield _probed(cluster, known["podway"], paths[2])
        places = [(known["podway"], paths[0]), (known["ptp"], paths[1])]
        times = cluster.inside("node1", lambda: alternate(places, ADDS))
        yield Row(
            "ADD with the flow engine", against_ptp("ADD", times), "at most 0.4 of ptp", ratio("ADD", times) <= 0.4
        )


# A cluster that is made up.


def _space(number: int) -> str:
    return f"space-{number % SPACES}"


def _pods() -> Iterator[Pod]:
    """Pods of nodes that are not there."""
    first = int(ip_address("10.64.0.0"))
    for number in range(PODS):
        labels = {"app": f"app-{number // SPACES % _APPS}", "pod": f"{number}"}
        address = str(ip_address(first + number))
        yield Pod(
            metadata=Metadata(name=f"pod-{number}", namespace=_space(number), labels=labels, uid=f"uid-{number}"),
            spec=PodSpec(node_name=f"far-{number % NODES}"),
            status=PodStatus(phase="Running", pod_ip=address, pod_ips=(PodAddress(ip=address),)),
        )


def _policy(number: int, port: int = 80) -> NetworkPolicy:
    """Who may reach an application of a namespace: another one of it, by one port."""
    app, other = number // SPACES % _APPS, (number // SPACES + 1) % _APPS
    peer = NetworkPolicyPeer(pod_selector=LabelSelector(match_labels={"app": f"app-{other}"}))
    rule = NetworkPolicyIngressRule(sources=(peer,), ports=(NetworkPolicyPort(port=port),))
    spec = NetworkPolicySpec(
        pod_selector=LabelSelector(match_labels={"app": f"app-{app}"}), policy_types=("Ingress",), ingress=(rule,)
    )
    return NetworkPolicy(metadata=Metadata(name=f"policy-{number}", namespace=_space(number)), spec=spec)


def _all(port: int) -> NetworkPolicy:
    """A policy for all pods of the first namespace."""
    rule = NetworkPolicyIngressRule(ports=(NetworkPolicyPort(port=port),))
    spec = NetworkPolicySpec(pod_selector=LabelSelector(), policy_types=("Ingress",), ingress=(rule,))
    return NetworkPolicy(metadata=Metadata(name="changes", namespace=_space(0)), spec=spec)


# The planner by itself.


def _planned() -> Iterator[Row]:
    cluster = [
        *(Namespace(metadata=Metadata(name=_space(number))) for number in range(SPACES)),
        *_pods(),
        *(_policy(number) for number in range(POLICIES)),
    ]
    compiled, events = [], []
    for _ in range(COMPILES):
        begun = time.process_time()
        planner = PolicyPlanner("far-0")
        for obj in cluster:
            planner.put(obj)
        planner.settle()
        compiled.append(time.process_time() - begun)
    for number in range(EVENTS):
        begun = time.process_time()
        planner.put(
            _policy(number % _APPS * SPACES, 81 + number)
        )  # of the first namespace, whose pods this node has
        planner.settle()
        events.append(time.process_time() - begun)
    what = f"{PODS:,} pods, {POLICIES:,} policies"
    first, one = median(compiled), median(events)
    yield Row(f"first compile, {what}", ms(first), "at most 500 ms", first <= 0.5)
    yield Row(f"one event, {what}", f"{ms(one)} (worst {ms(max(events))})", "at most 2 ms", one <= 0.002)


# Agents.


async def _fill(cluster: Lab) -> None:
    """Have the cluster's store hold everything."""
    async with _store(cluster) as store:
        for number in range(1, SPACES):
            await store.create(Namespace(metadata=Metadata(name=_space(number))))
        for pod in _pods():
            await store.create(pod)
        for number in range(POLICIES):
            await store.create(_policy(number))


@contextlib.asynccontextmanager
async def _store(cluster: Lab) -> AsyncIterator[Store]:
    store = open_store(lab_store(cluster.name))
    try:
        yield store
    finally:
        await store.close()


class _InForce:
    """What judges a pod on its node: looked up in the maps of the engine there."""

    def __init__(self, cluster: Lab, node: str, pod: RunningPod) -> None:
        self._address = pack_address(ip_address(pod.address))
        with topology.connection(names.node_netns(cluster.name, node)) as connection:
            pods = [link.index for link in links.dump(connection) if link.name.startswith(LINK_PREFIX)]
            program = flow_programs.attached(connection, pods)[0].program
        with bpf.opened(program) as opened:
            self._maps = {name: os.dup(opened.maps[name]) for name in ("endpoints", "rule_sets", "state")}

    def now(self) -> tuple[int, int, int]:
        """Return the rules' set, its generation, and as of when flows are looked at again."""
        epoch = State(*STATE.unpack(bpf.element(self._maps["state"], 0))).epoch
        found = bpf.lookup(self._maps["endpoints"], self._address)
        if found is None:
            raise LabError("the engine does not know a pod of its node")
        number = Endpoint(*ENDPOINT.unpack(found)).ingress_rules
        return number, RuleSet(*RULE_SET.unpack(bpf.element(self._maps["rule_sets"], number))).generation, epoch

    def close(self) -> None:
        """Let go of the maps."""
        for fd in self._maps.values():
            os.close(fd)


async def _change(cluster: Lab, watched: Sequence[RunningPod]) -> list[float]:
    """Change a policy again and again; return after how many seconds each was in force everywhere."""
    took = []
    async with _store(cluster) as store, contextlib.AsyncExitStack() as stack:
        nodes = [
            stack.enter_context(contextlib.closing(_InForce(cluster, node, pod)))
            for node, pod in zip(cluster.nodes, watched, strict=True)
        ]
        before = [node.now() for node in nodes]
        policy = await store.create(_all(_FIRST_PORT))
        _wait(nodes, before)  # until agents have gone through all that was created before, too
        for number in range(EVENTS):
            await asyncio.sleep(0.05)
            before = [node.now() for node in nodes]
            changed = msgspec.structs.replace(policy, spec=_all(_FIRST_PORT + 1 + number).spec)
            begun = time.perf_counter()
            policy = await store.update(changed)
            _wait(nodes, before)
            took.append(time.perf_counter() - begun)
    return took


def _wait(nodes: Sequence[_InForce], before: Sequence[tuple[int, int, int]]) -> None:
    """Wait until every node has other rules, and looks at its flows again. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    for node, was in zip(nodes, before, strict=True):
        while (now := node.now())[:2] == was[:2] or now[2] == was[2]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"a changed policy is not in force everywhere after {PATIENCE:g} s")
            time.sleep(0.0001)


def _told(took: Sequence[float]) -> Row:
    half, most = median(took), percentile(took, 99)
    return Row(
        f"policy event to the last node's data path, {PODS:,} pods, {POLICIES:,} policies",
        f"p50 {ms(half)}, p99 {ms(most)}",
        "p50 at most 5 ms, p99 at most 50 ms",
        half <= 0.005 and most <= 0.05,
    )


# Pods that start.


def _probed(cluster: Lab, plugin: Plugin, path: Path) -> Row:
    open_to_all = cluster.run_pod("open", "node1", namespace="open")
    prober = cluster.run_pod("prober", "node2", namespace="open")
    closed = NetworkPolicySpec(pod_selector=LabelSelector(), policy_types=("Ingress",))
    cluster.apply(NetworkPolicy(metadata=Metadata(name="closed", namespace="default"), spec=closed))
    block = ip_network(f"{open_to_all.address}/24", strict=False)
    with _Prober(prober, [str(address) for address in block.hosts()]) as probing:
        took = asyncio.run(_start(cluster, plugin, path))
    leaked, reached = _heard(path), _heard(Path("/run/netns", open_to_all.netns))
    if not reached:
        raise LabError(f"nothing of what {prober.netns} sent reached a pod that is open to all")
    words = f"{leaked} of {probing.sent:,} packets sent meanwhile; a pod that is open got {reached:,}; "
    words += f"{ms(median(took))} from the command to an interface"
    return Row(f"{STARTS:,} pod starts under default deny: packets leaked", words, "0", leaked == 0)


async def _start(cluster: Lab, plugin: Plugin, path: Path) -> list[float]:
    """Start and end pods, one after the other; return the seconds that each took."""
    took = []
    async with _store(cluster) as store:
        for _ in range(STARTS):
            container = new_container()
            name = f"pod-{container[:8]}"
            pod = Pod(metadata=Metadata(name=name, namespace="default"), spec=PodSpec(node_name="node1"))
            await store.create(pod)
            took.append(cluster.inside("node1", lambda: timed(plugin.command("ADD", container, path))))  # noqa: B023
            await asyncio.sleep(0.005)
            cluster.inside("node1", lambda: timed(plugin.command("DEL", container, path)))  # noqa: B023
            await store.delete(Pod, name, namespace="default")
    return took


class _Prober:
    """Sends UDP to all addresses, again and again, while the block runs; `sent` is how many packets."""

    def __init__(self, pod: RunningPod, addresses: Sequence[str]) -> None:
        self.sent = 0
        self._socket = inside(pod.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._addresses = addresses
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> "_Prober":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _send(self) -> None:
        while not self._over.wait(0.001):
            for address in self._addresses:
                with contextlib.suppress(OSError):  # what the kernel refuses will be missing in `sent`
                    self._socket.sendto(b"probe", (address, _PROBED))
                    self.sent += 1


def _heard(path: Path) -> int:
    """Return how many UDP packets a network namespace got, whether anybody wanted them or not (proc_net_snmp)."""

    def read() -> int:
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
        titles, values = (line for line in lines if line[0] == "Udp:")
        counted = dict(zip(titles[1:], map(int, values[1:]), strict=True))
        return counted["InDatagrams"] + counted["NoPorts"]

    return inside(path.name, read)
