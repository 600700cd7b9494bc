"""A cluster of planners, in any order of deaths, returns and slow agents: routes return, and no plan takes any.

Nodes here are their agents' pure parts alone: each reads the store when it gets to it, plans with what its BIRD
does already, and says what it has lost and what it is ready for. A session stands if both ends live and want it.
"""

from collections.abc import Iterator
from itertools import permutations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podway.agent.losses import BACK_AFTER, LOST_AFTER, Losses
from podway.api.addresses import Family
from podway.api.kinds.network_config import BgpSettings, ReflectorSettings
from podway.api.kinds.node import BGP_LOST, BGP_READY, Node
from podway.api.meta import LabelSelector
from podway.bgp.speaker import SETTLE
from podway.cluster.view import ClusterView
from podway.plan.bgp import BgpPlan, plan_bgp
from podway.plan.topology import RunningTopology, topology
from tests.bgp.test_bgp_plan import V4, V6, node, view_of

CHOSEN = BgpSettings(topology="reflectors", reflectors=ReflectorSettings(count=2))
LABELLED = msgspec.structs.replace(
    CHOSEN, reflectors=ReflectorSettings(node_selector=LabelSelector(match_labels={"role": "rr"}))
)
AUTO = BgpSettings(mesh_limit=5, reflectors=ReflectorSettings(count=2))


def with_labels(one: Node, labels: dict[str, str]) -> Node:
    return msgspec.structs.replace(one, metadata=msgspec.structs.replace(one.metadata, labels=labels))


class ModelNode:
    """What an agent keeps, and its BIRD."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.plan: BgpPlan | None = None
        self.losses = Losses()
        self.taken = 0.0


class Model:
    """A store with the nodes' objects, the nodes themselves, and a clock in seconds."""

    def __init__(self, nodes: list[Node], bgp: BgpSettings) -> None:
        self.bgp = bgp
        self.now = 0.0
        self.objects = {each.metadata.name: each for each in nodes}
        self.nodes = {name: ModelNode(name) for name in self.objects}
        self.since: dict[tuple[str, str, Family], float] = {}

    @property
    def view(self) -> ClusterView:
        return view_of([*self.objects.values(), V4, V6], self.bgp)

    def say(self, name: str, note: str, text: str) -> None:
        metadata = self.objects[name].metadata
        annotations = {**metadata.annotations, note: text}
        self.objects[name] = msgspec.structs.replace(
            self.objects[name], metadata=msgspec.structs.replace(metadata, annotations=annotations)
        )

    def wanted(self) -> Iterator[tuple[str, str, Family]]:
        """All that living nodes want, from each end."""
        for each in self.nodes.values():
            if each.alive and each.plan:
                yield from ((each.name, peer.node, peer.family) for peer in each.plan.peers)

    def connect(self) -> None:
        """Sessions come up where both want them, and go where one does not, or is dead."""
        wanted = set(self.wanted())
        self.since = {
            (one, other, family): self.since.get((one, other, family), self.now)
            for one, other, family in wanted
            if (other, one, family) in wanted
        }

    def told(self) -> set[tuple[str, str, Family]]:
        """Who has whose routes: by a session, or by a living reflector between them."""
        found = set(self.since)
        for name, each in self.nodes.items():
            if each.alive and each.plan and each.plan.reflects:
                for family in Family:
                    clients = [other for other in self.nodes if (name, other, family) in self.since]
                    found.update((one, other, family) for one, other in permutations(clients, 2))
        return found

    def act(self, name: str) -> None:
        """One round of an agent: plan and take the plan, look at the sessions, say what is true."""
        each = self.nodes[name]
        if not each.alive or name not in self.objects:
            return
        view, plan = self.view, each.plan
        running = RunningTopology(
            frozenset(peer.node for peer in plan.peers) if plan else frozenset(),
            plan.reflects if plan else False,
            frozenset(pool.network for pool in plan.pools) if plan else frozenset(),
        )
        each.plan = plan_bgp(view, name, running)
        if plan is None or (plan.topology, plan.reflects) != (each.plan.topology, each.plan.reflects):
            each.taken = self.now
        self.connect()
        stands: dict[str, bool] = {}
        for peer in each.plan.peers:
            if peer.node in each.plan.reflectors:
                stands[peer.node] = stands.get(peer.node, True) and (name, peer.node, peer.family) in self.since
        lost = each.losses.see(stands, self.now)
        if lost != self.objects[name].lost:
            self.say(name, BGP_LOST, ",".join(sorted(lost)))
        wanted = [peer for peer in each.plan.peers if not peer.kept]
        needed = [peer for peer in wanted if not peer.lost] or wanted
        up = [self.since.get((name, peer.node, peer.family), self.now) for peer in needed]
        if self.now - max((each.taken, *up)) >= SETTLE:
            self.say(name, BGP_READY, each.plan.topology)

    def settle(self, seconds: int = 30) -> None:
        """Let all living agents do what they do, for so many seconds."""
        for _ in range(seconds):
            self.now += 1
            for name in self.nodes:
                self.act(name)
            self.connect()

    def without_routes(self) -> set[tuple[str, str, Family]]:
        """Pairs of living nodes, and the families that both have, without routes to each other."""
        living = [name for name, each in self.nodes.items() if each.alive and name in self.objects]
        every = {
            (one, other, family)
            for one, other in permutations(living, 2)
            for family in Family
            if self.objects[one].internal_address(family) and self.objects[other].internal_address(family)
        }
        return every - self.told()


