"""The way to every block, joined from the store, the kernel and BIRD."""

from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

from podway.agent.routes import Via, node_routes
from podway.api.kinds.ip_pool import Distribution
from podway.bgp.status import BirdRoute, NextHop
from podway.cluster.view import ClusterView
from podway.kernel.rtnl import routes
from podway.kernel.rtnl.routes import RouteRecord
from tests.builders import block, pool

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = {2: "eth0", 7: "podway-vxlan"}


def record(
    cidr: str, gateway: str, index: int, *, metric: int = 32, protocol: int = 12, **given: Any
) -> RouteRecord:
    known: dict[str, Any] = {
        "type": "unicast",
        "source": None,
        "scope": "global",
        "table": 254,
        "tos": 0,
        "plain": True,
        **given,
    }
    via = ip_address(gateway) if gateway else None
    return RouteRecord(ip_network(cidr), index=index, gateway=via, metric=metric, protocol=protocol, **known)


def learned(cidr: str, session: str) -> BirdRoute:
    hops = (NextHop(ip_address("172.30.0.2"), "eth0"),)
    return BirdRoute(ip_network(cidr), "unicast", session, NOW, best=True, next_hops=hops)


def view(*owners: str, distribution: Distribution = "bgp") -> ClusterView:
    told = pool("p", "10.0.0.0/16", distribution=distribution)
    blocks = [block(f"10.0.{number}.0/24", "p", owner) for number, owner in enumerate(owners)]
    return ClusterView.of([told, *blocks])


def test_the_route_that_the_kernel_takes_first_decides_who_told_it() -> None:
    own = record("10.0.0.0/24", "", 0, metric=0, protocol=112, type="blackhole")
    by_bird = record("10.0.1.0/24", "172.30.0.2", 2)
    by_store = record("10.0.1.0/24", "fe80::1", 7, metric=31, protocol=112)
    known = [learned("10.0.1.0/24", "n2.ipv4")]
    mine, theirs = node_routes(view("n1", "n2"), "n1", [own, by_bird], NAMES, known)
    assert (mine.protocol, mine.node, mine.in_kernel, mine.session) == ("own", "n1", True, "")
    assert (theirs.protocol, theirs.session, theirs.encapsulation, theirs.since) == ("bgp", "n2.ipv4", "none", NOW)
    _, theirs = node_routes(view("n1", "n2"), "n1", [own, by_bird, by_store], NAMES, known)
    assert (theirs.protocol, theirs.session, theirs.encapsulation) == ("store", "", "vxlan")
    assert theirs.next_hops == (Via("fe80::1", "podway-vxlan"),)
    other = record("10.0.1.0/24", "192.0.2.9", 2, metric=5, protocol=4)
    _, theirs = node_routes(view("n1", "n2"), "n1", [by_bird, other], NAMES, known)
    assert (theirs.protocol, theirs.next_hops) == ("4", (Via("192.0.2.9", "eth0"),))


def test_what_the_kernel_lacks_is_told_as_it_should_be() -> None:
    both = node_routes(view("n2", "n3"), "n1", [], NAMES, [learned("10.0.0.0/24", "n2.ipv4")])
    assert [(one.in_kernel, one.protocol, one.session) for one in both] == [
        (False, "bgp", "n2.ipv4"),
        (False, "bgp", ""),
    ]
    [told] = node_routes(view("n2", distribution="store"), "n1", [], NAMES, [])
    assert (told.in_kernel, told.protocol, told.next_hops) == (False, "store", ())


def test_several_ways_and_networks_of_outside_peers() -> None:
    hops = tuple(routes.NextHop(2, ip_address(f"172.30.0.{number}"), 1) for number in (2, 3))
    several = record("192.0.2.0/24", "", 0, next_hops=hops)
    [told] = node_routes(view(), "n1", [several], NAMES, [learned("192.0.2.0/24", "peer:tor")])
    assert (told.node, told.pool, told.session) == ("", "", "peer:tor")
    assert [via.gateway for via in told.next_hops] == ["172.30.0.2", "172.30.0.3"]
