"""Addresses of Services of type LoadBalancer: who gets which, and what stays."""

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.kinds.service import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from podway.api.merge_patch import apply
from podway.api.meta import LabelSelector, Metadata
from podway.services.outside import ALLOCATED, POOL, WANTED, Outcome, allocate, status_patch
from tests.builders import pool

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
POOLS = (pool("four", "192.0.2.0/29", use="services"), pool("six", "2001:db8::/125", use="services"))


def service(name: str, *, since: str = "", notes: Any = None, namespace: str = "default", **spec: Any) -> Service:
    spec = {"type": "LoadBalancer", "cluster_ip": "10.96.0.1", "ports": (ServicePort(port=80),), **spec}
    metadata = Metadata(name=name, namespace=namespace, creation_timestamp=since, annotations=notes or {})
    return Service(metadata=metadata, spec=ServiceSpec(**spec))


def rounds(*services: Service, pools: Any = POOLS, **more: Any) -> tuple[list[Service], list[Outcome]]:
    """Give addresses and write them down; return the Services as they are then, and what was said of them."""
    outcomes = allocate(services, pools, lambda name: {"name": name}, **more)
    after = {one.metadata.name: one for one in services}
    for outcome in outcomes:
        patch = status_patch(outcome, NOW)
        if patch is not None:
            name = outcome.service.metadata.name
            body = apply(msgspec.to_builtins(after[name]), patch)
            after[name] = msgspec.convert(body, Service)
    return list(after.values()), list(outcomes)


def addresses(one: Service) -> list[str]:
    return [ingress.ip for ingress in one.status.load_balancer.ingress]


def told(one: Service) -> str:
    found = next((each for each in one.status.conditions if each.type == ALLOCATED), None)
    return f"{found.status} {found.reason}: {found.message}" if found else ""


def ingress(*texts: str) -> ServiceStatus:
    return ServiceStatus(
        load_balancer=LoadBalancerStatus(ingress=tuple(LoadBalancerIngress(ip=ip) for ip in texts))
    )


def test_who_came_first_gets_the_first_address_and_it_is_told() -> None:
    late, early = service("a", since=LATER), service("b", since=NOW)
    (late, early), _ = rounds(late, early)
    assert (addresses(early), addresses(late)) == (["192.0.2.0"], ["192.0.2.1"])
    assert told(early) == "True Allocated: of IPPool/four"
    assert early.status.load_balancer.ingress[0].ip_mode == "VIP"
    (again, _), outcomes = rounds(early, late)
    assert again == early
    assert [status_patch(one, LATER) for one in outcomes] == [None, None], "nothing is written twice"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ["192.0.2.0"]),
        ({"ip_families": ("IPv6",)}, ["2001:db8::"]),
        ({"ip_families": ("IPv6", "IPv4"), "ip_family_policy": "PreferDualStack"}, ["2001:db8::", "192.0.2.0"]),
        ({"cluster_ips": ("fd00::1", "10.96.0.1"), "cluster_ip": "fd00::1"}, ["2001:db8::", "192.0.2.0"]),
        ({"cluster_ip": "", "ip_family_policy": "PreferDualStack"}, ["192.0.2.0", "2001:db8::"]),
        ({"load_balancer_class": "podway.io/lb"}, ["192.0.2.0"]),
        ({"load_balancer_class": "example.com/lb"}, []),
        ({"type": "NodePort"}, []),
        ({"load_balancer_ip": "192.0.2.5"}, ["192.0.2.5"]),
        ({"load_balancer_ip": "any text"}, []),
    ],
)
def test_which_addresses_a_service_gets(spec: Any, expected: list[str]) -> None:
    (one,), _ = rounds(service("web", **spec))
    assert addresses(one) == expected


