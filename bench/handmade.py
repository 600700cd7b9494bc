"""VXLAN as one makes it by hand: two nodes without Podway on a lab's segment, each with a pod.

It has Flannel's shape (`flannel.1`): the kernel's VXLAN device without learning, a permanent neighbour and
forwarding entry for the other node, and a route to its pods through that. The pod is joined to its node by a veth
pair: one end is the node's own, routed, or a port of a bridge `cni0`.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

import msgspec

from bench.labs import Lab, RunningPod
from podway.kernel import netns
from podway.lab import names, state, topology

ROUTED, BRIDGED = "routed", "bridge"

_FIRST_INDEX = 901
"""Numbers of the nodes on the segment: none of the lab's own."""
_OVERHEAD = 50
_PODS = {ROUTED: IPv4Network("10.99.0.0/16"), BRIDGED: IPv4Network("10.98.0.0/16")}


class _Node(msgspec.Struct, frozen=True):
    """A node: `pods` is its network, `mac` its VXLAN device's."""

    namespace: str
    address: str
    pods: str
    gateway: str
    pod: str
    mac: str


@contextmanager
def pods(cluster: Lab, shape: str) -> Iterator[tuple[RunningPod, RunningPod]]:
    """Give two pods, one on each of two nodes of this shape, while the block runs. Raises KernelError."""
    one, two = (_node(cluster, shape, number) for number in range(2))
    try:
        for here, number in ((one, 0), (two, 1)):
            _join(cluster, here, _index(shape, number))
        for here, there in ((one, two), (two, one)):
            _overlay(here, there)
            _attach(here, shape)
        yield RunningPod(_pod_netns(one), one.pod), RunningPod(_pod_netns(two), two.pod)
    finally:
        for node in (one, two):
            netns.delete(_pod_netns(node))
            netns.delete(node.namespace)


def _index(shape: str, number: int) -> int:
    return _FIRST_INDEX + 2 * (shape == BRIDGED) + number


def _node(cluster: Lab, shape: str, number: int) -> _Node:
    block = list(_PODS[shape].subnets(new_prefix=24))[number + 1]
    place = state.load(cluster.name).fabric.addresses(1, _index(shape, number))
    return _Node(
        # With this prefix it goes with the lab, whatever happens here.
        namespace=f"{names.prefix(cluster.name)}hand-{shape}{number}",
        address=str(place[0].ip),
        pods=str(block),
        gateway=str(block[1]),
        pod=str(block[2]),
        mac=f"02:00:00:00:00:{number + 1:02x}",
    )


def _join(cluster: Lab, node: _Node, index: int) -> None:
    fabric = state.load(cluster.name).fabric
    netns.create(node.namespace)
    topology.plug(
        cluster.name,
        node.namespace,
        topology.UPLINK,
        mac=topology.node_mac(index),
        port=f"hand{index}",
        bridge=topology.bridge_of(fabric, 1),
        interfaces=fabric.addresses(1, index),
    )


def _overlay(here: _Node, there: _Node) -> None:
    other = IPv4Network(there.pods).network_address
    _ip(
        here.namespace,
        f"""
        link add vxlan0 address {here.mac} type vxlan id 1 dstport 4789 local {here.address} dev eth0 nolearning
        link set vxlan0 up
        neigh add {other} lladdr {there.mac} dev vxlan0 nud permanent
        route add {there.pods} via {other} dev vxlan0 onlink
        """,
    )
    _run("bridge", "-n", here.namespace, "fdb", "append", there.mac, "dev", "vxlan0", "dst", there.address)
    _run("ip", "netns", "exec", here.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")


def _attach(node: _Node, shape: str) -> None:
    pod = _pod_netns(node)
    topology.create_pod(pod)
    mtu = 1500 - _OVERHEAD
    _ip(node.namespace, f"link add pod0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}")
    if shape == BRIDGED:
        _ip(
            node.namespace,
            f"""
            link add cni0 mtu {mtu} type bridge
            link set pod0 master cni0 up
            address add {node.gateway}/24 dev cni0
            link set cni0 up
            """,
        )
        _ip(pod, f"link set eth0 up\naddress add {node.pod}/24 dev eth0\nroute add default via {node.gateway}")
        return
    _ip(
        node.namespace,
        f"link set pod0 up\naddress add {node.gateway}/32 dev pod0\nroute add {node.pod}/32 dev pod0",
    )
    _ip(
        pod,
        f"""
        link set eth0 up
        address add {node.pod}/32 dev eth0
        route add default via {node.gateway} dev eth0 onlink
        """,
    )


def _pod_netns(node: _Node) -> str:
    return f"{node.namespace}-pod"


def _ip(namespace: str, batch: str) -> None:
    _run("ip", "-n", namespace, "-batch", "-", text=batch)


def _run(*command: str, text: str = "") -> None:
    subprocess.run(command, input=text, text=True, check=True)
