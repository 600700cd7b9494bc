"""From the store's objects to points, pairs and probes; and rule 1."""

from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.addresses import Family
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec
from podway.api.kinds.node import Node
from podway.api.meta import Metadata
from podway.probe.build import Protocol
from podway.prove.probe import (
    TAG_BYTES,
    Step,
    Tag,
    node_pairs,
    payload,
    plan_probes,
    pod_pairs,
    read_tag,
    sample,
)
from podway.prove.world import Block, NodePlace, NodePoint, PodPlace, PodPoint, World, build_world
from podway.verify.addressing import address_faults
from tests.builders import node_status, pod

patiently = settings(deadline=None, max_examples=60)


def node(name: str, *addresses: str) -> Node:
    return Node(metadata=Metadata(name=name), status=node_status(*addresses))


def point(name: str, on: str, *addresses: str) -> PodPoint:
    return PodPoint(name, on, f"/ns/{name}", tuple(map(ip_address, addresses)))


def make_world(*pods: PodPoint, blocks: tuple[Block, ...] = ()) -> World:
    nodes = tuple(NodePoint(n, f"/ns/{n}", (ip_address(f"192.0.2.{i}"),), "eth0") for i, n in enumerate("ab", 1))
    return World(nodes, pods, blocks or (block("10.0.1.0/24", "a"), block("10.0.2.0/24", "b")))


def block(network: str, on: str) -> Block:
    return Block(ip_network(network), on)


def test_what_cannot_be_proved_is_named_and_what_has_no_network_left_out() -> None:
    world = build_world(
        [
            node("a", "192.0.2.1"),
            node("off", "192.0.2.2"),
            pod("fine", "a", "10.0.1.2"),
            pod("waiting", "a", phase="Pending"),
            pod("nowhere", "", phase="Pending"),
            pod("stranded", "off", "10.0.2.2"),
            pod("lost", "a", "10.0.1.9"),
            pod("done", "a", "10.0.1.3", phase="Succeeded"),
            pod("host", "a", "192.0.2.1", host_network=True),
            AddressBlock(
                metadata=Metadata(name="10-0-1-0-24"),
                spec=AddressBlockSpec(cidr="10.0.1.0/24", pool="default", node="a"),
            ),
        ],
        {"a": NodePlace("/ns/a", "eth0")},
        {"default/fine": PodPlace("/ns/fine"), "default/stranded": PodPlace("/ns/stranded")},
    )
    assert [p.name for p in world.pods] == ["default/fine"]
    assert world.pods[0].addresses == (ip_address("10.0.1.2"),)
    assert [absent.subject for absent in world.absent] == [
        "node off",
        "pod default/waiting",
        "pod default/nowhere",
        "pod default/stranded",
        "pod default/lost",
    ]
    assert world.blocks == (block("10.0.1.0/24", "a"),)


def faults(world: World, **real: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    stand = {p.label: tuple(map(ip_address, real[p.name])) if p.name in real else p.addresses for p in world.pods}
    return [(fault.code, fault.subjects) for fault in address_faults(world, stand)]


def test_good_addresses_have_no_fault() -> None:
    assert faults(make_world(point("x", "a", "10.0.1.2"), point("y", "b", "10.0.2.2"))) == []


def test_every_wrong_address_is_found() -> None:
    x, y = point("x", "a", "10.0.1.2"), point("y", "a", "10.0.1.3")
    assert faults(make_world(x, y), y=("10.0.1.4",)) == [("address-differs", ("pod y",))]
    assert faults(make_world(x, y), y=()) == [("address-differs", ("pod y",))]
    assert faults(make_world(x, y), y=("10.0.1.3", "10.0.1.2")) == [
        ("address-differs", ("pod y",)),
        ("address-shared", ("pod x", "pod y")),
    ]
    assert faults(make_world(x, point("y", "b", "10.0.1.3"))) == [("outside-block", ("pod y",))]
    assert faults(make_world(x, point("y", "a", "10.9.9.9"))) == [("outside-block", ("pod y",))]
    assert faults(make_world(x, point("y", "a", "10.0.1.2"))) == [("address-shared", ("pod x", "pod y"))]
    world = make_world(point("x", "a", "192.0.2.1"), blocks=(block("192.0.2.0/24", "a"),))
    assert faults(world) == [("address-shared", ("node a", "pod x"))]
    overlapping = (block("10.0.0.0/16", "a"), block("10.0.1.0/24", "b"))
    assert ("blocks-overlap", ("node a", "node b")) in faults(make_world(x, blocks=overlapping))


def test_pairs_are_per_family() -> None:
    world = make_world(point("x", "a", "10.0.1.2", "fd00::2"), point("y", "b", "10.0.2.2"))
    assert [(p.sender.node, p.receiver.node) for p in pod_pairs(world, Family.IPV4)] == [("a", "b"), ("b", "a")]
    assert pod_pairs(world, Family.IPV6) == []
    assert len(node_pairs(world, Family.IPV4)) == 2 * 2 * 2


@patiently
@given(st.integers(2, 12), st.integers(0, 150), st.integers())
def test_a_sample_is_stable_and_meets_everyone_if_it_can(pods: int, count: int, seed: int) -> None:
    world = make_world(*(point(f"p{i}", "a", f"10.0.1.{i + 2}") for i in range(pods)))
    pairs = pod_pairs(world, Family.IPV4)
    chosen = sample(pairs, count, seed)
    assert chosen == sample(pairs, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(pairs))
    assert set(chosen) <= set(pairs)
    if count >= 2 * pods:
        assert {p.sender for p in chosen} == {p.receiver for p in chosen} == set(world.pods)


def test_a_probe_is_as_large_as_both_ends_allow() -> None:
    world = make_world(point("x", "a", "10.0.1.2", "fd00::2"), point("y", "b", "10.0.2.2", "fd00::3"))
    mtus = {"pod x": 1500, "pod y": 1400}
    for family, header in ((Family.IPV4, 20), (Family.IPV6, 40)):
        planned = plan_probes(pod_pairs(world, family), mtus)
        assert {probe.size for probe in planned} == {1400}
        assert {probe.payload_size for probe in planned} == {1400 - header - 8}
        assert [probe.protocol for probe in planned] == list(Protocol) * 2
        assert len({probe.number for probe in planned}) == 6


@patiently
@given(st.integers(0, 2**32 - 1), st.sampled_from((Step.REQUEST, Step.REPLY)), st.integers(TAG_BYTES, 9000))
def test_a_tag_is_read_back_from_its_payload_and_from_no_other_run(number: int, step: Step, size: int) -> None:
    tag = Tag(number, step, size)
    data = payload(b"magic678", tag)
    assert len(data) == size
    assert read_tag(b"magic678", data) == tag
    assert read_tag(b"magic679", data) is None


@patiently
@given(st.binary(max_size=40))
def test_garbage_has_no_tag(data: bytes) -> None:
    assert read_tag(b"magic678", b"magic678" + data) is None or len(data) >= TAG_BYTES - 8
