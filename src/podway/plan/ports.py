"""What a node's bridge takes from its ports: on a LAN, too, a pod speaks only as itself.

Frames between two ports do not pass the IP layer, so they are looked at where they come out of a port. That
they bear its pod's hardware address the bridge itself sees to (`locked`, podway.kernel.rtnl.bridge); which
addresses that one speaks for stands in two sets, whose elements come with a pod's wiring and go with it.
"""

from collections.abc import Collection, Iterable

from podway.api.addresses import Address, Family, Network, link_local
from podway.plan.objects import LINK_GROUP, NFT_TABLE, NftElement, NftSet, NftTable, nft_number

PORTS: dict[Family, str] = {Family.IPV4: "pods4", Family.IPV6: "pods6"}
"""The sets of the bridge's table that hold which hardware address speaks for which address."""

_MAC_BYTES = 6

_TABLE = """
\tset pods4 {{
\t\ttypeof @ll,48,48 . @nh,96,32
\t}}
\tset pods6 {{
\t\ttypeof @ll,48,48 . @nh,64,128
\t}}
\tchain over_ipv4 {{
\t\t@ll,48,48 . @nh,96,32 != @pods4 counter drop
\t\tip protocol tcp accept
\t\ticmp type {{ 5, 9 }} counter drop
\t\ticmp type {{ 3, 4, 11, 12 }} @ll,48,48 . @th,192,32 @pods4 accept
\t\ticmp type {{ 3, 4, 11, 12 }} counter drop
\t\tudp sport 67 counter drop
\t}}
\tchain resolution {{
\t\t@nh,0,48 != 0x000108000604 counter drop
\t\t@nh,64,48 . @nh,112,32 @pods4 @ll,48,48 . @nh,112,32 @pods4 accept
\t\t@nh,48,16 1 @nh,112,32 0 @nh,64,48 . @nh,192,32 @pods4 @ll,48,48 . @nh,192,32 @pods4 accept
\t\tcounter drop
\t}}
\tchain unspecified {{
\t\tip6 nexthdr icmpv6 icmpv6 type 135 @ll,48,48 . @th,64,128 @pods6 accept
\t\ticmpv6 type {{ 131, 132, 133, 143 }} accept
\t\tcounter drop
\t}}
\tchain solicitation {{
\t\tip6 nexthdr icmpv6 ip6 length 24 accept
\t\tip6 nexthdr icmpv6 ip6 length 32 @th,192,16 0x0101 @th,208,48 . @nh,64,128 @pods6 accept
\t\tcounter drop
\t}}
\tchain advertisement {{
\t\tip6 nexthdr icmpv6 ip6 length 24 @ll,48,48 . @th,64,128 @pods6 accept
\t\tip6 nexthdr icmpv6 ip6 length 32 @th,192,16 0x0201 @ll,48,48 . @th,64,128 @pods6 \
@th,208,48 . @th,64,128 @pods6 accept
\t\tcounter drop
\t}}
\tchain over_ipv6 {{
\t\t@nh,64,128 0x0 goto unspecified
\t\t@ll,48,48 . @nh,64,128 != @pods6 counter drop
\t\tip6 nexthdr tcp accept
\t\ticmpv6 type {{ 134, 137 }} counter drop
\t\ticmpv6 type {{ 1, 2, 3, 4 }} @ll,48,48 . @th,256,128 @pods6 accept
\t\ticmpv6 type {{ 1, 2, 3, 4 }} counter drop
\t\ticmpv6 type 135 goto solicitation
\t\ticmpv6 type 136 goto advertisement
\t\tudp sport 547 counter drop
\t}}
\tchain port {{
\t\tether type ip goto over_ipv4
\t\tether type ip6 goto over_ipv6
\t\tether type arp goto resolution
\t\tcounter drop
\t}}
\tchain prerouting {{
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tmeta iifgroup {group} goto port
\t}}
"""
"""What may come out of a port: IPv4, IPv6 and ARP (RFC 826), from and about the pod's own addresses.

ARP: sender and frame must agree; a probe (RFC 5227) asks for the pod's own address. Neighbour discovery
(RFC 4861): no option but the link-layer address, and that is the frame's; an advertisement's target is the pod's
own, and so is that of a solicitation from no address (duplicate-address detection, RFC 4862). From no address
there are also reports of multicast listeners (RFC 3590) and solicitations of routers. No DHCP server answers.
A packet that has been cut so that rules cannot read what they ask for is not taken.
"""


def port_guard(lan: Collection[Network]) -> tuple[NftTable, ...]:
    """Return the table of what a node's bridge takes from its ports; none if it has no bridge.

    Its sets hold the hardware address of each port's pod beside each of the pod's addresses (`port_elements`).
    """
    sets = tuple(NftSet(name, (_MAC_BYTES, family.bits // 8)) for family, name in PORTS.items())
    return (NftTable("bridge", NFT_TABLE, _TABLE.format(group=LINK_GROUP), sets),) if lan else ()


def port_elements(mac: str, addresses: Iterable[Address]) -> tuple[NftElement, ...]:
    """Return what the bridge's rules must know of a port's pod before it may send."""
    held = tuple(addresses)
    if any(address.version == 6 for address in held):
        held = (*held, link_local(mac).ip)
    number = nft_number(bytes.fromhex(mac.replace(":", "")))
    return tuple(
        NftElement("bridge", NFT_TABLE, PORTS[Family.of(address)], (number, nft_number(address.packed)))
        for address in held
    )
