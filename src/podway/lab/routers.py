"""The top-of-rack routers of a lab: each holds its rack's gateway addresses and knows the way to other racks.

      nodes of rack 1                                              nodes of rack 2
            │                                                            │
    rack1 (bridge)                                               rack2 (bridge)
            │ rack                                                       │ rack
    podway-<lab>-tor1 ── spine ──── spine (bridge) ──── spine ── podway-<lab>-tor2

The routers are the kernel's. Their routes between racks are static; of pods they know nothing, unless a BGP
speaker on them is told (podway.lab.speakers).
"""

from collections.abc import Mapping

from podway.api.addresses import Family
from podway.kernel import netns, sysctls
from podway.kernel.requests import LOOPBACK, set_link_up
from podway.lab import names, topology
from podway.lab.fabric import Fabric, in_family
from podway.lab.state import LabNode
from podway.plan.objects import Route, Sysctl

RACK_SIDE, SPINE_SIDE = "rack", "spine"

SETTINGS = (
    Sysctl("net/ipv4/ip_forward", "1"),
    Sysctl("net/ipv6/conf/all/forwarding", "1"),
    # Devices made later take what is in `default`; the two sides may well answer by different ways.
    Sysctl("net/ipv4/conf/all/rp_filter", "0"),
    Sysctl("net/ipv4/conf/default/rp_filter", "0"),
    # A pod's packet that its router sends back into the rack says nothing about the rack's other hosts.
    Sysctl("net/ipv4/conf/all/send_redirects", "0"),
    Sysctl("net/ipv4/conf/default/send_redirects", "0"),
    # BGP for IPv6 needs link-local addresses on both sides at once: no waiting for duplicates, there are none.
    Sysctl("net/ipv6/conf/default/accept_dad", "0"),
    # Every packet that is too big or too old gets its answer, not the first few of a second (man 7 icmp).
    Sysctl("net/ipv4/icmp_ratelimit", "0"),
    Sysctl("net/ipv6/icmp/ratelimit", "0"),
)
"""What makes a namespace a router (Documentation/networking/ip-sysctl.rst)."""


def create_all(lab: str, fabric: Fabric) -> None:
    """Make the routers and join them to their racks and to each other. Raises KernelError."""
    for rack in fabric.numbers:
        _create(lab, fabric, rack)
    for rack in fabric.numbers:
        others = {_spine_mac(other): fabric.spine(other) for other in fabric.numbers if other != rack}
        topology.remember(names.tor_netns(lab, rack), SPINE_SIDE, others)


def introduce(lab: str, fabric: Fabric, nodes: Mapping[str, LabNode]) -> None:
    """Tell the routers the hardware addresses of these nodes, for the reason that `topology.introduce` gives."""
    for rack in fabric.numbers:
        residents = [place.index for place in nodes.values() if place.rack == rack]
        macs = {topology.node_mac(index): fabric.addresses(rack, index) for index in residents}
        topology.remember(names.tor_netns(lab, rack), RACK_SIDE, macs)


def _create(lab: str, fabric: Fabric, rack: int) -> None:
    namespace = names.tor_netns(lab, rack)
    netns.create(namespace)
    with netns.opened(netns.path_of(namespace)) as fd:
        netns.run(fd, _become_router)
    with topology.connection(namespace) as there:
        there.transact([set_link_up(LOOPBACK, "lo")])
    sides = (
        (RACK_SIDE, topology.gateway_mac(rack), topology.bridge_of(fabric, rack), fabric.gateways(rack)),
        (SPINE_SIDE, _spine_mac(rack), topology.SPINE, fabric.spine(rack)),
    )
    for device, mac, bridge, interfaces in sides:
        port = f"tor{rack}-{device}"
        topology.plug(lab, namespace, device, mac=mac, port=port, bridge=bridge, interfaces=interfaces)
    topology.route(
        namespace,
        [
            Route(subnet, device=SPINE_SIDE, gateway=in_family(fabric.spine(other), Family.of(subnet)))
            for other in fabric.numbers
            if other != rack
            for subnet in fabric.subnets(other)
        ],
    )


def _become_router() -> None:
    for setting in SETTINGS:
        sysctls.write(setting)


def _spine_mac(rack: int) -> str:
    return f"02:70:77:73:00:{rack:02x}"
