"""The agents of a lab: started all at once, then waited for."""

import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from podway.api.addresses import Family, Network
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.channel.client import call
from podway.cluster.view import ClusterView
from podway.errors import AgentError, LabError
from podway.kernel.network import Connection, RouteRecord, dump_links, dump_routes
from podway.lab import facts, names, processes, topology
from podway.lab.paths import lab_store
from podway.lab.processes import Spawned
from podway.lab.state import LabState, node_dir
from podway.plan.fabric import DEVICES, desired_mode, encapsulation_of, pool_of, share_underlay
from podway.store.base import list_all

Report = Callable[[str], None]
"""Takes a line that tells how far a command is."""

BASE_SECONDS, NODE_SECONDS = 60.0, 1.5
"""How long agents together may take to become ready, and then all routes to reach all nodes: at least, and for
each node. A node takes a third of that on an idle core."""
PROGRESS_SECONDS = 3.0
"""How often is told what is still waited for."""
ANSWER_SECONDS = 5.0
"""How long an agent may take to answer before it counts as silent."""
ASKED_AT_ONCE = 16
_OVERLAYS = frozenset(DEVICES.values())
LOG = "agent.log"
"""Where an agent's output goes, in its run directory."""
LOG_LINES = 15
"""How much of an agent's log an error shows."""


def start(lab: str, node: str) -> Spawned:
    """Start a node's agent in its namespace, detached from us."""
    directory = node_dir(lab, node)
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "podway", "agent"]
    options = ["--node", node, "--store", lab_store(lab), "--run-dir", str(directory)]
    return processes.spawn(
        command + options,
        namespace=names.node_netns(lab, node),
        mark=f"{lab}/{node}",
        log=directory / LOG,
    )


def status(lab: str, node: str) -> dict[str, Any]:
    """Return what a node's agent says of itself. Raises AgentError if none answers."""
    answer: dict[str, Any] = call(node_dir(lab, node) / "agent.sock", "status")
    return answer


def wait_ready(lab: str, started: Mapping[str, Spawned], report: Report) -> None:
    """Wait until all of these agents are ready.

    Raises LabError with the last lines of its log if one ends or is not ready in time.
    """
    begun, patience = time.monotonic(), _patience(started)
    waiting = dict(started)
    while waiting:
        for node in list(waiting):
            if _is_ready(lab, node):
                del waiting[node]
                report(f"{node}: agent ready after {time.monotonic() - begun:.1f} s")
        _require_alive(lab, waiting)
        if waiting and time.monotonic() - begun > patience:
            raise _failed(lab, min(waiting), f"its agent is not ready after {patience:g} s")
        _pause(waiting)


def wait_converged(state: LabState, started: Mapping[str, Spawned], report: Report) -> None:
    """Wait until every running node has a route to every block of other ones that its packets can reach.

    And in the encapsulation that is asked for. The kernels themselves are asked. Nodes whose agents do not
    answer learn nothing, and nobody learns of them:
    they are reported and left out. Raises LabError naming a node and what it cannot reach, or a node whose agent,
    one of `started`, ended meanwhile.
    """
    begun, patience = time.monotonic(), _patience(state.running)
    silent = _report_silent(state.name, set(state.running) - started.keys(), report)
    lacking = _awaited(state, silent)
    blocks = {expected.block for expected_routes in lacking.values() for expected in expected_routes}
    told = begun
    with ExitStack() as stack:
        connections = {
            node: stack.enter_context(topology.connection(names.node_netns(state.name, node)))
            for node in sorted(set(state.running) - silent)
        }
        while lacking:
            lacking = _still(connections, lacking)
            _require_alive(state.name, started)
            if lacking and time.monotonic() - begun > patience:
                node, missing = next(iter(lacking.items()))
                what = f"after {patience:g} s no route to {next(iter(missing))}"
                raise _failed(state.name, node, what)
            if lacking and time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                report(_progress(lacking, told - begun))
                silent |= _report_silent(state.name, _concerned(lacking) - started.keys(), report)
                lacking = _without(lacking, silent)
            _pause(lacking)
            if not lacking:  # what nodes said of themselves meanwhile may ask for other routes
                lacking = _still(connections, _awaited(state, silent))
    told_of = len(state.running) - len(silent)
    report(f"{len(blocks)} address ranges known on {'all ' if not silent else ''}{told_of} nodes")


def _report_silent(lab: str, nodes: Iterable[str], report: Report) -> set[str]:
    """Return those of the nodes whose agents do not answer, having told of each and what starts it."""

    def answers(node: str) -> bool:
        try:
            call(node_dir(lab, node) / "agent.sock", "status", timeout=ANSWER_SECONDS)
        except AgentError:
            return False
        return True

    asked = sorted(nodes)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        silent = {node for node, good in zip(asked, threads.map(answers, asked), strict=True) if not good}
    for node in sorted(silent):
        again = f"podway lab node start {node}{names.option(lab)}"
        report(f"{node}: its agent does not answer; the others go on without it. To start it: {again}")
    return silent


