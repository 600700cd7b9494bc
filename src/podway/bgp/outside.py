"""The parts of BIRD's configuration that are for peers outside the cluster."""

from collections.abc import Mapping, Sequence

from podway.api.meta import REDACTED
from podway.plan.bgp import BgpPlan
from podway.plan.outside import OutsidePeer, Prefixes

AGGREGATE = "(source = RTS_STATIC && dest = RTD_UNREACHABLE)"
"""The condition by which filters know a whole pool, as opposed to the uplink's subnets and Services' addresses.

In BIRD `&&` binds no tighter than `||` (conf/confbase.Y): where both meet, parentheses stand.
"""

SERVICE = "(source = RTS_STATIC && dest = RTD_BLACKHOLE)"
"""The condition by which filters know an address of a Service."""


def outside_session(plan: BgpPlan, peer: OutsidePeer, passwords: Mapping[str, str] | None) -> str:
    """Return the protocol of one session.

    BFD is bound to it: what dies with the peer's BIRD or FRR is the way by the peer. The own AS number is let
    pass in what the peer advertises (RFC 4271, section 9.1.2): nodes of one AS behind switches of another reach
    each other so, and no loop can form, since a node passes on nothing that an outside peer advertised.
    """
    family = peer.family.label.lower()
    options = [
        f'description "{peer.peer}"',
        f"local {peer.local} port {plan.port} as {plan.asn}",
        f"neighbor {peer.address} port {peer.port} as {peer.asn}",
        f"multihop {peer.ttl}" if peer.ttl else "direct",
    ]
    if peer.ttl_security:
        options.append("ttl security on")
    if peer.bfd:
        options.append("bfd on")
    if peer.asn != plan.asn:
        options.append("allow local as")
    if peer.password:
        known = REDACTED if passwords is None else passwords.get(peer.name)
        options.append("disabled" if known is None else f'password "{known}"')
    head = "".join(f"\t{option};\n" for option in options)
    # Routes that a peer in our own AS reflects lead to next hops that it does not stand on the way to.
    gateway = "\t\tgateway recursive;\n" if peer.asn == plan.asn else ""
    return f"""
protocol bgp '{peer.name}' {{
{head}	hold time 9;
	keepalive time 3;
	connect delay time 1;
	connect retry time 5;
	error wait time 1, 5;
	graceful restart on;
	debug {{ states }};
	{family} {{
{gateway}		import limit {peer.max_prefixes} action block;
		import filter {{
			if is_ours_{family}() && !is_block_{family}() then reject;
{_rules(peer.imports)}			if is_block_{family}() then accept;
			reject;
		}};
		export filter {{
			if !({_told(plan, peer)}) then reject;
{_communities(peer.communities)}{_rules(peer.exports)}			accept;
		}};
	}};
}}
"""


def _told(plan: BgpPlan, peer: OutsidePeer) -> str:
    services = "" if plan.services is None else f" || {SERVICE}"
    return _told_of_pods(plan, peer) + services


def _told_of_pods(plan: BgpPlan, peer: OutsidePeer) -> str:
    own = f"is_own_{peer.family.label.lower()}()"
    if peer.advertise == "blocks":
        return own
    # A pool that is one single block has no aggregate: it is told as that block.
    single = [
        str(pool.network)
        for pool in plan.pools
        if pool.network.version == peer.family and pool.network.prefixlen == pool.block_prefix
    ]
    return f"{AGGREGATE} || ({own} && net ~ [ {', '.join(single)} ])" if single else AGGREGATE


def _rules(rules: Sequence[Prefixes]) -> str:
    return "".join(
        f"\t\t\tif net ~ [ {rule.network}{{{rule.shortest},{rule.longest}}} ] then "
        f"{'accept' if rule.accept else 'reject'};\n"
        for rule in rules
    )


def _communities(communities: Sequence[tuple[int, ...]]) -> str:
    return "".join(
        f"\t\t\t{'bgp_community' if len(community) == 2 else 'bgp_large_community'}"
        f".add(({', '.join(map(str, community))}));\n"
        for community in communities
    )
