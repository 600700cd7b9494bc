"""What the node takes from pods: the rules that make a pod speak only as itself, as nftables tables.

An IPv4 pod's source address is seen to by strict rp_filter on its link; all else is seen to here, in the first
hook that a packet from a pod's link meets, so that it holds for the node, its other pods and everybody beyond.

*Sources*: only from an address that is routed to the link (IPv6; IPv4 where the host makes rp_filter loose).

*ICMP errors*: only about a packet that was sent to this pod. Whoever hears an error takes its word for what it
quotes (RFC 1191, RFC 8201: the path MTU), and asks nobody where it comes from. nftables compares a packet's
fields with a set's elements, not with one another, so the rule itself first puts the source twice into a set,
and then asks it for the source beside the quoted destination.

*Routers' words*: no redirects and no router advertisements. A pod is no router.

*Neighbours*: no scans. A packet to an address of the uplink's subnet has the node ask who has it, and the kernel
keeps so many neighbours (gc_thresh3) for the whole machine, asked-for ones too. A pod may try some addresses a
second, and all pods together half as many a minute as the kernel keeps.

*Tunnels*: no packets to nodes that have the form of those that nodes send each other. Nodes take them from nodes
only, but on the way there somebody's masquerading may make a pod's source the node's.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from podway.api.addresses import Address, Family, Network, address_text
from podway.cluster.view import ClusterView
from podway.plan.fabric import required_modes
from podway.plan.objects import (
    BRIDGE_DEVICE,
    LINK_GROUP,
    NFT_TABLE,
    NftElement,
    NftField,
    NftSet,
    NftTable,
    NodePlan,
)

NODES = "nodes"
"""The set that holds the addresses of all nodes."""

NFT_FAMILY: dict[Family, Literal["ip", "ip6"]] = {Family.IPV4: "ip", Family.IPV6: "ip6"}

ElementFields: TypeAlias = tuple[Family, tuple[str]]
"""An address as the fields of an element of a set of addresses, and its family."""


class _Words(NamedTuple):
    """How nft's rules about one family are put."""

    address_type: NftField
    source: str
    quoted: str
    """The destination in the header that an ICMP error quotes, behind the eight bytes of its own."""
    icmp: str
    errors: str
    routers: str
    """Types of message with which routers, and nobody else, tell hosts what to do."""


_WORDS: dict[Family, _Words] = {
    # RFC 792; source quench (RFC 6633 has it dropped) among the errors.
    Family.IPV4: _Words("ipv4_addr", "@nh,96,32", "@th,192,32", "icmp", "3, 4, 11, 12", "5, 9"),
    # RFC 4443, section 2.1, those that everybody knows; RFC 4861, section 4.
    Family.IPV6: _Words("ipv6_addr", "@nh,64,128", "@th,256,128", "icmpv6", "1, 2, 3, 4", "134, 137"),
}

_TABLE = """
\tset {nodes} {{
\t\ttype {words.address_type}
\t}}
\tset answered {{
\t\ttypeof {words.source} . {words.quoted}
\t\tsize 65536
\t\tflags dynamic,timeout
\t\ttimeout 10s
\t}}
\tset near {{
\t\ttype {words.address_type}
\t\tsize {most}
\t\tflags dynamic,timeout
\t\ttimeout 1m
\t}}
\tset asking {{
\t\ttype {words.address_type}
\t\tsize 65536
\t\tflags dynamic,timeout
\t\ttimeout 1m
\t}}
\tchain unknown {{
{pools}\t\t{ip} daddr @near return
{late_source}\t\tupdate @asking {{ {ip} saddr limit rate over 20/second burst 60 packets }} counter drop
\t\tadd @near {{ {ip} daddr }}
\t\t{ip} daddr @near return
\t\tcounter drop
\t}}
\tchain control {{
\t\t{words.icmp} type {{ {words.routers} }} counter drop
\t\t{words.icmp} type != {{ {words.errors} }} accept
{late_source}\t\tupdate @answered {{ {words.source} . {words.source} }}
\t\t{words.source} . {words.quoted} @answered accept
\t\tcounter drop
\t}}
\tchain foreign {{
{usual}\t\tcounter drop
\t}}
\tchain pod {{
{source}{subnet}\t\tmeta l4proto {words.icmp} goto control
{tunnelled}\t}}
\tchain prerouting {{
\t\ttype filter hook prerouting priority raw; policy accept;
{at_once}\t\tmeta iifgroup {group} goto pod
{bridge}\t}}
"""

