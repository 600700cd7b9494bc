"""Whatever stands in any field of any stored object: the view takes it or sets it aside, and planning goes on."""

import contextlib
import copy
import datetime
import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from podway.agent.routes import node_routes
from podway.api.addresses import Family
from podway.api.checked import RejectedObject, check
from podway.api.columns import Cluster
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec, PasswordSource, PrefixRule, SecretKey
from podway.api.kinds.cluster_authority import ClusterAuthority, ClusterAuthoritySpec, KeyedCertificate
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node, NodeAddress, NodeStatus
from podway.api.kinds.pod import Pod, PodAddress, PodSpec, PodStatus
from podway.api.kinds.secret import Secret
from podway.api.lease import Attachment, Lease
from podway.api.meta import LabelSelector, Metadata, SelectorRequirement
from podway.api.resource import Resource, key, subject
from podway.api.rules import check_change, check_deletion
from podway.bgp.passwords import read_passwords
from podway.bgp.render import render
from podway.cli.views import VIEWS
from podway.cluster.relevance import alters_plans
from podway.cluster.view import ClusterView
from podway.errors import InvalidObject
from podway.health.checks.encapsulation import bare_far
from podway.ipam.selection import wants_another
from podway.plan.bgp import plan_bgp
from podway.plan.fabric import planned_modes
from podway.plan.node import plan_all
from podway.plan.switching import InstalledModes, impossible, missing_routes, sent_modes, unconverged, waiting
from podway.plan.uplink import Uplink
from podway.reconcile.state import NodeState
from tests.builders import node_status

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"), ip_interface("fd70::1/64")))
LEASE = Lease(
    Attachment("c", "eth0"), "default/web", "podway", "/x", (ip_address("10.244.1.2"), ip_address("fd00:244::2"))
)


def meta(name: str, namespace: str = "", **notes: str) -> Metadata:
    annotations = {f"podway.io/{note.replace('_', '-')}": text for note, text in notes.items()}
    labels = {"podway.io/rack": "r1", "role": "x"}
    return Metadata(name=name, namespace=namespace, resource_version="7", annotations=annotations, labels=labels)


def node(number: int) -> Node:
    here, there = f"172.30.0.{number}", f"fd70::{number}"
    notes = {"interface_addresses": f"{here}/24,{there}/64", "asn": "64512", "agent_seen": "1800000000"}
    return Node(
        metadata=meta(
            f"n{number}", agent_instance="k", accepts="vxlan,ipip", sends="vxlan", bgp_ready="m", **notes
        ),
        status=node_status(here, there),
    )


def block(cidr: str, pool: str, owner: str) -> AddressBlock:
    name = block_name(ip_network(cidr))
    return AddressBlock(metadata=meta(name), spec=AddressBlockSpec(cidr=cidr, pool=pool, node=owner))


SELECTOR = LabelSelector(
    match_labels={"role": "x"}, match_expressions=(SelectorRequirement(key="role", operator="In", values=("x",)),)
)
WHEN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
CLUSTER: tuple[Resource, ...] = (
    node(1),
    node(2),
    node(3),
    IPPool(
        metadata=meta("v4"),
        spec=IPPoolSpec(
            cidr="10.244.0.0/16",
            block_size=24,
            encapsulation="vxlan",
            when="cross-subnet",
            excluded=("10.244.7.0/28", "10.244.9.9"),
            node_selector=SELECTOR,
        ),
    ),
    IPPool(
        metadata=meta("v6"),
        spec=IPPoolSpec(cidr="fd00:244::/56", distribution="store", namespace_selector=SELECTOR),
    ),
    block("10.244.1.0/24", "v4", "n1"),
    block("10.244.2.0/24", "v4", "n2"),
    block("fd00:244::/122", "v6", "n1"),
    block("fd00:244::40/122", "v6", "n2"),
    NetworkConfig(metadata=meta("default")),
    Namespace(metadata=meta("default")),
    Secret(metadata=meta("bgp", "default"), data={"password": "eA=="}, string_data={"other": "y"}),
    BGPPeer(
        metadata=meta("tor"),
        spec=BGPPeerSpec(
            address="172.30.0.254",
            asn=65000,
            node="n1",
            password=PasswordSource(secret=SecretKey(namespace="default", name="bgp", key="password")),
            source_address="172.30.0.1",
            communities=("65000:1", "1:2:3"),
            imports=(PrefixRule(cidr="0.0.0.0/0", action="accept", max_length=8),),
            exports=(PrefixRule(cidr="10.244.0.0/16", action="reject", min_length=24),),
        ),
    ),
    Pod(
        metadata=meta("web", "default"),
        spec=PodSpec(node_name="n1"),
        status=PodStatus(phase="Running", pod_ip="10.244.1.2", pod_ips=(PodAddress(ip="10.244.1.2"),)),
    ),
    ClusterAuthority(
        metadata=meta("default"),
        spec=ClusterAuthoritySpec(
            cluster="c",
            authorities=(KeyedCertificate(certificate="x", private_key="y", not_before=WHEN, not_after=WHEN),),
        ),
    ),
)


