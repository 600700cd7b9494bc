"""What each field of Service and EndpointSlice means, one by one: whom connections from a node reach."""

from typing import Any

import msgspec
import pytest

from podway.api.kinds.endpoint_slice import EndpointPort, EndpointSlice
from podway.api.kinds.service import (
    ClientIPConfig,
    LoadBalancerIngress,
    Service,
    ServicePort,
    SessionAffinityConfig,
)
from podway.api.resource import key
from podway.services.choice import Where, choose
from podway.services.maps import Delta, FrontendFlag, unpacked
from podway.services.planner import GATHERED, WORK, ServicePlanner, summary
from tests.services.clusters import NODE, OTHER, VIP, VIP6, endpoint, node, piece, pod, service

HERE, THERE, FAR = "10.1.0.1", "10.2.0.1", "10.3.0.1"


def planned(*objects: Any) -> ServicePlanner:
    planner = ServicePlanner(NODE)
    for obj in objects:
        planner.put(obj)
    planner.settle()
    return planner


def reached(*objects: Any) -> dict[str, list[str]]:
    """Whom connections to each address and port reach: `tcp 10.96.0.10:80` → `10.1.0.1:8080`."""
    return spoken(planned(*objects))


def spoken(planner: ServicePlanner) -> dict[str, list[str]]:
    names = {6: "tcp", 17: "udp", 132: "sctp"}
    return {
        f"{names[where.protocol]} {where}": [f"{unpacked(address)}:{port}" for address, port in ends]
        for where, ends in summary(planner.entries).items()
        if where.protocol
    }


def behind(*endpoints: Any, zone: str = "a", **spec: Any) -> list[str]:
    """The addresses that are used of one slice's endpoints."""
    found = reached(service(**spec), piece("s", *endpoints), node(zone))
    return [end.partition(":")[0] for end in found[f"tcp {VIP}:80"]]


def flags(*objects: Any) -> FrontendFlag:
    (frontend,) = (one for where, one in planned(*objects).entries.frontends.items() if where.port)
    return frontend.flags


# Addresses and ports.


def test_cluster_ip_leads_to_the_target_port() -> None:
    assert reached(service(), piece("s", endpoint(HERE))) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}


def test_the_whole_address_is_known_so_that_another_port_is_refused() -> None:
    whole = [where for where in planned(service()).entries.frontends if not where.protocol]
    assert [unpacked(where.address) for where in whole] == [VIP]


def test_one_port_number_of_both_protocols_is_two_ports() -> None:
    ports = (ServicePort(name="a", port=53), ServicePort(name="b", port=53, protocol="UDP"))
    served = (EndpointPort(name="a", port=1053), EndpointPort(name="b", port=2053, protocol="UDP"))
    assert reached(service("web", *ports), piece("s", endpoint(HERE), ports=served)) == {
        f"tcp {VIP}:53": [f"{HERE}:1053"],
        f"udp {VIP}:53": [f"{HERE}:2053"],
    }


def test_named_target_port_is_each_slices_own_number() -> None:
    port = ServicePort(name="http", port=80, target_port="web")
    slices = [
        piece(f"s{n}", endpoint(address), ports=(EndpointPort(name="http", port=n),))
        for n, address in ((8080, HERE), (9090, THERE))
    ]
    assert reached(service("web", port), *slices) == {f"tcp {VIP}:80": [f"{HERE}:8080", f"{THERE}:9090"]}


def test_port_whose_name_no_slice_has_leads_nowhere() -> None:
    port = ServicePort(name="http", port=80)
    assert reached(service("web", port), piece("s", endpoint(HERE))) == {f"tcp {VIP}:80": []}


def test_protocol_of_the_slices_port_has_to_be_the_same() -> None:
    served = (EndpointPort(port=8080, protocol="UDP"),)
    assert reached(service(), piece("s", endpoint(HERE), ports=served)) == {f"tcp {VIP}:80": []}


@pytest.mark.parametrize("ports", [None, (), (EndpointPort(),)])
def test_slice_without_ports_serves_none(ports: Any) -> None:
    assert reached(service(), piece("s", endpoint(HERE), ports=ports)) == {f"tcp {VIP}:80": []}


def test_app_protocol_is_passed_over() -> None:
    port = ServicePort(port=80, app_protocol="kubernetes.io/h2c")
    assert reached(service("web", port), piece("s", endpoint(HERE))) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}


def test_sctp_is_served_on_the_same_port_only() -> None:
    port = ServicePort(port=80, protocol="SCTP")
    for target, wanted in ((80, [f"{HERE}:80"]), (8080, [])):
        served = (EndpointPort(port=target, protocol="SCTP"),)
        assert reached(service("web", port), piece("s", endpoint(HERE), ports=served)) == {
            f"sctp {VIP}:80": wanted
        }


