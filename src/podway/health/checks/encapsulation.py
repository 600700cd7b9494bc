"""Encapsulation between nodes: what stands in an overlay's way, and switches that do not finish."""

from collections.abc import Iterator

from podway.api.addresses import Family
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.cluster.view import ClusterView
from podway.health.facts import ClusterFacts, NodeFacts
from podway.health.finding import Problem, Severity, cluster_check, node_check
from podway.plan.fabric import SMALLEST_IPV6_MTU, desired_mode, share_subnet
from podway.plan.mtu import pool_mtu
from podway.plan.outside import outside_peers

NAMED = 3
"""Of how many nodes or pods the names are told."""


@node_check(
    "vxlan-taken",
    looks_at="other VXLAN devices with the cluster's VNI and port, and programs that have the port open",
    why="the kernel gives a VXLAN network to one device, and a UDP port to one program or to VXLAN: "
    "without it the node can neither send nor take the cluster's packets",
)
def vxlan_taken(facts: NodeFacts) -> Iterator[Problem]:
    """Only where the node needs the device."""
    underlays = {Family.of(device.vxlan.local) for device in facts.memory.plan.devices if device.vxlan}
    if not underlays:
        return
    wanted = facts.memory.view.config.vxlan
    for device in facts.network.devices:
        if device.vxlan == (wanted.vni, wanted.port) and device.underlay in underlays and not device.ours:
            yield Problem(
                f"it has VNI {wanted.vni} and port {wanted.port}, those of the cluster",
                f"ip link delete {device.name}; or give the cluster others: spec.vxlan of NetworkConfig/default",
                device.name,
            )
    in_use = any(device.up and device.vxlan and device.vxlan[1] == wanted.port for device in facts.network.devices)
    if wanted.port in facts.settings.udp_ports and not in_use:
        yield Problem(
            f"a program has UDP port {wanted.port} open",
            f"find it: ss -lunp sport = :{wanted.port}; stop it, or give the cluster another port: "
            "spec.vxlan.port of NetworkConfig/default",
        )


@node_check(
    "small-mtu",
    looks_at="the MTU that a pool's encapsulation leaves to pods, for pools of IPv6",
    why=f"IPv6 needs {SMALLEST_IPV6_MTU} bytes on every link (RFC 8200, section 5): where there are less, it "
    "crosses to no other node",
    caused=False,
)
def small_mtu(facts: NodeFacts) -> Iterator[Problem]:
    """At apply time nobody knows the nodes' own MTU."""
    view, uplink = facts.memory.view, facts.memory.uplink
    for name, pool in view.pools.items():
        mtu = pool_mtu(view, uplink, pool)
        if pool.family is Family.IPV6 and mtu < SMALLEST_IPV6_MTU:
            yield Problem(
                f"{uplink.device} has an MTU of {uplink.mtu}, of which {pool.spec.encapsulation} leaves {mtu}",
                f"raise the MTU of {uplink.device} and of its segment to {SMALLEST_IPV6_MTU + uplink.mtu - mtu}",
                f"IPPool/{name}",
            )


@node_check(
    "pod-mtu",
    looks_at="the MTU inside every pod beside what its pool's encapsulation leaves",
    why="what a pod sends must fit with the outer header: larger packets are dropped or come back as ICMP errors",
)
def pod_mtu(facts: NodeFacts) -> Iterator[Problem]:
    """The agent sets both ends of a pod's link; inside, whoever is privileged in the pod may change it."""
    planned = {link.name: link for link in facts.memory.plan.links}
    for pod in facts.pods:
        link = planned.get(pod.link)
        if link is not None and pod.mtu > link.mtu:
            yield Problem(
                f"{pod.device} in it has an MTU of {pod.mtu}, and {link.mtu} fit",
                f"nsenter --net={pod.netns} ip link set {pod.device} mtu {link.mtu}",
                f"pod {pod.name}",
            )


@cluster_check(
    "fabric",
    looks_at="nodes of other subnets to which a pool's packets cross without encapsulation, and who could tell "
    "the routers between about pods",
    why="a router between subnets drops packets for pods that it knows nothing of",
    caused=False,
)
def fabric(facts: ClusterFacts) -> Iterator[Problem]:
    """Every node tells its own part."""
    concerned: dict[tuple[str, str], list[str]] = {}
    for name, heard in sorted(facts.heard.items()):
        for pool, distribution in heard.summary.bare_far.items():
            concerned.setdefault((pool, distribution), []).append(name)
    for (pool, distribution), names in concerned.items():
        nodes = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        by_bgp = distribution == "bgp"
        lacks = "no BGPPeer of theirs tells the routers of pods" if by_bgp else "the store tells routers nothing"
        yield Problem(
            f"packets from {nodes} cross without encapsulation to nodes of other subnets, and {lacks}",
            f"podway set pool/{pool} encapsulation=vxlan when=cross-subnet"
            + ("; or tell the routers by BGP: a BGPPeer for each" if by_bgp else ", or distribution=bgp"),
            f"IPPool/{pool}",
            Severity.WARNING if by_bgp else Severity.ERROR,
        )


def bare_far(view: ClusterView, node: str) -> dict[str, str]:
    """Return the pools whose packets a node sends bare to subnets to whose routers nobody advertises pods.

    Each with who tells its routes. With outside BGP peers the routers may know.
    """
    here = view.nodes.get(node)
    if here is None or not here.interface_addresses:
        return {}
    told = any(True for _ in outside_peers(view, node))
    return {
        name: pool.spec.distribution
        for name, pool in view.pools.items()
        if not (told and pool.spec.distribution == "bgp")
        and any(_by_router(pool, here, there) for there in view.nodes.values() if there is not here)
    }


def _by_router(pool: IPPool, here: Node, there: Node) -> bool:
    """Tell whether packets cross bare between two nodes that share no subnet."""
    if there.internal_address(pool.family) is None or desired_mode(pool, here, there) != "none":
        return False
    return bool(there.interface_addresses) and not share_subnet(here, there, pool.family)


@cluster_check(
    "switch",
    looks_at="nodes that do not yet send with the encapsulation that a pool asks for, and whom they wait for",
    why="until they switch, packets keep the former encapsulation, and pods keep the smaller of the two MTUs",
)
def switch(facts: ClusterFacts) -> Iterator[Problem]:
    """A switch takes a second or two: each agent looked twice."""
    for name, heard in sorted(facts.heard.items()):
        for words in heard.summary.pending:
            awaited = sorted(other for other in facts.silent if other in words.replace(";", " ").split())
            dead = f"; the agent of {awaited[0]} does not answer" if awaited else ""
            whom = awaited[0] if awaited else "the node that it waits for"
            yield Problem(
                f"{words}{dead}",
                f"start the agent of {whom}, or remove the node if it is gone (`podway delete node`); what keeps "
                "an agent from it stands in its log",
                name,
                Severity.WARNING,
            )
