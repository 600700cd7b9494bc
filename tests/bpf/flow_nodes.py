"""Two nodes joined by a wire, with real pods and the flow engine at work.

pa, pb ── node 1 ── wire ── node 2 ── pc
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from podway.errors import KernelError
from podway.kernel import engine, ipip, netns
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_events import Events
from podway.kernel.bpf.flow_layout import BEGINNING, Counter, Endpoint, Event, Hook, Reason
from podway.kernel.bpf.flow_maps import FlowMaps
from podway.kernel.bpf.flow_programs import Place
from podway.kernel.netlink import Connection
from podway.plan.objects import IPIP_DEVICE, VXLAN_DEVICE, IpipTunnel, NodePlan, TunnelEndpoint
from podway.policy.maps import Rule, RuleKey, Tier, Verdict
from tests.kernel.ipip_lab import overlay_mac
from tests.patience import ANSWERED, PATIENCE

POOLS = ("10.0.0.0/8", "fd00::/16")
FAMILIES = (socket.AF_INET, socket.AF_INET6)
ISOLATED = Rule(Verdict.DENY, 0, 77)
ALLOWED = Rule(Verdict.ALLOW, 1, 88)


class Pod:
    """A pod: its namespace, its link on the node, its addresses."""

    def __init__(self, netns: Any, link: str, addresses: tuple[str, str]) -> None:
        self.netns, self.link, self.addresses = netns, link, addresses


def open_socket(pod: Pod, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Open a socket in a pod."""
    made = netns.run(pod.netns.fd, lambda: socket.socket(FAMILIES[family], kind))
    made.settimeout(PATIENCE)
    return made