def test_wanted_addresses_are_given_or_it_is_told_why_not() -> None:
    def wants(name: str, text: str, **spec: Any) -> Service:
        return service(name, notes={WANTED: text}, **spec)

    dual = {"ip_families": ("IPv4", "IPv6"), "ip_family_policy": "RequireDualStack"}
    (one,), _ = rounds(wants("a", "192.0.2.3, 2001:db8::5", **dual))
    assert addresses(one) == ["192.0.2.3", "2001:db8::5"]
    (one, taken, outside, wrong), _ = rounds(
        one, wants("b", "192.0.2.3"), wants("c", "198.51.100.1"), wants("d", "192.0.2.4,192.0.2.5")
    )
    assert told(taken) == "False AddressTaken: 192.0.2.3 is the address of Service default/a"
    assert told(outside) == "False NotInPool: 198.51.100.1 is in none of IPPool/four, or excluded there"
    assert "second address of its family" in told(wrong)
    assert [addresses(each) for each in (taken, outside, wrong)] == [[], [], []]
    moved = msgspec.structs.replace(one, metadata=service("a", notes={WANTED: "192.0.2.6"}).metadata)
    (moved, taken), _ = rounds(moved, taken)
    assert addresses(moved) == ["192.0.2.6", "2001:db8::5"]
    assert addresses(rounds(moved, taken)[0][1]) == ["192.0.2.3"], "what was given up is the next one's"


def test_pools_choose_by_namespace_and_services_by_name() -> None:
    selector = LabelSelector(match_labels={"name": "shop"})
    pools = (*POOLS, pool("shop", "198.51.100.0/30", use="services", namespace_selector=selector))
    (own, other, named), _ = rounds(
        service("a", namespace="shop"),
        service("b"),
        service("c", namespace="shop", notes={POOL: "four"}),
        pools=pools,
    )
    assert [addresses(one) for one in (own, other, named)] == [["198.51.100.0"], ["192.0.2.0"], ["192.0.2.1"]]
    (lost,), _ = rounds(service("d", notes={POOL: "none"}), pools=pools)
    assert told(lost).startswith("False NoPool: IPPool/none is no IPv4 pool")


def test_a_full_pool_is_told_and_gives_when_somebody_goes() -> None:
    pools = (pool("small", "192.0.2.0/30", use="services", excluded=("192.0.2.0/31",)),)
    services, outcomes = rounds(
        *(service(name) for name in "abc"), pools=pools, reserved=[ip_address("192.0.2.2")]
    )
    assert [addresses(one) for one in services] == [["192.0.2.3"], [], []]
    assert told(services[1]) == "False PoolFull: no IPv4 address is free in IPPool/small"
    assert outcomes[1].full == ("small",)
    services, _ = rounds(*services[1:], pools=pools, reserved=[ip_address("192.0.2.2")])
    assert [addresses(one) for one in services] == [["192.0.2.3"], []]


def test_a_pool_that_is_disabled_gives_no_more_and_takes_nothing_away() -> None:
    (one,), _ = rounds(service("a"))
    pools = (pool("four", "192.0.2.0/29", use="services", disabled=True),)
    (one, other), _ = rounds(one, service("b"), pools=pools)
    assert (addresses(one), addresses(other)) == (["192.0.2.0"], [])
    (one,), _ = rounds(one, pools=())
    assert (addresses(one), told(one)[:12]) == ([], "False NoPool"), (
        "a pool that is gone takes its addresses along"
    )


def test_a_pool_that_is_set_aside_gives_no_more_and_takes_nothing_away() -> None:
    shop = pool(
        "four", "192.0.2.0/29", use="services", namespace_selector=LabelSelector(match_labels={"name": "shop"})
    )
    (one,), _ = rounds(service("a", namespace="shop"), pools=[shop])
    lost = LabelSelector(match_labels={"name": "nobody"})  # it may be its selector that is wrong
    aside = pool("four", "192.0.2.0/29", use="services", namespace_selector=lost)
    before = one
    (one, other), _ = rounds(one, service("b", namespace="shop"), pools=(), aside=[aside])
    assert one == before
    assert (addresses(other), told(other)) == ([], ""), "nobody gives addresses here"
    (one,), _ = rounds(one, pools=(), unreadable=True)
    assert addresses(one) == ["192.0.2.0"]
    assert told(one) == "True Allocated: of an IPPool that cannot be read"
    (one,), _ = rounds(one, pools=[pool("others", "198.51.100.0/29", use="services")])
    assert addresses(one) == ["198.51.100.0"], "its pool is gone"


