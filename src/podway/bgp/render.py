"""Writes BIRD's configuration (BIRD 2.0; its User's Guide, chapters 3 to 6), and reads back what it does."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from string import Template
from typing import NamedTuple

from podway.api.addresses import Family, Network, address_text
from podway.bgp.outside import AGGREGATE, outside_session
from podway.plan.bgp import BgpPeer, BgpPlan, BgpSection
from podway.plan.fabric import OverlayNextHop
from podway.plan.objects import ROUTE_PROTOCOL
from podway.plan.topology import RunningTopology

RESTART_TIME = 120
"""Seconds for which peers keep the routes of a node whose BIRD has gone but whose kernel still answers.

That is time for an agent's container to be replaced, where everything is slow. Should the node itself die
meanwhile, its peers find that out all the same (see liveness.py).
"""

RECOVERY_WAIT = 10
"""Seconds that a restarted BIRD waits for its peers before it removes kernel routes nobody told it again.

It must be well above the time that a large mesh needs to come back, and below RESTART_TIME. While it
waits it announces no blocks anew either; it waits for the full time only if a peer is dead (BIRD 2.0 does
not give up on one even if its session is restarted), else for about 3 seconds.
"""

LOG_BYTES = 1 << 20

NODE_PREFIXES = 50_000
"""So many routes are taken of a node or reflector at most. There are hardly more blocks; it is a last resort."""

OWN, HOST, NODE, UNUSED = 200, 150, 110, 1
"""Preferences; that of what outside peers advertise is 100."""

UPLINK = 250
"""Preference of the uplink's subnets: above BIRD's own for subnets of devices (240), so that it makes no change
when that one comes and goes."""

_HEAD = Template("""\
# BIRD on node $node. Written by Podway: changes by hand are overwritten.
# Look at what it does with: birdc -s <directory of this file>/bird.ctl show protocols

log "$log" $log_bytes "$log.old" all;
timeformat protocol "%FT%T.%3f%z";	# podway parses them: the same form today and tomorrow
timeformat route "%FT%T.%3f%z";
router id $router_id;
graceful restart wait $recovery_wait;	# after a restart: wait so long for the peers' routes

# Of several routes to one prefix the one of the highest preference wins; 100 is what outside peers advertise.
define OWN = $own;	# own blocks
define HOST = $host;	# what the machine knows by itself
define NODE = $node_preference;	# what other nodes advertise
define UNUSED = $unused;		# what leads into pools besides: any other route is better

# Which interfaces and addresses the machine has.
protocol device {
	scan time 10;
}
""")

_FAMILY = Template("""
# ---- $label ----

# The prefixes that are blocks of pod addresses: $blocks.
function is_block_$family()
{
	return $is_block;
}

# Own blocks, as opposed to what peers advertise and to what the machine knows besides.
function is_own_$family()
{
	return source = RTS_INHERIT && preference = OWN;
}

# Subnets of the machine: how next hops are reached. They go nowhere.
protocol direct direct_$family {
	$family;
}

$uplink# The kernel's main table. A block of this node is a blackhole route there, written by Podway's agent.
protocol kernel kernel_$family {
	scan time 10;		# besides the kernel's own notices
	learn;			# take routes that others than BIRD wrote
	persist;		# leave the routes in place when BIRD stops,
	graceful restart;	# and when it starts again until the peers have told theirs
	merge paths on;		# equal-cost next hops are all used (ECMP)
	$family {
		import filter {
			if krt_source = $protocol && dest = RTD_BLACKHOLE && is_block_$family() then {
				preference = OWN;
				accept;
			}
			# Nothing is rejected here: of what is, BIRD keeps a pointer to memory that it frees, and tells of
			# another prefix in its place when it looks again (krt_learn_announce_update, sysdep/unix/krt.c).
			if krt_source = $protocol || $in_pools then preference = UNUSED;
			else preference = HOST;	# how next hops in other subnets are reached
			accept;
		};
		export filter {
			if $kept_out then reject;
			if source = RTS_BGP && dest = RTD_UNREACHABLE then reject;	# there is no way to the next hop
			krt_prefsrc = $address;	# the node speaks to remote pods from its own address
$overlay_next_hops			accept;
		};
	};
}