def shape(obj: Any) -> Any:
    """Return an object as it stands in the store, with every field written out."""
    if isinstance(obj, msgspec.Struct):
        return {field.encode_name: shape(getattr(obj, field.name)) for field in msgspec.structs.fields(obj)}
    if isinstance(obj, dict):
        return {name: shape(value) for name, value in obj.items()}
    if isinstance(obj, tuple):
        return [shape(value) for value in obj]
    return msgspec.to_builtins(obj)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every field, list element and object in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, part in inner:
        yield from places(part, (*path, step))


def spoil(value: Any, path: tuple[str | int, ...], bad: Any) -> Any:
    if not path:
        return bad
    spoilt = copy.deepcopy(value)
    at = spoilt
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = bad
    return spoilt


SHAPES = {key(obj): shape(obj) for obj in CLUSTER}
PLACES = [(known, path) for known, value in SHAPES.items() for path in places(value)]

NASTY: tuple[Any, ...] = (
    *("", " ", ",", "/", "x", "\0", "²", "٣", "-1", "0", "9" * 5000, "1e9", "none", "true", "\U0001f600"),
    *(
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "10.244.0.0",
        "10.244.0.0/16",
        "10.244.1.0/25",
        "fd00::/8",
    ),
    *(
        "fe80::1%eth0",
        "fe80::1%a b;}",
        "::1",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::ffff:1.2.3.4",
        "1.2.3",
    ),
    *(
        "172.30.0.1",
        "172.30.0.2/24",
        "172.30.0.2/24,",
        ",,",
        "x/y,z",
        "4294967295",
        "4294967296",
        "65000:99999999",
    ),
    *('a"b', "a;b", "../../x", "UPPER", "a" * 300, "(redacted)", "=", "====", "bridge", "ipip", "vxlan", "store"),
    *(0, 1, -1, 127, 128, 2**31, 2**63, 2**64, -(2**70), 0.5, 1e308, True, None, [], {}, [[]], {"": ""}, [None]),
)
JSON = st.recursive(
    st.sampled_from(NASTY) | st.integers() | st.text(max_size=40) | st.ip_addresses().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def stored(known: tuple[str, str, str], value: Any) -> Resource | RejectedObject:
    """Return what the store makes of a value that stands under a key."""
    return check(known, json.dumps(value, ensure_ascii=False).encode())


def exercise(view: ClusterView) -> None:
    """Ask of a view all that agents ask."""
    state = NodeState("n1", view, UPLINK)
    state.adopt([LEASE])
    plan = plan_all(state.facts())
    state.wiring(LEASE)
    for pool in state.node_pools():
        wants_another(pool, state.book.use(0.0, pool.metadata.name))
    for family in Family:
        state.pod_pools(family, "default")
        for pool in state.pod_pools(family, "default"):
            state.book.lease(pool.metadata.name, Attachment("d", "eth0"), 1.0)
    installed = InstalledModes(
        learned={ip_network("10.244.2.0/24"): "vxlan"}, own={ip_network("fd00:244::40/122"): "none"}
    )
    unconverged(view, "n1", installed)
    sent_modes(view, planned_modes(view, "n1"), installed)
    list(missing_routes(view, "n1", UPLINK, installed))
    list(waiting(view, "n1"))
    list(impossible(view, UPLINK))
    list(node_routes(view, "n1", (), {}, ()))
    bare_far(view, "n1")
    for name in view.nodes:
        speaker = plan_bgp(view, name)
        render(speaker, Path("/x/bird.log"), read_passwords(speaker.outside, view.secrets).known)
    assert plan == plan_all(state.facts())


def taken_into(view: ClusterView, known: tuple[str, str, str], value: Any) -> ClusterView:
    return told(view, stored(known, value))


def told(view: ClusterView, obj: Resource | RejectedObject) -> ClusterView:
    """Return the view after a change, as an agent that hears of it makes it."""
    if isinstance(obj, RejectedObject):
        return view.without(obj)
    return view.after(view.change(obj))


HEALTHY = ClusterView.of(CLUSTER)


def test_the_healthy_cluster_is_all_facts() -> None:
    assert all(stored(key(obj), SHAPES[key(obj)]) == obj for obj in CLUSTER)
    exercise(HEALTHY)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3, unique_by=lambda each: each[0][0])
)
@example([((("AddressBlock", "", "10-244-1-0-24"), ("spec", "cidr")), "nonsense")])
@example([((("IPPool", "", "v4"), ("spec", "cidr")), "10.244.0.0/40")])
@example([((("IPPool", "", "v4"), ("spec", "excluded", 0)), "x")])
@example([((("Node", "", "n2"), ("metadata", "annotations", "podway.io/asn")), "x")])
@example([((("Node", "", "n1"), ("metadata", "annotations", "podway.io/asn")), "yesterday")])
@example([((("Node", "", "n2"), ("metadata", "annotations", "podway.io/interface-addresses")), "x/y,z")])
def test_any_value_in_any_field_is_taken_or_rejected_and_planning_goes_on(spoilt: list[tuple[Any, Any]]) -> None:
    view = HEALTHY
    values = dict(SHAPES)
    for (known, path), bad in spoilt:
        values[known] = spoil(SHAPES[known], path, bad)
        view = taken_into(view, known, values[known])
    exercise(view)
    for known, one in view.rejected.items():
        assert view.find(known) == HEALTHY.find(known), "its last good state stays"
        assert str(one)
    # An agent that starts with this store and knows of no former state has itself in its view all the same.
    found = [stored(known, value) for known, value in values.items()]
    rejected = [one for one in found if isinstance(one, RejectedObject)]
    fresh = ClusterView.of([one for one in found if not isinstance(one, RejectedObject)], rejected=rejected)
    exercise(fresh if "n1" in fresh.nodes else fresh.after(fresh.change(node(1))))
    # One that has known a better one keeps what it knew.
    kept = ClusterView.of(
        [one for one in found if not isinstance(one, RejectedObject)], rejected=rejected, former=HEALTHY
    )
    exercise(kept)
    assert not any(map(alters_plans, kept.changes_to(view)))
    # And when all is well again, nothing is left of it.
    for known in values:
        kept = taken_into(kept, known, SHAPES[known])
    assert not kept.rejected
    assert not any(map(alters_plans, kept.changes_to(HEALTHY)))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_is_taken_or_rejected(known: tuple[str, str, str], position: int, bit: int) -> None:
    body = bytearray(json.dumps(SHAPES[known]).encode())
    body[position % len(body)] ^= 1 << bit
    exercise(told(HEALTHY, check(known, bytes(body))))


