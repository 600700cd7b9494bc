"""Packets led through firewall rules in thought: real nft and iptables make the rules, and words are read back."""

from ipaddress import ip_address
from typing import Any

import pytest

from podway.health.ruleset import Ruleset, from_iptables
from podway.health.sources.firewall import list_here
from podway.health.traversal import Packet, drop_of
from podway.kernel import netns

POD, OTHER = ip_address("10.244.1.5"), ip_address("10.244.2.5")


def forwarded(protocol: str | None = None, dport: int | None = None) -> Packet:
    return Packet("forward", POD, OTHER, "pway0", "eth0", protocol, dport)


def drops(rules: Ruleset, packet: Packet) -> bool | None:
    """True or False for what is certain, None for what may be."""
    drop = drop_of(rules, packet)
    return False if drop is None else True if drop.certain else None


NFT_RULES = {
    "ip saddr 10.244.0.0/16 drop": True,
    "ip saddr != 10.244.0.0/16 drop": False,
    "ip daddr 10.244.2.1-10.244.2.9 drop": True,
    "ip6 saddr != fd00::/8 drop": False,
    "ip saddr { 192.0.2.1, 10.244.0.0/16 } counter log reject": True,
    'iifname "pway*" drop': True,
    'iifname { "eth0", "lo" } drop': False,
    'oifname != "eth0" drop': False,
    "ct state { established, related } drop": False,
    "ct state new drop": True,
    "ct state vmap { established : accept, new : drop }": True,
    "meta mark & 0x4000 == 0x4000 drop": False,
    "meta nfproto ipv6 drop": False,
    "ip saddr 10.244.0.0/16 tcp dport 25 drop": None,
    "tcp dport 25 drop": False,
    "ip saddr 10.244.0.0/16 limit rate 1/second drop": None,
    "ip saddr 10.244.0.0/16 accept; drop": False,
    "limit rate 1/second accept; drop": None,
    "jump sub; drop": False,
    "goto sub": False,
    'iifname vmap { "pway0" : goto bad }': True,
    "ip daddr @named drop": False,  # most are block lists
    "return; drop": False,
}


@pytest.mark.kernel
@pytest.mark.parametrize("rule", NFT_RULES)
def test_what_nft_rules_do_to_a_pods_packet(node: Any, rule: str) -> None:
    lines = "\n".join(rule.split("; "))
    table = f"""table inet t {{
        set named {{ type ipv4_addr; elements = {{ 192.0.2.1 }}; }}
        chain sub {{ accept; }}
        chain bad {{ drop; }}
        chain f {{ type filter hook forward priority 0; policy accept;
            {lines}
        }}
    }}"""
    node.run("nft", "-f", "-", input=table)
    assert drops(netns.run(node.fd, list_here).rules, forwarded()) is NFT_RULES[rule]


@pytest.mark.kernel
def test_our_own_table_is_left_out_and_what_translates_drops_nothing(node: Any) -> None:
    node.run("nft", "-f", "-", input="""
        table inet podway { chain f { type filter hook forward priority 0; policy drop; }; }
        table ip n { chain p { type nat hook prerouting priority -100; policy drop; }; }
    """)  # fmt: skip
    rules = netns.run(node.fd, list_here).rules
    assert [(chain.table, chain.translates) for chain in rules.chains] == [("n", True)]
    assert drops(rules, forwarded()) is False


@pytest.mark.kernel
def test_an_accept_in_one_table_does_not_save_from_another(node: Any) -> None:
    node.run("nft", "-f", "-", input="""
        table ip a { chain f { type filter hook forward priority -10; accept; }; }
        table ip b { chain f { type filter hook forward priority 10; policy drop; }; }
    """)  # fmt: skip
    drop = drop_of(netns.run(node.fd, list_here).rules, forwarded())
    assert drop is not None
    assert drop.certain
    assert drop.chain.table == "b"


IPTABLES_RULES = {
    "-s 10.244.0.0/16 -j DROP": True,
    "! -s 10.244.0.0/16 -j DROP": False,
    "-i pway+ -o eth0 -j REJECT --reject-with icmp-port-unreachable": True,
    "-m conntrack --ctstate RELATED,ESTABLISHED -j DROP": False,
    "-m conntrack --ctstate NEW -m comment --comment 'a b' -j DROP": True,
    "-s 10.244.0.0/16 -p tcp -m tcp --dport 25 -j DROP": None,
    "-p tcp -m multiport --dports 25,80:90 -j DROP": False,
    "-s 10.244.0.0/16 -m limit --limit 5/sec -j DROP": None,
    "-j LOG --log-prefix x": False,
    "-g OTHER": False,
}


@pytest.mark.kernel
@pytest.mark.parametrize("rule", IPTABLES_RULES)
def test_what_legacy_rules_do_to_a_pods_packet(node: Any, rule: str) -> None:
    node.sh(f"iptables-legacy -N OTHER; iptables-legacy -A OTHER -j ACCEPT; iptables-legacy -A FORWARD {rule}")
    found = netns.run(node.fd, list_here)
    assert not found.unread
    assert drops(found.rules, forwarded()) is IPTABLES_RULES[rule]


def test_a_port_is_compared_where_it_is_known() -> None:
    rules = from_iptables(
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 170:180 -j DROP\n", tool="iptables"
    )
    bgp = Packet("input", POD, OTHER, "eth0", None, "tcp", 179)
    assert drops(rules, bgp) is True
    assert drops(rules, Packet("input", POD, OTHER, "eth0", None, "udp", 179)) is False
    assert drops(rules, Packet("input", POD, OTHER, "eth0", None, "tcp", 443)) is False