def some_nodes(count: int) -> list[Node]:
    nodes = [node(number) for number in range(1, count + 1)]
    return [with_labels(each, {"role": "rr"} if number < 2 else {}) for number, each in enumerate(nodes)]


@pytest.mark.parametrize("bgp", [CHOSEN, LABELLED, AUTO], ids=["chosen", "labelled", "auto"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(3, 7),
    events=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["die", "live", "act", "leave"]), st.integers(0, 6)),
            st.tuples(st.just("pass"), st.sampled_from([1, 3, 6, 70])),
        ),
        max_size=30,
    ),
)
def test_routes_return_and_no_plan_takes_any(bgp: BgpSettings, count: int, events: list[tuple[str, int]]) -> None:
    model = Model(some_nodes(count), bgp)
    model.settle()
    assert not model.without_routes()
    names = list(model.nodes)
    for what, number in events:
        name = names[number % count]
        if what == "die":
            model.nodes[name].alive = False
            model.connect()
        elif what == "live":
            model.nodes[name].alive = True
            model.connect()
        elif what == "leave":
            if not model.nodes[name].alive:
                model.objects.pop(name, None)
        elif what == "act":
            before = model.told()
            model.act(name)
            model.connect()
            there = {pair for pair in before if {pair[0], pair[1]} <= model.objects.keys()}
            assert there <= model.told(), f"{name} took routes from living nodes"
        else:
            model.settle(number)
    model.settle()
    assert not model.without_routes()


@pytest.mark.parametrize("bgp", [CHOSEN, LABELLED], ids=["chosen", "labelled"])
def test_reflectors_that_die_one_after_the_other_are_replaced(bgp: BgpSettings) -> None:
    """Each time before the next one dies: no living node is without routes for a moment."""
    model = Model(some_nodes(6), bgp)
    model.settle()
    first = topology(model.view).reflectors
    assert len(first) == 2
    for name in sorted(first):
        model.nodes[name].alive = False
        model.connect()
        assert not model.without_routes(), "the other one still reflects"
        model.settle()
        target = topology(model.view)
        assert name in target.lost
        assert len(target.reflectors - target.lost) == 2
    assert not model.without_routes()
    # They return, and have their place again when they have stood for long enough.
    for name in first:
        model.nodes[name].alive = True
    model.settle(int(BACK_AFTER) - 5)
    assert topology(model.view).reflectors > first, "not at once: they may die again"
    model.settle(40)
    assert (topology(model.view).reflectors, topology(model.view).lost) == (first, frozenset())
    model.settle()
    assert {each.name for each in model.nodes.values() if each.plan and each.plan.reflects} == first
    assert not model.without_routes()


def test_all_reflectors_at_once() -> None:
    model = Model(some_nodes(6), CHOSEN)
    model.settle()
    for name in topology(model.view).reflectors:
        model.nodes[name].alive = False
    model.connect()
    assert model.without_routes()
    model.settle(int(LOST_AFTER + SETTLE) + 2)
    assert not model.without_routes()


def test_a_node_that_has_lost_all_by_its_own_fault_changes_nothing() -> None:
    model = Model(some_nodes(7), CHOSEN)
    model.settle()
    before = topology(model.view)
    alone = next(name for name in model.nodes if name not in before.reflectors)
    model.say(alone, BGP_LOST, ",".join(before.reflectors))
    assert topology(model.view) == before


def test_every_family_has_its_reflectors() -> None:
    """Nodes of IPv4 only, however well they rank, reflect nothing for IPv6."""
    nodes = [node(number, (Family.IPV4,)) for number in range(1, 20)] + [node(30), node(31), node(32)]
    model = Model(nodes, CHOSEN)
    model.settle()
    assert not model.without_routes()


def test_a_size_that_swings_about_the_limit() -> None:
    """Beyond the limit reflectors; back to the mesh only when a fifth less are left."""
    nodes = [node(number) for number in range(1, 12)]
    model = Model(nodes[:10], BgpSettings(mesh_limit=10))
    model.settle(5)
    kinds = []
    for count in (10, 11, 10, 11, 9, 8, 9, 10, 11):
        for extra in nodes[:count]:
            if extra.metadata.name not in model.objects:
                model.objects[extra.metadata.name] = extra
                model.nodes[extra.metadata.name] = ModelNode(extra.metadata.name)
        for extra in nodes[count:]:
            model.objects.pop(extra.metadata.name, None)
            model.nodes.pop(extra.metadata.name, None)
        model.settle(10)
        kinds.append(topology(model.view).kind)
        assert not model.without_routes()
    assert [kind[0] for kind in kinds] == list("mrrrrmmmr")


def test_a_loss_takes_time_and_so_does_its_end() -> None:
    losses = Losses()
    assert losses.see({"a": False, "b": True}, 0) == set()
    assert losses.see({"a": False, "b": True}, LOST_AFTER - 1) == set()
    assert losses.see({"a": False, "b": True}, LOST_AFTER) == {"a"}
    assert losses.see({"a": True, "b": False}, LOST_AFTER + 1) == {"a"}
    assert losses.see({"a": True, "b": True}, LOST_AFTER + BACK_AFTER) == {"a"}
    assert losses.see({"a": False, "b": True}, LOST_AFTER + BACK_AFTER + 0.5) == {"a"}
    back = LOST_AFTER + BACK_AFTER + 1
    assert losses.see({"a": True, "b": True}, back) == {"a"}
    assert losses.see({"a": True, "b": True}, back + BACK_AFTER) == set()
    assert losses.see({}, back + BACK_AFTER + 1) == set()
    assert Losses(frozenset({"a"})).see({"a": True}, 0) == {"a"}, "an agent that starts knows what it said"