@given(st.sampled_from(sorted(SHAPES)), st.binary(max_size=200))
def test_any_bytes_are_taken_or_rejected(known: tuple[str, str, str], body: bytes) -> None:
    check(known, body)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(NASTY))
def test_commands_show_and_judge_every_fact(place: tuple[Any, Any], bad: Any) -> None:
    known, path = place
    one = stored(known, spoil(SHAPES[known], path, bad))
    if isinstance(one, RejectedObject):
        assert subject(known) in str(one.error)
        return
    former = next(obj for obj in CLUSTER if key(obj) == known)
    objects = (*(obj for obj in CLUSTER if obj is not former), one)
    for view in VIEWS:
        for column in view.columns if view.kind else ():
            for obj in objects:
                if view.kind and isinstance(obj, view.kind):
                    assert isinstance(column.text(obj, Cluster(objects, 0.0)), str)
    with contextlib.suppress(InvalidObject):
        check_change(one, objects, old=former)
    with contextlib.suppress(InvalidObject):
        check_deletion(one, objects)


def test_a_deleted_object_that_was_rejected_is_gone() -> None:
    known = ("AddressBlock", "", "10-244-2-0-24")
    view = taken_into(HEALTHY, known, spoil(SHAPES[known], ("spec", "cidr"), "x"))
    assert known in view.rejected
    assert view.blocks_of("n2")
    gone = view.after(view.change(RejectedObject(known, "x"), deleted=True))
    assert not gone.rejected
    assert [str(each.network) for each in gone.blocks_of("n2")] == ["fd00:244::40/122"]


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (("metadata", "annotations", "podway.io/asn"), "x"),
        (("metadata", "annotations", "podway.io/interface-addresses"), "x/y"),
        (("status", "addresses", 0, "address"), "127.0.0.1"),
        (("status", "addresses", 0, "address"), "fe80::1%eth0"),
    ],
)
def test_a_node_that_is_rejected_is_named_by_its_field(path: tuple[str | int, ...], bad: str) -> None:
    known = ("Node", "", "n2")
    one = stored(known, spoil(SHAPES[known], path, bad))
    assert isinstance(one, RejectedObject)
    assert str(one).startswith("Node/n2 is rejected: ")
    assert bad in one.problem


