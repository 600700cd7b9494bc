"""Services for a node's own processes: entries in the words of its rules, in steps as from scratch.

Whom one may reach by them is asked as the rules ask (podway.plan.services), and compared with the second opinion.
"""

import struct
from functools import partial
from ipaddress import ip_address
from typing import Any

from hypothesis import given, settings

from podway.api.kinds.endpoint_slice import EndpointPort
from podway.api.kinds.service import LoadBalancerIngress, ServicePort
from podway.api.resource import key as key_of
from podway.services.maps import Delta, Maps
from podway.services.node_maps import NodeDelta, NodeKey, NodeMaps, NodeValue, Where, difference
from podway.services.planner import ServicePlanner, outside_frontends, wanted_frontends
from tests.services.clusters import NODE, OTHER, VIP, endpoint, events, piece, service
from tests.services.model import reachable

VERSIONS = (4, 6)
OWN = ("172.30.0.1", "fd00:172:30::1")
"""The node's addresses, at which node ports are asked."""

Words = tuple[str, str, int, str]
INSIDE: Words = ("services", "refused", 0, "")
OUTSIDE: Words = ("outside", "refused_outside", 1 << 16, "outside_")
"""Maps, the first place, and what chains' names begin with."""


def led(
    entries: dict[NodeKey, NodeValue], words: Words, address: Any, protocol: int, port: int
) -> tuple[set[Any], str]:
    """Return to whom the rules lead a connection, and what becomes of it where they lead to nobody."""
    services, refused, first, word = words
    where = _place(address, protocol, port)
    chain = entries.get(NodeKey(address.version, services, where))
    if chain is None:
        return set(), str(entries.get(NodeKey(address.version, refused, where), ""))
    kind, _, places = str(chain).removeprefix(word).partition("_")
    half = int(places) // 2
    found = set()
    for place in range(int(places)):
        value = entries.get(NodeKey(address.version, "backends", where + struct.pack("=I", first + place)))
        assert isinstance(value, bytes) or place >= half, "a draw that leads to nobody"
        if isinstance(value, bytes):
            found.add((ip_address(value[:-4]), int.from_bytes(value[-4:-2])))
    return found, kind


def taken(entries: dict[NodeKey, NodeValue], delta: NodeDelta) -> None:
    """Take over changes, as a kernel does: what says something else has to be known for that."""
    for key, value in delta.put.items():
        assert (key in entries) == (key in delta.stale)
        entries[key] = value
    for key, value in delta.gone.items():
        assert entries.pop(key) == value


def forgotten(
    remembered: dict[NodeKey, set[NodeValue]], entries: dict[NodeKey, NodeValue], change: NodeDelta
) -> None:
    """Forget clients as a kernel does, and assert that those are left whose backends are; of UDP likewise."""
    behind: dict[NodeKey, set[NodeValue]] = {}
    for key, value in entries.items():
        if key.map == "backends":
            behind.setdefault(NodeKey(key.version, "stays", key.key[:-4]), set()).add(value)
    for key, left in change.left.items():
        if key in remembered:
            assert left <= remembered[key] | behind.get(key, set())
            remembered[key] &= left
    for where, kept in change.moved.items():
        found = NodeKey(where.address.version, "stays", _place(where.address, 17, where.port))
        assert {_place(one.address, None, one.port) for one in kept} == behind.get(found, set())
    for key in {*remembered} | {key for key in entries if key.map == "stays"}:
        there = behind.get(key, set())
        known = remembered.setdefault(key, set())
        assert known <= there
        remembered[key] = set(there) if key in entries else set()


def _place(address: Any, protocol: int | None, port: int) -> bytes:
    middle = b"" if protocol is None else bytes((protocol, 0, 0, 0))
    return bytes(address.packed) + middle + struct.pack(">HH", port, 0)


@given(events)
@settings(max_examples=80, deadline=None)
def test_a_node_is_led_as_the_second_opinion_says_after_any_events(happened: list[Any]) -> None:
    addresses = tuple(map(ip_address, OWN))
    planners = [
        ServicePlanner(NODE, wanted=partial(frontends, node_ports=addresses))
        for frontends in (wanted_frontends, outside_frontends)
    ]
    node, written = NodeMaps(VERSIONS, fence=planners[0].fence), (Maps(), Maps())
    objects: dict[Any, Any] = {}
    entries: dict[NodeKey, NodeValue] = {}
    remembered: dict[NodeKey, set[NodeValue]] = {}
    for what, obj in happened:
        if what == "put":
            objects[key_of(obj)] = obj
        else:
            objects.pop(key_of(obj), None)
        for planner in planners:
            if what == "put":
                planner.put(obj)
            else:
                planner.drop(key_of(obj))
        deltas = [planner.settle() for planner in planners]
        for maps, delta in zip(written, deltas, strict=True):
            maps.apply(delta)
        change = node.change(*deltas)
        taken(entries, change)
        forgotten(remembered, entries, change)
        inside, outside = (maps.entries for maps in written)
        assert entries == dict(NodeMaps(VERSIONS, inside, outside, planners[0].fence).entries())
    for words, far in ((INSIDE, False), (OUTSIDE, True)):
        expected = reachable(objects.values(), NODE, OWN, outside=far)
        for asked, (ends, stays, dropped) in expected.items():
            found, how = led(entries, words, *asked)
            assert found == {(ip_address(str(end[0])), end[1]) for end in ends}
            if not found:
                assert how == ("drop_it" if dropped else "refuse")
            else:
                assert how == ("same" if stays else "any")
        assert expected.keys() >= {
            (ip_address(one.key[:-8]), one.key[-8], int.from_bytes(one.key[-4:-2]))
            for one in entries
            if one.map in words[:2]
        }


