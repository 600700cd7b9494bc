from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from podway.ipam.blocks import capacity, count_blocks, free_blocks, gateway, is_reserved

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
    taken = [IPv6Network("fd00::/122"), IPv4Network("10.0.0.0/24"), IPv4Network("11.0.0.0/24")]
    assert list(free_blocks(POOL, 24, taken)) == SUBNETS


def test_an_ipv6_pool_is_never_enumerated_whole() -> None:
    pool = IPv6Network("fd00::/48")
    assert count_blocks(pool, 122) == 1 << 74
    assert [str(b) for b in islice(free_blocks(pool, 122, [IPv6Network("fd00::/122")]), 2)] == [
        "fd00::40/122",
        "fd00::80/122",
    ]


def test_reserved_addresses() -> None:
    block = ip_network("10.244.1.0/24")
    reserved = [str(a) for a in block if is_reserved(a, block)]
    assert reserved == ["10.244.1.0", "10.244.1.1", "10.244.1.255"]
    six = ip_network("fd00::/122")
    assert [str(a) for a in six if is_reserved(a, six)] == ["fd00::", "fd00::1"]
    assert gateway(six) == ip_address("fd00::1")


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