def test_unknown_protocol_is_not_served_and_others_are() -> None:
    ports = (ServicePort(name="a", port=443, protocol="QUIC"), ServicePort(name="b", port=80))
    served = (EndpointPort(name="b", port=80),)
    assert reached(service("web", *ports), piece("s", endpoint(HERE), ports=served)) == {
        f"tcp {VIP}:80": [f"{HERE}:80"]
    }


@pytest.mark.parametrize("written", ["010.096.000.010", "::ffff:10.96.0.10"])
def test_legacy_spelling_of_an_address(written: Any) -> None:
    assert list(reached(service(cluster_ips=(written,)))) == [f"tcp {VIP}:80"]


def test_legacy_spelling_in_a_slice() -> None:
    assert behind(endpoint("010.001.000.001")) == [HERE]


# Whom it is for.


def test_headless_and_external_name_are_names_only() -> None:
    slices = piece("s", endpoint(HERE))
    assert not reached(service(cluster_ips=("None",)), slices)
    assert not reached(service(type="ExternalName", cluster_ips=(), external_name="x.example"), slices)


@pytest.mark.parametrize("label", ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"])
def test_label_hides_a_service_whenever_it_comes_and_goes(label: Any) -> None:
    planner = planned(service(), piece("s", endpoint(HERE)))
    assert spoken(planner)
    planner.put(service(labels={label: "anything"}))
    assert planner.settle().gone_frontends
    assert not planner.entries.choices
    planner.put(service())
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer", "ClusterIP"])
def test_type_changes_leave_the_cluster_address_as_it_is(kind: Any) -> None:
    planner = planned(service(), piece("s", endpoint(HERE)))
    planner.put(service(type=kind))
    assert planner.settle().empty


def test_type_changes_to_external_name_and_back() -> None:
    planner = planned(service(), piece("s", endpoint(HERE)))
    planner.put(service(type="ExternalName"))
    planner.settle()
    assert not planner.entries.frontends
    planner.put(service())
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}


def test_external_addresses_are_reached_from_inside() -> None:
    found = reached(service(external_ips=("192.0.2.1",)), piece("s", endpoint(HERE)))
    assert found[f"tcp {VIP}:80"] == found["tcp 192.0.2.1:80"] == [f"{HERE}:8080"]


def test_load_balancers_address_is_short_cut_but_not_in_mode_proxy() -> None:
    ingress = (LoadBalancerIngress(ip="192.0.2.2"), LoadBalancerIngress(ip="192.0.2.3", ip_mode="Proxy"))
    made = service(type="LoadBalancer", ingress=ingress)
    assert reached(made, piece("s", endpoint(HERE))).keys() == {f"tcp {VIP}:80", "tcp 192.0.2.2:80"}
    assert reached(service(ingress=ingress)).keys() == {f"tcp {VIP}:80"}


def test_external_traffic_policy_says_nothing_of_clients_inside() -> None:
    """k/k #108526: a pod's connection to an external address is one from inside, also from an empty node."""
    made = service(external_ips=("192.0.2.1",), external_traffic_policy="Local")
    assert reached(made, piece("s", endpoint(THERE, OTHER)))["tcp 192.0.2.1:80"] == [f"{THERE}:8080"]


def test_internal_traffic_policy_is_about_the_cluster_address_only() -> None:
    made = service(external_ips=("192.0.2.1",), internal_traffic_policy="Local")
    found = reached(made, piece("s", endpoint(HERE), endpoint(THERE, OTHER)))
    assert found == {f"tcp {VIP}:80": [f"{HERE}:8080"], "tcp 192.0.2.1:80": [f"{HERE}:8080", f"{THERE}:8080"]}


# Families.


def test_dual_stack_leads_each_family_to_its_own_slices() -> None:
    made = service(cluster_ips=(VIP, VIP6))
    found = reached(made, piece("s4", endpoint(HERE)), piece("s6", endpoint("fd00:1::1"), kind="IPv6"))
    assert found == {f"tcp {VIP}:80": [f"{HERE}:8080"], f"tcp [{VIP6}]:80": ["fd00:1::1:8080"]}


def test_slices_of_names_are_passed_over() -> None:
    assert not behind()
    assert reached(service(), piece("s", endpoint("x.example"), kind="FQDN")) == {f"tcp {VIP}:80": []}


