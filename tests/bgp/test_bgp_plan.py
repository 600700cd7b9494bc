import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.addresses import Family
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.network_config import BgpSettings, NetworkConfig, NetworkConfigSpec
from podway.api.kinds.node import Node, NodeAddress, NodeStatus
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.cluster.view import ClusterView
from podway.errors import InvalidObject
from podway.plan.bgp import plan_bgp
from podway.plan.topology import RunningTopology

BGP = BgpSettings()


def view_of(objects: Sequence[Resource], bgp: BgpSettings = BGP) -> ClusterView:
    config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(bgp=bgp))
    return ClusterView.of([*objects, config])


def node(number: int, families: tuple[Family, ...] = (Family.IPV4, Family.IPV6), name: str = "") -> Node:
    text = {Family.IPV4: f"192.0.2.{number}", Family.IPV6: f"2001:db8::{number:x}"}
    return Node(
        metadata=Metadata(name=name or f"node-{number}"),
        status=NodeStatus(
            addresses=tuple(NodeAddress(type="InternalIP", address=text[family]) for family in families)
        ),
    )


def pool(cidr: str, block_size: int | None = None, *, disabled: bool = False) -> IPPool:
    spec = IPPoolSpec(cidr=cidr, block_size=block_size, disabled=disabled)
    return IPPool(metadata=Metadata(name=f"pool-{cidr}"), spec=spec)


V4, V6 = pool("10.244.0.0/16"), pool("fd00:10:244::/112")


@given(
    st.lists(st.sets(st.sampled_from(list(Family)), min_size=1), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_mesh_is_full_and_agreed(families: list[set[Family]], chance: random.Random) -> None:
    """If I have a session with you, you have the one with me, whatever order the store lists us in."""
    nodes = [node(number, tuple(sorted(each))) for number, each in enumerate(families, 1)]
    plans = {each.metadata.name: plan_bgp(view_of([*nodes, V4, V6]), each.metadata.name) for each in nodes}
    sessions = {(plan.address(peer.family), peer.address) for plan in plans.values() for peer in plan.peers}
    assert sessions == {(there, here) for here, there in sessions}
    pairs = sum(len(a & b) for i, a in enumerate(families) for j, b in enumerate(families) if i != j)
    assert len(sessions) == pairs

    shuffled = chance.sample(nodes, len(nodes))
    for name, plan in plans.items():
        assert plan_bgp(view_of([V6, *shuffled, V4]), name) == plan
        assert len({peer.name for peer in plan.peers}) == len(plan.peers)
    assert len({plan.router_id for plan in plans.values()}) == len(plans)


def test_a_family_is_told_only_with_an_address_and_a_pool() -> None:
    both = [node(1), node(2)]
    assert [peer.family for peer in plan_bgp(view_of([*both, V4]), "node-1").peers] == [Family.IPV4]
    assert [peer.family for peer in plan_bgp(view_of([*both, V6, V4]), "node-1").peers] == list(Family)
    plan = plan_bgp(view_of([node(1, (Family.IPV6,)), node(2), V6, V4]), "node-1")
    assert [peer.family for peer in plan.peers] == [Family.IPV6]
    assert {pool.network for pool in plan.pools} == {V6.network}
    assert int(plan.router_id) != 0


def test_a_router_id_stays_until_it_is_another_nodes_address() -> None:
    """BIRD would begin all sessions anew."""
    both, six, other = node(1), node(1, (Family.IPV6,)), node(2)
    known = plan_bgp(view_of([both, other, V6]), "node-1").router_id
    running = RunningTopology(router_id=known)
    assert plan_bgp(view_of([six, other, V6]), "node-1").router_id != known
    assert plan_bgp(view_of([six, other, V6]), "node-1", running).router_id == known
    assert plan_bgp(view_of([both, other, V6]), "node-1", running).router_id == known
    taken = RunningTopology(router_id=plan_bgp(view_of([other]), "node-2").router_id)
    assert plan_bgp(view_of([both, other, V6]), "node-1", taken).router_id == known


def test_a_disabled_pool_stays_routed() -> None:
    assert plan_bgp(view_of([node(1), pool("10.9.0.0/16", disabled=True)]), "node-1").pools


def test_settings_are_taken_over() -> None:
    bgp = BgpSettings(asn=64999, port=1790, bfd=False)
    plan = plan_bgp(view_of([node(1), node(2), V4], bgp), "node-1")
    assert (plan.asn, plan.port, plan.nodes_bfd) == (64999, 1790, False)
    assert [peer.asn for peer in plan.peers] == [64999]


def test_a_name_too_long_for_bird_gives_way_to_the_address() -> None:
    long = "a" * 200 + ".example"
    (peer,) = plan_bgp(view_of([node(1), node(2, (Family.IPV4,), long), V4]), "node-1").peers
    assert (peer.name, peer.node) == ("192.0.2.2", long)


def test_an_unknown_node_is_named() -> None:
    with pytest.raises(InvalidObject, match="Node/nobody"):
        plan_bgp(view_of([node(1), V4]), "nobody")
