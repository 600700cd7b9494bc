"""Building, changing and removing a lab."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_network

from podway.api.addresses import Network
from podway.cni.conflist import render_conflist
from podway.cni.spec import CURRENT
from podway.errors import AgentError, LabError
from podway.kernel import netns
from podway.kernel.support import require_all
from podway.lab import agents, facts, names, pods, processes, state, topology
from podway.lab.agents import Report
from podway.lab.paths import lab_dir
from podway.lab.state import LabNode, LabState

GRACE_SECONDS = 5.0
"""How long an agent and its BIRD may take to end when they are asked to."""


def up(
    lab: str, *, nodes: int, pools: Sequence[str], block_sizes: Sequence[int], asn: int, report: Report
) -> LabState:
    """Build a lab of `nodes` nodes with these pools (CIDRs) and return its state.

    When anything fails, what was built is removed again. Raises LabError, InvalidInput, StoreError,
    KernelError or UnsupportedSystem.
    """
    names.require_lab_name(lab)
    require_all()
    if not 1 <= nodes <= topology.MAX_NODES:
        raise LabError(f"{nodes} nodes cannot be built", hint=f"choose 1 to {topology.MAX_NODES}")
    networks = tuple(_network(pool) for pool in pools)
    objects = facts.first_objects(networks, nodes=nodes, block_sizes=block_sizes, asn=asn)
    subnets = tuple(map(str, topology.choose_subnets(networks)))
    _make_directory(lab)
    try:
        with state.locked(lab):
            built = LabState(lab, subnets)
            state.save(built)
            pods.network_list(lab).write_bytes(render_conflist(version=CURRENT))
            facts.ask(lab, lambda store: facts.create_all(store, objects), create=True)
            topology.create_fabric(lab)
            for index in range(1, nodes + 1):
                built = _make_node(built, f"node{index}", index)
            report(f"{nodes} nodes wired; starting their agents")
            _start_agents(built, built.running, report)
    except BaseException:
        down(lab)
        raise
    return built


def down(lab: str) -> None:
    """Remove every trace of a lab, however far it was built. Raises LabError if there is none."""
    names.require_lab_name(lab)
    directory = lab_dir(lab)
    with ExitStack() as stack:
        if directory.exists():
            stack.enter_context(state.locked(lab))
        elif not topology.namespaces(lab):
            raise state.unknown(lab)
        remains = topology.namespaces(lab)
        processes.Members(remains, marked=lambda mark: mark.partition("/")[0] == lab).end()
        for namespace in remains:
            netns.delete(namespace)
        if directory.exists():
            shutil.rmtree(directory)
    for parent in (directory.parent, directory.parent.parent):
        with suppress(OSError):  # another lab, or the machine's own agent, is in it
            parent.rmdir()


def add_node(lab: str, node: str, report: Report) -> LabState:
    """Add a node to a running lab; return the lab's state."""
    names.require_node_name(node)
    with state.locked(lab):
        current = state.load(lab)
        if node in current.nodes:
            raise LabError(f"lab {lab}: there is a node {node!r} already", hint=_start_hint(current, node))
        index = _free_index(current, node)
        try:
            current = _make_node(current, node, index)
            _start_agents(current, (node,), report)
        except BaseException:
            _members(lab, node).end()
            _forget(current.with_node(node, LabNode(index)), node)
            raise
        return current


def remove_node(lab: str, node: str) -> None:
    """Take a node out of service in good order: its pods, its agent, its object and its blocks, its wire."""
    with state.locked(lab):
        current = state.load(lab)
        current.node(node)
        for pod in facts.ask(lab, lambda store: facts.pods_on(store, node)):
            pods.remove(current, pod)
        _members(lab, node).end(grace=GRACE_SECONDS)
        _forget(current, node)


def kill_node(lab: str, node: str) -> None:
    """Cut a node's power: its link first, so that nothing gets out, then all that runs there.

    What the cluster knows of it, its pods included, stays in the store.
    """
    with state.locked(lab):
        current = state.load(lab)
        if not current.node(node).running:
            raise LabError(f"lab {lab}: node {node!r} is off already", hint=_start_hint(current, node))
        _cut_power(current, node)