# What all $label sessions between nodes have in common.
template bgp nodes_$family {
	local $address port $port as $asn;
	direct;			# the nodes share a layer-2 segment
	hold time 9;		# the last resort for noticing a dead peer; the first is BFD
	keepalive time 3;
	connect delay time 1;	# only one end dials (see "passive"): were both to, after the same
	connect retry time 5;	# delay, a session could come up and be restarted at once by the other dial
	error wait time 1, 5;
	graceful restart on;	# BIRD's death is not the node's: its routes still lead to its pods
	graceful restart time $restart_time;
	debug { states };
	$family {
		gateway recursive;	# a reflector advertises nodes in other subnets, too
		import limit $node_prefixes action block;
		import filter {
			if !is_block_$family() then reject;
			preference = NODE;
			accept;
		};
		export filter {
			if is_own_$family() then {
				bgp_next_hop = $address;	# and no link-local address, which BIRD would prefer
				accept;
			}
$reflects			reject;
		};
	};
}
""")

_UPLINK = Template("""\
# The uplink's subnets once more: of two addresses in one subnet, `direct` forgets the subnet with the first that
# goes (dev_ifa_notify, nest/rt-dev.c), and with it the way to every next hop in there.
protocol static uplink_$family {
	$family { preference $preference; };
$routes}

""")

_OURS = Template("""
# What no outside peer may tell: pools (but for blocks) and the networks of the nodes themselves.
function is_ours_$family()
{
	return $is_ours;
}
""")

_AGGREGATES = Template("""
# Whole pools, for peers that are told no blocks. What no block is there for is unreachable (RFC 4632, 5.1).
protocol static aggregates_$family {
	$family;
$routes}
""")

_SERVICES = Template("""
# Addresses of Services that are reached by this node: outside peers are told of them, and nobody else.
protocol static services_$family {
	$family;
$routes}
""")

_BFD = Template("""
# ---- BFD: notices within $detection ms that a node has gone silent ----
# The sessions stand alone on purpose: were they tied to BGP ("bfd on"), a killed BIRD would take its node's
# routes along. The agent reads them, asks a silent node by ICMP, and restarts the session with a dead one.
protocol bfd {
	debug { events };	# the agent wakes up by the log
	interface "*" {
		interval $interval ms;
		multiplier $multiplier;
	};
	multihop {
		interval $interval ms;
		multiplier $multiplier;
	};
$neighbours}
""")

_REFLECTS = "if preference = NODE then accept;	# this node is a route reflector (RFC 4456)"


def render(plan: BgpPlan, log: Path, passwords: Mapping[str, str] | None = None) -> str:
    """Return the configuration file of one node's BIRD: see Renderer.render."""
    return Renderer(log).render(plan, passwords)


class _Texts(NamedTuple):
    """What a section is in the file: lines for BFD, sessions, and cases of next hops by the pool and the hop.

    Pool and hop are texts: Python takes a tenth of the time for the hash of one.
    """

    neighbours: str
    sessions: str
    cases: tuple[tuple[str, str, str], ...]


