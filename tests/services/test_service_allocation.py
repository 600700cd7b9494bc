"""Addresses that Services are given where no API server does it."""

from ipaddress import ip_network
from typing import Any

import pytest

from podway.api.kinds.service import Service
from podway.errors import InvalidObject
from podway.services.allocation import addressed
from tests.services.clusters import service

FOUR, SIX = ip_network("10.96.0.0/16"), ip_network("fd00:96::/112")


def _given(new: Service, *others: Service, old: Service | None = None, networks: Any = (FOUR, SIX)) -> list[str]:
    return list(map(str, addressed(new, old, networks, others).cluster_addresses))


def _new(**spec: Any) -> Service:
    return service(cluster_ips=(), **spec)


def test_addresses_that_are_said_or_were_given_stay() -> None:
    assert _given(service(cluster_ips=("10.96.0.9",))) == ["10.96.0.9"]
    assert _given(_new(), old=service(cluster_ips=("10.96.0.9",))) == ["10.96.0.9"]


def test_who_needs_no_address_gets_none() -> None:
    for wanted in (_new(type="ExternalName"), service(cluster_ips=("None",)), service(cluster_ip="None")):
        assert addressed(wanted, None, (FOUR,), ()) is wanted
    assert _given(_new(), networks=()) == []


def test_the_first_free_one_is_given_behind_those_for_who_writes_by_hand() -> None:
    assert _given(_new()) == ["10.96.1.1"]
    assert _given(_new(), service(cluster_ips=("10.96.1.1",))) == ["10.96.1.2"]
    small = ip_network("10.96.0.0/27")
    assert _given(_new(), networks=(small,)) == ["10.96.0.17"]
    above = service(cluster_ips=tuple(f"10.96.0.{number}" for number in range(17, 31)))
    assert _given(_new(), above, networks=(small,)) == ["10.96.0.1"]  # rather than none at all
    everybody = service(cluster_ips=tuple(map(str, small)))
    with pytest.raises(InvalidObject, match=r"no address of 10\.96\.0\.0/27 is free"):
        _given(_new(), everybody, networks=(small,))


def test_small_ranges_have_none_for_who_writes_by_hand() -> None:
    others: list[Service] = []
    range28 = ip_network("10.96.0.0/28")
    for number in range(1, 15):
        assert _given(_new(), *others, networks=(range28,)) == [f"10.96.0.{number}"]
        others.append(service(cluster_ips=(f"10.96.0.{number}",)))
    with pytest.raises(InvalidObject, match="is free"):
        _given(_new(), *others, networks=(range28,))


def test_a_place_in_the_range_may_be_wanted() -> None:
    def given(*others: Service, networks: Any = (FOUR,)) -> list[str]:
        return list(map(str, addressed(_new(), None, networks, others, number=10).cluster_addresses))

    assert given() == ["10.96.0.10"]
    assert given(service(cluster_ips=("10.96.0.10",))) == ["10.96.1.1"]
    assert given(networks=(ip_network("10.96.0.0/29"),)) == ["10.96.0.1"]


def test_families_are_those_that_are_asked_for() -> None:
    assert _given(_new(ip_family_policy="PreferDualStack")) == ["10.96.1.1", "fd00:96::101"]
    assert _given(_new(ip_families=("IPv6",))) == ["fd00:96::101"]
    assert _given(_new(ip_families=("IPv6",), ip_family_policy="RequireDualStack")) == [
        "fd00:96::101",
        "10.96.1.1",
    ]
    assert _given(_new(ip_family_policy="PreferDualStack"), networks=(SIX,)) == ["fd00:96::101"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ip_families": ("IPv6",)}, "spec.ipFamilies"),
        ({"ip_family_policy": "RequireDualStack"}, "spec.ipFamilyPolicy"),
    ],
)
def test_a_family_without_a_range_is_refused(spec: Any, field: str) -> None:
    with pytest.raises(InvalidObject) as caught:
        _given(_new(**spec), networks=(FOUR,))
    assert caught.value.field == field
