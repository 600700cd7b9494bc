from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.addresses import Network, gateway_of
from podway.ipam.blocks import FreeBlocks, capacity, count_blocks, first_choice, free_blocks, is_reserved

POOL = IPv4Network("10.244.0.0/20")
SUBNETS = list(POOL.subnets(new_prefix=24))


@given(st.sets(st.sampled_from(SUBNETS)))
def test_free_and_taken_blocks_are_the_whole_pool(taken: set[IPv4Network]) -> None:
    free = list(free_blocks(POOL, 24, taken))
    assert sorted([*free, *taken]) == SUBNETS


@given(
    st.sets(st.sampled_from([n for size in (22, 25, 26, 28) for n in POOL.subnets(new_prefix=size)]), max_size=6)
)
def test_a_free_block_overlaps_nothing_taken_whatever_its_size(taken: set[IPv4Network]) -> None:
    free = list(free_blocks(POOL, 24, taken))
    assert not [f for f in free for t in taken if f.overlaps(t)]
    expected = [s for s in SUBNETS if not any(s.overlaps(t) for t in taken)]
    assert free == expected


def test_blocks_of_the_other_family_and_other_pools_do_not_count() -> None:
    taken: list[Network] = [IPv6Network("fd00::/122"), IPv4Network("10.0.0.0/24"), IPv4Network("11.0.0.0/24")]
    assert list(free_blocks(POOL, 24, taken)) == SUBNETS


def test_an_ipv6_pool_is_never_enumerated_whole() -> None:
    pool = IPv6Network("fd00::/48")
    assert count_blocks(pool, 122) == 1 << 74
    assert [str(b) for b in islice(free_blocks(pool, 122, [IPv6Network("fd00::/122")]), 2)] == [
        "fd00::40/122",
        "fd00::80/122",
    ]


@pytest.mark.parametrize(
    ("pool", "prefix", "expected"),
    [
        ("10.244.0.0/16", 24, {"node1": "10.244.1.0/24", "node2": "10.244.2.0/24", "node255": "10.244.255.0/24"}),
        ("10.9.64.0/18", 26, {"node1": "10.9.64.64/26", "rack-a-7.example.org": "10.9.65.192/26"}),
        ("fd00:244::/48", 64, {"node1": "fd00:244:0:1::/64", "node10": "fd00:244:0:a::/64"}),
        ("fd00:244::/48", 122, {"node2": "fd00:244::80/122", "node1": "fd00:244::40/122"}),
        ("10.244.0.0/22", 24, {"node4": "10.244.0.0/24", "node99999999": "10.244.1.0/24"}),
        ("10.244.0.0/22", 24, {"": "10.244.0.0/24", "worker": "10.244.1.0/24", "7even": "10.244.2.0/24"}),
        ("10.244.0.0/22", 24, {"a1": "10.244.1.0/24", "b1": "10.244.0.0/24", "c1": "10.244.2.0/24"}),
    ],
)
def test_a_nodes_first_choice_is_the_block_of_its_number(pool: str, prefix: int, expected: dict[str, str]) -> None:
    free = FreeBlocks(ip_network(pool), prefix, ())
    assert {node: str(free.take(node)) for node in expected} == expected


TAKEN = st.sets(st.sampled_from([n for size in (22, 24, 26) for n in POOL.subnets(new_prefix=size)]), max_size=4)


@given(TAKEN, st.lists(st.from_regex(r"[a-z]{1,3}([0-9]{1,2})?", fullmatch=True), max_size=20))
def test_blocks_are_chosen_until_none_is_free_and_never_twice(taken: set[IPv4Network], nodes: list[str]) -> None:
    blocks = FreeBlocks(POOL, 24, taken)
    expected = set(free_blocks(POOL, 24, taken))
    for node in nodes:
        chosen, wanted = blocks.take(node), first_choice(node, POOL, 24)
        assert chosen == (wanted if wanted in expected else min(expected, default=None))
        expected.discard(chosen)


def test_reserved_addresses() -> None:
    block = ip_network("10.244.1.0/24")
    reserved = [str(a) for a in block if is_reserved(a, block)]
    assert reserved == ["10.244.1.0", "10.244.1.1", "10.244.1.255"]
    six = ip_network("fd00::/122")
    assert [str(a) for a in six if is_reserved(a, six)] == ["fd00::", "fd00::1"]
    assert gateway_of(six) == ip_address("fd00::1")


@given(
    st.sets(
        st.sampled_from([n for size in (32, 30, 29) for n in ip_network("10.0.0.0/27").subnets(new_prefix=size)])
    )
)
def test_capacity_is_the_number_of_addresses_that_may_be_given(excluded: set[IPv4Network]) -> None:
    from ipaddress import collapse_addresses

    block = ip_network("10.0.0.0/28")
    collapsed = list(collapse_addresses(excluded))
    given_out = [a for a in block if not is_reserved(a, block) and not any(a in net for net in collapsed)]
    assert capacity(block, collapsed) == len(given_out)
