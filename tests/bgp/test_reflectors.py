"""Which nodes reflect, and that switching to reflectors and back, or losing one, costs no packet."""

import time
from collections.abc import Iterable, Mapping
from functools import partial
from ipaddress import ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.kinds.network_config import BgpSettings, ReflectorSettings, Topology
from podway.api.kinds.node import ASN, BGP_READY, RACK, Node
from podway.api.meta import LabelSelector, Metadata
from podway.cluster.table import Table
from podway.plan import reflectors as planner
from podway.plan.bgp import plan_bgp
from podway.plan.topology import RunningTopology, topology
from tests.bgp.bgp_lab import LabNode, Segment
from tests.bgp.test_bgp_plan import V4, node, view_of
from tests.patience import eventually

COUNT = ReflectorSettings(count=3)


def labelled(name: str, labels: Mapping[str, str]) -> Node:
    return Node(metadata=Metadata(name=name, labels=dict(labels)))


def reflectors(nodes: Iterable[Node], settings: ReflectorSettings) -> frozenset[str]:
    return planner.reflectors(Table({one.metadata.name: one for one in nodes}, Node.INDICES), settings)


nodes_in_racks = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), st.sampled_from("abcdef"), min_size=1, max_size=40
).map(lambda found: [labelled(name, {RACK: where}) for name, where in found.items()])


@given(nodes_in_racks, st.integers(1, 6))
def test_reflectors_are_spread_over_racks(nodes: list[Node], count: int) -> None:
    settings = ReflectorSettings(count=count)
    chosen = reflectors(nodes, settings)
    assert len(chosen) == min(count, len(nodes))
    used = {one.rack for one in nodes if one.metadata.name in chosen}
    assert len(used) == min(count, len({one.rack for one in nodes}))
    assert reflectors(reversed(nodes), settings) == chosen


@given(nodes_in_racks, st.sampled_from("abcdefg"))
def test_a_node_that_joins_replaces_one_reflector_at_most(nodes: list[Node], where: str) -> None:
    before = reflectors(nodes, COUNT)
    after = reflectors([*nodes, labelled("new", {RACK: where})], COUNT)
    assert len(before - after) <= 1


def test_labels_choose_all_that_have_them() -> None:
    nodes = [labelled(f"n{number}", {"role": "rr"} if number < 5 else {}) for number in range(9)]
    settings = ReflectorSettings(node_selector=LabelSelector(match_labels={"role": "rr"}), count=2)
    assert reflectors(nodes, settings) == {f"n{number}" for number in range(5)}


MANY = [node(number) for number in range(1, 8)]
SPREAD = BgpSettings(mesh_limit=6, reflectors=ReflectorSettings(count=2))


def test_a_large_cluster_goes_over_to_reflectors_by_itself() -> None:
    small, large = view_of([*MANY[:6], V4], SPREAD), view_of([*MANY, V4], SPREAD)
    assert topology(small).kind == "mesh"
    target = topology(large)
    assert (target.kind, len(target.reflectors)) == ("reflectors", 2)
    for each in large.nodes:
        plan = plan_bgp(large, each)
        others = large.nodes.keys() - {each}
        assert {peer.node for peer in plan.peers} == (others if each in target.reflectors else target.reflectors)
        assert plan.reflects == (each in target.reflectors)


def test_nodes_of_several_as_form_a_mesh() -> None:
    odd = msgspec.structs.replace(MANY[0], metadata=Metadata(name="node-1", annotations={ASN: "65001"}))
    view = view_of([odd, *MANY[1:], V4], SPREAD)
    assert topology(view).kind == "mesh"
    assert {peer.asn for peer in plan_bgp(view, "node-2").peers if peer.node == "node-1"} == {65001}


def ready(nodes: list[Node], name: str) -> list[Node]:
    return [
        msgspec.structs.replace(one, metadata=msgspec.structs.replace(one.metadata, annotations={BGP_READY: name}))
        for one in nodes
    ]


