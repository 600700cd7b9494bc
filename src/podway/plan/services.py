"""Services for who is not a pod: the node's own processes, pods of the host's network, and clients outside.

The kernel's connection tracking translates what they begin (nftables' hooks of nat), by maps that are keyed
by address, protocol and port: a connection costs the same few look-ups, however many Services there are. The rules
are the same for all of them, and never change with them; what is in the maps changes one by one
(podway.services.node_maps), and is no part of a plan.

*Choosing.* `services` leads an address and port to a chain for its number of places, a power of two. That draws a
place, and `backends` says who has it. Where a place is free, nothing is found and the next rule draws again; after
some draws one of the lower half is drawn, in which none is free. So no Service needs rules of its own, and the
chances of two backends differ by two in a hundred at most.

*Staying.* With session affinity a client's former backend is looked for first, in `affinity`, where it is noted
whom a connection was led to once it is translated. `stays` leads to the chain that notes it for so many seconds,
which comes and goes like the maps' elements (podway.kernel.nft.affinity). What is noted outlives the agent; who is
not there any more is struck out by it.

*Where to.* Connections need a way before they are translated, and take their source from it. So the ranges of
Services' addresses have a route by the uplink, whose source is the address by which pods know the node. Who has
chosen another address of the node for itself gets that one as its source, or no answer would find back.

*From outside* the same maps lead, but for Services whose `externalTrafficPolicy` is Local: `outside` says to whom
of this node these lead who is no pod. A client keeps its address on its way to a pod of this node, whose policies
see it, and whose answer comes by here anyway. To others it goes as this node, or the answer would not come here:
what is sent to a cluster's address, and to a backend in `served`, so that what others translate is left alone.

*Nobody there* is told before a packet leaves: refused or dropped as services.maps says. What no Service has of the
ranges is dropped.
"""

from collections.abc import Iterator

from podway.api.addresses import Address, Family, Network
from podway.api.fields import PROTOCOLS
from podway.api.kinds.service import MOST_ENDPOINTS
from podway.cluster.view import ClusterView
from podway.plan.guard import NFT_FAMILY
from podway.plan.host_facts import USUAL_HOST, HostFacts
from podway.plan.mtu import pool_mtu
from podway.plan.objects import BRIDGE_DEVICE, LINK_GROUP, NFT_SERVICES_TABLE, NftTable, NodePlan, Route, Scope
from podway.plan.uplink import Uplink

DRAWS = 6
"""How often a place is drawn before only the half of them is tried."""

KEPT = (
    *("services", "outside", "refused", "refused_outside", "backends", "stays"),
    *("cluster", "served", "fenced", "allowed"),
)
"""The maps and sets whose elements come and go with Services."""

KEEPING = "keep_"
"""What the names of chains begin with that come and go with Services; the rest is a number of seconds."""

AFFINITY = "affinity"
"""The map that packets fill: whom clients were led to."""

_MAPS = """\
	map services {{
		type {type} . inet_proto . inet_service : verdict
	}}
	map outside {{
		type {type} . inet_proto . inet_service : verdict
	}}
	map refused {{
		type {type} . inet_proto . inet_service : verdict
	}}
	map refused_outside {{
		type {type} . inet_proto . inet_service : verdict
	}}
	map backends {{
		typeof {ip} daddr . meta l4proto . tcp dport . numgen random mod 2 : {ip} daddr . tcp dport
	}}
	map stays {{
		type {type} . inet_proto . inet_service : verdict
	}}
	map {affinity} {{
		type {type} . inet_proto . inet_service . {type} : {type} . inet_service
		size {clients}
		flags dynamic,timeout
	}}
	set cluster {{
		type {type}
	}}
	set served {{
		type {type} . inet_proto . inet_service
	}}
	set fenced {{
		type {type} . inet_proto . inet_service
	}}
	set allowed {{
		type {type} . inet_proto . inet_service . {type}
		flags interval
	}}
"""

