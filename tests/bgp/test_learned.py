"""Routes of BIRD's that somebody alters: with several ways, and with an encapsulated one, they are put right."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from podway.agent.learned import LearnedRoutes
from podway.api.kinds.node import ACCEPTS, SENDS
from podway.kernel.node import Kernel
from podway.reconcile.repairs import Repairs
from podway.reconcile.state import NodeState
from tests.bgp.bgp_lab import LabNode, Segment, tells
from tests.patience import eventually

pytestmark = pytest.mark.kernel


def told(repairs: Repairs) -> list[str]:
    return [repair.what for repair in repairs]


@contextmanager
def keeper(node: LabNode) -> Iterator[tuple[LearnedRoutes, Repairs]]:
    """What an agent does for its BIRD's routes, with the words that it tells of repairs."""
    repairs = Repairs()
    state = cast(
        NodeState, SimpleNamespace(uplink=SimpleNamespace(node_addresses=node.resource.internal_addresses))
    )

    async def begin() -> tuple[Kernel, LearnedRoutes, "asyncio.Task[None]"]:
        kernel = Kernel.open()
        learned = LearnedRoutes(node.speaker, state, repairs)
        return kernel, learned, asyncio.ensure_future(learned.run())

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        kernel.close()

    kernel, learned, task = node.run(begin())
    try:
        yield learned, repairs
    finally:
        node.run(end())


def ways(node: LabNode, block: str) -> set[tuple[str, str]]:
    route: dict[str, Any] = node.routes().get(block, {})
    hops = route.get("nexthops") or ([route] if route else [])
    return {(hop["dev"], hop.get("gateway") or hop["via"]["host"]) for hop in hops}


def test_a_route_over_several_ways(segment: Segment) -> None:
    (one,) = segment.add(1)
    segment.pools = segment.pools[:1]
    segment.bgp = msgspec.structs.replace(segment.bgp, topology="none")
    tors = [segment.outside(101), segment.outside(102)]
    for tor in tors:
        tor.start(tor.session(one), tells("10.244.9.0/24"))
    segment.objects = [tor.peer() for tor in tors]
    one.start([one])
    both = {("eth0", tor.address) for tor in tors}
    eventually(lambda: ways(one, "10.244.9.0/24") == both)
    with keeper(one) as (learned, repairs):
        one.ip("route", "replace", "10.244.9.0/24", "via", tors[0].address, "metric", "32", "proto", "bird")
        one.loop.call_soon_threadsafe(learned.trigger)
        eventually(lambda: ways(one, "10.244.9.0/24") == both)
        eventually(lambda: told(repairs))
        assert "route 10.244.9.0/24 via 192.0.2.101 dev eth0 and via 192.0.2.102 dev eth0" in told(repairs)[0]
        assert learned.failures == ()


def overlay(node: LabNode) -> None:
    """Make the device that packets are encapsulated by, as an agent would."""
    local = ("local", f"192.0.2.{node.number}")
    node.ip("link", "add", "podway-vxlan", "type", "vxlan", "id", "4096", "dstport", "4789", *local)
    node.ip("link", "set", "podway-vxlan", "addrgenmode", "none", "up")
    node.ip("address", "add", f"fe80::70:c0ff:fe00:20{node.number}/64", "dev", "podway-vxlan", "nodad")


def test_an_encapsulated_route(segment: Segment) -> None:
    """It is there even if BIRD was told of it before its device was made."""
    one, two = segment.add(2)
    segment.encapsulation = "vxlan"
    for node in (one, two):
        node.notes = {ACCEPTS: "vxlan", SENDS: "vxlan"}
    overlay(two)
    for node in (one, two):
        node.start(segment.nodes)
    eventually(lambda: segment.complete(two))
    there = {("podway-vxlan", "fe80::70:c0ff:fe00:202")}
    with keeper(one) as (learned, repairs):
        assert ways(one, two.block4) == ways(one, two.block6) == set()
        overlay(one)
        one.loop.call_soon_threadsafe(learned.trigger)
        eventually(lambda: ways(one, two.block4) == there == ways(one, two.block6))
        eventually(lambda: len(told(repairs)) == 2)
        one.ip("route", "replace", two.block4, "via", "192.0.2.2", "metric", "32", "proto", "bird")
        one.ip("-6", "route", "del", two.block6)
        one.loop.call_soon_threadsafe(learned.trigger)
        eventually(lambda: ways(one, two.block4) == there == ways(one, two.block6))
        eventually(lambda: len(told(repairs)) == 4)
        assert learned.failures == ()


