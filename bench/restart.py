"""The agent and BIRD killed under load: what the packets notice, and what the kernel."""

import time
from collections.abc import Callable

from bench.flow import Count, Flows
from bench.labs import Lab, RunningPod, kill, lab
from bench.report import Row, Section
from bench.samples import ms
from podway.errors import LabError

RATE = 1000
AGENT_ROUNDS = 5
BIRD_ROUNDS = 2
IDLE_PODS = 10
"""More pods on each node, so that a restart has something to leave alone."""
BEFORE, DOWN, AFTER = 0.5, 0.5, 2.0
"""Seconds of traffic before a kill, while the agent is down, and after it is ready again."""
AFTER_BIRD = 13.0
"""The same after BIRD is killed: longer than the time for which it waits for its peers' routes."""
PATIENCE = 30.0


def measure() -> Section:
    with lab(nodes=2) as cluster:
        here, there = (cluster.run_pod(f"flow-{node}", node) for node in cluster.nodes)
        for number in range(IDLE_PODS):
            for node in cluster.nodes:
                cluster.run_pod(f"idle-{number}-{node}", node)
        writes: list[int] = []
        agent = [
            _under_load(here, there, lambda node=node: writes.append(_restart_agent(cluster, node)))  # type: ignore[misc]
            for node in (cluster.nodes * AGENT_ROUNDS)[:AGENT_ROUNDS]
        ]
        bird = [
            _under_load(here, there, lambda node=node: _kill_bird(cluster, node))  # type: ignore[misc]
            for node in (cluster.nodes * BIRD_ROUNDS)[:BIRD_ROUNDS]
        ]
    return Section(
        "Agent and BIRD killed under load",
        f"{RATE} numbered UDP packets a second each way between two pods on two nodes, {IDLE_PODS + 1} pods on "
        f"each. SIGKILL to the agent of one node, which is started again {DOWN:g} s later ({AGENT_ROUNDS} times). "
        f"Then SIGKILL to BIRD, which the agent starts again ({BIRD_ROUNDS} times, with {AFTER_BIRD:g} s of "
        "traffic after it).",
        (
            _row("packets lost, agent killed and started again", agent),
            Row(
                "kernel writes of the second agent",
                f"{sum(writes)} in {len(writes)} starts",
                "0",
                not any(writes),
            ),
            _row("packets lost, BIRD killed", bird),
        ),
    )


def _under_load(here: RunningPod, there: RunningPod, disturb: Callable[[], None]) -> Count:
    with Flows([(here, there), (there, here)], rate=RATE) as flows:
        time.sleep(BEFORE)
        disturb()
    return flows.count


def _restart_agent(cluster: Lab, node: str) -> int:
    """Kill an agent and start it again; return how often the new one wrote to the kernel."""
    kill(cluster.status(node)["pid"])
    time.sleep(DOWN)
    cluster.wait_ready(node, cluster.start_agent(node))
    time.sleep(AFTER)
    return int(cluster.status(node)["kernel_writes"])


def _kill_bird(cluster: Lab, node: str) -> None:
    """Kill BIRD, and wait until another one speaks with its peers."""
    killed = cluster.status(node)["routing"]["bird"]
    kill(killed)
    begun = time.monotonic()
    while not _speaks(cluster, node, killed):
        if time.monotonic() > begun + PATIENCE:
            raise LabError(f"BIRD of {node} does not come back within {PATIENCE:g} s")
        time.sleep(0.1)
    time.sleep(max(0.0, begun + AFTER_BIRD - time.monotonic()))


def _speaks(cluster: Lab, node: str, killed: int) -> bool:
    routing = cluster.status(node)["routing"]
    sessions = [peer["state"] == "Established" for peer in routing["peers"]]
    return routing["bird"] not in (0, killed) and bool(sessions) and all(sessions)


def _row(what: str, runs: list[Count]) -> Row:
    total = sum(runs, Count())
    return Row(what, f"{total.lost} of {total.sent}; longest silence {ms(total.silence)}", "0", total.lost == 0)
