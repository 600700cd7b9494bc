"""Writes the configuration of the BGP speaker on a top-of-rack router, for BIRD 2 or FRR.

As in a data centre that routes with eBGP alone (RFC 7938): an AS for each router, which has a session with every
other router over the spine, and takes one from any host of its rack's subnet without knowing it by name.
Every session carries the routes of its own family. Next hops inside a rack stay what the node said, so that
its neighbours send to it straight.
"""

from ipaddress import IPv4Address
from string import Template

from podway.api.addresses import Family
from podway.lab.fabric import Fabric, in_family, tor_asn
from podway.plan.bgp import Bfd

MAX_PATHS = 64
"""How many equal-cost paths a router uses at once."""

HOLD, KEEPALIVE = 9, 3
"""Seconds after which a silent peer is given up, and between signs of life (RFC 4271, section 10)."""

_ROUTER_IDS = int(IPv4Address("192.0.2.0"))
"""Documentation addresses (RFC 5737): no node has one for its own identifier."""

_BIRD = Template("""\
# BIRD on router tor$rack. Written by Podway's lab.
log stderr all;
router id $router_id;

protocol device {
}

protocol bfd {
	interface "*" {
		interval $interval ms;
		multiplier $multiplier;
	};
}
""")

_BIRD_FAMILY = Template("""
protocol kernel kernel_$family {
	merge paths on limit $paths;
	$family {
		import none;	# what others wrote is not told to anybody
		export where source = RTS_BGP;
	};
}

template bgp fabric_$family {
	hold time $hold;
	keepalive time $keepalive;
	connect delay time 1;
	connect retry time 2;
	error wait time 1, 5;
	$family {
		import all;
		export where source = RTS_BGP;
	};
}

protocol bgp nodes_$family from fabric_$family {
	local $gateway as $asn;
	neighbor range $subnet external;
	dynamic name "node_${family}_";
	bfd on;
}
""")

_BIRD_ROUTER = Template("""
protocol bgp tor${other}_$family from fabric_$family {
	local $spine as $asn;
	neighbor $address as $peer_asn;
}
""")

_FRR = Template("""\
! FRR on router tor$rack. Written by Podway's lab.
frr defaults datacenter
hostname tor$rack
router bgp $asn
 bgp router-id $router_id
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp bestpath as-path multipath-relax
 bgp listen limit 1000
 timers bgp $keepalive $hold
""")

_FRR_GROUP = Template("""\
 neighbor nodes-$family peer-group
 neighbor nodes-$family remote-as external
 neighbor nodes-$family bfd
 neighbor nodes-$family bfd $multiplier $interval $interval
 bgp listen range $subnet peer-group nodes-$family
""")

_FRR_ROUTER = Template("""\
 neighbor $address remote-as $peer_asn
 neighbor $address description tor$other
 neighbor $address timers connect 2
""")


def render_bird(fabric: Fabric, rack: int, bfd: Bfd) -> str:
    """Return the configuration file of BIRD on a rack's router."""
    parts = [_BIRD.substitute(_common(fabric, rack, bfd))]
    for family in _families(fabric):
        settings = _of_family(fabric, rack, family) | _common(fabric, rack, bfd)
        parts.append(_BIRD_FAMILY.substitute(settings))
        parts += [_BIRD_ROUTER.substitute(settings | other) for other in _others(fabric, rack, family)]
    return "".join(parts)


def render_frr(fabric: Fabric, rack: int, bfd: Bfd) -> str:
    """Return the configuration file of FRR's bgpd on a rack's router."""
    common = _common(fabric, rack, bfd)
    sessions, activations = [], []
    for family in _families(fabric):
        settings = _of_family(fabric, rack, family) | common
        routers = _others(fabric, rack, family)
        sessions.append(_FRR_GROUP.substitute(settings))
        sessions += [_FRR_ROUTER.substitute(other) for other in routers]
        neighbours = [f"nodes-{settings['family']}", *(other["address"] for other in routers)]
        activations += [
            f" address-family {settings['family']} unicast\n",
            *(f"  neighbor {neighbour} activate\n" for neighbour in neighbours),
            f"  maximum-paths {MAX_PATHS}\n",
            " exit-address-family\n",
        ]
    return "".join([_FRR.substitute(common), *sessions, *activations])


def _families(fabric: Fabric) -> list[Family]:
    return [Family.of(network) for network in fabric.estate]


def _common(fabric: Fabric, rack: int, bfd: Bfd) -> dict[str, object]:
    return {
        "rack": rack,
        "asn": tor_asn(rack),
        "router_id": IPv4Address(_ROUTER_IDS + rack),
        "interval": bfd.interval,
        "multiplier": bfd.multiplier,
        "paths": MAX_PATHS,
        "hold": HOLD,
        "keepalive": KEEPALIVE,
    }


def _of_family(fabric: Fabric, rack: int, family: Family) -> dict[str, object]:
    return {
        "family": family.label.lower(),
        "gateway": in_family(fabric.gateways(rack), family),
        "spine": in_family(fabric.spine(rack), family),
        "subnet": next(subnet for subnet in fabric.subnets(rack) if subnet.version == family),
    }


def _others(fabric: Fabric, rack: int, family: Family) -> list[dict[str, object]]:
    return [
        {"other": other, "address": in_family(fabric.spine(other), family), "peer_asn": tor_asn(other)}
        for other in fabric.numbers
        if other != rack
    ]
