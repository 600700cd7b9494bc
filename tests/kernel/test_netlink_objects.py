"""Links, addresses, neighbours and routes: what we write, iproute2 and pyroute2 read, and back."""

import contextlib
import errno
import json
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Literal

import pytest
from pyroute2 import NetNS

from podway.api.addresses import Family
from podway.errors import KernelError
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import addresses, links, neighbours, routes
from podway.plan.objects import LinkAddress, Neighbour, Route
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel

MAC = "02:00:00:00:00:01"


@pytest.fixture
def connection(node: TestNamespace) -> Iterator[Connection]:
    with Connection(node.fd) as connection:
        yield connection


@pytest.fixture
def veth(node: TestNamespace, connection: Connection) -> links.LinkRecord:
    """One end of a pair, up, as is its peer `peer0` in the same namespace."""
    connection.transact(
        [
            links.new_veth("left0", links.Peer("peer0"), mac=MAC, mtu=1400, group=7),
            links.set_up("peer0"),
            links.set_up("left0"),
        ]
    )
    return links.find(connection, "left0")


def test_veth_lands_in_the_other_namespace_as_asked(
    node: TestNamespace, pod: TestNamespace, connection: Connection
) -> None:
    peer = links.Peer("eth0", pod.fd, "02:00:00:00:00:02", 1300)
    connection.transact([links.new_veth("left0", peer, mac=MAC, mtu=1300, group=7)])
    connection.transact(
        [links.altname("left0", "pod.abc:eth0-" + "x" * 90), links.change("left0", alias="ns/pod net /x y")]
    )
    left = links.find(connection, "left0")
    assert links.find(connection, "pod.abc:eth0-" + "x" * 90) == left
    (seen,) = json.loads(node.sh("ip -j -d link show left0"))
    assert (left.mac, left.mtu, left.alias, left.kind) == (MAC, 1300, "ns/pod net /x y", "veth")
    assert (seen["address"], seen["mtu"], seen["ifalias"], seen["group"]) == (MAC, 1300, left.alias, "7")
    assert tuple(seen["altnames"]) == left.altnames
    with Connection(pod.fd) as inside:
        eth0 = links.find(inside, "eth0")
    assert (eth0.mac, eth0.mtu, eth0.index) == ("02:00:00:00:00:02", 1300, left.peer)
    assert not left.running


def test_bridge_port_rename_and_removal(node: TestNamespace, connection: Connection) -> None:
    connection.transact([links.new_bridge("br0", mac=MAC), links.new_veth("a0", links.Peer("b0"))])
    bridge = links.find(connection, "br0")
    connection.transact([links.change("a0", master=bridge.index)])
    index = links.find(connection, "a0").index
    connection.transact([links.change(index, rename="port0")])
    port = links.find(connection, "port0")
    assert (port.index, port.master, bridge.kind) == (index, bridge.index, "bridge")
    connection.transact([links.remove("b0")])
    with pytest.raises(KernelError) as caught:
        links.find(connection, "port0")
    assert caught.value.errno == errno.ENODEV
    assert "look up link port0" in str(caught.value)


def test_link_moves_to_another_namespace(node: TestNamespace, pod: TestNamespace, connection: Connection) -> None:
    connection.transact([links.new_veth("a0", links.Peer("b0")), links.change("b0", netns_fd=pod.fd)])
    assert "b0" in pod.sh("ip -o link show b0")


@pytest.mark.parametrize("text", ["10.0.0.1/24", "10.0.0.1/32", "fd00::1/64", "fd00::1/128"])
def test_address_is_usable_at_once_and_can_be_removed(
    node: TestNamespace, connection: Connection, veth: links.LinkRecord, text: str
) -> None:
    address = LinkAddress("left0", ip_interface(text))
    connection.transact([addresses.add(address, veth.index)])
    (found,) = [a for a in addresses.dump(connection) if a.address == address.address]
    assert (found.index, found.scope, found.tentative) == (veth.index, "global", False)
    connection.transact([addresses.remove(address, veth.index)])
    assert address.address not in [a.address for a in addresses.dump(connection)]


@pytest.mark.parametrize("text", ["10.0.0.9", "fd00::9"])
def test_neighbour(node: TestNamespace, connection: Connection, veth: links.LinkRecord, text: str) -> None:
    neighbour = Neighbour("left0", ip_address(text), MAC)
    connection.transact([neighbours.add(neighbour, veth.index)])
    (found,) = [n for n in neighbours.dump(connection) if str(n.address) == text]
    assert (found.index, found.mac, found.permanent) == (veth.index, MAC, True)
    assert f"{text} lladdr {MAC} PERMANENT" in node.sh("ip neigh show dev left0")
    connection.transact([neighbours.remove(neighbour, veth.index)])
    assert node.sh("ip neigh show nud permanent dev left0") == ""