def test_an_address_is_given_back_with_the_type() -> None:
    (one,), _ = rounds(service("a"))
    inside = msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, type="ClusterIP"))
    (inside, other), _ = rounds(inside, service("b"))
    assert (addresses(inside), inside.status.conditions, addresses(other)) == ([], (), ["192.0.2.0"])


def test_what_another_load_balancer_gave_stays_and_what_is_of_our_pools_is_adopted() -> None:
    theirs = msgspec.structs.replace(service("a"), status=ingress("203.0.113.9"))
    moved = msgspec.structs.replace(service("b"), status=ingress("192.0.2.0"))
    other_class = msgspec.structs.replace(service("c", load_balancer_class="x.y/z"), status=ingress("192.0.2.1"))
    outside = service("d", type="ClusterIP", external_ips=("192.0.2.2",))
    services, _ = rounds(theirs, moved, other_class, outside, service("e"))
    assert [addresses(one) for one in services] == [
        ["203.0.113.9"],
        ["192.0.2.0"],
        ["192.0.2.1"],
        [],
        ["192.0.2.3"],
    ]
    assert (told(services[0]), told(services[1])) == ("", "True Allocated: of IPPool/four")
    assert rounds(theirs, pools=())[1] == []


def test_of_two_with_one_address_the_older_has_it() -> None:
    one, other = (
        msgspec.structs.replace(service(name, since=since), status=ingress("192.0.2.0"))
        for name, since in (("a", LATER), ("b", NOW))
    )
    (one, other), _ = rounds(one, other)
    assert (addresses(one), addresses(other)) == (["192.0.2.1"], ["192.0.2.0"])


def test_what_was_given_a_moment_ago_is_nobody_elses() -> None:
    held = {ip_address("192.0.2.0"): ("default", "b")}
    (one, other), _ = rounds(service("a", since=NOW), service("b", since=LATER), held=held)
    assert (addresses(one), addresses(other)) == (["192.0.2.1"], ["192.0.2.0"])


_names = st.sampled_from("abcdef")
_specs = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["LoadBalancer", "LoadBalancer", "ClusterIP"]),
        "ip_families": st.sampled_from([("IPv4",), ("IPv6",), ("IPv4", "IPv6")]),
        "load_balancer_ip": st.sampled_from(["", "", "192.0.2.1", "192.0.2.2", "x"]),
    }
)
_pools = st.sampled_from([(), POOLS, POOLS[:1], (pool("tiny", "192.0.2.0/31", use="services"), POOLS[1])])
_steps = st.lists(st.tuples(_names, st.none() | _specs, _pools), max_size=12)


@given(_steps)
def test_no_two_services_ever_have_one_address_and_what_may_stay_stays(steps: Any) -> None:
    known: dict[str, Service] = {}
    for number, (name, spec, pools) in enumerate(steps):
        if spec is None:
            known.pop(name, None)
        else:
            old = known.get(name)
            made = service(name, since=old.metadata.creation_timestamp if old else f"{number:03}", **spec)
            known[name] = msgspec.structs.replace(made, status=old.status) if old else made
        before = {each: addresses(one) for each, one in known.items()}
        services, _ = rounds(*known.values(), pools=pools)
        known = {one.metadata.name: one for one in services}
        every = [text for one in services for text in addresses(one)]
        assert len(every) == len(set(every))
        for one in services:
            for text in addresses(one):
                assert any(ip_address(text) in each.network for each in pools)
            if one.metadata.name != name and not one.spec.load_balancer_ip and one.spec.type == "LoadBalancer":
                kept = [
                    text for text in before[one.metadata.name] if any(ip_address(text) in p.network for p in pools)
                ]
                assert set(kept) <= set(addresses(one)), "what others do takes nobody's address"