NETWORKS = st.one_of(
    st.sampled_from(
        ["0.0.0.0/0", "::/0", "10.244.1.0/25", "10.244.0.0/16", "10.0.0.0/8", "10.244.1.0/32", "fd00:244::/64"]
    ),
    st.builds(
        lambda base, length: str(ip_network((base, length), strict=False)),
        st.ip_addresses(v=4),
        st.integers(0, 32),
    ),
    st.builds(
        lambda base, length: str(ip_network((base, length), strict=False)),
        st.ip_addresses(v=6),
        st.integers(0, 128),
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(NETWORKS, st.sampled_from(["v4", "v6", "gone"]), st.sampled_from(["n1", "n2", "gone"]))),
    st.lists(NETWORKS),
    st.lists(
        st.tuples(NETWORKS, st.sampled_from(["none", "vxlan", "ipip"]), st.sampled_from(["routed", "bridge"]))
    ),
)
def test_objects_that_are_right_by_themselves_and_wrong_beside_each_other(
    blocks: list[tuple[str, str, str]], subnets: list[str], pools: list[tuple[str, str, str]]
) -> None:
    """Blocks outside of their pools and in each other, nodes of one address, pools that overlap."""
    more: list[Resource] = [block(*each) for each in blocks]
    for number, subnet in enumerate(subnets, 4):
        first = str(ip_network(subnet).network_address)
        notes = meta(
            f"n{number}", interface_addresses=f"{first}/{ip_network(subnet).prefixlen}", accepts="vxlan,ipip"
        )
        more.append(
            Node(metadata=notes, status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address=first),)))
        )
    for number, (cidr, mode, attach) in enumerate(pools):
        spec = IPPoolSpec(cidr=cidr, encapsulation=mode, attach=attach)  # type: ignore[arg-type]
        more.append(IPPool(metadata=meta(f"p{number}"), spec=spec))
    view = HEALTHY
    for obj in more:
        view = taken_into(view, key(obj), shape(obj))
    exercise(view)
