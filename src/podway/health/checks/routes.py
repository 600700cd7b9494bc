"""Routes that others wrote where pods live, and what other pod networks left behind."""

from collections.abc import Iterator

from podway.health.facts import KernelRoute, NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.plan.objects import MAIN_TABLE

CALICO = 80
"""DeviceRouteProtocol of Calico's Felix, by default."""
PROTOCOLS = {
    2: "the kernel",
    3: "somebody by hand (proto boot)",
    4: "static configuration",
    12: "a BIRD that is not ours, or no longer",
    16: "DHCP",
    CALICO: "Calico",
    186: "another BGP daemon",
}
"""rtm_protocol by number (include/uapi/linux/rtnetlink.h)."""

LEFTOVERS = {
    "flannel": "Flannel",
    "cni0": "the bridge plugin (Flannel)",
    "cali": "Calico",
    "vxlan.calico": "Calico",
    "wireguard.cali": "Calico",
    "cilium_": "Cilium",
    "weave": "Weave Net",
    "kube-bridge": "kube-router",
    "antrea-gw": "Antrea",
    "ovn-k8s-mp": "OVN-Kubernetes",
}
"""How the devices of other pod networks' names begin."""


@node_check(
    "route-owner",
    looks_at="routes to pods' ranges that neither the agent nor its BIRD wrote, and the way the kernel chooses",
    why="the more specific route wins, and among equals the smaller metric: pods' packets go another's way",
)
def route_owner(facts: NodeFacts) -> Iterator[Problem]:
    """Foreign routes inside a pool; and, should a table or rule of others decide, the way itself."""
    told = set()
    for route in facts.network.routes:
        pool = _pool_of(facts, route)
        if pool is not None and route.protocol != CALICO:
            told.add(route.destination)
            yield Problem(
                f"{_words(route)}, of {_owner(route)}, lies inside IPPool/{pool}",
                f"ip route del {_words(route)}, and find who writes it",
                f"route {route.destination}",
            )
    for actual in facts.network.block_routes:
        if actual.matched in told or any(
            net.version == actual.block.version and net.overlaps(actual.block) for net in told
        ):
            continue
        table = f" in table {actual.table}" if actual.table not in {0, MAIN_TABLE} else ""
        goes = (
            f"goes via {actual.gateway or 'no gateway'} dev {actual.device}"
            if actual.device
            else f"is {actual.type}"
        )
        yield Problem(
            f"BIRD has {actual.wanted}, but a packet {goes} (by the route to {actual.matched or 'none'}{table})",
            "look at `ip rule` and `ip route show table all`: somebody else's rule or route comes first",
            f"route {actual.block}",
        )


@node_check(
    "leftovers",
    looks_at="devices and routes of other pod networks (Flannel, Calico, Cilium, Weave, kube-router, Antrea, OVN)",
    why="what a former pod network left behind still takes packets, and its addresses may be given to pods",
)
def leftovers(facts: NodeFacts) -> Iterator[Problem]:
    """Two pod networks on one node are a mistake, or the rest of a migration."""
    for device in facts.network.devices:
        maker = next((name for prefix, name in LEFTOVERS.items() if device.name.startswith(prefix)), None)
        if maker and not device.ours:
            yield Problem(
                f"this device is of {maker}",
                f"if {maker} is gone: ip link delete {device.name}",
                device.name,
                Severity.WARNING,
            )
    for route in facts.network.routes:
        if route.protocol == CALICO:
            yield Problem(
                f"{_words(route)} is of Calico",
                f"if Calico is gone: ip route del {_words(route)}",
                f"route {route.destination}",
                Severity.ERROR if _pool_of(facts, route) else Severity.WARNING,
            )


def _pool_of(facts: NodeFacts, route: KernelRoute) -> str | None:
    """Return the pool in which a route lies: one to a wider range loses against blocks' routes."""
    for name, pool in facts.memory.view.pools.items():
        net, destination = pool.network, route.destination
        if (
            net.version == destination.version
            and destination.prefixlen >= net.prefixlen
            and net.overlaps(destination)
        ):
            return name
    return None


def _owner(route: KernelRoute) -> str:
    return PROTOCOLS.get(route.protocol, f"protocol {route.protocol}")


def _words(route: KernelRoute) -> str:
    """Return the route as `ip route` takes it."""
    parts = [*([route.type] if route.type != "unicast" else []), str(route.destination)]
    parts += ["via", str(route.gateway)] if route.gateway else []
    parts += ["dev", route.device] if route.device else []
    parts += ["metric", str(route.metric)] if route.metric else []
    parts += ["table", str(route.table)] if route.table != MAIN_TABLE else []
    return " ".join(parts)
