"""Building, changing and removing a lab."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_network

import msgspec

from podway.api.addresses import Family, Network
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import DataPath, ServiceClients
from podway.api.kinds.node import Node
from podway.api.resource import Resource
from podway.cni.conflist import render_conflist
from podway.cni.spec import CURRENT
from podway.errors import AgentError, InvalidArgument, LabError
from podway.ipam.blocks import count_blocks
from podway.kernel import netns
from podway.kernel.support import require_all
from podway.lab import agents, etcd, facts, names, outside, pods, processes, routers, speakers, state, topology
from podway.lab import services as lab_services
from podway.lab.agents import Report
from podway.lab.fabric import Fabric, Tor, most_nodes, plan_fabric
from podway.lab.facts import PoolSettings
from podway.lab.kubernetes import traces
from podway.lab.paths import lab_dir
from podway.lab.state import LabNode, LabState
from podway.store.leases import forget_lease

DEFAULT_POOL_SETTINGS = PoolSettings()

GRACE_SECONDS = 5.0
"""How long an agent and its BIRD may take to end when they are asked to."""


def up(
    lab: str,
    *,
    nodes: int,
    pools: Sequence[str],
    block_sizes: Sequence[int],
    asn: int,
    report: Report,
    racks: int = 1,
    tor: Tor = "none",
    node_families: Sequence[Family] = (),
    pool_settings: PoolSettings = DEFAULT_POOL_SETTINGS,
    services: ServiceClients = "off",
    data_path: DataPath | None = None,
    in_etcd: bool = False,
) -> LabState:
    """Build a lab of `nodes` nodes with these pools (CIDRs) and return its state.

    With several racks each is a subnet behind a router, on which `tor` speaks BGP with the rack's nodes.
    With `services` the data path is eBPF's, and there is a DNS. Without `data_path` it is what the environment
    says (podway.lab.facts.DATA_PATH), or the usual one.
    Without `node_families` the nodes have IPv4 addresses, and IPv6 ones too if a pool is IPv6. The store is an
    SQLite file, or an etcd. When anything fails, what was built is removed again. Raises LabError,
    InvalidArgument, InvalidObject, StoreError, KernelError or UnsupportedSystem.
    """
    names.require_lab_name(lab)
    require_all()
    networks = tuple(network(pool) for pool in pools)
    fabric = plan_fabric(networks, nodes=nodes, racks=racks, families=node_families)
    _require_sense(networks, fabric, tor, pool_settings)
    speakers.require(tor)
    if in_etcd:
        etcd.find_program()
    built = LabState(lab, tuple(map(str, fabric.estate)), racks, tor)
    places = {f"node{index}": LabNode(index, rack=fabric.rack_of(index, nodes)) for index in range(1, nodes + 1)}
    objects = (
        *facts.first_objects(
            networks,
            nodes=nodes,
            block_sizes=block_sizes,
            asn=asn,
            pool_settings=pool_settings,
            tor=tor,
            families=len(fabric.estate),
            services=services,
            data_path=data_path,
        ),
        *_node_objects(built, places),
        *(facts.router_peers(fabric) if tor != "none" else ()),
    )
    facts.check(objects)
    _require_room(objects, nodes)
    make_directory(lab)
    try:
        with state.locked(lab):
            state.save(built)
            pods.network_list(lab).write_bytes(render_conflist(version=CURRENT))
            topology.create_fabric(lab, fabric)
            if in_etcd:
                etcd.create(lab, fabric)
                etcd.start_controller(lab)
                report("etcd and the controller run")
            facts.ask(lab, lambda store: facts.create_all(store, objects), create=True)
            routers.create_all(lab, fabric)
            if tor != "none":
                speakers.start_all(lab, fabric, tor, facts.ask(lab, facts.bfd_settings))
                report(f"{racks} routers speak BGP")
            for node, place in places.items():
                built = make_node(built, node, place)
            report(f"{nodes} nodes wired; starting their agents")
            agents.wait_converged(built, _start_agents(built, built.running, report), report)
        if services != "off":
            lab_services.ensure(lab)
            lab_services.wait_served(lab)
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
        traces.remove(lab)
        if directory.exists():
            shutil.rmtree(directory)
    for parent in (directory.parent, directory.parent.parent):
        with suppress(OSError):  # another lab, or the machine's own agent, is in it
            parent.rmdir()


def add_node(lab: str, node: str, report: Report, *, rack: int | None = None) -> LabState:
    """Add a node to a running lab, to the rack with the fewest if none is named; return the lab's state.

    If its agent does not become ready, everything is undone. Raises LabError for that, and if routes are missing
    in the end: then the node stays.
    """
    names.require_node_name(node)
    with state.locked(lab):
        current = state.load(lab)
        current.require_plain()
        if node in current.nodes:
            raise LabError(f"lab {lab}: there is a node {node!r} already", hint=_start_hint(current, node))
        place = LabNode(_free_index(current, node), rack=_choose_rack(current, rack))
        try:
            objects = _node_objects(current, {node: place})
            facts.ask(lab, lambda store: facts.create_all(store, objects))
            current = make_node(current, node, place)
            started = _start_agents(current, (node,), report)
        except BaseException:
            _members(lab, node).end()
            _forget(current.with_node(node, place), node)
            raise
        for family in facts.ask(lab, lambda store: facts.families_without_block(store, node)):
            report(f"{node}: no {family.label} block is left for it: its pods get no address; add a pool")
        agents.wait_converged(current, started, report)
        return current


def remove_node(lab: str, node: str) -> None:
    """Take a node out of service in good order: its pods, its agent, its object and its blocks, its wire."""
    with state.locked(lab):
        current = state.load(lab)
        current.require_plain()
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
        current.require_plain()
        if not current.node(node).running:
            raise LabError(f"lab {lab}: node {node!r} is off already", hint=_start_hint(current, node))
        _cut_power(current, node)


def start_node(lab: str, node: str, report: Report) -> None:
    """Start a node whose power was cut, or the agent of one whose agent ended.

    A node that was off starts its pods anew, as a kubelet does; they get new addresses.
    """
    with state.locked(lab):
        current = state.load(lab)
        current.require_plain()
        before = current.node(node)
        if before.running:
            with suppress(AgentError):
                agents.status(lab, node)
                raise LabError(f"lab {lab}: node {node!r} runs already")
        else:
            facts.ask(lab, lambda store: forget_lease(store, node))
            current = make_node(current, node, msgspec.structs.replace(before, running=True))
        agents.wait_converged(current, _start_agents(current, (node,), report), report)
        pods.restart(current, node)


def execute_on_node(lab: str, node: str, command: Sequence[str]) -> int:
    """Run a command in a node's network namespace; return its exit status. Raises LabError."""
    current = state.load(lab)
    if not current.node(node).running:
        raise LabError(f"lab {lab}: node {node!r} is off", hint=_start_hint(current, node))
    return processes.run(command, namespace=names.node_netns(lab, node))


