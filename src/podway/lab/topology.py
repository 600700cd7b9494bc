"""The wires of a lab: bridges in a namespace of their own, and for each node an uplink to one of them.

    podway-<lab>-fabric            podway-<lab>-node1        podway-<lab>-node2
      fabric0 (bridge)
        ├── port1 ──── veth ──────── eth0
        └── port2 ──── veth ──────────────────────────────── eth0

With racks there is a bridge for each, `rack<k>`, and one that joins their routers: podway.lab.routers. Both ends
of a veth pair are born in their final namespaces, so nothing ever shows in the root namespace.
"""

import contextlib
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence

from podway.api.addresses import Family, Interface
from podway.kernel import netns, sysctls
from podway.kernel.network import Connection, find_link
from podway.kernel.requests import (
    LOOPBACK,
    Peer,
    Request,
    add_address,
    add_neighbour,
    add_route,
    change_link,
    new_bridge,
    new_veth,
    remove_link,
    remove_route,
    set_link_down,
    set_link_up,
)
from podway.lab import names
from podway.lab.fabric import Fabric
from podway.lab.state import LabNode
from podway.plan.objects import LinkAddress, Neighbour, Route, Sysctl

BRIDGE = "fabric0"
SPINE = "spine"
UPLINK = "eth0"
CONTROL_MAC = "02:70:77:63:00:01"

STATIC = 4
"""RTPROT_STATIC: a route that an administrator wrote."""

BRIDGE_NETFILTER = tuple(
    f"net/bridge/bridge-nf-call-{tables}" for tables in ("arptables", "ip6tables", "iptables")
)


def create_fabric(lab: str, fabric: Fabric) -> None:
    """Make the segments. Raises KernelError."""
    netns.create(names.fabric_netns(lab))
    bridges = [SPINE, *(bridge_of(fabric, rack) for rack in fabric.numbers)] if fabric.routed else [BRIDGE]
    with connection(names.fabric_netns(lab)) as there:
        for bridge in bridges:
            there.transact([new_bridge(bridge)])
            # Nothing speaks IP in here; without an address the bridge asks for none and sends nothing.
            there.transact([change_link(bridge, without_ipv6_autoconf=True), set_link_up(bridge)])
    with netns.opened(netns.path_of(names.fabric_netns(lab))) as fd:
        netns.run(fd, _leave_frames_alone)


def _leave_frames_alone() -> None:
    """Keep br_netfilter, where it is loaded, from taking a switch for a firewall: it would slow every frame."""
    for setting in sysctls.read(BRIDGE_NETFILTER):
        sysctls.write(Sysctl(setting, "0"))


def bridge_of(fabric: Fabric, rack: int) -> str:
    """Return the bridge of a rack's nodes."""
    return f"rack{rack}" if fabric.routed else BRIDGE


def create_node(lab: str, node: str, place: LabNode, fabric: Fabric) -> None:
    """Make a node's namespace and join it to its segment. Raises KernelError."""
    mac, port = node_mac(place.index), _port(place.index)
    addresses = fabric.addresses(place.rack, place.index)
    _create_host(lab, names.node_netns(lab, node), fabric, place.rack, addresses, mac=mac, port=port)


def create_control(lab: str, fabric: Fabric) -> None:
    """Make the namespace of the cluster's own servers and join it to the first segment. Raises KernelError."""
    _create_host(lab, names.control_netns(lab), fabric, 1, fabric.control, mac=CONTROL_MAC, port="control")


def _create_host(
    lab: str, namespace: str, fabric: Fabric, rack: int, addresses: Sequence[Interface], *, mac: str, port: str
) -> None:
    netns.create(namespace)
    with connection(namespace) as there:
        there.transact([set_link_up(LOOPBACK, "lo")])
    bridge = bridge_of(fabric, rack)
    plug(lab, namespace, UPLINK, mac=mac, port=port, bridge=bridge, interfaces=addresses)
    default = [
        Route(Family.of(gateway).default_route, device=UPLINK, gateway=gateway.ip)
        for gateway in fabric.gateways(rack)
    ]
    route(namespace, default)