ROUTES = [
    Route(ip_network("10.1.0.0/24"), "blackhole"),
    Route(ip_network("10.1.0.5/32"), device="left0", scope="link"),
    Route(ip_network("10.1.0.8/32"), device="left0", scope="link", mtu=1230),
    Route(ip_network("10.1.0.6/32"), device="left0", scope="link", source=ip_address("10.0.0.1")),
    Route(ip_network("10.2.0.0/16"), device="left0", gateway=ip_address("10.0.0.2"), metric=50),
    Route(ip_network("0.0.0.0/0"), device="left0", gateway=ip_address("10.0.0.2"), table=1000),
    Route(ip_network("10.3.0.0/16"), "unreachable", table=77),
    Route(ip_network("fd01::/64"), "blackhole"),
    Route(ip_network("fd01::5/128"), device="left0"),
    Route(ip_network("fd01::6/128"), device="left0", source=ip_address("fd00::1")),
    Route(ip_network("::/0"), device="left0", gateway=ip_address("fd00::2"), metric=50),
    Route(ip_network("fd02::/64"), "unreachable", table=1000),
]


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_route_comes_back_as_written(
    node: TestNamespace, connection: Connection, veth: links.LinkRecord, route: Route
) -> None:
    connection.transact(
        [
            addresses.add(LinkAddress("left0", ip_interface(text)), veth.index)
            for text in ("10.0.0.1/24", "fd00::1/64")
        ]
    )
    index = veth.index if route.device else 0
    connection.transact([routes.add(route, index)])
    (record,) = routes.dump(connection, route.family, protocol=112, table=route.table)
    planned = record.planned(route.device)
    assert planned is not None
    assert planned.key == route.key
    assert (planned.type, planned.device, planned.gateway, planned.source, planned.scope) == (
        route.type,
        route.device,
        route.gateway,
        route.source,
        route.scope,
    )
    with NetNS(node.name) as oracle:
        seen = [r for r in oracle.get_routes(family=route.family.af, table=route.table) if r["proto"] == 112]
    assert len(seen) == 1
    assert seen[0]["dst_len"] == route.destination.prefixlen
    with pytest.raises(KernelError) as caught:
        connection.transact([routes.add(route, index)])
    assert caught.value.errno == errno.EEXIST
    assert str(route) in str(caught.value)
    connection.transact([routes.replace(route, index), routes.remove(route, index)])
    assert routes.dump(connection, route.family, protocol=112, table=route.table) == []


def test_a_dump_shows_only_the_protocol_and_table_asked_for(
    node: TestNamespace, connection: Connection, veth: links.LinkRecord
) -> None:
    node.sh("ip route add 10.9.0.0/16 dev left0 proto bird; ip route add 10.8.0.0/16 dev left0 table 5")
    connection.transact([routes.add(Route(ip_network("10.7.0.0/16"), "blackhole"), 0)])
    seen = {
        (protocol, table): [
            str(r.destination) for r in routes.dump(connection, Family.IPV4, protocol=protocol, table=table)
        ]
        for protocol, table in ((112, 254), (12, 254), (0, 5), (112, 5), (112, 4242))
    }
    assert seen == {
        (112, 254): ["10.7.0.0/16"],
        (12, 254): ["10.9.0.0/16"],
        (0, 5): ["10.8.0.0/16"],
        (112, 5): [],
        (112, 4242): [],
    }


def test_what_a_plan_cannot_express_is_not_taken_for_it(
    node: TestNamespace, connection: Connection, veth: links.LinkRecord
) -> None:
    node.sh("ip addr add 10.0.0.1/24 dev left0; ip route add 10.1.0.0/24 dev left0 proto 112 mtu 1000 advmss 900")
    node.sh("ip route add 10.2.0.0/24 proto 112 nexthop via 10.0.0.2 nexthop via 10.0.0.3")
    assert [r.planned("left0") for r in routes.dump(connection, Family.IPV4, protocol=112)] == [None, None]


@pytest.mark.parametrize(
    "case",
    [
        ("10.0.0.1/24", "10.0.0.2", "10.9.0.0/16", "10.9.1.1"),
        ("fd00::1/64", "fd00::2", "fd09::/64", "fd09::1"),
    ],
)
def test_lookup_tells_the_way_and_whose_route_it_is(
    connection: Connection, veth: links.LinkRecord, case: tuple[str, ...]
) -> None:
    own, gateway, net, far = case
    here = ip_interface(own)
    connection.transact([addresses.add(LinkAddress("left0", here), veth.index)])
    route = Route(ip_network(net), device="left0", gateway=ip_address(gateway), metric=9)
    connection.transact([routes.add(route, veth.index)])
    found = routes.lookup(connection, ip_address(far))
    assert (found.type, found.device, found.gateway, found.source) == (
        "unicast",
        "left0",
        ip_address(gateway),
        here.ip,
    )
    assert (found.protocol, found.table, found.metric, found.matched) == (112, 254, 9, ip_network(net))
    for _ in range(100):  # the kernel's own route to an IPv6 address comes a moment after the address
        if routes.lookup(connection, here.ip).type == "local":
            break
        time.sleep(0.01)
    assert routes.lookup(connection, here.ip).type == "local"


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("kind", ["blackhole", "unreachable"])
def test_lookup_of_what_goes_nowhere_is_an_answer(
    node: TestNamespace, connection: Connection, family: Family, kind: Literal["blackhole", "unreachable"]
) -> None:
    net = IPv4Network("10.9.0.0/16") if family is Family.IPV4 else IPv6Network("fd09::/64")
    assert routes.lookup(connection, net[1]).type == "no route"
    connection.transact([routes.add(Route(net, kind), 0)])
    found = routes.lookup(connection, net[1])
    assert (found.type, found.matched) == (kind, None)
    assert found.errno


