"""Generated configurations, word for word. After a wanted change: PODWAY_UPDATE_GOLDEN=1 pytest, and a diff."""

import os
import subprocess
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest

from podway.api.addresses import Address, Family
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec, PasswordSource, PrefixRule
from podway.api.kinds.ip_pool import IPPool, When
from podway.api.kinds.network_config import BgpSettings, ReflectorSettings
from podway.api.kinds.node import ACCEPTS, INTERFACE_ADDRESSES, SENDS, Node, NodeAddress, NodeStatus
from podway.api.meta import LabelSelector, Metadata
from podway.bgp.render import render, running
from podway.plan.bgp import BgpPlan, plan_bgp
from podway.plan.uplink import Uplink
from tests import builders
from tests.bgp.test_bgp_plan import V4, V6, node, pool, view_of

GOLDEN = Path(__file__).parent / "golden"


THREE = [node(number) for number in (1, 2, 3)]
LONG_NAME = node(2, name="rack-7." + "a" * 60 + ".example.org")


def in_rack(number: int, rack: int) -> Node:
    v4, v6 = f"192.0.{rack}.{number}", f"2001:db8:{rack}::{number}"
    notes = {INTERFACE_ADDRESSES: f"{v4}/24,{v6}/64", ACCEPTS: "vxlan", SENDS: "vxlan"}
    return Node(
        metadata=Metadata(name=f"node-{number}", annotations=notes),
        status=NodeStatus(addresses=tuple(NodeAddress(type="InternalIP", address=text) for text in (v4, v6))),
    )


def across(pool: IPPool, when: When) -> IPPool:
    return msgspec.structs.replace(pool, spec=msgspec.structs.replace(pool.spec, encapsulation="vxlan", when=when))


# A reflector with a client in another rack, encapsulation, and all that a peer can be told.
RACKS = view_of(
    [
        in_rack(1, 2),
        in_rack(2, 2),
        in_rack(3, 3),
        across(V4, "cross-subnet"),
        across(V6, "always"),
        pool("10.9.0.0/24", 24),
        BGPPeer(
            metadata=Metadata(name="tor"),
            spec=BGPPeerSpec(
                address="192.0.2.254",
                asn=64601,
                password=PasswordSource(file="/etc/podway/tor"),
                bfd=True,
                ttl_security=True,
                communities=("65000:100", "65000:1:2"),
                advertise="aggregates",
                imports=(PrefixRule(cidr="0.0.0.0/0", action="accept"),),
                exports=(PrefixRule(cidr="10.9.0.0/16", action="reject", max_length=24),),
            ),
        ),
        BGPPeer(
            metadata=Metadata(name="route-server"),
            spec=BGPPeerSpec(address="2001:db8:9::1", asn=64512, multihop=3, port=1179),
        ),
    ],
    BgpSettings(
        topology="reflectors", bfd=False, reflectors=ReflectorSettings(node_selector=LabelSelector(), count=1)
    ),
)

SERVED = [
    builders.pool("outside", "198.51.100.0/28", use="services"),
    builders.pool("outside6", "2001:db8:f::/112", use="services", advertise="pool"),
]
PLAIN_PEER = BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(address="192.0.2.254", asn=64601))

PLANS = {
    "ipv4": plan_bgp(view_of([*THREE, V4]), "node-1"),
    "dual-stack": plan_bgp(view_of([*THREE, V6, V4, pool("10.9.0.0/20", 26)]), "node-1"),
    "middle": plan_bgp(view_of([*THREE, V6, V4]), "node-2"),
    "ipv6-no-bfd": plan_bgp(
        view_of(
            [node(1, (Family.IPV6,)), LONG_NAME, V6],
            BgpSettings(asn=4200000000, port=1790, bfd=False),
        ),
        "node-1",
    ),
    "alone": plan_bgp(view_of([node(1), V4]), "node-1"),
    "no-pool": plan_bgp(view_of(THREE), "node-1"),
    "services": plan_bgp(
        view_of([*THREE, V6, V4, *SERVED, PLAIN_PEER]),
        "node-1",
        services=[ip_network(text) for text in ("198.51.100.7/32", "198.51.100.2/32", "2001:db8:f::/112")],
    ),
    "partners": plan_bgp(
        view_of([*THREE, V4], BgpSettings(topology="none", bfd=False)),
        "node-1",
        partners=["node-3", "node-2", "gone"],
    ),
    "racks": plan_bgp(RACKS, "node-1", uplink=Uplink("ens5", 1500, RACKS.nodes["node-1"].interface_addresses)),
}


@pytest.mark.parametrize("name", PLANS)
def test_golden(name: str, tmp_path: Path) -> None:
    text = render(PLANS[name], Path("/run/podway/bird/bird.log"))
    golden = GOLDEN / f"{name}.conf"
    if os.environ.get("PODWAY_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_bird_accepts_it(plan: BgpPlan, tmp_path: Path) -> None:
    file = tmp_path / "bird.conf"
    file.write_text(render(plan, tmp_path / "bird.log", {"peer:tor": "s3cret"}))
    done = subprocess.run(["/usr/sbin/bird", "-p", "-c", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_of_two_nodes_one_dials() -> None:
    """Two dials at once can end a session that has just come up, and the stale routes with it."""
    view = view_of([*THREE, V6, V4])
    dialling: set[frozenset[Address]] = set()
    for name in view.nodes:
        plan = plan_bgp(view, name)
        for session in render(plan, Path("bird.log")).split("\nprotocol bgp ")[1:]:
            peer = next(peer for peer in plan.peers if f"neighbor {peer.address} port" in session)
            if "passive;" not in session:
                pair = frozenset({peer.address, plan.address(peer.family)})
                assert pair not in dialling, "the other end dials, too"
                dialling.add(pair)
    assert len(dialling) == 2 * 3, "a session of each family for each pair of nodes"


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_bird_does_is_read_back(plan: BgpPlan) -> None:
    found = running(render(plan, Path("bird.log"), {}))
    assert found.nodes == {peer.node for peer in plan.peers}
    assert found.reflects == plan.reflects
    assert found.pools == {pool.network for pool in plan.pools}
    assert found.router_id == plan.router_id
    assert found.services == set(plan.services or ())


def test_a_password_is_in_the_running_configuration_only() -> None:
    plan, log = PLANS["racks"], Path("bird.log")
    assert 'password "s3cret";' in render(plan, log, {"peer:tor": "s3cret"})
    assert 'password "(redacted)";' in render(plan, log)
    assert "disabled;" in render(plan, log, {})
