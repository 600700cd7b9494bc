"""The view: what it holds, how changes advance it, and which changes matter to whom."""

from ipaddress import ip_address
from typing import Any

import pytest

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import ASN, SENDS, Node
from podway.api.kinds.node_lease import NodeLease
from podway.api.kinds.pod import Pod
from podway.api.kinds.secret import Secret
from podway.api.meta import Metadata
from podway.cluster.change import Change
from podway.cluster.relevance import alters_plans, alters_policy, alters_routing
from podway.cluster.view import ClusterView
from tests import builders


def node(name: str, address: str = "172.30.0.1", **annotations: str) -> Node:
    return Node(
        metadata=Metadata(name=name, annotations=annotations),
        status=builders.node_status(address),
    )


def block(cidr: str, owner: str) -> AddressBlock:
    return builders.block(cidr, "pool", owner)


POOL = IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr="10.244.0.0/16"))
BLOCKS = [block("10.244.9.0/24", "a"), block("10.244.10.0/24", "a"), block("fd00::40/122", "b")]
VIEW = ClusterView.of([node("a"), node("b", "172.30.0.2"), POOL, *BLOCKS])


def test_a_nodes_blocks_are_in_the_order_of_their_addresses() -> None:
    assert [b.spec.cidr for b in VIEW.blocks_of("a")] == ["10.244.9.0/24", "10.244.10.0/24"]
    assert VIEW.blocks_of("nobody") == ()


@pytest.mark.parametrize(
    ("address", "cidr"),
    [("10.244.9.7", "10.244.9.0/24"), ("fd00::41", "fd00::40/122"), ("10.244.8.7", None), ("fd00::1", None)],
)
def test_the_block_of_an_address_is_found(address: str, cidr: str | None) -> None:
    found = VIEW.block_at(ip_address(address))
    assert (found.spec.cidr if found else None) == cidr


def test_changes_advance_a_view_to_what_a_listing_says() -> None:
    moved = block("10.244.9.0/24", "b")
    config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(mtu=1400))
    secret = Secret(metadata=Metadata(name="s", namespace="n"))
    changes = [VIEW.change(obj) for obj in (moved, config, secret, node("c", "172.30.0.3"))]
    changes.append(VIEW.change(BLOCKS[1], deleted=True))
    after = VIEW.after(*changes)
    objects = [node("a"), node("b", "172.30.0.2"), node("c", "172.30.0.3"), POOL, moved, BLOCKS[2], config, secret]
    listed = ClusterView.of(objects)
    assert after == listed
    assert after.config.mtu == 1400
    assert after.blocks_of("a") == ()
    assert after.secrets["n", "s"] == secret
    assert VIEW.after(*VIEW.changes_to(listed)) == listed
    assert VIEW.config.mtu == 0, "a view never changes"


def test_a_deleted_configuration_leaves_the_defaults() -> None:
    config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(mtu=1400))
    view = ClusterView.of([config])
    assert view.after(Change.of(config, None)).config == NetworkConfigSpec()


def test_kinds_that_no_plan_depends_on_change_nothing() -> None:
    change = VIEW.change(NodeLease(metadata=Metadata(name="a")))
    assert VIEW.after(change) == VIEW
    assert not alters_plans(change)


@pytest.mark.parametrize("kind", [Pod, NetworkPolicy])
def test_pods_and_policies_alter_policy_alone(kind: Any) -> None:
    change = VIEW.change(kind(metadata=Metadata(name="web", namespace="default")))
    assert VIEW.after(change).find(change.key) is change.new
    assert not alters_plans(change)
    assert alters_policy(change)


def test_the_deletion_of_what_is_not_known_is_an_empty_change() -> None:
    change = VIEW.change(block("10.244.77.0/24", "a"), deleted=True)
    assert change.empty
    assert not alters_plans(change)
    assert VIEW.after(change) == VIEW


def test_the_last_object_of_a_kind_goes_though_others_came_before_it() -> None:
    view = ClusterView.of(BLOCKS[:1])
    assert not view.after(view.change(BLOCKS[1]), *(Change.of(gone, None) for gone in BLOCKS[:2])).blocks


def test_who_may_send_is_known() -> None:
    sender = node("a", **{SENDS: "vxlan"})
    view = VIEW.after(VIEW.change(sender))
    assert view.others_send("b", "vxlan")
    assert not view.others_send("a", "vxlan")
    assert not view.after(Change.of(sender, None)).others_send("b", "vxlan")


def test_a_note_alters_no_plan_and_a_place_alters_every_plan() -> None:
    def changed(new: Node) -> tuple[bool, bool]:
        change = VIEW.change(new)
        return alters_plans(change), alters_routing(change)

    assert changed(node("a", **{"example.org/note": "7"})) == (False, False)
    assert changed(node("a", "172.30.0.9")) == (True, True)
    assert changed(node("a", **{SENDS: "ipip"})) == (True, True)
    assert changed(node("a", **{ASN: "64600"})) == (True, True)
    assert changed(node("new")) == (True, True)
    assert alters_plans(Change.of(node("a"), None))


def test_blocks_and_namespaces_alter_plans_but_no_bgp_session() -> None:
    for obj in (block("10.244.7.0/24", "a"), Namespace(metadata=Metadata(name="n"))):
        assert alters_plans(VIEW.change(obj))
        assert not alters_routing(VIEW.change(obj))
    assert not alters_plans(VIEW.change(BLOCKS[0])), "what is known already"
    assert alters_routing(VIEW.change(POOL, deleted=True))


def test_pools_for_services_are_apart_from_those_for_pods() -> None:
    served = builders.pool("outside", "192.0.2.0/28", use="services")
    view = VIEW.after(Change.of(None, served))
    assert (list(view.pools), list(view.service_pools)) == (["pool"], ["outside"])
    assert VIEW.pools is VIEW.tables[IPPool.KIND]  # plans that look at pools see no other one
    renamed = builders.node("a", "172.30.0.1/24", labels={"x": "y"})
    assert view.after(Change.of(VIEW.nodes["a"], renamed)).pools is view.pools
    relisted = view.relisted(IPPool, [served])
    assert (list(relisted.pools), list(relisted.service_pools)) == ([], ["outside"])
    assert ClusterView.of([POOL, served]).service_pools == view.service_pools
    assert view.block_ranges == VIEW.block_ranges
    assert not view.after(Change.of(served, None)).service_pools