class Renderer:
    """Writes the configuration file of one node's BIRD, which logs to `log` (rotated to `log`.old).

    It remembers the text of each section: in a large cluster that is where the time goes, and from one plan to the
    next it is the same but for a few.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._ground: tuple[object, ...] = ()
        """What the texts of all sections depend on besides."""
        self._texts: dict[str, tuple[BgpSection, _Texts]] = {}

    def render(self, plan: BgpPlan, passwords: Mapping[str, str] | None = None) -> str:
        """Return the file of a plan.

        `passwords` holds those of the sessions that need one, by the session's name; a session whose password is
        not there is disabled. Without `passwords` the text is for people to read, and hides them.
        """
        texts = self._texts_of(plan)
        next_hops = _grouped(texts)
        parts = [
            _HEAD.substitute(
                node=plan.node,
                log=self._log,
                log_bytes=LOG_BYTES,
                router_id=plan.router_id,
                recovery_wait=RECOVERY_WAIT,
                own=OWN,
                host=HOST,
                node_preference=NODE,
                unused=UNUSED,
            ),
            *(_family(plan, family, next_hops) for family in plan.families),
            *(_for_outside(plan, family) for family in plan.families if plan.outside),
        ]
        neighbours = "".join([each.neighbours for each in texts]) if plan.nodes_bfd else ""
        if neighbours or plan.watched or any(peer.bfd for peer in plan.outside):
            own = {address.version: address for address in plan.addresses}
            parts.append(
                _BFD.substitute(
                    interval=plan.bfd.interval,
                    multiplier=plan.bfd.multiplier,
                    detection=plan.bfd.interval * plan.bfd.multiplier,
                    neighbours=neighbours
                    + "".join(f"\tneighbor {address} local {own[address.version]};\n" for address in plan.watched),
                )
            )
        if sessions := "".join([each.sessions for each in texts]):
            parts += ["\n# ---- the other nodes ----\n", sessions]
        if plan.outside:
            parts.append("\n# ---- peers outside the cluster ----\n")
            parts += [outside_session(plan, peer, passwords) for peer in plan.outside]
        return "".join(parts)

    def _texts_of(self, plan: BgpPlan) -> list[_Texts]:
        ground = (plan.addresses, plan.asn, plan.port)
        if ground != self._ground:
            self._ground, self._texts = ground, {}
        known, found = self._texts, {}
        for name, section in plan.sections.items():
            text = known.get(name)
            # A section that did not change is the same object: to compare would take as long as to write.
            found[name] = text if text is not None and text[0] is section else (section, _texts(plan, section))
        self._texts = found
        return [text for _, text in found.values()]


def _texts(plan: BgpPlan, section: BgpSection) -> _Texts:
    own = {address.version: str(address) for address in plan.addresses}
    addresses = [address_text(peer.address) for peer in section.peers]
    peers = list(zip(section.peers, addresses, strict=True))
    cases = []
    for network, hop, next_hop in section.overlay_next_hops:
        text = address_text(hop)
        # The space before the colon keeps it apart from an IPv6 address.
        cases.append((_text(network), text, f"\t\t\t\t{text} : {{ {_redirect(next_hop)} }}\n"))
    return _Texts(
        "".join(
            f"\tneighbor {address} local {own[peer.address.version]}{_hops(peer)};\n" for peer, address in peers
        ),
        "".join(_peer(plan, peer, address) for peer, address in peers),
        tuple(cases),
    )


def running(configuration: str) -> RunningTopology:
    """Return what a BIRD with this configuration, one of ours, does."""
    pools = (part for text in _POOLS.findall(configuration) for part in text.split(", ") if " of " in part)
    return RunningTopology(
        frozenset(_NODE.findall(configuration)),
        _REFLECTS in configuration,
        frozenset(ip_network(part.partition(" of ")[2]) for part in pools),
        next(map(IPv4Address, _ROUTER_ID.findall(configuration)), None),
        frozenset(map(ip_network, _SERVICE.findall(configuration))),
    )


_NODE = re.compile(r'^protocol bgp \S+ from nodes_ipv\d \{\n\tdescription "([^"]+)";$', re.MULTILINE)
_ROUTER_ID = re.compile(r"^router id (\S+);$", re.MULTILINE)
_SERVICE = re.compile(r"^\troute (\S+) blackhole;$", re.MULTILINE)
_POOLS = re.compile(r"^# The prefixes that are blocks of pod addresses: (.*)\.$", re.MULTILINE)


_text = lru_cache(maxsize=64)(str)
"""Of a pool's network, for thousands of nodes."""


def _family(plan: BgpPlan, family: Family, next_hops: Mapping[str, Sequence[str]]) -> str:
    pools = [pool for pool in plan.pools if pool.network.version == family]
    label = family.label.lower()
    aggregates = any(_whole_pools(plan, family))
    return _FAMILY.substitute(
        label=family.label,
        family=label,
        blocks=", ".join(f"/{pool.block_prefix} of {pool.network}" for pool in pools) or "none",
        is_block=_among(f"{pool.network}{{{pool.block_prefix},{pool.block_prefix}}}" for pool in pools),
        in_pools=_among(f"{pool.network}+" for pool in pools),
        uplink=_uplink(plan, family),
        kept_out=f"source != RTS_BGP && !{AGGREGATE}" if aggregates else "source != RTS_BGP",
        overlay_next_hops="".join(_redirects(family, next_hops)),
        reflects=f"\t\t\t{_REFLECTS}\n" if plan.reflects else "",
        address=plan.address(family),
        protocol=ROUTE_PROTOCOL,
        asn=plan.asn,
        port=plan.port,
        restart_time=RESTART_TIME,
        node_prefixes=NODE_PREFIXES,
    )