# Endpoints' conditions.


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ({}, True),
        ({"ready": True}, True),
        ({"ready": False}, False),
        ({"ready": False, "serving": True}, False),
        ({"ready": False, "serving": True, "terminating": True}, True),
        ({"ready": False, "serving": False, "terminating": True}, False),
        ({"ready": False, "terminating": True}, False),
    ],
)
def test_conditions_of_the_only_endpoint(said: Any, used: bool) -> None:
    assert behind(endpoint(HERE, **said)) == [HERE] * used


def test_terminating_ones_serve_only_where_nobody_is_ready() -> None:
    ends = endpoint(HERE, ready=False, serving=True, terminating=True)
    assert behind(ends, endpoint(THERE)) == [THERE]
    assert behind(ends, endpoint(THERE, ready=False)) == [HERE]


def test_unready_ones_that_are_published_are_ready_in_the_slice_and_serve_as_they_end() -> None:
    ends = endpoint(HERE, ready=True, serving=False, terminating=True)
    assert behind(ends, endpoint(THERE), publish_not_ready_addresses=True) == [HERE, THERE]


# Traffic policies.


def test_local_means_this_nodes_endpoints() -> None:
    ends = (endpoint(HERE), endpoint(THERE, OTHER), endpoint(FAR, ""))
    assert behind(*ends, internal_traffic_policy="Local") == [HERE]


def test_local_falls_back_to_terminating_ones_of_this_node_only() -> None:
    mine = endpoint(HERE, ready=False, serving=True, terminating=True)
    assert behind(mine, endpoint(THERE, OTHER), internal_traffic_policy="Local") == [HERE]


def test_local_without_any_here_is_dropped_if_there_are_some_elsewhere_and_refused_if_not() -> None:
    made = service(internal_traffic_policy="Local")
    assert flags(made, piece("s", endpoint(THERE, OTHER))) == FrontendFlag.DROP
    resort = endpoint(THERE, OTHER, ready=False, serving=True, terminating=True)
    assert flags(made, piece("s", resort)) == FrontendFlag.DROP
    assert flags(made, piece("s", endpoint(THERE, OTHER, ready=False))) == FrontendFlag(0)
    assert flags(made, piece("s", endpoint(HERE), endpoint(THERE, OTHER))) == FrontendFlag(0)


def test_no_endpoints_are_refused() -> None:
    for slices in ((), (piece("s"),), (piece("s", endpoint(HERE, ready=False)),)):
        assert flags(service(), *slices) == FrontendFlag(0)
        assert reached(service(), *slices) == {f"tcp {VIP}:80": []}


def test_unknown_policy_is_the_default() -> None:
    assert behind(endpoint(THERE, OTHER), internal_traffic_policy="New") == [THERE]


# Hints.


def test_hints_for_a_node_go_before_those_for_a_zone() -> None:
    ends = (
        endpoint(HERE, nodes=[NODE], zones=["b"]),
        endpoint(THERE, OTHER, nodes=[OTHER], zones=["a"]),
    )
    assert behind(*ends) == [HERE]


def test_hints_for_a_zone() -> None:
    ends = (endpoint(HERE, zones=["b"]), endpoint(THERE, OTHER, zones=["a", "c"]))
    assert behind(*ends) == [THERE]
    assert behind(*ends, zone="b") == [HERE]


def test_one_endpoint_without_a_hint_disables_them() -> None:
    assert behind(endpoint(HERE, zones=["b"]), endpoint(THERE, zones=["a"]), endpoint(FAR)) == [HERE, THERE, FAR]


def test_hints_of_those_that_are_not_ready_do_not_count() -> None:
    ends = (endpoint(HERE, zones=["b"]), endpoint(THERE, zones=["a"]), endpoint(FAR, ready=False))
    assert behind(*ends) == [THERE]
    gone = (endpoint(HERE, zones=["b"]), endpoint(THERE, zones=["a"], ready=False))
    assert behind(*gone) == [HERE]


def test_nobody_for_this_zone_means_everybody() -> None:
    ends = (endpoint(HERE, zones=["b"]), endpoint(THERE, zones=["c"]))
    assert behind(*ends) == [HERE, THERE]
    assert behind(*ends, zone="") == [HERE, THERE]


def test_hints_do_not_apply_to_local() -> None:
    ends = (endpoint(HERE, zones=["b"]), endpoint(THERE, OTHER, zones=["a"]))
    assert behind(*ends, internal_traffic_policy="Local") == [HERE]


def test_a_node_that_changes_its_zone_changes_its_choice() -> None:
    planner = planned(service(), piece("s", endpoint(HERE, zones=["b"]), endpoint(THERE, zones=["a"])), node("a"))
    planner.put(node("b"))
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}


