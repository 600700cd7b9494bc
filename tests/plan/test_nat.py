"""Which packets are translated, as the rules say it and as traces ask."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podway.api.addresses import Family
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.network_config import NatSettings
from podway.api.kinds.node import ACCEPTS, NAT_ADDRESSES, SENDS
from podway.api.meta import Metadata
from podway.cluster.view import ClusterView
from podway.plan.guard import element_fields
from podway.plan.nat import (
    is_translated,
    kept_networks,
    nat_elements,
    nat_families,
    plan_nat,
    plan_nat_sets,
    translation_words,
)
from podway.plan.node import plan_node
from podway.plan.objects import NftElement
from podway.plan.uplink import Uplink
from tests import builders

CONFIG = builders.config(
    nat=NatSettings(excluded=("10.0.0.0/8", "2001:db8:1::/48")), service_cidrs=("10.96.0.0/12",)
)
PEER = BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(address="192.0.2.254", asn=65001))


def view(*more: Any, encapsulation: Any = "none", notes: dict[str, str] | None = None) -> ClusterView:
    modes = {ACCEPTS: encapsulation, SENDS: encapsulation} if encapsulation != "none" else {}
    return ClusterView.of(
        [
            builders.node("here", "172.30.0.1/24", "fd30::1/64", notes={**modes, **(notes or {})}),
            builders.node("there", "172.30.0.2/24", "fd30::2/64", notes=modes),
            builders.pool("four", "10.244.0.0/16", encapsulation=encapsulation),
            builders.pool("six", "fd00:244::/56", nat_outgoing=False),
            *more,
        ]
    )


def test_the_rules_of_a_node_with_a_bridge_and_vxlan_in_words() -> None:
    (table,) = plan_nat(view(CONFIG, PEER, encapsulation="vxlan"), "here", bridge=True).tables
    assert (table.family, table.name, [each.name for each in table.sets]) == ("ip", "podway-nat", ["nodes"])
    told = [line.strip() for line in table.body.splitlines() if line.strip()]
    assert told == [
        "set nodes {",
        "type ipv4_addr",
        "}",
        "chain leaving {",
        "ip saddr != { 10.244.0.0/16 } return",
        "ip daddr { 10.0.0.0/8, 192.0.2.254/32, 224.0.0.0/4 } return",
        "ip daddr @nodes return",
        "meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn return",
        "masquerade fully-random",
        "}",
        "chain postrouting {",
        "type nat hook postrouting priority srcnat; policy accept;",
        "meta iifgroup 1886871929 goto leaving",
        'meta iifname "cni0" goto leaving',
        "}",
        "chain outer_in {",
        "type filter hook prerouting priority raw; policy accept;",
        "udp dport 4789 ip saddr @nodes notrack",
        "}",
        "chain outer_out {",
        "type filter hook output priority raw; policy accept;",
        "udp dport 4789 ip daddr @nodes notrack",
        "}",
    ]


def test_without_a_pool_that_asks_for_it_a_family_has_the_bare_set_and_without_a_pool_nothing() -> None:
    six = plan_nat_sets(view()).tables[1]
    assert (six.family, "chain" in six.body) == ("ip6", False)
    assert [table.family for table in plan_nat(view(), "here", bridge=False).tables] == ["ip"]
    assert plan_nat_sets(ClusterView.of([])).tables == ()
    assert nat_elements(element_fields(view().nodes["there"].own_addresses), frozenset()) == ()


def test_a_plan_knows_other_nodes_once_each() -> None:
    cluster = view()
    uplink = Uplink("eth0", 1500, cluster.nodes["here"].interface_addresses)
    found = [each for each in plan_node(cluster, "here", uplink).elements if each.table == "podway-nat"]
    assert found == [
        NftElement("ip", "podway-nat", "nodes", ("172.30.0.2",)),
        NftElement("ip6", "podway-nat", "nodes", ("fd30::2",)),
    ]
    assert nat_families(cluster) == {Family.IPV4, Family.IPV6}


def test_a_chosen_address_is_its_familys() -> None:
    cluster = view(notes={NAT_ADDRESSES: "203.0.113.7,2001:db8::7"})
    (table,) = plan_nat(cluster, "here", bridge=False).tables
    assert "snat to 203.0.113.7 fully-random" in table.body
    ends = ip_address("10.244.1.2"), ip_address("198.51.100.1")
    assert translation_words(cluster, "here", *ends) == "snat to 203.0.113.7"
    assert translation_words(cluster, "there", *ends) == "masquerade"


def test_what_is_kept_is_told_without_what_lies_in_another() -> None:
    assert kept_networks(view(CONFIG), Family.IPV4) == tuple(map(ip_network, ("10.0.0.0/8", "224.0.0.0/4")))
    assert ip_network("2001:db8:1::/48") in kept_networks(view(CONFIG), Family.IPV6)


@pytest.mark.parametrize(
    ("source", "destination", "translated"),
    [
        ("10.244.1.2", "198.51.100.1", True),
        ("10.244.1.2", "192.0.2.253", True),
        ("10.244.1.2", "192.0.2.254", False),  # a peer
        ("10.244.1.2", "10.244.7.7", False),
        ("10.244.1.2", "10.7.7.7", False),
        ("10.244.1.2", "10.96.0.10", False),
        ("10.244.1.2", "172.30.0.2", False),
        ("10.244.1.2", "172.30.0.3", True),  # a machine in the nodes' subnet that is no node
        ("10.244.1.2", "224.0.0.5", False),
        ("172.30.0.1", "198.51.100.1", False),
        ("10.245.1.2", "198.51.100.1", False),
        ("fd00:244::2", "2001:db8:2::1", False),  # its pool does not ask for it
    ],
)
def test_which_packets_are_translated(source: str, destination: str, *, translated: bool) -> None:
    assert is_translated(view(CONFIG, PEER), ip_address(source), ip_address(destination)) is translated
