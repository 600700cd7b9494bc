"""The agents of a lab: started all at once, then waited for."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from podway.agent.client import call
from podway.api.addresses import Family, Network
from podway.api.resources import AddressBlock
from podway.errors import AgentError, LabError
from podway.kernel import routes
from podway.lab import facts, names, processes, topology
from podway.lab.paths import lab_store
from podway.lab.processes import Spawned
from podway.lab.state import LabState, node_dir

Report = Callable[[str], None]
"""Takes a line that tells how far a command is."""

READY_SECONDS = 60.0
"""How long all agents together may take to become ready."""
CONVERGED_SECONDS = 60.0
"""How long all routes together may take to reach all nodes, after the agents are ready."""
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
    begun = time.monotonic()
    waiting = dict(started)
    while waiting:
        for node, process in list(waiting.items()):
            if _is_ready(lab, node):
                del waiting[node]
                report(f"{node}: agent ready after {time.monotonic() - begun:.1f} s")
            elif (code := process.ended()) is not None:
                raise _failed(lab, node, f"its agent ended with status {code}")
        if waiting and time.monotonic() - begun > READY_SECONDS:
            raise _failed(lab, min(waiting), f"its agent is not ready after {READY_SECONDS:g} s")
        _pause(waiting)


def wait_converged(state: LabState, report: Report) -> None:
    """Wait until every running node has a route to every block of every other one.

    The kernels themselves are asked. Raises LabError naming a node and what it cannot reach.
    """
    begun = time.monotonic()
    owners = _block_owners(state)
    lacking = {node: {net for net, owner in owners.items() if owner != node} for node in state.running}
    with ExitStack() as stack:
        connections = {
            node: stack.enter_context(topology.connection(names.node_netns(state.name, node))) for node in lacking
        }
        while lacking:
            for node in list(lacking):
                for family in {Family.of(network) for network in lacking[node]}:
                    found = routes.dump(connections[node], family)
                    lacking[node] -= {route.destination for route in found if route.type == "unicast"}
                if not lacking[node]:
                    del lacking[node]
            if lacking and time.monotonic() - begun > CONVERGED_SECONDS:
                node, missing = next(iter(lacking.items()))
                network = next(iter(missing))
                what = f"after {CONVERGED_SECONDS:g} s no route to {network} of {owners[network]}"
                raise _failed(state.name, node, what)
            _pause(lacking)
    report(f"{len(owners)} address ranges known on all {len(state.running)} nodes")


def _block_owners(state: LabState) -> dict[Network, str]:
    listing = facts.ask(state.name, lambda store: store.list(AddressBlock))
    return {block.network: block.spec.node for block in listing.items if block.spec.node in state.running}


def _pause(waiting: Sized) -> None:
    """Wait before asking again. Asking takes time from the agents: the more there are, the less often."""
    time.sleep(max(0.02, 0.005 * len(waiting)) if waiting else 0)


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