_DRAW = "\t\tdnat to {ip} daddr . meta l4proto . th dport . {draw} mod {places}{more} map @backends\n"

_FIRST = "\tchain unused {{\n{rule}\t}}\n"
"""Nothing leads there. Where a type is said by `typeof`, a port has to be TCP's, for libnftables 1.0.6 cannot read
`th dport` back there; but it has the first rule that asks such a map ask for TCP, too."""

_SAME = "\t\tdnat to {ip} daddr . meta l4proto . th dport . {ip} saddr map @{affinity}\n"

_NOTED = "\t\tmeta l4proto {protocol} ct original {ip} daddr . meta l4proto . ct original proto-dst vmap @stays\n"
"""What a port is, nft only knows where a rule says of which protocol."""

_CHAINS = """\
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		reject with {icmp} type port-unreachable
	}}
	chain note {{
{noted}	}}
	chain drop_it {{
		drop
	}}
	chain unserved {{
		{ip} daddr . meta l4proto . th dport vmap @refused
		{ip} daddr @cluster goto refuse
{ranges}	}}
	chain output {{
		type nat hook output priority {nat}; policy accept;
		{ip} daddr . meta l4proto . th dport vmap @services
	}}
	chain output_unserved {{
		type filter hook output priority {after}; policy accept;
		ct state new ct status dnat goto note
		ct state new jump unserved
	}}
	chain fence {{
		{ip} daddr . meta l4proto . th dport . {ip} saddr @allowed return
		drop
	}}
	chain prerouting_fence {{
		type filter hook prerouting priority {fence}; policy accept;
		ct state new {ip} daddr . meta l4proto . th dport @fenced goto fence
	}}
	chain prerouting_local {{
		type filter hook prerouting priority {before}; policy accept;
{pods}		ct state new {ip} daddr . meta l4proto . th dport vmap @refused_outside
	}}
	chain inside {{
		{ip} daddr . meta l4proto . th dport vmap @services
	}}
	chain prerouting {{
		type nat hook prerouting priority {nat}; policy accept;
{inside}		{ip} daddr . meta l4proto . th dport vmap @outside
		goto inside
	}}
	chain prerouting_unserved {{
		type filter hook prerouting priority {after}; policy accept;
		ct state new ct status dnat goto note
		ct state new jump unserved
	}}
	chain source {{
		oifname "lo" return
		{ip} saddr {source} return
		fib saddr type local snat to {source}
		meta oifgroup {group} return
		oifname "{bridge}" return
		snat to {source}
	}}
	chain postrouting {{
		type nat hook postrouting priority {source_nat}; policy accept;
		ct status dnat ct original {ip} daddr @cluster goto source
		ct status dnat {ip} daddr . meta l4proto . th dport @served goto source
	}}
"""

_FENCE, _BEFORE, _NAT, _AFTER, _SOURCE_NAT = -101, -100, -99, -98, 99
"""Behind others' translation of destinations (-100, such as host ports), ahead of that of sources (100)."""

_TYPE: dict[Family, str] = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}
_ICMP: dict[Family, str] = {Family.IPV4: "icmp", Family.IPV6: "icmpv6"}

_PROTOCOLS = tuple(name.lower() for name in PROTOCOLS)

CLIENTS = 1 << 18
"""Clients of Services with session affinity of which a node remembers the backend; of more, nothing is noted."""


def plan_services(view: ClusterView, uplink: Uplink, *, engine: bool) -> NodePlan:
    """Return what a node needs so that its own processes reach Services; nothing unless settings ask for it.

    Of a family of which there are ranges of Services' addresses, and an address of the node. `engine`: the flow
    engine judges pods' packets; without it nobody reads Services.
    """
    if view.config.services != "all" or not engine:
        return NodePlan()
    tables, routes = [], []
    for family, source in served_families(view, uplink):
        tables.append(
            _table(
                family,
                source,
                _ranges(view, family),
                [pool.network for pool in view.pools.values() if pool.family is family],
            )
        )
        mtu = min((pool_mtu(view, uplink, pool) for pool in view.pools.values()), default=uplink.mtu)
        routes += [
            Route(network, device=uplink.device, source=source, scope=_SCOPE[family], mtu=mtu)
            for network in _ranges(view, family)
        ]
    return NodePlan(tables=tuple(tables), routes=tuple(routes))