def all_ways(node: LabNode) -> dict[str, set[tuple[str, str]]]:
    return {block: ways(node, block) for block in node.routes()}


def birdc(node: LabNode, *command: str) -> str:
    program = ("/usr/sbin/birdc", "-s", str(node.run_dir / "bird.ctl"))
    return subprocess.run([*program, *command], capture_output=True, text=True, check=True).stdout


def come_and_go(node: LabNode, address: str) -> None:
    """Give the node an address for a moment, until BIRD has seen both."""
    node.ip("address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    eventually(lambda: address in birdc(node, "show", "interfaces"))
    node.ip("address", "del", address, "dev", "eth0")
    eventually(lambda: address not in birdc(node, "show", "interfaces"))


@pytest.mark.parametrize("second", ["192.0.2.201/24", "2001:db8::201/64"])
def test_a_subnet_stays_for_as_long_as_an_address_of_it_does(segment: Segment, second: str) -> None:
    """BIRD forgets a device's subnet with the first address that goes; the uplink's it has by itself, too."""
    one, _ = segment.start(2)
    before, changes = all_ways(one), one.route_changes()
    come_and_go(one, second)
    assert all_ways(one) == before
    found = birdc(one, "show", "route", "for", second.partition("/")[0])
    assert "uplink_ipv" in found
    assert ":" not in second or "direct_ipv6" not in found
    assert not [change for change in changes() if "Deleted" in change and "proto bird" in change]


def test_a_subnet_that_bird_lost_is_found_again(segment: Segment) -> None:
    """As on every device but the uplink, where nothing but `direct` knows of it."""
    one, two = segment.add(2)
    one.uplink = None
    for node in (one, two):
        node.start(segment.nodes)
    eventually(lambda: segment.complete(one) and segment.complete(two))
    before = all_ways(one)
    with keeper(one) as (learned, repairs):
        come_and_go(one, "2001:db8::201/64")
        eventually(lambda: two.block6 not in one.routes())
        one.loop.call_soon_threadsafe(learned.trigger)
        eventually(lambda: all_ways(one) == before)
        eventually(lambda: told(repairs))
        assert (
            f"route {two.block6}, learned from node-2.ipv6: BIRD lost the way to its next hop" in told(repairs)[0]
        )
        assert learned.lost == ()


def test_a_route_without_any_way_to_its_next_hop_is_told(segment: Segment) -> None:
    (one,) = segment.add(1)
    reflector = segment.outside(101)
    nowhere = "import none; export filter { bgp_next_hop = 203.0.113.9; accept; };"
    reflector.start(reflector.session(one, "local as 64512", channel=nowhere), tells("10.244.9.0/24"))
    segment.objects = [reflector.peer(asn=64512)]
    one.start([one])
    eventually(lambda: "10.244.9.0/24" in birdc(one, "show", "route"))
    with keeper(one) as (learned, repairs):
        one.loop.call_soon_threadsafe(learned.trigger)
        eventually(lambda: learned.lost)
        assert "route 10.244.9.0/24, learned from peer:tor-101" in learned.lost[0]
        one.ip("route", "add", "203.0.113.0/24", "via", "192.0.2.101")
        eventually(lambda: ways(one, "10.244.9.0/24") == {("eth0", "192.0.2.101")})
        eventually(lambda: learned.lost == ())
        assert (learned.failures, told(repairs)) == ((), [])
