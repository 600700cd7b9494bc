"""The wires of a lab: a bridge in a namespace of its own, and for each node an uplink to it.

    podway-<lab>-fabric            podway-<lab>-node1        podway-<lab>-node2
      fabric0 (bridge)
        ├── port1 ──── veth ──────── eth0
        └── port2 ──── veth ──────────────────────────────── eth0

Both ends of a veth pair are born in their final namespaces, so nothing ever shows in the root namespace.
"""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from ipaddress import ip_interface, ip_network

from podway.api.addresses import Family, Interface, Network
from podway.errors import LabError
from podway.kernel import addresses, links, neighbours, netns, sysctls
from podway.kernel.netlink import Connection, Request
from podway.lab import names
from podway.plan.objects import LinkAddress, Neighbour, Sysctl

BRIDGE = "fabric0"
UPLINK = "eth0"

NODE_SUBNETS: dict[Family, tuple[Network, ...]] = {
    Family.IPV4: tuple(map(ip_network, ("172.30.0.0/16", "192.168.0.0/16", "198.18.0.0/16"))),
    # The middle of fd70:6f64:7761:79xx::/64 spells the project's name.
    Family.IPV6: tuple(map(ip_network, ("fd70:6f64:7761:7900::/64", "fd70:6f64:7761:7901::/64"))),
}
"""Where nodes may have their own addresses; the first that overlaps no pool is taken."""

MAX_NODES = 1000
"""A bridge has 1023 ports (BR_MAX_PORTS, net/bridge/br_private.h)."""


BRIDGE_NETFILTER = tuple(
    f"net/bridge/bridge-nf-call-{tables}" for tables in ("arptables", "ip6tables", "iptables")
)


def choose_subnets(pools: tuple[Network, ...]) -> tuple[Network, ...]:
    """Return the nodes' subnets beside these pools: always IPv4, IPv6 too if a pool is.

    Raises LabError if the pools leave no room.
    """
    families = [Family.IPV4] + [Family.IPV6] * any(pool.version == 6 for pool in pools)
    return tuple(_choose_subnet(family, pools) for family in families)


def _choose_subnet(family: Family, pools: tuple[Network, ...]) -> Network:
    for subnet in NODE_SUBNETS[family]:
        if not any(pool.version == family and pool.overlaps(subnet) for pool in pools):
            return subnet
    tried = ", ".join(map(str, NODE_SUBNETS[family]))
    raise LabError(f"the pools leave no {family.label} subnet for the nodes themselves (tried {tried})")


def node_addresses(index: int, subnets: tuple[Network, ...]) -> tuple[Interface, ...]:
    """Return the uplink addresses of the node of this number, counted from 1."""
    return tuple(ip_interface(f"{subnet[index]}/{subnet.prefixlen}") for subnet in subnets)


def create_fabric(lab: str) -> None:
    """Make the segment. Raises KernelError."""
    netns.create(names.fabric_netns(lab))
    with connection(names.fabric_netns(lab)) as fabric:
        fabric.transact([links.new_bridge(BRIDGE)])
        # Nothing speaks IP in here; without an address the bridge asks for none and sends nothing.
        fabric.transact([links.change(BRIDGE, without_ipv6_autoconf=True), links.set_up(BRIDGE)])
    with netns.opened(netns.path_of(names.fabric_netns(lab))) as fd:
        netns.run(fd, _leave_frames_alone)


def _leave_frames_alone() -> None:
    """Keep br_netfilter, where it is loaded, from taking a switch for a firewall: it would slow every frame."""
    for setting in sysctls.read(BRIDGE_NETFILTER):
        sysctls.write(Sysctl(setting, "0"))


def create_node(lab: str, node: str, index: int, uplink: tuple[Interface, ...]) -> None:
    """Make a node's namespace and join it to the segment. Raises KernelError."""
    namespace = names.node_netns(lab, node)
    netns.create(namespace)
    with connection(names.fabric_netns(lab)) as fabric, connection(namespace) as there:
        bridge = links.find(fabric, BRIDGE).index
        with netns.opened(netns.path_of(namespace)) as fd:
            peer = links.Peer(UPLINK, fd, _uplink_mac(index))
            fabric.transact([links.new_veth(_port(index), peer)])
        fabric.transact([links.change(_port(index), master=bridge, without_ipv6_autoconf=True)])
        fabric.transact([links.set_up(_port(index))])
        device = links.find(there, UPLINK).index
        there.transact(
            [
                links.set_up(links.LOOPBACK, "lo"),
                links.set_up(device, UPLINK),
                *(addresses.add(LinkAddress(UPLINK, address), device) for address in uplink),
            ]
        )


def introduce(lab: str, nodes: Mapping[str, int], subnets: tuple[Network, ...]) -> None:
    """Tell each of these nodes (names and numbers) the hardware addresses of all others, for good.

    All namespaces share the kernel's neighbour tables, with room for 1024 entries that are learned
    (gc_thresh3, man 7 arp); 50 nodes would need 2450 of them, and then not even a SYN finds its way.
    Permanent entries do not count. That of a node which left stays: its number keeps its address.
    """
    entries = {
        node: [Neighbour(UPLINK, address.ip, _uplink_mac(index)) for address in node_addresses(index, subnets)]
        for node, index in nodes.items()
    }
    for node in nodes:
        with connection(names.node_netns(lab, node)) as there:
            device = links.find(there, UPLINK).index
            others = (entry for other, found in entries.items() if other != node for entry in found)
            there.transact([neighbours.add(entry, device) for entry in others])


def cut_node(lab: str, index: int) -> None:
    """Take a node's carrier away, as pulling its cable would: nothing that it sends gets out any more."""
    _at_port(lab, links.set_down(_port(index)))


def remove_node(lab: str, node: str, index: int) -> None:
    """Remove a node's uplink and namespace, as far as they are there. Nothing may run in it any more."""
    _at_port(lab, links.remove(_port(index)))
    netns.delete(names.node_netns(lab, node))


def create_pod(namespace: str) -> str:
    """Make a pod's empty namespace of this name, as a runtime's sandbox; return its path. Raises KernelError."""
    path = netns.create(namespace)
    with connection(namespace) as sandbox:
        sandbox.transact([links.set_up(links.LOOPBACK, "lo")])
    return str(path)


def namespaces(lab: str) -> list[str]:
    """Return every name below /run/netns that is the lab's, also one that a crash left without a namespace."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name for path in netns.RUN_NETNS.iterdir() if path.name.startswith(names.prefix(lab)))
    return []


@contextlib.contextmanager
def connection(namespace: str) -> Iterator[Connection]:
    """Give a connection to rtnetlink in a named namespace while the block runs."""
    with netns.opened(netns.path_of(namespace)) as fd, Connection(fd) as found:
        yield found


def _at_port(lab: str, request: Request) -> None:
    """Carry out a request for a port of the fabric, if the port is there."""
    with connection(names.fabric_netns(lab)) as fabric:
        failure = fabric.attempt([request]).get(0)
    if failure and failure.errno != errno.ENODEV:
        raise failure


def _port(index: int) -> str:
    return f"port{index}"


def _uplink_mac(index: int) -> str:
    # The same after a restart, so that the neighbours' caches stay right.
    return f"02:70:77:6e:{index >> 8:02x}:{index & 0xFF:02x}"
