"""What planning costs in a simulated cluster: one node's work grows no faster than the cluster.

The planner is the one of real nodes; only the clock and the counting of memory are added.
"""

import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import msgspec

from podway import memory
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.bgp.render import Renderer
from podway.cluster.change import Change
from podway.cluster.relevance import alters_plans, alters_routing
from podway.cluster.view import ClusterView
from podway.ipam.blocks import free_blocks
from podway.plan.bgp import BgpPlanning
from podway.plan.changes import Change as Difference
from podway.plan.fabric import planned_modes
from podway.plan.learned import learned_route
from podway.plan.node import plan_node
from podway.plan.path import Site
from podway.plan.switching import InstalledModes, sent_modes
from podway.preview.preview import Comparison
from podway.preview.settle import claim_of
from podway.preview.simulate import World
from podway.reconcile.planning import Planning
from podway.reconcile.state import NodeState

T = TypeVar("T")

SAMPLES = 15
"""How many nodes are planned, and changes followed, for one number."""


class Death(msgspec.Struct, frozen=True):
    """What a node's death changes: for the cluster, and on each node that lives on (`kernel` to `sessions`)."""

    pods: int
    blocks: int
    kernel: int
    routes: int
    sessions: int


class Measured(msgspec.Struct, frozen=True):
    """One size of cluster. Times in seconds of processor time, medians of SAMPLES; memory in bytes.

    `plan_first` is what an agent that starts does with the store's listing in its hand; `memory` the most that
    this takes. `plan` is the same again, for a node of a view that is known. `unrelated`, `claim` and `leave` are
    what a change of another node that alters nothing, its claim of a block and its leaving cost one node.
    """

    nodes: int
    pods: int
    blocks: int
    build: float
    plan_first: float
    plan: float
    memory: int
    unrelated: float
    claim: float
    leave: float
    routes_own: float
    routes_pods: float
    routes_store: float
    routes_learned: float
    death: Death


def measure(world: World, *, build_seconds: float = 0.0, seed: int = 0) -> Measured:
    """Plan nodes of a cluster, and follow changes, with a clock at hand."""
    view, chance = world.view, random.Random(seed)
    names = sorted(view.nodes)
    sample = [chance.choice(names) for _ in range(SAMPLES)]
    follower = sample[0]
    others = [chance.choice([name for name in names if name != follower]) for _ in range(SAMPLES)]
    listing = [msgspec.json.encode(list(objects.values())) for objects in (view.nodes, view.blocks, view.pools)]

    def start(name: str) -> "PlannedNode":
        nodes, blocks, pools = (
            msgspec.json.decode(text, type=list[kind])  # type: ignore[valid-type]
            for text, kind in zip(listing, (Node, AddressBlock, IPPool), strict=True)
        )
        return plan_all(state_of(ClusterView.of([*nodes, *blocks, *pools]), world.sites[name], name))

    gc.collect()
    gc.freeze()  # the other nodes' leases are on no real node: its collector would not walk through them
    memory.collect_seldom()  # as an agent that starts does
    try:
        tracemalloc.start()
        start(follower)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        plan_first = _clock(start, sample[:5])
        known = start(follower).state.view
        states = [state_of(known, world.sites[name], name) for name in sample]
        plan = _clock(plan_all, states)
        memory.collect_usually()
        planned = plan_all(states[0])
        unrelated, claim, leave = (
            _clock(lambda change: follow(planned, change), changes(planned.state.view, others))
            for changes in (_annotations, _claims, _leaves)
        )
    finally:
        memory.collect_usually()
        gc.unfreeze()
    routes = [routes_of(world, name) for name in sample]
    return Measured(
        nodes=len(names),
        pods=sum(len(site.leases) for site in world.sites.values()),
        blocks=len(view.blocks),
        build=build_seconds,
        plan_first=plan_first,
        plan=plan,
        memory=peak,
        unrelated=unrelated,
        claim=claim,
        leave=leave,
        routes_own=median(each.own for each in routes),
        routes_pods=median(each.pods for each in routes),
        routes_store=median(each.store for each in routes),
        routes_learned=median(each.learned for each in routes),
        death=death_of(world, others[0]),
    )