def _concerned(lacking: Mapping[str, Iterable["_ExpectedRoute"]]) -> set[str]:
    return set(lacking) | {expected.owner for expected_routes in lacking.values() for expected in expected_routes}


def _without(
    lacking: Mapping[str, set["_ExpectedRoute"]], silent: Collection[str]
) -> dict[str, set["_ExpectedRoute"]]:
    left = {
        node: {expected for expected in expected_routes if expected.owner not in silent}
        for node, expected_routes in lacking.items()
        if node not in silent
    }
    return {node: expected_routes for node, expected_routes in left.items() if expected_routes}


def _progress(lacking: Mapping[str, Collection["_ExpectedRoute"]], seconds: float) -> str:
    node, expected_routes = next(iter(lacking.items()))
    count = sum(map(len, lacking.values()))
    return f"{count} routes are missing after {seconds:.0f} s: {node} has none to {next(iter(expected_routes))}"


class _ExpectedRoute(NamedTuple):
    """A route to wait for, through this device; through any but those of overlays if none is named."""

    block: Network
    owner: str
    device: str

    def __str__(self) -> str:
        return f"{self.block} of {self.owner}" + (f" through {self.device}" if self.device else "")


def _awaited(state: LabState, silent: Collection[str]) -> dict[str, set[_ExpectedRoute]]:
    """Return, for every running node that is not silent, the routes to others' blocks that it will have."""
    listing = facts.ask(state.name, list_all).items
    view = ClusterView.of(listing)
    carried = [(block, pool) for block in view.blocks.values() if (pool := pool_of(view, block))]
    awaited = {
        node: {
            _ExpectedRoute(block.network, block.spec.node, device)
            for block, pool in carried
            if block.spec.node != node and block.spec.node in state.running
            if (device := _device(state, pool, view.nodes[node], view.nodes[block.spec.node])) is not None
        }
        for node in state.running
    }
    return _without(awaited, silent)


def _device(state: LabState, pool: IPPool, here: Node, there: Node) -> str | None:
    """Return what a pool's packets will cross by from one node to another: an overlay device, or "" for another.

    None: they cannot cross at all. Those of a family that nodes lack cross in VXLAN only, and BGP advertises
    nothing of them; routers that were told nothing of pods drop what is not encapsulated.
    """
    mode = desired_mode(pool, here, there)
    if mode != "none" and not share_underlay(mode, here, there):
        return None
    if there.internal_address(pool.family) is None:
        vxlan = encapsulation_of(mode) == "vxlan"
        return DEVICES[mode] if vxlan and pool.spec.distribution == "store" else None
    if mode != "none":
        return DEVICES[mode]
    racks = {state.node(node.metadata.name).rack for node in (here, there)}
    return "" if len(racks) == 1 or state.tor != "none" else None


def _still(
    connections: Mapping[str, Connection], awaited: Mapping[str, set[_ExpectedRoute]]
) -> dict[str, set[_ExpectedRoute]]:
    """Return those of the routes that kernels have not, by node."""
    lacking = {node: routes - _found(connections[node], routes) for node, routes in awaited.items()}
    return {node: routes for node, routes in lacking.items() if routes}


def _found(connection: Connection, awaited: Collection[_ExpectedRoute]) -> set[_ExpectedRoute]:
    """Return those of the routes that a node's kernel has."""
    names_by_index = {link.index: link.name for link in dump_links(connection)}
    best: dict[Network, RouteRecord] = {}
    for family in {Family.of(expected.block) for expected in awaited}:
        for route in dump_routes(connection, family):
            if route.destination not in best or route.metric < best[route.destination].metric:
                best[route.destination] = route
    there = {
        (route.destination, device if device in _OVERLAYS else "")
        for route in best.values()
        if route.type == "unicast"
        for device in (names_by_index.get(route.index),)
    }
    return {expected for expected in awaited if (expected.block, expected.device) in there}


def _patience(nodes: Sized) -> float:
    return BASE_SECONDS + NODE_SECONDS * len(nodes)


def _pause(waiting: Sized) -> None:
    """Wait before asking again. Asking takes time from the agents: the more there are, the less often."""
    time.sleep(max(0.02, 0.005 * len(waiting)) if waiting else 0)


def _require_alive(lab: str, started: Mapping[str, Spawned]) -> None:
    for node, process in started.items():
        if (code := process.ended()) is not None:
            raise _failed(lab, node, f"its agent ended with status {code}")


def _is_ready(lab: str, node: str) -> bool:
    if not (node_dir(lab, node) / "agent.sock").exists():
        return False
    try:
        return bool(status(lab, node).get("ready"))
    except AgentError:
        return False  # the socket of an agent that ended, or one that does not listen yet


def _failed(lab: str, node: str, what: str) -> LabError:
    log = node_dir(lab, node) / LOG
    return LabError(f"node {node}: {what}; its log ends:\n{''.join(_tail(log)) or '    (empty)'}")


def _tail(log: Path) -> Iterable[str]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return (f"    {line}\n" for line in lines[-LOG_LINES:])
