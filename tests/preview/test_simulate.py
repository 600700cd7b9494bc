"""Simulated clusters: right in every address, and no dearer for one node than the cluster is large."""

import json
import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from itertools import pairwise
from types import FrameType

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.addresses import Address
from podway.cluster.change import Change
from podway.errors import InvalidObject, PoolExhausted
from podway.ipam.blocks import is_reserved
from podway.plan.changes import between
from podway.preview.measure import death_of, follow, measure, plan_all, routes_of, state_of
from podway.preview.preview import Comparison
from podway.preview.settle import settle
from podway.preview.simulate import build
from tests.builders import pool
from tests.preview.paper_cluster import plan_of

POOLS = [pool("four", "10.0.0.0/16", block_size=28), pool("six", "fd10::/48")]


@settings(max_examples=20, deadline=None)
@given(nodes=st.integers(2, 12), pods=st.integers(0, 120), seed=st.integers(0, 9))
def test_every_pod_has_an_address_of_each_family_that_is_its_own_and_its_nodes(
    nodes: int, pods: int, seed: int
) -> None:
    world = build(nodes, pods, POOLS, seed=seed)
    seen: set[Address] = set()
    for node, site in world.sites.items():
        blocks = [block.network for block in world.view.blocks_of(node)]
        for lease in site.leases:
            assert [address.version for address in lease.addresses] == [4, 6]
            for address in lease.addresses:
                (block,) = [block for block in blocks if address in block]
                assert not is_reserved(address, block)
            seen.update(lease.addresses)
    assert len(seen) == 2 * pods
    networks = sorted((b.network for b in world.view.blocks.values()), key=lambda n: (n.version, n))
    assert not any(one.overlaps(other) for one, other in pairwise(networks) if one.version == other.version)


def test_the_same_seed_gives_the_same_cluster() -> None:
    assert build(4, 30, POOLS, seed=1) == build(4, 30, POOLS, seed=1)
    assert build(4, 30, POOLS, seed=1).sites != build(4, 30, POOLS, seed=2).sites


def test_excluded_addresses_are_given_to_nobody() -> None:
    kept = "10.0.0.0/25"
    world = build(2, 60, [pool("p", "10.0.0.0/16", excluded=(kept,))], seed=0)
    leased = [address for site in world.sites.values() for lease in site.leases for address in lease.addresses]
    assert len(leased) == 60
    assert not [address for address in leased if address in ip_network(kept)]


def test_a_simulated_cluster_is_at_rest() -> None:
    world = build(5, 80, POOLS)
    assert settle(world.view, world.sites).view == world.view


def test_a_nodes_death_touches_its_own_routes_only() -> None:
    world = build(6, 60, POOLS, seed=4)
    dead = "node-000003"
    its = {block.network for block in world.view.blocks_of(dead)}
    comparison = Comparison(world.view, world.view.after(Change.of(world.view.nodes[dead], None)), world.sites)
    for node in world.sites.keys() - {dead}:
        change = comparison.of(node)
        assert {one.have.destination for one in change.learned} == its
        assert {one.action for one in (*change.learned, *change.sessions)} == {"remove"}
        assert {one.have.peer for one in change.sessions} == set(world.view.nodes[dead].internal_addresses)
        # What pods send to its addresses, one a family, is translated from now on.
        assert {one.have.set for one in change.kernel} == {"nodes"}
        assert {one.action for one in change.kernel} == {"remove"}
    death = death_of(world, dead)
    assert (death.routes, death.blocks, death.sessions, death.kernel) == (len(its), len(its), 2, 2)
    assert death.pods == len(world.sites[dead].leases)


def test_every_node_has_a_way_to_every_block() -> None:
    world = build(7, 50, POOLS)
    for node, site in world.sites.items():
        own, pods, store, learned = routes_of(world, node)
        assert store == 0
        assert own + learned == len(world.view.blocks)
        assert pods == 2 * len(site.leases)


