"""`podway plan`: what it says of a change, and that it is what happens."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from podway.api.resource import Resource
from podway.cluster.view import ClusterView
from podway.plan.changes import between
from podway.plan.path import Site
from podway.preview import snapshot
from podway.preview.simulate import World, build
from podway.store.base import Everything, list_all
from podway.store.open import open_store
from tests.builders import pool
from tests.preview.paper_cluster import plan_of, snapshot_of

MTU = "{apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}, spec: {mtu: 1400}}"
ASN = "{apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}, spec: {bgp: {asn: 64999}}}"
POOL = "{apiVersion: podway.io/v1, kind: IPPool, metadata: {name: more}, spec: {cidr: 10.99.0.0/23}}"
BLOCK = (
    "{apiVersion: podway.io/v1, kind: AddressBlock, metadata: {name: 10-244-9-0-24}, "
    "spec: {cidr: 10.244.9.0/24, pool: four, node: node-000001}}"
)


@pytest.fixture
def plan(podway: Callable[..., Result], file: Path) -> Callable[..., Result]:
    def run(change: str, *words: object, status: int = 0) -> Result:
        return podway("plan", "--snapshot", file, "-f", "-", *words, stdin=change, status=status)

    return run


def document(result: Result) -> Any:
    return json.loads(result.stdout)


def by_node(answer: Any, part: str) -> dict[str, list[tuple[str, str]]]:
    return {node["node"]: [(one["action"], one["object"]) for one in node[part]] for node in answer["nodes"]}


def test_a_smaller_mtu_changes_every_pods_link_and_every_way_and_nothing_else(
    plan: Callable[..., Result], world: World
) -> None:
    answer = document(plan(MTU, "-o", "json"))
    pods = {node: len(site.leases) for node, site in world.sites.items()}
    for node in answer["nodes"]:
        assert [one["fields"] for one in node["kernel"]] == [
            [{"field": "mtu", "before": 1500, "after": 1400}]
        ] * pods[node["node"]]
        assert not node["learned"]
        assert not node["sessions"]
    assert answer["paths"]["pairs"] == 2 * 5 * 4  # both families, every ordered pair
    assert answer["paths"]["complete"]
    assert all(change["before"]["hops"] == change["after"]["hops"] for change in answer["paths"]["changes"])


def test_a_block_more_is_a_blackhole_at_home_and_a_route_elsewhere(plan: Callable[..., Result]) -> None:
    answer = document(plan(BLOCK, "-o", "json"))
    assert by_node(answer, "kernel") == {
        "node-000000": [],
        "node-000001": [("add", "route 10.244.9.0/24 blackhole")],
        "node-000002": [],
    }
    via = "route 10.244.9.0/24 via 172.16.0.2 dev eth0 src 172.16.0.{} metric 32"
    assert by_node(answer, "learned") == {
        "node-000000": [("add", via.format(1))],
        "node-000001": [],
        "node-000002": [("add", via.format(3))],
    }
    assert answer["paths"]["pairs"] == 0
    assert answer["claimed"] == []  # somebody claims it, not the agent


def test_a_new_pool_shows_what_the_agents_do_with_it_until_it_is_full(plan: Callable[..., Result]) -> None:
    answer = document(plan(POOL, "-o", "json"))
    assert [(block["cidr"], block["node"]) for block in answer["claimed"]] == [
        ("10.99.0.0/24", "node-000000"),
        ("10.99.1.0/24", "node-000001"),
    ]
    assert answer["unserved"] == [{"node": "node-000002", "pool": "more"}]
    assert len(by_node(answer, "learned")["node-000002"]) == 2
    assert all(any("10.99.0.0/23{24,24}" in line for line in node["bird"]) for node in answer["nodes"])


def test_a_pool_that_is_disabled_gets_its_empty_blocks_back(podway: Callable[..., Result], tmp_path: Path) -> None:
    world = build(3, 1, [pool("four", "10.244.0.0/16")])
    path = tmp_path / "cluster.json"
    path.write_bytes(snapshot.encode(snapshot_of(world)))
    change = POOL.replace("more", "four").replace("10.99.0.0/23", "10.244.0.0/16, disabled: true")
    answer = document(podway("plan", "--snapshot", path, "-f", "-", "-o", "json", stdin=change))
    empty = {block.spec.cidr for block in world.view.blocks.values() if not world.sites[block.spec.node].leases}
    assert len(empty) == 2
    assert {block["cidr"] for block in answer["returned"]} == empty
    (keeper,) = [node["node"] for node in answer["nodes"] if not node["kernel"]]
    assert world.sites[keeper].leases


def test_another_asn_restarts_every_session(plan: Callable[..., Result]) -> None:
    answer = document(plan(ASN, "-o", "json"))
    for node in answer["nodes"]:
        assert node["restartingSessions"] == len(node["sessions"]) == 4  # two peers, two families
        assert not node["kernel"]
    assert "12 ends of BGP sessions start anew" in plan(ASN).stdout


def test_a_node_that_leaves_takes_its_routes_along_from_all_others(
    podway: Callable[..., Result], world: World, tmp_path: Path
) -> None:
    node = "node-000001"
    sites = {**world.sites, node: Site(world.sites[node].uplink)}
    path = tmp_path / "nopods.json"
    objects = (*world.view.nodes.values(), *world.view.pools.values(), *world.view.blocks.values())
    path.write_bytes(snapshot.encode(snapshot.Snapshot("t", objects, sites, {})))
    answer = document(podway("plan", "--snapshot", path, "--delete", f"node/{node}", "-o", "json"))
    left = [block.spec.cidr for block in world.view.blocks_of(node)]
    for change in answer["nodes"]:
        assert change["membership"] == ("leaves" if change["node"] == node else "stays")
        if change["node"] != node:
            assert [one["object"].split()[1] for one in change["learned"]] == left
            assert {one["object"].partition(" of ")[2] for one in change["kernel"]} <= {
                "nft set ip podway-nat nodes",
                "nft set ip6 podway-nat nodes",
            }
    assert {block["cidr"] for block in answer["returned"]} == set(left)


def test_nothing_is_said_of_what_is_so_already(
    podway: Callable[..., Result], plan: Callable[..., Result], file: Path, tmp_path: Path
) -> None:
    pools = podway("--store", f"snapshot:{file}", "get", "pools", "-o", "yaml").stdout
    assert plan(pools, "--exit-code").stdout.startswith("Nothing would change")
    assert plan(MTU, "--exit-code", status=3).stdout.endswith("Nothing was done.\n")


def test_the_page_shows_the_first_few_and_all_if_asked(plan: Callable[..., Result]) -> None:
    short, whole = plan(MTU).stdout, plan(MTU, "--all").stdout
    assert "more such groups" in short
    assert "more such groups" not in whole
    (line,) = {line for line in whole.splitlines() if "of pod default/pod-0 " in line}
    assert line.startswith("  ~ link pway")
    assert line.endswith(" of pod default/pod-0 (mtu 1500 -> 1400)")
    assert "40 pairs of pod addresses with another way" in whole


def test_a_silent_node_is_planned_without_its_pods_and_that_is_said(
    podway: Callable[..., Result], world: World, tmp_path: Path
) -> None:
    sites = dict(world.sites)
    del sites["node-000001"]
    objects = (*world.view.nodes.values(), *world.view.pools.values(), *world.view.blocks.values())
    path = tmp_path / "silent.json"
    silent = {"node-000001": "does not answer"}
    path.write_bytes(snapshot.encode(snapshot.Snapshot("t", objects, sites, silent)))
    told = podway("plan", "--snapshot", path, "-f", "-", stdin=BLOCK).stdout
    assert "node-000001: planned without its pods: does not answer" in told
    assert "+ route 10.244.9.0/24 blackhole" in told


@pytest.mark.parametrize("change", [MTU, ASN, BLOCK, MTU + "\n---\n" + BLOCK])
def test_what_is_planned_is_what_applying_brings(
    podway: Callable[..., Result], file: Path, plan: Callable[..., Result], tmp_path: Path, change: str
) -> None:
    store = f"sqlite://{tmp_path}/store.db"
    taken = snapshot.read(file)
    _put(store, taken.objects)
    answer = document(plan(change, "-o", "json"))
    before = _view(store)
    podway("--store", store, "apply", "-f", "-", stdin=change)
    after = _view(store)
    told = by_node(answer, "kernel")
    for node, site in taken.sites.items():
        changes = between(plan_of(before, node, site), plan_of(after, node, site))
        assert told.get(node, []) == [(one.action, str(one.want or one.have)) for one in changes]
    now = podway("--store", store, "plan", "-f", "-", "-o", "json", stdin=change)
    assert document(now)["nodes"] == []


def test_plan_writes_nothing(podway: Callable[..., Result], file: Path, tmp_path: Path) -> None:
    store = f"sqlite://{tmp_path}/store.db"
    _put(store, snapshot.read(file).objects)
    before = _view(store)
    podway("--store", store, "plan", "-f", "-", stdin=POOL)
    assert _view(store) == before


@pytest.mark.parametrize(
    ("words", "stdin", "told"),
    [
        (["-f", "-"], POOL.replace("more", "four"), "line 1: IPPool/four: spec.cidr: cannot change"),
        (["-f", "-"], POOL.replace("cidr", "cdir"), "line 1: IPPool/more: spec.cdir: is not a field here"),
        (["-f", "-"], POOL.replace("10.99.0.0", "10.244.0.0"), "overlaps 10.244.0.0/16 of IPPool/four"),
        (["--delete", "pool/for"], None, "IPPool/for does not exist"),
        (["--delete", "pool/for"], None, "did you mean four?"),
        (["--delete", "pool/four"], None, "3 of its blocks belong to nodes"),
    ],
)
def test_a_change_that_cannot_be_right_is_told_with_its_place(
    podway: Callable[..., Result], file: Path, words: list[str], stdin: str, told: str
) -> None:
    assert told in podway("plan", "--snapshot", file, *words, stdin=stdin, status=1).stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--delete", "ppol/four"], "did you mean"),
        (["--delete", "pool"], "write pool/NAME"),
        (["--delete", "routes/x"], "cannot be changed or deleted"),
        (["-f", "/nowhere"], "/nowhere: No such file"),
        ([], "name a change"),
    ],
)
def test_an_argument_that_cannot_be_right(
    podway: Callable[..., Result], file: Path, words: list[str], told: str
) -> None:
    assert told in podway("plan", "--snapshot", file, *words, status=2).stderr


def test_a_name_that_does_not_exist_is_told_with_the_nearest(podway: Callable[..., Result], file: Path) -> None:
    store = f"snapshot:{file}"
    assert "did you mean pod-0" in podway("--store", store, "get", "pod", "pod0", status=1).stderr
    other = podway("--store", store, "get", "pod", "pod-0", "-n", "shop", status=1).stderr
    assert "there is Pod/default/pod-0: say -n default" in other
    assert "there are node-000000" in podway("--store", store, "get", "node", "x", status=1).stderr


def _put(url: str, objects: Iterable[Resource]) -> None:
    import asyncio

    async def work() -> None:
        store = open_store(url)
        try:
            for obj in objects:
                await store.create(obj)
        finally:
            await store.close()

    asyncio.run(work())


def _view(url: str) -> ClusterView:
    import asyncio

    async def work() -> Everything:
        store = open_store(url)
        try:
            return await list_all(store)
        finally:
            await store.close()

    listing = asyncio.run(work())
    return ClusterView.of(listing.items)
