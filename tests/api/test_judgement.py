"""Which objects hold beside each other: the same answer for everybody, whatever came in which order."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from podway.api.checked import RejectedObject
from podway.api.judgement import Verdict, judge
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.node import Node, NodeAddress, NodeStatus
from podway.api.meta import Metadata
from podway.api.resource import Resource, key


def made(name: str, at: int) -> Metadata:
    return Metadata(name=name, creation_timestamp=f"2026-01-01T00:00:{at:02}Z")


def pool(name: str, cidr: str, at: int = 0, **spec: Any) -> IPPool:
    return IPPool(metadata=made(name, at), spec=IPPoolSpec(cidr=cidr, **spec))


def config(at: int = 0, **spec: Any) -> NetworkConfig:
    return NetworkConfig(metadata=made("default", at), spec=NetworkConfigSpec(**spec))


def block(cidr: str, owner: str, node: str = "n1") -> AddressBlock:
    spec = AddressBlockSpec(cidr=cidr, pool=owner, node=node)
    unnamed = AddressBlock(metadata=Metadata(name="x"), spec=spec)
    return AddressBlock(metadata=Metadata(name=block_name(unnamed.network)), spec=spec)


def node(name: str, address: str) -> Node:
    addresses = (NodeAddress(type="InternalIP", address=address),)
    return Node(metadata=Metadata(name=name), status=NodeStatus(addresses=addresses))


def verdict(objects: tuple[Resource, ...], obj: Resource) -> Verdict:
    return judge(objects)[key(obj)]


def test_of_two_pools_that_overlap_the_first_one_holds() -> None:
    old, new = pool("b", "10.0.0.0/16", 1), pool("a", "10.0.128.0/17", 2)
    assert verdict((new, old), old).accepted
    told = verdict((new, old), new)
    assert told.reason == "Overlaps"
    assert "10.0.128.0/17 overlaps 10.0.0.0/16 of IPPool/b" in told.message
    assert "give each pool a range of its own" in told.message


def test_a_pool_in_use_holds_before_an_older_one_that_was_changed_into_it() -> None:
    changed, used = pool("old", "10.1.0.0/16", 1), pool("new", "10.1.0.0/17", 2)
    objects = (changed, used, block("10.1.3.0/24", "new"))
    assert verdict(objects, used).accepted
    assert verdict(objects, changed).reason == "Overlaps"


def test_a_pool_does_not_change_under_its_blocks() -> None:
    owned = block("10.1.3.0/24", "p")
    for wrong, field in (
        (pool("p", "10.2.0.0/16"), "spec.cidr"),
        (pool("p", "10.1.0.0/16", block_size=26), "spec.b"),
    ):
        told = verdict((wrong, owned), wrong)
        assert told.reason == "InUse"
        assert told.message.startswith(field)
        assert "n1 owns 10.1.3.0/24" in told.message
    right = pool("p", "10.1.0.0/16")
    assert verdict((right, owned), right).accepted


def test_a_range_that_is_still_owned_as_another_pools_is_not_given_again() -> None:
    """The other one was changed meanwhile, and its nodes go on by its last good state."""
    changed, new = pool("a", "10.2.0.0/16", 1), pool("b", "10.1.0.0/16", 2)
    objects = (changed, new, block("10.1.3.0/24", "a"))
    assert verdict(objects, changed).reason == "InUse"
    assert "block 10.1.3.0/24 of IPPool/a" in verdict(objects, new).message


def test_a_pool_is_apart_from_nodes_but_a_node_that_comes_later_takes_no_pool_away() -> None:
    new = pool("p", "172.30.0.0/16")
    objects = (new, node("n1", "172.30.0.1"))
    assert "of Node/n1" in verdict(objects, new).message
    assert verdict((*objects, block("172.30.3.0/24", "p")), new).accepted


def test_settings_that_contradict_a_pool_in_use_are_the_ones_to_blame() -> None:
    six, owned = pool("six", "fd00:10::/48", 5), block("fd00:10::/122", "six")
    small, services = config(mtu=1000), config(service_cidrs=("fd00:10::/64",))
    assert verdict((six, owned, small), small).reason == "Contradicts"
    assert verdict((six, owned, services), services).reason == "Overlaps"
    assert verdict((six, owned, small), six).accepted
    assert verdict((six, small), six).reason == "Contradicts", "the settings were there first"
    assert verdict((six, small), small).accepted


def test_pools_for_the_same_pods_are_attached_alike() -> None:
    four, six = pool("four", "10.0.0.0/16", 1), pool("six", "fd00:10::/48", 2, attach="bridge")
    assert verdict((four, six), six).reason == "Contradicts"


def test_peers_are_judged_beside_nodes_and_each_other() -> None:
    def peer(name: str, at: int, address: str = "192.0.2.1") -> BGPPeer:
        return BGPPeer(metadata=made(name, at), spec=BGPPeerSpec(address=address, asn=64512))

    first, second, taken = peer("z", 1), peer("a", 2), peer("n", 3, "172.30.0.1")
    verdicts = judge((first, second, taken, node("n1", "172.30.0.1")))
    assert [verdicts[key(one)].accepted for one in (first, second, taken)] == [True, False, False]
    assert "Node/n1" in verdicts[key(taken)].message


def test_what_is_wrong_by_itself_is_told_so() -> None:
    unfit = RejectedObject(("IPPool", "", "p"), "spec.cidr: no network")
    other = RejectedObject(("Node", "", "n"), "status: none")
    assert judge((), (unfit, other)) == {
        unfit.key: Verdict("Invalid", "spec.cidr: no network; write a right one in its place")
    }


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Resource, ...]:
    pools = [
        pool(
            f"p{number}",
            draw(st.sampled_from(["10.0.0.0/16", "10.0.0.0/17", "10.1.0.0/16", "10.0.128.0/18"])),
            draw(st.integers(0, 3)),
        )
        for number in range(draw(st.integers(0, 5)))
    ]
    blocks = {
        one.metadata.name: one
        for one in draw(
            st.lists(
                st.builds(
                    block,
                    st.sampled_from(["10.0.1.0/24", "10.0.130.0/24", "10.1.7.0/24"]),
                    st.sampled_from(["p0", "p1", "p9"]),
                ),
                max_size=3,
            )
        )
    }
    settings = [
        config(draw(st.integers(0, 3)), service_cidrs=(draw(st.sampled_from(["10.1.9.0/24", "10.9.0.0/16"])),))
    ]
    return (*pools, *blocks.values(), *settings)


@given(clusters(), st.randoms(use_true_random=False))
def test_what_holds_never_contradicts_itself_and_the_order_does_not_matter(
    objects: tuple[Resource, ...], random: Any
) -> None:
    verdicts = judge(objects)
    shuffled = list(objects)
    random.shuffle(shuffled)
    assert judge(shuffled) == verdicts
    holding = [obj for obj in objects if isinstance(obj, IPPool) and verdicts[key(obj)].accepted]
    for one in holding:
        for other in holding:
            assert one is other or not one.network.overlaps(other.network)
    for obj in objects:
        if isinstance(obj, NetworkConfig) and verdicts[key(obj)].accepted:
            assert not any(net.overlaps(one.network) for net in obj.spec.service_networks for one in holding)