def start_node(lab: str, node: str, report: Report) -> None:
    """Start a node whose power was cut, or the agent of one whose agent ended.

    A node that was off starts its pods anew, as a kubelet does; they get new addresses.
    """
    with state.locked(lab):
        current = state.load(lab)
        before = current.node(node)
        if before.running:
            with suppress(AgentError):
                agents.status(lab, node)
                raise LabError(f"lab {lab}: node {node!r} runs already")
        else:
            facts.ask(lab, lambda store: facts.forget_kernel(store, node))
            current = _make_node(current, node, before.index)
        _start_agents(current, (node,), report)
        pods.restart(current, node)


def execute_on_node(lab: str, node: str, command: Sequence[str]) -> int:
    """Run a command in a node's network namespace; return its exit status. Raises LabError."""
    current = state.load(lab)
    if not current.node(node).running:
        raise LabError(f"lab {lab}: node {node!r} is off", hint=_start_hint(current, node))
    return processes.run(command, namespace=names.node_netns(lab, node))


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise LabError(f"pool {text}: {error}", hint="state a network such as 10.244.0.0/16") from None


def _make_directory(lab: str) -> None:
    if topology.namespaces(lab):
        raise LabError(f"lab {lab!r} exists already", hint=f"remove it first: podway --lab {lab} lab down")
    try:
        lab_dir(lab).mkdir(parents=True)
    except FileExistsError:
        raise LabError(
            f"lab {lab!r} exists already",
            hint=f"remove it first (podway --lab {lab} lab down), or choose another name: --lab NAME",
        ) from None


def _make_node(current: LabState, node: str, index: int) -> LabState:
    changed = current.with_node(node, LabNode(index))
    state.save(changed)  # before anything is built, so that what a crash leaves has a name
    topology.create_node(current.name, node, index, changed.addresses(node))
    return changed


def _free_index(current: LabState, node: str) -> int:
    taken = {other.index for other in current.nodes.values()}
    digits = node[len(node.rstrip("0123456789")) :]
    if digits and 1 <= int(digits) <= topology.MAX_NODES and int(digits) not in taken:
        return int(digits)  # node7 gets the address that ends in 7
    free = next((index for index in range(1, topology.MAX_NODES + 1) if index not in taken), None)
    if free is None:
        raise LabError(f"lab {current.name}: it has {topology.MAX_NODES} nodes, and room for no more")
    return free


def _start_agents(current: LabState, nodes: Sequence[str], report: Report) -> None:
    running = {node: current.node(node).index for node in current.running}
    topology.introduce(current.name, running, current.networks)
    started = {node: agents.start(current.name, node) for node in nodes}
    agents.wait_ready(current.name, started, report)
    agents.wait_converged(current, report)


def _cut_power(current: LabState, node: str) -> None:
    lab, known = current.name, current.node(node)
    topology.cut_node(lab, known.index)
    _members(lab, node).end()
    for pod in facts.ask(lab, lambda store: facts.pods_on(store, node)):
        netns.delete(pods.netns_of(lab, pod))
    topology.remove_node(lab, node, known.index)
    for path in state.node_dir(lab, node).glob("*"):  # a machine's /run does not outlive it either
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != agents.LOG:
            path.unlink()
    state.save(current.with_node(node, LabNode(known.index, running=False)))


def _forget(current: LabState, node: str) -> None:
    """Remove a node that runs no process any more, and all that the cluster knows of it."""
    lab = current.name
    facts.ask(lab, lambda store: facts.remove_node(store, node))
    topology.remove_node(lab, node, current.node(node).index)
    shutil.rmtree(state.node_dir(lab, node), ignore_errors=True)
    state.save(current.with_node(node, None))


def _members(lab: str, node: str) -> processes.Members:
    found = facts.ask(lab, lambda store: facts.pods_on(store, node))
    namespaces = [names.node_netns(lab, node), *(pods.netns_of(lab, pod) for pod in found)]
    return processes.Members(namespaces, marked=lambda mark: mark == f"{lab}/{node}")


def _start_hint(current: LabState, node: str) -> str:
    return "" if current.nodes[node].running else f"start it: podway lab node start {node}"
