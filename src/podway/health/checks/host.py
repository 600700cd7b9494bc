"""The kernel and its settings."""

from collections.abc import Iterator

from podway.api.addresses import Family
from podway.health.facts import FORWARDING, NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.plan.host_facts import ACCEPT_RA
from podway.plan.overlays import RP_FILTER

STRICT = 1
"""rp_filter: drop what comes in by another device than the answer would leave by (RFC 3704, section 2.2)."""
RTPROT_RA = 9


@node_check(
    "kernel",
    looks_at="kernel version, capabilities, and the features Podway needs, each tried in a namespace made for it",
    why="without them no pod can be attached",
    caused=False,
)
def kernel(facts: NodeFacts) -> Iterator[Problem]:
    """The agent tries these when it starts; a module may be gone since."""
    if facts.settings.unsupported:
        said, _, hint = facts.settings.unsupported.partition("\n  hint: ")
        yield Problem(said, hint or "see README.md for what Podway needs")


@node_check(
    "forwarding",
    looks_at="the forwarding settings of the uplink (IPv4) and of the whole node (IPv6), and accept_ra",
    why="a node that does not forward drops every packet between its pods and the network",
)
def forwarding(facts: NodeFacts) -> Iterator[Problem]:
    """IPv4 asks the incoming device, IPv6 the whole namespace."""
    uplink = facts.memory.uplink
    for family, template in FORWARDING.items():
        path = template.format(device=uplink.device)
        if facts.settings.number(path) == 0:
            yield Problem(
                f"{path} is 0",
                f"sysctl -w {path}=1, and find what clears it: grep -r forward /etc/sysctl.d /etc/sysctl.conf",
                uplink.device if family is Family.IPV4 else "",
            )
    accept = ACCEPT_RA.format(device=uplink.device)
    advertised = any(
        route.protocol == RTPROT_RA and not route.destination.prefixlen and route.device == uplink.device
        for route in facts.network.routes
    )
    if advertised and facts.settings.number(accept) == 1:
        yield Problem(
            "the IPv6 default route comes from router advertisements, which a forwarding node does not accept: "
            "it will expire",
            f"sysctl -w {accept}=2",
            uplink.device,
            Severity.WARNING,
        )


@node_check(
    "rp-filter",
    looks_at="rp_filter of the uplink (the larger of `all` and the device counts) beside the ways back to pods",
    why="strict rp_filter drops packets that come in by another device than answers to them would leave by",
)
def rp_filter(facts: NodeFacts) -> Iterator[Problem]:
    """Strict is harmless as long as all ways lead through the uplink."""
    uplink = facts.memory.uplink.device
    values = [facts.settings.number(RP_FILTER.format(device=device)) or 0 for device in ("all", uplink)]
    elsewhere = [
        route
        for route in facts.network.block_routes
        if route.device not in {"", uplink} and route.block.version == 4
    ]
    dropped = facts.settings.grown("TcpExt.IPReversePathFilter")
    if max(values) == STRICT and elsewhere:
        route = elsewhere[0]
        counted = f"; {dropped} packets dropped by it since the last look" if dropped else ""
        yield Problem(
            f"rp_filter is {STRICT}, strict (all {values[0]}, {uplink} {values[1]}), and the way to {route.block} "
            f"leads through {route.device}{counted}",
            f"lead {route.block} through {uplink} again, or: sysctl -w net.ipv4.conf.{uplink}.rp_filter=2",
            uplink,
        )