_SOURCE = "\t\tfib saddr . iif oif missing goto foreign\n"
_USUAL = "\t\ticmpv6 type { 131, 132, 133, 143 } drop\n"
"""What every IPv6 host says now and then from its link-local address is dropped (nobody here asks for routers or
groups) without being counted: what is counted should not have been sent."""
_AT_ONCE = "\t\tmeta l4proto tcp {beyond}accept\n"
"""The first rule is the one that every packet pays for, most of which are TCP: nothing below concerns that."""


def plan_pod_guard(
    view: ClusterView, node: str, *, subnets: Collection[Network] = (), neighbours: int, loose: bool, bridge: bool
) -> NodePlan:
    """Return the tables of what a node takes from its pods, and the element of their sets that stands for itself.

    `subnets` are the uplink's, at most one a family. `neighbours` is how many of them the kernel keeps. `loose`
    tells that the host overrules strict rp_filter, `bridge` that there are pods on a bridge.
    """
    tunnels = tuple(_tunnels(view, node))
    bodies = {family: _body(view, family, subnets, neighbours, tunnels, loose, bridge) for family in Family}
    tables = [
        NftTable(NFT_FAMILY[family], NFT_TABLE, body, (NftSet(NODES, (_WORDS[family].address_type,)),))
        for family, body in bodies.items()
    ]
    here = view.nodes.get(node)
    elements = node_elements(element_fields(here.own_addresses)) if here and tunnels else ()
    return NodePlan(tables=tuple(tables), elements=elements)


def _body(
    view: ClusterView,
    family: Family,
    subnets: Collection[Network],
    neighbours: int,
    tunnels: Collection[str],
    loose: bool,
    bridge: bool,
) -> str:
    words, ip = _WORDS[family], NFT_FAMILY[family]
    early = family is Family.IPV6 or loose
    subnet = next((subnet for subnet in subnets if subnet.version == family), None)
    # Where the uplink's subnet is so wide that pods are in it, packets to those ask for nobody.
    networks = [pool.network for pool in view.pools.values() if pool.network.version == family]
    pools = sorted(str(network) for network in networks if subnet and network.overlaps(subnet))
    return _TABLE.format(
        nodes=NODES,
        words=words,
        ip=ip,
        group=LINK_GROUP,
        most=max(1, neighbours // 2),
        source=_SOURCE if early else "",
        usual=_USUAL if family is Family.IPV6 else "",
        # Forged ones would fill the sets; rp_filter looks only later.
        late_source="" if early else _SOURCE,
        at_once="" if early else _AT_ONCE.format(beyond=f"ip daddr != {subnet} " if subnet else ""),
        subnet=f"\t\t{ip} daddr {subnet} {ip} daddr != @{NODES} jump unknown\n" if subnet else "",
        pools="".join(f"\t\t{ip} daddr {cidr} return\n" for cidr in pools),
        tunnelled="".join(f"\t\t{asked} {ip} daddr @{NODES} counter drop\n" for asked in tunnels),
        bridge=f'\t\tmeta iifname "{BRIDGE_DEVICE}" goto pod\n' if bridge else "",
    )


def _tunnels(view: ClusterView, node: str) -> Iterator[str]:
    """Yield what tells the packets of each kind of tunnel that nodes take."""
    taken = required_modes(view, node)
    if "vxlan" in taken:
        yield f"udp dport {view.config.vxlan.port}"
    if "ipip" in taken:
        yield "meta l4proto 4"


def takes_tunnels(view: ClusterView, node: str) -> bool:
    """Tell whether a node takes tunnelled packets, so that its rules must know all nodes."""
    return any(_tunnels(view, node))


def element_fields(addresses: Iterable[Address]) -> tuple[ElementFields, ...]:
    """Return a node's addresses as `node_elements` and those of other tables take them."""
    return tuple((Family.of(address), (address_text(address),)) for address in addresses)


def node_elements(fields: Iterable[ElementFields]) -> tuple[NftElement, ...]:
    """Return the elements that stand for a node of these addresses where tunnelled packets are taken."""
    return tuple(NftElement(NFT_FAMILY[family], NFT_TABLE, NODES, text) for family, text in fields)