def state_of(view: ClusterView, site: Site, node: str) -> NodeState:
    """Return what a node's agent knows when it has started."""
    assert site.uplink is not None
    state = NodeState(node, view, site.uplink)
    state.adopt(site.leases)
    state.sent = sent_modes(view, planned_modes(view, node), InstalledModes())
    return state


class PlannedNode(NamedTuple):
    """What a node's agent knows and wants, of the kernel and of BIRD."""

    state: NodeState
    planning: Planning
    bgp: BgpPlanning
    renderer: Renderer

    def plan(self) -> list[Difference]:
        """Plan what is dirty; return how the wanted kernel objects change."""
        return self.planning.all(self.state.facts())

    def configuration(self, changed: Collection[str] | None = None) -> str:
        """Plan BGP after these nodes changed (None: all may have); return BIRD's configuration."""
        return self.renderer.render(self.bgp.plan(self.state.view, changed=changed, uplink=self.state.uplink))


def plan_all(state: NodeState) -> PlannedNode:
    """Do all planning of a node: kernel objects, BGP, and BIRD's configuration."""
    planned = PlannedNode(state, Planning(), BgpPlanning(state.node), Renderer(Path("bird.log")))
    planned.plan()
    planned.configuration()
    return planned


def follow(planned: PlannedNode, change: Change[Any]) -> None:
    """Do what an agent does at a change, up to what it tells the kernel and BIRD."""
    state, planning, *_ = planned
    after = state.view.after(change)
    if not alters_plans(change):
        state.view = after
        return
    state.follow(after)
    planning.heard(after, state.node, (change,))
    planned.plan()
    if alters_routing(change):
        planned.configuration([change.key[2]] if change.kind == Node.KIND else [])


class Routes(NamedTuple):
    """How many routes a node has: to its own blocks, to its pods, distributed by the store, learned by BGP."""

    own: int
    pods: int
    store: int
    learned: int


def routes_of(world: World, node: str) -> Routes:
    """Return how many routes a node has."""
    view, site = world.view, world.sites[node]
    assert site.uplink is not None
    own = plan_node(view, node, site.uplink, site.leases).routes
    blackholes = sum(route.type == "blackhole" for route in own)
    store = sum(route.gateway is not None for route in own)
    pods = sum(route.type == "unicast" for route in own) - store
    learned = sum(learned_route(view, node, site.uplink, block) is not None for block in view.blocks.values())
    return Routes(blackholes, pods, store, learned)


def death_of(world: World, node: str) -> Death:
    """Return what changes when a node dies and is removed from the cluster."""
    after = world.view.after(Change.of(world.view.nodes[node], None))
    comparison = Comparison(world.view, after, world.sites)
    witness = next((name for name in sorted(world.view.nodes) if name != node), None)
    change = comparison.of(witness) if witness else None
    return Death(
        pods=len(world.sites[node].leases),
        blocks=len(comparison.returned),
        kernel=len(change.kernel) if change else 0,
        routes=len(change.learned) if change else 0,
        sessions=len(change.sessions) if change else 0,
    )


def _clock(work: Callable[[T], object], over: Sequence[T]) -> float:
    """Return the median of the seconds of processor time that `work` takes for each."""
    taken = []
    for one in over:
        began = time.thread_time()
        work(one)
        taken.append(time.thread_time() - began)
    return median(taken)


def _annotations(view: ClusterView, names: Iterable[str]) -> list[Change[Any]]:
    return [_annotated(view.nodes[name], at) for at, name in enumerate(names)]


def _annotated(node: Node, at: int) -> Change[Node]:
    annotations = {**node.metadata.annotations, "example.org/note": str(at)}
    metadata = msgspec.structs.replace(node.metadata, annotations=annotations)
    return Change.of(node, msgspec.structs.replace(node, metadata=metadata))


def _claims(view: ClusterView, names: Iterable[str]) -> list[Change[Any]]:
    pool = next(iter(view.pools.values()))
    taken = [block.network for block in view.blocks.values()]
    free = free_blocks(pool.network, pool.block_prefix, taken)
    # Where every block is taken, the last claim comes again: to follow it costs the same.
    last = taken[-1]
    return [view.change(claim_of(next(free, last), pool, name)) for name in names]


def _leaves(view: ClusterView, names: Iterable[str]) -> list[Change[Any]]:
    return [Change.of(view.nodes[name], None) for name in names]