def _udp(*addresses: str) -> list[Any]:
    port = ServicePort(port=53, protocol="UDP")
    ends = [endpoint(one) for one in addresses]
    return [service("web", port), piece("s", *ends, ports=(EndpointPort(port=5353, protocol="UDP"),))]


def _settle(planner: ServicePlanner, *objects: Any) -> Delta:
    for obj in objects:
        planner.put(obj)
    return planner.settle()


def test_of_udp_it_is_told_who_is_left_and_of_tcp_nothing() -> None:
    planner, node = ServicePlanner(NODE), NodeMaps(VERSIONS)
    where = (ip_address(VIP), 53)

    def moved(*addresses: str) -> Any:
        return node.change(_settle(planner, *_udp(*addresses))).moved

    one, two = ((ip_address(f"10.1.0.{n}"), 5353) for n in (1, 2))
    assert moved("10.1.0.1") == {where: {one}}  # what came before was led elsewhere
    assert moved("10.1.0.1", "10.1.0.2")[where] == {one, two}
    assert moved("10.1.0.2") == {where: {two}}
    assert moved() == {where: frozenset()}
    assert not node.change(_settle(planner, service("api", cluster_ips=("10.96.0.11",)))).moved


def test_who_is_behind_a_service_for_others_only_keeps_its_flows() -> None:
    """A local backend that is about to end serves clients outside on, who are not led to other nodes."""
    planners = [ServicePlanner(NODE, wanted=one) for one in (wanted_frontends, outside_frontends)]
    node = NodeMaps(VERSIONS)
    port, ports = ServicePort(port=53, protocol="UDP"), (EndpointPort(port=53, protocol="UDP"),)
    made = service("web", port, external_ips=("192.0.2.9",), external_traffic_policy="Local")
    other = endpoint("10.1.1.2", OTHER)

    def settled(here: Any) -> NodeDelta:
        return node.change(*(_settle(one, made, piece("s", here, other, ports=ports)) for one in planners))

    settled(endpoint("10.1.0.1"))
    delta = settled(endpoint("10.1.0.1", ready=False, serving=True, terminating=True))
    ends = {(ip_address(one), 53) for one in ("10.1.0.1", "10.1.1.2")}
    assert delta.moved[Where(ip_address("192.0.2.9"), 53)] == ends
    assert delta.moved[Where(ip_address(VIP), 53)] == ends - {(ip_address("10.1.0.1"), 53)}


def test_only_load_balancers_addresses_are_fenced() -> None:
    planner = ServicePlanner(NODE, wanted=partial(wanted_frontends, node_ports=[ip_address(OWN[0])]))
    spec: Any = {"type": "LoadBalancer", "external_ips": ("192.0.2.9",)}
    balanced = [LoadBalancerIngress(ip="192.0.2.1")]
    port = ServicePort(port=80, node_port=30080)
    node = NodeMaps(VERSIONS, fence=planner.fence)

    def fenced(*ranges: str) -> NodeDelta:
        made = service("web", port, ingress=balanced, load_balancer_source_ranges=ranges, **spec)
        return node.change(_settle(planner, made))

    where = _place(ip_address("192.0.2.1"), 6, 80)
    both = [where + ip_address(one).packed for one in ("203.0.113.0", "203.0.113.255")]
    put = fenced("203.0.113.0/24", "2001:db8::/32").put
    assert {key for key in put if key.map == "fenced"} == {NodeKey(4, "fenced", where)}
    assert {key for key in put if key.map == "allowed"} == {NodeKey(4, "allowed", b"".join(both))}
    delta = fenced("203.0.113.0/32")
    assert set(delta.gone) == {NodeKey(4, "allowed", b"".join(both))}
    # What overlaps is one range: the kernel refuses others.
    overlapping = fenced("203.0.113.0/32", "203.0.113.0/24", "203.0.112.0/23")
    both = [where + ip_address(one).packed for one in ("203.0.112.0", "203.0.113.255")]
    assert set(overlapping.put) == {NodeKey(4, "allowed", b"".join(both))}
    assert {key.map for key in fenced().gone} == {"fenced", "allowed"}


def test_a_family_that_a_node_has_no_table_for_has_no_entries() -> None:
    planner = ServicePlanner(NODE)
    delta = _settle(planner, service(cluster_ips=(VIP, "fd00:96::10")))
    assert {key.version for key in NodeMaps([4]).change(delta).put} == {4}
    assert {key.version for key in NodeMaps(VERSIONS).change(delta).put} == {4, 6}


def test_a_difference_says_what_is_there_already() -> None:
    key, other = NodeKey(4, "cluster", b"\x0a\0\0\1"), NodeKey(4, "services", b"\x0a\0\0\1\6\0\0\0\0\x50\0\0")
    assert difference({key: b"", other: "any_1"}, {other: "any_2", key: b""}) == NodeDelta(
        {other: "any_1"}, {}, frozenset({other})
    )