def test_what_stands_is_kept_until_all_are_ready() -> None:
    """A session of the mesh, the reflecting of a former reflector, and a pool that BGP advertises no more."""
    view = view_of([*MANY, V4], SPREAD)
    target = topology(view)
    client = next(name for name in view.nodes if name not in target.reflectors)
    others = view.nodes.keys() - {client}
    running = RunningTopology(frozenset(others), True, frozenset({ip_network("10.9.0.0/16")}))
    gone = msgspec.structs.replace(V4, metadata=Metadata(name="gone"))
    gone = msgspec.structs.replace(
        gone, spec=msgspec.structs.replace(gone.spec, cidr="10.9.0.0/16", distribution="store")
    )
    view = view_of([*MANY, V4, gone], SPREAD)

    def outcome(nodes: list[Node]) -> tuple[set[str], set[str], bool, int]:
        plan = plan_bgp(view_of([*nodes, V4, gone], SPREAD), client, running)
        kept = {peer.node for peer in plan.peers if peer.kept}
        return {peer.node for peer in plan.peers}, kept, plan.reflects, len(plan.pools)

    assert outcome(MANY) == (others, others - target.reflectors, True, 2)
    assert outcome([*ready(MANY[:-1], target.name), MANY[-1]]) == (others, others - target.reflectors, True, 2)
    assert outcome(ready(MANY, "mesh-of-old")) == (others, others - target.reflectors, True, 2)
    assert outcome(ready(MANY, target.name)) == (set(target.reflectors), set(), False, 1)
    waiting = plan_bgp(view_of([*ready(MANY[:-1], target.name), MANY[-1], V4], SPREAD), client, running)
    assert waiting.waits_for == ("node-7",)


REFLECTED = BgpSettings(topology="reflectors", reflectors=ReflectorSettings(count=2))


def apart(segment: Segment) -> tuple[list[LabNode], list[LabNode]]:
    """The reflectors and the others, of which each has sessions with the former alone."""
    chosen = topology(segment.view(segment.nodes)).reflectors
    assert len(chosen) == 2
    return (
        [each for each in segment.nodes if each.node in chosen],
        [each for each in segment.nodes if each.node not in chosen],
    )


def sessions(each: LabNode) -> set[str]:
    return {peer.node for peer in each.run(each.speaker.peers())}


@pytest.mark.kernel
def test_routes_are_complete_and_a_reflectors_death_loses_nothing(segment: Segment) -> None:
    segment.bgp = REFLECTED
    segment.start(4)
    (first, second), (one, two) = apart(segment)
    assert sessions(one) == sessions(two) == {first.node, second.node}
    assert sessions(first) == {second.node, one.node, two.node}
    # Next hops are those of the nodes that tell, not of the reflectors.
    assert one.routes()[two.block4]["gateway"] == f"192.0.2.{two.number}"
    assert one.routes()[two.block6]["gateway"] == f"2001:db8::{two.number}"
    eventually(lambda: all(peer.bfd == "Up" for peer in one.run(one.speaker.peers())))
    to, fro = one.flow_to(two, seconds=3), two.flow_to(one, seconds=3, ipv6=True)
    time.sleep(0.5)
    started = time.monotonic()
    first.cut()
    eventually(lambda: first.block4 not in one.routes())
    assert time.monotonic() - started < 5, "a dead node's routes go as fast as in a mesh"
    assert (to(), fro()) == (0, 0)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("before", "after"), [("mesh", "reflectors"), ("reflectors", "mesh")], ids=["to-reflectors", "to-mesh"]
)
def test_switching_under_traffic_loses_nothing(segment: Segment, before: Topology, after: Topology) -> None:
    segment.bgp = msgspec.structs.replace(REFLECTED, topology="reflectors")
    segment.add(4)
    _, (one, two) = apart(segment)
    segment.bgp = msgspec.structs.replace(REFLECTED, topology=before)
    for each in segment.nodes:
        each.start(segment.nodes)
    for each in segment.nodes:
        eventually(partial(segment.complete, each))
    segment.go_over()
    to, fro = one.flow_to(two, seconds=6), two.flow_to(one, seconds=6, ipv6=True)
    changes = one.route_changes()
    segment.bgp = msgspec.structs.replace(REFLECTED, topology=after)
    segment.go_over()
    assert (two.node in sessions(one)) == (after == "mesh")
    assert not [line for line in changes() if line.startswith("Deleted")], "routes stay as they are"
    assert (to(), fro()) == (0, 0)
    assert all(segment.complete(each) for each in segment.nodes)
