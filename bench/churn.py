"""Thousands of random ADDs and DELs while the agent is killed again and again: nothing doubled, nothing left.

What a container runtime would do is done here: each container has a new id and a new network namespace; an ADD
that fails is followed by a DEL; some namespaces vanish before their DEL. What the runtime was told is compared
with the kernel itself, as iproute2 shows it, and with the agent.
"""

import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from bench.execution import run
from bench.labs import Lab, kill, lab
from bench.plugins import Plugin, new_container, plugins, sandbox_name, sandboxes
from bench.report import Row, Section
from podway.api.lease import LINK_PREFIX
from podway.channel.client import call
from podway.errors import LabError
from podway.kernel import netns
from podway.lab.processes import Spawned
from podway.lab.state import node_dir
from podway.plan.objects import ROUTE_PROTOCOL

OPERATIONS = 5000
RUNTIMES = 4
"""Threads that execute the plugin."""
SLOTS = 20
"""Containers that each of them may run."""
VANISHING = 0.2
"""Of so many containers the namespace is gone before DEL."""
LONGEST_LIFE = 2.0
"""Seconds; an agent is killed after a random time up to this, counted from when it is ready."""
EARLY = 0.25
"""Of so many agents the time is counted from their start, so they may never become ready."""
AGENT_DOWN = 11
PAUSE = 0.1
"""Seconds before an ADD that found no agent is tried again."""
SETTLED = 15.0
"""Seconds that the kernel and the agent may take to become what the runtime was told."""
NODE = "node1"


