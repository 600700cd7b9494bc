from collections import Counter
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.addresses import Family
from podway.errors import InvalidArgument
from podway.lab.fabric import MAX_RACKED_NODES, MAX_RACKS, Fabric, node_asn, plan_fabric, tor_asn

DUAL = (ip_network("10.244.0.0/16"), ip_network("fd00::/48"))
RACKED = st.integers(2, MAX_RACKS).flatmap(
    lambda racks: st.tuples(st.just(racks), st.integers(racks, MAX_RACKED_NODES))
)


@pytest.mark.parametrize(
    ("pools", "families"),
    [
        (("10.244.0.0/16",), [4]),
        (("fd00::/48",), [4, 6]),
        (("10.0.0.0/8", "fd00::/8"), None),
        (("172.16.0.0/12",), [4]),
        (("0.0.0.0/1", "128.0.0.0/1"), None),
    ],
)
@pytest.mark.parametrize("racks", [1, 3])
def test_nodes_get_subnets_beside_the_pools(
    pools: tuple[str, ...], families: list[int] | None, racks: int
) -> None:
    networks = tuple(map(ip_network, pools))
    if families is None:
        with pytest.raises(InvalidArgument, match="leave no IPv"):
            plan_fabric(networks, nodes=3, racks=racks)
        return
    fabric = plan_fabric(networks, nodes=3, racks=racks)
    subnets = [subnet for rack in range(racks + 1) for subnet in fabric.subnets(rack)]
    assert {subnet.version for subnet in subnets} == set(families)
    assert not any(a.overlaps(b) for a in subnets for b in networks if a.version == b.version)


@pytest.mark.parametrize("families", [(Family.IPV4,), (Family.IPV6,), (Family.IPV4, Family.IPV6)])
def test_nodes_have_the_families_that_are_asked_for(families: tuple[Family, ...]) -> None:
    fabric = plan_fabric(DUAL, nodes=2, racks=2, families=families)
    for addresses in (fabric.addresses(1, 1), fabric.gateways(1), fabric.spine(1)):
        assert tuple(Family.of(address) for address in addresses) == families


@given(RACKED)
def test_no_address_is_given_twice_and_racks_meet_only_at_their_routers(size: tuple[int, int]) -> None:
    racks, nodes = size
    fabric = plan_fabric(DUAL, nodes=nodes, racks=racks)
    given_out = Counter(
        [address for n in range(1, nodes + 1) for address in fabric.addresses(fabric.rack_of(n, nodes), n)]
        + [address for rack in fabric.numbers for address in (*fabric.gateways(rack), *fabric.spine(rack))]
    )
    assert set(given_out.values()) == {1}
    subnets = [subnet for rack in range(racks + 1) for subnet in fabric.subnets(rack)]
    assert len(set(subnets)) == len(subnets) == 2 * (racks + 1)
    for rack in fabric.numbers:
        for gateway, subnet in zip(fabric.gateways(rack), fabric.subnets(rack), strict=True):
            assert gateway.network == subnet
            assert gateway.ip != subnet.broadcast_address


@given(RACKED)
def test_nodes_are_spread_evenly_and_racks_filled_in_order(size: tuple[int, int]) -> None:
    racks, nodes = size
    fabric = Fabric((), racks)
    chosen = [fabric.rack_of(index, nodes) for index in range(1, nodes + 1)]
    assert chosen == sorted(chosen)
    filled = Counter(chosen)
    assert set(filled) == set(fabric.numbers)
    assert max(filled.values()) - min(filled.values()) <= 1


def test_as_numbers_are_private_and_each_ones_own() -> None:
    numbers = [tor_asn(rack) for rack in range(1, MAX_RACKS + 1)]
    numbers += [node_asn(index) for index in range(1, MAX_RACKED_NODES + 1)]
    assert len(set(numbers)) == len(numbers)
    assert all(64512 < number <= 65534 for number in numbers), "RFC 6996, and not the cluster's own"


@pytest.mark.parametrize(
    ("racks", "nodes", "problem", "hint"),
    [
        (0, 3, "0 racks", "choose 1 to 50"),
        (51, 60, "51 racks", "choose 1 to 50"),
        (4, 3, "4 racks for 3 nodes", "at most as many"),
        (2, 251, "251 nodes", "choose 1 to 250"),
        (1, 0, "0 nodes", "choose 1 to 1000"),
    ],
)
def test_what_does_not_fit_is_refused(racks: int, nodes: int, problem: str, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        plan_fabric(DUAL, nodes=nodes, racks=racks)
    assert hint in caught.value.hint
