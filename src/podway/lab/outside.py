"""A host beside a lab's cluster, called `outside`: it knows the way to nodes, and none to pods.

    flat                                        with racks
      fabric0 (bridge)                            spine (bridge)
        ├── node1 … nodeN                           ├── tor1 … torK
        └── outside ── eth0 ── podway-<lab>-outside └── outside ── eth0 ── podway-<lab>-outside

Nodes on a flat segment, and otherwise the routers, have a route to its network. On it runs the little server of
pods (podway.lab.echo), which tells who asked: of a pod, its node.
"""

from collections.abc import Sequence
from ipaddress import ip_interface, ip_network

import msgspec

from podway.api.addresses import Family, Interface, Network
from podway.api.kinds.ip_pool import IPPool
from podway.errors import InvalidArgument
from podway.kernel import netns
from podway.kernel.requests import LOOPBACK, set_link_up
from podway.lab import facts, names, processes, routers, serving, state, topology
from podway.lab.fabric import in_family
from podway.lab.paths import lab_dir
from podway.lab.state import LabState
from podway.plan.objects import Route

NAME = "outside"

PORT = 80
"""TCP port of its little server."""

NETWORKS: dict[Family, tuple[Network, ...]] = {
    # For documentation (RFC 5737, RFC 3849), so nobody's; the first that overlaps no range of the lab is taken.
    Family.IPV4: tuple(map(ip_network, ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"))),
    Family.IPV6: tuple(map(ip_network, ("2001:db8:ffff:ffff::/64", "2001:db8:ffff:fffe::/64"))),
}

_NUMBER = 10
"""The host's number in its network."""

_MAC = "02:70:77:6f:00:01"


def ensure(lab: str) -> tuple[LabState, bool]:
    """Put the host beside a lab unless it is there; return the lab's state, and whether it is new.

    Raises LabError, KernelError, InvalidArgument if the lab's ranges leave no network for it.
    """
    with state.locked(lab):
        current = state.load(lab)
        if current.outside:
            return current, False
        pools = [pool.network for pool in facts.ask(lab, lambda store: store.list(IPPool)).items]
        addresses = choose(current, pools)
        changed = msgspec.structs.replace(current, outside=tuple(map(str, addresses)))
        try:
            _create(changed)
            serving.serve(
                PORT,
                "I am host outside",
                namespace=names.outside_netns(lab),
                mark=f"{lab}/{NAME}",
                log=lab_dir(lab) / "outside.log",
            )
        except BaseException:
            _remove(lab)
            raise
        state.save(changed)
        return changed, True


def choose(current: LabState, pools: Sequence[Network]) -> tuple[Interface, ...]:
    """Return the host's addresses, one of each family that nodes have, apart from these pools.

    Raises InvalidArgument if there is none.
    """
    taken = [*pools, *current.fabric.estate]
    return tuple(_interface(Family.of(network), taken) for network in current.fabric.estate)


def _interface(family: Family, taken: Sequence[Network]) -> Interface:
    for network in NETWORKS[family]:
        if not any(network.version == other.version and network.overlaps(other) for other in taken):
            return ip_interface((network[_NUMBER], network.prefixlen))
    tried = ", ".join(map(str, NETWORKS[family]))
    raise InvalidArgument(f"the lab's ranges leave no {family.label} network outside of them (tried {tried})")


def execute(lab: str, command: Sequence[str]) -> int:
    """Run a command on the host, which is made if it is not there; return its exit status. Raises LabError."""
    ensure(lab)
    return processes.run(command, namespace=names.outside_netns(lab))


def remove(lab: str) -> bool:
    """Remove the host, its processes, and the routes to it; tell whether there was one. Raises LabError."""
    with state.locked(lab):
        current = state.load(lab)
        _remove(lab)
        for namespace, device in _neighbours(current):
            topology.unroute(namespace, _routes(current, device))
        state.save(msgspec.structs.replace(current, outside=()))
        return bool(current.outside)


def show_way(current: LabState, node: str) -> None:
    """Give a node on a flat segment the route to the host, if there is one; others have a router that knows it."""
    if not current.fabric.routed:
        topology.route(names.node_netns(current.name, node), _routes(current, topology.UPLINK))


def _create(current: LabState) -> None:
    lab, fabric = current.name, current.fabric
    namespace = names.outside_netns(lab)
    netns.create(namespace)
    with topology.connection(namespace) as there:
        there.transact([set_link_up(LOOPBACK, "lo")])
    topology.plug(
        lab,
        namespace,
        topology.UPLINK,
        mac=_MAC,
        port=NAME,
        bridge=topology.SPINE if fabric.routed else topology.BRIDGE,
        interfaces=current.outside_interfaces,
    )
    near = fabric.subnets(0 if fabric.routed else 1)
    far = [
        Route(subnet, device=topology.UPLINK, gateway=in_family(fabric.spine(rack), Family.of(subnet)))
        for rack in fabric.numbers
        for subnet in fabric.subnets(rack)
    ]
    topology.route(namespace, [*(Route(net, device=topology.UPLINK, scope="link") for net in near), *far])
    for neighbour, device in _neighbours(current):
        topology.route(neighbour, _routes(current, device))


def _neighbours(current: LabState) -> list[tuple[str, str]]:
    """Return the namespaces that have routes to the host, and the devices by which these lead."""
    lab = current.name
    if current.fabric.routed:
        return [(names.tor_netns(lab, rack), routers.SPINE_SIDE) for rack in current.fabric.numbers]
    return [(names.node_netns(lab, node), topology.UPLINK) for node in current.running]


def _routes(current: LabState, device: str) -> list[Route]:
    networks = [interface.network for interface in current.outside_interfaces]
    return [Route(network, device=device, scope="link") for network in networks]


def _remove(lab: str) -> None:
    namespace = names.outside_netns(lab)
    processes.Members([namespace], marked=lambda mark: mark == f"{lab}/{NAME}").end()
    netns.delete(namespace)
