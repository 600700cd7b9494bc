"""What other nodes change is planned for them alone, and comes to the same as planning everything anew."""

from ipaddress import ip_interface
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.agent.state import NodeState
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Distribution, Encapsulation, IPPool
from podway.api.kinds.node import ACCEPTS, AGENT_SEEN, SENDS, Node
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.plan.changes import KINDS, between, patched
from podway.plan.node import plan_node, pod_mtu
from podway.plan.objects import NodePlan
from podway.plan.others import others_altered
from podway.plan.sent_modes import SentModes
from podway.plan.uplink import Uplink
from tests import builders

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"), ip_interface("fd30::1/64")))


def node(name: str, number: int, modes: str = "vxlan", seen: int = 0) -> Node:
    notes = {ACCEPTS: modes, SENDS: modes, AGENT_SEEN: str(seen)}
    return builders.node(name, f"172.30.0.{number}/24", f"fd30::{number}/64", notes=notes)


def block(number: int, owner: str, version: int = 4) -> AddressBlock:
    cidr = f"10.244.{number}.0/24" if version == 4 else f"fd00:244::{number:x}:0/112"
    return builders.block(cidr, f"ipv{version}", owner)


def pools(encapsulation: Encapsulation, distribution: Distribution) -> list[IPPool]:
    return [
        builders.pool(
            f"ipv{version}",
            cidr,
            block_size=size,
            encapsulation=encapsulation if version == 4 or encapsulation != "ipip" else "none",
            distribution=distribution,
        )
        for version, cidr, size in ((4, "10.244.0.0/16", 24), (6, "fd00:244::/96", 112))
    ]


def contents(plan: NodePlan) -> dict[str, dict[Any, Any]]:
    return {field: {obj.key: obj for obj in getattr(plan, field)} for field in KINDS.values()}


def start(encapsulation: Encapsulation, distribution: Distribution) -> NodeState:
    modes = "" if encapsulation == "none" else encapsulation
    objects = [node("here", 1, modes), *pools(encapsulation, distribution), block(1, "here")]
    objects += [
        obj for n in (2, 3, 4) for obj in (node(f"n{n}", n, modes), block(n, f"n{n}"), block(n, f"n{n}", 6))
    ]
    state = NodeState("here", ClusterView.of(objects), UPLINK)
    state.sent = {} if encapsulation == "none" else {"ipv4": {encapsulation}, "ipv6": {encapsulation}}
    return state


def heard(state: NodeState, *changed: tuple[Resource, bool]) -> Any:
    changes: list[Change[Any]] = []
    view = state.view
    for obj, deleted in changed:
        changes.append(view.change(obj, deleted=deleted))
        view = view.after(changes[-1])
    return state.take_others(view, changes)


OBJECTS = st.one_of(
    st.builds(
        node, st.sampled_from(["n2", "n3", "n9"]), st.sampled_from([2, 3, 9]), st.just("vxlan"), st.integers(0, 3)
    ),
    st.builds(block, st.sampled_from([2, 3, 9]), st.sampled_from(["n2", "n3", "n9"]), st.sampled_from([4, 6])),
)
"""Nodes and blocks that come, change, go; two nodes may say that they have the same address."""


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([("vxlan", "store"), ("none", "store"), ("none", "bgp")]),
    st.lists(st.lists(st.tuples(OBJECTS, st.booleans()), min_size=1, max_size=3), max_size=8),
)
def test_a_delta_leads_to_what_planning_anew_does(
    kind: tuple[Encapsulation, Distribution], steps: list[list[Any]]
) -> None:
    state = start(*kind)
    kernel = state.plan()
    for changed in steps:
        delta = heard(state, *changed)
        anew = plan_node(state.view, "here", UPLINK, (), facts=state.facts, sent=state.sent)
        assert contents(state.plan()) == contents(anew)
        if delta is not None:
            kernel = patched(kernel, delta)
            assert contents(kernel) == contents(anew)
        kernel = anew


def test_a_node_that_leaves_takes_its_entries_and_routes_along_and_no_others() -> None:
    delta = heard(start("vxlan", "store"), (node("n3", 3), True))
    assert {(change.kind, change.action) for change in delta} == {
        ("neighbour", "remove"),
        ("forwarding entry", "remove"),
        ("route", "remove"),
        ("nft element", "remove"),
    }
    # A neighbour, a forwarding entry, two routes; two addresses that pods may not tunnel to; the node as a sender
    # of tunnelled packets, and what it may send from: two addresses, two blocks, which themselves are still there.
    assert len(delta) == 2 + 2 + 2 + 1 + 4


@pytest.mark.parametrize(
    "changed",
    [
        (node("here", 1, seen=3), False),
        (block(9, "here"), False),
        (pools("none", "store")[0], False),
    ],
    ids=["this node", "a block of this node", "a pool"],
)
def test_what_may_alter_anything_else_is_for_a_look_at_everything(changed: tuple[Resource, bool]) -> None:
    state = start("vxlan", "store")
    if changed[0].KIND == "Node":  # its own words
        changed = (node("here", 1, "vxlan,ipip"), False)
    assert heard(state, changed) is None
    assert contents(state.plan()) == contents(
        plan_node(state.view, "here", UPLINK, (), facts=state.facts, sent=state.sent)
    )


def test_a_form_that_was_not_sent_before_is_for_a_look_at_everything() -> None:
    state = start("vxlan", "store")
    state.sent = {}
    assert heard(state, (node("n9", 9), False)) is None


def test_encapsulated_routes_of_bgp_are_for_a_look_at_everything() -> None:
    assert heard(start("vxlan", "bgp"), (node("n9", 9), False)) is None


def test_a_heartbeat_alters_nothing_and_plans_nothing() -> None:
    state = start("vxlan", "store")
    before = state.plan()
    change = state.view.change(node("n2", 2, seen=7))
    state.advance(state.view.after(change))
    assert state.plan().neighbours is not None
    assert state.plan().forwarding is before.forwarding
    assert state.view.nodes["n2"].metadata.annotations[AGENT_SEEN] == "7"


def test_what_is_patched_is_what_differs() -> None:
    state = start("vxlan", "store")
    one = state.plan()
    heard(state, (node("n3", 3), True), (block(2, "n4"), False))
    other = state.plan()
    assert contents(patched(one, between(one, other))) == contents(other)
    assert msgspec.structs.asdict(patched(one, ())) == msgspec.structs.asdict(one)


def test_another_nodes_address_that_alters_the_mtu_of_pods_is_a_matter_of_the_whole_plan() -> None:
    """A node of IPv4 alone holds nothing for one of IPv6 alone, but its pods' MTU is that of the whole cluster."""

    def with_addresses(name: str, *interfaces: str) -> Node:
        return builders.node(name, *interfaces, notes={ACCEPTS: "vxlan", SENDS: "vxlan"})

    here = with_addresses("here", "172.30.0.1/24")
    both, six = with_addresses("n2", "172.30.0.2/24", "fd30::2/64"), with_addresses("n2", "fd30::2/64")
    before = ClusterView.of([here, both, *pools("vxlan", "store")])
    change = before.change(six)
    after = before.after(change)
    uplink = Uplink("eth0", 1500, here.interface_addresses)
    assert (pod_mtu(before, uplink), pod_mtu(after, uplink)) == (1450, 1430)
    sent: SentModes = {"ipv4": {"vxlan"}, "ipv6": {"vxlan"}}
    assert others_altered(before, after, "here", [change], sent) is None