def plug(
    lab: str, namespace: str, device: str, *, mac: str, port: str, bridge: str, interfaces: Iterable[Interface]
) -> None:
    """Join a namespace to a bridge of the fabric: by `device` with these addresses there, by `port` here.

    Raises KernelError.
    """
    with connection(names.fabric_netns(lab)) as fabric, connection(namespace) as there:
        with netns.opened(netns.path_of(namespace)) as fd:
            fabric.transact([new_veth(port, Peer(device, fd, mac))])
        master = find_link(fabric, bridge).index
        fabric.transact([change_link(port, master=master, without_ipv6_autoconf=True)])
        fabric.transact([set_link_up(port)])
        index = find_link(there, device).index
        there.transact(
            [
                set_link_up(index, device),
                *(add_address(LinkAddress(device, interface), index) for interface in interfaces),
            ]
        )


def route(namespace: str, wanted: Iterable[Route]) -> None:
    """Write static routes in a namespace. Raises KernelError."""
    with connection(namespace) as there:
        there.transact([add_route(entry, find_link(there, entry.device).index, STATIC) for entry in wanted])


def unroute(namespace: str, unwanted: Iterable[Route]) -> None:
    """Remove static routes from a namespace, as far as they are there. Raises KernelError."""
    with connection(namespace) as there:
        requests = [remove_route(entry, find_link(there, entry.device).index, STATIC) for entry in unwanted]
        for failure in there.attempt(requests).values():
            if failure.errno != errno.ESRCH:
                raise failure


def introduce(lab: str, fabric: Fabric, nodes: Mapping[str, LabNode]) -> None:
    """Tell each of these nodes the hardware addresses of all others of its rack, and of its router, for good.

    All namespaces share the kernel's neighbour tables, with room for 1024 entries that are learned
    (gc_thresh3, man 7 arp); 50 nodes would need 2450 of them, and then not even a SYN finds its way.
    Permanent entries do not count. That of a node which left stays: its number keeps its address.
    """
    for rack, residents in _by_rack(nodes).items():
        segment = {node_mac(index): fabric.addresses(rack, index) for index in residents.values()}
        segment[gateway_mac(rack)] = fabric.gateways(rack)
        for node, index in residents.items():
            others = {mac: found for mac, found in segment.items() if mac != node_mac(index)}
            remember(names.node_netns(lab, node), UPLINK, others)


def remember(namespace: str, device: str, macs: Mapping[str, Iterable[Interface]]) -> None:
    """Write permanent neighbour entries: the addresses that each of these hardware addresses has."""
    with connection(namespace) as there:
        index = find_link(there, device).index
        entries = (Neighbour(device, address.ip, mac) for mac, found in macs.items() for address in found)
        there.transact([add_neighbour(entry, index) for entry in entries])


def _by_rack(nodes: Mapping[str, LabNode]) -> dict[int, dict[str, int]]:
    racks: dict[int, dict[str, int]] = {}
    for node, place in nodes.items():
        racks.setdefault(place.rack, {})[node] = place.index
    return racks


def cut_node(lab: str, index: int) -> None:
    """Take a node's carrier away, as pulling its cable would: nothing that it sends gets out any more."""
    _at_port(lab, set_link_down(_port(index)))


def remove_node(lab: str, node: str, index: int) -> None:
    """Remove a node's uplink and namespace, as far as they are there. Nothing may run in it any more."""
    _at_port(lab, remove_link(_port(index)))
    netns.delete(names.node_netns(lab, node))


def create_pod(namespace: str) -> str:
    """Make a pod's empty namespace of this name, as a runtime's sandbox; return its path. Raises KernelError."""
    path = netns.create(namespace)
    with connection(namespace) as sandbox:
        sandbox.transact([set_link_up(LOOPBACK, "lo")])
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


def node_mac(index: int) -> str:
    """Return the hardware address of a node's uplink."""
    # The same after a restart, so that the neighbours' caches stay right.
    return f"02:70:77:6e:{index >> 8:02x}:{index & 0xFF:02x}"


def gateway_mac(rack: int) -> str:
    """Return the hardware address of a rack's router in the rack."""
    return f"02:70:77:72:00:{rack:02x}"