class Ledger:
    """What the runtime was told. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done = 0
        self.stopped = False
        self.held: dict[str, str] = {}
        """Which container has which address."""
        self.doubled: list[str] = []
        self.refusals: Counter[str] = Counter()

    def given(self, address: str, container: str) -> None:
        """Note what an ADD answered."""
        with self._lock:
            self.done += 1
            if address in self.held:
                self.doubled.append(address)
            self.held[address] = container

    def taken_back(self, address: str) -> None:
        """Note that a DEL begins: from now on somebody else may get the address."""
        with self._lock:
            self.done += 1
            del self.held[address]

    def refused(self, code: int, message: str) -> None:
        """Note that an ADD failed."""
        with self._lock:
            self.refusals[f"{code}: {message}"] += 1


class Runtime:
    """One thread of the container runtime."""

    def __init__(self, plugin: Plugin, ledger: Ledger) -> None:
        self._plugin = plugin
        self._ledger = ledger
        self._running: list[tuple[str, str, str]] = []

    def churn(self) -> None:
        """Add and delete containers until all threads together did it often enough, or are stopped."""
        while self._ledger.done < OPERATIONS and not self._ledger.stopped:
            if random.random() * SLOTS >= len(self._running):
                self._add()
            else:
                self._delete(*self._running.pop(random.randrange(len(self._running))))

    def delete_all(self) -> None:
        """Delete every container that is left."""
        while self._running:
            self._delete(*self._running.pop())

    def _add(self) -> None:
        container = new_container()
        name = sandbox_name(container[:16])
        path = netns.create(name)
        ended = run(self._plugin.command("ADD", container, path))
        answer = json.loads(ended.output or b"{}")
        if ended.status == 0:
            address = answer["ips"][0]["address"].partition("/")[0]
            self._ledger.given(address, container)
            self._running.append((container, name, address))
            return
        self._ledger.refused(answer["code"], answer["msg"])
        self._delete(container, name)
        if answer["code"] == AGENT_DOWN:
            time.sleep(PAUSE)

    def _delete(self, container: str, name: str, address: str = "") -> None:
        if address:
            self._ledger.taken_back(address)
        vanishes = random.random() < VANISHING
        if vanishes:
            netns.delete(name)
        ended = run(self._plugin.command("DEL", container, "" if vanishes else netns.path_of(name)))
        netns.delete(name)
        if ended.status != 0:
            raise LabError(f"DEL ended with status {ended.status}: {ended.output.decode()}")


class State(msgspec.Struct, frozen=True):
    """Addresses by who says that they are in use, and the pod links there are."""

    links: int
    routes: list[str]
    leases: list[str]
    leased: int

    def differences(self, told: set[str]) -> dict[str, int]:
        """Count what is wrong, given the addresses that the runtime was told and has not given back."""
        every = set(self.routes) | set(self.leases)
        return {
            "leaked": len(every - told) + max(0, self.leased - len(told)),
            "lost": len(told - set(self.routes)) + len(told - set(self.leases)),
            "doubled": len(self.routes) - len(set(self.routes)) + len(self.leases) - len(set(self.leases)),
            "links": abs(self.links - len(told)),
        }


def measure() -> Section:
    ledger = Ledger()
    with sandboxes(), lab(nodes=1) as cluster, plugins(cluster, NODE) as known:
        runtimes = [Runtime(known["podway"], ledger) for _ in range(RUNTIMES)]
        begun = time.monotonic()
        kills = _churn(cluster, runtimes, ledger)
        took = time.monotonic() - begun
        busy = _settled(cluster, set(ledger.held))
        for runtime in runtimes:
            cluster.inside(NODE, runtime.delete_all)
        idle = _settled(cluster, set())
    doubled = len(ledger.doubled) + busy["doubled"] + idle["doubled"]
    leaked = busy["leaked"] + idle["leaked"]
    links = busy["links"] + idle["links"]
    return Section(
        "Random ADDs and DELs, the agent killed again and again",
        f"{OPERATIONS} ADDs and DELs that were carried out, by {RUNTIMES} threads of a runtime, with up to "
        f"{RUNTIMES * SLOTS} containers; {VANISHING:.0%} of their namespaces vanish before DEL. The agent gets "
        f"SIGKILL at random instants up to {LONGEST_LIFE:g} s after it is ready or, {EARLY:.0%} of the time, "
        "after its start, so that it may never be ready. What the runtime was told is compared with the kernel "
        "(as `ip` shows it) and the agent: once with pods running, once after all were deleted.",
        (
            Row("kills of the agent", f"{kills} in {took:.0f} s; {OPERATIONS / took:.0f} operations a second"),
            Row("addresses doubled", str(doubled), "0", doubled == 0),
            Row("addresses leaked", str(leaked), "0", leaked == 0),
            Row("links left over or missing", str(links), "0", links == 0),
            Row("addresses of running pods lost", str(busy["lost"]), "0", busy["lost"] == 0),
            Row(
                "ADDs refused",
                "; ".join(f"{count} times {words}" for words, count in ledger.refusals.most_common()),
            ),
        ),
    )


def _churn(cluster: Lab, runtimes: Sequence[Runtime], ledger: Ledger) -> int:
    """Have the runtimes do their work while the agent is killed; return how often it was."""
    with ThreadPoolExecutor(len(runtimes)) as threads:
        try:
            working = [threads.submit(cluster.inside, NODE, runtime.churn) for runtime in runtimes]
            kills = _kill_again_and_again(cluster, working)
            for work in working:
                work.result()
        finally:
            ledger.stopped = True
    return kills


def _kill_again_and_again(cluster: Lab, working: Sequence["Future[None]"]) -> int:
    """Kill the agent at random instants while the runtimes work, and leave a ready one; return how often."""
    kills = 0
    agent = Spawned(cluster.status(NODE)["pid"])
    while True:
        if random.random() > EARLY:
            cluster.wait_ready(NODE, agent)
        time.sleep(random.uniform(0, LONGEST_LIFE))
        kill(agent.pid)
        agent = cluster.start_agent(NODE)
        kills += 1
        if all(work.done() for work in working):
            cluster.wait_ready(NODE, agent)
            return kills


def _settled(cluster: Lab, told: set[str]) -> dict[str, int]:
    """Return what is wrong, as soon as nothing is, or else after a while."""
    deadline = time.monotonic() + SETTLED
    while True:
        wrong = _look(cluster).differences(told)
        if not any(wrong.values()) or time.monotonic() > deadline:
            return wrong
        time.sleep(0.2)


def _look(cluster: Lab) -> State:
    """Ask the kernel and the agent."""
    links = [link["ifname"] for link in _ip(cluster, "link")]
    of_ours = _ip(cluster, "route", "show", "proto", str(ROUTE_PROTOCOL))
    routes = [route["dst"] for route in of_ours if "dev" in route]
    agent = node_dir(cluster.name, NODE) / "agent.sock"
    leases = [address for lease in call(agent, "leases") for address in lease["addresses"]]
    leased = sum(block["leased"] for block in call(agent, "status")["blocks"])
    return State(sum(name.startswith(LINK_PREFIX) for name in links), routes, leases, leased)


def _ip(cluster: Lab, *arguments: str) -> list[dict[str, str]]:
    command = ["ip", "-json", *arguments]
    done = cluster.inside(NODE, lambda: subprocess.run(command, capture_output=True, check=True))
    found: list[dict[str, str]] = json.loads(done.stdout or b"[]")
    return found
