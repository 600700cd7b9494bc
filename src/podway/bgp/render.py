"""Writes BIRD's configuration (BIRD 2.0; its User's Guide, chapters 3 to 6)."""

from pathlib import Path
from string import Template

from podway.api.addresses import Family
from podway.plan.bgp import BgpPeer, BgpPlan
from podway.plan.objects import ROUTE_PROTOCOL

RESTART_TIME = 30
"""Seconds for which peers keep the routes of a node whose BIRD has gone but whose kernel still answers."""

RECOVERY_WAIT = 10
"""Seconds that a restarted BIRD waits for its peers before it removes kernel routes nobody told it again.

It must be well above the time that a large mesh needs to come back, and below RESTART_TIME. While it
waits it announces no blocks anew either; it waits for the full time only if a peer is dead (BIRD 2.0 does
not give up on one even if its session is restarted), else for about 3 seconds.
"""

LOG_BYTES = 1 << 20

_HEAD = Template("""\
# BIRD on node $node. Written by Podway: changes by hand are overwritten.
# Look at what it does with: birdc -s <directory of this file>/bird.ctl show protocols

log "$log" $log_bytes "$log.old" all;
timeformat protocol "%FT%T.%3f%z";	# podway parses them: the same form today and tomorrow
timeformat route "%FT%T.%3f%z";
router id $router_id;
graceful restart wait $recovery_wait;	# after a restart: wait so long for the peers' routes

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
	return net ~ [ $set ];
}

# The kernel's main table. A block of this node is a blackhole route there, written by Podway's agent.
protocol kernel kernel_$family {
	scan time 10;		# besides the kernel's own notices
	learn;			# take routes that others than BIRD wrote
	persist;		# leave the routes in place when BIRD stops,
	graceful restart;	# and when it starts again until the peers have told theirs
	$family {
		import filter {
			if krt_source = $protocol && dest = RTD_BLACKHOLE && is_block_$family() then {
				preference = 200;	# an own block beats whatever a peer says of it
				accept;
			}
			reject;
		};
		export filter {
			if source != RTS_BGP then reject;
			krt_prefsrc = $address;	# the node speaks to remote pods from its own address
			accept;
		};
	};
}

# What all $label sessions have in common.
template bgp mesh_$family {
	local $address port $port as $asn;
	direct;			# the nodes share a layer-2 segment
	hold time 9;		# the last resort for noticing a dead peer; the first is BFD
	keepalive time 3;
	connect delay time 1;
	connect retry time 5;
	error wait time 1, 5;
	graceful restart on;	# BIRD's death is not the node's: its routes still lead to its pods
	graceful restart time $restart_time;
	debug { states };
	$family {
		next hop self;
		import where is_block_$family();	# preference 100: never in place of an own block
		export where source = RTS_INHERIT;	# what was learned from the kernel: own blocks
	};
}
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
$neighbours}
""")


def render(plan: BgpPlan, log: Path) -> str:
    """Return the configuration file of one node's BIRD, which logs to `log` (rotated to `log`.old)."""
    parts = [
        _HEAD.substitute(
            node=plan.node,
            log=log,
            log_bytes=LOG_BYTES,
            router_id=plan.router_id,
            recovery_wait=RECOVERY_WAIT,
        ),
        *(_family(plan, family) for family in plan.families),
    ]
    # Address to text is what takes the time in a large mesh: once for each will do.
    own = {address.version: str(address) for address in plan.addresses}
    peers = [(peer, str(peer.address)) for peer in plan.peers]
    if plan.bfd and peers:
        parts.append(
            _BFD.substitute(
                interval=plan.bfd.interval,
                multiplier=plan.bfd.multiplier,
                detection=plan.bfd.interval * plan.bfd.multiplier,
                neighbours="".join(
                    f"\tneighbor {address} local {own[peer.address.version]};\n" for peer, address in peers
                ),
            )
        )
    if peers:
        parts.append("\n# ---- the other nodes ----\n")
        parts += [_peer(plan, peer, address) for peer, address in peers]
    return "".join(parts)


def _family(plan: BgpPlan, family: Family) -> str:
    pools = [pool for pool in plan.pools if pool.network.version == family]
    return _FAMILY.substitute(
        label=family.label,
        family=family.label.lower(),
        blocks=", ".join(f"/{pool.block_prefix} of {pool.network}" for pool in pools),
        set=", ".join(f"{pool.network}{{{pool.block_prefix},{pool.block_prefix}}}" for pool in pools),
        address=plan.address(family),
        protocol=ROUTE_PROTOCOL,
        asn=plan.asn,
        port=plan.port,
        restart_time=RESTART_TIME,
    )


def _peer(plan: BgpPlan, peer: BgpPeer, address: str) -> str:
    return f"""
protocol bgp '{peer.name}' from mesh_ipv{peer.address.version} {{
	description "{peer.node}";
	neighbor {address} port {plan.port} as {peer.asn};
}}
"""