def test_lookup_for_a_packet_that_comes_in(
    node: TestNamespace, connection: Connection, veth: links.LinkRecord
) -> None:
    connection.transact([addresses.add(LinkAddress("left0", ip_interface("10.0.0.1/24")), veth.index)])
    node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")
    found = routes.lookup(connection, ip_address("10.0.0.7"), source=ip_address("10.0.0.8"), iif="left0", mark=3)
    assert (found.type, found.device) == ("unicast", "left0")


def test_a_batch_says_which_message_failed_and_in_the_kernels_words(
    connection: Connection, veth: links.LinkRecord
) -> None:
    batch = [
        routes.add(Route(ip_network("10.1.0.0/24"), "blackhole"), 0),
        routes.add(Route(ip_network("10.2.0.0/24"), device="left0", gateway=ip_address("10.99.0.1")), veth.index),
        routes.add(Route(ip_network("10.3.0.0/24"), "blackhole"), 0),
        addresses.remove(LinkAddress("left0", ip_interface("10.4.0.1/24")), veth.index),
    ]
    failures = connection.attempt(batch)
    assert sorted(failures) == [1, 3]
    assert failures[1].kernel_says == "Nexthop has invalid gateway"
    assert "add route 10.2.0.0/24 via 10.99.0.1 dev left0" in str(failures[1])
    assert failures[3].errno == errno.EADDRNOTAVAIL
    assert len(routes.dump(connection, Family.IPV4, protocol=112)) == 2


def test_only_writes_are_counted(connection: Connection, veth: links.LinkRecord) -> None:
    before = connection.writes
    links.dump(connection), addresses.dump(connection), neighbours.dump(connection)
    routes.lookup(connection, ip_address("127.0.0.1"))
    assert connection.writes == before
    connection.transact([links.set_up("left0"), links.get("left0"), links.set_up("peer0")])
    assert connection.writes == before + 2


def test_ten_thousand_routes(connection: Connection) -> None:
    batch = [routes.add(Route(IPv4Network((0x0B000000 + (i << 8), 24)), "blackhole"), 0) for i in range(10_000)]
    connection.transact(batch)
    assert len(routes.dump(connection, Family.IPV4, protocol=112)) == 10_000
    failures = connection.attempt(batch)
    assert len(failures) == 10_000
    assert {error.errno for error in failures.values()} == {errno.EEXIST}


def test_threads_share_a_connection(connection: Connection) -> None:
    """Each thread adds, lists and removes its own routes; nobody gets another's answer."""
    errors: list[Exception] = []

    def work(base: int) -> None:
        try:
            for i in range(100):
                route = Route(IPv4Network((base + i * 256, 24)), "blackhole")
                connection.transact([routes.add(route, 0)])
                assert links.find(connection, links.LOOPBACK).name == "lo"
                found = routes.dump(connection, Family.IPV4, protocol=112)
                assert route.destination in [r.destination for r in found]
                connection.transact([routes.remove(route, 0)])
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(base << 24,)) for base in (11, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_dump_survives_changes_made_meanwhile(node: TestNamespace, connection: Connection) -> None:
    """Another connection adds and removes routes while we list: the kernel flags it, we list again."""
    base = [
        routes.add(Route(IPv6Network((i << 64, 64)), "blackhole"), 0)
        for i in range(0xFD << 56, (0xFD << 56) + 3000)
    ]
    connection.transact(base)
    stop = threading.Event()

    def churn() -> None:
        with Connection(node.fd) as other:
            route = Route(ip_network("fe00::/64"), "blackhole")
            while not stop.wait(0.002):
                other.transact([routes.add(route, 0), routes.remove(route, 0)])

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(5):
            with contextlib.suppress(KernelError):  # interrupted each time: told, instead of half a list
                found = {r.destination for r in routes.dump(connection, Family.IPV6, protocol=112)}
                assert len(found - {ip_network("fe00::/64")}) == 3000
    finally:
        stop.set()
        thread.join()