def network(text: str) -> Network:
    """Return the network that --pool names. Raises InvalidArgument."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"--pool {text}: {error}", hint="state a network such as 10.244.0.0/16") from None


def _require_sense(pools: Sequence[Network], fabric: Fabric, tor: Tor, pool_settings: PoolSettings) -> None:
    """Raise InvalidArgument for settings that each may be stated, but not together."""
    if tor != "none" and not fabric.routed:
        raise InvalidArgument(f"--tor {tor}: a flat segment has no routers", hint="state --racks 2 or more")
    if pool_settings.encapsulation == "ipip" and not all(_has_ipv4(found) for found in (pools, fabric.estate)):
        raise InvalidArgument(
            "--encapsulation ipip: IPIP carries IPv4 packets between IPv4 nodes",
            hint="choose vxlan, or state an IPv4 --pool and --node-family ipv4 or dual",
        )


def _require_room(objects: Sequence[Resource], nodes: int) -> None:
    """Raise InvalidArgument for a family whose pools are cut into fewer blocks than there are nodes.

    Each node claims a block of every pool, so several small pools serve no more nodes than the largest of them.
    """
    pools = [obj for obj in objects if isinstance(obj, IPPool)]
    for family in Family:
        largest = max(
            (pool for pool in pools if pool.family is family),
            key=lambda pool: count_blocks(pool.network, pool.block_prefix),
            default=None,
        )
        if largest is None or (room := count_blocks(largest.network, largest.block_prefix)) >= nodes:
            continue
        needed = (nodes - 1).bit_length()
        ways = []
        if (shorter := largest.network.prefixlen + needed) < family.bits - 1:  # room for a pod in each
            ways.append(f"--block-size {shorter}")
        if largest.block_prefix > needed:
            ways.append(
                f"a larger --pool, such as {largest.network.supernet(new_prefix=largest.block_prefix - needed)}"
            )
        raise InvalidArgument(
            f"--pool {largest.network} has {room} block{'s' if room > 1 else ''} of /{largest.block_prefix}, "
            f"and {nodes} nodes need one each",
            hint=f"choose {', or '.join(ways)}, or fewer nodes",
        )


def _has_ipv4(networks: Sequence[Network]) -> bool:
    return any(network.version == 4 for network in networks)


def make_directory(lab: str) -> None:
    """Make the directory of a new lab. Raises LabError if there is a lab of this name."""
    if topology.namespaces(lab):
        raise LabError(f"lab {lab!r} exists already", hint=f"remove it first: podway lab down {lab}")
    try:
        lab_dir(lab).mkdir(parents=True)
    except FileExistsError:
        raise LabError(
            f"lab {lab!r} exists already",
            hint=f"remove it first (podway lab down {lab}), or choose another name: --lab NAME",
        ) from None


def _node_objects(current: LabState, places: Mapping[str, LabNode]) -> tuple[Node, ...]:
    """Return the objects of nodes that have something to say which their agents do not know: their rack."""
    if not current.fabric.routed:
        return ()
    return tuple(facts.node_object(node, place, current.tor) for node, place in places.items())


def make_node(current: LabState, node: str, place: LabNode) -> LabState:
    """Make a node's namespace and wire it; return the lab's state with it. Raises KernelError."""
    changed = current.with_node(node, place)
    state.save(changed)  # before anything is built, so that what a crash leaves has a name
    topology.create_node(current.name, node, place, current.fabric)
    outside.show_way(current, node)
    return changed


def _choose_rack(current: LabState, wanted: int | None) -> int:
    if wanted is None:
        used = Counter(place.rack for place in current.nodes.values())
        return min(range(1, current.racks + 1), key=lambda rack: used[rack])
    if 1 <= wanted <= current.racks:
        return wanted
    raise InvalidArgument(
        f"lab {current.name}: there is no rack {wanted}",
        hint=f"it has racks 1 to {current.racks}" if current.racks > 1 else "it was built without --racks",
    )


def _free_index(current: LabState, node: str) -> int:
    most = most_nodes(current.racks)
    taken = {other.index for other in current.nodes.values()}
    digits = node[len(node.rstrip("0123456789")) :]
    if digits and 1 <= int(digits) <= most and int(digits) not in taken:
        return int(digits)  # node7 gets the address that ends in 7
    free = next((index for index in range(1, most + 1) if index not in taken), None)
    if free is None:
        raise LabError(f"lab {current.name}: it has {most} nodes, and room for no more")
    return free


def _start_agents(current: LabState, nodes: Sequence[str], report: Report) -> dict[str, processes.Spawned]:
    """Start the agents of these nodes and wait until they are ready; return their processes."""
    running = {node: current.node(node) for node in current.running}
    topology.introduce(current.name, current.fabric, running)
    routers.introduce(current.name, current.fabric, running)
    started = {node: agents.start(current.name, node) for node in nodes}
    agents.wait_ready(current.name, started, report)
    return started


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
    state.save(current.with_node(node, msgspec.structs.replace(known, running=False)))


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
    return (
        ""
        if current.nodes[node].running
        else f"start it: podway lab node start {node}{names.option(current.name)}"
    )