def test_pods_that_do_not_fit_are_told_with_what_to_do() -> None:
    with pytest.raises(PoolExhausted, match=r"10\.9\.0\.0/28 had no free block when pod") as told:
        build(2, 40, [pool("p", "10.9.0.0/28", block_size=28)])
    assert "--pool" in told.value.hint


def test_a_pool_where_the_nodes_are_is_refused() -> None:
    with pytest.raises(InvalidObject, match="overlaps"):
        build(2, 0, [pool("p", "172.16.0.0/16")])


def _calls(work: Callable[[], object]) -> int:
    """Count the function calls, of Python and of C, that some work takes."""
    count = 0

    def hook(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(hook)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_planning_one_node_takes_work_in_proportion_to_the_nodes() -> None:
    def work(nodes: int) -> int:
        world = build(nodes, 0, POOLS[1:])
        state = state_of(world.view, world.sites["node-000001"], "node-000001")
        return _calls(lambda: plan_all(state))

    small, middle, large = work(100), work(200), work(300)
    assert large - middle == pytest.approx(middle - small, rel=0.05)


def test_the_news_of_another_node_takes_no_more_work_in_a_larger_cluster() -> None:
    def work(nodes: int) -> int:
        world = build(nodes, 0, POOLS[1:])
        heard = Change.of(world.view.blocks_of("node-000003")[0], None)
        planned = plan_all(state_of(world.view, world.sites["node-000001"], "node-000001"))
        return _calls(lambda: follow(planned, heard))

    work(10)  # what is read once and kept
    assert work(300) <= work(30) + 20  # no look at any other node


def test_what_is_followed_is_what_a_listing_says() -> None:
    world = build(5, 40, POOLS)
    block = world.view.blocks_of("node-000002")[0]
    planned = plan_all(state_of(world.view, world.sites["node-000001"], "node-000001"))
    follow(planned, Change.of(block, None))
    after = planned.state.view
    rest = [obj for obj in world.view.blocks.values() if obj is not block]
    listed = type(world.view).of([*world.view.nodes.values(), *world.view.pools.values(), *rest])
    assert after == listed
    site = world.sites["node-000002"]
    changes = between(*(plan_of(view, "node-000002", site) for view in (world.view, after)))
    assert [str(change.have) for change in changes] == [f"route {block.network} blackhole"]


def test_the_table_and_the_document(podway: Callable[..., Result]) -> None:
    table = podway("simulate", "--nodes", 20, "--pods", 100).stdout
    assert "10 times the nodes: first plan" in table
    assert table.splitlines()[0].split() == ["2", "4", "8", "20"]
    document = json.loads(podway("simulate", "--nodes", 20, "--pods", 100, "--only", "-o", "json").stdout)
    (size,) = document["sizes"]
    assert (size["nodes"], size["pods"], size["routes_learned"], size["routes_own"]) == (20, 100, 19, 1)
    assert podway("simulate", "--pool", "10.0.0.1/8", status=2).stderr.count("did you mean 10.0.0.0/8?")


def test_measuring_leaves_no_trace() -> None:
    world = build(3, 9, POOLS)
    before = world.view
    found = measure(world)
    assert world.view == before
    assert found.memory > 0
    assert ip_address("172.16.0.1") in world.view.nodes["node-000000"].internal_addresses


@pytest.mark.parametrize("encapsulation", ["vxlan", "ipip"])
def test_overlays_told_by_the_store_are_simulated_too(podway: Callable[..., Result], encapsulation: str) -> None:
    options = ("--encapsulation", encapsulation, "--distribution", "store", "--only", "-o", "json")
    document = json.loads(podway("simulate", "--nodes", 20, "--pods", 100, *options).stdout)
    (one,) = document["sizes"]
    assert (document["encapsulation"], document["distribution"]) == (encapsulation, "store")
    assert one["routes_learned"] == 0, "BGP advertises none"
    assert one["routes_store"] >= 19, "to the other nodes"
    assert one["death"]["kernel"] >= 3, "a route, and entries of the overlay"