def test_reasons_are_told() -> None:
    slices = piece("s", endpoint(HERE), endpoint(THERE, OTHER), endpoint(FAR, ready=False))
    planner = planned(service(), slices)
    every = planner.candidates(("shop", "web"), ServicePort(port=80), 4)
    left = choose(every, Where(NODE), local=True).left_out
    assert [reason for _, reason in left] == [
        f"on node {OTHER}, and the traffic policy is Local",
        "not ready",
    ]


# Session affinity.


def test_session_affinity_lasts_three_hours_or_as_long_as_it_says() -> None:
    config = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=60))
    for spec, seconds in (
        ({}, 0),
        ({"session_affinity": "ClientIP"}, 10800),
        ({"session_affinity": "ClientIP", "session_affinity_config": config}, 60),
    ):
        frontends = planned(service(**spec)).entries.frontends
        assert [one.affinity for where, one in frontends.items() if where.port] == [seconds]


def test_session_affinity_is_switched_without_another_choice() -> None:
    planner = planned(service(), piece("s", endpoint(HERE)))
    planner.put(service(session_affinity="ClientIP"))
    delta = planner.settle()
    assert len(delta.frontends) == 1
    assert not delta.choices
    assert not delta.backends
    assert not delta.gone_backends


# Slices.


def test_slices_belong_to_a_service_by_their_label_alone() -> None:
    assert reached(service(), piece("other-name", endpoint(HERE))) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}
    assert (
        reached(service(), piece("web", endpoint(HERE), of="api"), service("api", cluster_ips=()))[f"tcp {VIP}:80"]
        == []
    )


def test_an_address_that_moves_between_slices_is_one_backend() -> None:
    slices = piece("s1", endpoint(HERE, ready=False)), piece("s2", endpoint(HERE))
    planner = planned(service(), *slices)
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}
    planner.drop(key(slices[0]))
    assert planner.settle().empty


def test_a_slice_that_changes_its_service_moves_its_endpoints() -> None:
    api = service("api", cluster_ips=("10.96.0.11",))
    planner = planned(service(), api, piece("s", endpoint(HERE)))
    planner.put(piece("s", endpoint(HERE), of="api"))
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [], "tcp 10.96.0.11:80": [f"{HERE}:8080"]}


def test_slices_may_come_before_their_service_and_stay_after_it() -> None:
    planner = planned(piece("s", endpoint(HERE)))
    assert not planner.entries.frontends
    for _ in range(2):
        planner.put(service())
        planner.settle()
        assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}
        planner.drop(("Service", "shop", "web"))
        planner.settle()
        assert not planner.entries.frontends


# Pods, where there are no slices.


def test_without_slices_the_selectors_pods_serve() -> None:
    made = service(
        "web", ServicePort(port=80, target_port="http"), selector={"app": "web"}, cluster_ips=(VIP, VIP6)
    )
    serving = [("http", 8080, "TCP")]
    pods = (
        pod("a", HERE, "fd00:1::1", ports=serving),
        pod("b", THERE, ports=[("other", 1, "TCP")]),
        pod("c", FAR, phase="Succeeded", ports=serving),
        pod("d", FAR, phase="Pending", ports=serving),
    )
    assert reached(made, *pods) == {f"tcp {VIP}:80": [f"{HERE}:8080"], f"tcp [{VIP6}]:80": ["fd00:1::1:8080"]}


def test_pods_that_come_change_and_go_are_followed() -> None:
    planner = planned(service(selector={"app": "web"}))
    planner.put(pod("a", HERE))
    planner.put(pod("b", THERE))
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:80", f"{THERE}:80"]}
    planner.put(pod("a", HERE, ends=True))
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{THERE}:80"]}
    planner.drop(("Pod", "shop", "b"))
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:80"]}


def test_pods_do_not_count_where_a_slice_tells() -> None:
    made = service(selector={"app": "web"})
    assert reached(made, pod("a", HERE), piece("s")) == {f"tcp {VIP}:80": []}
    assert reached(service(), pod("a", HERE)) == {f"tcp {VIP}:80": []}


# Two that want the same.


def test_of_two_services_with_one_address_the_older_has_it() -> None:
    old = service("z", created="2026-01-01T00:00:00Z")
    new = service("a", created="2026-01-02T00:00:00Z")
    planner = planned(old, new, piece("s", endpoint(HERE), of="z"), piece("t", endpoint(THERE), of="a"))
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{HERE}:8080"]}
    planner.drop(key(old))
    planner.settle()
    assert spoken(planner) == {f"tcp {VIP}:80": [f"{THERE}:8080"]}