class Node:
    """A node: its namespace, its pods by their links, and the engine."""

    def __init__(self, number: int, netns: Any, pods: Iterable[Pod]) -> None:
        self.number, self.netns = number, netns
        self.pods = {pod.link: pod for pod in pods}
        self.addresses = (f"172.31.0.{number}", f"fd31::{number}")
        self.connection = Connection(netns.fd)
        self.wires = ["wire"]
        netns.sh("""
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        """)
        for pod in self.pods.values():
            self._wire(pod)
        self.engine: flow_programs.Engine | None = None
        self.events: Events | None = None

    def _wire(self, pod: Pod) -> None:
        four, six = pod.addresses
        self.netns.sh(f"""
            ip link add {pod.link} type veth peer name eth0 netns {pod.netns.name}
            ip link set {pod.link} address ee:ee:ee:ee:ee:ee up
            ip address add 169.254.1.1/32 dev {pod.link}
            ip address add fe80::1/128 dev {pod.link} nodad
            ip -n {pod.netns.name} link set eth0 address 02:00:00:00:00:0{self.number} up
            ip -n {pod.netns.name} address add {four}/32 dev eth0
            ip -n {pod.netns.name} address add {six}/128 dev eth0 nodad
            ip -n {pod.netns.name} route add 169.254.1.1 dev eth0 scope link
            ip -n {pod.netns.name} route add default via 169.254.1.1 dev eth0
            ip -n {pod.netns.name} route add default via fe80::1 dev eth0
            ip -n {pod.netns.name} neighbour add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
            ip -n {pod.netns.name} neighbour add fe80::1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
        """)
        for address in pod.addresses:
            self.netns.sh(f"""
                ip route add {address} dev {pod.link}
                ip neighbour add {address} lladdr 02:00:00:00:00:0{self.number} dev {pod.link} nud permanent
            """)

    def device(self, name: str) -> int:
        """The number of a device."""
        return netns.run(self.netns.fd, lambda: socket.if_nametoindex(name))

    @property
    def places(self) -> list[Place]:
        """Where the engine's programs belong."""
        links = [self.device(link) for link in self.pods]
        wires = [Place(self.device(wire), Hook.FROM_WIRE) for wire in self.wires]
        return [*wires, *(Place(link, hook) for link in links for hook in (Hook.FROM_POD, Hook.TO_POD))]

    def take_over(self, **options: Any) -> None:
        """Have the engine work, and hold it instead of the former one."""
        engine = flow_programs.take_over(self.connection, self.places, **options)
        self.release()
        self.engine, self.events = engine, Events(engine.maps["events"])

    def release(self) -> None:
        """Let go of the engine, as an agent that ends."""
        if self.events and self.engine:
            self.events.close()
            self.engine.close()
        self.engine = self.events = None

    def start(self) -> None:
        """Have the engine work, with all pods and no policy, as if it had done so ever since there are pods."""
        self.begin(lambda: None)
        assert self.engine
        bpf.insert(self.engine.maps["beginning"], bytes(4), BEGINNING.pack(0, 0))
        self.forget()

    def begin(self, fill: Callable[[], None]) -> None:
        """Have the engine work where none did before, once `fill` wrote what it goes by, besides pods."""

        def filled(engine: flow_programs.Engine) -> None:
            self.engine = engine
            for pool in POOLS:
                self.maps.set_pool(ip_network(pool))
            for pod in self.pods.values():
                self.endpoint(pod)
            fill()

        self.take_over(fill=filled)

    @property
    def maps(self) -> FlowMaps:
        """The engine's maps."""
        assert self.engine
        return FlowMaps(self.engine.maps)

    def endpoint(self, pod: Pod, egress: int = 0, ingress: int = 0, flags: int = 0) -> None:
        """Tell the engine of a pod."""
        for address in pod.addresses:
            self.maps.set_endpoint(ip_address(address), Endpoint(self.device(pod.link), egress, ingress, flags))
        self.maps.changed(ways=True)

    def isolate(self, pod: Pod, *allowed: dict[str, Any], direction: str = "ingress") -> None:
        """Let a pod be reached, or reach, only what is allowed: fields of a RuleKey."""
        number = self.device(pod.link) * 2 + (direction == "egress")
        entries = {RuleKey(number): {Tier.NETWORK_POLICY: ISOLATED}}
        entries |= {RuleKey(number, **one): {Tier.NETWORK_POLICY: ALLOWED} for one in allowed}
        self.maps.set_rules(number, entries)
        self.endpoint(pod, **{direction: number})

    def forget(self) -> None:
        """Forget flows and rules, and count from 0 again."""
        assert self.engine
        for name in ("flows", "rules", "identities", "quotas", "fragments"):
            for key in bpf.items(self.engine.maps[name]):
                with contextlib.suppress(KernelError):  # another processor was quicker
                    bpf.delete(self.engine.maps[name], key)
        self.told()
        self._base = self.maps.counters()

    def counted(self) -> dict[Reason | Counter, int]:
        """What was counted since `forget`: only what is not 0."""
        now = self.maps.counters()
        return {name: now[name] - self._base[name] for name in now if now[name] != self._base[name]}

    def told(self) -> list[Event]:
        """What was told since the last call."""
        assert self.events
        return self.events.read()


class Echo:
    """A TCP server in a pod that says again what it hears, on one connection after another."""

    def __init__(self, pod: Pod, family: int, port: int) -> None:
        self.socket = open_socket(pod, family)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((pod.addresses[family], port))
        self.socket.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                while heard := connection.recv(65536):
                    connection.sendall(heard)

    def __enter__(self) -> "Echo":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join(PATIENCE)


def said(connection: socket.socket, words: bytes) -> bytes:
    """Send words, return as many bytes of answer."""
    connection.sendall(words)
    heard = b""
    while len(heard) < len(words):
        piece = connection.recv(65536)
        assert piece, "the connection ended"
        heard += piece
    return heard


HEADERS = {"none": 0, "vxlan": 50, "ipip": 20}


def reaches_only(pod: Pod, target: Pod, family: int, *, port: int, denied: int) -> None:
    """A server at one port of `target` answers a pod, and one at a port that is denied does not."""
    with Echo(target, family, port), Echo(target, family, denied):
        with open_socket(pod, family) as client:
            client.connect((target.addresses[family], port))
            assert said(client, b"hello") == b"hello"
        with open_socket(pod, family) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.connect((target.addresses[family], denied))


