"""A node tells its addresses and their subnets in two writes: what others, and itself, plan between them."""

from ipaddress import ip_interface
from itertools import product
from typing import Any

import msgspec
import pytest

from podway.api.kinds.ip_pool import Distribution, Encapsulation, When
from podway.api.kinds.node import ACCEPTS, INTERFACE_ADDRESSES, SENDS, Node
from podway.cluster.view import ClusterView
from podway.plan.bgp import plan_bgp
from podway.plan.changes import KINDS
from podway.plan.node import plan_node
from podway.plan.objects import TunnelSource
from podway.plan.uplink import Uplink
from tests import builders

OTHERS = {
    "near": ("172.30.0.1/24", "fd30::1/64"),
    "far": ("172.31.0.3/24", "fd31::3/64"),
    "four": ("172.30.0.4/24",),
    "six": ("fd30::5/64",),
}
FOUR, SIX = ("172.30.0.2/24",), ("fd30::2/64",)
SENT = {"none": "", "vxlan": "vxlan,vxlan6", "ipip": "ipip"}


def node(name: str, addresses: tuple[str, ...], subnets: tuple[str, ...], sent: str) -> Node:
    known = builders.node(name, *addresses, notes={ACCEPTS: sent, SENDS: sent})
    notes = {**known.metadata.annotations, INTERFACE_ADDRESSES: ",".join(subnets)}
    return msgspec.structs.replace(known, metadata=msgspec.structs.replace(known.metadata, annotations=notes))


def everything(view: ClusterView, name: str, addresses: tuple[str, ...]) -> dict[Any, Any]:
    """Return what a node plans, by key: kernel objects, sessions, ways. Sources of nobody's count for none."""
    uplink = Uplink("eth0", 1500, tuple(map(ip_interface, addresses)))
    kernel, bgp = plan_node(view, name, uplink), plan_bgp(view, name, uplink=uplink)
    own = {ip_interface(address).ip for address in addresses}
    found: dict[Any, Any] = {
        (field, obj.key): obj
        for field in KINDS.values()
        for obj in getattr(kernel, field)
        if not (isinstance(obj, TunnelSource) and obj.sender in own)
    }
    found |= {("session", peer.name): peer for peer in bgp.peers}
    return found | {
        ("way", pool, hop): way for pool, ways in bgp.overlay_next_hops.items() for hop, way in ways.items()
    }


@pytest.mark.parametrize("encapsulation", list(SENT))
@pytest.mark.parametrize("families", [(FOUR, FOUR + SIX), (SIX, FOUR + SIX)], ids=["IPv6", "IPv4"])
def test_nothing_is_planned_that_is_neither_what_was_nor_what_comes(
    encapsulation: Encapsulation, families: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    """A family comes, its subnet first, or goes, its subnet last: each object is as before, or as after."""
    fewer, more = families
    whens: tuple[When, ...] = ("always", "cross-subnet")
    distributions: tuple[Distribution, ...] = ("store", "bgp")
    for when, distribution in product(whens if encapsulation != "none" else whens[:1], distributions):
        carried: Encapsulation = "none" if encapsulation == "ipip" else encapsulation
        pools = [
            builders.pool(
                "p4", "10.244.0.0/16", encapsulation=encapsulation, when=when, distribution=distribution
            ),
            builders.pool("p6", "fd00:244::/96", block_size=112, encapsulation=carried, distribution=distribution),
        ]
        owners = list(enumerate(["here", *OTHERS]))
        blocks = [builders.block(f"10.244.{number}.0/24", "p4", owner) for number, owner in owners]
        blocks += [builders.block(f"fd00:244::{number}:0/112", "p6", owner) for number, owner in owners]
        others = [node(name, known, known, SENT[encapsulation]) for name, known in OTHERS.items()]
        one, between, other = (
            ClusterView.of([*pools, *blocks, *others, node("here", told, subnets, SENT[encapsulation])])
            for told, subnets in ((fewer, fewer), (fewer, more), (more, more))
        )
        # The node itself has the addresses that it is about to tell.
        for name, own in (*OTHERS.items(), ("here", fewer), ("here", more)):
            first, middle, last = (everything(view, name, own) for view in (one, between, other))
            for key in first.keys() | middle.keys() | last.keys():
                assert middle.get(key) in (first.get(key), last.get(key))