def test_an_external_address_takes_nobodys_cluster_address() -> None:
    """CVE-2020-8554: who may write a Service must not get another's traffic."""
    thief = service("a", cluster_ips=("10.96.0.66",), external_ips=(VIP,), created="2020-01-01T00:00:00Z")
    found = reached(thief, service("web", created="2026-01-01T00:00:00Z"), piece("s", endpoint(HERE)))
    assert found[f"tcp {VIP}:80"] == [f"{HERE}:8080"]


# What a change costs.


def test_one_endpoint_more_or_less_is_a_handful_of_entries() -> None:
    ends = [endpoint(f"10.1.{n // 250}.{n % 250 + 1}") for n in range(1000)]
    many = [service(f"s{n}", cluster_ips=(f"10.97.0.{n}",)) for n in range(200)]
    planner = planned(service(), *many, piece("s", *ends))
    for changed in (ends[:500] + ends[501:], [*ends[:500], endpoint("10.9.0.1"), *ends[501:]]):
        planner.put(piece("s", *changed))
        delta = planner.settle()
        assert sum(len(getattr(delta, field)) for field in Delta.__struct_fields__) <= 5
        assert not delta.frontends


def test_what_stays_keeps_its_number() -> None:
    planner = planned(service(), piece("s", endpoint(HERE), endpoint(THERE), endpoint(FAR)))
    before = {backend: number for number, backend in planner.entries.backends.items()}
    planner.put(piece("s", endpoint(THERE), endpoint(FAR)))
    planner.settle()
    after = {backend: number for number, backend in planner.entries.backends.items()}
    assert len(after) == 2
    assert after.items() <= before.items()


def test_what_is_written_again_unchanged_changes_nothing() -> None:
    objects = (service(), piece("s", endpoint(HERE)), node())
    planner = planned(*objects)
    for obj in objects:
        planner.put(msgspec.structs.replace(obj))
    assert planner.settle().empty


def test_a_large_service_is_chosen_for_once_a_port_and_in_steps_of_which_each_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = []

    def counted(found: Any, *args: Any, **options: Any) -> Any:
        chosen.append(len(found))
        return choose(found, *args, **options)

    monkeypatch.setattr("podway.services.planner.choose", counted)
    ports = [ServicePort(name=f"p{n}", port=1000 + n) for n in range(20)]
    addresses = tuple(f"10.99.0.{n}" for n in range(1, 41))
    endpoints = [endpoint(f"10.1.{n // 200}.{n % 200 + 1}") for n in range(400)]
    offered = tuple(EndpointPort(name=port.name, port=8080) for port in ports)
    planner = ServicePlanner(NODE)
    planner.put(service("web", *ports, external_ips=addresses))
    planner.put(piece("s", *endpoints, ports=offered))
    most = 0
    steps = planner.settling(50)
    while True:
        chosen.clear()
        ended = next(steps, "ended") == "ended"
        most = max(most, sum(chosen))
        if ended:
            break
    assert 0 < most <= 2 * WORK
    fresh = ServicePlanner(NODE)
    for obj in (service("web", *ports, external_ips=addresses), piece("s", *endpoints, ports=offered)):
        fresh.put(obj)
    chosen.clear()
    delta = fresh.settle()
    assert len(chosen) == len(ports)
    assert len(delta.frontends) == 41 * len(ports) + 1
    assert summary(planner.entries) == summary(fresh.entries)


def test_a_service_that_comes_back_while_its_end_is_settled_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("podway.services.planner.WORK", 1)
    planner = ServicePlanner(NODE)
    for obj in (service(), piece("s", endpoint("10.1.0.1"))):
        planner.put(obj)
    planner.settle()
    before = summary(planner.entries)
    planner.drop((EndpointSlice.KIND, "shop", "s"))
    planner.drop((Service.KIND, "shop", "web"))
    steps = planner.settling(50)
    next(steps)
    for obj in (service(), piece("s", endpoint("10.1.0.1"))):
        planner.put(obj)
    for _ in steps:
        pass
    planner.settle()
    assert summary(planner.entries) == before


def test_many_backends_are_gathered_in_steps() -> None:
    ends = [endpoint(f"10.1.{n // 200}.{n % 200 + 1}") for n in range(2 * GATHERED)]
    planner = ServicePlanner(NODE)
    for number in range(3):
        planner.put(service(f"s{number}", cluster_ips=(f"10.96.1.{number}",)))
        planner.put(piece(f"s{number}", *ends, of=f"s{number}"))
    planner.settle()
    assert sum(1 for _ in planner.gathered()) == 3
    assert len(planner.entries.backends) == 6 * GATHERED
