"""A small cluster made by hand with iproute2: two nodes on one segment, two pods each, both families.

All neighbours are permanent: the kernel's neighbour tables are shared by all namespaces of the machine, and
other tests may fill them.
"""

import json
import os
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from podway.prove.world import Block, NodePoint, PodPoint, World
from tests.patience import PATIENCE

NODES = (1, 2)
PODS = (2, 3)
UPLINK_MAC = "02:00:00:00:01:0{}"
POD_MAC = "02:00:00:00:02:{}{}"
GATEWAY_MAC = "02:00:00:00:03:00"


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, executable="/bin/bash")
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@dataclass
class Cluster:
    """Namespaces of our own; `node(1)`, `pod(1, 2)` name them. Everything ends with `remove`."""

    prefix: str = field(default_factory=lambda: f"pwv{os.getpid()}-{uuid.uuid4().hex[:6]}")

    def node(self, number: int) -> str:
        return f"{self.prefix}-n{number}"

    def pod(self, node: int, number: int) -> str:
        return f"{self.prefix}-p{node}{number}"

    def on(self, namespace: str, command: str) -> str:
        return run(f"ip netns exec {namespace} {command}")

    def on_node(self, number: int, command: str) -> str:
        return self.on(self.node(number), command)

    def nft(self, namespace: str, rules: str) -> None:
        self.on(namespace, f"nft -f - <<< '{rules}'")

    def build(self) -> None:
        fabric = f"{self.prefix}-fab"
        run(f"ip netns add {fabric} && ip -n {fabric} link add br0 type bridge && ip -n {fabric} link set br0 up")
        for node in NODES:
            self._build_node(node, fabric)
            for number in PODS:
                self._build_pod(node, number)
        for node, other in ((1, 2), (2, 1)):
            self.on_node(node, f"ip route add 10.77.{other}.0/24 via 172.30.0.{other}")
            self.on_node(node, f"ip -6 route add fd77:0:0:{other}::/64 via fd30::{other}")
            for address in (f"172.30.0.{other}", f"fd30::{other}"):
                self.on_node(node, f"ip neigh add {address} lladdr {UPLINK_MAC.format(other)} dev eth0")
        self._await_carriers()

    def _await_carriers(self) -> None:
        """Wait until every device transmits: a carrier is noticed by the kernel's linkwatch a little later."""
        names = [name for name in run("ip netns list").split() if name.startswith(self.prefix)]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            links = [link for name in names for link in json.loads(run(f"ip -n {name} -j link show"))]
            if all(link["operstate"] == "UP" for link in links if link["ifname"] != "lo"):
                return
            time.sleep(0.05)
        raise AssertionError("devices of the test cluster did not come up")

    def _build_node(self, node: int, fabric: str) -> None:
        name = self.node(node)
        run(
            f"""set -e
            ip netns add {name}
            ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.default.rp_filter=1
            ip -n {name} link set lo up
            ip -n {fabric} link add port{node} type veth peer name eth0 netns {name} \
                address {UPLINK_MAC.format(node)}
            ip -n {fabric} link set port{node} master br0 up
            ip -n {name} link set eth0 up
            ip -n {name} addr add 172.30.0.{node}/24 dev eth0
            ip -n {name} addr add fd30::{node}/64 dev eth0 nodad
            ip -n {name} route add blackhole 10.77.{node}.0/24
            ip -n {name} -6 route add blackhole fd77:0:0:{node}::/64
            """
        )

    def _build_pod(self, node: int, number: int) -> None:
        host, name, link = self.node(node), self.pod(node, number), f"veth{number}"
        mac = POD_MAC.format(node, number)
        run(
            f"""set -e
            ip netns add {name}
            ip netns exec {name} sysctl -qw net.ipv6.conf.default.accept_dad=0
            ip -n {host} link add {link} address {GATEWAY_MAC} type veth peer name eth0 netns {name} address {mac}
            ip -n {host} addr add 169.254.1.1/32 dev {link} scope link
            ip -n {host} addr add fe80::1/64 dev {link} nodad
            ip -n {host} link set {link} up
            ip -n {name} link set lo up
            ip -n {name} addr add 10.77.{node}.{number}/32 dev eth0
            ip -n {name} addr add fd77:0:0:{node}::{number}/128 dev eth0 nodad
            ip -n {name} link set eth0 up
            ip -n {name} route add 169.254.1.1 dev eth0 scope link
            ip -n {name} route add default via 169.254.1.1
            ip -n {name} -6 route add default via fe80::1 dev eth0
            ip -n {host} route add 10.77.{node}.{number} dev {link} src 172.30.0.{node}
            ip -n {host} -6 route add fd77:0:0:{node}::{number} dev {link} src fd30::{node}
            ip -n {host} neigh add 10.77.{node}.{number} lladdr {mac} dev {link}
            ip -n {host} neigh add fd77:0:0:{node}::{number} lladdr {mac} dev {link}
            ip -n {name} neigh add 169.254.1.1 lladdr {GATEWAY_MAC} dev eth0
            ip -n {name} neigh add fe80::1 lladdr {GATEWAY_MAC} dev eth0
            """
        )

    def world(self) -> World:
        return World(
            nodes=tuple(
                NodePoint(
                    f"n{node}",
                    f"/run/netns/{self.node(node)}",
                    (ip_address(f"172.30.0.{node}"), ip_address(f"fd30::{node}")),
                    "eth0",
                )
                for node in NODES
            ),
            pods=tuple(
                PodPoint(
                    f"default/p{node}{number}",
                    f"n{node}",
                    f"/run/netns/{self.pod(node, number)}",
                    (ip_address(f"10.77.{node}.{number}"), ip_address(f"fd77:0:0:{node}::{number}")),
                )
                for node in NODES
                for number in PODS
            ),
            blocks=tuple(
                Block(network, f"n{node}")
                for node in NODES
                for network in (ip_network(f"10.77.{node}.0/24"), ip_network(f"fd77:0:0:{node}::/64"))
            ),
        )

    def remove(self) -> None:
        for name in run("ip netns list").split():
            if name.startswith(self.prefix):
                run(f"ip netns del {name}")