class Lab:
    """Both nodes, routed to each other: bare, by VXLAN (over IPv4), or IPv4 alone by IPIP."""

    def __init__(self, stack: contextlib.ExitStack, make: Callable[[], Any], form: str = "none") -> None:
        self.a = Pod(make(), "pa", ("10.1.0.1", "fd00:1::1"))
        self.b = Pod(make(), "pb", ("10.1.0.2", "fd00:1::2"))
        self.c = Pod(make(), "pc", ("10.2.0.1", "fd00:2::1"))
        first, second = make(), make()
        first.sh(f"ip link add wire type veth peer name wire netns {second.name}")
        self.one, self.two = Node(1, first, [self.a, self.b]), Node(2, second, [self.c])
        for node, other in ((self.one, self.two), (self.two, self.one)):
            stack.callback(node.connection.close)
            stack.callback(node.release)
            node.netns.sh(f"""
                ip link set wire up
                ip address add {node.addresses[0]}/24 dev wire
                ip address add {node.addresses[1]}/64 dev wire nodad
            """)
            for pod in node.pods.values():
                node.netns.sh(f"ip link set {pod.link} mtu {1500 - HEADERS[form]}")
                pod.netns.sh(f"ip link set eth0 mtu {1500 - HEADERS[form]}")
            getattr(self, f"_{form}")(node, other)

    def _none(self, node: Node, other: Node) -> None:
        node.netns.sh(f"""
            ip route add 10.{other.number}.0.0/16 via {other.addresses[0]}
            ip route add fd00:{other.number}::/32 via {other.addresses[1]}
        """)

    def _overlay(self, node: Node, other: Node, device: str) -> None:
        node.netns.sh(f"""
            ip link set {device} up
            ip neighbour add fe80::77 lladdr {overlay_mac(other.addresses[0])} dev {device} nud permanent
            ip route add 10.{other.number}.0.0/16 via inet6 fe80::77 dev {device}
            ip route add fd00:{other.number}::/32 via fe80::77 dev {device}
        """)
        node.wires.append(device)

    def _vxlan(self, node: Node, other: Node) -> None:
        device = VXLAN_DEVICE
        node.netns.sh(f"""
            ip link add {device} address {overlay_mac(node.addresses[0])} type vxlan \\
                id 4096 dstport 4789 local {node.addresses[0]} dev wire nolearning
            bridge fdb add {overlay_mac(other.addresses[0])} dev {device} dst {other.addresses[0]} self permanent
        """)
        self._overlay(node, other, device)

    def _ipip(self, node: Node, other: Node) -> None:
        device, mtu = IPIP_DEVICE, 1500 - HEADERS["ipip"]
        node.netns.sh(f"""
            ip link add {device} mtu {mtu} type veth peer name {device}0 mtu {mtu}
            ip link set {device}0 up
        """)
        self._overlay(node, other, device)

        def numbers() -> dict[str, int]:
            return {name: node.device(name) for name in ("wire", device)}

        plan = NodePlan(
            tunnels=(IpipTunnel(device, "wire", ip_address(node.addresses[0])),),
            endpoints=(TunnelEndpoint(ip_address(other.addresses[0])),),
        )
        kinds = (ipip.IpipTunnels(node.connection, numbers), ipip.TunnelEndpoints(node.connection, numbers))
        assert engine.apply(kinds, plan).failures == ()

    def reset(self) -> None:
        """No policy, no flow, nothing to tell."""
        for node in (self.one, self.two):
            for pod in node.pods.values():
                node.endpoint(pod)
            node.forget()

    def start(self) -> None:
        """Have both engines work, once the nodes reach each other: duplicate-address detection takes its time."""
        for node, other in ((self.one, self.two), (self.two, self.one)):
            for address in other.addresses:
                node.netns.run(*ANSWERED, address)
        for node in (self.one, self.two):
            node.start()