def _uplink(plan: BgpPlan, family: Family) -> str:
    subnets = [network for network in plan.subnets if network.version == family]
    routes = "".join(f'\troute {network} via "{plan.uplink}";\n' for network in subnets)
    return _UPLINK.substitute(family=family.label.lower(), preference=UPLINK, routes=routes) if routes else ""


def _among(prefixes: Iterable[str]) -> str:
    """Return an expression that tells whether `net` is one of these; BIRD knows no empty set of them."""
    text = ", ".join(prefixes)
    return f"net ~ [ {text} ]" if text else "false"


def _grouped(texts: Iterable[_Texts]) -> Mapping[str, Sequence[str]]:
    """Return the cases that send routes to overlay next hops, and the pools that have these."""
    pools: dict[str, dict[str, str]] = {}
    for text in texts:
        for network, hop, case in text.cases:
            pools.setdefault(network, {})[hop] = case  # of two nodes that say the same address, the last
    found: dict[str, list[str]] = {}
    for network, cases in pools.items():
        found.setdefault("".join(cases.values()), []).append(network)
    return found


def _redirects(family: Family, next_hops: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the lines that send routes of a family to overlay next hops."""
    for cases, every in next_hops.items():
        prefixes = [f"{network}+" for network in every if (":" in network) == (family is Family.IPV6)]
        if prefixes:
            yield f"\t\t\tif {_among(prefixes)} then case bgp_next_hop {{\n{cases}\t\t\t}}\n"


def _redirect(next_hop: OverlayNextHop) -> str:
    """Return the statements that send a route to an overlay next hop, or keep it out where there is none."""
    if next_hop.gateway is None:
        return "reject;"
    room = f" krt_mtu = {next_hop.mtu};" if next_hop.mtu else ""
    return f'ifname = "{next_hop.device}"; gw = {next_hop.gateway};{room}'


def _whole_pools(plan: BgpPlan, family: Family) -> Iterable[Network]:
    """Return the pools that are told as wholes; one that is a single block is told as that."""
    if all(peer.advertise == "blocks" for peer in plan.outside if peer.family == family):
        return ()
    return [
        pool.network
        for pool in plan.pools
        if pool.network.version == family and pool.network.prefixlen < pool.block_prefix
    ]


def _for_outside(plan: BgpPlan, family: Family) -> str:
    label = family.label.lower()
    ours = _among(f"{network}+" for network in plan.ours if network.version == family)
    routes = "".join(f"\troute {network} unreachable;\n" for network in _whole_pools(plan, family))
    aggregates = _AGGREGATES.substitute(family=label, routes=routes) if routes else ""
    services = ""
    if plan.services is not None:
        told = "".join(f"\troute {network} blackhole;\n" for network in plan.services if network.version == family)
        services = _SERVICES.substitute(family=label, routes=told)
    return _OURS.substitute(family=label, is_ours=ours) + aggregates + services


def _hops(peer: BgpPeer) -> str:
    return "" if peer.direct else " multihop on"


def waits_to_be_dialled(plan: BgpPlan, peer: BgpPeer) -> bool:
    """Tell whether the node leaves it to another to open their session: the one of the higher address does.

    BIRD takes a connection from a peer with which a session stands for the sign of a graceful restart, and a
    second one, while stale routes of the first are left, for the order to drop these (RFC 4724, section 4.2;
    bgp_incoming_connection and bgp_handle_graceful_restart in proto/bgp/bgp.c). When both ends dial at the same
    moment, as after a restart, the dial that lost may be such a second connection: it waits in the listening
    socket's queue while the other is established.
    """
    return int(plan.address(peer.family)) > int(peer.address)


def _peer(plan: BgpPlan, peer: BgpPeer, address: str) -> str:
    # A reflector is made one by its export filter alone: to change "rr client" would restart the session.
    lines = "" if peer.direct else "\tmultihop;\n"
    if waits_to_be_dialled(plan, peer):
        lines += "\tpassive;\n"
    if peer.asn == plan.asn:
        lines += "\trr client;\n"
    return f"""
protocol bgp '{peer.name}' from nodes_ipv{peer.address.version} {{
	description "{peer.node}";
	neighbor {address} port {plan.port} as {peer.asn};
{lines}}}
"""