_SCOPE: dict[Family, Scope] = {Family.IPV4: "link", Family.IPV6: "global"}
"""Of a route without a gateway; IPv6 knows no such thing."""


def served_families(view: ClusterView, uplink: Uplink) -> Iterator[tuple[Family, Address]]:
    """Yield the families of which a node's processes are served, with the address by which pods know the node."""
    for source in uplink.sources:
        family = Family.of(source)
        if _ranges(view, family):
            yield family, source


def node_port_addresses(view: ClusterView, uplink: Uplink, host: HostFacts = USUAL_HOST) -> tuple[Address, ...]:
    """Return the addresses at which a node serves node ports, of each served family, in order.

    Its uplink's, or those of the node's that are within the networks that settings name: no loopback, which no
    packet comes to from elsewhere, and no link-local one.
    """
    if view.config.services != "all":
        return ()
    primary = dict(served_families(view, uplink))
    networks = view.config.node_port_networks
    if not networks:
        return tuple(primary.values())
    return tuple(
        one
        for one in host.addresses
        if Family.of(one) in primary
        and not (one.is_loopback or one.is_link_local)
        and any(one.version == network.version and one in network for network in networks)
    )


def _ranges(view: ClusterView, family: Family) -> list[Network]:
    return [network for network in view.config.service_networks if network.version == family]


def _table(family: Family, source: Address, ranges: list[Network], pods: list[Network]) -> NftTable:
    ip = NFT_FAMILY[family]
    chains = "".join((*_choosing(family, "", 0), *_choosing(family, "outside_", MOST_ENDPOINTS)))
    rest = _CHAINS.format(
        ip=ip,
        icmp=_ICMP[family],
        # Nothing here is a set without a name: such cannot be changed without the maps (NftTable.kept).
        ranges="".join(f"\t\t{ip} daddr {one} drop\n" for one in ranges),
        pods="".join(f"\t\t{ip} saddr {one} return\n" for one in pods),
        inside="".join(f"\t\t{ip} saddr {one} goto inside\n" for one in pods),
        noted="".join(_NOTED.format(ip=ip, protocol=protocol) for protocol in _PROTOCOLS),
        group=LINK_GROUP,
        bridge=BRIDGE_DEVICE,
        before=_BEFORE,
        fence=_FENCE,
        source=source,
        nat=_NAT,
        after=_AFTER,
        source_nat=_SOURCE_NAT,
    )
    maps = _MAPS.format(ip=ip, type=_TYPE[family], clients=CLIENTS, affinity=AFFINITY)
    first = _FIRST.format(rule=_DRAW.format(ip=ip, draw="numgen random", places=1, more=""))
    return NftTable(ip, NFT_SERVICES_TABLE, maps + first + chains + rest, kept=KEPT, others=KEEPING)


def _choosing(family: Family, word: str, first: int) -> Iterator[str]:
    """Yield the chains that choose among so many places from one on: any, or the same as last time."""
    ip = NFT_FAMILY[family]
    more = f" offset {first}" if first else ""
    places = 1
    while places <= MOST_ENDPOINTS:
        draw = _DRAW.format(ip=ip, draw="numgen random", places=places, more=more)
        last = _DRAW.format(ip=ip, draw="numgen random", places=max(1, places // 2), more=more)
        yield f"\tchain {word}any_{places} {{\n{draw * DRAWS if places > 1 else ''}{last}\t}}\n"
        same = _SAME.format(ip=ip, affinity=AFFINITY)
        yield f"\tchain {word}same_{places} {{\n{same}\t\tgoto {word}any_{places}\n\t}}\n"
        places *= 2
